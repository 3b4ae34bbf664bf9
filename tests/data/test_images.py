"""One image: every mode to known pixels, everything that is damaged to an error, and the way back to PNG."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tarflow.data.errors import DataError
from tarflow.data.images import (
    convert,
    decode,
    fit,
    from_array,
    to_array,
)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(data: bytes, channels: int | None = None) -> Any:
    """Decoded, (H, W) or (H, W, 3), as lists."""
    return np.asarray(decode(data, channels)).tolist()


def array(values: Any, dtype: Any = np.uint8) -> Image.Image:
    return Image.fromarray(np.array(values, dtype))


RGB = [[[10, 20, 30], [200, 100, 0]]]


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "GIF", "WEBP"])
def test_grey_and_rgb_are_exact_in_lossless_formats(format: str) -> None:
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    assert pixels(encoded(array(RGB), format, **options), 3) == RGB
    grey = [[0, 1, 254, 255]]
    assert pixels(encoded(array(grey), format, **options), 1) == grey


def test_grey_repeats_and_rgb_becomes_luma() -> None:
    grey = encoded(array([[0, 7, 255]]))
    assert decode(grey).mode == "L"
    assert pixels(grey, 3) == [[[0, 0, 0], [7, 7, 7], [255, 255, 255]]]
    colour = encoded(array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]]]))
    assert decode(colour).mode == "RGB"
    assert pixels(colour, 1) == [[76, 150, 29, 9]]  # 0.299, 0.587, 0.114


def test_16_bit_grey_is_scaled_and_not_saturated() -> None:
    values = [[0, 128, 129, 257, 32768, 65535]]
    expected = [[0, 0, 1, 1, 128, 255]]
    for format in ("PNG", "TIFF"):
        assert pixels(encoded(array(values, np.uint16), format)) == expected
    assert pixels(encoded(array(values, np.int32), "TIFF")) == expected
    pgm = b"P5 6 1 65535\n" + struct.pack(">6H", *values[0])
    assert pixels(pgm) == expected
    big_endian = Image.frombytes("I;16B", (6, 1), struct.pack(">6H", *values[0]))
    assert pixels(encoded(big_endian, "TIFF"), 3) == [[[v] * 3 for v in expected[0]]]


def test_16_bit_grey_with_a_transparent_value_is_laid_over_white() -> None:
    data = encoded(array([[0, 257, 514]], np.uint16), transparency=257)
    assert pixels(data) == [[0, 255, 2]]


def test_wider_numbers_and_floats_have_no_fixed_range() -> None:
    with pytest.raises(DataError, match="from 0 to 65536: expected at most 16 bits"):
        decode(encoded(array([[0, 65536]], np.int32), "TIFF"))
    with pytest.raises(DataError, match="floating-point pixels"):
        decode(encoded(array([[0.5]], np.float32), "TIFF"))


def test_one_bit_is_black_and_white() -> None:
    data = encoded(array([[0, 255, 255]]).convert("1"))
    assert pixels(data) == [[0, 255, 255]]
    assert pixels(data, 3)[0][1] == [255, 255, 255]


def test_alpha_is_laid_over_white() -> None:
    rgba = encoded(array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 200, 128]]]))
    assert pixels(rgba) == [[[10, 20, 30], [255, 255, 255], [127, 177, 227]]]
    la = encoded(array([[[10, 255], [10, 0], [0, 51]]]))
    assert decode(la).mode == "L"
    assert pixels(la) == [[10, 255, 204]]


def palette(colours: list[int], indices: list[int]) -> Image.Image:
    image = Image.new("P", (len(indices), 1))
    image.putpalette(colours)
    image.putdata(indices)
    return image


@pytest.mark.filterwarnings("ignore:.*getdata.*:DeprecationWarning")
def test_palettes_with_and_without_transparency() -> None:
    image = palette([255, 0, 0, 0, 128, 0, 1, 2, 3], [0, 1, 2])
    assert pixels(encoded(image)) == [[[255, 0, 0], [0, 128, 0], [1, 2, 3]]]
    for transparency in (1, bytes([255, 0, 255])):
        clear = encoded(image, transparency=transparency)
        assert pixels(clear) == [[[255, 0, 0], [255, 255, 255], [1, 2, 3]]]
    half = encoded(image, transparency=bytes([255, 128, 255]))
    assert pixels(half)[0][1] == [127, 191, 127]


def test_a_palette_of_greys_is_grey() -> None:
    image = palette([9, 9, 9, 200, 200, 200], [0, 1, 1])
    assert decode(encoded(image)).mode == "L"
    assert pixels(encoded(image)) == [[9, 200, 200]]
    assert pixels(encoded(image, transparency=0)) == [[255, 200, 200]]


@pytest.mark.parametrize(("image", "key", "expected"), [
    (array([[5, 6]]), 5, [[255, 6]]),
    (array([[[1, 2, 3], [4, 5, 6]]]), (1, 2, 3), [[[255, 255, 255], [4, 5, 6]]]),
    (array([[0, 255]]).convert("1"), 0, [[255, 255]]),
])  # fmt: skip
def test_one_transparent_colour_is_laid_over_white(image: Image.Image, key: Any, expected: Any) -> None:
    assert pixels(encoded(image, transparency=key)) == expected


def test_cmyk_becomes_rgb() -> None:
    image = array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 0, 0, 255]]]).convert("RGB")  # a plain RGB array, for the size
    ink = Image.frombytes("CMYK", image.size, bytes([0, 0, 0, 0, 255, 0, 0, 0, 0, 0, 0, 255]))
    assert pixels(encoded(ink, "TIFF")) == [[[255, 255, 255], [0, 255, 255], [0, 0, 0]]]
    photo = Image.new("CMYK", (8, 8), (0, 0, 0, 0))
    assert np.asarray(decode(encoded(photo, "JPEG"))).min() >= 253


@pytest.mark.parametrize(("orientation", "expected"), [
    (1, [[1, 2], [3, 4]]), (2, [[2, 1], [4, 3]]), (3, [[4, 3], [2, 1]]), (6, [[3, 1], [4, 2]]), (8, [[2, 4], [1, 3]]),
])  # fmt: skip
def test_exif_orientation_is_applied(orientation: int, expected: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert pixels(encoded(array([[1, 2], [3, 4]]), exif=exif)) == expected


def test_the_first_frame_is_taken() -> None:
    frames = [array([[50, 50]]), array([[90, 90]])]
    assert pixels(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), 1) == [[50, 50]]


def noise_image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF", "PPM"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_truncated_images_are_errors(format: str, kept: float) -> None:
    data = encoded(noise_image(), format)
    with pytest.raises(DataError, match=r"truncated|not an image") as caught:
        decode(data[: int(len(data) * kept)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_image_is_an_error(data: bytes) -> None:
    with pytest.raises(DataError, match=r"empty file|not an image|truncated"):
        decode(data)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_bytes_give_an_image_or_one_kind_of_error(data: st.DataObject) -> None:
    whole = bytearray(encoded(noise_image().resize((9, 9)), data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF"]))))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, min(len(whole) - 1, 120)))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DataError):  # and nothing else
        assert decode(bytes(whole)).mode in ("L", "RGB")


def png_header(width: int, height: int) -> bytes:
    """A PNG file that claims a size and has no pixels to show for it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 60_000])  # Pillow warns at the first, and raises at the second
def test_a_decompression_bomb_is_an_error(side: int) -> None:
    with pytest.raises(DataError, match="limit of 89478485"):
        decode(png_header(side, side))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_an_error_also_where_warnings_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6)
    assert decode(encoded(array([[1, 2, 3]] * 2))).size == (3, 2)
    with pytest.raises(DataError, match="3x3 pixels: expected at most Pillow's limit of 6"):
        decode(encoded(array([[1, 2, 3]] * 3)))


def test_fitting_copies_pixels_where_there_is_nothing_to_scale() -> None:
    image = noise_image()  # 40x40
    assert fit(image, (40, 40)) is image
    cropped = np.asarray(fit(image, (40, 21)))
    assert np.array_equal(cropped, np.asarray(image)[:, 9:30])  # (40 - 21) // 2 = 9
    assert np.array_equal(np.asarray(fit(image.crop((0, 0, 40, 31)), (20, 40))), np.asarray(image)[5:25])


def test_fitting_takes_the_middle_and_keeps_the_aspect() -> None:
    wide = np.zeros((4, 12), np.uint8)
    wide[:, 4:8] = 200  # the middle third
    small = np.asarray(fit(Image.fromarray(wide).resize((48, 16), Image.Resampling.NEAREST), (4, 4)))
    assert small.shape == (4, 4)
    assert (abs(small[:, 1:3].astype(int) - 200) <= 25).all()
    assert fit(Image.new("RGB", (100, 30)), (12, 7)).size == (7, 12)
    assert fit(Image.new("L", (1, 1000)), (8, 8)).size == (8, 8)


def test_shrinking_is_antialiased() -> None:
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)  # point sampling would give 0 or 255
    small = np.asarray(fit(Image.fromarray(board), (8, 8))).astype(int)
    assert abs(small - 127).max() <= 3


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 30), st.integers(1, 30))
def test_a_constant_image_stays_constant_at_any_size(width: int, height: int, new_width: int, new_height: int) -> None:
    fitted = fit(Image.new("RGB", (width, height), (3, 150, 255)), (new_height, new_width))
    assert fitted.size == (new_width, new_height)
    assert (np.asarray(fitted) == [3, 150, 255]).all()


def test_arrays_and_images_are_two_ways_to_hold_the_same() -> None:
    for channels in (1, 3):
        values = np.random.default_rng(1).integers(0, 256, (channels, 4, 5), np.uint8)
        assert np.array_equal(to_array(from_array(values)), values)
    assert convert(Image.new("L", (1, 1)), None).mode == "L"

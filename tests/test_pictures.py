"""Pictures are written as they are: PNG files, contact sheets, and captions below their images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tarflow.data.images import decode, to_array
from tarflow.measure import Measure, to_8bit
from tarflow.pictures import CAPTION, captioned, class_captions, grid, save_png, save_sheet, show, to_images


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_holds_what_was_written(channels: int, tmp_path: Path) -> None:
    image = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
    save_png(tmp_path / "image.dat", image)  # a PNG whatever the name
    assert [path.name for path in tmp_path.iterdir()] == ["image.dat"]
    again = decode((tmp_path / "image.dat").read_bytes())
    assert np.array_equal(to_array(again), image.numpy())


@pytest.mark.parametrize("image", [torch.zeros(3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.uint8)])
def test_only_grey_or_rgb_bytes_are_written(image: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(C, H, W\) uint8"):
        save_png(tmp_path / "x.png", image)
    assert not list(tmp_path.iterdir())


def test_a_sheet_has_its_images_row_by_row_on_white() -> None:
    images = torch.arange(1, 4, dtype=torch.uint8).reshape(3, 1, 1, 1).expand(3, 3, 2, 1)
    sheet = grid(images, columns=2, padding=1)
    w = 255
    expected = [[w] * 5, [w, 1, w, 2, w], [w, 1, w, 2, w], [w] * 5, [w, 3, w, w, w], [w, 3, w, w, w], [w] * 5]
    assert sheet.tolist() == [expected] * 3
    assert grid(images, columns=3, padding=0)[0].tolist() == [[1, 2, 3], [1, 2, 3]]


@pytest.mark.parametrize(("count", "options", "size"), [
    (5, {}, (2 * 34 + 2, 3 * 34 + 2)),  # about square, and each pixel four times as wide as it was
    (5, {"columns": 9}, (34 + 2, 5 * 34 + 2)),  # no empty columns
    (2, {"columns": 1, "zoom": 1}, (2 * 10 + 2, 10 + 2)),
])  # fmt: skip
def test_a_sheet_is_written(count: int, options: dict[str, int], size: tuple[int, int], tmp_path: Path) -> None:
    images = torch.randint(0, 255, (count, 3, 8, 8), dtype=torch.uint8)
    save_sheet(tmp_path / "sheet.png", images, **options)
    sheet = to_array(decode((tmp_path / "sheet.png").read_bytes()))
    assert sheet.shape == (3, *size)
    assert sheet[:, 2, 2].tolist() == images[0, :, 0, 0].tolist()


def test_a_sheet_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        grid(torch.zeros(0, 1, 2, 2, dtype=torch.uint8), 2)
    with pytest.raises(ValueError, match="columns >= 1"):
        grid(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), 0)


def test_a_sheet_of_many_classes_has_their_names() -> None:
    names = [f"kind {k}" for k in range(30)]
    names[3] = "貓"
    captions = class_captions([0, 3, -1, 29], names)
    assert captions == ["kind 0", "3", "null", "kind 29"]
    assert class_captions([0, 1], names[:20]) is None, "a column each"
    images = torch.zeros(4, 3, 64, 64, dtype=torch.uint8)
    shown = captioned(images, captions)
    assert shown.shape == (4, 3, 64 + CAPTION, 64) and torch.equal(shown[:, :, :64], images)
    lines = shown[:, :, 64:]
    assert int(lines.min()) < 64 and int(lines.max()) == 255, "black on white"
    assert not torch.equal(lines[0], lines[3]) and torch.equal(lines[0, 0], lines[0, 2])
    long = captioned(images[:1], ["a name that is far too long for so small an image"])
    assert int(long[:, :, 64:, -1].min()) == 255, "cut before the margin"


def test_captions_make_room_for_themselves(tmp_path: Path) -> None:
    save_sheet(tmp_path / "sheet.png", torch.zeros(4, 1, 8, 8, dtype=torch.uint8), captions=["a", "b", "c", "d"])
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (2 * 66 + 2, 2 * (66 + CAPTION) + 2)


# --- pictures in and out of a program ---------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("noise", ["gaussian", "uniform"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_level_comes_back_as_it_went_in(levels: int, noise: str, channels: int) -> None:
    measure = Measure(levels, noise, 0.1)
    pixels = torch.arange(levels, dtype=torch.uint8).view(1, 1, 1, levels).expand(2, channels, 3, levels)
    right = to_8bit(pixels, levels)
    for images in (pixels, measure.clean(pixels), measure.clean(pixels).double()):
        pictures = to_images(images, measure)
        assert [picture.mode for picture in pictures] == [{1: "L", 3: "RGB"}[channels]] * 2
        assert torch.equal(torch.stack([torch.tensor(np.array(to_array(picture))) for picture in pictures]), right)
    assert np.array_equal(to_array(to_images(pixels[0], measure)[0]), right[0].numpy())


def test_without_a_measure_black_and_white_are_the_ends() -> None:
    x = torch.tensor([-7.0, -1.0, 1.0, 7.0]).view(1, 1, 2, 2).requires_grad_()
    assert to_array(to_images(x)[0]).tolist() == [[[0, 0], [255, 255]]]


@pytest.mark.parametrize(
    ("images", "of", "message"),
    [
        (torch.zeros(2, 2, 4, 4), None, "with C 1 or 3, got (2, 2, 4, 4)"),
        (torch.zeros(4, 4), None, "(N, C, H, W) or (C, H, W)"),
        (torch.zeros(1, 4, 4, dtype=torch.int64), None, "got torch.int64"),
        (torch.full((1, 4, 4), 17, dtype=torch.uint8), Measure(17), "levels 0 to 16, got 17"),
        (torch.full((1, 4, 4), torch.nan), None, "finite"),
        (torch.zeros(1, 4, 4), "digits", "of: expected a run, a tarflow.Measure or None, got str"),
    ],
)
def test_what_is_no_image_is_named(images: torch.Tensor, of: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        to_images(images, of)


def test_a_sheet_is_what_a_notebook_displays_and_what_is_written(tmp_path: Path) -> None:
    x = torch.rand(5, 3, 8, 8) * 2 - 1
    sheet = show(x, columns=5)
    assert sheet.image.size == (5 * 34 + 2, 34 + 2) and "5 images" in repr(sheet)
    assert np.array_equal(to_array(decode(sheet._repr_png_())), to_array(sheet.image))
    save_sheet(tmp_path / "a.png", x, columns=5)
    save_sheet(tmp_path / "b.png", to_images(x), columns=5)
    sheet.save(tmp_path / "c.png")
    assert len({(tmp_path / f"{name}.png").read_bytes() for name in "abc"}) == 1
    assert show(x, captions=list("abcde")).image.size != sheet.image.size
    with pytest.raises(ValueError, match="captions: expected 5, one an image, got 1"):
        show(x, captions=["a"])


def test_pictures_of_pillow_are_shown_in_colour_where_one_is() -> None:
    red, grey = Image.new("RGB", (4, 4), "red"), Image.new("L", (4, 4), 7)
    assert show([grey, grey]).image.mode == "L"
    pixels = to_array(show([red, grey], zoom=1).image)
    assert pixels[:, 3, 3].tolist() == [255, 0, 0] and pixels[:, 3, 9].tolist() == [7, 7, 7]
    assert np.array_equal(to_array(show(red).image), to_array(show([red]).image))
    for wrong, message in (([], "at least one"), ([red, red.resize((5, 4))], "4x4, 4x5"), ([red, "a"], "images[1]")):
        with pytest.raises(ValueError, match=re.escape(message)):
            show(wrong)

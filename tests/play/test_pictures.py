"""Pictures that somebody sends: read as the data are, or refused in one line before they take memory."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

import tarflow
from play_cases import picture, sent
from report_cases import make_run
from tarflow.data.errors import DataError
from tarflow.play.pictures import MOST_BYTES, MOST_FILES, address, read_image, read_pictures


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tarflow.Run:
    return tarflow.open_run(make_run(tmp_path_factory.mktemp("play") / "run", classes=True, noise="gaussian"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_any_picture_becomes_pixels_of_the_model(run: tarflow.Run, kind: str, mode: str) -> None:
    pixels = read_image(run, picture((30, 20), mode, kind))
    assert pixels.shape == (1, 8, 8) and pixels.dtype == torch.uint8
    assert int(pixels.max()) < run.levels and len(pixels.unique()) > 2


def test_a_picture_of_the_right_size_keeps_its_pixels(run: tarflow.Run) -> None:
    held_out = run.images().held_out.images[0]
    from PIL import Image

    from tarflow.measure import to_8bit
    from tarflow.report.parts import png

    file = png(Image.fromarray(to_8bit(held_out, run.levels)[0].numpy()))
    assert torch.equal(read_image(run, file), held_out)


def bomb(side: int) -> bytes:
    """A PNG file of a kilobyte or so whose head promises side x side pixels."""
    from struct import pack

    def chunk(name: bytes, data: bytes) -> bytes:
        return pack(">I", len(data)) + name + data + pack(">I", zlib.crc32(name + data))

    head = pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(100_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty file"),
        (b"hello", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (picture()[:-40], "damaged or truncated"),
        (bomb(30_000), "expected at most"),
        (bomb(5_000), "5000x5000 pixels: expected at most 16,777,216"),
        (bomb(3_000), "damaged or truncated"),
    ],
)
def test_what_is_no_picture_is_one_line(run: tarflow.Run, data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_image(run, data)
    assert "\n" not in str(caught.value)


def test_each_file_has_its_own_outcome_and_a_name_that_can_be_shown(run: tarflow.Run) -> None:
    names = ("a.png", "<b>\n\tx" + "y" * 200, "\ud800.png")
    found = read_pictures(run, sent(picture(), b"no", picture(), names=names))
    assert [each.pixels is not None for each in found] == [True, False, True]
    assert found[0].name == "a.png" and found[1].problem.startswith("not an image")
    assert len(found[1].name) == 80 and found[1].name.startswith("<b> xyy") and found[2].name == "?.png"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected a JSON list"),
        ("{}", "expected a JSON list"),
        ("[1]", "expected a JSON list"),
        ("[" * 100_000, "expected a JSON list"),
        (json.dumps([{}] * (MOST_FILES + 1)), f"expected at most {MOST_FILES} at a time, got {MOST_FILES + 1}"),
    ],
)
def test_what_is_no_list_of_files_is_an_error(run: tarflow.Run, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_pictures(run, text)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "expected the contents of a file"),
        ({"data": 3}, "expected the contents of a file"),
        ({"data": "…"}, "in base64"),
        ({"data": "A" * (MOST_BYTES * 4 // 3 + 40)}, "expected at most 6 MB"),
    ],
)
def test_an_entry_that_is_no_file_says_so(run: tarflow.Run, entry: dict[str, Any], message: str) -> None:
    (found,) = read_pictures(run, json.dumps([entry]))
    assert found.pixels is None and message in found.problem and found.name == "picture 1"


def test_no_files_are_none(run: tarflow.Run) -> None:
    assert read_pictures(run, None) == read_pictures(run, "") == read_pictures(run, "[]") == []


def test_an_address_holds_the_pixels_enlarged(tmp_path: Path) -> None:
    import base64
    import io

    from PIL import Image

    pixels = torch.arange(64, dtype=torch.uint8).view(1, 8, 8) * 4
    head, _, data = address(pixels).partition(",")
    assert head == "data:image/png;base64"
    shown = Image.open(io.BytesIO(base64.b64decode(data)))
    assert shown.size == (128, 128) and shown.getpixel((127, 0)) == 7 * 4

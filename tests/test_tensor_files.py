"""Tensors in files are those that were written, or an error; and never code, nor more numbers than the file has."""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save

from flow_cases import build
from tarflow import TarFlow
from tarflow.tensor_files import MAX_DEPTH, read_tensors, read_torch_file, save_tensors

TENSORS = {
    "a": torch.randn(5, 3),
    "b": torch.arange(4, dtype=torch.int64),
    "c": torch.randn(3, 4, dtype=torch.bfloat16).t(),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "empty": torch.zeros(0, 3),
    "flags": torch.tensor([True, False]),
}


def test_tensors_come_back_whatever_they_are(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a", TENSORS)
    found = read_tensors(tmp_path / "a")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in TENSORS.items())


def test_the_same_tensors_are_the_same_file(tmp_path: Path) -> None:
    files = [tmp_path / str(k) for k in range(8)]
    for file in files:
        save_tensors(file, TENSORS)
    assert len({file.read_bytes() for file in files}) == 1


def test_no_flipped_bit_goes_unseen(tmp_path: Path) -> None:
    """In the numbers, in the names and shapes, in the words of the header, in its length, in its padding."""
    file, spoilt = tmp_path / "a", tmp_path / "b"
    save_tensors(file, TENSORS)
    data = file.read_bytes()
    for place in range(0, 8 * len(data), 7):  # which comes to every bit of a byte
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        spoilt.write_bytes(flipped)
        with pytest.raises(ValueError, match="b: (damaged, its digest|not a readable safetensors file)"):
            read_tensors(spoilt)


def test_a_file_of_somebody_else_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(save({"x": torch.ones(3)}, {"format": "pt", "author": "somebody"}))
    assert torch.equal(read_tensors(tmp_path / "a")["x"], torch.ones(3))


@pytest.mark.parametrize("seed", range(20))
def test_damaged_weights_are_never_opened(tmp_path: Path, seed: int) -> None:
    build("conditional", torch.float32).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    data = bytearray(file.read_bytes())
    place = random.Random(seed).randrange(8 * len(data))
    data[place // 8] ^= 1 << place % 8
    file.write_bytes(data)
    with pytest.raises(ValueError, match="model.safetensors"):
        TarFlow.from_pretrained(tmp_path)


def test_a_hub_directory_without_a_digest_still_loads(tmp_path: Path) -> None:
    flow = build("conditional", torch.float32)
    flow.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    with safe_open(file, "pt") as opened:
        assert set(opened.metadata()) == {"format", "written_by", "blake2b"}
    file.write_bytes(save(load(file.read_bytes()), {"format": "pt"}))
    again = TarFlow.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), flow.parameters(), strict=True))


def nested(depth: int) -> Any:
    content: Any = torch.ones(1)
    for _ in range(depth):
        content = [content]
    return content


def laughing() -> Any:
    content: Any = [1] * 10
    for _ in range(12):
        content = [content] * 10
    return content


def itself() -> Any:
    content: dict[str, Any] = {}
    content["again"] = content
    return content


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.ones(1).expand(300), "repeats its numbers"),
        (lambda: torch.ones(3, 1).expand(3, 100_000), "repeats its numbers"),
        (lambda: torch.ones(1).expand(100_000, 100_000), "repeats its numbers"),
        (lambda: torch.arange(9.0).as_strided((4, 4), (1, 1)), "repeats its numbers"),
        (lambda: torch.arange(9.0).as_strided((3, 3), (2, 1)), "repeats its numbers"),
        (lambda: torch.ones(3).to_sparse(), "not a plain array"),
        (lambda: torch.ones(3, device="meta"), "that has none"),
        (lambda: [torch.ones(9000)] * 9, "more numbers than the file has"),
        (lambda: nested(MAX_DEPTH), "nested more than"),
        (lambda: nested(400), "nested more than"),
        (laughing, "or over 1000000 entries"),
        (itself, "nested more than"),
    ],
)
def test_what_no_file_may_hold(make: Callable[[], Any], message: str, tmp_path: Path) -> None:
    torch.save({"content": make()}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=f"a.pt: .*{message}.*; expected nothing"):
        read_torch_file(tmp_path / "a.pt", "expected nothing")


def test_each_tensor_has_memory_of_its_own_in_order(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    torch.save({"t": base.t(), "part": base[1:, 2:], "same": [base, base], "pair": (base, 1)}, tmp_path / "a.pt")
    found = read_torch_file(tmp_path / "a.pt", "")
    tensors = [found["t"], found["part"], *found["same"], found["pair"][0]]
    assert all(t.is_contiguous() and t.untyped_storage().nbytes() == 4 * t.numel() for t in tensors)
    assert len({t.untyped_storage().data_ptr() for t in tensors}) == len(tensors)
    assert torch.equal(found["t"], base.t()) and torch.equal(found["part"], base[1:, 2:])
    assert all(torch.equal(t, base) for t in (*found["same"], found["pair"][0]))


def test_an_archive_that_unpacks_to_more_than_it_has_is_not_unpacked(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"x": torch.zeros(1 << 20)}, buffer)
    with zipfile.ZipFile(buffer) as whole, zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in whole.infolist():
            packed.writestr(entry.filename, whole.read(entry))
    with pytest.raises(ValueError, match=r"a.pt: unpacks to [0-9]+ bytes, more than the file has"):
        read_torch_file(tmp_path / "a.pt", "")

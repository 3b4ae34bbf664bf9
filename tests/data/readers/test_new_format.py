"""A new format is one file and one line: here a toy, which every command then takes."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from small_runs import evaluate, train
from tarflow.cli import main
from tarflow.data import load as load_module
from tarflow.data.errors import DataWarning
from tarflow.data.load import load, load_all
from tarflow.data.options import LoadOptions
from tarflow.data.records import Records, RowNames, Source
from tarflow.data.sources import READERS, Reader

# --- the file ---------------------------------------------------------------------------------------------------------


def claims(source: str) -> bool:
    """A text file of 4x4 pictures, one a line: the class, and sixteen numbers."""
    return source.endswith(".toy")


def open_toy(source: str, options: LoadOptions) -> Source:
    """One picture a line."""
    path = Path(source)
    lines = path.read_text().splitlines()

    def read(rows: Sequence[int]) -> Iterator[Any]:
        return (np.array(lines[row].split()[1:], np.uint8).reshape(1, 4, 4) for row in rows)

    labels = [int(line.split()[0]) for line in lines]
    return Source(
        (Records("all", RowNames([(path.name, len(lines))]), labels, read),), ("dark", "light"), files=(path,)
    )


# --- the line ---------------------------------------------------------------------------------------------------------

LINE = Reader(claims, open_toy)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tarflow.data.sources.READERS", [LINE, *READERS])
    pixels = np.random.default_rng(0).integers(0, 128, (40, 16)) + 128 * (np.arange(40)[:, None] % 2)
    lines = [" ".join(map(str, [k % 2, *row])) for k, row in enumerate(pixels)]
    (tmp_path / "some.toy").write_text("\n".join(lines))
    return tmp_path / "some.toy"


def test_it_is_loaded_into_memory_and_into_a_store(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = load(str(toy))
    assert memory.train.class_names == ("dark", "light") and len(load_all(str(toy))[0]) == 40
    monkeypatch.setenv("TARFLOW_CACHE", str(toy.parent / "cache"))
    monkeypatch.setattr(load_module, "MEMORY_SHARE", 0.0)
    with pytest.warns(DataWarning, match="some.toy: 40 images are decoded once"):
        stored = load(str(toy))
    assert stored.train.mapped and torch.equal(stored.train.images, memory.train.images)
    assert stored.train.digest() == memory.train.digest()


def test_every_command_takes_it(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, prepared, scores = (toy.parent / name for name in ("run", "prepared", "scores.csv"))
    assert train(toy, run) == 0
    assert evaluate(capsys, run)["split"] == "held-out"
    assert main(["score", str(run), str(toy), "--draws", "1", "--out", str(scores)]) == 0
    with open(scores, newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == [f"some.toy:{k}" for k in range(40)]
    assert main(["prepare", str(toy), "--out", str(prepared)]) == 0
    assert torch.equal(load(str(prepared)).train.images, load(str(toy)).train.images)

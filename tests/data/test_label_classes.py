"""Labels by the names of their classes: the same numbers whichever split they are read with, and in whichever order."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tarflow.data.assemble import Layout, label_tensors
from tarflow.data.errors import DataError
from tarflow.data.images import from_array
from tarflow.data.load import load, load_all, load_held_out
from tarflow.data.options import LoadOptions
from tarflow.data.records import Records, Source, Split


def part(split: Split, labels: list[int]) -> Records:
    return Records(split, [f"{split}:{k}" for k in range(len(labels))], labels, lambda rows: iter(()))


def _each(parts: Sequence[Records]) -> list[range]:
    """The rows of each part, counted through all."""
    ends = np.cumsum([0, *map(len, parts)]).tolist()
    return [range(*pair) for pair in itertools.pairwise(ends)]


SOURCE = Source((part("train", [0, 1]), part("validation", [1]), part("test", [3, 0])))


@pytest.mark.parametrize("splits", [("train",), ("train", "validation"), ("test",), ("train", "validation", "test")])
def test_classes_without_names_are_those_of_all_splits(splits: tuple[Split, ...]) -> None:
    parts = [part for part in SOURCE.parts if part.split in splits]
    labels, names = label_tensors(Layout.all_in_one("here", SOURCE, parts), _each(parts), None)
    assert names == ("0", "1", "2", "3")
    assert [None if found is None else found.tolist() for found in labels] == [part.labels for part in parts]


def test_every_way_to_open_a_set_finds_the_same_classes(tmp_path: Path) -> None:
    """The class that only the test split has is a class of the model that is trained without that split."""
    data = from_array(np.zeros((1, 4, 4), np.uint8))
    data.save(tmp_path / "one.png")
    encoded = (tmp_path / "one.png").read_bytes()
    (tmp_path / "one.png").unlink()
    for split, numbers in (("train", [0, 1, 1]), ("validation", [1, 0]), ("test", [0, 4])):
        table = pa.table({"image": pa.array([encoded] * len(numbers), pa.binary()), "label": numbers})
        pq.write_table(table, tmp_path / f"{split}-00000-of-00001.parquet")
    where = str(tmp_path)
    names = {
        "load": load(where).train.class_names,
        "held out": load(where).held_out.class_names,
        "alone": load_held_out(where, LoadOptions((4, 4), 1, 256)).class_names,
        "all": load_all(where)[0].class_names,
    }
    assert names == dict.fromkeys(names, ("0", "1", "2", "3", "4"))


def test_labels_go_to_the_classes_of_their_names_in_any_order() -> None:
    source = Source(SOURCE.parts, ("ant", "bee", "cat", "dog"))
    layout, kept = Layout.all_in_one("here", source), _each(source.parts)
    for order, expected in (
        (("ant", "bee", "cat", "dog"), [[0, 1], [1], [3, 0]]),
        (("dog", "cat", "bee", "ant"), [[3, 2], [2], [0, 3]]),
        (("dog", "eel", "ant", "bee"), [[2, 3], [3], [0, 2]]),  # that no image is a cat does not matter
    ):
        labels, names = label_tensors(layout, kept, order)
        assert names == order
        assert [found.tolist() for found in labels if found is not None] == expected
    with pytest.raises(DataError, match="here: unknown class 'dog': expected one of ant, bee, cat"):
        label_tensors(layout, kept, ("ant", "bee", "cat"))

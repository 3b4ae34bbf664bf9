"""Labels by the names of their classes: the same numbers whichever split they are read with, and in whichever order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tarflow.data.errors import DataError
from tarflow.data.images import from_array
from tarflow.data.labels import label_tensors
from tarflow.data.load import load, load_all, load_held_out
from tarflow.data.records import Part, Source, Split
from tarflow.data.request import Request
from tarflow.data.sources import open_source
from tarflow.data.streamed import open_streamed


def part(split: Split, labels: list[int]) -> Part:
    return Part(split, [f"{split}:{k}" for k in range(len(labels))], labels, lambda: iter(()))


SOURCE = Source((part("train", [0, 1]), part("validation", [1]), part("test", [3, 0])))


@pytest.mark.parametrize("splits", [("train",), ("train", "validation"), ("test",), ("train", "validation", "test")])
def test_classes_without_names_are_those_of_all_splits(splits: tuple[Split, ...]) -> None:
    parts = [part for part in SOURCE.parts if part.split in splits]
    labels, names = label_tensors("here", SOURCE, parts, [range(len(part.names)) for part in parts], None)
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
    options = {"held_out_fraction": 0.1, "split_seed": 0}
    names = {
        "load": load(where).train.class_names,
        "held out": load(where).held_out.class_names,
        "alone": load_held_out(where, image_size=(4, 4), channels=1, levels=256, **options).class_names,  # type: ignore[arg-type]
        "all": load_all(where)[0].class_names,
        "streamed": open_streamed(where, open_source(where), Request(), **options).train.class_names,  # type: ignore[arg-type]
    }
    assert names == dict.fromkeys(names, ("0", "1", "2", "3", "4"))


def test_labels_go_to_the_classes_of_their_names_in_any_order() -> None:
    source = Source(SOURCE.parts, ("ant", "bee", "cat", "dog"))
    kept = [range(len(part.names)) for part in source.parts]
    for order, expected in (
        (("ant", "bee", "cat", "dog"), [[0, 1], [1], [3, 0]]),
        (("dog", "cat", "bee", "ant"), [[3, 2], [2], [0, 3]]),
        (("dog", "eel", "ant", "bee"), [[2, 3], [3], [0, 2]]),  # that no image is a cat does not matter
    ):
        labels, names = label_tensors("here", source, source.parts, kept, order)
        assert names == order
        assert [found.tolist() for found in labels if found is not None] == expected
    with pytest.raises(DataError, match="here: unknown class 'dog': expected one of ant, bee, cat"):
        label_tensors("here", source, source.parts, kept, ("ant", "bee", "cat"))

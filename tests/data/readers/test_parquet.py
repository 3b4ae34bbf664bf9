"""Parquet files in the layout of `datasets`, written here."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tarflow.data.errors import DataError, DataWarning
from tarflow.data.images import decode
from tarflow.data.load import load, load_all
from tarflow.data.options import LoadOptions
from tarflow.data.readers import parquet

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
CLASSES = ("cat", "dog", "eel")


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 5), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(
    path: Path,
    images: Sequence[int | bytes | None],
    labels: Sequence[int | None] | None = None,
    classes: Sequence[str] | None = CLASSES,
    kind: Any = STRUCT,
    **columns: Any,
) -> Path:
    data = [png(image) if isinstance(image, int) else image for image in images]
    if kind == STRUCT:
        columns["image"] = pa.array([None if d is None else {"bytes": d, "path": None} for d in data], STRUCT)
    else:
        columns["image"] = pa.array(data, kind)
    if labels is not None:
        columns["label"] = pa.array(labels, pa.int64())
    table = pa.table(columns)
    if classes is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": list(classes), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, compression="zstd", row_group_size=2)
    return path


@pytest.mark.parametrize("kind", [STRUCT, pa.binary(), pa.large_binary()])
def test_a_file_with_labels_and_names(kind: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "some.parquet", [5, 6, 7], [2, 0, 2], kind=kind, other=[1.5, 2.5, 3.5])
    images, skipped = load_all(str(path))
    assert images.images.shape == (3, 1, 4, 5)
    assert images.images[:, 0, 0, 0].tolist() == [5, 6, 7]
    assert images.labels is not None
    assert images.labels.tolist() == [2, 0, 2]
    assert images.class_names == CLASSES
    assert images.names == ("some.parquet:0", "some.parquet:1", "some.parquet:2")
    assert skipped == ()


def test_labels_and_names_are_optional(tmp_path: Path) -> None:
    bare, _ = load_all(str(write(tmp_path / "a.parquet", [5], classes=None)))
    assert bare.labels is None
    assert bare.class_names == ()
    numbered, _ = load_all(str(write(tmp_path / "b.parquet", [5, 6], [0, 3], classes=None)))
    assert numbered.class_names == ("0", "1", "2", "3")
    hidden, _ = load_all(str(write(tmp_path / "c.parquet", [5, 6], [-1, None])))  # as in a test set of the hub
    assert hidden.labels is None


def test_a_folder_has_the_splits_of_its_file_names(tmp_path: Path) -> None:
    write(tmp_path / "train-00001-of-00002.parquet", [3, 4], [1, 1])
    write(tmp_path / "train-00000-of-00002.parquet", [1, 2], [0, 1])
    write(tmp_path / "validation-00000-of-00001.parquet", [5], [2])
    write(tmp_path / "test.parquet", [6], [2])
    (tmp_path / "README.md").write_text("about")
    splits = load(str(tmp_path))
    assert splits.own_split
    assert splits.train.images[:, 0, 0, 0].tolist() == [1, 2, 3, 4]
    assert splits.train.names[2] == "train-00001-of-00002.parquet:0"
    assert splits.held_out.images[:, 0, 0, 0].tolist() == [5]
    assert load_all(str(tmp_path))[0].images[:, 0, 0, 0].tolist() == [1, 2, 3, 4, 5, 6]


def test_without_a_second_split_a_fraction_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()  # where a snapshot of the hub has its files
    write(tmp_path / "data/train-00000-of-00001.parquet", [1, 2, 3, 4], [0, 1, 0, 1])
    splits = load(str(tmp_path), held_out_fraction=0.25)
    assert not splits.own_split
    assert (len(splits.train), len(splits.held_out)) == (3, 1)
    assert splits.train.class_names == CLASSES  # also those that no image has


def test_files_without_split_names_are_one_set(tmp_path: Path) -> None:
    write(tmp_path / "0000.parquet", [1], [0])
    write(tmp_path / "0001.parquet", [2], [1])
    assert load_all(str(tmp_path))[0].names == ("0000.parquet:0", "0001.parquet:0")
    write(tmp_path / "train-0.parquet", [2], [1])
    with pytest.raises(DataError, match=r"0000.parquet: expected a name that begins with train-"):
        load(str(tmp_path))


def test_bad_records_are_named_by_file_and_row(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", [1, b"text", None, b"", 2, 3, 4], [0, 0, 0, 0, None, 3, 2])
    with pytest.raises(DataError, match=r"5 of 7 images cannot be read .*x.parquet:1: not an image.*and 2 more"):
        load_all(str(path))
    images, skipped = load_all(str(path), skip_bad=True)
    assert images.names == ("x.parquet:0", "x.parquet:6")
    assert images.labels is not None
    assert images.labels.tolist() == [0, 2]
    assert dict(skipped) == {
        "x.parquet:1": "not an image, or in a format that is not read",
        "x.parquet:2": "no bytes",
        "x.parquet:3": "empty file",
        "x.parquet:4": "label None: expected a whole number from 0 to 2",
        "x.parquet:5": "label 3: expected a whole number from 0 to 2",
    }


def test_files_of_one_source_must_agree(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", [1], [0])
    write(tmp_path / "train-1.parquet", [1], [0], classes=("dog", "cat", "eel"))
    with pytest.raises(DataError, match=r"classes dog, cat, eel, and train-0.parquet: .* cat, dog, eel: expected"):
        load(str(tmp_path))
    write(tmp_path / "train-1.parquet", [1])
    with pytest.raises(DataError, match=r"train-1.parquet: columns image and no label, .*: columns image and label"):
        load(str(tmp_path))


def test_other_columns_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"img": [b""], "text": ["a"]}), path)
    with pytest.raises(DataError, match=f"{path}: expected a column 'image', got img, text"):
        load_all(str(path))
    pq.write_table(pa.table({"image": ["a.png"]}), path)
    with pytest.raises(DataError, match="column 'image': expected bytes, or a struct with a field 'bytes', got string"):
        load_all(str(path))
    write(path, [1], classes=None, label=["cat"])
    with pytest.raises(DataError, match="column 'label': expected whole numbers, got string"):
        load_all(str(path))
    write(path, [], [])
    with pytest.raises(DataError, match="holds no images"):
        load_all(str(path))


def test_damaged_files_and_metadata_are_errors(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", list(range(50)), [0] * 50)
    whole = path.read_bytes()
    for damaged in (b"", b"PAR1", whole[:-20], whole[:100] + bytes(300) + whole[400:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=f"{path}: not a readable Parquet file") as caught:
            load_all(str(path))
        assert "\n" not in str(caught.value)
    for metadata in ("{", "[]", json.dumps({"info": []})):
        table = pa.table({"image": [png(1)]}).replace_schema_metadata({"huggingface": metadata})
        pq.write_table(table, path)
        if metadata == json.dumps({"info": []}):
            assert load_all(str(path))[0].class_names == ()
        else:
            with pytest.raises(DataError, match="unreadable 'huggingface' metadata"):
                load_all(str(path))


def table_of(**columns: Any) -> pa.Table:
    return pa.table({"image": pa.array([{"bytes": png(k), "path": None} for k in range(4)], STRUCT)} | columns)


@pytest.mark.parametrize("name", ["labels", "fine_label", "class", "category_id", "Target", "y"])
def test_a_label_column_of_another_name_is_found(name: str, tmp_path: Path) -> None:
    pq.write_table(table_of(**{name: [0, 1, 2, 1], "width": [5] * 4, "id": [9, 8, 7, 6]}), tmp_path / "x.parquet")
    images, _ = load_all(str(tmp_path))
    assert images.labels is not None and images.labels.tolist() == [0, 1, 2, 1]


def test_of_several_columns_one_is_chosen_by_an_option(tmp_path: Path) -> None:
    features = {
        "img": {"_type": "Image"},
        "fine_label": {"names": ["a", "b", "c"], "_type": "ClassLabel"},
        "coarse_label": {"names": ["A", "B"], "_type": "ClassLabel"},
    }
    table = table_of(fine_label=[0, 1, 2, 2], coarse_label=[0, 0, 1, 1], other=[png(9)] * 4)
    table = table.rename_columns(["img", "fine_label", "coarse_label", "other"])
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path = tmp_path / "x.parquet"
    pq.write_table(table, path)
    with pytest.raises(DataError, match="columns fine_label, coarse_label may be the label: choose one by --label-c"):
        load_all(str(path))
    for column, classes in (("fine_label", ("a", "b", "c")), ("coarse_label", ("A", "B")), ("none", ())):
        assert load_all(str(path), label_column=column)[0].class_names == classes
    other = load_all(str(path), image_column="other", label_column="none")[0]
    assert other.images[:, 0, 0, 0].tolist() == [9] * 4
    for columns in ({"image_column": "picture", "label_column": "none"}, {"label_column": "picture"}):
        with pytest.raises(DataError, match="expected a column 'picture', got img, fine_label, coarse_label, other"):
            load_all(str(path), **columns)
    lenient = LoadOptions(image_column="picture", label_column="coarse_label", strict=False)
    assert load_all(str(path), lenient)[0].class_names == ("A", "B"), "a run's columns need not be in other data"


@pytest.mark.parametrize("values", [["cat", "dog", "eel", "eel"], [[0], [1], [2], [2]], [0.5, 1.0, 2.0, 2.0]])
def test_a_likely_column_that_is_passed_over_is_named(values: list[Any], tmp_path: Path) -> None:
    pq.write_table(table_of(labels=values), tmp_path / "x.parquet")
    with pytest.warns(DataWarning, match="column 'labels' is not used: expected whole numbers for classes, got"):
        assert load_all(str(tmp_path))[0].labels is None


def test_empty_shards_null_labels_and_hidden_files(tmp_path: Path) -> None:
    table = table_of(label=[0, 1, 2, 2])
    pq.write_table(table, tmp_path / "part-0.parquet")
    pq.write_table(table.slice(0, 0), tmp_path / "part-1.parquet")
    pq.write_table(pa.table({"nothing": pa.array([], pa.null())}), tmp_path / "part-2.parquet")
    for hidden in ("._part-0.parquet", "_metadata.parquet", ".part-0.parquet.crc"):
        (tmp_path / hidden).write_bytes(b"\0\5\x16\7junk")
    assert len(load_all(str(tmp_path))[0]) == 4
    for kind in (pa.int64(), pa.null()):
        pq.write_table(table_of(label=pa.array([None] * 4, kind)), tmp_path / "part-3.parquet")
        with pytest.raises(DataError, match=r"4 of 8 images cannot be read .*part-3.parquet:0: label None: expected"):
            load_all(str(tmp_path))
        assert load_all(str(tmp_path), skip_bad=True)[0].class_names == ("0", "1", "2")


def test_a_split_without_a_row_is_an_error_and_not_no_split(tmp_path: Path) -> None:
    pq.write_table(table_of(), tmp_path / "train-0.parquet")
    pq.write_table(table_of().slice(0, 0), tmp_path / "test-0.parquet")
    with pytest.raises(DataError, match=r"test-0.parquet: the test split holds no images"):
        load(str(tmp_path))


def test_rows_that_hold_only_a_path_say_so(tmp_path: Path) -> None:
    rows = [{"bytes": png(1), "path": "a.png"}, {"bytes": None, "path": "b.png"}, None]
    pq.write_table(pa.table({"image": pa.array(rows, STRUCT)}), tmp_path / "x.parquet")
    _, skipped = load_all(str(tmp_path), skip_bad=True)
    only = "no bytes, only the path 'b.png', which is not followed: expected the image in the file"
    assert dict(skipped) == {"x.parquet:1": only, "x.parquet:2": "no bytes"}


def test_rows_are_those_that_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several files, row groups and batches."""
    monkeypatch.setattr(parquet, "_BATCH_ROWS", 4)
    for name, values in (("a", range(0, 40)), ("b", range(40, 47))):
        table = pa.table({"image": [png(value) for value in values]})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=15)
    (part,) = parquet.open_parquet(str(tmp_path)).parts
    for rows in (range(47), [0], [46], [3, 14, 15, 16, 39, 40, 45], [], range(0, 47, 7)):
        found = [decode(content).getpixel((0, 0)) for content in part.read(rows)]  # type: ignore[arg-type]
        assert found == list(rows)

"""Tables: columns by their names out of four formats, and one line for what is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from tarflow.data.errors import DataError
from tarflow.data.tables import is_table, read_table, write_table

COLUMNS: dict[str, Any] = {"a": np.array([1.5, -2.0, 3.25]), "b": np.array([1, 2, 3]), "kind": ["up", "down", "up"]}


def write(path: Path, text: str = "") -> Path:
    if path.suffix == ".csv":
        path.write_text(text or "a,b,kind\n1.5,1,up\n-2,2,down\n3.25,3,up\n")
    elif path.suffix == ".parquet":
        parquet.write_table(pyarrow.table(COLUMNS), path)
    elif path.suffix == ".npz":
        np.savez(path, **{name: np.asarray(column) for name, column in COLUMNS.items()})
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npz"])
def test_columns_are_the_same_from_every_format(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"table{suffix}")
    assert is_table(path)
    table = read_table(path)
    assert list(table.columns) == ["a", "b", "kind"] and len(table) == 3
    assert table.numbers(["b", "a"], "an event").tolist() == [[1, 1.5], [2, -2], [3, 3.25]]
    assert table.words("kind") == ["up", "down", "up"]
    assert [name for name in table.columns if table.numeric(name)] == ["a", "b"]


def test_a_key_with_two_axes_stands_for_its_columns(tmp_path: Path) -> None:
    theta = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.savez(tmp_path / "t.npz", theta=theta, x=np.arange(3), image=np.zeros((3, 2, 2)))
    table = read_table(tmp_path / "t.npz")
    assert table.named(["x", "theta"], "--events") == ("x", "theta_0", "theta_1")
    assert table.named(["theta", "theta_1"], "--events") == ("theta_0", "theta_1")
    assert table.numbers(["theta_0", "theta_1"], "an event").tolist() == theta.tolist()
    with pytest.raises(DataError, match=r"--events: .*column 'image' holds an array of shape \(3, 2, 2\)"):
        table.named(["image"], "--events")
    np.save(tmp_path / "t.npy", theta)
    assert list(read_table(tmp_path / "t.npy").columns) == ["x_0", "x_1"]


def test_what_pandas_and_arrow_write(tmp_path: Path) -> None:
    table = pyarrow.table(
        {
            "flag": [True, False],
            "category": pyarrow.array(["x", "y"]).dictionary_encode(),
            "day": pyarrow.array([0, 1], pyarrow.date32()),
            "empty": pyarrow.nulls(2),
            "__index_level_0__": [0, 1],
        }
    )
    parquet.write_table(table, tmp_path / "t.parquet")
    found = read_table(tmp_path / "t.parquet")
    assert list(found.columns) == ["flag", "category"]
    assert found.words("flag") == ["true", "false"] and found.words("category") == ["x", "y"]
    assert dict(found.other) == {"day": "date32[day]", "empty": "nothing"}
    with pytest.raises(DataError, match=r"column 'day' holds date32\[day\]; expected numbers or words"):
        found.named(["day"], "--events")


def test_images_are_no_tables(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", images=np.zeros((2, 4, 4), np.uint8))
    parquet.write_table(pyarrow.table({"image": [b"", b""], "label": [0, 1]}), tmp_path / "images.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    (tmp_path / "broken.npz").write_bytes(b"PK")
    for name in ("images.npz", "images.parquet", "broken.parquet", "broken.npz", "missing.csv", "photo.png"):
        assert not is_table(tmp_path / name), name
    assert not is_table(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n,3\n4,5\n", r"column 'a', row 1: missing; expected a finite number; leave this row out"),
        ("a,b\n1,2\nnan,3\nNA,5\n", r"column 'a', row 1: missing; .* leave these 2 rows out"),
        ("a,b\n1,2\ninf,3\n", r"column 'a', row 1: inf; expected a finite number"),
        ("a,b\none,2\n", r"column 'a' holds words; expected numbers, for an event"),
        ("c,b\n1,2\n", r"no column 'a'; known: c, b"),
        ("aa,b\n1,2\n", r"no column 'a'; perhaps aa\?"),
    ],
)
def test_a_column_that_is_not_numbers_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    table = read_table(write(tmp_path / "t.csv", text))
    with pytest.raises(DataError, match=message):
        table.numbers(["b", "a"], "an event")


def test_a_word_that_is_missing_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table({"kind": ["up", None]}), path)
    with pytest.raises(DataError, match=r"column 'kind', row 1: missing"):
        read_table(path).words("kind")


def files_that_are_no_tables(place: Path) -> dict[str, str]:
    (place / "empty.csv").write_text("")
    (place / "head.csv").write_text("a,b\n")
    (place / "ragged.csv").write_text("a,b\n1,2\n3\n")
    (place / "twice.csv").write_text("a,a\n1,2\n")
    (place / "broken.parquet").write_bytes(b"PAR1 and no more")
    (place / "broken.npz").write_bytes(b"PK")
    (place / "broken.npy").write_bytes(b"\x93NUMPY")
    (place / "table.txt").write_text("a")
    np.save(place / "objects.npy", np.array([{}], object), allow_pickle=True)
    np.savez(place / "lengths.npz", a=np.zeros(2), b=np.zeros(3))
    np.save(place / "cube.npy", np.zeros((2, 2, 2)))
    return {
        "empty.csv": "not a readable .csv file",
        "head.csv": "no rows",
        "ragged.csv": "not a readable .csv file",
        "twice.csv": "several columns 'a'",
        "broken.parquet": "not a readable .parquet file",
        "broken.npz": "expected an .npz archive",
        "broken.npy": "not a readable .npy file",
        "table.txt": "expected a table: a file ending in .csv, .parquet, .npz, .npy",
        "objects.npy": "not a readable .npy file",
        "lengths.npz": "2 rows of 'a', and 3 of others",
        "cube.npy": "no rows of numbers or words",
    }


def test_a_file_that_is_no_table_is_one_line(tmp_path: Path) -> None:
    for name, message in files_that_are_no_tables(tmp_path).items():
        with pytest.raises(DataError) as caught:
            read_table(tmp_path / name)
        assert message in str(caught.value) and name in str(caught.value), str(caught.value)
    with pytest.raises(FileNotFoundError, match="missing.csv: no such file"):
        read_table(tmp_path / "missing.csv")


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npz"])
def test_what_is_written_is_read_again(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    write_table(
        path, {"row": np.arange(3), "x": np.array([0.1, 1e-30, -3.0]), "kind": np.array(["a", "b", "a"], object)}
    )
    table = read_table(path)
    assert table.numbers(["row", "x"], "an event").tolist() == [[0, 0.1], [1, 1e-30], [2, -3.0]]
    assert table.words("kind") == ["a", "b", "a"]

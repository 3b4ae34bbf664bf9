"""Tables: columns of numbers and words by their names, from and to `.csv`, `.parquet`, `.npz` and `.npy` files.

A key of an `.npz` archive is a column where its array has one axis. Where it has two, (N, K), its columns are
`key_0 … key_K-1`, and its name stands for all of them. The one array of an `.npy` file is the key `x`.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tarflow import storage
from tarflow.data.errors import DataError, check_unpacked
from tarflow.data.names import few
from tarflow.data.options import TABLE_SUFFIXES
from tarflow.data.readers.npz import Archive

HIDDEN = "__index_level_"  # how a column begins that pandas writes for the numbers of its rows


@dataclass(frozen=True, eq=False)  # equality of arrays is no truth value
class Table:
    """Columns of one length.

    Attributes:
        path: where they come from, as error messages name it.
        columns: float64 of numbers, in which what is missing is NaN; else objects, words or None where one is missing.
        groups: what stands for several columns: a key of an archive, and its columns.
        other: columns that are neither numbers nor words, and what they are.
    """

    path: Path
    columns: Mapping[str, Any]
    groups: Mapping[str, tuple[str, ...]]
    other: Mapping[str, str]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def numeric(self, name: str) -> bool:
        """Whether a column holds numbers."""
        return bool(self.columns[name].dtype == np.float64)

    def named(self, names: Sequence[str], option: str) -> tuple[str, ...]:
        """The columns that names stand for, each once. Raises `DataError` that begins with `option`."""
        found: list[str] = []
        for name in names:
            columns = self.groups.get(name, (name,))
            for column in columns:
                if column in self.other:
                    raise DataError(
                        f"{option}: {self.path}: column {column!r} holds {self.other[column]}; "
                        "expected numbers or words"
                    )
                if column not in self.columns:
                    raise DataError(f"{option}: {self.path}: {self._unknown(column)}")
            found += [column for column in columns if column not in found]
        return tuple(found)

    def numbers(self, names: Sequence[str], what: str) -> Any:
        """Columns of numbers, (N, K) float64. Raises `DataError` naming what is none: column and row, from 0."""
        for name in names:
            if name not in self.columns:
                raise DataError(f"{self.path}: {self._unknown(name)}")
            if not self.numeric(name):
                raise DataError(f"{self.path}: column {name!r} holds words; expected numbers, for {what}")
            bad = np.flatnonzero(~np.isfinite(self.columns[name]))
            if len(bad):
                value = self.columns[name][bad[0]]
                raise DataError(
                    f"{self.path}: column {name!r}, row {bad[0]}: {'missing' if np.isnan(value) else value}; "
                    f"expected a finite number; leave {'this row' if len(bad) == 1 else f'these {len(bad)} rows'} out"
                )
        return np.stack([self.columns[name] for name in names], axis=1) if names else np.empty((len(self), 0))

    def words(self, name: str) -> list[str]:
        """A column as words; numbers as they are written. Raises `DataError` naming a row, from 0, that is missing."""
        if name not in self.columns:
            raise DataError(f"{self.path}: {self._unknown(name)}")
        column = self.columns[name]
        missing = np.isnan(column) if self.numeric(name) else np.array([word is None for word in column], bool)
        if missing.any():
            raise DataError(f"{self.path}: column {name!r}, row {np.flatnonzero(missing)[0]}: missing")
        return [f"{value:g}" if self.numeric(name) else value for value in column]

    def _unknown(self, name: str) -> str:
        known = [*self.groups, *self.columns]
        near = difflib.get_close_matches(name, known, 1)
        hint = f"perhaps {near[0]}?" if near else f"known: {few(known)}"
        return f"no column {name!r}; {hint}"


def is_table(path: str | Path) -> bool:
    """Whether a file holds a table, by its suffix; of Parquet and `.npz`, which may hold images, by what is in it."""
    path = Path(path).expanduser()
    if path.suffix.lower() not in TABLE_SUFFIXES or not path.is_file():
        return False
    if path.suffix.lower() in (".csv", ".npy"):
        return True
    with contextlib.suppress(DataError):
        if path.suffix.lower() == ".npz":
            return "images" not in Archive(path).keys
        with _readable(path):
            import pyarrow as arrow
            from pyarrow import parquet

            kinds = parquet.read_schema(path).types
            return not any(arrow.types.is_nested(kind) or arrow.types.is_binary(kind) for kind in kinds)
    return False  # damaged: whoever reads images says so


def read_table(path: str | Path) -> Table:
    """All of a table, in memory.

    Raises FileNotFoundError, or `DataError` naming the file: another format, damaged, or without a row.
    """
    path = Path(path).expanduser()
    suffix = path.suffix.lower()
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if suffix not in TABLE_SUFFIXES or not path.is_file():
        raise DataError(f"{path}: expected a table: a file ending in {', '.join(TABLE_SUFFIXES)}")
    if suffix in (".npz", ".npy"):
        table = _of_arrays(path, _archive(path) if suffix == ".npz" else _array(path))
    else:
        table = _of_arrow(path)
    if not len(table):
        keys = f", and no `images`; it has {few(Archive(path).keys)}" if suffix == ".npz" else ""
        raise DataError(f"{path}: no rows of numbers or words{keys}")
    return table


def write_table(path: str | Path, columns: Mapping[str, Any]) -> None:
    """Write columns, arrays of one length, as `.csv`, `.parquet` or `.npz`; whole or not at all."""
    path = Path(path)
    with storage.replacing_file(path) as temporary:
        if path.suffix.lower() == ".npz":
            with open(temporary, "wb") as file:
                np.savez(file, allow_pickle=False, **{name: _plain(column) for name, column in columns.items()})
            return
        import pyarrow as arrow
        from pyarrow import csv, parquet

        table = arrow.table({name: arrow.array(column) for name, column in columns.items()})
        if path.suffix.lower() == ".csv":
            csv.write_csv(table, temporary)
        else:
            parquet.write_table(table, temporary)


def _plain(column: Any) -> Any:
    """A column as an array that is no pickle in a file: words as text of one width."""
    array = np.asarray(column)
    return array.astype(str) if array.dtype == object else array


def check_writable_table(path: Path, option: str) -> None:
    """Raise ValueError that names an option unless `write_table` knows the suffix of its value."""
    if path.suffix.lower() not in (".csv", ".parquet", ".npz") or path.is_dir():
        raise ValueError(f"{option} {path}: expected the name of a .csv, .parquet or .npz file")


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what a damaged file raises into one `DataError` that names it."""
    try:
        yield
    except (DataError, PermissionError, FileNotFoundError):
        raise
    except MemoryError:
        raise DataError(f"{path}: larger than the memory") from None
    except Exception as error:  # pyarrow's own, zlib's and NumPy's
        raise DataError(f"{path}: not a readable {path.suffix} file: {error}") from None


def _of_arrow(path: Path) -> Table:
    import pyarrow as arrow
    from pyarrow import csv, parquet

    with _readable(path):
        if path.suffix.lower() == ".csv":  # a word in quotes is one, also "NA"
            words = csv.ConvertOptions(strings_can_be_null=True, quoted_strings_can_be_null=False)
            table = csv.read_csv(path, convert_options=words)
        else:
            table = parquet.read_table(path)
        columns, other = {}, {}
        for name, column in zip(table.column_names, table.columns, strict=True):
            if name in columns or name in other:
                raise DataError(f"{path}: several columns {name!r}; expected names that differ")
            kind = column.type
            if arrow.types.is_dictionary(kind):
                column, kind = column.cast(kind.value_type), kind.value_type
            if name.startswith(HIDDEN):
                continue
            if arrow.types.is_boolean(kind):
                column, kind = column.cast(arrow.string()), arrow.string()
            if arrow.types.is_integer(kind) or arrow.types.is_floating(kind) or arrow.types.is_decimal(kind):
                columns[name] = column.cast(arrow.float64()).to_numpy()
            elif arrow.types.is_string(kind) or arrow.types.is_large_string(kind):
                columns[name] = np.array(column.to_pylist(), object)
            else:
                other[name] = "nothing" if arrow.types.is_null(kind) else str(kind)
    return Table(path, columns, {}, other)


def _archive(path: Path) -> dict[str, Any]:
    archive = Archive(path)
    for key in archive.keys:
        archive.header(key)  # before it is unpacked
    return {key: archive.read(key) for key in archive.keys}


def _array(path: Path) -> dict[str, Any]:
    with _readable(path):
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        check_unpacked(str(path), path.stat().st_size, mapped.nbytes)
        return {"x": np.array(mapped)}


def _of_arrays(path: Path, arrays: Mapping[str, Any]) -> Table:
    columns, groups, other = {}, {}, {}
    lengths = {key: len(array) if array.ndim else 0 for key, array in arrays.items()}
    for key, array in arrays.items():
        if array.ndim not in (1, 2):
            other[key] = f"an array of shape {array.shape}"
            continue
        if lengths[key] != max(lengths.values()):
            raise DataError(f"{path}: {lengths[key]} rows of {key!r}, and {max(lengths.values())} of others")
        names = (key,) if array.ndim == 1 else tuple(f"{key}_{k}" for k in range(array.shape[1]))
        if array.ndim == 2:
            groups[key] = names
        for name, values in zip(names, [array] if array.ndim == 1 else array.T, strict=True):
            if array.dtype.kind in "iuf":
                columns[name] = values.astype(np.float64)
            elif array.dtype.kind in "bU":
                columns[name] = np.array([str(value) for value in values], object)
            else:
                other[name] = str(array.dtype)
    return Table(path, columns, groups, other)

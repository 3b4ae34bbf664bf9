"""Data sets of the Hugging Face hub: `hub:OWNER/NAME`, with `:CONFIG` and `@REVISION` where they are needed.

The library `datasets` (extra `[hub]`) finds out which files a set consists of; they are read once, row group by row
group. Only Parquet can be read like that; the hub keeps a Parquet copy of most other sets at the revision
`refs/convert/parquet`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tarflow.data.errors import DataError
from tarflow.data.names import split_of
from tarflow.data.options import LoadOptions
from tarflow.data.readers.parquet import open_splits
from tarflow.data.records import Location, RemoteFile, Source, Split

PREFIX = "hub:"


def claims(source: str) -> bool:
    """What begins with `hub:`."""
    return source.startswith(PREFIX)


def open_hub(source: str, options: LoadOptions | None = None) -> Source:
    """The set that `source`, with its prefix, names; its splits train, validation and test.

    Raises `DataError` that begins with `source`: `datasets` is not installed, no such set, no network, no Parquet.
    """
    name, _, revision = source.removeprefix(PREFIX).partition("@")
    name, _, config = name.partition(":")
    if not name:
        raise DataError(f"{source}: expected hub:OWNER/NAME, with :CONFIG and @REVISION where they are needed")
    try:
        from datasets import load_dataset_builder
    except ImportError:
        raise DataError(f"{source}: needs the library datasets: pip install 'tarflow[hub]'") from None
    try:
        builder = load_dataset_builder(name, config or None, revision=revision or None)
    except Exception as error:  # of its own, of the network's, of the hub's
        raise DataError(f"{source}: {' '.join(str(error).split()) or type(error).__name__}") from None
    kind = type(builder).__module__.rpartition(".")[2]
    if kind != "parquet":
        raise DataError(
            f"{source}: its files are of the kind {kind}, and only Parquet is read; the hub keeps a Parquet copy of "
            f"most sets: {PREFIX}{name}@refs/convert/parquet"
        )
    groups: dict[Split, list[Location]] = {}
    others = []
    for split, files in builder.config.data_files.items():
        known = split_of(str(split))
        if known is None or known in groups:
            others.append(str(split))
        else:
            groups[known] = [Path(url) if "://" not in url else RemoteFile(url) for url in map(str, files)]
    if not groups:
        raise DataError(f"{source}: expected a split train, validation or test, got {', '.join(others) or 'none'}")
    found = open_splits(groups, options or LoadOptions())
    if found.class_names is None and builder.info.features:
        label = builder.info.features.get("label")
        found = dataclasses.replace(found, class_names=tuple(getattr(label, "names", None) or ()) or None)
    return found

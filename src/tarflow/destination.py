"""Where results go: a command fills a directory of its own, and never one that holds something else already."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path


def check_vacant(path: str | Path, option: str = "", *, ours: Collection[str] = ()) -> None:
    """Raise FileExistsError unless `path` is missing, or a directory that holds nothing but entries named in `ours`.

    Hidden entries do not count: systems leave them where somebody has looked at a directory. `option` is what `path`
    was given by.
    """
    path = Path(path)
    name = f"{option} {path}".lstrip()
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{name}: a file; expected a new or an empty directory")
    entries = [entry.name for entry in path.iterdir()] if path.exists() else []
    foreign = sorted(entry for entry in entries if not entry.startswith(".") and entry not in ours)
    if foreign:
        what = "1 entry" if len(foreign) == 1 else f"{len(foreign)} entries"
        raise FileExistsError(f"{name}: holds {what} already, such as {foreign[0]}; give a new or an empty directory")

"""Where images go: one sheet, one .npz archive, or a new directory of PNG files."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tarflow import storage
from tarflow.measure import to_8bit
from tarflow.pictures import class_captions, save_png, save_sheet
from tarflow.storage import check_vacant

if TYPE_CHECKING:
    from tarflow.checkpoint import Run


CLASS_NAME_BYTES = 200  # bytes of a class in the name of a file, which may have 255


def is_folder(out: Path) -> bool:
    """Whether images go to a directory `out`: one that exists, or any name that is not like that of a file.

    A number after the last dot (`sigma-0.1`) is no suffix.

    Raises:
        ValueError: the name is that of another kind of file.
    """
    if out.is_dir() or not out.suffix[1:].isalnum() or out.suffix[1].isdecimal():
        return True
    if out.suffix.lower() not in (".png", ".npz"):
        raise ValueError(f"--out {out}: expected a name ending in .png or .npz, or a directory")
    return False


def check_out(out: Path) -> None:
    """Raise before any work where images cannot go to `out`: ValueError as `is_folder`, FileExistsError where it is a
    directory that holds files already, of which some would be replaced and the others be taken for new ones.
    """
    if is_folder(out):
        check_vacant(out, "--out")


class ImageWriter:
    """Takes batches as they finish. A directory gets its files at once, a sheet or an archive is written at the end."""

    def __init__(self, out: Path, run: Run, n: int, labels: list[int] | None, columns: int | None) -> None:
        check_out(out)
        self.out, self.run, self.n, self.labels, self.columns = out, run, n, labels, columns
        self.folder = is_folder(out)
        self.kept: list[Tensor] = []
        (out if self.folder else out.parent).mkdir(parents=True, exist_ok=True)
        storage.check_writable(out / "0.png" if self.folder else out)  # before the work

    def add(self, indices: list[int], images: Tensor) -> None:
        """Images x (b, C, H, W) as the model sees them; `indices` say which samples they are."""
        pixels = to_8bit(self.run.measure.pixels(images.cpu()), self.run.levels)
        if not self.folder:
            self.kept.append(pixels)
            return
        digits = len(str(self.n - 1))
        for index, image in zip(indices, pixels, strict=True):
            label = "" if self.labels is None else f"-{self._class_name(self.labels[index])}"
            save_png(self.out / f"{index:0{digits}d}{label}.png", image)

    def __enter__(self) -> ImageWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None or self.folder:
            return
        images = torch.cat(self.kept)
        if self.out.suffix.lower() == ".png":
            captions = None if self.labels is None else class_captions(self.labels, self.run.class_names)
            save_sheet(self.out, images, columns=self.columns, captions=captions)
            return
        arrays = {"images": images.permute(0, 2, 3, 1).numpy()}
        if self.labels is not None:
            arrays["labels"] = np.asarray(self.labels, dtype=np.int64)
        with storage.replacing_file(self.out) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def _class_name(self, label: int) -> str:
        name = "null" if label < 0 else self.run.class_names[label]
        name = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
        return os.fsencode(name)[:CLASS_NAME_BYTES].decode(errors="ignore")

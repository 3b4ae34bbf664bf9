"""Drawing from a run: classes in turn, solvers that were measured for it, samples as pixels, and where images go."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from tarflow import storage
from tarflow.architecture import condition_parts
from tarflow.checkpoint import Run
from tarflow.data.names import class_finder
from tarflow.data.sets import ImageSet, given_values
from tarflow.data.tables import write_table
from tarflow.fields import integer
from tarflow.kept import open_calibration, save_calibration
from tarflow.measure import to_8bit
from tarflow.model.condition import NULL_CLASS, Value
from tarflow.model.numeric import Vector
from tarflow.model.several import Several
from tarflow.pictures import class_captions, columns_by_class, save_png, save_sheet
from tarflow.run_data import check_numbers, numbers_of
from tarflow.sampling.narrow import narrowed
from tarflow.sampling.sample import SampleBatch, sample_batches
from tarflow.sampling.setting import Setting
from tarflow.sampling.solver import Solver, solver_of
from tarflow.seeding import seeded_permutation
from tarflow.storage import check_vacant

Progress = Callable[[float, int], None]
"""progress(done, total), in images."""


Given: TypeAlias = "Mapping[str, Any] | Tensor | None"
"""Numbers by name, each one for all images or (n,) of them; or (n, K) in their order; None is null."""


def class_number(run: Run, wanted: str | int) -> int:
    """The label of a class given by its name or its number, also as text; -1 for the null class, `"null"`."""
    names = run.class_names
    if isinstance(wanted, str):
        if (number := class_finder(names)(wanted)) is not None:
            return number
        if wanted == "null":
            return NULL_CLASS
        if wanted.isdecimal() and int(wanted) < len(names):
            return int(wanted)
    elif NULL_CLASS <= (number := integer("classes", wanted)) < len(names):
        return number
    known = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    raise ValueError(f"class {wanted!r}: not one of this model's; known: {known}, or null")


def class_count(run: Run) -> int:
    """How many classes a run is conditioned on, alone or beside numbers."""
    parts = dict(condition_parts(run.config.model.conditioned_on))
    return parts["classes"][0] if "classes" in parts else 0


def labels_in_turn(run: Run, classes: Sequence[str | int], n: int) -> Tensor | None:
    """The labels of n images that go through the classes in turn, or through all; None of a model without classes."""
    if not (count := class_count(run)):
        if classes:
            raise ValueError(f"classes: {run.path} has no classes")
        return None
    numbers = [class_number(run, each) for each in classes] or list(range(count))
    return torch.tensor([numbers[k % len(numbers)] for k in range(n)], device="cpu", dtype=torch.int64)


def numbers_given(run: Run, given: Given, n: int) -> Tensor | None:
    """What a caller gives n images, as numbers (n, K) float32; None of None, which is null.

    Raises ValueError where a number is missing, unknown or not finite, or the run is conditioned on none.
    """
    if given is None:
        return None
    check_numbers(run, "given")
    names = numbers_of(run)
    if isinstance(given, Mapping):
        if set(given) != set(names):
            raise ValueError(f"given: expected {', '.join(names)}, got {', '.join(map(str, given)) or 'none'}")
        columns = [torch.as_tensor(given[name], dtype=torch.float32, device="cpu") for name in names]
        given = torch.stack([column.expand(n) for column in columns], dim=1)
    found = torch.as_tensor(given, dtype=torch.float32, device="cpu")
    if found.shape != (n, len(names)) or not bool(found.isfinite().all()):
        raise ValueError(f"given: expected finite numbers {(n, len(names))}, got {tuple(found.shape)}")
    return found


def values_like(run: Run, images: ImageSet | None, n: int) -> Value:
    """What n samples are given that are compared with images: classes in turn, or the values of a seeded choice of them
    where there are numbers."""
    if images is None or not numbers_of(run):
        return labels_in_turn(run, (), n)
    places = torch.arange(n, device="cpu", dtype=torch.int64) % len(images)
    chosen = seeded_permutation(len(images), "given")[places]
    return run.flow.conditions.rows(images.values(run.config.model.conditioned_on), chosen)


def usual_numbers(run: Run) -> Tensor | None:
    """The mean of each number over the images of the training, (1, K); None of a run without."""
    conditions = run.flow.conditions
    parts = conditions.parts if isinstance(conditions, Several) else [conditions]
    return next((part.mean.detach().cpu().unsqueeze(0) for part in parts if isinstance(part, Vector)), None)


class Sampler:
    """Draws from one run, and keeps what the solver "auto" measures on the way in RUN/solvers.json.

    Args:
        solver, batch_size: as of `tarflow.sample`. window, tol: options of a solver that is given by its name.
        narrow: whether the network computes in bf16.

    Attributes:
        redraws: samples so far that were drawn again because they were not finite.
        clipped_pixels, clipped_images: of what `pixels` made of them last, the share of numbers that no pixel can be,
            and that were clipped, and of the images that hold one.
    """

    def __init__(
        self,
        run: Run,
        solver: Solver | str = "auto",
        batch_size: int | None = None,
        *,
        window: int | None = None,
        tol: float | None = None,
        narrow: bool = False,
    ) -> None:
        self.run, self.batch_size = run, batch_size
        self.flow = narrowed(run.flow) if narrow else run.flow
        self.calibration = open_calibration(run) if solver == "auto" else None
        self.solver = solver_of(solver, window=window, tol=tol, calibration=self.calibration)
        self.redraws, self.clipped_pixels, self.clipped_images = 0, 0.0, 0.0

    def batches(
        self, n: int, y: Value, setting: Setting, seed: int, progress: Progress | None = None
    ) -> Iterator[SampleBatch]:
        """The batches of n samples as they finish; arguments are checked at once."""
        batches = sample_batches(
            self.flow,
            n,
            y,
            setting.guidance,
            seed,
            denoise=setting.denoise,
            solver=self.solver,
            batch_size=self.batch_size,
            progress=None if progress is None else lambda done, total: progress(n * done / total, n),
        )
        return self._watched(batches)

    def _watched(self, batches: Iterator[SampleBatch]) -> Iterator[SampleBatch]:
        for batch in batches:
            self.redraws += int(batch.redraws.sum())
            yield batch
        if self.calibration is not None:  # the samples are safe
            save_calibration(self.run, self.calibration)

    def pixels(self, n: int, y: Value, setting: Setting, seed: int, progress: Progress | None = None) -> Tensor:
        """n samples as they would be written: (n, C, H, W) uint8 at the levels of the data, on the CPU, clipped."""
        pixels, beyond = [], []
        for batch in self.batches(n, y, setting, seed, progress):
            x = batch.images.cpu()
            pixels.append(self.run.measure.pixels(x))
            beyond.append(self.run.measure.clipped(x).flatten(1).double().mean(dim=1))
        shares = torch.cat(beyond)
        self.clipped_pixels, self.clipped_images = float(shares.mean()), float((shares > 0).double().mean())
        return torch.cat(pixels)

    def write(
        self,
        out: Path,
        n: int,
        classes: Sequence[str | int],
        setting: Setting,
        seed: int,
        columns: int | None = None,
        progress: Progress | None = None,
        numbers: Tensor | None = None,
    ) -> None:
        """Write n samples of the classes in turn to a sheet, an archive or a new directory; see `ImageWriter`.

        Of several rows of numbers (M, K) they are n each. Without `columns` a sheet has one a class, where there are
        any, or n where there are several rows.
        """
        several = numbers is not None and len(numbers) > 1
        columns = columns or columns_by_class(n if several else len(classes) or class_count(self.run))
        if numbers is not None:
            numbers = numbers.repeat_interleave(n, dim=0)
            n = len(numbers)
        labels = labels_in_turn(self.run, classes, n)
        y = given_values(self.run.config.model.conditioned_on, labels, numbers)
        batches = self.batches(n, y, setting, seed, progress)
        with ImageWriter(out, self.run, n, None if labels is None else labels.tolist(), columns, numbers) as writer:
            for batch in batches:
                writer.add(batch.indices.tolist(), batch.images)


NUMBERS_FILE = "conditions.csv"  # beside the files of a directory: `file`, and the numbers that each was given
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

    def __init__(
        self,
        out: Path,
        run: Run,
        n: int,
        labels: list[int] | None,
        columns: int | None,
        numbers: Tensor | None = None,
    ) -> None:
        check_out(out)
        self.out, self.run, self.n, self.labels, self.columns = out, run, n, labels, columns
        self.numbers = {} if numbers is None else dict(zip(numbers_of(run), numbers.double().T.numpy(), strict=True))
        self.names: list[str] = []
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
            self.names.append(f"{index:0{digits}d}{label}.png")
            save_png(self.out / self.names[-1], image)

    def __enter__(self) -> ImageWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self.folder and self.numbers:
            write_table(self.out / NUMBERS_FILE, {"file": np.array(sorted(self.names), object), **self.numbers})
        if kind is not None or self.folder:
            return
        images = torch.cat(self.kept)
        if self.out.suffix.lower() == ".png":
            save_sheet(self.out, images, columns=self.columns, captions=self._captions())
            return
        arrays = {"images": images.permute(0, 2, 3, 1).numpy()}
        if self.labels is not None:
            arrays["labels"] = np.asarray(self.labels, dtype=np.int64)
        arrays |= {name: column for name, column in self.numbers.items() if name not in arrays}
        with storage.replacing_file(self.out) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def _captions(self) -> list[str] | None:
        """What stands below each image of a sheet: its numbers where they differ, or its class."""
        if any(len(set(column)) > 1 for column in self.numbers.values()):
            return [", ".join(f"{value:.3g}" for value in row) for row in zip(*self.numbers.values(), strict=True)]
        return None if self.labels is None else class_captions(self.labels, self.run.class_names)

    def _class_name(self, label: int) -> str:
        name = "null" if label < 0 else self.run.class_names[label]
        name = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
        return os.fsencode(name)[:CLASS_NAME_BYTES].decode(errors="ignore")

"""Scores of any number of images as a CSV file, with a picture of each where it is wanted: in little memory."""

from __future__ import annotations

import contextlib
import csv
import errno
import itertools
import math
import os
import tempfile
import warnings
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from PIL import Image
from torch import Tensor

from tarflow import storage
from tarflow.checkpoint import Run, weights_digest
from tarflow.data.load import ScannedImage, open_scan
from tarflow.data.numbers import ImageNumbers
from tarflow.data.options import LoadOptions
from tarflow.data.sets import given_values
from tarflow.evaluation.likelihood.anomalies import (
    DETECTOR_FILE,
    DETECTORS,
    Detector,
    ImageScores,
    code_bits,
    open_detector,
    share_below,
)
from tarflow.evaluation.likelihood.cells import escaped
from tarflow.evaluation.likelihood.held_out import held_out_scores
from tarflow.evaluation.likelihood.patch_maps import heat_map
from tarflow.evaluation.likelihood.scores import Progress, beyond, class_scores, default_batch_size
from tarflow.evaluation.likelihood.scoring import Scoring
from tarflow.kept import kept_file
from tarflow.measure import to_8bit
from tarflow.pictures import save_sheet

MAX_BATCH = 256  # images scored at once where it is ours to choose: about as many are decoded ahead
MAP_SIDE = 128  # pixels that a picture of a map has at least


@dataclass(frozen=True)
class ScoredFiles:
    """What `score_files` wrote: how many images, how many of them could not be read, how many have a density of 0, the
    labels of the scores, and why there are no percentiles, if there are none."""

    images: int
    unread: int
    lost: int
    labels: str
    no_reference: str | None


def score_files(
    run: Run,
    source: str,
    out: str | Path,
    *,
    scoring: Scoring,
    by: Detector = "likelihood",
    maps: str | Path | None = None,
    data: str | None = None,
    numbers: ImageNumbers | Tensor | None = None,
    raw_names: bool = False,
    batch_size: int | None = None,
    loading: Progress | None = None,
    progress: Progress | None = None,
    held_out: Progress | None = None,
) -> ScoredFiles:
    """Score every image of a source, and write one line of a CSV file each, in their order.

    Args:
        source: a path or a name, as for `--data`. out: the file.
        scoring: from `run_scoring`. by: what images are ranked by.
        maps: a new directory for pictures of what each patch adds.
        data: where the images of the run's training are now, if they have moved; percentiles go by them.
        numbers: what images are scored under besides: a table of those of each, or (1, K) for all of them.
        raw_names: names byte for byte, in quotes, instead of `escaped`.
        batch_size: images scored at once. loading, progress, held_out: of reading the run's images, of scoring those of
            the source, and of scoring the run's held-out ones.

    Raises:
        ValueError, OSError: a source that cannot be read, or has no image that can; a place that cannot be written to.
    """
    out, model = Path(out), run.config.model
    fit = {"image_size": model.image_shape, "channels": model.channels, "levels": run.levels}
    images = open_scan(source, LoadOptions.of(run.config.data, own=False, **fit))
    size = batch_size or min(default_batch_size(run.flow), MAX_BATCH)
    out.parent.mkdir(parents=True, exist_ok=True)
    storage.check_writable(out)  # before the work
    of_all = numbers if isinstance(numbers, Tensor) else None
    every = None if of_all is None else of_all.expand(images.total, -1)
    if isinstance(numbers, ImageNumbers):
        every = numbers.of([name for part in images.layout.parts for name in part.names])
    found = _Rows(run, scoring, images.total, size, progress, every)
    with contextlib.ExitStack() as stack, _room_for(out):
        # It has no name, so nothing of it stays, whatever happens.
        # A name may hold bytes that are no text: they are written as they are.
        rows = stack.enter_context(
            tempfile.TemporaryFile("w+", newline="", encoding="utf-8", errors="surrogateescape", dir=out.parent)
        )
        pictures = stack.enter_context(storage.replacing_directory(maps)) if maps else None
        with warnings.catch_warnings(), contextlib.closing(iter(images)) as records:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # which is an error in its row
            writer = csv.writer(rows)
            while batch := list(itertools.islice(records, size)):
                for row in found.add(batch, pictures):
                    writer.writerow(row)
        if found.unread == images.total:
            raise ValueError(f"{source}: none of {found.unread} images can be read; the first is {found.first_problem}")
        reference, problem = None, None
        try:
            options: dict[str, Any] = {"source": data, "batch_size": size, "loading": loading, "progress": held_out}
            own: Any = None if numbers is None else "own"
            reference = held_out_scores(run, scoring, numbers=own if of_all is None else of_all, **options)
        except (ValueError, OSError) as error:
            problem = " ".join(str(error).split())
        labels = labels_of(run, scoring, numbers=numbers is not None)
        columns = score_columns(found.scores(), by, reference)
        rows.seek(0)
        _write(out, rows, found.log_prob, columns, [by, labels], maps=maps is not None, raw_names=raw_names)
    return ScoredFiles(images.total, found.unread, sum(map(math.isinf, found.log_prob)), labels, problem)


def labels_of(run: Run, scoring: Scoring, *, numbers: bool = False) -> str:
    """What was scored: a label policy, or the one class of all images, and whether `numbers` were given besides."""
    if not isinstance(scoring.labels, int):
        return scoring.policy
    return f"class={run.class_names[scoring.labels]}{' and given' if numbers else ''}"


def ranked_by(run: Run, scoring: Scoring) -> tuple[Detector, str | None]:
    """What images are ranked by where nobody says, and why: the detector that the run keeps, where it fits."""
    stored, file = open_detector(run), kept_file(run, DETECTOR_FILE)
    if stored is None:
        return "likelihood", None
    if stored.weights != weights_digest(run.path):
        return "likelihood", f"{file}: not used, found for other weights; `tarflow evaluate --against` again"
    if stored.labels != scoring.policy:
        return "likelihood", f"{file}: not used, found for scores under labels {stored.labels}"
    return stored.detector, f"{file}: ranked by {stored}; --by likelihood ranks otherwise"


class _Rows:
    """Scores images batch by batch, and keeps two numbers of each: log p and the bits of a lossless code, NaN where it
    cannot be read."""

    def __init__(
        self, run: Run, scoring: Scoring, total: int, size: int, progress: Progress | None, given: Tensor | None = None
    ) -> None:
        """`given` are the numbers of each image, (total, K)."""
        self.run, self.scoring, self.total, self.size, self.progress = run, scoring, total, size, progress
        self.given = given
        self.passes = scoring.draws * scoring.passes(run.flow)  # of an image
        self.log_prob, self.code_bits = array("d"), array("d")
        self.unread, self.first_problem = 0, ""

    def add(self, batch: Sequence[ScannedImage], pictures: Path | None) -> list[list[str]]:
        """Score the images of a batch; a row (file, error, map) for each."""
        good = {record.index: record.pixels for record in batch if record.pixels is not None}
        found, code = {}, {}
        if good:
            pixels, numbers, done = torch.stack(list(good.values())), list(good), len(self.log_prob) * self.passes
            scored = class_scores(
                self.run.flow,
                pixels,
                None
                if self.given is None
                else given_values(self.run.flow.sequence.condition, None, self.given[numbers]),
                scoring=self.scoring,
                maps=pictures is not None,
                indices=numbers,
                batch_size=self.size,
                progress=beyond(self.progress, done, self.total * self.passes),
            )
            found = dict(zip(numbers, scored.mean.tolist(), strict=True))
            code = dict(zip(numbers, code_bits(pixels).tolist(), strict=True))
            if pictures is not None and scored.maps is not None:
                for number, values, image in zip(numbers, scored.maps, to_8bit(pixels, self.run.levels), strict=True):
                    _draw(pictures / self._picture(number), values, image)
        rows = []
        for record in batch:
            problem, value = record.problem or "", found.get(record.index, math.nan)
            if problem:
                self.first_problem = self.first_problem or f"{record.name}: {problem}"
                self.unread += 1
            elif not math.isfinite(value):
                problem = f"its log-likelihood is {value}"
                value = -math.inf if math.isnan(value) else value
            picture = self._picture(record.index) if pictures is not None and record.index in found else ""
            rows.append([record.name, problem, picture])
            self.log_prob.append(value)
            self.code_bits.append(code.get(record.index, math.nan))
        if self.progress and len(self.log_prob) < self.total:  # records that cannot be read are done, too
            self.progress(len(self.log_prob) * self.passes, self.total * self.passes)
        return rows

    def scores(self) -> ImageScores:
        """Of the images that have a score, in their order."""
        log_prob, code = (torch.frombuffer(part, dtype=torch.float64) for part in (self.log_prob, self.code_bits))
        scored = ~log_prob.isnan()
        return ImageScores(log_prob[scored], code[scored], self.scoring.measure, self.run.config.model.num_dims)

    def _picture(self, number: int) -> str:
        return f"{number:0{len(str(self.total - 1))}d}.png"


def _draw(path: Path, patches: Tensor, image: Tensor) -> None:
    """An image beside its map over it; nothing where the map has no finite number."""
    if bool(patches.isfinite().any()):
        pair = torch.stack([image.expand(3, -1, -1), heat_map(patches, image)])
        save_sheet(path, pair, columns=2, zoom=max(1, MAP_SIDE // image.shape[-2]))


def score_columns(found: ImageScores, by: Detector, reference: ImageScores | None) -> dict[str, Tensor | None]:
    """The columns of numbers, by name: for every image that has a score, in their order; None where nothing is known.

    Args:
        by: what images are ranked by. reference: the run's held-out images, by which percentiles and typicality go.
    """
    ours = found.detectors(math.nan if reference is None else reference.typical[0])
    theirs = None if reference is None else reference.detectors(reference.typical[1])
    known = reference is not None or by != "typicality"
    columns: dict[str, Tensor | None] = {"log_likelihood": found.log_prob, found.measure.figure: found.bits}
    columns["rank"] = ranks(ours[by]) if known else None
    for name in DETECTORS:
        if name != "likelihood":
            columns[name] = None if name == "typicality" and reference is None else ours[name]
        column = "percentile" if name == "likelihood" else f"{name}_percentile"
        columns[column] = None if theirs is None else percentiles(ours[name], theirs[name])
    return columns


def ranks(scores: Tensor) -> Tensor:
    """Places from the highest score, 1, to the lowest; equal ones share the best of their places. (n,) int64.

    >>> ranks(torch.tensor([-3.0, -1.0, -2.0, -1.0]))
    tensor([4, 1, 3, 1])
    """
    return 1 + len(scores) - torch.searchsorted(scores.sort().values, scores, right=True)


def percentiles(scores: Tensor, reference: Tensor) -> Tensor:
    """Share of the reference that is lower than each score, ties counting half, in percent: (n,) float64.

    >>> percentiles(torch.tensor([-1.0, 0.5, 9.0]), torch.tensor([0.0, 0.5, 1.0, 2.0])).tolist()
    [0.0, 37.5, 100.0]
    """
    return 100 * share_below(scores, reference)


def _write(
    out: Path,
    rows: IO[str],
    log_prob: Sequence[float],
    columns: dict[str, Tensor | None],
    words: list[str],
    *,
    maps: bool,
    raw_names: bool,
) -> None:
    """Go through the rows again and write the file, now that ranks and percentiles are known."""
    header = ["file", *columns, "ranked_by", "labels", "error", *(["map"] if maps else [])]
    text = str if raw_names else escaped
    found = zip(*(_cells(name, values) for name, values in columns.items()), strict=False)
    with (
        storage.replacing_file(out) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL if raw_names else csv.QUOTE_MINIMAL)
        writer.writerow(header)
        for value, (name, problem, picture) in zip(log_prob, csv.reader(rows), strict=True):
            cells = [""] * len(columns) if math.isnan(value) else next(found)
            line = [text(name), *cells, words[0], text(words[1]), text(problem), *([picture] if maps else [])]
            writer.writerow(line)


def _cells(name: str, values: Tensor | None) -> Iterator[Any]:
    """What stands in a column, one after the other."""
    if values is None:
        return itertools.repeat("")
    return (f"{v:.3f}" if name.endswith("percentile") else v for v in map(Tensor.item, values))


@contextlib.contextmanager
def _room_for(out: Path) -> Iterator[None]:
    """Let a full disk name `out`: the rows are kept in a file beside it that has no name."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(error.errno, os.strerror(error.errno), str(out)) from None
        raise

"""`tarflow score`."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import errno
import itertools
import math
import os
import sys
import tempfile
import warnings
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from tarflow.checkpoint import Run
    from tarflow.cli.progress import Progress
    from tarflow.data.scan import Scan, ScannedImage
    from tarflow.evaluation.likelihood.detector import Detector
    from tarflow.evaluation.likelihood.held_out import HeldOut, Scoring

CLASSES = 10  # from which on it is worth saying what a score under each of them costs
MAX_BATCH = 256  # images scored at once where it is ours to choose: about as many are decoded ahead


@dataclasses.dataclass
class Score:
    """Log-likelihood of every image, one line of a CSV file each, in the order of PATH.

    Examples:
      tarflow score runs/digits-likelihood digits --out scores.csv
      tarflow score runs/photos new-photos/ --out scores.csv --maps maps/

    PATH is a folder, an image, a .npz archive, Parquet or IDX files, or the name of a data set; its labels are not
    used. Columns: `file`; `log_likelihood` in nats, the mean over draws of the noise of the training; `bits_per_dim`,
    or `noisy_bits_per_dim` for a model of noisy images; `rank`, 1 for the image of PATH that belongs most by the score
    that `ranked_by` names; `percentile`, the share of the run's own held-out images that are less likely; `complexity`,
    how many bits a dimension the model saves over a lossless code, and `typicality`, minus how far the bits are from
    those of held-out images in the mean, each with its percentile: both are low for what does not belong where a high
    likelihood misleads; `labels`, what was scored: marginal (log mean_y p(x|y)), null, class=NAME, or none for a model
    without classes; `error`, why a file could not be scored. The file is UTF-8; what in a name would break a line, be a
    formula, or is no UTF-8 is percent-encoded, as in a URL, and `%` itself is %25.
    """

    run: Annotated[
        tyro.conf.Positional[Path], tyro.conf.arg(help="a run, a directory with a model, or one step-N", metavar="RUN")
    ]
    path: Annotated[tyro.conf.Positional[str], tyro.conf.arg(help="the images", metavar="PATH")]
    out: Annotated[Path, tyro.conf.arg(help="the CSV file")]
    label: Annotated[
        str | None,
        tyro.conf.arg(name="class", help="p(x|y) of this class for all images, or of `null`, not log mean_y p(x|y)"),
    ] = None
    maps: Annotated[
        Path | None,
        tyro.conf.arg(
            help="a new directory: each image beside its patches' log-likelihoods, from the least likely (red) over "
            "their mean (white) to the most likely (blue), each on its own scale (the first and the last patch, which "
            "some blocks leave as they are, stand apart); doubles the time"
        ),
    ] = None
    by: Annotated[
        Literal["likelihood", "complexity", "typicality"] | None,
        tyro.conf.arg(
            help="what images are ranked by. Not given: what `evaluate --against` found best, else likelihood"
        ),
    ] = None
    data: Annotated[
        str | None,
        tyro.conf.arg(
            help="where the images of the run's training are now, for the percentiles; where they were when not given"
        ),
    ] = None
    raw_names: Annotated[
        tyro.conf.FlagCreatePairsOff[bool],
        tyro.conf.arg(help="write names byte for byte, in quotes, also where they are no UTF-8 or hold ends of lines"),
    ] = False
    draws: Annotated[int, tyro.conf.arg(help="draws of the noise for each image")] = 4
    seed: Annotated[int, tyro.conf.arg(help="seed of the noise")] = 0
    batch_size: Annotated[int | None, tyro.conf.arg(help="images scored at once")] = None
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], tyro.conf.arg(help="where to compute")] = "auto"
    precision: Annotated[
        Literal["auto", "float32"], tyro.conf.arg(help="of products on CUDA; auto: tf32, to 6e-5 bits/dim, and faster")
    ] = "auto"


def options(argv: Sequence[str]) -> type:
    return Score


def run(args: Score) -> None:
    from tarflow import storage
    from tarflow.checkpoint import open_run
    from tarflow.cli.progress import Progress
    from tarflow.data.options import LoadOptions, Reading
    from tarflow.data.scan import open_scan
    from tarflow.devices import float32_products, pick_device
    from tarflow.drawing import class_number
    from tarflow.evaluation.likelihood.held_out import passes_an_image, scoring_of
    from tarflow.evaluation.run_data import check_output

    _check(args)
    run = open_run(args.run, pick_device(args.device))
    model = run.config.model
    if run.config.training is None:
        raise ValueError(f"{args.run}: only a model is stored; expected a section `training` in its config.json")
    if args.label is not None and not model.num_classes:
        raise ValueError(f"--class: {args.run} is an unconditional model")
    label = None if args.label is None else class_number(run, args.label)
    scoring = scoring_of(run, label, draws=args.draws, seed=args.seed)
    reading = Reading.of(run.config.data, strict=False)
    options = LoadOptions(model.image_shape, model.channels, run.levels, reading=reading)
    images = open_scan(args.path, options)
    if args.maps is not None:
        check_output(run, "--maps", args.maps, args.path)
    by = _ranked_by(args, run, scoring)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    storage.check_writable(args.out)  # before the work
    with contextlib.ExitStack() as stack, _room_for(args.out):
        progress = stack.enter_context(Progress())
        stack.enter_context(float32_products(run.flow.device, tf32=args.precision == "auto"))
        # It has no name, so nothing of it stays, whatever happens.
        # A name may hold bytes that are no text: they are written as they are.
        rows = stack.enter_context(
            tempfile.TemporaryFile("w+", newline="", encoding="utf-8", errors="surrogateescape", dir=args.out.parent)
        )
        maps = stack.enter_context(storage.replacing_directory(args.maps)) if args.maps else None
        if (classes := passes_an_image(run, scoring)) >= CLASSES:
            progress.say(
                f"without a label, an image goes through the flow once a class, {classes} times: --class null is "
                f"{classes} times cheaper, and scores it under no class in particular"
            )
        scores, code, bad = _score(args, run, images, scoring, rows, maps, progress)
        _finish(args, run, scoring, by, rows, scores, code, progress)
    unread = f", {bad} of them not scored (see column error)" if bad else ""
    lost = sum(map(math.isinf, scores))
    unread += f", {lost} of them so unlikely that their density is 0" if lost else ""
    print(f"{args.out}: {images.total} images{unread}; labels: {_policy(run, scoring)}", file=sys.stderr)


@contextlib.contextmanager
def _room_for(out: Path) -> Iterator[None]:
    """Let a full disk name `out`: the rows are kept in a file beside it that has no name."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(error.errno, os.strerror(error.errno), str(out)) from None
        raise


def _check(args: Score) -> None:
    """Raise ValueError naming the option, before anything is read."""
    from tarflow.storage import check_vacant

    if args.out.suffix.lower() != ".csv" or args.out.is_dir():
        raise ValueError(f"--out {args.out}: expected the name of a .csv file")
    for name, value in (("draws", args.draws), ("batch-size", args.batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"--{name}: expected a positive number, got {value}")
    if args.maps is not None:
        check_vacant(args.maps, "--maps")
        if not args.maps.parent.is_dir():
            raise FileNotFoundError(f"--maps {args.maps}: {args.maps.parent} is no directory")


def _ranked_by(args: Score, run: Run, scoring: Scoring) -> Detector:
    """The score that images are ranked by; a line on stderr says where a stored choice is used, or is not."""
    from tarflow.checkpoint import weights_digest
    from tarflow.evaluation.likelihood.detector import DETECTOR_FILE, open_detector

    if args.by is not None or (stored := open_detector(run)) is None:
        return args.by or "likelihood"
    file = run.path / DETECTOR_FILE
    if stored.weights != weights_digest(run.path):
        print(f"{file}: not used, found for other weights; `tarflow evaluate --against` again", file=sys.stderr)
    elif stored.labels != scoring.labels:
        print(f"{file}: not used, found for scores under labels {stored.labels}", file=sys.stderr)
    else:
        print(f"{file}: ranked by {stored}; --by likelihood ranks otherwise", file=sys.stderr)
        return stored.detector
    return "likelihood"


def _score(
    args: Score, run: Run, images: Scan, scoring: Scoring, rows: IO[str], maps: Path | None, progress: Progress
) -> tuple[array[float], array[float], int]:
    """Score the images, a row (file, error, map) for each record; the scores and the bits of a lossless code, NaN where
    there are none, and how many records could not be read."""
    import torch
    from PIL import Image

    from tarflow.cli.score_maps import draw_maps, map_name
    from tarflow.evaluation.likelihood.anomalies import code_bits
    from tarflow.evaluation.likelihood.held_out import passes_an_image, score_pixels
    from tarflow.evaluation.likelihood.scores import beyond

    writer = csv.writer(rows)
    size, each = _batch_size(args, run), scoring.draws * passes_an_image(run, scoring)
    scores, code, bad, first = array("d"), array("d"), 0, ""
    with warnings.catch_warnings(), contextlib.closing(iter(images)) as records:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # which is an error in its row
        for batch in _batches(records, size):
            good = [record for record in batch if record.pixels is not None]
            found = dict.fromkeys((record.index for record in batch), math.nan)
            coded = dict(found)
            if good:
                pixels = torch.stack([record.pixels for record in good if record.pixels is not None])
                numbers = [record.index for record in good]
                told = beyond(progress.scoring, len(scores) * each, images.total * each)
                values = score_pixels(run, pixels, scoring, indices=numbers, batch_size=size, progress=told)
                found |= dict(zip(numbers, values.tolist(), strict=True))
                coded |= dict(zip(numbers, code_bits(pixels).tolist(), strict=True))
                if maps is not None:
                    draw_maps(run, pixels, numbers, scoring, maps, images.total)
            for record in batch:
                problem, value = record.problem or "", found[record.index]
                first = first or (f"{record.name}: {problem}" if problem else "")
                bad += bool(problem)
                if not problem and not math.isfinite(value):
                    problem = f"its log-likelihood is {value}"
                picture = map_name(record.index, images.total) if maps and record.pixels is not None else ""
                writer.writerow([record.name, problem, picture])
                scores.append(-math.inf if record.pixels is not None and math.isnan(value) else value)
                code.append(coded[record.index])
            if len(scores) < images.total:  # records that cannot be read are done, too
                progress.scoring(len(scores) * each, images.total * each)
    if bad == len(scores):
        raise ValueError(f"{images.source}: none of {bad} images can be read; the first is {first}")
    return scores, code, bad


def _finish(
    args: Score,
    run: Run,
    scoring: Scoring,
    by: Detector,
    rows: IO[str],
    scores: array[float],
    code: array[float],
    progress: Progress,
) -> None:
    """Go through the rows again and write the file, now that ranks and percentiles are known."""
    import numpy as np

    from tarflow import storage
    from tarflow.cli.csv_text import escaped
    from tarflow.evaluation.likelihood.detector import score_columns

    reference = _reference(args, run, scoring, progress)
    columns = score_columns(run, by, np.frombuffer(scores), np.frombuffer(code), reference)
    labels = _policy(run, scoring)
    header = ["file", *columns, "ranked_by", "labels", "error"]
    rows.seek(0)
    with (
        storage.replacing_file(args.out) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL if args.raw_names else csv.QUOTE_MINIMAL)
        text = str if args.raw_names else escaped
        writer.writerow(header + (["map"] if args.maps else []))
        found = zip(*(_cells(name, values) for name, values in columns.items()), strict=False)
        for value, (name, problem, picture) in zip(scores, csv.reader(rows), strict=True):
            cells = [""] * len(columns) if math.isnan(value) else next(found)
            writer.writerow([text(name), *cells, by, text(labels), text(problem), *([picture] if args.maps else [])])


def _cells(name: str, values: Any) -> Iterator[Any]:
    """What stands in a column, one after the other."""
    if values is None:
        return itertools.repeat("")
    return (f"{v:.3f}" if name.endswith("percentile") else v.item() for v in values)


def _reference(args: Score, run: Run, scoring: Scoring, progress: Progress) -> HeldOut | None:
    """What is known of the run's held-out images, or None after a line that says why nothing is."""
    from tarflow.evaluation.likelihood.held_out import held_out_scores

    try:
        return held_out_scores(
            run,
            scoring,
            source=args.data,
            batch_size=_batch_size(args, run),
            loading=progress.loading,
            progress=progress.scoring_held_out,
        )
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        print(
            f"no percentiles and no typicality: the held-out images of {args.run} cannot be scored: {reason}",
            file=sys.stderr,
        )
        return None


def _batch_size(args: Score, run: Run) -> int:
    from tarflow.evaluation.likelihood.scores import default_batch_size

    return args.batch_size or min(default_batch_size(run.flow), MAX_BATCH)


def _policy(run: Run, scoring: Scoring) -> str:
    return scoring.labels if scoring.label is None else f"class={run.class_names[scoring.label]}"


def _batches(records: Iterator[ScannedImage], size: int) -> Iterator[list[ScannedImage]]:
    while batch := list(itertools.islice(records, size)):
        yield batch

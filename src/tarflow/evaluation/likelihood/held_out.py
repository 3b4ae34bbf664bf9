"""How usual a score is: the scores of a run's own held-out images, kept with the run, and places among them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tarflow import caching, storage
from tarflow.checkpoint import Run
from tarflow.data.batches import seeded_permutation
from tarflow.data.identity import located, place_of
from tarflow.data.options import Reading
from tarflow.data.readers.hub import PREFIX
from tarflow.data.sources import KNOWN_NAMES, open_source
from tarflow.data.store.fingerprint import files_digest
from tarflow.data.store.read import MANIFEST_FILE, is_prepared, read_manifest
from tarflow.evaluation.likelihood.anomalies import code_bits
from tarflow.evaluation.likelihood.scores import LabelPolicy, Progress, score_images
from tarflow.evaluation.run_data import open_held_out, stored_data
from tarflow.model.condition import NULL_CLASS
from tarflow.model.saving import WEIGHTS_FILE

HELD_OUT_FILE = "held_out_scores.json"
MAX_SCORINGS = 8  # that are kept: under no label, under the null class, under one class …
MAX_IMAGES = 2_000  # held-out images that are scored: a percentile is then good to about one in a hundred


@dataclass(frozen=True)
class Scoring:
    """Under what a log-likelihood is computed: two of them can be compared where this is the same.

    Attributes:
        labels: the policy of `log_likelihood`. label: with "given", the one class of all images.
        draws, seed: of the noise; the score is the mean of log p over the draws, as in `evaluate_likelihood`.
    """

    labels: LabelPolicy
    label: int | None
    draws: int
    seed: int


def score_pixels(
    run: Run,
    pixels: Tensor,
    scoring: Scoring,
    *,
    indices: Sequence[int] | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """The mean over draws of log p of images (N, C, H, W) uint8 under the noise of the run's training: (N,) nats,
    float64 on the CPU. Image i has the noise number `indices[i]`, or i.

    Raises:
        ValueError: a run that does not say the noise of its training, or images that do not fit it.
    """
    options = score_options(run, len(pixels), scoring)
    scores, _ = score_images(run.flow, pixels, **options, indices=indices, batch_size=batch_size, progress=progress)
    return scores.mean(dim=0)


def score_options(run: Run, count: int, scoring: Scoring) -> dict[str, Any]:
    """The arguments of `score_images`, and of `mean_patch_maps`, for so many images."""
    training = run.config.training
    if training is None:
        raise ValueError(
            f"{run.path}: no section `training` in its config.json says the noise that images are scored in"
        )
    return {
        "labels": None
        if scoring.label is None
        else torch.full((count,), scoring.label, device="cpu", dtype=torch.int64),
        "levels": run.levels,
        "noise": training.noise,
        "noise_std": training.noise_std,
        "draws": scoring.draws,
        "seed": scoring.seed,
        "label_policy": scoring.labels,
    }


@dataclass(frozen=True)
class HeldOut:
    """What is known of a run's held-out images: log p, nats, and bits in a lossless code, (n,) float64 each."""

    scores: Tensor
    code_bits: Tensor


def held_out_scores(
    run: Run,
    scoring: Scoring,
    *,
    source: str | None = None,
    batch_size: int | None = None,
    loading: Progress | None = None,
    progress: Progress | None = None,
) -> HeldOut:
    """`score_pixels` of the held-out images of the run's own data, a seeded `MAX_IMAGES` of them where there are more.

    They are kept in RUN/held_out_scores.json beside what they depend on (the weights' digest, `scoring`, the data and
    their split), those of the last `MAX_SCORINGS` scorings, and computed again where any of that differs. Where the
    files are not what they were, by names, sizes and times, the images are read again and held against what the run
    knows of them. Data that are gone say nothing against scores that were kept. Where the run cannot be written to they
    are not kept.

    Args:
        source: where the data are now, if they have moved.

    Raises:
        ValueError, OSError: the data of the training cannot be read, or are not known.
    """
    data = stored_data(run)
    origin = {
        "weights": _digest(run),
        "data": data.held_out_digest or data.source,
        "levels": run.levels,
        "held_out_fraction": data.held_out_fraction,
        "split_seed": data.split_seed,
        "max_images": MAX_IMAGES,
    }
    key = asdict(scoring) | origin
    path = run.path / HELD_OUT_FILE
    files = _files(source or located(data), Reading.of(data))
    kept = [entry for entry in _read(path) if entry["key"].items() >= origin.items()]
    for entry in kept:
        if entry["key"] == key and files in (None, entry.get("files")):
            scores = torch.tensor(
                [-math.inf if v is None else v for v in entry["scores"]], dtype=torch.float64, device="cpu"
            )
            return HeldOut(scores, torch.tensor(entry["code_bits"], dtype=torch.float64, device="cpu"))
    images = open_held_out(run, source, progress=loading).images
    if len(images) > MAX_IMAGES:
        images = images[seeded_permutation(len(images), "held-out scores")[:MAX_IMAGES]]
    scores, code = score_pixels(run, images, scoring, batch_size=batch_size, progress=progress), code_bits(images)
    values = [v if math.isfinite(v) else None for v in scores.tolist()]
    newest = {"key": key, "files": files, "scores": values, "code_bits": code.tolist()}
    with contextlib.suppress(OSError):  # someone else's run: computed again next time
        storage.write_json(path, caching.sealed(newest | {"earlier": kept[: MAX_SCORINGS - 1]}))
    return HeldOut(scores, code)


def ranks(scores: Any) -> Any:
    """Places from the highest score, 1, to the lowest; equal ones share the best of their places. (n,) int64.

    >>> ranks(np.array([-3.0, -1.0, -2.0, -1.0]))
    array([4, 1, 3, 1])
    """
    return 1 + len(scores) - np.searchsorted(np.sort(scores), scores, side="right")


def percentiles(scores: Any, reference: Any) -> Any:
    """Share of the reference that is lower than each score, ties counting half, in percent: (n,) float64.

    >>> percentiles(np.array([-1.0, 0.5, 9.0]), np.array([0.0, 0.5, 1.0, 2.0]))
    array([  0. ,  37.5, 100. ])
    """
    ordered = np.sort(np.asarray(reference))
    below, upto = (np.searchsorted(ordered, scores, side=side) for side in ("left", "right"))
    return 100 * (below + upto) / (2 * len(ordered))


def scoring_of(run: Run, label: int | None, *, draws: int, seed: int) -> Scoring:
    """The scoring of images without labels: log mean_y p(x|y), or given one class, or the null class (-1)."""
    if not run.config.model.num_classes:
        return Scoring("none", None, draws, seed)
    if label is None:
        return Scoring("marginal", None, draws, seed)
    return Scoring("null", None, draws, seed) if label == NULL_CLASS else Scoring("given", label, draws, seed)


def _files(source: str, reading: Reading) -> str | None:
    """What changes when the files of a source do; None where they are not to be had."""
    if source in KNOWN_NAMES:
        return source
    if source.startswith(PREFIX) or not (place := place_of(source)):
        return None
    try:
        if is_prepared(place):
            manifest = Path(place) / MANIFEST_FILE
            return f"{manifest.stat().st_mtime_ns} {read_manifest(Path(place)).held_out_digest}"
        return files_digest(open_source(place, reading))
    except (OSError, ValueError):
        return ""  # whoever opens it says what is wrong


def passes_an_image(run: Run, scoring: Scoring) -> int:
    """How often an image goes through the flow for each draw of its noise."""
    return run.config.model.num_classes if scoring.labels == "marginal" else 1


def _digest(run: Run) -> str:
    with open(run.path / WEIGHTS_FILE, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Any) -> list[dict[str, Any]]:
    """What was kept, the newest first; empty where there is nothing, or nothing that can be used."""
    try:
        known = caching.unsealed(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return []
    if known is None or not isinstance(known.get("earlier"), list):
        return []
    entries = [{name: known.get(name) for name in ("key", "files", "scores", "code_bits")}, *known["earlier"]]
    return entries if all(map(_is_entry, entries)) else []


def _is_entry(entry: Any) -> bool:
    """Whether this is a key with as many scores, floats or null, as bits, and one at least."""
    if not isinstance(entry, dict) or not isinstance(entry.get("key"), dict):
        return False
    scores, code = entry.get("scores"), entry.get("code_bits")
    if not isinstance(scores, list) or not isinstance(code, list) or len(scores) != len(code) or not scores:
        return False
    numbers = [*(v for v in scores if v is not None), *code]
    return all(type(v) is float and abs(v) < 1e300 for v in numbers)

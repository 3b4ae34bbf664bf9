"""How usual a score is: the scores of a run's own held-out images, kept with the run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tarflow import digests, storage
from tarflow.checkpoint import Run, weights_digest
from tarflow.data.options import LoadOptions
from tarflow.data.readers.hub import PREFIX
from tarflow.data.sets import given_values
from tarflow.data.sources import KNOWN_NAMES, open_source
from tarflow.data.store.read import MANIFEST_FILE, is_prepared, read_manifest
from tarflow.evaluation.likelihood.anomalies import ImageScores, code_bits
from tarflow.evaluation.likelihood.scores import ClassScores, Progress, class_scores
from tarflow.evaluation.likelihood.scoring import Scoring
from tarflow.jsontext import finite, to_json
from tarflow.pretrained import name_of
from tarflow.run_data import located, open_held_out, place_of, stored_data
from tarflow.seeding import seeded_permutation

HELD_OUT_FILE = "held_out_scores.json"
MAX_SCORINGS = 8  # that are kept: under no label, under the null class, under one class …
MAX_IMAGES = 2_000  # held-out images that are scored: a percentile is then good to about one in a hundred


def run_scoring(run: Run, label: int | Literal["given"] | None = None, *, draws: int = 4, seed: int = 0) -> Scoring:
    """How images without labels are scored by a run: log mean_y p(x|y), or given one class, or the null class (-1).

    With "given" they are scored under what whoever scores them gives for each.

    Raises:
        ValueError: a run that does not say the noise of its training.
    """
    if run.config.training is None:
        raise ValueError(
            f"{run.path}: no section `training` in its config.json says the noise that images are scored in"
        )
    return Scoring(run.measure, draws, seed, label).resolved(run.flow)


def image_scores(found: ClassScores, images: Tensor) -> ImageScores:
    """What detectors know of the images that were scored."""
    return ImageScores(found.mean, code_bits(images), found.scoring.measure, found.dims)


def held_out_scores(
    run: Run,
    scoring: Scoring,
    *,
    source: str | None = None,
    numbers: Tensor | None = None,
    batch_size: int | None = None,
    loading: Progress | None = None,
    progress: Progress | None = None,
) -> ImageScores:
    """Scores of the held-out images of the run's own data, a seeded `MAX_IMAGES` of them where there are more.

    They are kept in RUN/held_out_scores.json beside what they depend on (the weights' digest, `scoring`, the data and
    their split), those of the last `MAX_SCORINGS` scorings, and computed again where any of that differs. Where the
    files are not what they were, by names, sizes and times, the images are read again and held against what the run
    knows of them. Data that are gone say nothing against scores that were kept. Where the run cannot be written to they
    are kept in the cache directory.

    Args:
        source: where the data are now, if they have moved.
        numbers: (1, K), that all are scored under where `scoring` says "given"; None is those of each.

    Raises:
        ValueError, OSError: the data of the training cannot be read, or are not known.
    """
    data = stored_data(run)
    origin = {
        "weights": weights_digest(run.path),
        "data": data.held_out_digest or data.source,
        "held_out_fraction": data.held_out_fraction,
        "split_seed": data.split_seed,
        "max_images": MAX_IMAGES,
    }
    given = {} if numbers is None else {"numbers": numbers.tolist()}
    key = {"scoring": asdict(scoring)} | given | origin
    files = _files(source or located(data), LoadOptions.of(data))
    places = _places(run, origin)
    kept = [entry for path in places for entry in _read(path) if entry["key"].items() >= origin.items()]

    def scores(log_prob: list[float | None], code: list[float]) -> ImageScores:
        known = [-math.inf if value is None else value for value in log_prob]
        found, bits = (torch.tensor(values, dtype=torch.float64, device="cpu") for values in (known, code))
        return ImageScores(found, bits, scoring.measure, run.config.model.num_dims)

    for entry in kept:
        if entry["key"] == key and files in (None, entry.get("files")):
            return scores(entry["scores"], entry["code_bits"])
    held_out = open_held_out(run, source, progress=loading)
    if len(held_out) > MAX_IMAGES:
        held_out = held_out.subset(seeded_permutation(len(held_out), "held-out scores")[:MAX_IMAGES])
    images, c = held_out.images, None
    if scoring.labels == "given":
        condition = run.flow.sequence.condition
        every = None if numbers is None else numbers.expand(len(held_out), -1)
        c = held_out.values(condition) if every is None else given_values(condition, None, every)
    found = class_scores(run.flow, images, c, scoring=scoring, batch_size=batch_size, progress=progress).mean
    values, code = finite(found.tolist()), code_bits(images).tolist()
    newest = {"key": key, "files": files, "scores": values, "code_bits": code}
    for path in places:
        with contextlib.suppress(OSError):  # someone else's run: kept in the cache
            path.parent.mkdir(parents=True, exist_ok=True)
            storage.write_json(path, digests.sealed(newest | {"earlier": kept[: MAX_SCORINGS - 1]}))
            break
    return scores(values, code)


def _places(run: Run, origin: dict[str, Any]) -> list[Path]:
    """Where scores are kept: with a run, but one of the package or the hub; in the cache, by what they depend on."""
    cache, name = storage.cache_directory(), hashlib.blake2b(to_json(origin).encode(), digest_size=16).hexdigest()
    own = [] if name_of(run.path) else [run.path / HELD_OUT_FILE]
    return [*own, *([] if cache is None else [cache / "held-out-scores" / f"{name}.json"])]


def _files(source: str, options: LoadOptions) -> str | None:
    """What changes when the files of a source do; None where they are not to be had."""
    if source in KNOWN_NAMES:
        return source
    if source.startswith(PREFIX) or not (place := place_of(source)):
        return None
    try:
        if is_prepared(place):
            manifest = Path(place) / MANIFEST_FILE
            return f"{manifest.stat().st_mtime_ns} {read_manifest(Path(place)).held_out_digest}"
        return open_source(place, options).files_digest()
    except (OSError, ValueError):
        return ""  # whoever opens it says what is wrong


def _read(path: Any) -> list[dict[str, Any]]:
    """What was kept, the newest first; empty where there is nothing, or nothing that can be used."""
    try:
        known = digests.unsealed(json.loads(path.read_text(encoding="utf-8")))
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

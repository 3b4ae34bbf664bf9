"""How usual a score is: the scores of a run's own held-out images, kept with the run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from tarflow import digests, storage
from tarflow.checkpoint import Run, weights_digest
from tarflow.data.options import LoadOptions
from tarflow.data.readers.hub import PREFIX
from tarflow.data.sets import ImageSet, given_values
from tarflow.data.sources import KNOWN_NAMES, open_source
from tarflow.data.store.read import MANIFEST_FILE, is_prepared, read_manifest
from tarflow.evaluation.likelihood.anomalies import ImageScores, code_bits
from tarflow.evaluation.likelihood.scores import ClassScores, Progress, class_scores
from tarflow.evaluation.likelihood.scoring import LabelPolicy, Scoring
from tarflow.jsontext import finite, to_json
from tarflow.model.condition import NULL_CLASS
from tarflow.pretrained import name_of
from tarflow.run_data import located, open_held_out, place_of, stored_data
from tarflow.seeding import seeded_permutation

HELD_OUT_FILE = "held_out_scores.json"
MAX_SCORINGS = 8  # that are kept: under no label, under the null class, under one class …
MAX_IMAGES = 2_000  # held-out images that are scored: a percentile is then good to about one in a hundred


Scored: TypeAlias = dict[str, Any]
"""What is kept of one scoring: `scoring`, the `numbers` that images were given, if any, and the `log_prob` of each,
nats, None where there is no density."""


def run_scoring(run: Run, label: int | None = None, *, numbers: bool = False, draws: int = 4, seed: int = 0) -> Scoring:
    """How images without labels are scored by a run: log mean_y p(x|y), or given one class, or the null class (-1).

    With `numbers`, which whoever scores them gives for each, they are scored under these, and one class, or none.

    Raises:
        ValueError: a run that does not say the noise of its training.
    """
    if run.config.training is None:
        raise ValueError(
            f"{run.path}: no section `training` in its config.json says the noise that images are scored in"
        )
    policy: LabelPolicy | int | None = "given" if numbers and label in (None, NULL_CLASS) else label
    return Scoring(run.measure, draws, seed, policy).resolved(run.flow)


def image_scores(found: ClassScores, images: Tensor) -> ImageScores:
    """What detectors know of the images that were scored."""
    return ImageScores(found.mean, code_bits(images), found.scoring.measure, found.dims)


def held_out_scores(
    run: Run,
    scoring: Scoring,
    *,
    source: str | None = None,
    numbers: Tensor | Literal["own"] | None = None,
    batch_size: int | None = None,
    loading: Progress | None = None,
    progress: Progress | None = None,
) -> ImageScores:
    """Scores of the held-out images of the run's own data, a seeded `MAX_IMAGES` of them where there are more.

    They are kept in RUN/held_out_scores.json beside what they depend on (the weights' digest, `scoring`, the data and
    their split), those of the last `MAX_SCORINGS` scorings, and computed again where any of that differs. Where the
    files are not what they were, by names, sizes and times, the images are read again and held against what the run
    knows of them. Data that are gone say nothing against scores that were kept. Where the run cannot be written to they
    are kept in the cache directory; the models of the package have brought theirs along.

    Args:
        source: where the data are now, if they have moved.
        numbers: (1, K), that all are scored under, or "own", those of each, beside the class of `scoring` or none. None
            is none, and of `scoring` by "given" all that is known of each.

    Raises:
        ValueError, OSError: the data of the training cannot be read, or are not known.
    """
    data, key = stored_data(run), origin(run)
    known = numbers.tolist() if isinstance(numbers, Tensor) else numbers
    wanted: Scored = {"scoring": asdict(scoring)} | ({} if known is None else {"numbers": known})
    files = _files(source or located(data), LoadOptions.of(data))

    def scored(path: Path) -> list[tuple[Scored, list[float]]]:
        """What is kept in a file of these images by these weights, and the images' code bits."""
        kept = _read(path)
        if kept is None or kept["key"] != key or files not in (None, kept["files"]):
            return []
        return [(each, kept["code_bits"]) for each in kept["scored"]]

    def scores(log_prob: list[float | None], code: list[float]) -> ImageScores:
        known = [-math.inf if value is None else value for value in log_prob]
        found, bits = (torch.tensor(values, dtype=torch.float64, device="cpu") for values in (known, code))
        return ImageScores(found, bits, scoring.measure, run.config.model.num_dims)

    own, cache = run.path / HELD_OUT_FILE, _cache_file(key)
    for path in (own, *cache):
        for each, code in scored(path):
            if {name: value for name, value in each.items() if name != "log_prob"} == wanted:
                return scores(each["log_prob"], code)
    held_out = chosen_images(run, source, loading)
    images, c = held_out.images, None
    if numbers is not None:
        every = numbers.expand(len(held_out), -1) if isinstance(numbers, Tensor) else held_out.numbers
        c = given_values(run.flow.sequence.condition, None, every)
    elif scoring.labels == "given":
        c = held_out.values(run.flow.sequence.condition)
    found = class_scores(run.flow, images, c, scoring=scoring, batch_size=batch_size, progress=progress).mean
    newest, code = wanted | {"log_prob": finite(found.tolist())}, code_bits(images).tolist()
    for path in (*([] if name_of(run.path) else [own]), *cache):  # nothing is written into the package, or for the hub
        with contextlib.suppress(OSError):  # someone else's run: kept in the cache
            path.parent.mkdir(parents=True, exist_ok=True)
            earlier = [each for each, _ in scored(path)]
            write_scores(path, key, files, code, [newest, *earlier[: MAX_SCORINGS - 1]])
            break
    return scores(newest["log_prob"], code)


def origin(run: Run) -> dict[str, Any]:
    """What scores of held-out images depend on, but for the scoring: the weights, the data, and the choice of them."""
    data = stored_data(run)
    return {
        "weights": weights_digest(run.path),
        "data": data.held_out_digest or data.source,
        "held_out_fraction": data.held_out_fraction,
        "split_seed": data.split_seed,
        "max_images": MAX_IMAGES,
    }


def chosen_images(run: Run, source: str | None = None, loading: Progress | None = None) -> ImageSet:
    """The held-out images that are scored, a seeded `MAX_IMAGES` of them where there are more."""
    held_out = open_held_out(run, source, progress=loading)
    if len(held_out) > MAX_IMAGES:
        held_out = held_out.subset(seeded_permutation(len(held_out), "held-out scores")[:MAX_IMAGES])
    return held_out


def write_scores(path: Path, key: dict[str, Any], files: str | None, code: list[float], scored: list[Scored]) -> None:
    """Keep scores of the images whose code has these bits, the newest first, sealed by a digest.

    Args:
        key: `origin` of them. files: what changes with the files of the data, such as the name of a set that is known.
    """
    kept = {"key": key, "files": files, "code_bits": code, "scored": scored}
    storage.write_text(path, to_json(digests.sealed(kept)) + "\n")  # a line for each number would be twice the size


def _cache_file(key: dict[str, Any]) -> list[Path]:
    """Where scores are kept that have no place with their run, by what they depend on; none without a cache."""
    cache, name = storage.cache_directory(), hashlib.blake2b(to_json(key).encode(), digest_size=16).hexdigest()
    return [] if cache is None else [cache / "held-out-scores" / f"{name}.json"]


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


def _read(path: Path) -> dict[str, Any] | None:
    """What `write_scores` has left; None where there is nothing, or nothing that can be used."""
    try:
        known = digests.unsealed(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return None
    kinds = {"key": dict, "files": str | None, "code_bits": list, "scored": list}
    if known is None or not all(name in known and isinstance(known[name], kind) for name, kind in kinds.items()):
        return None
    code, scored = known["code_bits"], known["scored"]
    good = code and all(map(_is_number, code)) and all(_is_scored(entry, len(code)) for entry in scored)
    return known if good else None


def _is_scored(entry: Any, count: int) -> bool:
    """Whether this is a scoring with so many scores, floats or null."""
    if not isinstance(entry, dict) or not isinstance(entry.get("scoring"), dict):
        return False
    scores = entry.get("log_prob")
    return isinstance(scores, list) and len(scores) == count and all(v is None or _is_number(v) for v in scores)


def _is_number(value: Any) -> bool:
    return type(value) is float and abs(value) < 1e300

"""Which score tells best whether an image belongs: three of them for every image, and the choice that a run keeps.

`anomalies` says what the three are worth against images that do not belong; the one that did best there is kept beside
the weights, and `tarflow score` ranks by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from tarflow import storage
from tarflow.checkpoint import Run, weights_digest
from tarflow.config import from_dict, to_dict
from tarflow.evaluation.likelihood.anomalies import Anomalies
from tarflow.evaluation.likelihood.evaluate import to_bits_per_dim
from tarflow.evaluation.likelihood.held_out import HeldOut, percentiles, ranks
from tarflow.fields import coerce_fields
from tarflow.model.saving import read_json

DETECTOR_FILE = "detector.json"
Detector: TypeAlias = Literal["likelihood", "complexity", "typicality"]
DETECTORS: tuple[Detector, ...] = get_args(Detector)


@dataclass(frozen=True)
class StoredDetector:
    """What `tarflow evaluate --against` found best: the contents of RUN/detector.json.

    Attributes:
        weights: a digest of the weights that it was found for. labels: the label policy of the scores.
        detector: the choice. auroc: its area under the ROC curve, the mean over the sets `against` which it was tried.
    """

    weights: str
    labels: str
    detector: Detector
    auroc: float
    against: tuple[str, ...]

    def __post_init__(self) -> None:
        coerce_fields(self)

    def __str__(self) -> str:
        return (
            f"{self.detector}, the best of {len(DETECTORS)} against {', '.join(self.against)} (AUROC {self.auroc:.3f})"
        )


def best_detector(run: Run, labels: str, found: Mapping[str, Anomalies]) -> StoredDetector:
    """The detector with the highest mean AUROC over the sets; of equals the first of `DETECTORS`."""
    means = {name: float(np.mean([getattr(each, name).auroc for each in found.values()])) for name in DETECTORS}
    best = max(DETECTORS, key=lambda name: means[name])
    return StoredDetector(weights_digest(run.path), labels, best, means[best], tuple(found))


def save_detector(run: Run, stored: StoredDetector) -> Path:
    """Keep it beside the weights. Raises OSError where they cannot be written to."""
    storage.write_json(run.path / DETECTOR_FILE, to_dict(stored))
    return run.path / DETECTOR_FILE


def open_detector(run: Run) -> StoredDetector | None:
    """What `save_detector` left; None where nothing is. Raises ConfigError naming the file.

    Its `weights` are to be compared with `weights_digest`: training may have gone on since.
    """
    file = run.path / DETECTOR_FILE
    return from_dict(StoredDetector, read_json(file), str(file)) if file.exists() else None


def detector_scores(bits: Any, code: Any, typical: Any) -> dict[Detector, Any]:
    """The three scores of images, the higher the more they belong, bits a dimension, (n,) each.

        likelihood     -bits
        complexity     code - bits, how many bits the model saves over a lossless code
        typicality     -|bits - typical|

    Args:
        bits: -log2 p a dimension, (n,); infinite where p is 0. code: bits a dimension of the image in a lossless code.
        typical: `bits` in the mean over images that belong, a number or one for each image.
    """
    return {"likelihood": -bits, "complexity": code - bits, "typicality": -np.abs(bits - typical)}


def typical_bits(bits: Any) -> tuple[float, Any]:
    """The mean of the finite ones of bits (n,), and for each of them that of the others, by which it is judged."""
    finite = np.isfinite(bits)
    total, count = float(bits[finite].sum()), int(finite.sum())
    others = (total - np.where(finite, bits, 0.0)) / np.maximum(count - finite, 1)
    return total / max(count, 1), others


def score_columns(run: Run, by: Detector, scores: Any, code: Any, reference: HeldOut | None) -> dict[str, Any]:
    """The columns of `tarflow score`: for every image that has a score, in their order; None where nothing is known.

    Args:
        by: what images are ranked by.
        scores: log p of each image, nats, (n,) float64, NaN where there is none. code: its bits in a lossless code.
        reference: the run's held-out images, by which percentiles and typicality go.
    """
    dims = run.config.model.num_dims

    def bits_of(values: Any) -> Any:
        return to_bits_per_dim(-values / dims, run.levels, run.noise)

    scored = ~np.isnan(scores)
    bits = bits_of(scores[scored])
    typical, theirs = np.nan, None
    if reference is not None:
        held_out = bits_of(reference.scores.numpy())
        typical, others = typical_bits(held_out)
        theirs = detector_scores(held_out, reference.code_bits.numpy() / dims, others)
    ours: dict[Detector, Any] = detector_scores(bits, code[scored] / dims, typical)
    if theirs is None:
        del ours["typicality"]
    columns = {
        "log_likelihood": scores[scored],
        "bits_per_dim" if run.noise == "uniform" else "noisy_bits_per_dim": bits,
        "rank": ranks(ours[by]) if by in ours else None,
    }
    for name in DETECTORS:
        if name != "likelihood":
            columns[name] = ours.get(name)
        shares = None if theirs is None else percentiles(ours[name], theirs[name])
        columns["percentile" if name == "likelihood" else f"{name}_percentile"] = shares
    return columns

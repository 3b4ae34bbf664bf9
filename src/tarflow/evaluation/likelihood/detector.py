"""Which detector of images that do not belong a run keeps: the one that did best, by which `tarflow score` ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tarflow.checkpoint import Run, keep, open_kept, weights_digest
from tarflow.evaluation.likelihood.anomalies import DETECTORS, Anomalies, Detector
from tarflow.fields import coerce_fields

DETECTOR_FILE = "detector.json"


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
    means = {name: sum(each.detections[name].auroc for each in found.values()) / len(found) for name in DETECTORS}
    best = max(DETECTORS, key=lambda name: means[name])
    return StoredDetector(weights_digest(run.path), labels, best, means[best], tuple(found))


def save_detector(run: Run, stored: StoredDetector) -> Path:
    """Keep it beside the weights. Raises OSError where they cannot be written to."""
    return keep(run, DETECTOR_FILE, stored)


def open_detector(run: Run) -> StoredDetector | None:
    """What `save_detector` left; None where nothing is. Raises ConfigError naming the file where it is damaged.

    Its `weights` are to be compared with `weights_digest`: training may have gone on since.
    """
    return open_kept(run, DETECTOR_FILE, StoredDetector, "`tarflow evaluate --against` again")

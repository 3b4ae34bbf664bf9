"""The flow as a detector of images that do not belong: likelihood, two corrections of it, and how often each is right.

Likelihoods mislead here: what is smooth and simple is likely under nearly every model of images, so that a set that has
nothing to do with the training can have the higher likelihoods (Nalisnick et al., arXiv 1810.09136). So a detector is
never quoted without the set that it was tried against, nor without its corrections.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from tarflow.checkpoint import Run, weights_digest
from tarflow.data.images import from_array
from tarflow.evaluation.shares import standard_error
from tarflow.fields import coerce_fields
from tarflow.jsontext import finite
from tarflow.kept import keep, open_kept
from tarflow.measure import Measure
from tarflow.seeding import seeded_generator

Detector: TypeAlias = Literal["likelihood", "complexity", "typicality"]
DETECTORS: tuple[Detector, ...] = get_args(Detector)
PNG_FRAME = 57  # bytes of a PNG file that hold no pixels: signature 8, IHDR 25, the frames of IDAT and IEND 12 each


@dataclass(frozen=True)
class ImageScores:
    """What detectors know of n images.

    Attributes:
        log_prob: (n,) float64, nats; what is no number counts as a density of 0.
        code_bits: bits of each image in a lossless code, (n,) float64; see `code_bits`.
        measure, dims: of the densities, and T·D, by which bits are a dimension.
    """

    log_prob: Tensor
    code_bits: Tensor
    measure: Measure
    dims: int

    def __post_init__(self) -> None:
        if len(self.log_prob) != len(self.code_bits) or not len(self.log_prob):
            counts = f"{len(self.log_prob)} scores of {len(self.code_bits)} images"
            raise ValueError(f"scores: expected as many as images, and one at least, got {counts}")

    @cached_property
    def bits(self) -> Tensor:
        """-log2 p a dimension, (n,); infinite where p is 0."""
        return self.measure.bits_per_dim(self.log_prob, self.dims).nan_to_num(math.inf, math.inf, -math.inf)

    @cached_property
    def code(self) -> Tensor:
        """Bits a dimension in the lossless code, (n,)."""
        return self.code_bits / self.dims

    @cached_property
    def typical(self) -> tuple[float, Tensor]:
        """The mean of the finite `bits`, and for each image that of the others, (n,), by which it is judged: its own
        would pull the mean towards it. Of one image alone nothing is known: 0."""
        known = self.bits.isfinite().double()
        finite_bits = torch.where(known > 0, self.bits, 0.0)
        total, count = finite_bits.sum(), known.sum()
        return float(total / count.clamp(min=1)), (total - finite_bits) / (count - known).clamp(min=1)

    def detectors(self, typical: float | Tensor) -> dict[Detector, Tensor]:
        """Three scores of each image, (n,), the higher the more it belongs, bits a dimension; `typical` is the mean of
        `bits` over images that belong.

            likelihood     -bits
            complexity     code - bits, what the model saves over a lossless code (Serrà et al., arXiv 1909.11480)
            typicality     -|bits - typical|                                      (Nalisnick et al., arXiv 1906.02994)
        """
        return {
            "likelihood": -self.bits,
            "complexity": self.code - self.bits,
            "typicality": -(self.bits - typical).abs(),
        }


@dataclass(frozen=True)
class Detection:
    """How well one score tells images that belong from images that do not.

    Attributes:
        auroc: the chance that an image that belongs has the higher score, ties counting half: ½ is a guess, and less
            than ½ is wrong more often than right.
        standard_error: of it, over both sets of images (DeLong et al. 1988); NaN where a set has one image, and where
            all are told apart or none is: the estimate is 0 there, which it is not.
    """

    auroc: float
    standard_error: float


@dataclass(frozen=True)
class Anomalies:
    """The three detectors of images that do not belong, tried on one set of them.

    Attributes:
        detections: by the names of `ImageScores.detectors`.
        inside, outside: the images that belong, and those that do not.
    """

    detections: dict[Detector, Detection]
    inside: ImageScores
    outside: ImageScores

    def to_dict(self) -> dict[str, Any]:
        """As `tarflow evaluate` prints it. A number that is not finite is null."""
        sides = {"in": self.inside, "out": self.outside}
        values: dict[str, Any] = {f"images_{side}": len(scores.bits) for side, scores in sides.items()}
        values |= {f"not_finite_{side}": int((~scores.bits.isfinite()).sum()) for side, scores in sides.items()}
        for name, detection in self.detections.items():
            values[f"auroc_{name}"] = detection.auroc
            values[f"auroc_{name}_standard_error"] = detection.standard_error
        values |= {f"bits_{side}": float(scores.bits.mean()) for side, scores in sides.items()}
        values |= {f"code_bits_{side}": float(scores.code.mean()) for side, scores in sides.items()}
        return finite(values)


def detect(inside: ImageScores, outside: ImageScores) -> Anomalies:
    """Try the three detectors on images that belong and on images that do not.

    Both were scored by the same model under the same labels and noise. What is not finite counts as the least likely.
    """
    typical, others = inside.typical
    ours, theirs = inside.detectors(others), outside.detectors(typical)
    return Anomalies({name: auroc(ours[name], theirs[name]) for name in DETECTORS}, inside, outside)


def auroc(inside: Tensor, outside: Tensor) -> Detection:
    """The area under the ROC curve of a score that is to be high inside (n,) and low outside (m,).

        A = mean_ij [s_i > s_j] + ½ [s_i = s_j],    variance = var_i(A_i)/n + var_j(A_j)/m

    with A_i the share of the outside below score i, and A_j the share of the inside above score j.

    >>> auroc(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 2.0])).auroc
    0.75
    """
    above = share_below(inside, outside)  # (n,)
    below = 1 - share_below(outside, inside)  # (m,)
    variance = above.var() / len(above) + below.var() / len(below) if min(len(above), len(below)) > 1 else math.nan
    return Detection(float(above.mean()), standard_error(float(variance)))


def code_bits(images: Tensor) -> Tensor:
    """Bits of each image (N, C, H, W) uint8 in a lossless code, the shorter of PNG without its frame and zlib: (N,)
    float64. Levels are coded as they are.
    """
    return torch.tensor([8.0 * _code_bytes(image) for image in images.cpu()], device="cpu", dtype=torch.float64)


def inverted(images: Tensor, levels: int, seed: int = 0) -> Tensor:
    """The negatives, k to L-1-k: the same structure, the opposite brightness."""
    return levels - 1 - images


def shuffled(images: Tensor, levels: int, seed: int = 0) -> Tensor:
    """Each image with its pixels in an order of its own: the same colours, no structure."""
    count, channels, height, width = images.shape
    flat = images.flatten(2).clone()
    for k in range(count):
        generator = seeded_generator(seed, "shuffled", k)
        order = torch.randperm(height * width, generator=generator, device="cpu", dtype=torch.int64)
        flat[k] = flat[k, :, order]
    return flat.view(count, channels, height, width)


TRANSFORMS: dict[str, Callable[[Tensor, int, int], Tensor]] = {"inverted": inverted, "shuffled": shuffled}
"""Sets of images that do not belong, made of those that do: (images, levels, seed) to images."""


def _code_bytes(image: Tensor) -> int:
    raw = len(zlib.compress(image.permute(1, 2, 0).contiguous().numpy().tobytes(), 9))
    if image.shape[0] not in (1, 3):
        return raw
    file = io.BytesIO()
    from_array(image.numpy()).save(file, format="PNG", optimize=True)
    return min(raw, len(file.getvalue()) - PNG_FRAME)


def share_below(scores: Tensor, reference: Tensor) -> Tensor:
    """Of each score, the share of the reference that is lower, ties counting half; float64."""
    ordered = reference.double().sort().values
    lower, upto = (torch.searchsorted(ordered, scores.double(), side=side) for side in ("left", "right"))
    return (lower + upto).double() / (2 * len(ordered))


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
    """Keep it with the run. Raises OSError where that cannot be written to."""
    return keep(run, DETECTOR_FILE, stored)


def open_detector(run: Run) -> StoredDetector | None:
    """What `save_detector` left; None where nothing is. Raises ConfigError naming the file where it is damaged.

    Its `weights` are to be compared with `weights_digest`: training may have gone on since.
    """
    return open_kept(run, DETECTOR_FILE, StoredDetector, "`tarflow evaluate --against` again")

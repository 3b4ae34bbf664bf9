"""The flow as a detector of images that do not belong: likelihood, two corrections of it, and how often each is right.

Likelihoods mislead here: what is smooth and simple is likely under nearly every model of images, so that a set that has
nothing to do with the training can have the higher likelihoods (Nalisnick et al., arXiv 1810.09136). So a detector is
never quoted without the set that it was tried against, nor without its corrections.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tarflow.data.images import from_array
from tarflow.evaluation.shares import standard_error
from tarflow.seeding import seeded_generator

PNG_FRAME = 57  # bytes of a PNG file that hold no pixels: signature 8, IHDR 25, the frames of IDAT and IEND 12 each


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
    """Three detectors of images that do not belong, tried on one set of them.

    Attributes:
        likelihood: log p(x).
        complexity: log2 p(x) + L(x), with L the bits of the image in a lossless code: how many more bits the model
            needs than the code. Serrà et al., arXiv 1909.11480.
        typicality: -|log p(x) - mean log p|, the distance from what images that belong have in the mean. Nalisnick et
            al., arXiv 1906.02994, for single images.
        inside, outside: how many images.
        inside_not_finite, outside_not_finite: of these, how many have a density of 0, or none: the least likely.
        inside_bits, outside_bits: -log2 p a dimension, in the mean. inside_code, outside_code: L a dimension, likewise.
    """

    likelihood: Detection
    complexity: Detection
    typicality: Detection
    inside: int
    outside: int
    inside_bits: float
    outside_bits: float
    inside_code: float
    outside_code: float
    inside_not_finite: int = 0
    outside_not_finite: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As `tarflow evaluate` prints it. A number that is not finite is null."""
        values: dict[str, Any] = {"images_in": self.inside, "images_out": self.outside}
        values |= {"not_finite_in": self.inside_not_finite, "not_finite_out": self.outside_not_finite}
        for name in ("likelihood", "complexity", "typicality"):
            detection: Detection = getattr(self, name)
            values[f"auroc_{name}"] = detection.auroc
            values[f"auroc_{name}_standard_error"] = detection.standard_error
        values |= {"bits_in": self.inside_bits, "bits_out": self.outside_bits}
        values |= {"code_bits_in": self.inside_code, "code_bits_out": self.outside_code}
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def detect(
    inside: Tensor, outside: Tensor, inside_images: Tensor, outside_images: Tensor, *, offset: float = 0.0
) -> Anomalies:
    """Try the three detectors on scores of images that belong and of images that do not.

    For the typicality of an image that belongs, the mean is that of the other ones: it would otherwise be pulled
    towards each of them.

    Args:
        inside, outside: (n,) and (m,) log p, nats, of the same model under the same labels and noise. What is not
            finite counts as the least likely.
        inside_images, outside_images: (n, C, H, W) and (m, C, H, W) uint8, what was scored.
        offset: bits a dimension that are added to -log2 p, as `likelihood.to_bits_per_dim` does: it moves bits, and no
            ranking.

    Raises:
        ValueError: no image in a set, or another number of scores than images.
    """
    for name, scores, images in (("inside", inside, inside_images), ("outside", outside, outside_images)):
        if len(scores) != len(images) or not len(scores):
            raise ValueError(f"{name}: expected as many scores as images, and one at least, got {len(scores)} scores")
    dims = inside_images[0].numel()
    inside_bits, outside_bits = (
        -float(scores.double().mean()) / (dims * math.log(2)) + offset for scores in (inside, outside)
    )
    lost = [int((~scores.isfinite()).sum()) for scores in (inside, outside)]
    finite = inside.isfinite().double().cpu()
    inside, outside = (_ordered(scores) for scores in (inside, outside))
    inside_code, outside_code = code_bits(inside_images), code_bits(outside_images)
    total, count = (inside * finite).sum(), finite.sum()
    mean = total / count.clamp(min=1)
    others = (total - inside * finite) / (count - finite).clamp(min=1)  # of one image alone nothing is known: 0

    return Anomalies(
        likelihood=auroc(inside, outside),
        complexity=auroc(inside / math.log(2) + inside_code, outside / math.log(2) + outside_code),
        typicality=auroc(-(inside - others).abs(), -(outside - mean).abs()),
        inside=len(inside),
        outside=len(outside),
        inside_bits=inside_bits,
        outside_bits=outside_bits,
        inside_code=float(inside_code.mean()) / dims,
        outside_code=float(outside_code.mean()) / dims,
        inside_not_finite=lost[0],
        outside_not_finite=lost[1],
    )


def auroc(inside: Tensor, outside: Tensor) -> Detection:
    """The area under the ROC curve of a score that is to be high inside (n,) and low outside (m,).

        A = mean_ij [s_i > s_j] + ½ [s_i = s_j],    variance = var_i(A_i)/n + var_j(A_j)/m

    with A_i the share of the outside below score i, and A_j the share of the inside above score j.

    >>> auroc(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 2.0])).auroc
    0.75
    """
    above = _share_below(inside, outside)  # (n,)
    below = 1 - _share_below(outside, inside)  # (m,)
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


def _share_below(scores: Tensor, reference: Tensor) -> Tensor:
    """Of each score, the share of the reference that is lower, ties counting half; float64."""
    ordered = reference.double().sort().values
    lower, upto = (torch.searchsorted(ordered, scores.double(), side=side) for side in ("left", "right"))
    return (lower + upto).double() / (2 * len(ordered))


def _ordered(scores: Tensor) -> Tensor:
    """Float64, with a huge negative number for what is not finite, so that sums and ranks are."""
    scores = scores.double().cpu()
    finite = scores[scores.isfinite()]
    least = float(finite.min()) if len(finite) else 0.0
    return torch.where(scores.isfinite(), scores, least - 1e6)

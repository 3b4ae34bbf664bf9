"""The yardstick: a full-covariance Gaussian, fitted to the training images, in the same measure as the model.

It knows every mean and every correlation of two pixels, and nothing else. A flow that does not beat it on held-out
images has learnt less than one Cholesky factor holds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tarflow.measure import Measure

MAX_DIMS = 12_288  # 64x64 RGB; the covariance is then 1.2 GB, and as much again for its factor
CHUNK_BYTES = 1 << 26  # float64 images that are on their way into the covariance


@dataclass(frozen=True)
class GaussianYardstick:
    """N(mean, covariance) of noisy images, the covariance shrunk as Ledoit and Wolf (2004) and with the noise added.

        S = Σ_k (x_k - m)(x_k - m)ᵀ / n,   μ = tr S / p,   Σ = (1 - s) S + s μ I + v I

    over clean images x_k of p numbers; s is the shrinkage of their formula, v the variance of the noise: σ² for
    Gaussian noise, (2/L)²/12 for uniform. It is added as a formula, after the shrinkage: no draw of it is fitted.

    Attributes:
        mean: (p,) float64. factor: (p, p) float64, lower triangular, Σ = factor·factorᵀ.
        shrinkage: s, 0 to 1.
        images: n, how many it was fitted to.
        measure: of what it is the density.

    >>> images = torch.randint(0, 4, (500, 1, 2, 2), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    >>> yardstick = GaussianYardstick.fit(images, Measure(levels=4))
    >>> yardstick.log_prob(torch.zeros(3, 1, 2, 2)).shape
    torch.Size([3])
    """

    mean: Tensor
    factor: Tensor
    shrinkage: float
    images: int
    measure: Measure

    @classmethod
    def fit(cls, images: Tensor, measure: Measure) -> GaussianYardstick:
        """Fit to training images (N, C, H, W) uint8, unflipped, in chunks: memory is two p·p in float64.

        Raises:
            ValueError: fewer than two images, more than `MAX_DIMS` numbers in an image, or images that are none.
        """
        obstacle = _obstacle(images)
        if obstacle is not None:
            raise ValueError(f"gaussian yardstick: {obstacle}")
        slope, offset, variance = measure.kind.moments(measure.levels, measure.noise_std)
        dims, count = images[0].numel(), len(images)
        chunks = images.flatten(1).split(max(1, CHUNK_BYTES // (8 * dims)))

        total = torch.zeros(dims, device="cpu", dtype=torch.float64)
        for chunk in chunks:
            total += chunk.sum(dim=0, dtype=torch.int64).cpu()  # exact
        level_mean = total / count

        scatter = torch.zeros(dims, dims, device="cpu", dtype=torch.float64)
        fourth = 0.0  # Σ ‖k - m‖⁴
        for chunk in chunks:  # a second pass, because Σ k kᵀ - n m mᵀ cancels
            centred = chunk.cpu().double() - level_mean
            scatter.addmm_(centred.T, centred)
            fourth += float(centred.square().sum(dim=1).square().sum())
        covariance = scatter.mul_(slope**2 / count)
        shrinkage = ledoit_wolf_shrinkage(covariance, fourth * slope**4 / count, count)

        trace_mean = float(covariance.trace()) / dims
        covariance.mul_(1 - shrinkage).diagonal().add_(shrinkage * trace_mean + variance)
        mean, factor = level_mean * slope + offset, torch.linalg.cholesky(covariance)
        return cls(mean, factor, shrinkage, count, measure)

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x; mean, Σ) of noisy images (B, C, H, W), nats, (B,) float64 on the CPU."""
        x = x.flatten(1).cpu().double()
        if x.shape[1] != len(self.mean):
            raise ValueError(f"x: expected {len(self.mean)} numbers an image, got {x.shape[1]}")
        white = torch.linalg.solve_triangular(self.factor, (x - self.mean).T, upper=False)  # (p, B)
        log_det = self.factor.diagonal().log().sum()
        return -0.5 * (white.square().sum(dim=0) + len(self.mean) * math.log(2 * math.pi)) - log_det

    @property
    def note(self) -> str:
        """What it is, in words."""
        return (
            f"Gaussian with full covariance, Ledoit-Wolf shrinkage {self.shrinkage:.4g}, "
            f"fitted to {self.images} training images, noise added analytically; it uses no labels"
        ) + (f"; {self.warning}" if self.warning else "")

    @property
    def warning(self) -> str:
        """Why it is a weak yardstick, in words; empty where it is none."""
        if self.images > len(self.mean):
            return ""
        return (
            f"weak: {self.images} images of {len(self.mean)} numbers are too few for a covariance, which is singular "
            "but for its shrinkage and noise, and to be better than that says little"
        )


@dataclass(frozen=True)
class NoYardstick:
    """Why there is no yardstick."""

    note: str


def fit_yardstick(images: Tensor, measure: Measure) -> GaussianYardstick | NoYardstick:
    """`GaussianYardstick.fit`, or the reason why these images (N, C, H, W) uint8 have none: too large, or too few."""
    obstacle = _obstacle(images)
    if obstacle is not None:
        return NoYardstick(f"no Gaussian yardstick: {obstacle}")
    return GaussianYardstick.fit(images, measure)


def ledoit_wolf_shrinkage(covariance: Tensor, fourth_moment: float, count: int) -> float:
    """The s that minimises E‖(1-s) S + s μ I - Σ‖² (Frobenius), as estimated by Ledoit and Wolf (2004).

        s = min(1, b/d),   b = (mean ‖x - m‖⁴ - ‖S‖²) / n,   d = ‖S - μ I‖² = ‖S‖² - p μ²,   μ = tr S / p

    Args:
        covariance: S (p, p), that of the sample, divided by n.
        fourth_moment: mean of ‖x - m‖⁴ over the sample.
        count: n.

    Source: A well-conditioned estimator for large-dimensional covariance matrices, J. Multivariate Analysis 88.
    """
    dims = len(covariance)
    norm = float(torch.linalg.matrix_norm(covariance)) ** 2
    error = (fourth_moment - norm) / count
    distance = norm - float(covariance.trace()) ** 2 / dims
    if error <= 0:  # all images are the same
        return 0.0
    return 1.0 if error >= distance else error / distance


def _obstacle(images: Tensor) -> str | None:
    if images.ndim != 4 or images.dtype != torch.uint8:
        raise ValueError(f"images: expected (N, C, H, W) uint8, got {tuple(images.shape)} {images.dtype}")
    if len(images) < 2:
        return f"a covariance needs two images, got {len(images)}"
    dims = images[0].numel()
    if dims > MAX_DIMS:
        return f"{dims} numbers in an image, and a covariance of more than {MAX_DIMS} does not fit into memory"
    return None

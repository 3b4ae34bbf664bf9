"""How near do ways to guide a spline come to p_c^(1+g) / p_u^g? On pairs of random splines, by quadrature.

    python -m benchmarks.spline_guidance --out benchmarks/results/spline-guidance.json

The two branches of guidance give a number two densities, p_c and p_u. Both rules of a Gaussian follow from their
geometric extrapolation; for a spline it has no closed form, and what is tried comes near it or not. A figure is the
median over the pairs of KL(p_c^(1+g)/p_u^g, normalised || guided), in nats, with p_c itself beside it, under the stable
rule of the affine map. Here are the ways that `Spline.combine` does not take, too.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tarflow import SequenceConfig
from tarflow.model import rational_quadratic
from tarflow.model.rational_quadratic import LEAST_SHARE, STEEPEST
from tarflow.model.spline import Spline

BINS = 8
GRID = torch.linspace(-2, 2, 2001, dtype=torch.float64)
KINDS = ((0.5, 0.2, 0.1), (1.0, 0.5, 0.3), (1.5, 1.0, 0.3))
"""Standard deviations of a spline's parameters, of how those of the branches differ, and of how v and the shift do."""

Curves = Callable[[Tensor, Tensor, float], Tensor]


def kept(conditional: Tensor, unguided: Tensor, g: float) -> Tensor:
    """The conditional's spline, as rule "stable" has it."""
    return conditional


def extrapolated(conditional: Tensor, unguided: Tensor, g: float) -> Tensor:
    """All parameters extrapolated, as rule "paper" has it."""
    return conditional + g * (conditional - unguided)


def tilted(conditional: Tensor, unguided: Tensor, g: float, most: float = float("inf")) -> Tensor:
    """The conditional's widths, with slopes that are guided as densities: (S_c')^(1+g) / (S_u')^g, to one height again.

    S_u is evaluated at the knots of S_c. Where a ratio S_c'/S_u' is above e^most, it is e^most.
    """
    widths, heights, slopes = conditional.split([BINS, BINS, BINS - 1], dim=-1)
    sizes = [2 * LEAST_SHARE + 2 * (1 - BINS * LEAST_SHARE) * part.softmax(dim=-1) for part in (widths, heights)]
    knots = F.pad(sizes[0].cumsum(dim=-1)[..., :-1] - 1, (1, 0), value=-1.0)
    knots = F.pad(knots, (0, 1), value=1.0)
    curves = unguided.unsqueeze(1).expand(-1, BINS + 1, -1)
    there, log_slopes = rational_quadratic.forward(knots.unsqueeze(-1), curves, BINS, 1.0)
    rises = there.squeeze(-1).diff(dim=-1).clamp(min=1e-6)
    log_heights = sizes[1].log() + g * (sizes[1].log() - rises.log()).clamp(max=most)
    total = log_heights.logsumexp(dim=-1, keepdim=True) - torch.tensor(2.0, dtype=torch.float64).log()
    room = ((log_heights - total).exp() - 2 * LEAST_SHARE).clamp(min=1e-6)
    own = STEEPEST * torch.tanh(slopes / STEEPEST)
    guided = own + g * (own - log_slopes.squeeze(-1)[:, 1:-1]).clamp(max=most) - total
    raw = STEEPEST * torch.atanh((guided / STEEPEST).clamp(-0.999, 0.999))
    return torch.cat([widths, room.log(), raw], dim=-1)


WAYS: dict[str, Curves] = {
    "kept": kept,
    "extrapolated": extrapolated,
    "tilted": tilted,
    "tilted, ratios up to 1": lambda conditional, unguided, g: tilted(conditional, unguided, g, most=0.0),
}


def log_density(spline: Spline, params: Tensor) -> Tensor:
    """ln p at the grid, (pairs, grid), of parameters (pairs, k), and normalised on it."""
    x = GRID.expand(len(params), -1).unsqueeze(-1)
    z, ladj = spline(x, params.unsqueeze(1).expand(-1, len(GRID), -1))
    return normalised(ladj - 0.5 * z.square().squeeze(-1))


def normalised(log_density: Tensor) -> Tensor:
    """The logarithm of a density on the grid, plus a constant."""
    return log_density.log_softmax(dim=-1) - (GRID[1] - GRID[0]).log()


def measure(pairs: int) -> list[dict[str, Any]]:
    """A row for each kind of pairs and each strength."""
    config = SequenceConfig(tokens=2, dim=1, width=8, head_dim=8, layers=(1,), bins=BINS, transforms=("spline",))
    spline, rows = Spline(config), []
    for spread, difference, of_affine in KINDS:
        generator = torch.Generator().manual_seed(0)

        def normal(width: int, of: torch.Generator = generator) -> Tensor:
            return torch.randn(pairs, width, generator=of, dtype=torch.float64)

        conditional = spread * normal(spline.size)
        unguided = conditional + difference * normal(spline.size)
        unguided[:, :2] = conditional[:, :2] + of_affine * normal(2)
        p_c, p_u = log_density(spline, conditional), log_density(spline, unguided)
        for g in (0.5, 1.0, 3.0):
            wanted = normalised((1 + g) * p_c - g * p_u)
            affine = spline.combine(conditional, unguided, g, "stable")[:, :2]
            found = {"p_c": p_c}
            for name, way in WAYS.items():
                params = torch.cat([affine, way(conditional[:, 2:], unguided[:, 2:], g)], dim=-1)
                found[name] = log_density(spline, params)
            kl = {
                name: (wanted.exp() * (wanted - got)).sum(dim=-1) * (GRID[1] - GRID[0]) for name, got in found.items()
            }
            medians = {name: round(float(value.median()), 3) for name, value in kl.items()}
            rows.append({"spread": spread, "difference": difference, "of_affine": of_affine, "g": g, "kl": medians})
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.spline_guidance", description=__doc__)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    options = parser.parse_args(argv)
    rows = measure(options.pairs)
    for row in rows:
        print(row)
    options.out.write_text(json.dumps({"pairs": options.pairs, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

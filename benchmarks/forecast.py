"""The next state of a field, given this one: samples of a flow beside persistence and a network that regresses.

    python -m benchmarks.forecast --out benchmarks/results/forecast-cpu.json

A smooth periodic field of 16x16 is carried by a wind that nobody sees, the same all over a frame and another in each
(normal, of a deviation of a pixel), is smoothed, and gets a little of another smooth field. So what comes next is a
distribution, in which neighbours go together. A convolutional network is trained on squared errors for the same
processor time as a flow that is given the frame, patch by patch or as a prefix, on the same pairs, all for what
changes; its error on held-out pairs is also taken for the deviation of independent normals around what it says. Scores
are of an ensemble for each of some new states, in the deviation of the fields, less is better (Gneiting and Raftery,
2007, unbiased for ensembles):

- CRPS, of each pixel: E|X - y| - ½ E|X - X'|, which is |x - y| of a single answer;
- CRPS of patches, of the means of 4x4 pixels, in which it shows whether neighbours go together;
- energy score, of the whole field: the same as CRPS with norms, over √256;
- spread over error: 1 where an ensemble is as wide as it is wrong.

`exact` draws winds and new fields anew, and is the best that there is.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import tarflow
from benchmarks.kept_rows import KeptRows, Row, parser, spread
from benchmarks.posteriors import fitted_in
from benchmarks.table import aligned

SIDE, WIND, SMOOTHING, FRESH = 16, 1.0, 0.05, 0.15
BATCH, RATE, FLOW_RATE = 64, 2e-3, 5e-3
Ensemble = Callable[[Tensor, int], Tensor]
"""(states (n, 1, H, W), members) -> (members, n, 1, H, W)"""


def _waves() -> tuple[Tensor, Tensor]:
    """Wave numbers along both axes, as `rfft2` has them."""
    down = torch.fft.fftfreq(SIDE) * SIDE
    across = torch.fft.rfftfreq(SIDE) * SIDE
    return down[:, None], across[None]


def fields(n: int, generator: torch.Generator) -> Tensor:
    """Smooth Gaussian fields (n, 1, 16, 16) of variance about 1, periodic."""
    down, across = _waves()
    amplitude = (1 + down**2 + across**2) ** -1.5
    white = torch.fft.rfft2(torch.randn(n, 1, SIDE, SIDE, generator=generator))
    weight = torch.fft.irfft2(amplitude**2 + 0j, s=(SIDE, SIDE))[0, 0]  # the variance at any place
    return torch.fft.irfft2(white * amplitude, s=(SIDE, SIDE)) / weight.sqrt()


def following(now: Tensor, generator: torch.Generator) -> Tensor:
    """One of the fields that may come after each of `now` (n, 1, 16, 16)."""
    down, across = _waves()
    wind = WIND * torch.randn(len(now), 2, 1, 1, generator=generator)
    phase = 2 * math.pi / SIDE * (wind[:, :1] * down + wind[:, 1:] * across)
    factor = torch.exp(-SMOOTHING * (down**2 + across**2)) * torch.exp(-1j * phase)
    factor[..., SIDE // 2, :] = factor[..., SIDE // 2, :].real + 0j  # of waves that have no direction
    carried = torch.fft.irfft2(torch.fft.rfft2(now) * factor, s=(SIDE, SIDE))
    return carried + FRESH * fields(len(now), generator)


def scores(ensemble: Tensor, truth: Tensor) -> Row:
    """Scores of an ensemble (m, n, 1, H, W), m > 1, or of one answer, m = 1."""
    members = len(ensemble)
    row: Row = {"CRPS": crps(ensemble, truth)}
    row["CRPS of patches"] = crps(*(nn.functional.avg_pool2d(x.flatten(0, -4), 4) for x in (ensemble, truth)))
    energy = (ensemble - truth).flatten(2).norm(dim=2).mean(dim=0)
    if members > 1:
        rows = ensemble.flatten(2).transpose(0, 1)
        between = torch.cdist(rows, rows)  # (n, m, m)
        energy = energy - 0.5 * between.sum(dim=(1, 2)) / (members * (members - 1))
        width = ensemble.var(dim=0).mean() * (1 + 1 / members)
        row["spread over error"] = float((width / (ensemble.mean(dim=0) - truth).square().mean()).sqrt())
    return row | {"energy score": float(energy.mean()) / SIDE}


def crps(ensemble: Tensor, truth: Tensor) -> float:
    """The mean CRPS of numbers; the members of an ensemble are along its first axis, or folded into that of `truth`."""
    ensemble = ensemble.reshape(-1, *truth.shape)
    members, found = len(ensemble), (ensemble - truth).abs().mean()
    if members > 1:
        ordered = ensemble.sort(dim=0).values  # Σ over pairs of |x - x'| by ranks
        weight = 2 * torch.arange(members) - members + 1
        pairs = (ordered * weight.view(-1, *[1] * truth.ndim)).sum(dim=0).mean()
        found = found - pairs / (members * (members - 1))
    return float(found)


def network() -> nn.Module:
    """Five convolutions on a torus, which add to the state."""
    layers: list[nn.Module] = []
    for before, after in ((1, 32), (32, 32), (32, 32), (32, 32)):
        layers += [nn.Conv2d(before, after, 3, padding=1, padding_mode="circular"), nn.GELU()]
    return nn.Sequential(*layers, nn.Conv2d(32, 1, 3, padding=1, padding_mode="circular"))


def pairs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """States to learn from (n, 1, 16, 16), and what came after each."""
    generator = torch.Generator().manual_seed(seed)
    now = fields(count, generator)
    return now, following(now, generator)


@functools.cache  # two methods take its answers
def regression(count: int, seed: int, seconds: float) -> tuple[Row, Ensemble, Ensemble]:
    """The network after so much processor time: its answer, and normals around it."""
    now, later = pairs(count, seed)
    torch.manual_seed(seed)
    net, generator, held_out = network(), torch.Generator().manual_seed(seed), len(now) // 10
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    spent, steps = 0.0, 0
    while spent < seconds:
        began = time.process_time()
        optimizer.param_groups[0]["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * spent / seconds))
        rows = torch.randint(held_out, len(now), (BATCH,), generator=generator)
        loss = (now[rows] + net(now[rows]) - later[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps, spent = steps + 1, spent + time.process_time() - began
    net.requires_grad_(False)
    deviation = (now[:held_out] + net(now[:held_out]) - later[:held_out]).square().mean().sqrt()

    def answer(states: Tensor, members: int) -> Tensor:
        return (states + net(states)).unsqueeze(0)

    def normals(states: Tensor, members: int) -> Tensor:
        noise = torch.randn(members, *states.shape, generator=generator)
        return answer(states, 1) + deviation * noise

    return {"seconds": spent, "steps": steps}, answer, normals


CONDITIONS = {"flow": "aligned-image", "flow, frame as prefix": "image"}


def flow(method: str, count: int, seed: int, seconds: float) -> tuple[Row, Ensemble]:
    """A `TarFlow` of what changes, given the frame, fitted for so much processor time."""
    now, later = pairs(count, seed)
    change = later - now
    config = tarflow.TarFlowConfig(
        SIDE,
        channels=1,
        patch_size=4,
        width=64,
        layers=(1, 1),
        transform="affine-mixed",
        condition=f"{CONDITIONS[method]}:1:{SIDE}:{SIDE}:4",
        start_token=True,
    )
    make = functools.partial(tarflow.TarFlow, config)
    model, result, spent = fitted_in(seconds, make, change, now, seed, batch_size=BATCH, lr=FLOW_RATE)
    model.requires_grad_(False)

    def ensemble(states: Tensor, members: int) -> Tensor:
        return states + torch.stack([tarflow.sample(model, len(states), states, seed=seed + k) for k in range(members)])

    return {"seconds": spent, "steps": result.steps, "nats": -result.held_out_log_prob}, ensemble


def measure(method: str, seed: int, options: argparse.Namespace) -> Row:
    """One method, its scores on new states."""
    new = torch.Generator().manual_seed(1000 + seed)
    states = fields(options.states, new)
    truth = following(states, new)
    row: Row = {}
    ensemble: Ensemble
    if method == "persistence":
        ensemble = lambda states, members: states.unsqueeze(0)  # noqa: E731
    elif method == "exact":
        ensemble = lambda states, members: torch.stack([following(states, new) for _ in range(members)])  # noqa: E731
    elif method in CONDITIONS:
        row, ensemble = flow(method, options.pairs, seed, options.seconds)
    else:
        row, answer, normals = regression(options.pairs, seed, options.seconds)
        ensemble = answer if method == "regression" else normals
    return row | scores(ensemble(states, options.members), truth)


METHODS = ("persistence", "regression", "regression and noise", *CONDITIONS, "exact")


def table(rows: Sequence[Row]) -> str:
    """A line a method, a column a score: the mean over the seeds, and the deviation of one."""
    figures = ("CRPS", "CRPS of patches", "energy score", "spread over error")
    lines = [["method", *figures]]
    for method in dict.fromkeys(row["method"] for row in rows):
        line = [method]
        for figure in figures:
            found = [row[figure] for row in rows if row["method"] == method and figure in row]
            line.append(spread(found, 4))
        lines.append(line)
    return aligned(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    words = parser("forecast", __doc__, seconds=30.0)
    words.add_argument("--pairs", type=int, default=10_000)
    words.add_argument("--states", type=int, default=200, help="new ones, whose forecasts are scored")
    words.add_argument("--members", type=int, default=20, help="of an ensemble")
    options = words.parse_args(argv)
    torch.set_num_threads(1)
    setting = {name: getattr(options, name) for name in ("seconds", "pairs", "states", "members")}
    kept = KeptRows("forecast", options.out, setting)
    for seed in options.seeds:
        for method in METHODS:
            kept.measured({"method": method, "seed": seed}, functools.partial(measure, method, seed, options))
    print(table(kept.rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())

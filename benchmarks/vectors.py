"""Densities of vectors: VectorFlow beside zuko's spline flow and its affine one, at equal processor time.

    python -m benchmarks.vectors --out benchmarks/results/vectors-cpu.json

Two moons and eight Gaussians are drawn; wine, diabetes and breast cancer are scikit-learn's tables, whose numbers are
rounded: each gets uniform noise as wide as the least distance of two values of its column, so that there is a density.
All flows see the same rows, standardised by those that are trained on, in the same batches, and Adam moves each for the
same time on one core, at each of two learning rates, and zuko's with each of two widths of their hidden layers. What is
best on held-out rows counts, on test rows that nothing else has seen. A figure is the mean of -log p in nats, of
standardised vectors, so that less is better.

zuko comes with the extra `[sbi]`.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import tarflow
from benchmarks.kept_rows import KeptRows, Row, parser, spread
from benchmarks.table import aligned

ROWS = (10_000, 2_000, 10_000)  # of the sets that are drawn: to train on, held out, to test on
BATCH = 256
RATES = (2e-3, 5e-3)
CHECKS = 10  # looks at the held-out rows, evenly over the time; they do not count
LogProb = Callable[[Tensor], Tensor]


def two_moons(generator: torch.Generator, count: int) -> Tensor:
    """Two half circles in one another, with noise of a tenth of their radius."""
    angle, upper, noise = uniform(generator, count) * math.pi, uniform(generator, count) < 0.5, normal(generator, count)
    x = torch.where(upper, angle.cos(), 1 - angle.cos())
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
    return torch.stack([x, y], dim=1) + 0.1 * noise


def eight_gaussians(generator: torch.Generator, count: int) -> Tensor:
    """Eight Gaussians of width 0.2 on a circle of radius 2."""
    angle = (8 * uniform(generator, count)).floor() * math.pi / 4
    return 2 * torch.stack([angle.cos(), angle.sin()], dim=1) + 0.2 * normal(generator, count)


def uniform(generator: torch.Generator, *shape: int) -> Tensor:
    """Numbers between 0 and 1."""
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def normal(generator: torch.Generator, count: int) -> Tensor:
    """Standard normal pairs."""
    return torch.randn(count, 2, generator=generator, dtype=torch.float64)


def table_rows(name: str, generator: torch.Generator) -> Tensor:
    """All rows of one of scikit-learn's tables, in random order, with noise of the width to which they are rounded."""
    from sklearn import datasets

    rows = torch.from_numpy(getattr(datasets, f"load_{name.replace(' ', '_')}")().data).double()
    steps = torch.stack([column.unique().diff().min() for column in rows.T])
    noisy = rows + (uniform(generator, *rows.shape) - 0.5) * steps
    return noisy[torch.randperm(len(rows), generator=generator)]


DRAWN = {"two moons": two_moons, "eight Gaussians": eight_gaussians}
SETS = (*DRAWN, "wine", "diabetes", "breast cancer")


def parts(name: str, seed: int) -> list[Tensor]:
    """Rows (n, N) to train on, held out, and to test on, standardised by the first."""
    generator = torch.Generator().manual_seed(1000 * seed + SETS.index(name))
    if name in DRAWN:
        rows, counts = DRAWN[name](generator, sum(ROWS)), list(ROWS)
    else:
        rows = table_rows(name, generator)
        counts = [len(rows) * 6 // 10, len(rows) * 2 // 10]
        counts.append(len(rows) - sum(counts))
    deviation, mean = torch.std_mean(rows[: counts[0]], dim=0, correction=0)
    return list(((rows - mean) / deviation).float().split(counts))


def ours(dim: int) -> tuple[nn.Module, LogProb]:
    """A `VectorFlow` as it comes."""
    flow = tarflow.VectorFlow(dim)
    return flow, flow.log_prob


def nsf(dim: int, hidden: int) -> tuple[nn.Module, LogProb]:
    """zuko's neural spline flow, as it comes but for the width of its two hidden layers (zuko's own is 64)."""
    import zuko  # type: ignore[import-untyped, import-not-found, unused-ignore]

    flow = zuko.flows.NSF(dim, hidden_features=(hidden, hidden))
    return flow, lambda x: flow().log_prob(x)


def maf(dim: int, hidden: int) -> tuple[nn.Module, LogProb]:
    """zuko's masked autoregressive flow, affine, with five transforms of two hidden layers."""
    import zuko  # type: ignore[import-untyped, import-not-found, unused-ignore]

    flow = zuko.flows.MAF(dim, transforms=5, hidden_features=(hidden, hidden))
    return flow, lambda x: flow().log_prob(x)


FLOWS: dict[str, dict[str, Callable[[int], tuple[nn.Module, LogProb]]]] = {  # the variants that are tried of each
    "VectorFlow": {"as it comes": ours},
    "zuko NSF": {f"{hidden} wide": functools.partial(nsf, hidden=hidden) for hidden in (64, 128)},
    "zuko MAF": {f"{hidden} wide": functools.partial(maf, hidden=hidden) for hidden in (64, 128)},
}


def fit(
    flow: nn.Module, log_prob: LogProb, train: Tensor, held_out: Tensor, *, lr: float, seconds: float, seed: int
) -> dict[str, Any]:
    """Train for so much processor time; the flow is left with the weights that are best on the held-out rows."""
    optimizer = torch.optim.Adam(flow.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    best, kept, spent, steps, checks = math.inf, copy.deepcopy(flow.state_dict()), 0.0, 0, 0
    while spent < seconds:
        began = time.process_time()
        optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * spent / seconds))
        rows = torch.randint(len(train), (min(BATCH, len(train)),), generator=generator)
        loss = -log_prob(train[rows]).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
        if torch.isfinite(norm):
            optimizer.step()
        steps, spent = steps + 1, spent + time.process_time() - began
        if spent >= seconds * (checks + 1) / CHECKS:
            checks += 1
            if (found := mean_nll(log_prob, held_out)) < best:
                best, kept = found, copy.deepcopy(flow.state_dict())
    flow.load_state_dict(kept)
    return {"steps": steps, "held_out": best}


@torch.no_grad()
def mean_nll(log_prob: LogProb, rows: Tensor) -> float:
    """The mean of -log p, nats."""
    return -float(torch.cat([log_prob(part) for part in rows.split(2000)]).mean())


def measure(name: str, flow_name: str, variant: str, seed: int, lr: float, seconds: float) -> Row:
    """One variant of a flow on one set, at one learning rate."""
    train, held_out, test = parts(name, seed)
    torch.manual_seed(seed)
    flow, log_prob = FLOWS[flow_name][variant](train.shape[1])
    row: Row = {"dim": train.shape[1], "rows": len(train)}
    row["weights"] = sum(p.numel() for p in flow.parameters())
    row |= fit(flow, log_prob, train, held_out, lr=lr, seconds=seconds, seed=seed)
    return row | {"nats": mean_nll(log_prob, test)}


def chosen(rows: Sequence[Row]) -> list[Row]:
    """Of each set, flow and seed the variant and the learning rate with the best held-out rows."""
    best: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        key = (row["set"], row["flow"], row["seed"])
        if key not in best or row["held_out"] < best[key]["held_out"]:
            best[key] = row
    return list(best.values())


def table(rows: Sequence[Row]) -> str:
    """A line a set, a column a flow: the mean over the seeds, and the deviation of one."""
    rows, lines = chosen(rows), [["set", "numbers", "rows", *FLOWS]]
    for name in dict.fromkeys(row["set"] for row in rows):
        of_set = [row for row in rows if row["set"] == name]
        line = [name, str(of_set[0]["dim"]), str(of_set[0]["rows"])]
        for flow in FLOWS:
            nats = [row["nats"] for row in of_set if row["flow"] == flow]
            line.append(spread(nats))
        lines.append(line)
    return aligned(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    words = parser("vectors", __doc__, seconds=8.0)
    words.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    words.add_argument("--flows", nargs="+", choices=list(FLOWS), default=list(FLOWS))
    args = words.parse_args(argv)
    torch.set_num_threads(1)
    kept = KeptRows("vectors", args.out, {"seconds": args.seconds}, "zuko", "scikit-learn")
    for name, seed, flow in itertools.product(args.sets, args.seeds, args.flows):
        for variant, lr in itertools.product(FLOWS[flow], RATES):
            key = {"set": name, "flow": flow, "variant": variant, "seed": seed, "lr": lr}
            kept.measured(key, functools.partial(measure, name, flow, variant, seed, lr, args.seconds))
    print(table(kept.rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())

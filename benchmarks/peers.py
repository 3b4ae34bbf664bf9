"""Other normalizing flows on the data of `benchmarks.ablations`, for the time that its baseline takes.

    python -m benchmarks.peers --set fashion-mnist --budgets 1 4 --seeds 0 1 2 --out FILE.json

Glow (arXiv 1807.03039) and an autoregressive rational-quadratic spline flow (arXiv 1906.04032) of the package
`normflows`, and the same kind of spline flow of the package `zuko`; both packages have to be installed. All are
class-conditional as ours. The Gaussian with a full covariance is beside them, which takes no training.

Each trained one gets as many steps as fit into the processor time of the baseline's, times the budget, with Adam, a
clipped gradient and the baseline's warm-up and schedule. Each is first trained with every learning rate of `--lrs`, at
the first seed and the first budget; the best of these is kept for the other seeds and budgets. Pixels are dequantised
as for ours, and held-out images are scored on the same noise; the flows see the logits of pixels, as RealNVP (arXiv
1605.08803) and MAF (arXiv 1705.07057) do. Tried on Fashion-MNIST at one seed: pixels from -1 to 1, or standardised,
instead of logits cost the spline flows 0.2 to 0.8 bits/dim, half the width 0.07, one spline 0.1, and four times the
batch (for which a step costs three times as much) 0.3.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.bench import Bench, budget_of, describe, now, open_bench, parser_of, read, write
from benchmarks.variants import BASELINE, VARIANTS
from tarflow.evaluation.likelihood.evaluate import mean_and_error
from tarflow.evaluation.likelihood.gaussian import GaussianYardstick, fit_yardstick
from tarflow.measure import Measure
from tarflow.seeding import seeded_generator
from tarflow.training.optimizer import learning_rate, set_learning_rate

ALPHA = 0.05  # how far the logits stay off 0 and 1, as in RealNVP and MAF: they end at ±2.94
GLOW_DEPTH, GLOW_CHANNELS = 4, 64  # blocks a level, channels of the convolutions between
BINS = 8
SIZES = {"fashion-mnist": (128, 3), "cifar10": (64, 1), "digits": (128, 3)}  # channels of masked networks, and splines
GLOW, GAUSSIAN = "Glow (normflows)", "Gaussian, full covariance"
SPLINE, ZUKO = "autoregressive spline flow (normflows)", "neural spline flow (zuko)"

LogProb = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Facts:
    """What a flow is built for: (C, H, W), classes, channels of masked networks, how many splines in a row."""

    shape: tuple[int, int, int]
    classes: int
    width: int
    splines: int

    @property
    def dims(self) -> int:
        """C·H·W."""
        return math.prod(self.shape)


class Peer(nn.Module):
    """A flow of another package on the logits of pixels: log p(x|y) of images x (B, C, H, W) and labels y (B,).

    v = log u - log(1 - u),    u = α + (1 - 2α)·(x + 1)/2
    """

    def of_logits(self, v: Tensor, y: Tensor) -> Tensor:
        """log p(v|y) (B,) nats."""
        raise NotImplementedError

    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        """(B,) nats."""
        u = ALPHA + (1 - 2 * ALPHA) * (x + 1) / 2
        ladj = math.log((1 - 2 * ALPHA) / 2) - (u.log() + (-u).log1p())
        return self.of_logits(u.log() - (-u).log1p(), y) + ladj.flatten(1).sum(dim=1)


class Glow(Peer):
    """Glow of normflows with as many levels as the side can be halved, three at most."""

    def __init__(self, facts: Facts) -> None:
        import normflows  # type: ignore[import-untyped, import-not-found, unused-ignore]

        super().__init__()
        flows, (channels, height, width) = normflows.flows, facts.shape
        levels = min(3, next(k for k in range(10) if (height >> k) % 2 or (width >> k) % 2))
        bases, steps, merges = [], [], []
        for i in range(levels):
            inner = channels * 2 ** (levels + 1 - i)
            step = [flows.GlowBlock(inner, GLOW_CHANNELS, split_mode="channel", scale=True) for _ in range(GLOW_DEPTH)]
            steps.append([*step, flows.Squeeze()])
            if i:
                merges.append(flows.Merge())
            latent = channels * 2 ** (levels - i if i else levels + 1), height >> (levels - i), width >> (levels - i)
            bases.append(normflows.distributions.ClassCondDiagGaussian(latent, facts.classes))
        self.flow = normflows.MultiscaleFlow(bases, steps, merges)

    def of_logits(self, v: Tensor, y: Tensor) -> Tensor:
        result: Tensor = self.flow.log_prob(v, y)
        return result


class NormflowsSpline(Peer):
    """Masked autoregressive splines of all pixels, shuffled in between, with the class as context."""

    def __init__(self, facts: Facts) -> None:
        import normflows

        super().__init__()
        flows, steps, self.classes = normflows.flows, [], facts.classes
        for _ in range(facts.splines):
            steps.append(
                flows.AutoregressiveRationalQuadraticSpline(
                    facts.dims, 1, facts.width, num_context_channels=facts.classes, num_bins=BINS
                )
            )
            steps.append(flows.Permute(facts.dims))
        base = normflows.distributions.DiagGaussian(facts.dims, trainable=False)
        self.flow = normflows.ConditionalNormalizingFlow(base, steps)

    def of_logits(self, v: Tensor, y: Tensor) -> Tensor:
        result: Tensor = self.flow.log_prob(v.flatten(1), F.one_hot(y, self.classes).float())
        return result


class ZukoSpline(Peer):
    """zuko's NSF: masked autoregressive splines of all pixels, turned round in between, with the class as context."""

    def __init__(self, facts: Facts) -> None:
        import zuko  # type: ignore[import-untyped, import-not-found, unused-ignore]

        super().__init__()
        self.classes, hidden = facts.classes, (facts.width, facts.width)
        self.flow = zuko.flows.NSF(
            facts.dims, facts.classes, bins=BINS, transforms=facts.splines, hidden_features=hidden
        )

    def of_logits(self, v: Tensor, y: Tensor) -> Tensor:
        result: Tensor = self.flow(F.one_hot(y, self.classes).float()).log_prob(v.flatten(1))
        return result


@dataclass(frozen=True)
class Kind:
    """A flow by its name in the tables, the package it takes, and what builds it."""

    name: str
    package: str
    build: Callable[[Facts], Peer]


KINDS = {
    "glow": Kind(GLOW, "normflows", Glow),
    "spline": Kind(SPLINE, "normflows", NormflowsSpline),
    "zuko": Kind(ZUKO, "zuko", ZukoSpline),
}


class PeerStep:
    """A flow made from a seed with its optimizer: called with a batch, it takes a step."""

    def __init__(self, kind: Kind, facts: Facts, device: torch.device, lr: float, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = kind.build(facts).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=lr)

    def __call__(self, x: Tensor, y: Tensor | None) -> None:
        assert y is not None
        self.optimizer.zero_grad()
        loss = -self.model.log_prob(x, y).mean() / x[0].numel()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 10.0)
        if bool(torch.isfinite(norm)):
            self.optimizer.step()


def train(bench: Bench, kind: Kind, facts: Facts, lr: float, budget: float, seed: int) -> dict[str, Any]:
    """One row: a flow at one learning rate, budget and seed."""
    timed = PeerStep(kind, facts, bench.device, lr, seed)
    cost = bench.cost_of(lambda x, y: timed(x, None if y is None else y.clamp(min=0)), seed)
    steps = max(1, round(bench.steps * budget / cost))
    peer = PeerStep(kind, facts, bench.device, lr, seed)  # anew: the other one has moved
    _, training = bench.configs(VARIANTS[BASELINE], steps, seed, label_drop=0.0, lr=lr, final_lr=min(lr, 1e-6))
    started = now(bench.device)
    for step in range(steps):
        rate = learning_rate(step, config=training, steps=steps, warmup=training.warmup_steps or 0)
        set_learning_rate(peer.optimizer, rate)
        peer(*bench.batch(step, training))
    seconds = now(bench.device) - started
    with torch.no_grad():
        mean, error = mean_and_error(score(bench, peer.model.log_prob))
    row = {"variant": kind.name, "lr": lr, "budget": budget, "seed": seed, "cost": cost, "steps": steps}
    row |= {"seconds": seconds, "parameters": sum(p.numel() for p in peer.model.parameters())}
    return row | {"bits_per_dim": mean if math.isfinite(mean) else None, "standard_error": error}


def score(bench: Bench, log_prob: LogProb, batch: int = 200) -> Tensor:
    """Bits/dim of each held-out image, in the noise that `evaluate_likelihood` draws for it."""
    measure, found = Measure(bench.splits.train.levels), []
    assert bench.held_out_labels is not None
    for start in range(0, len(bench.held_out), batch):
        pixels = bench.held_out[start : start + batch]
        noise = [seeded_generator(0, "evaluation", 0, start + k) for k in range(len(pixels))]
        x = measure.noisy(pixels, noise)
        labels = bench.held_out_labels[start : start + batch]
        found.append(measure.bits_per_dim(log_prob(x, labels).double(), pixels[0].numel()))
    return torch.cat(found)


def gaussian(bench: Bench) -> dict[str, Any]:
    """The row of the Gaussian, for which no budget is too small."""
    train = bench.splits.train
    yardstick = fit_yardstick(train.images, Measure(train.levels))
    assert isinstance(yardstick, GaussianYardstick)
    mean, error = mean_and_error(score(bench, lambda x, y: yardstick.log_prob(x)))
    return {"variant": GAUSSIAN, "lr": None, "seed": 0, "bits_per_dim": mean, "standard_error": error}


def best_lr(rows: Sequence[dict[str, Any]], name: str, budget: float, seed: int) -> float:
    """The learning rate of the best row of a flow at one budget and seed."""
    own = [row for row in rows if (row["variant"], budget_of(row), row["seed"]) == (name, budget, seed)]
    return float(min(own, key=lambda row: math.inf if row["bits_per_dim"] is None else row["bits_per_dim"])["lr"])


def main(argv: Sequence[str]) -> int:
    """Run what is not in the file yet; 2 after bad input, with one line."""
    parser = parser_of("peers")
    parser.add_argument("--flows", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--lrs", type=float, nargs="+", default=[1e-3, 3e-3, 1e-2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args(argv)
    kinds = [KINDS[flow] for flow in options.flows]
    for package in dict.fromkeys(kind.package for kind in kinds):
        if importlib.util.find_spec(package) is None:
            print(f"{package}: not installed; pip install {package}", file=sys.stderr)
            return 2
    try:
        bench = open_bench(options)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    facts, result = (
        Facts((bench.model.channels, *bench.model.image_shape), bench.model.num_classes, *SIZES[options.set]),
        read(options.out) or describe(bench, options),
    )
    rows = result["rows"]

    def keep(row: dict[str, Any]) -> None:
        rows.append(row)
        write(options.out, result)
        print(json.dumps(row), flush=True)

    def once(kind: Kind, lr: float, budget: float, seed: int) -> None:
        known = ((row["variant"], row["lr"], budget_of(row), row["seed"]) for row in rows)
        if (kind.name, lr, budget, seed) not in known:
            keep(train(bench, kind, facts, lr, budget, seed))

    if not any(row["variant"] == GAUSSIAN for row in rows):
        keep(gaussian(bench))
    chosen_at = options.budgets[0], options.seeds[0]
    for kind in kinds:
        for lr in options.lrs:
            once(kind, lr, *chosen_at)
    for budget in options.budgets:
        for seed in options.seeds:
            for kind in kinds:
                once(kind, best_lr(rows, kind.name, *chosen_at), budget, seed)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

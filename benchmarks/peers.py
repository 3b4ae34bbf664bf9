"""Other normalizing flows on the data of `benchmarks.ablations`, for the time that its baseline takes.

    python -m benchmarks.peers --set fashion-mnist --out FILE.json

Glow (arXiv 1807.03039) and an autoregressive rational-quadratic spline flow (arXiv 1906.04032), both of the package
`normflows`, which has to be installed, class-conditional as ours; and the Gaussian with a full covariance, which takes
no training. Each trained one gets as many steps as fit into the processor time of the baseline's, with Adam and the
baseline's schedule, at each learning rate of `--lrs`; the best of these is what may be quoted, and all are kept.
Pixels are dequantised as for ours, and held-out images are scored on the same noise.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ablations import Bench, describe, open_bench, parser_of, read, write
from benchmarks.variants import BASELINE, VARIANTS
from tarflow.evaluation.likelihood.evaluate import mean_and_error
from tarflow.evaluation.likelihood.gaussian import GaussianYardstick, fit_yardstick
from tarflow.measure import Measure
from tarflow.seeding import seeded_generator
from tarflow.training.optimizer import learning_rate, set_learning_rate

GLOW_DEPTH, GLOW_CHANNELS = 4, 64  # blocks a level, channels of the convolutions between
SPLINES, SPLINE_WIDTH, BINS = 4, 128, 8
GLOW, SPLINE, GAUSSIAN = "Glow (normflows)", "autoregressive spline flow (normflows)", "Gaussian, full covariance"
NAMES = {"glow": GLOW, "spline": SPLINE}

LogProb = Callable[[Tensor, Tensor | None], Tensor]


def glow(flows: Any, shape: tuple[int, int, int], classes: int) -> torch.nn.Module:
    """Glow with as many levels as the side can be halved, three at most."""
    channels, height, width = shape
    levels = min(3, next(k for k in range(10) if (height >> k) % 2 or (width >> k) % 2))
    bases, steps, merges = [], [], []
    for i in range(levels):
        inner = channels * 2 ** (levels + 1 - i)
        step = [
            flows.flows.GlowBlock(inner, GLOW_CHANNELS, split_mode="channel", scale=True) for _ in range(GLOW_DEPTH)
        ]
        steps.append([*step, flows.flows.Squeeze()])
        side = (height >> (levels - i), width >> (levels - i))
        if i:
            merges.append(flows.flows.Merge())
        latent = (channels * 2 ** (levels - i) if i else channels * 2 ** (levels + 1), *side)
        bases.append(flows.distributions.ClassCondDiagGaussian(latent, classes))
    return flows.MultiscaleFlow(bases, steps, merges)


def spline(flows: Any, shape: tuple[int, int, int], classes: int) -> torch.nn.Module:
    """Masked autoregressive splines of all pixels, shuffled in between, with the class as context."""
    dims = math.prod(shape)
    steps = []
    for _ in range(SPLINES):
        steps.append(
            flows.flows.AutoregressiveRationalQuadraticSpline(
                dims, 1, SPLINE_WIDTH, num_context_channels=classes, num_bins=BINS, permute_mask=False
            )
        )
        steps.append(flows.flows.Permute(dims))
    return flows.ConditionalNormalizingFlow(flows.distributions.DiagGaussian(dims, trainable=False), steps)


def log_prob_of(kind: str, model: Any, classes: int) -> LogProb:
    """log p(x|y) (B,) of a model of `normflows`; a dropped label is one of all classes, drawn, or no context."""
    if kind == GLOW:
        return lambda x, y: model.log_prob(x, y)

    def log_prob(x: Tensor, y: Tensor | None) -> Tensor:
        assert y is not None
        result: Tensor = model.log_prob(x.flatten(1), F.one_hot(y, classes).float())
        return result

    return log_prob


class Peer:
    """A flow of normflows, made from a seed, with its optimizer: called with a batch, it takes a step."""

    def __init__(self, bench: Bench, kind: str, lr: float, seed: int) -> None:
        import normflows  # type: ignore[import-untyped, import-not-found, unused-ignore]

        torch.manual_seed(seed)
        classes, shape = bench.model.num_classes, (bench.model.channels, *bench.model.image_shape)
        self.model = (glow if kind == GLOW else spline)(normflows, shape, classes).to(bench.device)
        self.log_prob = log_prob_of(kind, self.model, classes)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=lr)

    def __call__(self, x: Tensor, y: Tensor | None) -> None:
        self.optimizer.zero_grad()
        loss = -self.log_prob(x, y).mean() / x[0].numel()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 10.0)
        if bool(torch.isfinite(norm)):
            self.optimizer.step()


def train(bench: Bench, kind: str, lr: float, seed: int) -> dict[str, Any]:
    """One row: a peer at one learning rate."""
    timed = Peer(bench, kind, lr, seed)
    cost = bench.cost_of(lambda x, y: timed(x, None if y is None else y.clamp(min=0)), seed)
    peer = Peer(bench, kind, lr, seed)  # anew: the other one has moved
    steps = max(1, round(bench.steps / cost))
    _, training = bench.configs(VARIANTS[BASELINE], steps, seed, label_drop=0.0, lr=lr, final_lr=min(lr, 1e-6))
    started = time.perf_counter()
    for step in range(steps):
        rate = learning_rate(step, config=training, steps=steps, warmup=training.warmup_steps or 0)
        set_learning_rate(peer.optimizer, rate)
        peer(*bench.batch(step, training))
    seconds = time.perf_counter() - started
    with torch.no_grad():
        mean, error = mean_and_error(score(bench, peer.log_prob))
    row = {"variant": kind, "lr": lr, "seed": seed, "cost": cost, "steps": steps, "seconds": seconds}
    row["parameters"] = sum(p.numel() for p in peer.model.parameters())
    return row | {"bits_per_dim": mean if math.isfinite(mean) else None, "standard_error": error}


def score(bench: Bench, log_prob: LogProb, batch: int = 200) -> Tensor:
    """Bits/dim of each held-out image, in the noise that `evaluate_likelihood` draws for it."""
    measure, found = Measure(bench.splits.train.levels), []
    for start in range(0, len(bench.held_out), batch):
        pixels = bench.held_out[start : start + batch]
        noise = [seeded_generator(0, "evaluation", 0, start + k) for k in range(len(pixels))]
        x = measure.noisy(pixels, noise)
        labels = None if bench.held_out_labels is None else bench.held_out_labels[start : start + batch]
        found.append(measure.bits_per_dim(log_prob(x, labels).double(), pixels[0].numel()))
    return torch.cat(found)


def gaussian(bench: Bench) -> dict[str, Any]:
    """The row of the Gaussian."""
    train = bench.splits.train
    yardstick = fit_yardstick(train.images, Measure(train.levels))
    assert isinstance(yardstick, GaussianYardstick)
    mean, error = mean_and_error(score(bench, lambda x, y: yardstick.log_prob(x)))
    return {"variant": GAUSSIAN, "lr": None, "seed": 0, "bits_per_dim": mean, "standard_error": error}


def main(argv: Sequence[str]) -> int:
    """Run what is not in the file yet; 2 after bad input, with one line."""
    parser = parser_of("peers")
    parser.add_argument("--flows", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--lrs", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args(argv)
    if importlib.util.find_spec("normflows") is None:
        print("normflows: not installed; pip install normflows", file=sys.stderr)
        return 2
    try:
        bench = open_bench(options)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    result = read(options.out) or describe(bench, options)
    done = {(row["variant"], row["lr"], row["seed"]) for row in result["rows"]}
    if (GAUSSIAN, None, 0) not in done:
        _keep(result, gaussian(bench), options.out)
    for seed in options.seeds:
        for kind in map(NAMES.__getitem__, options.flows):
            for lr in options.lrs:
                if (kind, lr, seed) not in done:
                    _keep(result, train(bench, kind, lr, seed), options.out)
    return 0


def _keep(result: dict[str, Any], row: dict[str, Any], path: Path) -> None:
    result["rows"].append(row)
    write(path, result)
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

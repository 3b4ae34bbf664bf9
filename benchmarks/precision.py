"""What float32, TF32 and bf16 products cost in bits/dim, against float64, and what they take in a training step.

    python -m benchmarks.precision RUN [--images 256] [--device cuda] [--out FILE.json]

RUN is a run directory whose images are still where they were. Scored are its held-out images, each under one draw of
the noise of its training, the same in every precision; the difference is that of bits/dim, image by image.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.rates import synchronise
from tarflow.checkpoint import Run, open_run
from tarflow.devices import numbered
from tarflow.planning.work import training_flops
from tarflow.run_data import open_held_out
from tarflow.sampling.narrow import narrowed
from tarflow.seeding import seeded_generator
from tarflow.training.build import build_step
from tarflow.training.engine import Engine, Products

BATCH, STEPS = 64, 10


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    device = numbered(args.device)
    run = open_run(args.run, device)
    held_out = open_held_out(run).choice(args.images, 0)
    known: list[Products] = ["float32", "tf32", "bf16"] if device.type == "cuda" else ["float32", "bf16"]
    result = {
        "images": len(held_out),
        "bits_per_dim_error": errors(run, held_out.images, held_out.labels, known, device),
        "step": {products: step_time(run, products, device) for products in known},
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")
    return 0


@torch.no_grad()
def errors(
    run: Run, pixels: Tensor, labels: Tensor | None, known: Sequence[Products], device: torch.device
) -> dict[str, Any]:
    """Mean and root mean square of bits/dim minus those in float64, and what float64 says."""
    training = run.config.training
    assert training is not None
    generators = [seeded_generator(0, "evaluation", 0, k) for k in range(len(pixels))]
    x = run.measure.noisy(pixels, generators).to(device)
    y = labels.to(device) if labels is not None and run.config.model.num_classes else None
    scale = -1 / (run.config.model.num_dims * 0.6931471805599453)
    exact = scale * scores(copy.deepcopy(run.flow).double(), x.double(), y)
    found: dict[str, Any] = {"float64": {"mean": float(exact.mean())}}
    for products in known:
        engine = Engine(dataclasses.replace(training, precision=products), device)
        engine.set_up(copy.deepcopy(run.flow))
        with engine.precision():
            difference = scale * scores(engine, x, y) - exact
        found[products] = {"mean": float(difference.mean()), "rms": float(difference.square().mean().sqrt())}
    narrow = scale * scores(narrowed(run.flow), x, y) - exact
    found["narrowed"] = {"mean": float(narrow.mean()), "rms": float(narrow.square().mean().sqrt())}
    return found


def scores(model: Any, x: Tensor, y: Tensor | None) -> Tensor:
    """log p of each image, nats, in float64."""
    flow = model.model if isinstance(model, Engine) else model
    parts = []
    for start in range(0, len(x), BATCH):
        rows = slice(start, start + BATCH)
        z, ladj = model(x[rows], None if y is None else y[rows])
        parts.append((flow.base.log_prob(z) + ladj).sum(dim=1).double())
    return torch.cat(parts)


def step_time(run: Run, products: Products, device: torch.device) -> dict[str, float]:
    """Seconds of a training step of the run's size, best of three rounds, and its FLOP/s."""
    config = run.config
    assert config.training is not None
    training = dataclasses.replace(config.training, precision=products)
    torch._dynamo.reset()
    engine = Engine(training, device)
    step = build_step(dataclasses.replace(config, training=training), engine, None)
    x = torch.rand(training.batch_size, config.model.channels, *config.model.image_shape, device=device) * 2 - 1
    y = torch.arange(len(x), device=device) % config.model.num_classes if config.model.num_classes else None
    best = float("inf")
    with engine.precision():
        for _ in range(4):
            synchronise(device)
            started = time.perf_counter()
            for _ in range(STEPS if device.type == "cuda" else 1):
                step(x, y)
            synchronise(device)
            best = min(best, (time.perf_counter() - started) / (STEPS if device.type == "cuda" else 1))
    return {"seconds": best, "flops_per_second": training_flops(config.model, len(x)) / best}


if __name__ == "__main__":
    sys.exit(main())

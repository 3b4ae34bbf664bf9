"""What drawing a region given the rest is worth, and what gradients through sampling cost.

    python -m benchmarks.inference --part regions --out benchmarks/results/inference-regions.json
    python -m benchmarks.inference --part gradients --out benchmarks/results/inference-gradients.json

**regions.** A small flow learns sines at eight moments. Its samples have their later half drawn anew, given the earlier
one of each. What comes out is distributed as samples where the draws are exact, so that a classifier (`c2st`) cannot
tell them from others: 0.5. Its blocks walk forwards and backwards in turn; `resample` keeps the first half of what goes
into the first block, `inpaint` conditions on it. For each of some seeds.

**chains.** A region of a sample of a shipped model drawn anew, given the rest and its class: what chains are worth, for
the number that mixes worst, for each second of processor time. `--code` names the code that runs, as rows of others
are kept; the one "before" ran with `--leapfrog 10`.

    python -m benchmarks.inference --part chains --models digits --out benchmarks/results/inference-chains.json
    python -m benchmarks.inference --part chains --models fashion-mnist --regions half square --processor-seconds 30

**widths.** How steep log p is in what the first block makes of the pixels of samples (the root mean square derivative
by one number), by where that number lies, and how many of those are out of the range of pixels.

    python -m benchmarks.inference --part widths --out benchmarks/results/inference-widths.json

**gradients.** Seconds of drawing and differentiating, and the peak of memory, of `rsample`'s way through a decode
beside autograd through `flow.decode`: each in a process of its own, in turn, on one thread.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

import tarflow
from tarflow.inference import hmc
from tarflow.inference.calibration import c2st
from tarflow.sampling.implicit import decode_with_gradients

WAYS, TOKENS = ("decode", "rsample"), 8


def waves(count: int, seed: int) -> torch.Tensor:
    """Sines of any phase, amplitude and frequency, seen through noise at eight moments: (count, 8, 1)."""
    generator = torch.Generator().manual_seed(seed)
    phase, pace, size = (torch.rand(count, 1, generator=generator) for _ in range(3))
    moments = torch.arange(TOKENS) * (0.5 + pace) + 2 * torch.pi * phase
    noise = 0.1 * torch.randn(count, TOKENS, generator=generator)
    return ((0.5 + size) * moments.sin() + noise).unsqueeze(2)


def regions(count: int, steps: int, warmup: int, leapfrog: int, seed: int) -> dict[str, Any]:
    """Accuracy of a classifier between `count` samples of a flow and as many of which the later half was drawn anew."""
    torch.manual_seed(seed)
    config = tarflow.SequenceConfig(tokens=TOKENS, dim=1, width=32, head_dim=16, layers=(1, 1, 1), start_token=True)
    flow = tarflow.SequenceFlow(config)
    fitted = flow.fit(waves(4000, seed), steps=400, seed=seed)
    flow.requires_grad_(False)
    x, others = (tarflow.sample(flow, count, seed=seed + k) for k in (1, 2))
    mask = (torch.arange(TOKENS) >= TOKENS // 2).unsqueeze(1)
    began = time.perf_counter()
    drawn = tarflow.inpaint(flow, x, mask, chains=1, steps=steps, warmup=warmup, leapfrog=leapfrog, seed=seed + 3)
    seconds = time.perf_counter() - began
    resampled = tarflow.resample(flow, x, keep=TOKENS // 2, seed=seed + 4)
    mixed = torch.where(mask, x.roll(1, 0), x)
    found = {"inpaint": drawn.samples[0], "resample": resampled, "halves of others": mixed, "untouched": x}
    rows = {}
    for name, events in found.items():
        accuracy = c2st(others, events, seed=seed)
        rows[name] = {"c2st": float(accuracy.mean), "error": float(accuracy.error)}
        print(f"seed {seed}, {name}: {accuracy}", flush=True)
    return {
        **{"count": count, "steps": steps, "warmup": warmup, "leapfrog": leapfrog, "seed": seed, "seconds": seconds},
        **{"rows": rows, "acceptance": float(drawn.acceptance.mean()), "fit": str(fitted)},
        "effective_sample_size_of_a_chain": float(drawn.effective_sample_size.median()),
    }


def region_of(name: str, height: int, width: int) -> torch.Tensor:
    """Pixels (H, W) of the lower half, of a square near a corner, or of a hole in the middle."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    rows, columns = {
        "half": (slice(height // 2, height), slice(None)),
        "square": (slice(height // 7, 3 * height // 7), slice(width // 7, 3 * width // 7)),
        "hole": (slice(2 * height // 7, 5 * height // 7), slice(2 * width // 7, 5 * width // 7)),
    }[name]
    mask[rows, columns] = True
    return mask


def chains(model: str, region: str, seed: int, options: dict[str, Any]) -> dict[str, Any]:
    """What chains in a region of one sample are worth; `seconds` of the options are of processor time."""
    torch.set_num_threads(1)
    hmc.time = types.SimpleNamespace(monotonic=time.process_time)  # type: ignore[assignment, attr-defined]
    run = tarflow.open_run(model)
    flow, c = run.flow.requires_grad_(False), torch.tensor([seed + 1])
    x = tarflow.sample(flow, 1, c, seed=100 + seed, denoise=run.sigma)
    began = time.process_time()
    drawn = tarflow.inpaint(flow, x, region_of(region, *x.shape[2:]), c, denoise=run.sigma, seed=seed, **options)
    seconds = time.process_time() - began
    worth = float(drawn.effective_sample_size[0])
    return {
        **{"model": model, "region": region, "seed": seed, **options, "seconds": seconds},
        **{"acceptance": float(drawn.acceptance[0]), "effective_sample_size": worth, "a_second": worth / seconds},
        **{"rhat": float(drawn.rhat[0]), "bound": getattr(drawn, "bound", None)},
    }


def widths(model: str, rows: int) -> list[dict[str, Any]]:
    """Of numbers v between two edges: how many, the share of them out of range, and the derivative of log p by them."""
    torch.set_num_threads(1)
    flow = tarflow.open_run(model).flow.requires_grad_(False)
    c = flow.check_condition(torch.arange(rows) % 10, rows)
    x = tarflow.sample(flow, rows, c, seed=4)
    v, _ = flow.blocks[0].encode(flow.event.to_tokens(x)[0], c)
    v = v.requires_grad_()
    z, total = v, torch.zeros(rows)
    for block in flow.blocks[1:]:
        z, ladj = block.encode(z, c)
        total = total + ladj.sum(dim=1)
    (slope,) = torch.autograd.grad((total + flow.base.log_prob(z).sum(dim=1)).sum(), [v])
    outside = (flow.event.to_tokens(x)[0].abs() > 1).float()
    edges = [-9.0, -2.6, -2.4, -2.2, -2.0, -1.0, 0.0, 1.0, 2.0, 9.0]
    found = []
    for low, high in itertools.pairwise(edges):
        inside = (v >= low) & (v < high)
        steep, share = float(slope[inside].square().mean().sqrt()), float(outside[inside].mean())
        found.append({"from": low, "to": high, "numbers": int(inside.sum()), "outside": share, "derivative": steep})
        print(json.dumps(found[-1]), flush=True)
    return found


def one_gradient(way: str, tokens: int, rows: int) -> dict[str, float]:
    """Seconds forwards and backwards, and MiB above what the process had before: one draw by one way."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    side = int(tokens**0.5) * 2
    config = tarflow.TarFlowConfig(side, channels=3, patch_size=2, width=128, layers=(2, 2, 2, 2))
    flow = tarflow.TarFlow(config)
    with torch.no_grad():
        for block in flow.blocks:
            block.proj_out.weight.normal_(0, 0.15 * 128**-0.5)
    flow.log_prob(torch.zeros(1, 3, side, side)).sum().backward()  # what PyTorch does at first
    z = torch.randn(rows, tokens, 12, requires_grad=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    x = (
        flow.decode(z)
        if way == "decode"
        else flow.event.from_tokens(decode_with_gradients(flow, z, None, "sequential"))
    )
    middle = time.perf_counter()
    x.square().sum().backward()
    ended = time.perf_counter()
    assert z.grad is not None
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"forward": middle - began, "backward": ended - middle, "MiB": memory, "gradient": float(z.grad.norm())}


def gradients(cases: Sequence[tuple[int, int]], rounds: int) -> list[dict[str, Any]]:
    """Every case by every way, `rounds` times in turn, each in a process of its own; medians."""
    results = []
    for tokens, rows in cases:
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way in WAYS:
                command = [sys.executable, "-m", "benchmarks.inference", "--one", way, str(tokens), str(rows)]
                ran = subprocess.run(command, capture_output=True, text=True, check=True)
                runs[way].append(json.loads(ran.stdout))
        row: dict[str, Any] = {"tokens": tokens, "rows": rows}
        for way, found in runs.items():
            row[way] = {key: median(each[key] for each in found) for key in found[0]}
        results.append(row)
        print(json.dumps(row), flush=True)
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure one part, print it, and write it where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("regions", "chains", "widths", "gradients"), default="regions")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="of the part on regions")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=120)
    parser.add_argument("--leapfrog", type=int, help="8, and of the part on chains what warm-up finds")
    parser.add_argument("--models", nargs="*", default=["digits"], help="of the part on chains")
    parser.add_argument("--chains", type=int, default=8, help="of the part on chains")
    parser.add_argument("--regions", nargs="*", default=["half"], help="of the part on chains")
    parser.add_argument("--code", default="now", help="of the part on chains: what rows of this code are called")
    parser.add_argument("--processor-seconds", type=float, help="of the part on chains: in place of steps and warmup")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, nargs="*", default=[16, 64], help="squares; of the part on gradients")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(one_gradient(options.one[0], int(options.one[1]), int(options.one[2]))))
        return 0
    if options.part == "chains":
        given: Any = {"chains": options.chains, "steps": options.steps, "warmup": options.warmup}
        if options.processor_seconds:
            given |= {"steps": 1000, "warmup": 1000, "seconds": options.processor_seconds}
        given |= {"leapfrog": options.leapfrog} if options.leapfrog else {}
        known = json.loads(options.out.read_text())["result"] if options.out and options.out.exists() else []
        for model, region, seed in itertools.product(options.models, options.regions, options.seeds):
            key = options.code, model, region, seed
            if any((r["code"], r["model"], r["region"], r["seed"]) == key for r in known):
                continue
            known.append({"code": options.code, **chains(model, region, seed, given)})
            print(json.dumps(known[-1]), flush=True)
            if options.out:
                options.out.write_text(json.dumps({"torch": torch.__version__, "result": known}, indent=1) + "\n")
        return 0
    if options.part == "regions":
        shape = options.count, options.steps, options.warmup, options.leapfrog or 8
        result: Any = [regions(*shape, seed) for seed in options.seeds]
    elif options.part == "widths":
        result = widths("fashion-mnist", 40)
    else:
        result = gradients([(tokens, options.rows) for tokens in options.tokens], options.rounds)
    if options.out:
        options.out.write_text(json.dumps({"torch": torch.__version__, "result": result}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

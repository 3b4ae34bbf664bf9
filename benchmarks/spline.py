"""What the spline costs: beside the affine transform alone, in a training step of a block, and in decoding.

    OMP_WAIT_POLICY=passive python -m benchmarks.spline --out benchmarks/results/spline-cpu.json
    OMP_WAIT_POLICY=passive python -m benchmarks.spline --only drawing --out benchmarks/results/spline-cpu.json
    python -m benchmarks.spline --device cuda --batch 128 --only transform "training step" --out FILE.json

A block of the cifar10 recipe's size and one of the best recipe's on CIFAR-10, with random output layers, each with the
affine transform and with the spline, in C, in PyTorch's operations, and in those compiled; and drawing from all eight
blocks of the best recipe, with what stands in `WHOLE` and without it. On a CPU seconds are the processor's, of all
threads, the sides take turns, and ratios are the median of those within a turn: other processes slow both. A thread
that waits for another, with a passive policy, takes none. What is measured again replaces what the file had of it; the
rest stays.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import operator
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn

import tarflow
from benchmarks.bench import read, spent
from tarflow.model import spline_native
from tarflow.model.block import Block

CPU = torch.device("cpu")
SIZES: dict[str, dict[str, Any]] = {
    "cifar10": dict(tokens=256, dim=12, width=256, layers=(6,)),
    "best": dict(tokens=64, dim=48, width=64, layers=(1,)),
}
BATCH = {"cifar10": 4, "best": 32}
DECODED = (1, 16)  # images
PARTS = ("transform", "output layer", "training step", "decoding", "drawing")
FEWER = (3, 4)  # bins than the 8 of all others
AFFINE = ("affine",)
MIXED = ("affine-mixed",)
WHOLE: dict[str, dict[str, Any]] = {  # of eight blocks
    "affine": dict(transforms=AFFINE * 8),
    "mixed": dict(transforms=MIXED * 8),
    "spline in block 0": dict(transforms=("spline",) + AFFINE * 7),
    "spline, mixed, start token": dict(transforms=("spline",) + MIXED * 7, start_token=True),
    "spline by number, mixed, start token": dict(transforms=("spline-by-number",) + MIXED * 7, start_token=True),
}
LEAST = 0.02  # seconds of a timing, which is repeated until then


class Place(NamedTuple):
    """Where it is measured, on how many images at once where there is a choice, and what compiles."""

    device: torch.device = CPU
    batch: int | None = None
    backend: str = "inductor"

    def rows(self, size: str) -> int:
        return self.batch or BATCH[size]


HERE = Place()


Work = Callable[[], object]


def flow_of(size: str, transform: str, bins: int = 8, **fields: Any) -> tarflow.SequenceFlow:
    """A flow of one block, or what `fields` make of it, whose output layers are not zero."""
    torch.manual_seed(0)
    given = SIZES[size] | dict(transforms=(transform,), bins=bins, log_scale_bound=4.0) | fields
    flow = tarflow.SequenceFlow(tarflow.SequenceConfig(**given))
    for block in flow.blocks:
        nn.init.normal_(block.proj_out.weight, std=0.5 * flow.sequence.width**-0.5)
    return flow


def block_of(size: str, transform: str, place: Place, bins: int = 8) -> Block:
    """The one block of such a flow."""
    block: Block = flow_of(size, transform, bins).to(place.device).blocks[0]
    return block


def compiled_block(size: str, place: Place) -> Block:
    """The one with a spline, which is compiled as it is in training on a GPU."""
    block = block_of(size, "spline", place)
    block.transform.compile(backend=place.backend, dynamic=False)
    return block


@contextlib.contextmanager
def operations() -> Iterator[None]:
    """Within it a spline is computed by PyTorch's operations."""
    with mock.patch.object(spline_native, "compiled", lambda *_: None):
        yield


def in_operations(work: Work) -> Work:
    """The same work by PyTorch's operations."""

    def slow() -> object:
        with operations():
            return work()

    return slow


def gradients(forward: Callable[..., tuple[Tensor, Tensor]], given: Sequence[Tensor], of: Sequence[Tensor]) -> Work:
    """A forward pass of z and ladj, and the gradients of the objective."""

    def work() -> object:
        z, ladj = forward(*given)
        return torch.autograd.grad(0.5 * z.square().sum() - ladj.sum(), of)

    return work


def transforms(size: str, place: Place) -> dict[str, Work]:
    """Forward and backward of the transform alone, and its inverse."""
    work: dict[str, Work] = {}
    blocks = {name: block_of(size, name, place) for name in ("affine", "spline")}
    for name, block in (blocks | {"spline, compiled": compiled_block(size, place)}).items():
        shape = (place.rows(size), block.config.tokens - 1, block.config.dim)
        x = (torch.rand(shape, device=place.device) * 2 - 1).requires_grad_()
        params = block.conditioner(x, None).detach().requires_grad_()
        work[name] = gradients(block.transform, (x, params), (x, params))
        with torch.no_grad():
            z = block.transform(x, params)[0]
        work[f"{name}, inverse"] = functools.partial(torch.no_grad()(block.transform.inverse), z, params)
    del work["spline, compiled, inverse"]  # which is not
    for name in ("spline", "spline, inverse"):
        work[f"{name}, operations"] = in_operations(work[name])
    return work


def output_layers(size: str, place: Place) -> dict[str, Work]:
    """Forward and backward of the layers that predict the parameters."""
    work: dict[str, Work] = {}
    for name in ("affine", "spline"):
        layer = block_of(size, name, place).proj_out
        rows = place.rows(size) * (SIZES[size]["tokens"] - 1)
        h = torch.randn(rows, layer.in_features, device=place.device, requires_grad=True)
        work[name] = functools.partial(_product, layer, h, torch.randn(rows, layer.out_features, device=place.device))
    return work


def _product(layer: nn.Module, h: Tensor, along: Tensor) -> object:
    return torch.autograd.grad(layer(h), (h, *layer.parameters()), along)


def training_steps(size: str, place: Place) -> dict[str, Work]:
    """A training step of a block, without the optimizer: forward, and all gradients."""
    work: dict[str, Work] = {}
    blocks = {name: block_of(size, name, place) for name in ("affine", "spline")}
    blocks |= {f"spline, {bins} bins": block_of(size, "spline", place, bins) for bins in FEWER}
    for name, block in (blocks | {"spline, compiled": compiled_block(size, place)}).items():
        x = torch.rand(place.rows(size), block.config.tokens, block.config.dim, device=place.device) * 2 - 1
        work[name] = gradients(block.encode, (x,), tuple(block.parameters()))
    work["spline, operations"] = in_operations(work["spline"])
    return work


def decoding(size: str, place: Place, batch: int) -> dict[str, Work]:
    """Decoding a block by the sequential solver."""
    work: dict[str, Work] = {}
    for name in ("affine", "spline"):
        flow = flow_of(size, name).to(place.device)
        noise = torch.randn(batch, flow.sequence.tokens, flow.sequence.dim, device=place.device)
        work[name] = functools.partial(tarflow.sample, flow, batch, noise=noise, solver="sequential")
    work["spline, operations"] = in_operations(work["spline"])
    return work


def drawing(place: Place, batch: int) -> dict[str, Work]:
    """Drawing from the flows of `WHOLE`, of the best recipe's size, by the sequential solver."""
    work: dict[str, Work] = {}
    side = math.isqrt(SIZES["best"]["tokens"])
    for name, fields in WHOLE.items():
        blocks: dict[str, Any] = {"layers": (1,) * 8, "rotary": True, "lattice": (side, side)}
        flow = flow_of("best", "affine", **blocks | fields).to(place.device)
        noise = torch.randn(batch, flow.sequence.tokens, flow.sequence.dim, device=place.device)
        work[name] = functools.partial(tarflow.sample, flow, batch, noise=noise, solver="sequential")
    return work


def paired(sides: Mapping[str, Work], turns: int, device: torch.device = CPU) -> dict[str, Any]:
    """Median milliseconds of each side, and of its ratios to the first one in the same turn."""
    repeats = {}
    for name, work in sides.items():
        work()
        repeats[name] = max(1, round(LEAST / max(1e-6, spent(work, device))))
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, work in sides.items():
            times[name].append(spent(functools.partial(_repeated, work, repeats[name]), device) / repeats[name])
    first = next(iter(times.values()))
    return {
        name: {
            "milliseconds": round(1e3 * statistics.median(found), 4),
            "ratio": round(statistics.median(a / b for a, b in zip(found, first, strict=True)), 3),
        }
        for name, found in times.items()
    }


def _repeated(work: Work, count: int) -> None:
    for _ in range(count):
        work()


def measure(
    turns: int, threads: Sequence[int], only: Sequence[str] = (), place: Place = HERE
) -> Iterator[dict[str, Any]]:
    """A row for each size, number of threads, and thing that is measured, or those of `PARTS` alone that `only` has."""
    parts: dict[str, Callable[[str, Place], dict[str, Work]]] = {
        "transform": transforms,
        "output layer": output_layers,
        "training step": training_steps,
        **{f"decoding {batch}": functools.partial(decoding, batch=batch) for batch in DECODED},
    }
    cases = [(size, part, functools.partial(make, size, place)) for size in SIZES for part, make in parts.items()]
    cases += [("best", f"drawing {batch}", functools.partial(drawing, place, batch)) for batch in DECODED]
    for count in threads:
        torch.set_num_threads(count)
        for size, what, made in cases:
            if not only or what.rstrip(" 0123456789") in only:
                yield {"size": size, "threads": count, "what": what, "sides": paired(made(), turns, place.device)}


def described(device: torch.device) -> str:
    """What it is measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, a shared machine with {os.cpu_count()} cores"


def as_text(row: Mapping[str, Any]) -> str:
    """A row as a line."""
    sides = ", ".join(f"{name} {side['milliseconds']:.3g} ({side['ratio']:.3g})" for name, side in row["sides"].items())
    return f"{row['size']}, {row['threads']} thread(s), {row['what']}: {sides}"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write the file anew after each row."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.spline", description=__doc__, allow_abbrev=False)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[], help="what is measured; all of it otherwise")
    parser.add_argument("--device", type=torch.device, default=CPU)
    parser.add_argument("--batch", type=int, help="images of what is no decoding; each size's own when not given")
    parser.add_argument("--backend", default="inductor", help="what compiles")
    options = parser.parse_args(argv)
    place = Place(options.device, options.batch, options.backend)
    key = operator.itemgetter("size", "threads", "what")
    rows = {key(row): row for row in (read(options.out) or {"rows": []})["rows"]}
    result: dict[str, Any] = {
        "sizes": {name: SIZES[name] | {"batch": place.rows(name)} for name in SIZES},
        "device": described(place.device),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "rows": [],
    }
    for row in measure(options.turns, options.threads, options.only, place):
        rows[key(row)] = row
        result["rows"] = list(rows.values())
        options.out.write_text(json.dumps(result, indent=1) + "\n")
        print(as_text(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What `python -m benchmarks.compare` can be told, and what of it is refused."""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from benchmarks.models import MADE
from benchmarks.official import GSJacobi
from benchmarks.sampling import DTYPES, Settings
from tarflow.config import TarFlowConfig
from tarflow.devices import NAMES
from tarflow.sampling.solver import SOLVERS

# Options that make the model where the weights are made here; with a run or a file they would contradict it.
ARCHITECTURE: dict[str, Any] = {
    "image_size": 32,
    "channels": 3,
    "patch_size": 2,
    "width": 256,
    "layers": [4, 4, 4, 4],
    "classes": 10,
}
PRESETS: dict[str, dict[str, Any]] = {
    # The paper's ImageNet-64 on a GPU. The official code takes half a minute and more for all eight blocks, hence two.
    "gpu": {
        "image_size": 64,
        "width": 768,
        "layers": [8] * 8,
        "classes": 1000,
        "device": "cuda",
        "dtype": "bf16",
        "batches": [1, 64],
        "guidance": [0.0],
        "pairs": 2,
        "growth": [],
        "official_blocks": 2,
        "minutes": 7.0,
    },
}
PATHS = {"--official": "ML_TARFLOW", "--gs-jacobi": "GS_JACOBI", "--weights": "WEIGHTS", "--out": "FILE.json"}
EPILOG = (
    """The default model is 3x32x32, patch 2, width 256, 4 blocks of 4 layers, 10 classes. See benchmarks/README.md."""
)


class _Parser(argparse.ArgumentParser):
    """Bad arguments are one line, which the caller prints."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parser() -> argparse.ArgumentParser:
    """Every option, with its default."""
    p = _Parser(prog="python -m benchmarks.compare", description=__doc__, epilog=EPILOG, allow_abbrev=False)
    p.description = "Sampling against the official code: same weights, same noise, same run."
    p.add_argument("--official", type=Path, metavar="DIR", help="a clone of apple/ml-tarflow; needed")
    p.add_argument("--gs-jacobi", type=Path, metavar="DIR", help="a clone of encoreus/GS-Jacobi_for_TarFlow")
    p.add_argument("--preset", choices=PRESETS, help="defaults of the options below for a larger machine")
    p.add_argument("--out", type=Path, metavar="FILE.json", help="write everything that was measured")
    p.add_argument("--note", default="", help="a sentence that goes into the result, such as how weights were trained")

    model = p.add_argument_group("model")
    model.add_argument("--weights", default="fresh", help="fresh, hard, a run directory, or an official checkpoint")
    model.add_argument("--image-size", type=int)
    model.add_argument("--channels", type=int)
    model.add_argument("--patch-size", type=int)
    model.add_argument("--width", type=int)
    model.add_argument("--layers", type=int, nargs="+", help="of each block")
    model.add_argument("--classes", type=int)

    cases = p.add_argument_group("cases")
    cases.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    cases.add_argument(
        "--guidance", type=float, nargs="+", default=[0.0, 1.0], help="scales, linear schedule; 0 is off"
    )
    cases.add_argument("--temperature", type=float, default=1.0, help="of the unguided branch's attention")
    cases.add_argument("--solvers", nargs="+", default=["auto", "sequential", "jacobi"], help="of ours")
    cases.add_argument("--pairs", type=int, default=3, help="interleaved timings of every side")
    cases.add_argument("--device", default="auto", choices=NAMES)
    cases.add_argument("--dtype", default="float32", choices=tuple(DTYPES))
    cases.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch on the CPU")
    cases.add_argument(
        "--memory",
        type=int,
        nargs="*",
        metavar="BATCH",
        help="batches whose peak memory is measured on the CPU, a process a side; the largest when not given",
    )
    cases.add_argument("--official-blocks", type=int, metavar="K", help="the others run K blocks, times are scaled up")
    cases.add_argument("--minutes", type=float, help="start nothing after these; what was left out is listed")
    cases.add_argument("--reference-images", type=int, default=2, help="compared with the reference decode")
    cases.add_argument("--reference-seconds", type=float, default=60.0, help="… if it takes no longer than about that")

    growth = p.add_argument_group("growth with the number of patches")
    growth.add_argument(
        "--growth", type=int, nargs="*", default=[64, 256, 1024], metavar="T", help="none: leave it out"
    )
    growth.add_argument("--growth-batches", type=int, nargs="+", default=[1])
    growth.add_argument("--growth-layers", type=int, nargs="+", help="of each block; the model's when not given")
    growth.add_argument("--growth-weights", choices=MADE, default="fresh")
    growth.add_argument("--growth-pairs", type=int, default=1)

    gs = p.add_argument_group("settings of GS-Jacobi, for every block")
    gs.add_argument("--gs-windows", type=int, default=8, help="num_GS; 1 is plain Jacobi")
    gs.add_argument("--gs-iterations", type=int, default=32, help="max_jacobi, of each window")
    gs.add_argument("--gs-bound", type=float, default=1e-6, help="ebound")
    return p


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options, those of a preset where they are not given, with `config` and `settings` made of them.

    Raises ValueError naming the option that is wrong.
    """
    p = parser()
    preset = PRESETS.get(p.parse_known_args(argv)[0].preset or "", {})
    p.set_defaults(**{name: value for name, value in preset.items() if name not in ARCHITECTURE})
    options = p.parse_args(argv)
    if options.official is None:
        raise ValueError("--official: missing; expected a clone of apple/ml-tarflow")
    given = [name for name in ARCHITECTURE if getattr(options, name) is not None]
    if options.weights not in MADE and given:
        raise ValueError(f"--{given[0].replace('_', '-')}: comes with the weights {options.weights}")
    architecture = ARCHITECTURE | {name: value for name, value in preset.items() if name in ARCHITECTURE}
    architecture |= {name: getattr(options, name) for name in given}
    options.config = TarFlowConfig(
        image_size=architecture["image_size"],
        patch_size=architecture["patch_size"],
        width=architecture["width"],
        layers=tuple(architecture["layers"]),
        channels=architecture["channels"],
        num_classes=architecture["classes"],
        log_scale_bound=None,
    )
    known = list(SOLVERS)
    for holds, name, expected in (
        (set(options.solvers) <= set(known), "solvers", f"some of {', '.join(known)}"),
        (len(set(options.solvers)) == len(options.solvers), "solvers", "each at most once"),
        (min(options.batches) >= 1, "batches", "positive numbers"),
        (all(math.isfinite(g) and g >= 0 for g in options.guidance), "guidance", "numbers of 0 or more"),
        (set(options.memory or ()) <= set(options.batches), "memory", f"some of the batches {options.batches}"),
        (options.pairs >= 1, "pairs", "a positive number"),
        (options.threads >= 1, "threads", "a positive number"),
        (options.minutes is None or options.minutes > 0, "minutes", "a positive number"),
        (options.reference_images >= 1, "reference_images", "a positive number"),
        (options.reference_seconds >= 0, "reference_seconds", "0 or more"),
        (all(t > 1 and math.isqrt(t) ** 2 == t for t in options.growth), "growth", "squares above 1, as 64 is"),
        (min(options.growth_batches) >= 1, "growth_batches", "positive numbers"),
        (options.growth_layers is None or min(options.growth_layers) >= 1, "growth_layers", "positive numbers"),
        (options.growth_pairs >= 1, "growth_pairs", "a positive number"),
        (options.gs_windows >= 1, "gs_windows", "a positive number"),
        (options.gs_iterations >= 1, "gs_iterations", "a positive number"),
        (options.gs_bound >= 0, "gs_bound", "0 or more"),
    ):
        if not holds:
            raise ValueError(f"--{name.replace('_', '-')}: expected {expected}, got {getattr(options, name)}")
    if options.out is not None and not options.out.absolute().parent.is_dir():
        raise FileNotFoundError(f"{options.out.parent}: no such directory; --out is a file in one that exists")
    options.settings = Settings(
        solvers=tuple(options.solvers),
        dtype=options.dtype,
        temperature=options.temperature,
        gs_jacobi=GSJacobi(options.gs_windows, options.gs_iterations, options.gs_bound),
        reference_images=options.reference_images,
        reference_seconds=options.reference_seconds,
        memory=tuple([max(options.batches)] if options.memory is None else options.memory),
        threads=options.threads,
    )
    return options


def check_against(options: argparse.Namespace, config: TarFlowConfig) -> None:
    """Raise ValueError where options do not fit the model that the weights turned out to be of."""
    blocks = len(config.layers)
    if options.official_blocks is not None and not 1 <= options.official_blocks <= blocks:
        raise ValueError(f"--official-blocks: expected 1 to {blocks}, got {options.official_blocks}")
    if options.gs_jacobi is not None:
        for patches in [config.num_patches, *options.growth]:
            if patches % options.gs_windows:
                raise ValueError(f"--gs-windows: expected a divisor of {patches} patches, got {options.gs_windows}")


def command(argv: Sequence[str]) -> str:
    """The command line without the paths of this machine."""
    words, follows = [], None
    for word in argv:
        name, equals, value = word.partition("=")
        if follows is not None and word not in MADE:
            words.append(PATHS[follows])
        elif equals and name in PATHS and value not in MADE:
            words.append(f"{name}={PATHS[name]}")
        else:
            words.append(word)
        follows = word if word in PATHS else None
    return shlex.join(["python", "-m", "benchmarks.compare", *words])

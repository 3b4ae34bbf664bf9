"""One case of the comparison: a batch, a guidance, every side; do they agree, and how long does each take?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import tarflow
from benchmarks import floor, memory, models, official, rates
from benchmarks.timing import Budget, Run, interleave, summary, timed
from tarflow.sampling.narrow import narrowed

TOLERANCE = 1e-3  # of |a - b| / max(1, |b|), the worst over all numbers of all images that are compared
REFERENCE, OFFICIAL_CODE = "reference decode", "official code"
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Settings:
    """What holds for every case of a run.

    Attributes:
        solvers: of ours, each a side of its own.
        dtype: of ours: its weights; theirs run float32 weights under autocast to it.
        temperature: of the attention in the unguided branch.
        gs_jacobi: settings of the second code.
        reference_images: so many images are compared with `TarFlow.decode`.
        reference_seconds: … if that is estimated to take no longer.
        memory: batches for which peak memory is measured on the CPU, in a process of its own for each side.
        threads: of torch on the CPU.
    """

    solvers: tuple[str, ...] = ("auto", "sequential", "jacobi")
    dtype: str = "float32"
    temperature: float = 1.0
    gs_jacobi: official.GSJacobi = field(default_factory=official.GSJacobi)
    reference_images: int = 2
    reference_seconds: float = 60.0
    memory: tuple[int, ...] = ()
    threads: int = 1


@dataclass
class Subject:
    """A flow as every side holds it.

    Attributes:
        flow: ours, whole, in the dtype of the run: what is timed.
        narrow: the blocks that the others run, in the dtype of the run.
        checked: the same blocks in float32: what is compared, and what the others hold.
        others: their models by the name of the code.
        clones: where they come from.
        noise: (n, T, D) for the largest batch.
        references: what `TarFlow.decode` made of the first images, once it has been asked.
    """

    flow: tarflow.TarFlow
    narrow: tarflow.TarFlow
    checked: tarflow.TarFlow
    others: dict[str, nn.Module]
    clones: Mapping[str, Any]
    noise: Tensor
    references: dict[str, Tensor | None] = field(default_factory=dict)

    @property
    def part(self) -> float:
        """How many times the layers of what the others run make the whole flow."""
        return sum(self.flow.config.layers) / sum(self.checked.config.layers)


def prepare(
    flow: tarflow.TarFlow, loaded: Mapping[str, Any], clones: Mapping[str, Any], dtype: str, blocks: int, images: int
) -> Subject:
    """A subject of a float32 flow; the modules in `loaded` run the first `blocks` that are decoded."""
    checked = models.first_decoded(flow, blocks)
    if dtype == "float32":
        whole, narrow = flow, checked
    else:
        whole = narrowed(flow, DTYPES[dtype])
        narrow = models.first_decoded(whole, blocks)
    others = {code: official.build(code, module, checked) for code, module in loaded.items()}
    return Subject(whole, narrow, checked, others, clones, models.draw_noise(flow.config, images, flow.device))


def measure(
    subject: Subject, settings: Settings, batch: int, scale: float, pairs: int, budget: Budget
) -> dict[str, Any]:
    """One case: agreement first, then `pairs` interleaved timings of every side, as one JSON object."""
    config, device = subject.flow.config, subject.flow.device
    drawn = _Drawn(
        subject.noise[:batch],
        models.labels(config, batch, device),
        tarflow.Guidance(scale, temperature=settings.temperature) if scale else None,
    )
    itemsize = DTYPES[settings.dtype].itemsize
    work = floor.decoding_work(config, batch, guided=scale > 0, itemsize=itemsize)
    measured = _rates(work, settings, device)
    sides, results, outputs = _warm_up(subject, settings, drawn)
    _hold_together(subject, settings, drawn, results, outputs, measured["flops_per_second"])
    for name, seconds in interleave(sides, pairs, device, budget).items():
        results[name] |= summary(seconds, subject.part if name in subject.others else 1.0)
        results[name]["seconds_per_image"] = results[name]["best"] / batch
    if batch in settings.memory and device.type == "cpu":
        for name, result in results.items():
            result["peak_bytes"] = memory.of_side(subject, settings, name, batch, scale)
    for key, rate in _rates(work, settings, device).items():
        measured[key] = max(measured[key], rate)
    return {
        "batch": batch,
        "guidance": scale,
        "tokens": config.num_patches,
        "work": asdict(work),
        "rates": measured,
        "sides": results,
    }


@dataclass(frozen=True)
class _Drawn:
    """What is drawn in a case: noise (n, T, D), labels (n,) or None, guidance or None."""

    noise: Tensor
    y: Tensor | None
    guidance: tarflow.Guidance | None

    def first(self, rows: int) -> _Drawn:
        return _Drawn(self.noise[:rows], None if self.y is None else self.y[:rows], self.guidance)


def _warm_up(
    subject: Subject, settings: Settings, drawn: _Drawn
) -> tuple[dict[str, Run], dict[str, dict[str, Any]], dict[str, Tensor]]:
    """Every side as a call without arguments, what its first call says of it, and the images that it made."""
    device, n = subject.flow.device, len(drawn.noise)
    sides: dict[str, Run] = {}
    results: dict[str, dict[str, Any]] = {}
    outputs: dict[str, Tensor] = {}
    for solver in settings.solvers:
        name = f"ours, {solver}"
        decode = partial(_batches, subject.flow, drawn, solver)
        _, results[name] = _first_call(decode, device)
        batches = decode()  # the first call of "auto" measured its choice, and only now does what it chose
        outputs[name] = _images(batches)
        results[name] |= {
            "iterations": [sum(counts) for counts in zip(*(one.iterations for one in batches), strict=True)],
            "residual": max(one.residual for one in batches),
            "solvers": list(batches[0].solvers),
        }
        options: dict[str, Any] = {"noise": drawn.noise, "solver": solver, "batch_size": n}
        sides[name] = partial(tarflow.sample, subject.flow, n, drawn.y, drawn.guidance, **options)
    for code in subject.others:
        sides[code] = partial(_theirs, subject, settings, drawn, code, bf16=settings.dtype == "bf16")
        outputs[code], results[code] = _first_call(sides[code], device)
        if subject.part > 1:
            results[code]["extrapolated_from_blocks"] = len(subject.checked.blocks)
    return sides, results, outputs


def _hold_together(
    subject: Subject,
    settings: Settings,
    drawn: _Drawn,
    results: dict[str, dict[str, Any]],
    outputs: dict[str, Tensor],
    flops_per_second: float,
) -> None:
    """Add to each side's result how far its images are from the references.

    Ours in float32 are to agree. What bf16 does to ours and to theirs is called a deviation, which nobody promised to
    keep below anything.
    """
    bf16 = settings.dtype == "bf16"
    few = drawn.first(min(len(drawn.noise), settings.reference_images)) if bf16 else drawn
    if bf16 or subject.part > 1:  # then what was timed is not what can be compared
        for solver in settings.solvers:
            outputs[f"ours, {solver}"] = _images(_batches(subject.checked, few, solver))
    references = _references(subject, settings, drawn, outputs, flops_per_second)
    for name, images in outputs.items():
        itself = name == official.OFFICIAL and not bf16
        results[name]["deviation" if bf16 and name in subject.others else "agreement"] = {
            key: _compare(images, reference)
            for key, reference in references.items()
            if not (itself and key == OFFICIAL_CODE)
        }
    if bf16:
        for solver in settings.solvers:
            images = _images(_batches(subject.narrow, few, solver))
            found = {key: _compare(images, reference) for key, reference in references.items()}
            results[f"ours, {solver}"]["deviation"] = found


def disagreements(case: Mapping[str, Any]) -> list[str]:
    """What in a case did not agree in float32, ours or the official code, in words. The second code may: it clamps."""
    return [
        f"batch {case['batch']}, guidance {case['guidance']:g}: {name} is {found['worst']:.1e} from the {reference}"
        for name, result in case["sides"].items()
        for reference, found in result.get("agreement", {}).items()
        if name != official.GS_JACOBI and not found["agrees"]
    ]


def _batches(flow: tarflow.TarFlow, drawn: _Drawn, solver: str) -> list[tarflow.SampleBatch]:
    """What `tarflow.sample` does, with what it took."""
    n = len(drawn.noise)
    options: dict[str, Any] = {"noise": drawn.noise, "solver": solver, "batch_size": n}
    return list(tarflow.sample_batches(flow, n, drawn.y, drawn.guidance, **options))


def _theirs(subject: Subject, settings: Settings, drawn: _Drawn, code: str, *, bf16: bool) -> Tensor:
    """What another code makes of the same."""
    model = subject.others[code]
    return official.reverse(code, model, drawn.noise, drawn.y, drawn.guidance, bf16=bf16, settings=settings.gs_jacobi)


def _images(batches: list[tarflow.SampleBatch]) -> Tensor:
    return torch.cat([one.images for one in batches])


def _first_call(run: Callable[[], Any], device: torch.device) -> tuple[Any, dict[str, Any]]:
    """The warm-up, which compiles and calibrates; on CUDA it also says how much memory it took."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    result, seconds = timed(run, device)
    found: dict[str, Any] = {"first_call_seconds": seconds}
    if device.type == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated(device) - before
    return result, found


def _references(
    subject: Subject, settings: Settings, drawn: _Drawn, outputs: Mapping[str, Tensor], flops_per_second: float
) -> dict[str, Tensor]:
    """What the outputs are held against, the first rows or all of them, float32.

    The reference decode where there is no guidance and it does not take too long; the official code where it runs in
    float32 anyway, and else where there is nothing better.
    """
    few = drawn.first(min(len(drawn.noise), settings.reference_images))
    found = {}
    if drawn.guidance is None and (images := _reference_decode(subject, settings, flops_per_second)) is not None:
        found[REFERENCE] = images[: len(few.noise)]
    if settings.dtype == "float32":
        found[OFFICIAL_CODE] = outputs[official.OFFICIAL]
    elif not found:
        found[OFFICIAL_CODE] = _theirs(subject, settings, few, official.OFFICIAL, bf16=False)
    return found


def _reference_decode(subject: Subject, settings: Settings, flops_per_second: float) -> Tensor | None:
    """`TarFlow.decode` of the first images of the noise, at most once a run; None where it would take too long."""
    if REFERENCE not in subject.references:
        flow = subject.checked
        z = subject.noise[: settings.reference_images]
        seconds = floor.reference_flops(flow.config, len(z)) / flops_per_second
        images = None
        if seconds <= settings.reference_seconds:
            with torch.no_grad():
                images = flow.decode(flow.base.sample(z), models.labels(flow.config, len(z), flow.device))
        subject.references[REFERENCE] = images
    return subject.references[REFERENCE]


def _compare(images: Tensor, reference: Tensor) -> dict[str, Any]:
    """How far images are from the first ones of a reference, relative to max(1, |reference|)."""
    difference = (images[: len(reference)] - reference).abs() / reference.abs().clamp(min=1)
    worst = float(difference.nan_to_num(nan=float("inf")).max())
    return {
        "worst": worst,
        "share_beyond": float((~(difference <= TOLERANCE)).float().mean()),
        "images": len(reference),
        "tolerance": TOLERANCE,
        "agrees": worst <= TOLERANCE,
    }


def _rates(work: floor.Work, settings: Settings, device: torch.device) -> dict[str, float]:
    """The rates that the floors of a case need: measured before and after it, and the better one counts."""
    squares = rates.square_rates(DTYPES[settings.dtype], device, seconds=0.3)
    return {
        "flops_per_second": max(squares.values()),
        "weight_bytes_per_second": rates.read_rate(work.weight_set, device),
        "cache_bytes_per_second": rates.read_rate(work.cache_set, device),
    }

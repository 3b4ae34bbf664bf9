"""A flow as a graph that other programs run: files of `torch.export` (.pt2) and of ONNX.

Three things are exported, each for any number of rows:

    log_prob    x (B, …)[, y]                     to log p(x|y) (B,), nats
    encode      x (B, …)[, y]                     to z (B, T, D) and ladj (B,)
    step        x (B, T, D), store, place (1,)[, y]   to x with one more token decoded: one file a block

What is written in C steps aside while PyTorch looks at the operations. What is written is read again and held against
the flow before it gets its name.
"""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tarflow import __version__, storage
from tarflow.config import to_dict
from tarflow.jsontext import to_json
from tarflow.model.block import Block
from tarflow.model.sequence import SequenceFlow
from tarflow.sampling.cpu.step import is_plain_block
from tarflow.sampling.cuda.step import DeviceStep
from tarflow.seeding import seeded_generator

TOLERANCE = 1e-4  # of what a file computes, beside the flow: nats, or numbers, and relative where they are large
ROWS, OTHER_ROWS = 2, 3  # of the batch that is traced, and of that by which the file is checked


class Exported(nn.Module):
    """What is exported: a function of tensors, of which `y` is the last where there is a condition.

    Attributes:
        names, results: of its arguments without y, and of what it returns.
    """

    names: tuple[str, ...] = ("x",)
    results: tuple[str, ...]

    def example(self, rows: int, seed: int) -> tuple[Tensor, ...]:
        """Arguments of so many rows, without y."""
        raise NotImplementedError

    def shapes(self, rows: Any) -> tuple[Any, ...]:
        """Which axis of each of them is that of the rows."""
        return ({0: rows},)


class LogProb(Exported):
    """(x[, y]) to log p(x|y), (B,)."""

    results: tuple[str, ...] = ("log_prob",)

    def __init__(self, flow: SequenceFlow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor, y: Any = None) -> Any:
        return self.flow.log_prob(x, y)

    def example(self, rows: int, seed: int) -> tuple[Tensor, ...]:
        tokens = _noise((rows, self.flow.sequence.tokens, self.flow.sequence.dim), self.flow.dtype, seed)
        return (self.flow.event.from_tokens(tokens),)  # which is possible, whatever the event is


class Encode(LogProb):
    """(x[, y]) to z (B, T, D) and ladj (B,)."""

    results = ("z", "ladj")

    def forward(self, x: Tensor, y: Any = None) -> Any:
        return self.flow.encode(x, y)


class Step(Exported):
    """Decode one token of one block: x (B, T, D), in the order of the sequence, with one token more of it decoded.

    With S slots of a block (its T tokens, and one more where there is a start token), calls with `place` 0 … S-2 in
    turn, from z to x, decode it. `store` (layers, 2, B, heads, S-1, K) is the cache, all zeros at the first and written
    to by every one.
    """

    names, results = ("x", "store", "place"), ("x",)

    def __init__(self, flow: SequenceFlow, block: Block) -> None:
        super().__init__()
        if not is_plain_block(block):
            raise ValueError("step: expected the layers of a flow as they are, got some that were replaced or hooked")
        self.block = block
        self.shape = (flow.sequence.tokens, flow.sequence.dim)

    def forward(self, x: Tensor, store: Tensor, place: Tensor, y: Any = None) -> Any:
        block = self.block
        own = block.enter(x.detach())  # a cache that is written to has no gradient
        context = block.context(y)
        step = DeviceStep(block, context, store)
        step.write_prefix(context)  # which a cache of zeros does not have
        params = step(own.index_select(1, place), place, store.shape[4])
        token = block.transform.inverse(own.index_select(1, place + 1), params)
        x = block.leave(own.index_copy(1, place + 1, token))
        return x if block.mixing is None else torch.where(place == block.config.slots - 2, block.unmixed(x), x)

    def example(self, rows: int, seed: int) -> tuple[Tensor, ...]:
        x = _noise((rows, *self.shape), self.block.state_dtype, seed)
        return x, self.block.new_cache(rows).store, torch.zeros(1, device="cpu", dtype=torch.int64)

    def shapes(self, rows: Any) -> tuple[Any, ...]:
        return {0: rows}, {2: rows}, None


EXPORTS: dict[str, Callable[..., Exported]] = {"log_prob": LogProb, "encode": Encode, "step": Step}
SUFFIXES = (".pt2", ".onnx")


@torch.inference_mode(False)  # what is made in that mode cannot be traced
def export(model: Any, path: str | Path, what: str = "log_prob") -> list[Path]:
    """Write a flow as a file that other programs run, or one file for each block; the number of rows is open in all.

    Args:
        model: a flow, or a run, of which is written beside the graph what is known: of images the levels, the noise,
            the classes and the names of the numbers that they are given, of a table its columns.
        path: `.pt2`, for `torch.export.load` and AOTInductor, or `.onnx` (`pip install 'tarflow[export]'`); of a step a
            directory, new or empty, for `block-0.pt2` and so on.
        what: "log_prob" of x; `"encode"`, x to z and ladj; `"step"`, which decodes a token of a block, with its cache.

    Returns:
        The files that were written. Their inputs are x, or x, store and place; and y where there is a condition: for
        classes (B,) int64 with -1 for none, for numbers (B, N) with NaN in all of a row for none, for several a tuple.
        What they compute is float32, or float64 of a flow in float64.

    Raises:
        ValueError: another suffix, a step as ONNX, ONNX without its packages, or a flow that
            cannot be exported, in one line; nothing is left then.

    >>> import tempfile, torch, tarflow
    >>> flow = tarflow.TarFlow(tarflow.TarFlowConfig(8, channels=1, patch_size=4, width=64, layers=(1,)))
    >>> (path,) = tarflow.export(flow, tempfile.mkdtemp() + "/flow.pt2")
    >>> program = torch.export.load(path).module()
    >>> program(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5])
    """
    path, flow = Path(path), getattr(model, "flow", model)
    if not isinstance(flow, SequenceFlow):
        raise ValueError(f"model: expected a run or a flow, got {type(model).__name__}")
    if what not in EXPORTS:
        raise ValueError(f"what: expected one of {', '.join(EXPORTS)}, got {what!r}")
    check_target(path, what)
    facts = {"tarflow": __version__, "what": what, "flow": type(flow).__name__, "event": list(flow.event.shape)}
    if model is not flow:
        facts |= _facts(model)
    flow = _plain_copy(flow)
    y = flow.conditions.example()
    if what != "step":
        with storage.replacing_file(path) as temporary:
            temporary.write_bytes(_exported(EXPORTS[what](flow), y, path.suffix.lower(), facts))
        return [path]
    modules = [EXPORTS[what](flow, block) for block in flow.blocks]
    with storage.replacing_directory(path) as directory:
        for number, module in enumerate(modules):
            (directory / f"block-{number}.pt2").write_bytes(_exported(module, y, ".pt2", facts | {"block": number}))
    return [path / f"block-{number}.pt2" for number in range(len(modules))]


def check_target(path: Path, what: str) -> None:
    """Raise, before any work, where what is exported cannot go to `path`."""
    if what == "step":
        if path.suffix.lower() in SUFFIXES:
            raise ValueError(f"{path}: expected a directory, for a file of each block; a step is no ONNX")
        storage.check_vacant(path)
    elif path.suffix.lower() not in SUFFIXES or path.is_dir():
        raise ValueError(f"{path}: expected the name of a .pt2 or .onnx file")
    elif path.suffix.lower() == ".onnx":
        _onnx_packages()


def _mapped(function: Callable[[Tensor], Any], value: Any) -> Any:
    """A tensor, None, or a tuple of them, part by part."""
    if value is None:
        return None
    return tuple(_mapped(function, part) for part in value) if isinstance(value, tuple) else function(value)


def _facts(run: Any) -> dict[str, Any]:
    """What is known of a run that a flow does not know."""
    if (columns := getattr(run, "columns", None)) is not None:  # of a table
        return {name: to_dict(columns)[name] for name in ("events", "conditions", "classes")}
    measure, data = run.measure, run.config.data
    facts = {"levels": measure.levels, "noise": measure.noise, "noise_std": measure.noise_std}
    return facts | {"class_names": list(run.class_names), "numbers": list(data.numbers) if data else []}


def _plain_copy(flow: SequenceFlow) -> SequenceFlow:
    """The flow on the CPU, in float32 at least, without gradients: what is exported."""
    wide = torch.promote_types(flow.dtype, torch.float32)
    return copy.deepcopy(flow).to(device="cpu", dtype=wide).requires_grad_(False).eval()


def _noise(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=seeded_generator(seed, "export"), device="cpu", dtype=dtype) / 2


def _exported(module: Exported, condition: Any, suffix: str, facts: dict[str, Any]) -> bytes:
    """The contents of a file, which was read again and computes what the module does, on another number of rows."""
    rows = torch.export.Dim("B")
    shapes, names = module.shapes(rows), module.names

    def arguments(count: int, seed: int) -> tuple[Any, ...]:
        y = _mapped(lambda part: torch.cat([part] * count)[:count], condition)
        return (*module.example(count, seed), *(() if condition is None else (y,)))

    if condition is not None:
        shapes, names = (*shapes, _mapped(lambda part: {0: rows}, condition)), (*names, "y")
    given, other = arguments(ROWS, 0), arguments(OTHER_ROWS, 1)
    with _quiet(), torch.enable_grad():  # whatever the caller's mode; the weights want none
        right = module(*_mapped(torch.clone, other))
        try:
            program = torch.export.export(module, given, dynamic_shapes=shapes)
            data, run = (_pt2 if suffix == ".pt2" else _onnx)(program, names, module.results, facts)
            found = run(*_mapped(torch.clone, other))
        except Exception as error:  # of the exporters, which raise whatever they meet
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise ValueError(f"{facts['what']}: this flow cannot be exported as {suffix}: {reason}") from error
    for name, a, b in zip(module.results, _several(found), _several(right), strict=True):
        worst = float(((a - b).abs() / b.abs().clamp(min=1)).max())
        if not worst <= TOLERANCE:
            raise ValueError(f"{facts['what']}: the {suffix} computes {name} otherwise, by {worst:.2g}; it is not kept")
    return data


def _several(value: Any) -> tuple[Tensor, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _pt2(program: Any, names: tuple[str, ...], results: tuple[str, ...], facts: dict[str, Any]) -> Any:
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"tarflow.json": to_json(facts)})
    data = file.getvalue()
    return data, torch.export.load(io.BytesIO(data)).module()


def _onnx(program: Any, names: tuple[str, ...], results: tuple[str, ...], facts: dict[str, Any]) -> Any:
    onnxruntime = _onnx_packages()
    made = torch.onnx.export(
        program, dynamo=True, verbose=False, input_names=list(names), output_names=list(results), optimize=True
    )
    assert made is not None
    proto = made.model_proto
    for key, value in facts.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value if isinstance(value, str) else to_json(value)
    data = proto.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def run(*given: Any) -> tuple[Tensor, ...]:
        flat = [part.numpy() for value in given for part in (value if isinstance(value, tuple) else (value,))]
        inputs = [entry.name for entry in session.get_inputs()]
        found = session.run(None, dict(zip(inputs, flat, strict=True)))
        return tuple(torch.from_numpy(array) for array in found)

    return data, run


def _onnx_packages() -> Any:
    """onnxruntime, where it and what makes ONNX files are there; one line that says how to get them otherwise."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(f".onnx: {error.name} is not installed; pip install 'tarflow[export]'") from None
    return onnxruntime


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what PyTorch's exporters say of themselves, and of packages that are not there."""
    logger = logging.getLogger("torch.onnx._internal.exporter")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)

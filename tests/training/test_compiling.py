"""Compilation is asked for where it can be, serves all layers at once, and touches neither names nor copies."""

from __future__ import annotations

import copy
import functools
import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from flow_cases import build, images, labels
from tarflow import TarFlow, TarFlowConfig, checkpoint
from tarflow.config import ConfigError
from tarflow.model.spline import Spline
from tarflow.training import build as build_module
from tarflow.training.interrupt import Interrupted
from tarflow.training.layers import compile_layers, recompute_layers, wants_compilation
from tarflow.training.step import objective
from tarflow.training.trainer import train
from training_cases import assert_bitwise_equal, run_config, run_weights, splits

# torch's own tracer looks at `.grad` of what it traces, and hides the warning only from where it is shown.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")

CPU, CUDA, MPS = map(torch.device, ("cpu", "cuda", "mps"))


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The tools that are installed, as far as the code can see; all of them at first."""
    there = {"triton", "clang++"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in there else None)
    monkeypatch.setattr(shutil, "which", lambda name: name if name in there else None)
    monkeypatch.delenv("CXX", raising=False)
    return there


def test_auto_is_on_for_cuda_and_off_elsewhere(tools: set[str]) -> None:
    assert [wants_compilation("auto", device) for device in (CPU, CUDA, MPS)] == [False, True, False]
    assert [wants_compilation("on", device) for device in (CPU, CUDA, MPS)] == [True] * 3
    assert [wants_compilation("off", device) for device in (CPU, CUDA, MPS)] == [False] * 3


def test_what_compiling_lacks_is_named(tools: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    tools.clear()
    assert not wants_compilation("auto", CUDA)  # slower, and no reason to stop
    with pytest.raises(ConfigError, match=r"compile: .*triton"):
        wants_compilation("on", CUDA)
    with pytest.raises(ConfigError, match=r"compile: .*C\+\+ compiler.*CXX"):
        wants_compilation("on", CPU)
    monkeypatch.setenv("CXX", "/opt/bin/c++-15")
    tools.add("/opt/bin/c++-15")
    assert wants_compilation("on", CPU)


@pytest.mark.parametrize("recompute", ["nothing", "elementwise", "layers"])
def test_one_compilation_serves_all_layers_and_gives_the_gradient(recompute: str) -> None:
    flow = build("bounded_conditional", torch.float32, layers=(3, 2, 4, 3))
    names, eager = list(flow.state_dict()), copy.deepcopy(flow)
    counter = CompileCounterWithBackend("aot_eager")
    compile_layers(flow, counter)
    for each in (eager, flow):
        recompute_layers(each, recompute)
    copied = copy.deepcopy(flow)
    x, y = images(flow, 6, dtype=torch.float32), labels(flow, 6)
    for _ in range(2):
        gradients = []
        for each in (eager, flow):
            loss = objective(*each(x, y))
            gradients.append(torch.autograd.grad(loss, list(each.parameters())))
        for want, got in zip(*gradients, strict=True):
            torch.testing.assert_close(got, want)
    assert counter.frame_count == 1
    assert list(flow.state_dict()) == names
    copied(x, y)
    assert not any(layer._compiled_call_impl for block in copied.blocks for layer in block.layers)
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", ["spline_first", "spline_by_number"])
def test_splines_are_compiled_where_they_are_no_c(name: str) -> None:
    flow, there = build(name, torch.float32), build(name, torch.float32).to("meta")
    for each in (flow, there):
        compile_layers(each, "aot_eager")
        splines = [part for part in each.modules() if isinstance(part, Spline)]
        assert splines and all(bool(part._compiled_call_impl) == (each is there) for part in splines)


def test_a_compiled_spline_is_the_spline() -> None:
    eager, compiled = build("spline_first", torch.float32), build("spline_first", torch.float32)
    counter = CompileCounterWithBackend("aot_eager")
    for part in compiled.modules():
        if isinstance(part, Spline):
            part.compile(backend=counter, dynamic=False)
    x, y = images(eager, 6, dtype=torch.float32), labels(eager, 6)
    gradients = [torch.autograd.grad(objective(*each(x, y)), list(each.parameters())) for each in (eager, compiled)]
    for want, got in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want)
    assert counter.frame_count == 1


def run_in_parts(out: Path, stop: int, first: dict[str, Any], second: dict[str, Any]) -> None:
    """A run that starts with the fields `first` and is resumed, from step `stop`, with `second`."""

    def report(metrics: dict[str, Any]) -> None:
        if metrics["step"] == stop and "loss" in metrics:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(run_config(**first), splits(), out, report=report)
    train(run_config(**second), splits(), out, resume=True)


def test_a_compiled_run_leaves_what_any_run_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "compile_layers", functools.partial(compile_layers, backend="aot_eager"))
    train(run_config(), splits(), tmp_path / "eager")
    train(run_config(compile="on"), splits(), tmp_path / "compiled")
    run_in_parts(tmp_path / "parts", 5, {"compile": "on"}, {"compile": "on"})
    compiled, eager = run_weights(tmp_path / "compiled"), run_weights(tmp_path / "eager")
    assert_bitwise_equal(compiled, run_weights(tmp_path / "parts"))
    assert compiled.keys() == eager.keys()
    for name in eager:
        torch.testing.assert_close(compiled[name], eager[name], atol=1e-4, rtol=1e-3, msg=name)
    run_in_parts(tmp_path / "changed", 5, {"compile": "on"}, {"compile": "off"})
    assert checkpoint.open_run(tmp_path / "changed").config.training.compile == "off"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch's compiler imports of torch
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="the CPU's compiler writes C++")
def test_compiled_to_machine_code_it_is_the_same_run(tmp_path: Path) -> None:
    train(run_config(), splits(), tmp_path / "eager")
    run_in_parts(tmp_path / "compiled", 5, {"compile": "on"}, {"compile": "on"})
    compiled, eager = run_weights(tmp_path / "compiled"), run_weights(tmp_path / "eager")
    assert compiled.keys() == eager.keys()
    for name in eager:
        torch.testing.assert_close(compiled[name], eager[name], atol=1e-3, rtol=1e-2, msg=name)


class WideFlow(torch.nn.Module):
    """A layer whose gradients are more than a bucket of DDP holds, 25 MB."""

    def __init__(self) -> None:
        super().__init__()
        config = TarFlowConfig(image_size=4, channels=1, patch_size=2, width=832, layers=(1,))
        self.flow = TarFlow(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.flow(x)[0]


def test_a_layer_stays_in_one_piece_under_ddp(tmp_path: Path) -> None:
    """Cut in two it keeps the GELU's output again, which one piece computes anew."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        model = WideFlow()
        counter = CompileCounterWithBackend("eager")
        compile_layers(model.flow, counter)
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        wrapped(torch.zeros(2, 1, 4, 4)).sum().backward()
        assert counter.frame_count == 1
    finally:
        torch.distributed.destroy_process_group()


def test_a_stack_is_one_graph_a_layer_without_breaks_and_is_compiled_once() -> None:
    torch._dynamo.utils.counters.clear()
    flow = build("bounded_conditional", torch.float32, layers=(3, 3))
    counter = CompileCounterWithBackend("aot_eager")
    recompute_layers(flow, "elementwise")
    compile_layers(flow, counter)
    for seed in range(3):
        objective(*flow(images(flow, 4, seed, torch.float32), labels(flow, 4))).backward()
    assert not torch._dynamo.utils.counters["graph_break"]
    assert counter.frame_count == 1, "recompiled"

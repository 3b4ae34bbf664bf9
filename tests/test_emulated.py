"""The paths of a GPU, run with tensors that have a device, a dtype and a shape, and no numbers: no two of them mix.

torch's fake tensors say `cuda:0` on a machine without CUDA, and an operation on two devices fails as it would there.
What waits for the device (`int(tensor)`) fails, too. Gradients cannot be emulated with `cuda`, so what needs them runs
on `meta`, which does not mix with the CPU either.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)

import tarflow
from flow_cases import config_of, names, repeated, sequence_of
from tarflow import Guidance, TarFlow
from tarflow.evaluation.likelihood.bayes import log_posterior
from tarflow.evaluation.likelihood.patch_maps import patch_log_prob
from tarflow.evaluation.likelihood.scores import log_likelihood
from tarflow.model.condition import make_condition
from tarflow.sampling.cuda import graph as captured_module
from tarflow.sampling.cuda.graph import Captured
from tarflow.sampling.decode import invert
from tarflow.sampling.jacobi import Jacobi
from tarflow.training.layers import recompute_layers
from tarflow.training.step import objective

CUDA = torch.device("cuda:0")
CASES = names()
BARE = [name for name in CASES if not make_condition(sequence_of(name).condition).places]
"""Those without a prefix: the bias by which a GPU's kernels see what is behind one cannot be made of fake tensors."""


def view(x: Tensor, key: Any) -> Tensor:
    """x[key], by operations that ask for no guard of the device, which only a build for CUDA has."""
    keys, dim = key if isinstance(key, tuple) else (key,), 0
    for place in keys:
        if isinstance(place, slice):
            x, dim = torch.ops.aten.slice.Tensor(x, dim, place.start, place.stop, place.step or 1), dim + 1
        elif isinstance(place, int):
            x = torch.ops.aten.select.int(x, dim, place)
        elif place is Ellipsis:
            dim = x.ndim - (len(keys) - 1 - keys.index(Ellipsis))
        else:
            x, dim = torch.ops.aten.index.Tensor(x, [None] * dim + [place]), dim + 1
    return x


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within it every tensor is fake, and captures are steps that are taken again."""
    monkeypatch.setattr(captured_module, "cuda_graphs", lambda device: repeated)
    monkeypatch.setattr(captured_module, "_on", lambda device: torch.no_grad())
    monkeypatch.setattr(FakeTensor, "__getitem__", view, raising=False)
    copy = torch.ops.aten.copy_.default
    monkeypatch.setattr(FakeTensor, "copy_", lambda x, value: copy(x, value), raising=False)
    monkeypatch.setattr(FakeTensor, "__setitem__", lambda x, key, value: copy(view(x, key), value), raising=False)
    for module in ("sampling.decode", "sampling.denoise"):
        monkeypatch.setattr(f"tarflow.{module}.free_bytes", lambda device: 80 << 30)
    monkeypatch.setattr(TarFlow, "check_condition", checked)
    with FakeTensorMode(), torch.no_grad():
        yield


def checked(flow: TarFlow, y: Any, batch: int) -> Any:
    """Labels have no numbers here; where they are checked they must be on the host, or it waits."""
    if y is None:
        return None
    parts = y if isinstance(y, tuple) else (y,)
    assert all(part.device.type == "cpu" and len(part) == batch for part in parts)
    known = [torch.zeros(part.shape, dtype=part.dtype, device=flow.device) for part in parts]
    return tuple(known) if isinstance(y, tuple) else known[0]


def on_gpu(name: str) -> TarFlow:
    """A flow of the table whose weights say that they are on a GPU; to be called where tensors are fake."""
    with torch.device("meta"):
        flow = TarFlow(config_of(name))
    for module in flow.modules():
        for key, value in module._parameters.items():
            if value is not None:
                there = torch.zeros(value.shape, dtype=value.dtype, device=CUDA)
                module._parameters[key] = nn.Parameter(there, requires_grad=False)
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = torch.ones(buffer.shape, dtype=buffer.dtype, device=CUDA)
    return flow


def images(flow: TarFlow, count: int = 3, **options: Any) -> Tensor:
    return torch.zeros(count, flow.config.channels, *flow.config.image_shape, dtype=torch.float32, **options)


def labels(flow: TarFlow, count: int = 3, **options: Any) -> Any:
    """On the CPU, where they are checked."""
    values = [
        torch.zeros(count, *part.value_shape, dtype=torch.int64 if part.size else torch.float32, **options)
        for part in getattr(flow.conditions, "parts", [flow.conditions])
        if part
    ]
    return tuple(values) if len(values) > 1 else values[0] if values else None


@pytest.mark.parametrize("name", BARE)
@pytest.mark.parametrize("autocast", [False, True])
def test_densities_stay_on_the_device(name: str, autocast: bool) -> None:
    flow = on_gpu(name)
    x = images(flow, device=CUDA)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        z, ladj = flow(x, None)
    assert z.device == ladj.device == CUDA and z.dtype == ladj.dtype == torch.float32
    assert (flow.base.log_prob(z) + ladj).device == CUDA


GUIDANCES = [None, Guidance(1.0), Guidance(1.0, "constant", 0.5, "stable")]


@pytest.mark.parametrize(("name", "guidance"), list(zip(CASES, itertools.cycle(GUIDANCES), strict=False)), ids=str)
def test_captured_decoding_stays_on_the_device(name: str, guidance: Guidance | None) -> None:
    flow = on_gpu(name)
    y = labels(flow, device=CUDA)
    z = torch.zeros(3, flow.config.num_patches, flow.config.patch_dim, dtype=torch.float32, device=CUDA)
    captured = Captured()
    for block in (*flow.blocks, flow.blocks[0]):  # the first one again, whose capture is there
        x = invert(block, z, y, guidance, captured=captured).x
        assert x.device == CUDA and x.dtype == torch.float32


@pytest.mark.parametrize("name", [name for name in names(long=True) if name in BARE])
def test_jacobi_stays_on_the_device_until_it_asks_how_many_patches_have_settled(name: str) -> None:
    flow = on_gpu(name)
    z = torch.zeros(3, flow.config.num_patches, flow.config.patch_dim, dtype=torch.float32, device=CUDA)
    with pytest.raises((DataDependentOutputException, RuntimeError), match="_local_scalar|not linked") as raised:
        invert(flow.blocks[0], z, None, None, Jacobi())
    (place,) = [entry for entry in raised.traceback if entry.path.name == "jacobi.py" and entry.name == "jacobi"]
    assert str(place.statement).split()[0] in ("change", "settled"), "what is before has no wrong device"


def test_scores_of_classes_wait_for_nothing() -> None:
    """Labels that are made on the device have to be brought back to be checked, twice a class."""
    flow = on_gpu("conditional")
    assert log_likelihood(flow, images(flow), labels="marginal").device == CUDA
    assert log_likelihood(flow, images(flow), labels="null").device == CUDA


def test_patch_maps_and_posteriors_stay_on_the_device() -> None:
    flow = on_gpu("conditional")
    assert patch_log_prob(flow, images(flow, device=CUDA), labels(flow)).device == CUDA
    assert log_posterior(flow, images(flow, device=CUDA)).device == CUDA


def test_editing_stays_on_the_device() -> None:
    flow = on_gpu("non_square")
    x = images(flow, device=CUDA)
    back, error = tarflow.reconstruct(flow, x, labels(flow))
    assert back.device == error.device == CUDA


@pytest.mark.parametrize(
    ("name", "recompute"), list(zip(CASES, itertools.cycle(["nothing", "elementwise", "layers"]), strict=False))
)
def test_gradients_and_denoising_touch_no_other_device(name: str, recompute: Any) -> None:
    with unset_fake_temporarily(), torch.enable_grad():
        with torch.device("meta"):
            flow = TarFlow(config_of(name))
        x = torch.zeros(3, flow.config.channels, *flow.config.image_shape, dtype=torch.float32, device="meta")
        y = labels(flow, device="meta")
        recompute_layers(flow, recompute)
        objective(*flow(x, y)).backward()
        assert all(p.grad is not None and p.grad.device.type == "meta" for p in flow.parameters())
        assert tarflow.denoise(flow.requires_grad_(False), x, 0.1, labels(flow)).device.type == "meta"

"""The device with its number, and what a precision rounds: products, and nothing that goes into them or comes out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from flow_cases import labels, randomise
from tarflow import TarFlow, TarFlowConfig
from tarflow.config import ConfigError, TrainingConfig
from tarflow.data.feed import Feed
from tarflow.devices import float32_products, numbered
from tarflow.model.events import patchify
from tarflow.training.engine import Engine, products_of
from training_cases import images

CPU, CUDA, MPS = map(torch.device, ("cpu", "cuda", "mps"))


def flow() -> TarFlow:
    config = TarFlowConfig(image_size=16, channels=3, patch_size=2, width=64, layers=(2, 2), num_classes=3)
    found = randomise(TarFlow(config)).eval().requires_grad_(False)
    for block in found.blocks:  # with outputs of a size that trained flows have
        block.proj_out.weight.mul_(0.1)
        block.proj_out.bias.mul_(0.1)
    return found


@pytest.mark.parametrize(
    ("precision", "noise", "found"),
    [
        ("auto", "gaussian", ("float32", "bf16", "float32")),
        ("auto", "uniform", ("float32", "tf32", "float32")),
        ("float32", "gaussian", ("float32",) * 3),
        ("bf16", "uniform", ("bf16",) * 3),
    ],
)
def test_auto_is_what_a_device_is_good_at(precision: Any, noise: Any, found: tuple[str, ...]) -> None:
    config = TrainingConfig(steps=1, precision=precision, noise=noise)
    assert tuple(products_of(config, device) for device in (CPU, CUDA, MPS)) == found


def test_tf32_is_refused_where_there_is_none() -> None:
    config = TrainingConfig(steps=1, precision="tf32")
    assert products_of(config, CUDA) == "tf32"
    with pytest.raises(ConfigError, match="precision: tf32 .* got cpu; expected float32 or auto"):
        Engine(config, CPU)


def test_the_device_is_the_one_that_its_tensors_name() -> None:
    """`cuda` and `cuda:0` compare unequal; a feed on the one took images on the other for images on the host."""
    with FakeTensorMode():
        engine = Engine(TrainingConfig(steps=1), CUDA)
        assert engine.device == torch.zeros(1, device="cuda", dtype=torch.float32).device == torch.device("cuda:0")
    assert numbered("cpu") == CPU


def test_images_of_one_gpu_need_no_thread_and_no_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run from memory on one GPU died at its first step: CUDA tensors cannot be pinned."""
    own = images(30, 0)
    monkeypatch.setattr("tarflow.data.feed.free_bytes", lambda device: 8 * own.images.nbytes)
    monkeypatch.setattr(Tensor, "to", lambda tensor, *_, **__: tensor)  # the copy itself, which only a GPU can make
    with FakeTensorMode():
        feed = Feed(own, batch_size=4, seed=0, condition="classes:10", device="cuda")
        assert feed.device == torch.device("cuda:0")
        feed.images = torch.empty(own.images.shape, dtype=torch.uint8, device="cuda")
        assert feed.images.device == feed.device


@pytest.mark.parametrize(("room", "pinned"), [(8, 0), (7.9, 2)])
def test_images_lie_on_a_gpu_where_they_are_a_small_part_of_it(
    room: float, pinned: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else their batches are put together on the host, and pinned: a copy from other memory makes the host wait."""
    own, moved = images(30, 0), []
    real = Tensor.to

    def to(tensor: Tensor, device: Any, *args: Any, **options: Any) -> Tensor:
        moved.append((tensor.shape, options))
        return real(tensor, "cpu", *args, **options)

    monkeypatch.setattr(Tensor, "to", to)
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: pins.append(tensor) or tensor)
    monkeypatch.setattr("tarflow.data.feed.free_bytes", lambda device: room * own.images.nbytes)
    monkeypatch.setattr("tarflow.data.feed.numbered", torch.device)
    pins: list[Tensor] = []
    feed = Feed(own, batch_size=4, seed=0, condition="classes:10", device="cuda:0")
    assert ((own.images.shape, {}) in moved) == (room == 8)
    if room == 8:  # here the images are on the CPU all the same, so that this is as far as a machine without one goes
        return
    assert feed.background
    for step in range(2):
        feed.batch(step)
    feed.close()
    assert len(pins) >= 2 * 2, "pixels and labels"
    assert all(options == {"non_blocking": True} for shape, options in moved if len(shape) == 4)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_what_comes_in_is_not_rounded(precision: Any) -> None:
    """Under bf16 the flow was trained on images rounded to bf16, by up to half a level of 256."""
    model, seen = flow(), []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    engine = Engine(TrainingConfig(steps=1, precision=precision), CPU)
    engine.set_up(model)
    x = torch.rand(4, 3, 16, 16, dtype=torch.float32) * 2 - 1
    z, ladj = engine(x, labels(model, 4))
    assert seen[0].dtype == z.dtype == ladj.dtype == torch.float32 and torch.equal(seen[0], x)


def test_bf16_costs_less_than_three_thousandths_of_a_bit() -> None:
    """bits/dim of autocast against float64; what leads out of a block is not rounded, which would double it."""
    model = flow()
    exact = copy.deepcopy(model).double()
    engine = Engine(TrainingConfig(steps=1, precision="bf16"), CPU)
    engine.set_up(model)
    x, y = torch.rand(16, 3, 16, 16, dtype=torch.float32) * 2 - 1, labels(model, 16)
    z, ladj = engine(x, y)
    bits = ((model.base.log_prob(z) + ladj).sum(dim=1) - exact.log_prob(x.double(), y)) / (
        model.config.num_dims * 0.6931
    )
    assert 1e-6 < float(bits.square().mean().sqrt()) < 3e-3
    for block in model.blocks:
        with torch.autocast("cpu", torch.bfloat16):
            params = block.conditioner(patchify(x, model.config.patch_size)[:, :-1], block.context(y))
        assert not torch.equal(params, params.bfloat16().float()), "the output layer was rounded"


def test_float32_products_are_what_was_asked_for_and_the_process_gets_its_own_back() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        for own in ("medium", "highest"):
            torch.set_float32_matmul_precision(own)
            for tf32, inside in ((True, "high"), (False, "highest")):
                with pytest.raises(RuntimeError), float32_products(CUDA, tf32=tf32):
                    assert torch.get_float32_matmul_precision() == inside
                    raise RuntimeError
                assert torch.get_float32_matmul_precision() == own
            with float32_products(CPU, tf32=False):
                assert torch.get_float32_matmul_precision() == own
    finally:
        torch.set_float32_matmul_precision(before)

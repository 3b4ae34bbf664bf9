"""Parity with the official code (apple/ml-tarflow), whose clone TARFLOW_OFFICIAL points to; skipped without it.

    git clone https://github.com/apple/ml-tarflow ../ml-tarflow
    TARFLOW_OFFICIAL=../ml-tarflow pytest tests/test_parity.py --log-cli-level=INFO     # prints what was measured

Every comparison is made twice: in float32, where 2e-4 is promised, and in float64, where the official casts to float32
are switched off and what remains is the rounding of float64: the two compute the same function.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import tarflow
from tarflow.interop import load_official, to_official

if "TARFLOW_OFFICIAL" not in os.environ:
    pytest.skip("TARFLOW_OFFICIAL is not set to a clone of apple/ml-tarflow", allow_module_level=True)

TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-10}  # absolute, on values of the order of 1 to 10
BATCH, SIGMA = 4, 0.1

Compare = Callable[[str, Tensor, Tensor], None]


@dataclass(frozen=True)
class Case:
    """An official Model: its arguments, and how many classes it has."""

    image_size: int
    channels: int
    patch_size: int
    width: int = 64
    blocks: int = 3
    layers: int = 2
    affine: bool = True
    classes: int = 0


CASES = {
    "affine": Case(8, 1, 2),
    "affine, rgb": Case(16, 3, 4),
    "affine, classes": Case(8, 1, 2, classes=4),
    "affine, classes, rgb": Case(16, 3, 2, blocks=2, layers=1, classes=3),
    "additive": Case(8, 1, 2, affine=False),
    "additive, rgb": Case(12, 3, 3, affine=False),
    "additive, classes": Case(8, 1, 2, affine=False, classes=4),
    "additive, classes, rgb": Case(16, 3, 2, width=128, blocks=2, affine=False, classes=3),
}

SLOW_CASES = {  # the size of real models; minutes on two cores
    "affine, classes, 28x28": Case(28, 1, 4, width=128, blocks=4, layers=4, classes=10),  # the official MNIST notebook
    "affine, classes, 32x32": Case(32, 3, 2, width=256, blocks=4, layers=4, classes=10),
}


@dataclass(frozen=True)
class Pair:
    """The official model, ours with its weights, and what both are given."""

    case: Case
    theirs: Any
    ours: tarflow.TarFlow
    images: Tensor  # (B, C, H, W)
    noise: Tensor  # (B, T, D)
    y: Tensor | None  # (B,)


@pytest.fixture(scope="module")
def official() -> ModuleType:
    path = Path(os.environ["TARFLOW_OFFICIAL"]) / "transformer_flow.py"
    spec = importlib.util.spec_from_file_location("official_transformer_flow", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=TOLERANCE, ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(
    scope="module",
    params=[pytest.param(case, id=name) for name, case in CASES.items()]
    + [pytest.param(case, id=name, marks=pytest.mark.slow) for name, case in SLOW_CASES.items()],
)
def pair(request: pytest.FixtureRequest, official: ModuleType, dtype: torch.dtype) -> Pair:
    case: Case = request.param
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = build(official, case).to(dtype)
        side = case.image_size // case.patch_size
        images = torch.randn(BATCH, case.channels, case.image_size, case.image_size, dtype=dtype)
        noise = torch.randn(BATCH, side**2, case.channels * case.patch_size**2, dtype=dtype)
        y = torch.randint(case.classes, (BATCH,)) if case.classes else None
    return Pair(case, theirs, load_official(theirs.state_dict()), images, noise, y)


def build(official: ModuleType, case: Case) -> Any:
    """An official model in which every number is random: at the start its output layers are 0 and hide all else."""
    model = official.Model(
        in_channels=case.channels,
        img_size=case.image_size,
        patch_size=case.patch_size,
        channels=case.width,
        num_blocks=case.blocks,
        layers_per_block=case.layers,
        nvp=case.affine,
        num_classes=case.classes,
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proj_out" in name:
                parameter.normal_(std=0.2 / (case.width * case.layers) ** 0.5 if "weight" in name else 0.1)
            elif name.endswith(("pos_embed", "class_embed")):
                parameter.normal_(std=0.5)
            elif name.endswith("qkv.weight"):
                parameter.mul_(
                    3
                )  # attention that looks at some patches more than at others, so that temperature matters
            elif parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        if not case.affine:
            model.var.uniform_(0.5, 1.5)
    return model.eval().requires_grad_(False)


@contextlib.contextmanager
def their_precision(dtype: torch.dtype) -> Iterator[None]:
    """The official code casts to float32 here and there, which float64 weights do not fit: there it keeps float64."""
    with pytest.MonkeyPatch.context() as patch:
        if dtype == torch.float64:
            patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        yield


@pytest.fixture
def compare(request: pytest.FixtureRequest, dtype: torch.dtype, record_property: Callable[..., None]) -> Compare:
    """Assert that two tensors agree, and record by how much."""

    def check(what: str, ours: Tensor, theirs: Tensor) -> None:
        assert ours.dtype == theirs.dtype == dtype
        assert ours.shape == theirs.shape
        difference, size = (ours - theirs).abs().max().item(), theirs.abs().max().item()
        record_property(what, difference)
        line = "%s, %s: %.1e of at most %.2g"
        logging.getLogger("parity").info(line, request.node.callspec.id, what, difference, size)
        assert difference <= TOLERANCE[dtype], f"{what}: differs by {difference:.1e}, expected {TOLERANCE[dtype]:.0e}"

    return check


def labels(pair: Pair) -> dict[str, Tensor | None]:
    """What can be given as labels: all of them, none, and some of them dropped."""
    if pair.y is None:
        return {"no classes": None}
    dropped = torch.where(torch.arange(BATCH) % 2 == 0, tarflow.NULL_CLASS, pair.y)
    return {"labels": pair.y, "no labels": None, "dropped labels": dropped}


def test_latents_and_log_determinants(pair: Pair, dtype: torch.dtype, compare: Compare) -> None:
    for what, y in labels(pair).items():
        with their_precision(dtype):
            z, outputs, logdets = pair.theirs(pair.images, y)
            loss = pair.theirs.get_loss(z, logdets)
        with torch.no_grad():
            our_z, ladj = pair.ours.encode(pair.images, y)
        compare(f"latents, {what}", our_z, z)
        mean = ladj / pair.ours.config.num_dims  # theirs is the mean over the numbers of an image, ours the sum
        compare(f"log-determinants, {what}", mean, logdets.expand(BATCH))
        compare(f"loss, {what}", 0.5 * our_z.square().mean() - mean.mean(), loss)
        assert len(outputs) == pair.case.blocks
        if pair.case.affine:
            assert mean.abs().max() > 1e-2  # nothing is compared where every log-scale is 0


GUIDANCES = [
    tarflow.Guidance(scale=1.5, schedule="constant"),
    tarflow.Guidance(scale=1.5, schedule="linear"),
    tarflow.Guidance(scale=0.2, schedule="constant", temperature=0.3),
    tarflow.Guidance(scale=0.2, schedule="linear", temperature=0.3),
    tarflow.Guidance(scale=1.0, schedule="linear", temperature=1.5),
]


def test_samples(pair: Pair, dtype: torch.dtype, compare: Compare) -> None:
    noise = pair.noise.clone()
    for what, y in labels(pair).items():
        if what == "dropped labels":
            continue  # in this direction -1 is the last class there
        with their_precision(dtype):
            theirs = pair.theirs.reverse(noise.clone(), y)
        compare(f"samples, {what}", tarflow.sample(pair.ours, BATCH, y, noise=noise, solver="sequential"), theirs)
        if pair.case in CASES.values():  # it takes T times as long
            with torch.no_grad():
                slow = pair.ours.decode(pair.ours.base.sample(noise), y)
            compare(f"reference decode, {what}", slow, theirs)
    assert torch.equal(noise, pair.noise)


def test_guided_samples(pair: Pair, dtype: torch.dtype, compare: Compare) -> None:
    for what, y in labels(pair).items():
        if what == "dropped labels":
            continue
        with their_precision(dtype):
            unguided = pair.theirs.reverse(pair.noise.clone(), y)
        for guidance in GUIDANCES:
            if y is None and guidance.temperature == 1:
                continue  # the official code does not guide then, and ours refuses
            annealed = guidance.schedule == "linear"
            with their_precision(dtype):
                theirs = pair.theirs.reverse(
                    pair.noise.clone(), y, guidance.scale, attn_temp=guidance.temperature, annealed_guidance=annealed
                )
            assert (theirs - unguided).abs().max().item() > 1e-2  # guidance did something
            how = f"{guidance.schedule}, scale {guidance.scale}, temperature {guidance.temperature}"
            ours = tarflow.sample(pair.ours, BATCH, y, guidance, noise=pair.noise, solver="sequential")
            compare(f"guided samples, {what}, {how}", ours, theirs)


def test_denoised_images(pair: Pair, dtype: torch.dtype, compare: Compare) -> None:
    ours = copy.deepcopy(pair.ours)
    if ours.base.follows:
        ours.base.variance.fill_(1)  # the official score of the additive variant leaves the variance out
    for what, y in labels(pair).items():
        with their_precision(dtype):
            theirs = denoised_by_them(pair.theirs, pair.images, y)
        assert (theirs - pair.images).abs().max().item() > 1e-2
        compare(f"denoised, {what}", tarflow.denoise(ours, pair.images, SIGMA, y), theirs)


def denoised_by_them(model: Any, images: Tensor, y: Tensor | None) -> Tensor:
    """One gradient step on their loss, a mean over all numbers of the batch, whence the size of the step."""
    x = images.clone().requires_grad_()
    z, _, logdets = model(x, y)
    (gradient,) = torch.autograd.grad(model.get_loss(z, logdets), [x])
    return (x - x.numel() * SIGMA**2 * gradient).detach()


def test_guided_and_denoised_samples(pair: Pair, dtype: torch.dtype, compare: Compare) -> None:
    if not pair.case.affine:
        return  # see above
    guidance = tarflow.Guidance(scale=1.0, schedule="linear", temperature=0.5)
    with their_precision(dtype):
        samples = pair.theirs.reverse(pair.noise.clone(), pair.y, 1.0, attn_temp=0.5, annealed_guidance=True)
        theirs = denoised_by_them(pair.theirs, samples, pair.y)
    ours = tarflow.sample(pair.ours, BATCH, pair.y, guidance, noise=pair.noise, denoise=SIGMA, solver="sequential")
    compare("guided and denoised samples", ours, theirs)


def test_our_weights_in_the_official_model(pair: Pair, official: ModuleType, dtype: torch.dtype) -> None:
    again = build(official, pair.case).to(dtype)
    again.load_state_dict(to_official(pair.ours), strict=True)
    for name, tensor in pair.theirs.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_unequal_depths(official: ModuleType, dtype: torch.dtype, compare: Compare) -> None:
    """The constructor of the official Model knows one depth, its blocks know their own."""
    case = Case(8, 1, 2, classes=2)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        theirs = build(official, case)
        theirs.blocks = torch.nn.ModuleList(
            build(official, Case(8, 1, 2, blocks=2, layers=layers, classes=2)).blocks[index % 2]
            for index, layers in enumerate((3, 1, 2))
        )
        theirs = theirs.to(dtype)
        images, noise = torch.randn(BATCH, 1, 8, 8, dtype=dtype), torch.randn(BATCH, 16, 4, dtype=dtype)
    ours = load_official(theirs.state_dict())
    assert ours.config.layers == (3, 1, 2)
    y = torch.arange(BATCH) % 2
    with their_precision(dtype):
        z, _, logdets = theirs(images, y)
        samples = theirs.reverse(noise.clone(), y, 1.0, annealed_guidance=True)
    with torch.no_grad():
        our_z, ladj = ours.encode(images, y)
    compare("latents", our_z, z)
    compare("log-determinants", ladj / 64, logdets)
    compare("guided samples", tarflow.sample(ours, BATCH, y, tarflow.Guidance(scale=1.0), noise=noise), samples)

"""Sampling: the fast decoder against the reference, a seed for each image, failures, and what is left behind."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import tarflow
from flow_cases import assert_close, build, every_flow, images, labels, latents, unchanged
from tarflow import Guidance
from tarflow.model.events import patchify
from tarflow.sampling import sample as sample_module
from tarflow.sampling.decode import draw_noise
from tarflow.sampling.guidance import guided_rows, predictor
from tarflow.sampling.sequential import sequential
from tarflow.sampling.solver import Solution

GUIDANCE = Guidance(scale=1.0, temperature=0.5)


# --- what is drawn -------------------------------------------------------------------------------------------------


@every_flow
def test_the_sequential_solver_is_the_reference_decode(name: str) -> None:
    flow = build(name)
    z, y = latents(flow, 4), labels(flow, 4)
    for block in flow.blocks:
        with torch.no_grad(), unchanged(z, y):
            predict = predictor(block, y, None, block.new_cache(guided_rows(None, 4)))
            assert_close(block.unmixed(block.leave(sequential(predict, block.enter(z)).x)), block.decode(z, y))


@every_flow
def test_sampling_from_given_noise_is_decode(name: str) -> None:
    """The additive variant's latents are N(0, V): its noise is multiplied by the root."""
    flow = build(name)
    noise, y = latents(flow, 5), labels(flow, 5)
    z = noise if not flow.base.follows else noise * flow.base.variance.sqrt()
    with unchanged(noise, y):
        got = tarflow.sample(flow, 5, y, noise=noise)
        assert_close(tarflow.sample(flow, 5, y, noise=noise, solver="sequential", batch_size=2), got)
    assert_close(got, flow.decode(z, y).detach())
    assert not got.requires_grad
    if y is not None:
        null = flow.conditions.drop(y, torch.ones(5, dtype=torch.bool))
        assert_close(tarflow.sample(flow, 5, None, noise=noise), flow.decode(z).detach())
        assert_close(tarflow.sample(flow, 5, None, noise=noise), tarflow.sample(flow, 5, null, noise=noise))


def test_a_part_of_a_larger_set_is_that_part() -> None:
    flow = build("conditional")
    y = labels(flow, 7)
    whole = tarflow.sample(flow, 7, y, seed=3, solver="sequential")
    for first, count in ((0, 2), (2, 5)):
        part = tarflow.sample(
            flow, count, y[first : first + count], seed=3, solver="sequential", batch_size=2, first=first
        )
        assert_close(part, whole[first : first + count])
    with pytest.raises(ValueError, match="first: expected 0 or more, got -1"):
        tarflow.sample(flow, 1, seed=3, first=-1)


def test_drawn_noise_is_what_is_decoded() -> None:
    flow = build("conditional")
    y = labels(flow, 5)
    assert_close(
        tarflow.sample(flow, 5, y, seed=7), tarflow.sample(flow, 5, y, noise=draw_noise(flow, torch.arange(5), 7))
    )


def test_denoising_is_the_last_step() -> None:
    flow = build("conditional")
    y = labels(flow, 5)
    raw = tarflow.sample(flow, 5, y, GUIDANCE)
    assert_close(tarflow.sample(flow, 5, y, GUIDANCE, denoise=0.2, batch_size=2), tarflow.denoise(flow, raw, 0.2, y))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_images_are_float32_at_least(dtype: torch.dtype) -> None:
    flow = build("conditional", dtype)
    wide = torch.promote_types(dtype, torch.float32)
    noise = latents(flow, 3)
    got = tarflow.sample(flow, 3, labels(flow, 3), GUIDANCE, noise=noise)
    exact = build("conditional")
    assert got.dtype == tarflow.sample(flow, 3, denoise=0.1).dtype == wide
    want = tarflow.sample(exact, 3, labels(exact, 3), GUIDANCE, noise=noise)
    assert_close(got.double(), want, {torch.float64: 1e-12, torch.float32: 1e-4}.get(dtype, 0.5))


def test_samples_follow_the_density() -> None:
    """Change of variables, both ways: E over samples of p(x+h)/p(x) is 1 for any small h."""
    flow = build("bounded_conditional")
    y = torch.arange(4000) % 3
    x = tarflow.sample(flow, 4000, y)
    with torch.no_grad():
        shifted = x + 0.1 * images(flow, 1)
        ratio = (flow.log_prob(shifted, y) - flow.log_prob(x, y)).exp()
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(len(ratio))
    assert patchify(x, 2).shape == (4000, 4, 4)


def test_batches_say_which_samples_they_hold_and_what_they_took() -> None:
    flow = build("unequal_depths")
    batches = list(tarflow.sample_batches(flow, 7, labels(flow, 7), GUIDANCE, batch_size=3))
    assert [b.indices.tolist() for b in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    assert all(b.indices.dtype == b.redraws.dtype == torch.int64 for b in batches)
    assert all(b.iterations == (3, 3, 3) and b.residual == 0 and len(b.images) == len(b.indices) for b in batches)
    assert torch.equal(
        torch.cat([b.images for b in batches]), tarflow.sample(flow, 7, labels(flow, 7), GUIDANCE, batch_size=3)
    )


def test_autocast_narrows_the_products_of_sampling_only() -> None:
    flow = build("one_block", torch.float32)
    noise, y = latents(flow, 3, dtype=torch.float32), labels(flow, 3)
    want = tarflow.sample(flow, 3, y, GUIDANCE, noise=noise)
    with torch.autocast("cpu", torch.bfloat16):
        got = tarflow.sample(flow, 3, y, GUIDANCE, noise=noise)
    assert got.dtype == torch.float32
    assert torch.equal(got[:, :, :2, :2].flatten(1), noise[:, 0]), "x_0 = z_0 was rounded"
    assert_close(got, want, 0.1)


# --- a seed for each image -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [None, GUIDANCE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_image_does_not_depend_on_its_batch(guidance: Guidance | None, dtype: torch.dtype) -> None:
    flow = build("non_square", dtype)
    y = labels(flow, 7)
    whole = tarflow.sample(flow, 7, y, guidance, seed=3)
    for batch_size in (1, 2, 3, 6, 50):
        got = tarflow.sample(flow, 7, y, guidance, seed=3, batch_size=batch_size)
        assert_close(got, whole, 1e-10 if dtype == torch.float64 else 1e-4)
    assert_close(tarflow.sample(flow, 4, y[:4], guidance, seed=3), whole[:4], 1e-10 if dtype == torch.float64 else 1e-4)
    together = draw_noise(flow, torch.arange(7), 3)
    for k in range(7):
        assert torch.equal(draw_noise(flow, torch.tensor([k]), 3)[0], together[k])


def test_every_seed_image_and_attempt_has_noise_of_its_own() -> None:
    flow = build("unconditional")
    seeds = [0, 1, -1, 11, 2**32, 2**32 + 1, 2**64]
    drawn = {
        (seed, k, attempt): draw_noise(flow, torch.tensor([k]), seed, attempt)
        for seed in seeds
        for k in (0, 1, 11, 2**32)
        for attempt in (0, 1, 2)
    }
    assert len({tuple(noise.flatten().tolist()) for noise in drawn.values()}) == len(drawn)
    values = torch.stack([noise.flatten() for noise in drawn.values()])
    assert len(set(values.flatten().tolist())) == values.numel(), "two images share numbers"
    assert not torch.equal(tarflow.sample(flow, 2, seed=0), tarflow.sample(flow, 2, seed=1))


def test_noise_is_standard_normal_and_independent() -> None:
    """300 images of 16 numbers against N(0, 1): moments, the Kolmogorov-Smirnov distance, correlations of images."""
    flow = build("unconditional")
    noise = draw_noise(flow, torch.arange(300), seed=5)
    assert noise.shape == (300, 4, 4) and noise.dtype == torch.float64 and noise.device.type == "cpu"
    values, count = noise.flatten().sort().values, noise.numel()
    normal = 0.5 * (1 + torch.erf(values / math.sqrt(2)))
    distance = (normal - (torch.arange(count) + 0.5) / count).abs().max() + 0.5 / count
    assert distance < 1.63 / math.sqrt(count)  # the 1 % point; the seed is fixed
    assert abs(values.mean()) < 3 / math.sqrt(count) and abs(values.var() - 1) < 3 * math.sqrt(2 / count)
    assert abs((values**4).mean() - 3) < 3 * math.sqrt(96 / count)
    places = torch.corrcoef(noise.flatten(1).T)  # (16, 16), of 300 images
    assert (places - torch.eye(16)).abs().max() < 4 / math.sqrt(300)
    neighbours = (noise[1:] * noise[:-1]).mean()
    assert abs(neighbours) < 3 / math.sqrt(count)


# --- what is refused -------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no images": ({"n": 0}, "^n: expected"),
    "fewer than none": ({"n": -1}, "^n: expected"),
    "batch size": ({"n": 2, "batch_size": 0}, "^batch_size: expected"),
    "solver": ({"n": 2, "solver": "newton"}, "^solver: expected .*'newton'"),
    "labels of another number": ({"n": 2, "y": torch.tensor([0])}, "^y: expected"),
    "labels out of range": ({"n": 2, "y": torch.tensor([0, 3])}, "^y: expected 0 to 2.*got 3"),
    "labels that are floats": ({"n": 2, "y": torch.zeros(2)}, "^y: expected .*float32"),
    "noise of another number": ({"n": 2, "noise": torch.zeros(3, 4, 4)}, "noise: expected 2"),
    "noise of another shape": ({"n": 2, "noise": torch.zeros(2, 4, 3)}, "expected .*4, 4.*got"),
    "noise that is no number": ({"n": 2, "noise": torch.full((2, 4, 4), math.nan)}, "noise: expected finite"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("function", [tarflow.sample, tarflow.sample_batches])
def test_arguments_that_do_not_fit_are_refused_before_anything_is_drawn(
    name: str, function: Callable[..., Any]
) -> None:
    arguments, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        function(build("conditional"), **arguments)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="temperature"):
        tarflow.sample(build("conditional"), 1, temperature=0.5)  # type: ignore[call-arg]


@pytest.mark.parametrize("worst", [0, 1, 2])
def test_the_residual_of_a_batch_is_the_largest_of_its_blocks(worst: int, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = build("unequal_depths")
    real, asked = sample_module.decode, []

    def decode(*arguments: Any, **options: Any) -> Iterator[Solution]:
        for number, solution in enumerate(real(*arguments, **options)):
            asked.append(solution.iterations)
            yield dataclasses.replace(solution, residual=0.25 if number == worst else 0.125)

    monkeypatch.setattr(sample_module, "decode", decode)
    (batch,) = tarflow.sample_batches(flow, 2, solver="jacobi")
    assert batch.residual == 0.25 and batch.iterations == tuple(asked)

"""The parallel solver returns what the sequential one does, within its tolerance, whatever happens on the way."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tarflow
from flow_cases import build, every_flow, labels, latents, randomise, transform_of, unchanged
from tarflow import Guidance, TarFlow, TarFlowConfig
from tarflow.sampling.guidance import Predict, guided_rows, predictor
from tarflow.sampling.jacobi import Jacobi, Solution, jacobi
from tarflow.sampling.sequential import sequential


def both(
    name: str, guidance: Guidance | None = None, count: int = 3, **options: object
) -> list[tuple[Tensor, Solution]]:
    """For each block: the sequential solution and the parallel one."""
    flow = build(name)
    y, results = labels(flow, count), []
    with torch.no_grad():
        for block in flow.blocks:
            z = latents(flow, count)
            caches = [block.new_cache(guided_rows(guidance, count)) for _ in range(2)]
            with unchanged(z):
                exact = sequential(predictor(block, y, guidance, caches[0]), z).x
                results.append((exact, jacobi(predictor(block, y, guidance, caches[1]), z, **options)))
    return results


@every_flow
@pytest.mark.parametrize("window", [None, 1, 2, 3])
def test_is_the_sequential_solution(name: str, window: int | None) -> None:
    for exact, found in both(name, window=window, tol=0.0):
        torch.testing.assert_close(found.x, exact, rtol=1e-10, atol=1e-10)
        assert found.iterations <= exact.shape[1] - 1
        assert found.residual == 0


@pytest.mark.parametrize("name", ["unconditional", "conditional", "additive", "bounded", "one_pixel_patches"])
@settings(max_examples=20, deadline=None)
@given(window=st.integers(1, 8), log_tol=st.floats(-12, -3))
def test_stays_within_its_tolerance(name: str, window: int, log_tol: float) -> None:
    tol = 10**log_tol
    for exact, found in both(name, window=window, tol=tol):
        assert found.residual <= tol
        # A residual is carried on by what follows, so the error may be a few times the tolerance.
        assert float(((found.x - exact).abs() / exact.abs().clamp(min=1)).max()) <= 100 * tol + 1e-10


@pytest.mark.parametrize(
    "guidance",
    [
        Guidance(1.0),
        Guidance(10.0, rule="stable"),
        Guidance(10.0, "constant"),
        Guidance(2.0, "constant", 0.3, "stable"),
    ],
    ids=str,
)
def test_under_guidance(guidance: Guidance) -> None:
    for window in (None, 2):
        for exact, found in both("conditional", guidance, window=window, tol=1e-12):
            torch.testing.assert_close(found.x, exact, rtol=1e-8, atol=1e-8)


def chain(rate: float) -> tuple[Predict, list[int]]:
    """predict of x_i = z_i + rate·x_{i-1}², and where it was called: a system that Jacobi makes overflow."""
    calls: list[int] = []

    def evaluate(x: Tensor, start: int) -> Tensor:
        calls.append(start)
        return rate * x.square()

    return Predict(evaluate, transform_of("additive")), calls


def test_overflow_on_the_way_is_survived() -> None:
    z = torch.full((2, 40, 1), 3.0, dtype=torch.float64)
    z[:, ::2] = -9.0 * 1.0  # x_i = z_i + x_{i-1}²: from -9 and 3 the solution is bounded, from the guess it is not
    predict, _ = chain(1.0)
    exact = sequential(predict, z[:, :6]).x
    found = jacobi(predict, z[:, :6], tol=0.0)
    assert torch.equal(found.x, exact)
    with torch.no_grad():  # float32 overflows within a few iterations
        narrow = torch.zeros(1, 30, 1)
        narrow[0, :, 0] = torch.tensor([(-1) ** i * 50.0 for i in range(30)])
        wild, _ = chain(0.9)
        state = jacobi(wild, narrow, tol=0.0)
        reference = sequential(wild, narrow).x
        finite = torch.isfinite(reference)
        assert torch.equal(state.x[finite], reference[finite])
        assert state.iterations <= 29


def test_a_row_that_is_not_finite_does_not_hold_up_the_others() -> None:
    z = torch.zeros(3, 20, 1, dtype=torch.float64)
    z[1, 3] = float("inf")
    predict, calls = chain(0.5)
    found = jacobi(predict, z, tol=1e-9)
    assert torch.equal(found.x[[0, 2]], torch.zeros(2, 20, 1, dtype=torch.float64))
    assert not torch.isfinite(found.x[1]).all()
    assert len(calls) <= 6


def test_what_has_converged_is_never_computed_again() -> None:
    predict, calls = chain(0.1)
    z = torch.randn(2, 50, 1, dtype=torch.float64)
    found = jacobi(predict, z, window=10, tol=1e-6)
    assert calls == sorted(calls) and len(set(calls)) == len(calls)  # each start lies beyond the one before
    assert found.iterations == len(calls) < 49


def test_few_iterations_where_patches_depend_little_on_each_other() -> None:
    predict, _ = chain(0.0)
    found = jacobi(predict, torch.randn(2, 64, 3, dtype=torch.float64))
    assert found.iterations == 1 or found.iterations == 2


@pytest.mark.parametrize(
    ("options", "name"), [({"window": 0}, "window"), ({"tol": -1.0}, "tol"), ({"tol": float("nan")}, "tol")]
)
def test_impossible_options_are_refused(options: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        jacobi(chain(0.0)[0], torch.zeros(1, 4, 1), **options)


@pytest.mark.parametrize("name", ["conditional", "additive", "two_tokens"])
def test_sample_takes_the_solver_and_reports_what_it_took(name: str) -> None:
    flow = build(name)
    y, steps = labels(flow, 4), flow.config.num_patches - 1
    exact = tarflow.sample(flow, 4, y)
    for options in ({}, {"window": 2}, {"tol": 1e-9, "window": 1}):
        (batch,) = tarflow.sample_batches(flow, 4, y, solver=Jacobi(**options))
        torch.testing.assert_close(batch.images, exact, rtol=1e-2, atol=1e-2)
        assert batch.residual <= options.get("tol", 1e-4)
        assert len(batch.iterations) == len(flow.blocks) and max(batch.iterations) <= steps
    tight = tarflow.sample(flow, 4, y, solver=Jacobi(tol=0.0))
    torch.testing.assert_close(tight, exact, rtol=1e-9, atol=1e-9)
    (batch,) = tarflow.sample_batches(flow, 4, y, solver="sequential")
    assert batch.iterations == (steps,) * len(flow.blocks) and batch.residual == 0


@pytest.mark.parametrize("window", [None, 5, 16])
def test_a_network_that_rounds_by_the_shape_converges_all_the_same(window: int | None) -> None:
    """In bf16 a product of another shape is rounded in another way: 770 iterations on a GPU where 26 were enough."""
    flow = randomise(TarFlow(TarFlowConfig(8, channels=1, patch_size=1, width=16, head_dim=8, layers=(1,)))).double()
    block, z = flow.blocks[0], latents(flow, 3)
    block.proj_out.weight.data.mul_(0.3)
    counts = []

    def rounded(x: Tensor, start: int) -> Tensor:
        """Off by half of a hundredth, in a direction that hangs on the shape."""
        log_scale, shift = exact(x, start).chunk(2, dim=-1)
        counts.append(x.shape[1])
        return torch.cat([log_scale, shift + 0.005 * (-1) ** x.shape[1]], dim=-1)

    with torch.no_grad():
        exact = predictor(block, None, None, block.new_cache(3))
        found = {}
        for shapes in (8, None):
            counts.clear()
            found[shapes] = jacobi(Predict(rounded, block.transform), z, window=window, tol=0.002, shapes=shapes)
            if shapes:
                assert len(set(counts)) <= 10
        want = sequential(predictor(block, None, None, block.new_cache(3)), z)
    assert found[8].iterations < 63 and found[8].residual <= 0.002
    assert float((found[8].x - want.x).abs().max()) < 0.2


@pytest.mark.parametrize("name", ["spline", "affine-by-number"])
def test_patches_that_enter_together_have_as_many_parameters(name: str) -> None:
    """In float32, where what makes x of z is C, which broadcasts nothing."""
    torch.manual_seed(0)
    flow = TarFlow(TarFlowConfig(8, channels=1, patch_size=2, width=64, layers=(1, 1), transform=name))
    found = tarflow.sample(flow, 3, solver=Jacobi(window=4))  # of a new flow, whose windows converge at once
    torch.testing.assert_close(found, tarflow.sample(flow, 3, solver="sequential"))

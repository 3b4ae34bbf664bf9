"""Every solver solves the system of every block: drawn configurations, wild weights, guidance up to 10.

The law is the equation itself, x_i = inverse(z_i, params_i(x_<i)), checked by one evaluation of the block
without a cache. It holds for whatever a solver returns, however strongly rounding errors grow along a sequence, which a
comparison with another solver would not survive.
"""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from flow_cases import labels, latents, randomise
from solver_law import assert_solves
from tarflow import Guidance, TarFlow, TarFlowConfig
from tarflow.sampling.guidance import Predict, guided_rows, predictor
from tarflow.sampling.jacobi import LARGEST_GUESS, jacobi
from tarflow.sampling.sequential import sequential
from tarflow.sampling.solver import SOLVERS, Solver, solver_of

laws = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)


@st.composite
def flows(draw: st.DrawFn) -> TarFlow:
    """Small flows of any kind; `gain` makes patches depend on each other from weakly to wildly."""
    patch = draw(st.integers(1, 2))
    affine = draw(st.booleans())
    config = TarFlowConfig(
        image_size=(patch * draw(st.integers(1, 3)), patch * draw(st.integers(2, 4))),
        channels=draw(st.integers(1, 2)),
        patch_size=patch,
        width=draw(st.sampled_from([8, 16])),
        head_dim=8,
        layers=(draw(st.integers(1, 2)),) * 2,
        num_classes=draw(st.sampled_from([0, 1, 3])),
        transform="affine" if affine else "additive",
        log_scale_bound=draw(st.sampled_from(["none", 2.0])) if affine else None,
    )
    flow = randomise(TarFlow(config).double(), seed=draw(st.integers(0, 99))).requires_grad_(False)
    gain = draw(st.sampled_from([0.1, 1.0, 4.0]))
    for block in flow.blocks:
        block.proj_out.weight.mul_(gain)
    return flow


@st.composite
def guidances(draw: st.DrawFn) -> Guidance | None:
    if draw(st.booleans()):
        return None
    return Guidance(
        draw(st.floats(0.1, 10)),
        draw(st.sampled_from(["linear", "constant"])),
        draw(st.sampled_from([0.3, 1.0, 2.0])),
        draw(st.sampled_from(["paper", "stable"])),
    )


def solver_with(name: str, window: int | None, tol: float) -> Solver:
    """A solver of the table, with those of the options that it has."""
    options = {"window": window, "tol": tol}
    known = {field.name for field in fields(solver_of(name))}
    return solver_of(name, **{option: value for option, value in options.items() if option in known})


@pytest.mark.parametrize("replayed", [False, True])
@pytest.mark.parametrize("solver", SOLVERS)
@laws
@given(
    flow=flows(),
    guidance=guidances(),
    window=st.sampled_from([None, 1, 2, 3, 5]),
    tol=st.sampled_from([0.0, 1e-9, 1e-4]),
    batch=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_what_is_returned_solves_the_equation(
    solver: str,
    replayed: bool,
    flow: TarFlow,
    guidance: Guidance | None,
    window: int | None,
    tol: float,
    batch: int,
    seed: int,
) -> None:
    value = solver_with(solver, window, tol)
    assert_solves(value, flow, guidance, batch, seed, 0 if solver == "sequential" else tol, replayed)


@pytest.mark.parametrize("scale", [None, 3.0, 10.0])
@pytest.mark.parametrize("window", [None, 8])
def test_weights_on_which_iterates_overflow(scale: float | None, window: int | None) -> None:
    """The solution is tame, because z is made from it; on the way to it log-scales pass 89, where float32 ends."""
    config = TarFlowConfig(
        8, channels=1, patch_size=1, width=16, head_dim=8, layers=(1,), num_classes=3, log_scale_bound="none"
    )
    flow = randomise(TarFlow(config)).requires_grad_(False)
    block = flow.blocks[0]
    block.proj_out.weight.mul_(25 / (1 + (scale or 0)))
    guidance = None if scale is None else Guidance(scale, "constant")
    y, x = labels(flow, 6), latents(flow, 6, dtype=torch.float32)
    overflows = []

    def predict() -> Predict:
        return predictor(block, y, guidance, block.new_cache(guided_rows(guidance, 6)))

    def watched(x: Tensor, start: int) -> Tensor:
        assert bool((x[:, 1:].abs() <= LARGEST_GUESS).all()), "a guess that overflows was fed back"
        params = predict_block(x, start)
        overflows.append(not bool(torch.isfinite(torch.exp(combined(params).chunk(2, dim=-1)[0])).all()))
        return params

    def combined(params: Tensor) -> Tensor:
        if scale is None:
            return params
        conditional, unguided, strength = params.split([2, 2, 1], dim=-1)
        return block.transform.combine(conditional, unguided, strength, "paper")

    with torch.no_grad():
        log_scale, shift = combined(predict()(x[:, :-1], 0)).chunk(2, dim=-1)
        z = torch.cat([x[:, :1], (x[:, 1:] - shift) * torch.exp(-log_scale)], dim=1)
        assert bool(torch.isfinite(z).all())
        predict_block = predict()
        found, exact = (
            jacobi(Predict(watched, predict_block.transform), z, window=window, tol=0.0),
            sequential(predict(), z),
        )
    assert any(overflows) and found.iterations <= 63
    first = slice(0, 3)  # before rounding errors are multiplied some tenfold a patch
    torch.testing.assert_close(exact.x[:, first], x[:, first], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(found.x[:, first], x[:, first], rtol=1e-2, atol=1e-2)

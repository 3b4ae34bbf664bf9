"""What the parallel solver leaves over: the residual is what one more evaluation would change, at the worst place."""

from __future__ import annotations

import pytest
import torch

from flow_cases import build, labels, latents, transform_of
from tarflow.sampling.guidance import Predict, predictor
from tarflow.sampling.jacobi import default_tolerance, jacobi


@pytest.mark.parametrize("name", ["unconditional", "conditional", "additive"])
@pytest.mark.parametrize("window", [None, 5])
def test_the_residual_is_the_largest_change_that_one_more_evaluation_makes(name: str, window: int | None) -> None:
    flow, count, tol, seen = build(name, image_size=8), 3, 0.3, []
    y = labels(flow, count)
    with torch.no_grad():
        for block in flow.blocks:
            z = latents(flow, count)
            found = jacobi(predictor(block, y, None, block.new_cache(count)), z, window=window, tol=tol)
            params = predictor(block, y, None, block.new_cache(count))(found.x[:, :-1], 0)
            again = torch.cat([z[:, :1], block.transform.inverse(z[:, 1:], params)], dim=1)
            change = (again - found.x).abs() / found.x.abs().clamp(min=1)
            assert found.residual == pytest.approx(float(change.max()), rel=1e-9, abs=1e-12)
            seen.append(found.residual)
    assert 1e-3 < max(seen) <= tol, "something must be left over for the largest to differ from the least"


def test_the_residual_is_that_of_the_worst_patch_of_the_worst_iteration() -> None:
    """Two patches that are nearly right from the start, by known amounts, and are frozen together or one by one."""
    z = torch.zeros(1, 5, 1, dtype=torch.float64)
    shifts = torch.tensor([0.02, 0.04, 0.01, 0.03], dtype=torch.float64).view(1, 4, 1)

    predict = Predict(lambda x, start: shifts[:, start : start + x.shape[1]], transform_of("additive"))
    for window in (None, 2, 3, 4):
        found = jacobi(predict, z, window=window, tol=0.1)
        left_over = (found.x[:, 1:] - shifts).abs()
        assert found.residual == pytest.approx(float(left_over.max()))
    assert jacobi(predict, z, tol=0.1).residual == pytest.approx(0.04)


def test_the_default_tolerance_is_a_thirtieth_of_a_level() -> None:
    """As `sample` says: 1.2e-4 in float32, where two of 256 levels are 2/255 apart."""
    assert default_tolerance(torch.float32) == pytest.approx(1.2e-4, rel=0.01)
    assert default_tolerance(torch.float64) == pytest.approx(2.2e-13, rel=0.01)
    for below, solved in ((0.9, True), (1.1, False)):
        tol = default_tolerance(torch.float64)
        z = torch.zeros(1, 3, 1, dtype=torch.float64)
        predict = Predict(lambda x, _, shift=below * tol: torch.full_like(x, shift), transform_of("additive"))
        assert (jacobi(predict, z).iterations == 1) == solved

"""The log-density that comes with a sample is that of the sample: under every solver, for every flow of the table."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tarflow
from flow_cases import assert_close, build, every_flow, labels
from tarflow.sampling import sample as sampling

SOLVERS: dict[str, Any] = {
    "sequential": tarflow.Sequential(),
    "jacobi": tarflow.Jacobi(),
    "loose": tarflow.Jacobi(tol=0.3),  # leaves what has other latents
    "one at a time": tarflow.Jacobi(window=1),
    "auto": "auto",
}


@every_flow
@pytest.mark.parametrize("solver", SOLVERS)
def test_it_is_the_density_of_what_is_returned(name: str, solver: str) -> None:
    flow = build(name)
    y = labels(flow, 5)
    x, log_q = flow.sample_and_log_prob(5, y, seed=3, solver=SOLVERS[solver], batch_size=3)
    assert log_q.shape == (5,) and not log_q.requires_grad and not x.requires_grad
    assert_close(log_q, flow.log_prob(x, y).detach(), 1e-9)
    if solver == "sequential":
        assert torch.equal(x, tarflow.sample(flow, 5, y, seed=3, solver="sequential", batch_size=3))


@every_flow
def test_in_float32_it_is_that_up_to_rounding(name: str) -> None:
    flow = build(name, torch.float32)
    y = labels(flow, 4)
    x, log_q = flow.sample_and_log_prob(4, y, solver="sequential")
    assert_close(log_q, flow.log_prob(x, y).detach(), 2e-3)


def count_encodings(monkeypatch: pytest.MonkeyPatch, flow: Any) -> list[int]:
    counted = []
    honest = flow.log_prob
    monkeypatch.setattr(flow, "log_prob", lambda *given, **named: counted.append(1) or honest(*given, **named))
    return counted


@pytest.mark.parametrize("name", ["conditional", "spline", "by_number", "start_token", "one_token"])
def test_the_sequential_solver_needs_no_second_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = build(name)
    counted = count_encodings(monkeypatch, flow)
    flow.sample_and_log_prob(4, labels(flow, 4), solver="sequential")
    flow.sample_and_log_prob(4, labels(flow, 4), solver=tarflow.Jacobi(window=1))
    assert not counted
    if flow.sequence.slots > 3:
        flow.sample_and_log_prob(4, labels(flow, 4), solver="jacobi")
        assert counted


def test_a_loose_tolerance_would_have_shown() -> None:
    """The density of the latents that were drawn is off by far more than rounding; that of the sample is not."""
    flow = build("unconditional", image_size=(8, 6))
    x, log_q = flow.sample_and_log_prob(8, solver=SOLVERS["loose"])
    z, ladj = flow.encode(x)
    noise = sampling.draw_noise(flow, torch.arange(8), 0)
    naive = (flow.base.log_prob(noise).sum(1) + ladj).detach()
    assert float((naive - log_q).abs().amax()) > 0.01
    assert_close(log_q, (flow.base.log_prob(z).sum(1) + ladj).detach(), 1e-9)


def test_what_was_drawn_again_has_the_density_of_what_replaced_it(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = build("conditional")
    y = labels(flow, 4)
    honest = sampling.draw_noise

    def broken(flow: Any, indices: torch.Tensor, seed: int, attempt: int = 0) -> torch.Tensor:
        noise = honest(flow, indices, seed, attempt)
        return torch.where((indices == 2).view(-1, 1, 1) & (attempt == 0), torch.nan, noise)

    monkeypatch.setattr(sampling, "draw_noise", broken)
    (batch,) = tarflow.sample_batches(flow, 4, y, solver="sequential", log_prob=True)
    assert batch.redraws.tolist() == [0, 0, 1, 0] and batch.log_prob is not None
    assert_close(batch.log_prob, flow.log_prob(batch.images, y).detach(), 1e-9)


def test_where_there_is_no_density_it_says_so() -> None:
    flow = build("conditional")
    y = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="log_prob: expected no guidance and no denoising"):
        tarflow.sample_batches(flow, 2, y, tarflow.Guidance(1.0), log_prob=True)
    with pytest.raises(ValueError, match="log_prob: expected no guidance and no denoising"):
        tarflow.sample_batches(flow, 2, y, denoise=0.1, log_prob=True)
    with pytest.raises(TypeError, match="sample_and_log_prob"):
        tarflow.sample(flow, 2, y, log_prob=True)
    assert next(tarflow.sample_batches(flow, 2, y)).log_prob is None


def test_importance_weights_of_a_flow_against_itself_are_equal() -> None:
    flow = build("conditional")
    y = torch.zeros(20, dtype=torch.int64)
    drawn = tarflow.importance(flow, lambda x: flow.log_prob(x, y) + 2, 20, y)
    assert drawn.effective_sample_size == pytest.approx(20) and float(drawn.log_normaliser.mean) == pytest.approx(2)

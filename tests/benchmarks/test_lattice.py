"""The benchmark of lattices: its action, its reference and its flows are what they are called, and rows are kept."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import boltzmann, lattice


def test_the_action_is_that_of_the_paper_and_knows_no_place_and_no_sign() -> None:
    x = torch.randn(3, 16, dtype=torch.float64)
    phi, m, coupling = x.view(3, 4, 4), lattice.MASS, lattice.COUPLING
    expected = torch.zeros(3, dtype=torch.float64)
    for i in range(4):
        for j in range(4):
            around = phi[:, (i + 1) % 4, j] + phi[:, i - 1, j] + phi[:, i, (j + 1) % 4] + phi[:, i, j - 1]
            here = phi[:, i, j]
            expected += here * (4 * here - around) + m * here**2 + coupling * here**4
    torch.testing.assert_close(lattice.action(x, 4), expected)
    moved = -phi.roll((1, 2), dims=(1, 2)).mT.flatten(1)
    torch.testing.assert_close(lattice.action(moved, 4), expected)


def test_the_coupling_flow_has_the_density_of_its_draws_and_a_volume_that_is_right() -> None:
    torch.manual_seed(0)
    flow = lattice.RealNVP(4, couplings=3).double()
    x, log_q = flow.double().sample_and_log_prob(5, seed=1)
    torch.testing.assert_close(flow.log_prob(x.double()), log_q.double(), atol=1e-5, rtol=1e-5)
    z = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(1))

    def latents(x: Tensor) -> Tensor:
        """From x to z, by what `log_prob` does."""
        z = x.view(1, 4, 4)
        for index in reversed(range(3)):
            s, t = flow._parts(z, index)
            z = (z - t) * (-s).exp()
        return (z * (-flow.log_width).exp()).flatten()

    first = flow.sample_and_log_prob(1, seed=1)[0][0].double()
    torch.testing.assert_close(latents(first), z.double().flatten(), atol=1e-6, rtol=0)
    jacobian = torch.autograd.functional.jacobian(latents, first)
    expected = jacobian.slogdet().logabsdet - 0.5 * latents(first).square().sum() - 8 * math.log(2 * math.pi)
    torch.testing.assert_close(flow.log_prob(first[None])[0], expected)


def test_an_even_density_is_even_and_draws_both_signs() -> None:
    torch.manual_seed(0)
    flow = lattice.make(4, width=32, layers=(1, 1))
    even = lattice.Even(flow)
    x, log_q = even.sample_and_log_prob(40)
    torch.testing.assert_close(even.log_prob(-x), log_q, atol=1e-4, rtol=1e-4)
    there = flow.sample_and_log_prob(40)[0]
    kept = (x == there).all(dim=1)
    assert 5 < int(kept.sum()) < 35 and torch.equal(x[~kept], -there[~kept])
    expected = (flow.log_prob(x).exp() + flow.log_prob(-x).exp()) / 2
    torch.testing.assert_close(even.log_prob(x).exp(), expected)


def test_annealing_finds_a_normaliser_and_moments_that_are_known() -> None:
    """From N(0, 1) to two independent Gaussians of deviation 1/2, times e³."""

    def path(x: Tensor, time_: float) -> Tensor:
        start = -0.5 * x.square().sum(dim=1) - math.log(2 * math.pi)
        return (1 - time_) * start + time_ * (3 - 2 * x.square().sum(dim=1))

    generator = torch.Generator().manual_seed(0)
    start = torch.randn(1256, 2, generator=generator, dtype=torch.float64)
    times = torch.linspace(0, 1, 31, dtype=torch.float64)
    known = boltzmann.reference(path, start, times=times, chains=64, warmup=30, steps=40, seed=0)
    assert known.log_z == pytest.approx(3 + math.log(2 * math.pi / 4), abs=4 * known.error) and known.error < 0.05
    torch.testing.assert_close(known.train.std(dim=0), torch.full((2,), 0.5), atol=0.05, rtol=0)
    assert known.facts["energy"] == pytest.approx(1 - 3, abs=0.15) and len(known.test) == 12 * 20


def test_what_draws_are_worth_is_all_where_a_flow_is_the_target_and_less_where_not() -> None:
    class Gaussian:
        def log_prob(self, x: Tensor) -> Tensor:
            return torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(dim=1)

        def sample_and_log_prob(self, n: int, c: object = None, seed: int = 0) -> tuple[Tensor, Tensor]:
            x = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
            return x, self.log_prob(x)

    def target(deviation: float) -> boltzmann.LogDensity:
        return lambda x: 2 - 0.5 * (x / deviation).square().sum(dim=1)

    for deviation in (1.0, 0.7):
        log_z = 2 + math.log(2 * math.pi * deviation**2)
        test = deviation * torch.randn(4000, 2, generator=torch.Generator().manual_seed(9))
        known = boltzmann.Reference(log_z, 0.0, test, test, {})
        found = boltzmann.judged(Gaussian(), target(deviation), known, lambda x: x[:, 0], 4000)
        # Z²/E_q[w²] of Gaussians in two numbers, and KL(p‖q) and KL(q‖p)
        ess = deviation**2 * (2 - deviation**2)
        assert found["ess"] == pytest.approx(ess, abs=0.03) and found["ess_of_the_chain"] == pytest.approx(
            ess, abs=0.03
        )
        assert found["kl"] == pytest.approx(deviation**2 - 1 - 2 * math.log(deviation), abs=0.03)
        assert found["reverse_kl"] == pytest.approx(deviation**-2 - 1 + 2 * math.log(deviation), abs=0.07)
        assert found["log_z"] == pytest.approx(log_z, abs=0.05)
        assert (found["acceptance"] > 0.999) == (deviation == 1.0)


def test_rows_that_are_in_the_file_are_not_measured_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        lattice,
        "SIZES",
        {"8x8": {"side": 4, "flow": {"width": 32, "layers": (1,)}, "temperatures": 8, "annealed": 1100}},
    )
    small = lattice.known_of(4, 8, 1100, warmup=2, steps=8)
    monkeypatch.setattr(lattice, "known_of", lambda *size: small)
    arguments = ["--lattices", "8x8", "--seconds", "0.02", "--draws", "100", "--out", str(tmp_path / "out.json")]
    assert lattice.main([*arguments, "--seeds", "0"]) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["method"] for row in rows] == list(lattice.METHODS)
    for row in rows:
        assert row["steps"] >= 1 and 0 < row["ess"] <= 1 and math.isfinite(row["kl"])
    assert "tarflow, reverse KL" in capsys.readouterr().out
    assert lattice.main([*arguments, "--seeds", "0", "1", "--methods", "RealNVP, likelihood"]) == 0
    again = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert again[: len(rows)] == rows and [row["seed"] for row in again[len(rows) :]] == [1]

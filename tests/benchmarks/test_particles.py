"""The benchmark of particles: energies are even under what they should be, and a change of coordinates is one."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import particles

SYSTEMS = pytest.mark.parametrize("name", particles.SYSTEMS)


def spread_out(system: particles.System, n: int) -> Tensor:
    """Particles on a grid, moved a little: nowhere near each other."""
    generator = torch.Generator().manual_seed(0)
    grid = torch.cartesian_prod(*[torch.arange(3.0)] * system.dims)[: system.particles]
    return (1.2 * grid + 0.2 * torch.randn(n, *grid.shape, generator=generator)).double().flatten(1)


def test_energies_of_single_pairs_are_those_of_the_formulas() -> None:
    four = torch.tensor([[0.0, 0.0, 4.0, 0.0, 0.0, 4.0, 4.0, 4.0]], dtype=torch.float64)
    away = 4 * 2**0.5 - 4
    expected = 2 * (0.9 * away**4 - 4 * away**2) + 0.5 * 8
    assert float(particles.energy(four, particles.SYSTEMS["DW4"])) == pytest.approx(expected)
    system = particles.System("LJ13", 2, 3, 1.0, 1.0, (), 1, 1, {})
    two = torch.tensor([[0.5, 0, 0, -0.5, 0, 0], [1.0, 0, 0, -1.0, 0, 0]], dtype=torch.float64)
    assert particles.energy(two, system).tolist() == pytest.approx([-2 + 0.25, 2 * (2**-12 - 2 * 2**-6) + 1])


@SYSTEMS
def test_an_energy_is_even_under_permutations_rotations_and_reflections(name: str) -> None:
    system = particles.SYSTEMS[name]
    x = spread_out(system, 20)
    other = particles.moved(x.float(), system, torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(particles.energy(other, system), particles.energy(x, system), rtol=1e-4, atol=1e-3)
    assert (other - x).abs().amin(dim=1).max() > 0.05
    lengths = other.unflatten(1, (system.particles, -1)).square().sum(dim=2).sort(dim=1).values
    expected = x.unflatten(1, (system.particles, -1)).square().sum(dim=2).sort(dim=1).values
    torch.testing.assert_close(lengths, expected, rtol=1e-4, atol=1e-4)


@SYSTEMS
def test_annealing_begins_with_a_normalised_gaussian_and_ends_with_the_energy(name: str) -> None:
    system = particles.SYSTEMS[name]
    x = spread_out(system, 5)
    gaussian = torch.distributions.Normal(0.0, system.width).log_prob(x).sum(dim=1)
    torch.testing.assert_close(particles.path(system)(x, 0.0), gaussian)
    torch.testing.assert_close(particles.path(system)(x, 1.0), -particles.energy(x, system))


@SYSTEMS
@pytest.mark.parametrize("kind", ["sorted", "gaps"])
def test_a_canonical_order_has_all_the_weight_of_all_orders(name: str, kind: str) -> None:
    system = particles.SYSTEMS[name]
    coordinates, x = particles.Coordinates(kind, system), spread_out(system, 6)
    v = coordinates.encode(x)
    ladj = torch.zeros(6, dtype=torch.float64)
    if kind == "gaps":
        first = x.unflatten(1, (system.particles, system.dims))[:, :, 0].sort(dim=1).values
        ladj = first.diff(dim=1).log().sum(dim=1)  # |∂x/∂v|
    expected = -particles.energy(x, system) + math.log(math.factorial(system.particles)) + ladj
    torch.testing.assert_close(coordinates.log_target(v), expected)
    if kind == "sorted":
        turned = v.unflatten(1, (system.particles, system.dims)).flip(1).flatten(1)
        assert (coordinates.log_target(turned) == -torch.inf).all()
    else:
        assert coordinates.log_target(torch.full_like(v, 800.0)).tolist() == [-torch.inf] * 6


def test_a_frame_leaves_out_what_can_be_integrated_by_hand() -> None:
    """x of the frame, an angle and the centre: the volume of that map, and the integral over both."""
    system = particles.SYSTEMS["DW4"]
    coordinates, x = particles.Coordinates("frame", system), spread_out(system, 3)
    v = coordinates.encode(x)

    def placed(all_: Tensor) -> Tensor:
        v, angle, centre = all_[:5], all_[5], all_[6:]
        zero = torch.zeros_like(angle)
        points = torch.stack([zero, zero, v[0].exp(), zero, *v[1:]]).view(4, 2)
        turn = torch.stack([angle.cos(), angle.sin(), -angle.sin(), angle.cos()]).view(2, 2)
        points = points @ turn
        return (points - points.mean(dim=0) + centre).flatten()

    for row, found in zip(v, coordinates.log_target(v), strict=True):
        at = torch.cat([row, torch.tensor([0.3, 0.0, 0.0], dtype=torch.float64)])
        volume = torch.autograd.functional.jacobian(placed, at).slogdet().logabsdet
        turns, centres = math.log(2 * math.pi), math.log(2 * math.pi / (system.tie * 4))  # over the angle and c
        expected = -particles.energy(placed(at)[None], system)[0] + volume + turns + centres
        torch.testing.assert_close(found, expected)
    again = coordinates.encode(particles.moved(x.float(), system, torch.Generator().manual_seed(2)).double())
    assert again.shape == v.shape


def test_an_averaged_density_does_not_know_the_particles_apart() -> None:
    system = particles.SYSTEMS["DW4"]
    torch.manual_seed(0)
    x = spread_out(system, 4).float()
    flow = particles.Flow(particles.Coordinates("as they are", system), x + torch.randn(4, 8))
    averaged = particles.Averaged(flow, system)
    assert averaged.orders.shape == (24, 4) and len(averaged.orders.unique(dim=0)) == 24
    other = x.unflatten(1, (4, 2))[:, [2, 0, 3, 1]].flatten(1)
    assert not torch.allclose(flow.log_prob(x), flow.log_prob(other), atol=1e-4)
    torch.testing.assert_close(averaged.log_prob(x), averaged.log_prob(other), atol=1e-4, rtol=1e-4)


def test_rows_that_are_in_the_file_are_not_measured_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    short = particles.System(
        "DW4", 4, 2, 0.25, 2.5, ("as they are", "gaps", "frame"), 8, 300, {"chains": 100, "warmup": 0}
    )
    monkeypatch.setattr(particles, "SYSTEMS", {"DW4": short})
    small = particles.known_of(short, steps=8)
    monkeypatch.setattr(particles, "known_of", lambda system: small)
    arguments = ["--flows", "tarflow", "--seconds", "0.02", "--draws", "100", "--out", str(tmp_path / "out.json")]
    assert particles.main([*arguments, "--seeds", "0"]) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [(row["coordinates"], row["averaged"]) for row in rows] == [
        ("as they are", "no"),
        ("as they are", "yes"),
        ("gaps", "no"),
        ("frame", "no"),
    ]
    assert "DW4 as they are, averaged: tarflow" in capsys.readouterr().out
    assert particles.main([*arguments, "--seeds", "0"]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["rows"] == rows


@pytest.mark.extra
def test_the_flow_of_the_other_package_has_the_density_of_its_draws() -> None:
    pytest.importorskip("zuko", reason="compares with zuko")
    coordinates = particles.Coordinates("frame", particles.SYSTEMS["DW4"])
    flow = particles.SplineFlow(coordinates, 3 + 2 * torch.randn(50, 5))
    v, log_q = flow.sample_and_log_prob(20, seed=1)
    torch.testing.assert_close(flow.log_prob(v), log_q, atol=1e-3, rtol=1e-3)

"""The table of solvers: a new one is a file and a line, and a solver keeps what a GPU replays however it is wrapped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tarflow
from flow_cases import assert_close, build, every_kind, labels, latents
from report_cases import make_run
from solver_law import assert_solves
from tarflow import Auto, Calibration, Guidance, Jacobi, Sequential
from tarflow.checkpoint import open_run
from tarflow.cli import main
from tarflow.sampling import decode as decode_module
from tarflow.sampling.cuda.graph import Captured
from tarflow.sampling.decode import invert
from tarflow.sampling.solver import SOLVERS, Solver, solver_of
from toy_solver import Toy, Wrapped


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line of the table."""
    monkeypatch.setitem(SOLVERS, "toy", "toy_solver:Toy")


@every_kind
@pytest.mark.parametrize("guidance", [None, Guidance(1.0, temperature=0.5)], ids=str)
def test_a_new_solver_obeys_the_law(name: str, guidance: Guidance | None) -> None:
    assert_solves(Toy(), build(name), guidance, batch=3, seed=0, tol=0)


@pytest.mark.usefixtures("toy")
def test_a_new_solver_goes_by_its_name() -> None:
    flow = build("conditional")
    (batch,) = tarflow.sample_batches(flow, 3, labels(flow, 3), Guidance(1.0), solver="toy")
    assert batch.solvers == ("toy",) * len(flow.blocks)
    assert_close(batch.images, tarflow.sample(flow, 3, labels(flow, 3), Guidance(1.0), solver=Sequential()))


@pytest.mark.usefixtures("toy")
def test_the_command_line_takes_a_new_solver(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", classes=True, noise="gaussian")
    assert main(["sample", str(path), "-n", "3", "--solver", "toy", "--out", str(tmp_path / "x.npz")]) == 0
    tarflow.open_run(path).write_samples(tmp_path / "y.npz", n=3, solver="toy")
    run = open_run(path)
    right = run.measure.pixels(tarflow.sample(run.flow, 3, torch.arange(3), denoise=run.sigma, solver="sequential"))
    files = [np.load(tmp_path / f"{name}.npz") for name in "xy"]
    assert [file["labels"].tolist() for file in files] == [[0, 1, 2]] * 2
    assert np.array_equal(files[0]["images"], files[1]["images"])
    assert len(np.unique(files[0]["images"])) > 1 and files[0]["images"].shape[1:3] == right.shape[2:]


@pytest.mark.parametrize("inner", [Sequential(), Jacobi(tol=1e-9), Auto(tol=1e-9)], ids=str)
def test_a_wrapped_solver_is_replayed_as_it_is_alone(inner: Solver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_module, "_on_gpu", lambda block, z: True)
    flow, taken = build("unconditional", image_size=8), []

    def capture(launch: Callable[[], None]) -> Callable[[], None]:
        taken.append(launch)
        launch()
        return launch

    counts = []
    for solver in (inner, Wrapped(inner)):
        taken.clear()
        found = invert(flow.blocks[0], latents(flow, 2), None, None, solver, None, Captured(capture))
        assert_close(found.x, flow.blocks[0].decode(latents(flow, 2)).detach(), 1e-6)
        counts.append(len(taken))
    assert counts[0] > 0 and (counts[0] == counts[1] or isinstance(inner, Auto))


def test_names_mean_the_defaults() -> None:
    assert [solver_of(name) for name in ("sequential", "jacobi", "auto")] == [Sequential(), Jacobi(), Auto()]
    assert solver_of("jacobi", window=8, tol=None) == Jacobi(8) and solver_of(Jacobi(8)) == Jacobi(8)
    assert [str(solver) for solver in (Sequential(), Jacobi(), Jacobi(8), Toy())] == [
        "sequential",
        "jacobi",
        "jacobi 8",
        "toy",
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: solver_of("auto", window=3), "window: solver 'auto' has none; expected solver jacobi"),
        (
            lambda: solver_of("sequential", tol=1e-3),
            "tol: solver 'sequential' has none; expected solver auto or",
        ),
        (lambda: solver_of("jacobi", calibration=Calibration()), "calibration: solver 'jacobi' has none"),
        (lambda: solver_of("gauss"), "solver: expected auto, sequential, jacobi, or .* got 'gauss'"),
        (lambda: Auto("solvers.json"), "calibration: expected a tarflow.Calibration or None"),
        (lambda: Auto(tol=-1.0), "tol: expected 0 or more"),
        (lambda: Jacobi(window=0), "window: expected a positive number"),
    ],
)
def test_what_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ["window", "tol", "calibration"])
def test_options_are_those_of_the_values(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        tarflow.sample(build("unconditional"), 1, solver="jacobi", **{name: None})

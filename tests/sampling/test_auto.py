"""`auto`: what is measured decides, it is measured once, and whatever it decides the samples are the same."""

from __future__ import annotations

import dataclasses
import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tarflow
from flow_cases import assert_close, build, every_case, labels, latents, randomise, unchanged
from tarflow import Guidance, TarFlow, TarFlowConfig
from tarflow.sampling import auto, decode
from tarflow.sampling.auto import _REMEMBERED, Auto, Calibration, Choice, calibration_key, fastest, remembered
from tarflow.sampling.decode import default_batch_size
from tarflow.sampling.solver import Predict, Solution


class Machine:
    """A clock that only the conditioner moves: an evaluation of n patches takes latency + n·patch seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, latency: float, patch: float) -> None:
        self.now, self.evaluations = 0.0, 0
        honest = decode.predictor

        def predictor(*args: Any) -> Predict:
            predict = honest(*args)

            def timed(x: Tensor, start: int) -> Tensor:
                self.now += latency + patch * x.shape[1]
                self.evaluations += 1
                return predict(x, start)

            return dataclasses.replace(predict, evaluate=timed)

        monkeypatch.setattr(decode, "predictor", predictor)
        monkeypatch.setattr(auto.time, "perf_counter", lambda: self.now)


def measured(flow: TarFlow, z: Tensor, y: Tensor | None) -> tuple[Choice, Solution | None]:
    """What is the fastest for the only block of a flow."""
    block = flow.blocks[0]
    with torch.no_grad():
        return fastest(decode.predictor(block, y, None, block.new_cache(len(z))), block.order.forward(z))


def flow_of(rate: float, image_size: int = 16) -> TarFlow:
    """T = 64 patches (or so) whose dependence on each other goes with `rate`."""
    config = TarFlowConfig(image_size, channels=1, patch_size=2, width=16, head_dim=8, layers=(1,), num_classes=2)
    flow = randomise(TarFlow(config).double())
    with torch.no_grad():
        flow.blocks[0].proj_out.weight.mul_(rate)
    return flow


@pytest.mark.parametrize(
    ("latency", "patch", "rate", "solver"),
    [
        (1.0, 0.001, 0.3, "jacobi"),  # a GPU and a small batch: an evaluation costs the same for one patch or sixty
        (0.001, 1.0, 1.0, "sequential"),  # a large batch: only arithmetic counts, and Jacobi does more of it
        (0.5, 1.0, 0.0, "jacobi"),  # guesses are right but for the first window's: hardly more arithmetic, less latency
    ],
)
def test_what_is_faster_is_chosen(
    latency: float, patch: float, rate: float, solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = flow_of(rate)
    machine = Machine(monkeypatch, latency, patch)
    z, y = latents(flow, 2), labels(flow, 2)
    with unchanged(z, y):
        choice, solution = measured(flow, z, y)
    assert choice.solver == solver
    assert choice.sequential_seconds == pytest.approx(63 * (latency + patch))
    assert (choice.seconds < choice.sequential_seconds) == (solver == "jacobi")
    assert (solution is None) == (solver == "sequential")
    if solution is not None:  # decoded on the way, and not to be decoded again
        assert_close(flow.blocks[0].order.inverse(solution.x), flow.blocks[0].decode(z, y).detach(), 1e-9)
        assert choice.window is not None and str(choice) == f"jacobi {choice.window}"
    assert machine.now <= 4.5 * choice.seconds + 20 * (latency + patch), "measuring took longer than it may"


def test_the_best_window_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation that costs the same at any width wants all patches at once; where a wide one is dear, few."""
    flow, windows = flow_of(0.1, image_size=32), []
    for latency, patch in ((1.0, 0.0), (1.0, 0.02), (1.0, 0.1)):
        with monkeypatch.context() as patches:
            machine = Machine(patches, latency, patch)
            choice, _ = measured(flow, latents(flow, 1), labels(flow, 1))
            windows.append(choice.window)
            assert machine.now < 6 * choice.seconds + 20 * (latency + 64 * patch)
    assert windows[0] == 255 and 255 >= windows[1] > windows[2] >= 4


def test_an_attempt_that_falls_behind_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = flow_of(3.0, image_size=32)
    machine = Machine(monkeypatch, 0.0, 1.0)
    choice, _ = measured(flow, latents(flow, 2), labels(flow, 2))
    assert choice.solver == "sequential" and choice.seconds == pytest.approx(255)
    assert machine.now < 3.5 * 255  # three attempts, none of which was allowed to outlast the best


@every_case
@pytest.mark.parametrize("latency", [0.0, 1.0])
def test_whatever_is_chosen_the_samples_are_the_same(
    name: str, latency: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = build(name)
    noise, y = latents(flow, 7), labels(flow, 7)
    want = tarflow.sample(flow, 7, y, noise=noise, solver="sequential")
    Machine(monkeypatch, latency, 1 - latency)
    batches = list(tarflow.sample_batches(flow, 7, y, noise=noise, batch_size=3))
    assert_close(torch.cat([batch.images for batch in batches]), want, 1e-9)
    assert {batch.solvers for batch in batches} == {batches[0].solvers}  # the first batch decides
    assert all(solver.split()[0] in ("sequential", "jacobi") for solver in batches[0].solvers)


# --- measured once ---------------------------------------------------------------------------------------------------


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the batch size of every block that is measured."""
    sizes: list[int] = []

    def counted(predict: Predict, z: Tensor, *rest: Any) -> Any:
        sizes.append(len(z))
        return fastest(predict, z, *rest)

    monkeypatch.setattr(auto, "fastest", counted)
    return sizes


def test_a_flow_is_measured_once_for_a_batch_size_and_a_guidance(measurements: list[int]) -> None:
    flow = build("conditional")
    y, blocks = labels(flow, 7), len(flow.blocks)
    tarflow.sample(flow, 7, y, batch_size=3)
    assert measurements == [3] * blocks  # not for the last, smaller batch
    tarflow.sample(flow, 3, y[:3], seed=1)
    assert measurements == [3] * blocks
    tarflow.sample(flow, 5, y[:5])
    assert measurements == [3] * blocks + [5] * blocks
    tarflow.sample(flow, 3, y[:3], Guidance(1.0))
    tarflow.sample(flow, 3, y[:3], Guidance(1.0))
    tarflow.sample(flow, 3, y[:3], solver=Auto(tol=1e-3))
    assert measurements == [3] * blocks + [5] * blocks + [3] * 2 * blocks
    for solver in ("sequential", "jacobi"):
        tarflow.sample(flow, 2, y[:2], solver=solver)
    assert len(measurements) == 4 * blocks


def test_other_weights_are_measured_again_and_a_flow_that_is_gone_is_forgotten(measurements: list[int]) -> None:
    flow = build("one_block")
    for _ in range(2):
        tarflow.sample(flow, 2)
    assert len(measurements) == 1
    with torch.no_grad():
        flow.blocks[0].proj_out.bias.add_(0.1)
    tarflow.sample(flow, 2)
    assert len(measurements) == 2 and list(remembered(flow).choices) == [calibration_key(flow, 2, None, None)]
    del flow
    gc.collect()
    assert not [f for f in _REMEMBERED if f.config.layers == (2,)]


def test_a_calibration_of_the_caller_is_read_and_filled(measurements: list[int]) -> None:
    flow, calibration = build("one_block"), Calibration()
    tarflow.sample(flow, 2, solver=Auto(calibration))
    assert list(calibration.choices) == [calibration_key(flow, 2, None, None)] and len(measurements) == 1
    wanted = Calibration({calibration_key(flow, 2, None, None): (Choice("jacobi", 2),)})
    (batch,) = tarflow.sample_batches(flow, 2, solver=Auto(wanted))
    assert batch.solvers == ("jacobi 2",) and len(measurements) == 1


def test_it_is_kept_beside_the_weights_it_belongs_to(tmp_path: Path) -> None:
    path = tmp_path / "solvers.json"
    assert Calibration.load(path, "a").choices == {}
    kept = Calibration({"key": (Choice("jacobi", 16, 1.5, 2.5), Choice("sequential", None, 1.0, 1.0))})
    kept.save(path, "a")
    assert Calibration.load(path, "a").choices == kept.choices
    assert Calibration.load(path, "b").choices == {}
    for junk in ("", "[]", "{}", '{"weights": "a"}', '{"weights": "a", "choices": {"key": [{"solver": 1, "no": 2}]}}'):
        path.write_text(junk)
        assert Calibration.load(path, "a").choices == {}, junk
    stored = {"weights": "a", "choices": {"key": [{"solver": "newton"}], "good": [{"solver": "jacobi", "window": 4}]}}
    path.write_text(json.dumps(stored))
    assert Calibration.load(path, "a").choices == {}


@pytest.mark.parametrize("solver", ["auto", "sequential", "jacobi"])
@pytest.mark.parametrize("name", ["conditional", "two_tokens", "unequal_depths"])
def test_progress_goes_forward_to_the_end(name: str, solver: Any) -> None:
    flow, told = build(name), []
    for _ in range(2):  # measured, then not
        told.clear()
        tarflow.sample(flow, 5, batch_size=2, solver=solver, progress=lambda done, total: told.append((done, total)))
        total = 5 * len(flow.blocks) * flow.config.num_patches
        assert told[-1] == (total, total) and {t for _, t in told} == {total}
        assert [d for d, _ in told] == sorted(d for d, _ in told) and len(told) >= 3 * len(flow.blocks)


# --- what it costs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "more"), [(2, 0.0), (10, 0.0), (20, 0.05), (80, 0.05)])
@pytest.mark.parametrize(("latency", "patch"), [(0.001, 1.0), (0.3, 1.0)])
def test_where_the_sequential_solver_is_right_finding_out_costs_next_to_nothing(
    images: int, more: float, latency: float, patch: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One draw of thousands cost twice as much, because each of few steps was timed many times."""
    flow = flow_of(2.0, image_size=8)  # 16 patches
    machine = Machine(monkeypatch, latency, patch)
    y = labels(flow, images)
    tarflow.sample(flow, images, y, solver="sequential", batch_size=2)
    stepwise, machine.now = machine.now, 0.0
    batches = list(tarflow.sample_batches(flow, images, y, batch_size=2))
    assert batches[0].solvers == ("sequential",)
    assert machine.now <= (1 + more) * stepwise + 1e-9


def test_a_choice_that_was_not_worth_measuring_is_measured_for_a_larger_draw(measurements: list[int]) -> None:
    flow = flow_of(1.0, image_size=8)
    y = labels(flow, 90)
    tarflow.sample(flow, 3, y[:3])
    (choice,) = remembered(flow).choices[calibration_key(flow, 3, None, None)]
    assert choice == Choice("sequential") and measurements == [3]
    tarflow.sample(flow, 90, y, batch_size=3)
    (choice,) = remembered(flow).choices[calibration_key(flow, 3, None, None)]
    assert choice.sequential_seconds > 0 and measurements == [3, 3]


def test_a_batch_of_small_images_does_not_fill_the_memory() -> None:
    flow = flow_of(1.0, image_size=8)
    assert default_batch_size(flow, None) == 256 and default_batch_size(flow, Guidance(1.0)) == 128


def test_a_choice_is_of_the_machine_the_precision_and_the_question() -> None:
    """Whatever could make another solver the faster one is a part of the key, and what could not is none."""
    flow = build("conditional", torch.float32)
    keys = [
        calibration_key(flow, 2, None, None),
        calibration_key(flow, 3, None, None),
        calibration_key(flow, 2, Guidance(1.0), None),
        calibration_key(flow, 2, Guidance(1.0, temperature=0.5), None),
        calibration_key(flow, 2, None, 1e-3),
        calibration_key(build("conditional", torch.float64), 2, None, None),
    ]
    with torch.autocast("cpu", torch.bfloat16):
        keys.append(calibration_key(flow, 2, None, None))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        keys.append(calibration_key(flow, 2, None, None))
    finally:
        torch.set_num_threads(threads)
    assert len(set(keys)) == len(keys)
    same = [calibration_key(flow, 2, Guidance(0.0), None), calibration_key(randomise(flow, 3), 2, None, None)]
    assert same == keys[:1] * 2

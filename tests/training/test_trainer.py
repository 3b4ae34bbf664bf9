"""The loop: it learns, resumes bit for bit, saves when told to stop, and skips what is not finite."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tarflow import checkpoint
from tarflow.config import ConfigError
from tarflow.model.saving import WEIGHTS_FILE
from tarflow.tensor_files import read_tensors
from tarflow.training import trainer as trainer_module
from tarflow.training.interrupt import Interrupted
from tarflow.training.trainer import Diverged, train
from training_cases import assert_bitwise_equal, images, poison_batches, run_config, run_weights, splits

KINDS: dict[str, dict[str, Any]] = {
    "gaussian": {},
    "uniform": {"noise": "uniform"},
    "additive": {"model": {"transform": "additive"}},
    "unconditional, flipped": {"data": {"conditional": False, "flip": True}},
    "cropped": {"data": {"crop_padding": 2}},
    "no averaging, no clipping": {"ema_decay": 0.0, "clip_norm": 0.0},
    "muon, trapezoid": {"optimizer": "muon", "schedule": "trapezoid"},
}


class StopAt:
    """Sends this process a signal when a step is reported."""

    def __init__(self, step: int, signum: int = signal.SIGTERM) -> None:
        self.step, self.signum = step, signum

    def __call__(self, metrics: dict[str, Any]) -> None:
        if metrics["step"] == self.step and "loss" in metrics:
            os.kill(os.getpid(), self.signum)


def test_the_loss_falls_and_the_run_can_be_opened(tmp_path: Path) -> None:
    result = train(run_config(steps=80, lr=5e-3, evaluate_every=20), splits(), tmp_path / "run")
    losses = [m["loss"] for m in checkpoint.read_metrics(tmp_path / "run") if "loss" in m]
    assert sum(losses[-10:]) / 10 < losses[0] - 0.3
    assert len(losses) == 80 and result.skipped == 0
    run = checkpoint.open_run(tmp_path / "run")
    assert run.levels == 17 and run.class_names == ("dark", "light") and run.sigma == 0.05
    assert run.flow.config.num_classes == 2 and not run.flow.training
    held_out = [m for m in checkpoint.read_metrics(tmp_path / "run") if "held_out_noisy_bits_per_dim" in m]
    assert [m["step"] for m in held_out] == [20, 40, 60, 80]
    assert result.best_score == min(m["held_out_noisy_bits_per_dim"] for m in held_out)


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_is_uninterrupted_bit_for_bit(kind: str, tmp_path: Path) -> None:
    config = run_config(**KINDS[kind])
    train(config, splits(), tmp_path / "whole")
    for stop in (3, 4, 9):
        with pytest.raises(Interrupted, match=f"saved at step {stop}"):
            train(config, splits(), tmp_path / "parts", resume=True, report=StopAt(stop))
    train(config, splits(), tmp_path / "parts", resume=True)
    assert_bitwise_equal(run_weights(tmp_path / "whole"), run_weights(tmp_path / "parts"))
    timeless = [
        [{k: v for k, v in m.items() if "second" not in k} for m in checkpoint.read_metrics(tmp_path / name)]
        for name in ("whole", "parts")
    ]
    assert timeless[0] == timeless[1]


def test_weights_do_move(tmp_path: Path) -> None:
    train(run_config(), splits(), tmp_path / "run")
    torch.manual_seed(0)
    from tarflow import TarFlow

    start = TarFlow(run_config().model).state_dict()
    state = checkpoint.load_state(checkpoint.latest_checkpoint(tmp_path / "run"))
    assert not any(torch.equal(start[name], state["flow"][name]) for name in start)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_before_leaving(signum: int, tmp_path: Path) -> None:
    before = signal.getsignal(signum)
    with pytest.raises(Interrupted) as caught:
        train(run_config(save_every=1000), splits(), tmp_path / "run", report=StopAt(7, signum))
    assert (caught.value.signum, caught.value.step) == (signum, 7)
    assert checkpoint.latest_checkpoint(tmp_path / "run").name == "step-7"
    assert signal.getsignal(signum) is before


def test_a_finished_run_resumes_to_nothing(tmp_path: Path) -> None:
    train(run_config(), splits(), tmp_path / "run")
    before = run_weights(tmp_path / "run")
    result = train(run_config(), splits(), tmp_path / "run", resume=True)
    assert result.steps == 12
    assert_bitwise_equal(before, run_weights(tmp_path / "run"))


def test_keeps_the_last_and_the_best_checkpoints(tmp_path: Path) -> None:
    scores = iter([2.0, 1.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0])

    class Scripted(trainer_module.Trainer):
        def evaluate(self) -> bool:
            score = next(scores)
            better = score < self.best_score
            if better:
                self.best_step, self.best_score = self.step, score
                self.ema.flow.save_weights(self.out / WEIGHTS_FILE)
            return better

    config = run_config(save_every=1, evaluate_every=2, keep_last=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "Trainer", Scripted)
        train(config, splits(), tmp_path / "run")
    kept = [path.name for path in checkpoint.checkpoints(tmp_path / "run")]
    assert kept == ["step-4", "step-10", "step-11", "step-12"]
    best = read_tensors(tmp_path / "run" / WEIGHTS_FILE)
    assert_bitwise_equal(best, read_tensors(tmp_path / "run" / "checkpoints" / "step-4" / WEIGHTS_FILE))


def test_steps_that_are_not_finite_are_skipped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, Any] = {}
    poison_batches(monkeypatch, lambda step: step in (2, 5))
    kinds = {"model": {"transform": "additive"}}
    result = train(run_config(**kinds), splits(), tmp_path / "run", report=lambda m: seen.update({m["step"]: m}))
    assert result.skipped == 2
    assert all(torch.isfinite(v).all() for v in run_weights(tmp_path / "run").values())
    last = [m for m in checkpoint.read_metrics(tmp_path / "run") if "skipped" in m][-1]
    assert last["skipped"] == 2


def test_gives_up_when_nothing_is_finite_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "SKIPS_ALLOWED", 3)
    real = trainer_module.training_batch
    monkeypatch.setattr(trainer_module, "training_batch", lambda *a, **k: (real(*a, **k)[0] * float("inf"), None))
    with pytest.raises(Diverged, match="lower the learning rate"):
        train(run_config(), splits(), tmp_path / "run")


def test_gives_up_at_the_next_line_of_metrics_and_saves_nothing_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device counts; the host looks where it reads anyway. A row that is over by then still ends the run."""
    monkeypatch.setattr(trainer_module, "SKIPS_ALLOWED", 3)
    poison_batches(monkeypatch, lambda step: step in (4, 5, 6))
    config = run_config(log_every=9, save_every=4, evaluate_every=100)
    with pytest.raises(Diverged, match="before step 8"):
        train(config, splits(), tmp_path / "run")
    assert checkpoint.latest_checkpoint(tmp_path / "run").name == "step-4"
    with pytest.raises(Diverged, match="before step 9"):
        train(run_config(log_every=9, save_every=100, evaluate_every=100), splits(), tmp_path / "logged")


def test_a_row_of_skips_survives_resuming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "SKIPS_ALLOWED", 5)
    poison_batches(monkeypatch, lambda _: True)
    config = run_config(data={"conditional": False})
    with pytest.raises(Interrupted, match="saved at step 3"):
        train(config, splits(), tmp_path / "run", report=StopAt(3))
    with pytest.raises(Diverged, match="before step 5"):
        train(config, splits(), tmp_path / "run", resume=True)


def test_between_the_lines_of_metrics_only_the_number_of_the_step_is_reported(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    train(run_config(log_every=5, evaluate_every=12), splits(), tmp_path / "run", report=seen.append)
    steps = [m for m in seen if "total" in m]
    assert [m["step"] for m in steps] == list(range(1, 13))
    assert [m["step"] for m in steps if "loss" in m] == [5, 10, 12]
    assert all(set(m) == {"step", "total"} for m in steps if "loss" not in m)
    assert all(not isinstance(v, torch.Tensor) for m in seen for v in m.values())
    logged = [m for m in checkpoint.read_metrics(tmp_path / "run") if "loss" in m]
    assert [m["step"] for m in logged] == [5, 10, 12]


@pytest.mark.parametrize(
    ("first", "second", "exactly"),
    [
        ({"checkpoint_activations": "nothing"}, {"checkpoint_activations": "layers"}, True),
        ({"accumulate": 2}, {"accumulate": 2}, True),
        ({"accumulate": 2}, {"accumulate": 4}, False),
    ],
)
def test_how_a_step_is_computed_may_change_on_resuming(
    first: dict[str, Any], second: dict[str, Any], exactly: bool, tmp_path: Path
) -> None:
    kind = {"model": {"transform": "additive"}}
    train(run_config(**kind, **first), splits(), tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(run_config(**kind, **first), splits(), tmp_path / "parts", report=StopAt(5))
    train(run_config(**kind, **second), splits(), tmp_path / "parts", resume=True)
    whole, parts = run_weights(tmp_path / "whole"), run_weights(tmp_path / "parts")
    if exactly:
        assert_bitwise_equal(whole, parts)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], atol=1e-4, rtol=1e-3, msg=name)


def test_does_not_overwrite_a_run(tmp_path: Path) -> None:
    train(run_config(), splits(), tmp_path / "run")
    with pytest.raises(FileExistsError, match="--resume"):
        train(run_config(), splits(), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"lr": 5e-4}, r"training\.lr"),
        ({"steps": 5}, r"training\.steps: .* has taken 12 steps, got 5"),
        ({"model": {"width": 32}}, r"model\.width"),
        ({"data": {"flip": True}}, r"data\.flip"),
        ({"data": {"crop_padding": 1}}, r"data\.crop_padding"),
    ],
)
def test_refuses_to_resume_with_another_config(change: dict[str, Any], field: str, tmp_path: Path) -> None:
    train(run_config(), splits(), tmp_path / "run")
    with pytest.raises(ConfigError, match=field):
        train(run_config(**change), splits(), tmp_path / "run", resume=True)
    assert checkpoint.read_config(tmp_path / "run") == run_config()


def test_refuses_to_resume_on_other_images(tmp_path: Path) -> None:
    train(run_config(), splits(), tmp_path / "run")
    other = splits()
    other.train.images[0, 0, 0, 0] += 1
    with pytest.raises(ConfigError, match=r"data\.source"):
        train(run_config(), other, tmp_path / "run", resume=True)


def test_what_is_written_when_may_change(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(run_config(), splits(), tmp_path / "run", report=StopAt(4))
    train(
        run_config(save_every=100, log_every=3, data={"source": "elsewhere"}), splits(), tmp_path / "run", resume=True
    )


def test_samples_come_from_fixed_noise(tmp_path: Path) -> None:
    train(run_config(sample_every=6), splits(), tmp_path / "run")
    sheets = sorted(path.name for path in (tmp_path / "run" / "samples").iterdir())
    assert sheets == ["step-0000006.png", "step-0000012.png"]


def test_few_held_out_images_are_enough(tmp_path: Path) -> None:
    few = splits()
    train(run_config(evaluate_images=3), type(few)(few.train, images(1, 5), True, ()), tmp_path / "run")


def test_bf16_narrows_the_products_and_nothing_else(tmp_path: Path) -> None:
    train(run_config(steps=4), splits(), tmp_path / "float32")
    train(run_config(steps=4, precision="bf16"), splits(), tmp_path / "bf16")
    exact, narrow = (
        [m["loss"] for m in checkpoint.read_metrics(tmp_path / name) if "loss" in m] for name in ("float32", "bf16")
    )
    assert exact != narrow and exact == pytest.approx(narrow, abs=0.02)
    assert all(v.dtype == torch.float32 for k, v in run_weights(tmp_path / "bf16").items() if k.startswith("flow."))

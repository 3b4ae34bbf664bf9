"""What else hears of a training: a log holds the lines of metrics.jsonl, once each, and its failure is one warning."""

from __future__ import annotations

import csv
import math
import sys
import types
import warnings
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import tarflow
from small_runs import resume, train, write_images
from tarflow.checkpoint import METRICS_CSV, TENSORBOARD, read_config, read_metrics
from tarflow.cli import main
from tarflow.config import TrainingConfig
from tarflow.training.logs import LOGGERS, Csv, LogWarning, TensorBoard

MORE = ("--log-every", "1", "--evaluate-every", "3", "--sample-every", "4")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", 20)


def hide(patch: pytest.MonkeyPatch, *packages: str) -> None:
    """Nothing of `packages` can be imported, although an earlier test may have imported a part of one."""
    parts = [name for name in sys.modules if name.startswith(tuple(f"{package}." for package in packages))]
    for name in (*packages, *parts):
        patch.setitem(sys.modules, name, None)


def rows(run: Path) -> list[dict[str, float]]:
    """The lines of metrics.csv, with what each has."""
    with open(run / METRICS_CSV, newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def same(found: list[dict[str, float]], expected: list[dict[str, Any]]) -> bool:
    """Whether lines are equal, where NaN is NaN."""
    return len(found) == len(expected) and all(
        a.keys() == b.keys() and all(a[k] == b[k] or (math.isnan(a[k]) and math.isnan(b[k])) for k in a)
        for a, b in zip(found, expected, strict=True)
    )


def test_the_names_of_a_config_are_those_of_the_loggers() -> None:
    (literal, _) = get_args(get_type_hints(TrainingConfig)["log"])
    assert set(get_args(literal)) == set(LOGGERS)


def test_nobody_is_told_unless_asked(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "tensorboard", "wandb", "torch.utils.tensorboard")
    assert train(images, tmp_path / "run") == 0
    assert not {METRICS_CSV, TENSORBOARD, "wandb"} & {path.name for path in (tmp_path / "run").iterdir()}


# --- csv -------------------------------------------------------------------------------------------------------------


def test_a_csv_file_is_the_metrics_line_by_line(images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(images, run, *MORE, "--log", "csv") == 0
    assert same(rows(run), read_metrics(run))
    assert (run / METRICS_CSV).read_text().startswith("step,loss,")
    assert {"held_out_noisy_bits_per_dim", "grad_norm"} <= rows(run)[-1].keys() | rows(run)[0].keys()


def test_a_run_that_goes_on_says_nothing_twice(images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(images, run, *MORE, "--log", "csv") == 0
    text = (run / METRICS_CSV).read_text()
    (run / METRICS_CSV).write_text(text + "9,1.0\n")  # of a step behind the last checkpoint, as a kill leaves it
    assert resume(run, "--steps", "6") == 0  # the log is that of the run
    assert same(rows(run), read_metrics(run)) and rows(run)[-1]["step"] == 6
    assert read_config(run).training.log == ("csv",)  # type: ignore[union-attr]


def test_a_run_that_is_logged_from_later_on_has_all_of_it(images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(images, run, *MORE) == 0
    assert resume(run, "--steps", "6", "--log", "csv") == 0
    assert same(rows(run), read_metrics(run)) and rows(run)[0]["step"] == 1


def test_from_a_program(images: Path, tmp_path: Path) -> None:
    run = tarflow.open_run("digits")
    pixels = run.images().held_out.images[:40, :, :4, :4]
    data = [(image[0].numpy(), 0) for image in pixels]
    small = dict(width=64, layers=[1], patch_size=2, steps=2, batch_size=8, evaluate_images=4, sample_every=0)
    tarflow.train(data, tmp_path / "run", levels=17, log=["csv"], log_every=1, **small)
    assert same(rows(tmp_path / "run"), read_metrics(tmp_path / "run"))


def test_a_new_run_does_not_write_over_another_ones_log(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (METRICS_CSV, TENSORBOARD):
        run = tmp_path / f"run-{name}"
        (run / name).mkdir(parents=True)
        assert train(images, run) == 2
        assert f"{run}: holds {name}, which a run would write over" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--log", "mlflow"], "--log: expected one of csv, tensorboard, wandb, got 'mlflow'"),
        (["--log"], "--log: expected a value"),
    ],
)
def test_unknown_loggers(
    words: list[str], message: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(images, tmp_path / "run", *words) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


# --- what fails ------------------------------------------------------------------------------------------------------


def warnings_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    lines = capsys.readouterr().err.splitlines()
    assert not any("Traceback" in line for line in lines)
    return [line.removeprefix("tarflow: warning: ") for line in lines if line.startswith("tarflow: warning: ")]


@pytest.mark.parametrize("method", ["__init__", "numbers", "sheet", "flush", "close"])
def test_a_logger_that_fails_is_one_warning_and_the_training_is_the_same(
    method: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fail(self: Any, *args: Any) -> None:
        asked.append(method)
        raise OSError(28, "No space left on device", "/full")

    assert train(images, tmp_path / "plain", *MORE) == 0
    capsys.readouterr()
    monkeypatch.setattr(Csv, method, fail)
    assert train(images, tmp_path / "run", *MORE, "--log", "csv") == 0
    assert warnings_of(capsys) == [
        "--log csv: [Errno 28] No space left on device: '/full'; the training goes on without it"
    ]
    assert len(asked) == 1
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "run")]
    assert weights[0] == weights[1]


def test_what_is_not_installed_is_said_with_what_to_install(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "tensorboard", "wandb", "torch.utils.tensorboard")
    words = ("--log", "tensorboard", "--log", "wandb", "--log", "csv")
    capsys.readouterr()
    assert train(images, tmp_path / "run", *words) == 0
    assert warnings_of(capsys) == [
        "--log tensorboard: not installed: pip install 'tarflow[log]'; the training goes on without it",
        "--log wandb: not installed: pip install wandb; the training goes on without it",
    ]
    assert same(rows(tmp_path / "run"), read_metrics(tmp_path / "run"))


# --- Weights & Biases, by a module that takes its place --------------------------------------------------------------


class FakeWandB(types.ModuleType):
    """What the logger calls of `wandb`: each call is kept, with its arguments."""

    def __init__(self, key: str | None = None) -> None:
        super().__init__("wandb")
        self.calls: list[tuple[Any, ...]] = []
        self.key, self.finished = key, 0

    def login(self, prompt: bool, verify: bool) -> bool:
        assert not prompt and not verify  # neither the user nor the network is asked
        return self.key is not None

    def Settings(self, **values: Any) -> dict[str, Any]:
        return values

    def Image(self, file: str) -> str:
        return f"image {Path(file).name}"

    def init(self, **values: Any) -> FakeWandB:
        self.calls.append(("init", values))
        (Path(values["dir"]) / "wandb").mkdir(exist_ok=True)
        return self

    def log(self, values: dict[str, Any], step: int) -> None:
        self.calls.append(("log", step, values))

    def finish(self) -> None:
        self.finished += 1


@pytest.mark.parametrize(("key", "mode"), [("secret", "online"), (None, "offline")])
def test_weights_and_biases_gets_the_run_and_its_identity(
    key: str | None, mode: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, run = FakeWandB(key), tmp_path / "run"
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_MODE", mode)
    assert train(images, run, *MORE, "--log", "wandb") == 0
    (begun,) = [call[1] for call in fake.calls if call[0] == "init"]
    training = read_config(run).training
    assert training is not None and begun["id"] == training.run and begun["resume"] == "allow"
    assert begun["project"] == "tarflow" and begun["name"] == "run" and begun["config"]["model"]["width"] == 64
    assert str(tmp_path) not in str(begun["config"])  # where the images are is nobody's business there
    told = [{"step": step, **values} for _, step, values in fake.calls[1:] if "samples" not in values]
    assert same(told, read_metrics(run))
    assert [call[1:] for call in fake.calls if call[-1] == {"samples": "image step-0000004.png"}] == [
        (4, {"samples": "image step-0000004.png"})
    ]
    assert fake.finished == 1
    seen = len(fake.calls)
    assert resume(run, "--steps", "6") == 0
    begun, *later = fake.calls[seen:]
    assert begun[1]["id"] == training.run and min(step for _, step, _ in later) == 5
    assert same([{"step": s, **v} for _, s, v in later if "samples" not in v], read_metrics(run)[len(told) :])


def test_who_is_not_logged_in_is_not_asked(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    capsys.readouterr()
    assert train(images, tmp_path / "run", "--log", "wandb") == 0
    said = "not logged in: `wandb login`, or WANDB_MODE=offline"
    assert warnings_of(capsys) == [f"--log wandb: {said}; the training goes on without it"] and fake.calls == []


# --- TensorBoard -----------------------------------------------------------------------------------------------------


def points(run: Path) -> tuple[list[dict[str, float]], list[int]]:
    """What TensorBoard shows of a run: its numbers by step, and the steps with a sheet."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / TENSORBOARD), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    found = [(each.step, name, each.value) for name in events.Tags()["scalars"] for each in events.Scalars(name)]
    assert len(found) == len({(step, name) for step, name, _ in found}), "a point twice"
    table: dict[int, dict[str, float]] = {}
    for step, name, value in found:
        table.setdefault(step, {"step": step})[name] = value
    return [table[step] for step in sorted(table)], [each.step for each in events.Images("samples")]


def by_step(run: Path) -> list[dict[str, float]]:
    table: dict[int, dict[str, float]] = {}
    for entry in read_metrics(run):
        table.setdefault(entry["step"], {}).update(entry)
    return [table[step] for step in sorted(table)]


@pytest.mark.extra
def test_tensorboard_shows_every_point_once(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="pip install 'tarflow[log]'")
    run = tmp_path / "run"
    assert train(images, run, *MORE, "--log", "tensorboard") == 0
    found, sheets = points(run)
    assert [entry.keys() for entry in found] == [entry.keys() for entry in by_step(run)] and sheets == [4]
    assert found[-1]["loss"] == pytest.approx(by_step(run)[-1]["loss"], rel=1e-6)  # float32 there
    # As a kill behind the last checkpoint leaves it: what was said of those steps is said again.
    config = read_config(run)
    lost = TensorBoard(run, config, read_metrics(run))
    lost.numbers({"step": 5, "loss": 77.0})
    lost.close()
    assert points(run)[0][-1] == {"step": 5, "loss": 77}
    assert resume(run, "--steps", "6") == 0
    found, sheets = points(run)
    assert [entry.keys() for entry in found] == [entry.keys() for entry in by_step(run)] and sheets == [4, 6]
    assert all(entry["loss"] != 77 for entry in found)


@pytest.mark.extra
def test_tensorboard_that_comes_later_is_told_what_it_missed(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="pip install 'tarflow[log]'")
    run = tmp_path / "run"
    assert train(images, run, *MORE) == 0
    assert resume(run, "--steps", "6", "--log", "tensorboard", "--log", "csv") == 0
    found, sheets = points(run)
    assert [entry["step"] for entry in found] == [1, 2, 3, 4, 5, 6] and sheets == [4, 6]
    assert same(rows(run), read_metrics(run))


@pytest.mark.extra
def test_tensorboard_that_cannot_write(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tensorboard = pytest.importorskip("tensorboard.summary.writer.record_writer", reason="pip install 'tarflow[log]'")

    def full(self: Any, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensorboard.RecordWriter, "write", full)
    capsys.readouterr()
    assert train(images, tmp_path / "run", *MORE, "--log", "tensorboard") == 0
    (line,) = warnings_of(capsys)
    assert line.startswith("--log tensorboard: ") and "No space left on device" in line


def test_a_warning_for_programs_is_a_warning(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tarflow.training.logs import Logs

    hide(monkeypatch, "wandb")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert train(images, tmp_path / "run") == 0
        Logs(["wandb", "wandb"], tmp_path / "run", read_config(tmp_path / "run")).numbers({"step": 1})
    assert [each.category for each in caught if issubclass(each.category, LogWarning)] == [LogWarning]


def test_the_option_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "--log {csv,tensorboard,wandb}" in " ".join(capsys.readouterr().out.split())

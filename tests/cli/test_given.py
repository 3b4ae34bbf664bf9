"""Images given numbers, on the command line: samples follow them, and one line says what does not fit."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tarflow
from tarflow import checkpoint
from tarflow.cli import main
from tarflow.data.tables import read_table
from tarflow.evaluation.quality.sweep import grid
from tarflow.play.answers import Answers
from tarflow.play.studio import Studio
from tarflow.run_data import open_splits

SMALL = (
    "--patch-size 4 --width 16 --head-dim 8 --layers 1 1 --batch-size 32 --lr 1e-2 --warmup-steps 2 --ema-decay 0.8 "
    "--evaluate-images 8 --log-every 50 --device cpu"
)


def picture(angle: float, brightness: float) -> np.ndarray:
    """A bar through the middle of 8x8 pixels."""
    y, x = np.mgrid[:8, :8] - 3.5
    turn = np.deg2rad(angle)
    return np.where(abs(y * np.cos(turn) - x * np.sin(turn)) < 1.5, 255 * brightness, 0).astype(np.uint8)


def call(words: str) -> int:
    return main(shlex.split(words))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of bars, dark flat ones and bright upright ones, a table of them, and a run on both."""
    place = tmp_path_factory.mktemp("given")
    generator, rows = np.random.default_rng(0), ["brightness,file,angle"]
    (place / "bars").mkdir()
    for k in range(80):
        angle, brightness = 90.0 * (k % 2) + generator.normal(), 0.6 + 0.3 * (k % 2) + 0.02 * generator.normal()
        Image.fromarray(picture(angle, brightness)).save(place / "bars" / f"{k}.png")
        rows.append(f"{brightness},{k}{'.png' if k % 3 else ''},{angle}")  # the suffix may be left out
    (place / "numbers.csv").write_text("\n".join(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        words = "--data bars --conditions-from numbers.csv --conditions angle,brightness"
        assert call(f"train {words} --out run --steps 40 --sample-every 0 --evaluate-every 40 {SMALL}") == 0
    return place


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def test_samples_follow_the_numbers(place: Path) -> None:
    upright = torch.from_numpy(picture(90, 1) > 0)
    shares = []
    for name, words in (("flat", "angle=0,brightness=0.6"), ("upright", "angle=90,brightness=0.9")):
        assert call(f"sample run -n 16 --given {words} --out {name}.npz") == 0
        images = torch.from_numpy(np.load(f"{name}.npz")["images"]).squeeze(3).double()
        shares.append(float(images[:, upright].sum() / images.sum()))
    assert np.load("flat.npz")["angle"].tolist() == [0.0] * 16
    assert shares[1] > shares[0] + 0.15, shares


def test_a_run_knows_its_numbers(place: Path) -> None:
    run = tarflow.open_run("run")
    assert run.config.model.condition == "vector:2" and run.numbers == ("angle", "brightness")
    sections = json.loads(Path("run/config.json").read_text())
    assert sections["data"]["conditions_from"] == "numbers.csv", "no path of this machine"
    splits = open_splits(run)
    every = torch.cat([splits.train.numbers, splits.held_out.numbers])  # type: ignore[list-item]
    table = read_table("numbers.csv")
    assert every.sum(dim=0).tolist() == pytest.approx([table.columns[name].sum() for name in run.numbers], rel=1e-5)
    row = splits.train.names.index("3.png")
    assert splits.train.numbers is not None
    assert splits.train.numbers[row, 0] == pytest.approx(table.columns["angle"][3], rel=1e-5)
    mean = run.flow.conditions.mean  # standardised by what is learned from
    torch.testing.assert_close(mean, splits.train.numbers.double().mean(dim=0).float())
    x = run.sample(n=2, given={"angle": 90, "brightness": torch.tensor([0.5, 0.9])})
    torch.testing.assert_close(x, run.sample(n=2, given=torch.tensor([[90, 0.5], [90, 0.9]])))


def test_scores_are_those_under_the_numbers(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("score run bars --conditions-from numbers.csv --out own.csv --draws 1") == 0
    assert call("score run bars --given angle=0,brightness=0.6 --out flat.csv --draws 1") == 0
    assert call("score run bars --out null.csv --draws 1") == 0
    found = {name: read_table(f"{name}.csv").columns for name in ("own", "flat", "null")}
    own, flat = (found[name]["log_likelihood"] for name in ("own", "flat"))
    assert own.mean() > flat.mean() + 1 and own.mean() > found["null"]["log_likelihood"].mean()
    assert ",given," in Path("own.csv").read_text() and ",null," in Path("null.csv").read_text()
    run, numbers = tarflow.open_run("run"), torch.tensor([[0, 0.6]])
    names = list(found["own"]["file"])
    pixels = torch.from_numpy(np.stack([np.asarray(Image.open(f"bars/{name}")) for name in names]))[:, None]
    torch.testing.assert_close(run.score(pixels, given=numbers.expand(80, 2), draws=1), torch.tensor(flat))
    capsys.readouterr()
    assert call("evaluate run --draws 1 --float64 2 --against inverted --no-save") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["labels"] == "given" and said["images"] == 8 and said["against"]["inverted"]["labels"] == "null"


def test_the_page_takes_the_numbers_by_their_names(place: Path) -> None:
    answers = Answers(Studio(tarflow.open_run("run")))
    (field,) = answers.studio.fields
    assert field.name == "angle, brightness" and field.start.startswith("angle=") and ", brightness=" in field.start
    words = "[brightness = 0.9, angle=90]"
    for text in (words, "90 0.9"):
        (value,) = answers._several((text,), 1)
        assert value.tolist() == [[90, 0.9]]
    *_, (word, _) = answers.score("[]", 0, "angle=90, angle=90")
    assert "expected angle=…, brightness=…, each once, or the values alone" in word
    *_, (word, result) = answers.score("[]", 0, words)
    assert (
        "1 scored" in word and "Scored with what is given" in (result or "") and "8 held-out images" in (result or "")
    )


def test_guidance_and_a_row_of_samples_for_each_of_a_table(place: Path) -> None:
    Path("asked.csv").write_text("angle,brightness\n0,0.6\n90,0.9\n")
    assert call("sample run -n 3 --conditions-from asked.csv --guidance 1 --out sheet.png") == 0
    assert call("sample run -n 2 --conditions-from asked.csv --out drawn") == 0
    told = read_table("drawn/conditions.csv").columns
    assert told["angle"].tolist() == [0, 0, 90, 90] and list(told["file"]) == [f"{k}.png" for k in range(4)]
    assert call("score run drawn --conditions-from drawn/conditions.csv --out drawn.csv --draws 1") == 0
    assert call("sample run -n 2 --given null --out null.png") == 0


def test_the_guidance_of_a_report_and_a_sweep_pushes_away_from_null(place: Path) -> None:
    for condition in ("vector:2", "classes:3+vector:2", "classes:3"):
        config = tarflow.TarFlowConfig(
            8, channels=1, patch_size=4, width=16, head_dim=8, layers=(1,), condition=condition
        )
        scales = [setting.guidance.scale for setting in grid(config, None)]
        assert len(scales) > 2 and all(setting.guidance.temperature == 1 for setting in grid(config, None))
    assert call("report run --images 1 --limit 2 --out told") == 0
    assert "angle, brightness" in Path("told/report.html").read_text()


def test_a_run_goes_on_bit_for_bit_and_the_table_may_move(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"--data bars --conditions-from numbers.csv --sample-every 0 --evaluate-every 2 --save-every 1 {SMALL}"
    assert call(f"train {words} --out whole --steps 2 --sample-every 2") == 0
    assert call(f"train {words} --out parts --steps 1") == 0
    Path("elsewhere").mkdir()
    moved = Path("numbers.csv").rename("elsewhere/moved.csv")
    assert call("train --out parts --resume --steps 2") == 2 and "numbers.csv: no such file" in capsys.readouterr().err
    assert call(f"train --out parts --resume --steps 2 --conditions-from {moved}") == 0
    whole, parts = (checkpoint.open_run(f"{name}/checkpoints/step-2").flow for name in ("whole", "parts"))
    for name, tensor in whole.state_dict().items():
        assert tensor.equal(parts.state_dict()[name]), name
    text = moved.read_text()
    moved.write_text(text.replace("0.", "0.0", 1))
    assert call("evaluate parts --draws 1") == 2 and "changed" in capsys.readouterr().err
    moved.rename("bars/numbers.csv")
    Path("bars/numbers.csv").write_text(text)  # it is found in the folder of the images, too
    assert call("evaluate run --draws 1 --no-classify") == 0
    Path("bars/numbers.csv").rename("numbers.csv")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train --data bars --conditions-from none.csv --out x", "none.csv: no such file"),
        ("train --data bars --conditions-from numbers.csv --conditions angel --out x", "perhaps angle?"),
        ("train --data bars --conditions-from few.csv --out x", "no row of 79 of 80 images, the first is 1"),
        ("train --data bars --conditions angle --out x", "expected --conditions-from besides"),
        ("train --out run --resume --conditions angle", "data.conditions: the run in run has 'angle,brightness'"),
        ("sample run -n 1 --out x.png", "expected one; run is conditioned on angle, brightness"),
        ("sample run -n 1 --given angle=1 --out x.png", "brightness is missing"),
        (
            "sample run -n 1 --given angle=1,brightness=a --out x.png",
            "--given: brightness: expected a finite number, got 'a'",
        ),
        ("sample run -n 1 --given angle=nan,brightness=1 --out x.png", "--given: angle: expected a finite number"),
        ("sample run -n 1 --given angle=1,brightness=1 --conditions-from numbers.csv --out x.png", "one of them"),
        ("sample run -n 1 --classes 3 --given null --out x.png", "no classes"),
        ("sample digits -n 1 --given angle=1 --out x.png", "is not conditioned on numbers"),
        ("score run bars --conditions-from few.csv --out x.csv", "no row of 79 of 80 images"),
        ("score digits bars --conditions-from few.csv --out x.csv", "is not conditioned on numbers"),
        ("evaluate digits --conditions-from few.csv", "is not conditioned on numbers"),
    ],
)
def test_what_does_not_fit_is_one_line(words: str, said: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("few.csv").write_text("file,angle,brightness\n0.png,1,2")
    assert call(words) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.strip().splitlines()) == 1, err
    assert not Path("x").exists() and not Path("x.csv").exists()

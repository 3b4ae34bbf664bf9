"""What each command does with a run on classes and numbers: it takes both, and says what was left open."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import tarflow
from flow_cases import randomise
from tarflow.checkpoint import write_config
from tarflow.cli import main
from tarflow.config import DataConfig, RunConfig, TrainingConfig
from tarflow.data.load import load_all
from tarflow.data.numbers import ImageNumbers
from tarflow.evaluation.likelihood.held_out import HELD_OUT_FILE, run_scoring
from tarflow.pretrained import CARD_FILE
from tarflow.run_data import open_splits

COUNT, CLASSES = 40, ("dark", "light")
MEAN = torch.tensor([30.0])


def call(words: str) -> int:
    return main([*shlex.split(words), "--device", "cpu"])


def make_run(out: Path, condition: str, label_drop: float = 0.1) -> None:
    """A run on the photos that was never trained; its weights are such that every condition matters."""
    config = tarflow.TarFlowConfig(
        4, channels=1, patch_size=2, width=16, head_dim=8, layers=(1, 1), condition=condition, order="causal"
    )
    flow, classes = randomise(tarflow.TarFlow(config)), CLASSES if "classes" in condition else ()
    with torch.no_grad():
        for name, buffer in flow.conditions.named_buffers():
            buffer.copy_(MEAN if name.endswith("mean") else MEAN / 3)
    flow.save_pretrained(out)
    table = {"conditions_from": "angles.csv", "conditions": "angle"}
    data = DataConfig("photos", class_names=classes, conditional=bool(classes), held_out_fraction=0.4, **table)  # type: ignore[arg-type]
    write_config(out, RunConfig(config, data, TrainingConfig(steps=1, noise_std=0.3, label_drop=label_drop)))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two classes and an angle of each; runs on both, on angles alone, and on angles that were never open."""
    place = tmp_path_factory.mktemp("given")
    generator, rows = np.random.default_rng(0), ["file,angle"]
    for k in range(COUNT):
        name = f"{CLASSES[k % 2]}/{k}.png"
        (place / "photos" / CLASSES[k % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (4, 4), dtype=np.uint8)).save(place / "photos" / name)
        rows.append(f"{name},{generator.normal(30, 10)}")
    (place / "angles.csv").write_text("\n".join(rows))
    Image.fromarray(np.repeat(np.array([0, 255], np.uint8), 8).reshape(4, 4)).save(place / "mask.png")
    make_run(place / "both", "classes:2+vector:1")
    make_run(place / "angles", "vector:1")
    make_run(place / "always", "vector:1", label_drop=0.0)
    return place


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def photos() -> tuple[Tensor, Tensor, Tensor]:
    """Pixels, labels and angles."""
    found = load_all("photos", image_size=4, channels=1, levels=256, conditions_from="angles.csv")[0]
    assert found.labels is not None and found.numbers is not None
    return found.images, found.labels, found.numbers


THIRTY, LIGHT, DARK = torch.full((COUNT, 1), 30.0), torch.ones(COUNT).long(), torch.zeros(COUNT).long()


@pytest.mark.parametrize(
    ("words", "label", "c"),
    [
        ("--given angle=30 --class light", "class=light and given", (LIGHT, THIRTY)),
        ("--conditions-from angles.csv --class dark", "class=dark and given", (DARK, "own")),
        ("--class dark", "class=dark", (DARK, None)),
        ("--given null", "null", None),
    ],
)
def test_a_score_is_that_under_the_class_and_the_numbers(words: str, label: str, c: Any) -> None:
    (pixels, _, angles), run = photos(), tarflow.open_run("both")
    own = c is not None and isinstance(c[1], str)
    c = (c[0], angles) if own else c
    assert call(f"score both photos {words} --draws 1 --out s.csv") == 0
    with open("s.csv") as file:
        rows = list(csv.DictReader(file))
    assert {row["labels"] for row in rows} == {label} and all(row["percentile"] for row in rows)
    found = torch.tensor([float(row["log_likelihood"]) for row in rows], dtype=torch.float64)
    x = run_scoring(run, draws=1).noisy(pixels, 0, range(COUNT))
    torch.testing.assert_close(run.flow.log_prob(x, c).double(), found)
    classes = words.partition("--class ")[2] or None
    given = None if c is None or c[1] is None else c[1]
    torch.testing.assert_close(run.score(pixels, classes, given=given, draws=1), found)
    # Percentiles are those among the run's own held-out images under the same.
    held_out = open_splits(run).held_out
    numbers = held_out.numbers if own else None if given is None else THIRTY[: len(held_out)]
    y = None if c is None else (None if c[0] is None else c[0][: len(held_out)], numbers)
    right = run.flow.log_prob(run_scoring(run, draws=1).noisy(held_out.images, 0, range(len(held_out))), y)
    kept = json.loads(Path("both", HELD_OUT_FILE).read_text())["scored"][0]["log_prob"]
    torch.testing.assert_close(torch.tensor(kept), right)


def test_a_table_of_scores_from_python_is_that_of_the_command() -> None:
    run = tarflow.open_run("both")
    assert call("score both photos --conditions-from angles.csv --class dark --draws 1 --out a.csv") == 0
    run.write_scores("photos", "b.csv", "dark", given=ImageNumbers("angles.csv", "angle"), draws=1)
    assert Path("a.csv").read_bytes() == Path("b.csv").read_bytes()


@pytest.mark.parametrize(
    ("words", "said", "c"),
    [
        ("both", "the labels of the data, angle left open", lambda labels, angles: (labels, None)),
        ("both --class light --given angle=30", "class light, angle=30", lambda labels, angles: (LIGHT, THIRTY)),
        (
            "both --conditions-from angles.csv --class null",
            "class null, angle of angles.csv",
            lambda labels, angles: (None, angles),
        ),
        ("angles --given 30", "angle=30", lambda labels, angles: THIRTY),
    ],
)
def test_denoising_is_under_what_is_given(words: str, said: str, c: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pixels, labels, angles = photos()
    run, *options = words.split()
    assert call(f"denoise {run} photos {shlex.join(options)} --out d.npz") == 0
    assert f"with σ=0.3, {said}\n" in capsys.readouterr().err
    opened, y = tarflow.open_run(run), c(labels, angles)
    x = tarflow.denoise(opened.flow, opened.measure.clean(pixels), 0.3, y)
    written = np.load("d.npz")
    assert np.array_equal(written["images"][..., 0], opened.pixels(x)[:, 0].numpy())
    assert ("angle" in written) == ("open" not in said)


def test_a_region_is_drawn_under_what_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    drawn = {}
    for name, words, said in (
        ("light", "both --class light --given angle=30", "; class light, angle=30"),
        ("zero", "both --class light --given angle=0", "; class light, angle=0"),
        ("angles", "angles", "; angle left open"),
    ):
        run, *options = words.split()
        out = f"--mask mask.png -n 2 --out {name}.npz"
        assert call(f"inpaint {run} photos/light/1.png {out} {shlex.join(options)}") == 0
        assert said in capsys.readouterr().err
        drawn[name] = np.load(f"{name}.npz")
    assert drawn["light"]["angle"].tolist() == [30, 30] and drawn["light"]["labels"].tolist() == [1, 1]
    assert "angle" not in drawn["angles"] and "labels" not in drawn["angles"]
    assert not np.array_equal(drawn["light"]["images"], drawn["zero"]["images"])


@pytest.mark.usefixtures("quick_network")
def test_quality_and_sweep_draw_under_the_values_of_real_images(capsys: pytest.CaptureFixture[str]) -> None:
    options = "-n 12 --extractor classifier --solver sequential"
    assert call(f"quality both {options}") == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 <= found["agreement"] <= 1 and found["diversity"] > 0 and found["notes"] == []
    assert call(f"sweep both {options} --guidance 0 1") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len(rows) == 2 and rows[0]["figures"] != rows[1]["figures"]
    assert call("sample both -n 2 --given 30 --out q.png") == 0
    assert "both/sampling.json" in capsys.readouterr().err


def test_a_report_and_a_card_say_what_images_are_given() -> None:
    assert call("report both --images 2 --limit 2 --out told") == 0
    page = " ".join(Path("told/report.html").read_text().split())
    assert "Columns go through the classes" in page and "They are given the angle of held-out images" in page
    assert call("push both a/b --licence mit --samples 2 --dry-run card") == 0
    card = Path("card", CARD_FILE).read_text()
    assert "2 classes: dark, light, given angle." in card and "by default; given the mean of angle.*" in card
    (line,) = (line.strip() for line in card.splitlines() if line.strip().startswith("tarflow sample"))
    assert call(line.removeprefix("tarflow ").replace("a/b", "card").replace("-n 16", "-n 1")) == 0
    assert "run.sample(n=4, given={'angle': 30.0})" in card


def test_a_plan_counts_the_numbers_that_a_recipe_names(capsys: pytest.CaptureFixture[str]) -> None:
    model = '[model]\npatch_size = 2\nwidth = 16\nhead_dim = 8\nlayers = [1, 1]\norder = "causal"'
    data = '[data]\nsource = "photos"\nconditions_from = "angles.csv"'
    for name, more in (("named", '\nconditions = "angle"'), ("unnamed", "")):
        Path(f"{name}.toml").write_text(f"{model}\n{data}{more}\n[training]\nsteps = 2\nbatch_size = 4\n")
    parameters = sum(p.numel() for p in tarflow.open_run("both").flow.parameters())
    for words in ("--image-size 4 --channels 1 --num-classes 2", "--data photos"):
        assert main(shlex.split(f"plan named.toml --device h100 {words}")) == 0
        said = capsys.readouterr().out
        assert f"{parameters:,}" in said and "2 classes, given 1 number" in said
    assert main(shlex.split("plan unnamed.toml --device h100 --image-size 4 --channels 1")) == 2
    assert "data.conditions: name the columns" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("what", ["log_prob", "step"])
def test_an_export_takes_both(what: str, tmp_path: Path) -> None:
    out = tmp_path / ("both.pt2" if what == "log_prob" else "steps")
    assert main(["export", "both", "--out", str(out), "--what", what]) == 0
    if what == "log_prob":
        extra = {"tarflow.json": ""}
        program = torch.export.load(out, extra_files=extra).module()
        assert json.loads(extra["tarflow.json"])["numbers"] == ["angle"]
        x, c = torch.zeros(3, 1, 4, 4), (torch.tensor([0, 1, -1]), torch.tensor([[30.0], [0.0], [float("nan")]]))
        torch.testing.assert_close(program(x, c), tarflow.open_run("both").flow.log_prob(x, c), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("score angles photos --class dark --out x.csv", "--class: angles has no classes"),
        ("score always photos --out x.csv", "has learned nothing for when angle is left open"),
        ("denoise always photos --out x", "--given or --conditions-from: expected one; always was trained with"),
        ("denoise angles photos --class dark --out x", "--class: angles has no classes"),
        ("denoise both photos --given angel=3 --out x", "--given: got 'angel=3': expected angle=…, each once"),
        ("inpaint angles mask.png --mask mask.png --class dark --out x.png", "--class: angles has no classes"),
        ("evaluate always --against inverted", "--against: others have no numbers; always was trained with"),
        ("sample always -n 1 --given null --out x.png", "has learned nothing for when angle is left open"),
    ],
)
def test_what_does_not_fit_is_one_line(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(words) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.strip().splitlines()) == 1, err
    assert not any(Path(name).exists() for name in ("x", "x.png", "x.csv"))

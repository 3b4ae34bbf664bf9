"""`tarflow quality` and `tarflow sweep`, from arguments to what they print and leave; and the default of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import tarflow
from report_cases import make_run
from tarflow.checkpoint import open_run, weights_digest
from tarflow.cli import main
from tarflow.config import from_dict
from tarflow.evaluation.quality import ratios
from tarflow.evaluation.quality.judge import KINDS
from tarflow.kept import open_setting, save_setting
from tarflow.sampling.guidance import Guidance
from tarflow.sampling.setting import Setting, StoredSetting

FEATURES = ["--extractor", "classifier"]


pytestmark = pytest.mark.usefixtures("quick_network")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run", classes=True, noise="gaussian")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[dict[str, Any], str]:
    capsys.readouterr()
    assert main([str(word) for word in arguments]) == 0
    captured = capsys.readouterr()
    return (json.loads(captured.out) if captured.out else {}), captured.err


def test_quality_prints_figures_with_names_and_floors(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, _ = printed(capsys, "quality", run, "-n", 40, *FEATURES)
    assert list(found["figures"]) == [f"{kind}-Classifier" for kind in KINDS]
    for figure in found["figures"].values():
        assert figure["samples"] == figure["floor_samples"] == 40
    # An untrained flow draws nothing like a digit, and every number knows.
    fd = found["figures"]["FD-Classifier"]
    assert fd["value"] > fd["floor"] and found["figures"]["coverage-Classifier"]["value"] < 0.9
    unguided = {"scale": 0, "schedule": "linear", "temperature": 1, "rule": "paper"}
    assert found["setting"] == {"guidance": unguided, "denoise": 0.1}
    assert found["reference"]["training_images"] == 1617 and found["reference"]["held_out_images"] == 180
    assert 0 <= found["agreement"] < 0.7 and found["diversity"] > 0 and found["novelty"] > 0 and found["notes"] == []
    assert 0 < found["clipped_pixels"] <= found["clipped_images"] <= 1
    again, _ = printed(capsys, "quality", run, "-n", 40, *FEATURES, "--guidance", 0)
    assert again["figures"] == found["figures"]


@pytest.fixture
def on_features_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the classifier, which takes most of the time and has tests of its own."""
    monkeypatch.setattr(ratios, "sample_quality", lambda pixels, *_, **__: ratios.SampleQuality(len(pixels)))


@pytest.mark.usefixtures("on_features_alone")
@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ("--guidance 2", {"scale": 2.0}),
        ("--guidance 2 --schedule constant", {"scale": 2.0, "schedule": "constant"}),
        ("--guidance 2 --rule stable", {"scale": 2.0, "rule": "stable"}),
        ("--guidance 2 --temperature 0.5", {"scale": 2.0, "temperature": 0.5}),
        ("--no-denoise", {"denoise": None}),
        ("--noise-std 0.3", {"denoise": 0.3}),
        ("--seed 1", {}),
        ("--reference 500", {}),
    ],
)
def test_every_option_changes_what_is_measured(
    options: str, changed: dict[str, Any], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, _ = printed(capsys, "quality", run, "-n", 12, *FEATURES)
    found, _ = printed(capsys, "quality", run, "-n", 12, *FEATURES, *options.split())
    guidance, denoise = plain["setting"]["guidance"], changed.pop("denoise", plain["setting"]["denoise"])
    assert found["setting"] == {"guidance": guidance | changed, "denoise": denoise}
    assert found["figures"] != plain["figures"]


@pytest.mark.usefixtures("on_features_alone")
def test_flipping_in_training_does_not_reach_the_reference(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, _ = printed(capsys, "quality", run, "-n", 12, *FEATURES)
    config = json.loads((run / "config.json").read_text())
    config["data"]["flip"] = True
    (run / "config.json").write_text(json.dumps(config))
    found, _ = printed(capsys, "quality", run, "-n", 12, *FEATURES)
    assert found["reference"] == plain["reference"] and found["figures"] == plain["figures"]


def test_without_classes_there_is_novelty_and_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", classes=False, noise="uniform")
    # The labels of the data are there, and the extractor may use them.
    found, _ = printed(capsys, "quality", run, "-n", 12, *FEATURES)
    assert found["agreement"] is None and found["diversity"] is None and found["novelty"] > 0
    assert found["notes"] == ["agreement and diversity: there are no classes"]
    assert found["setting"]["denoise"] is None


def test_a_sweep_leaves_a_table_a_plot_and_a_default(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["-n", 20, "--guidance", 0, 1, "--schedule", "linear", "constant", "--strength", 0, 1, *FEATURES]
    found, said = printed(capsys, "sweep", run, *options)
    assert len(found["rows"]) == 6
    values = [row["figures"]["FD-Classifier"]["value"] for row in found["rows"]]
    assert len(set(values)) == 6
    best = found["rows"][values.index(min(values))]
    assert found["best"] == best["setting"]
    assert found["again"]["FD-Classifier"]["value"] not in values  # other noise
    assert len(found["at_edge"]) == bool(best["setting"]["guidance"]["scale"]) + bool(best["setting"]["denoise"]) > 0
    assert all(edge in said.splitlines() for edge in found["at_edge"])
    stored = open_setting(open_run(run))
    assert stored is not None and stored.setting == from_dict(Setting, best["setting"])
    assert (stored.figure, stored.value, stored.samples, stored.compared) == ("FD-Classifier", min(values), 20, 6)
    table, plot = (run / "sweep" / "sweep.md").read_text(), (run / "sweep" / "sweep.svg").read_text()
    assert table.count("\n") == 2 + 6 + 1 and f"**{stored.setting}**" in table and table in said
    assert plot.count('class="heading"') == 2

    # Called again with more, it draws what is new alone.
    before = (run / "sweep" / "sweep.json").stat().st_mtime_ns
    more, said = printed(capsys, "sweep", run, *options, "--rule", "paper", "stable", "--no-save", "--by", "recall")
    assert len(more["rows"]) == 10 and said.count("stable") > 4
    kept = [row for row in more["rows"] if row["setting"]["guidance"]["rule"] == "paper"]
    assert sorted(kept, key=str) == sorted(found["rows"], key=str)
    assert "6/10" not in said and (run / "sweep" / "sweep.json").stat().st_mtime_ns > before
    assert open_setting(open_run(run)) == stored


def test_an_interrupted_sweep_is_not_measured_twice(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tarflow.drawing import Sampler

    drawn: list[tuple[Setting, int]] = []
    draw = Sampler.pixels

    def interrupted(self: Sampler, n: int, y: Any, setting: Setting, seed: int, progress: Any) -> torch.Tensor:
        drawn.append((setting, seed))
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return draw(self, n, y, setting, seed, progress)

    monkeypatch.setattr(Sampler, "pixels", interrupted)
    options = ["-n", 12, "--guidance", 0, 1, *FEATURES]
    assert main([str(word) for word in ["sweep", run, *options]]) == 130
    assert not (run / "sampling.json").exists()
    printed(capsys, "sweep", run, *options)
    denoise = {"denoise": 0.1}
    assert [s for s, seed in drawn if seed == 0] == [
        Setting(**denoise),
        Setting(Guidance(1.0), **denoise),
        Setting(Guidance(1.0), **denoise),
    ]
    assert [seed for _, seed in drawn] == [0, 0, 0, 1]


@pytest.mark.usefixtures("on_features_alone")
def test_a_cache_that_cannot_be_written_to_is_said_once(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    found, said = printed(capsys, "quality", run, "-n", 12, *FEATURES, "--cache", tmp_path / "file" / "cache")
    assert found["figures"] and said.count("tarflow: warning") == 1
    assert f"tarflow: warning: {tmp_path}/file/cache: Not a directory; nothing is kept there" in said


def test_a_sweep_of_a_run_that_cannot_be_written_to_loses_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.touch

    def touch(path: Path, *rest: Any, **named: Any) -> None:
        if path.parent in (run, run / "sweep"):
            raise OSError(30, "Read-only file system", str(path))
        real(path, *rest, **named)

    monkeypatch.setattr(Path, "touch", touch)
    options = ["sweep", run, "-n", 12, "--guidance", 0, *FEATURES]
    found, said = printed(capsys, *options, "--out", tmp_path / "out")
    assert len(found["rows"]) == 1 and (tmp_path / "out" / "sweep.md").exists()
    assert said.startswith(f"{run}: Read-only file system; the best setting will not be kept as its default")
    assert "default not kept: " in said
    monkeypatch.setattr("tarflow.cli.sweep.opened_judge", lambda *_: pytest.fail("it was measured first"))
    assert main([str(word) for word in options]) == 2
    assert f"{run}/sweep: Read-only file system; give another directory by --out" in capsys.readouterr().err


def test_a_default_that_was_damaged_is_not_used(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = save_setting(
        open_run(run), StoredSetting(weights_digest(run), Setting(Guidance(2.0)), "FD-Classifier", 1.0, 500, 2)
    )
    file.write_text(file.read_text().replace("2.0", "3.0"))
    assert main(["sample", str(run), "-n", "1", "--out", str(tmp_path / "a.png")]) == 2
    assert f"error: {file}: damaged, its digest is not that" in capsys.readouterr().err


# --- the default in use ---------------------------------------------------------------------------------------------


def images_of(path: Path) -> Any:
    from PIL import Image

    return [list(Image.open(file).tobytes()) for file in sorted(path.iterdir())]


def test_sample_uses_the_default_says_so_and_can_be_told_otherwise(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["sample", run, "-n", 3, "--solver", "sequential", "--out"]
    _, said = printed(capsys, *options, tmp_path / "plain")
    assert "sampling.json" not in said
    printed(capsys, *options, tmp_path / "wanted", "--guidance", 2, "--rule", "stable", "--noise-std", 0.2)
    opened = open_run(run)
    stored = StoredSetting(
        weights_digest(run), Setting(Guidance(2.0, rule="stable"), 0.2), "FD-EffNetLite0", 12.5, 500, 9
    )
    save_setting(opened, stored)
    _, said = printed(capsys, *options, tmp_path / "default")
    assert "sampling.json" in said and "the best of 9 by FD-EffNetLite0 (12.5, 500 samples)" in said
    assert "3 samples, guidance 2 (linear, stable), denoised with σ=0.2" in said
    assert images_of(tmp_path / "default") == images_of(tmp_path / "wanted") != images_of(tmp_path / "plain")
    _, said = printed(capsys, *options, tmp_path / "without", "--no-defaults")
    assert "sampling.json" not in said
    assert images_of(tmp_path / "without") == images_of(tmp_path / "plain")
    # Some of it: guidance replaces guidance, and the denoising stays; and the other way.
    _, said = printed(capsys, *options, tmp_path / "a", "--guidance", 1)
    assert "a part of it is used: guidance 1 (linear, paper), denoised with σ=0.2" in said
    _, said = printed(capsys, *options, tmp_path / "b", "--no-denoise")
    assert "a part of it is used: guidance 2 (linear, stable), not denoised" in said
    _, said = printed(capsys, *options, tmp_path / "c", "--guidance", 0, "--noise-std", 0.1)
    assert "sampling.json" not in said
    assert images_of(tmp_path / "c") == images_of(tmp_path / "plain")


def test_a_default_of_other_weights_is_not_used(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_setting(
        open_run(run), StoredSetting(weights_digest(run), Setting(Guidance(2.0)), "FD-Classifier", 1.0, 500, 2)
    )
    shutil.copytree(run, tmp_path / "copy", copy_function=shutil.copyfile)  # without the times of the files
    _, said = printed(capsys, "sample", tmp_path / "copy", "-n", 1, "--out", tmp_path / "a.png")
    assert "guidance 2" in said
    flow = tarflow.TarFlow.from_pretrained(run)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 1e-3
    flow.save_weights(run / "model.safetensors")
    _, said = printed(capsys, "sample", run, "-n", 1, "--out", tmp_path / "b.png")
    assert "not used, found for other weights" in said and "1 samples, no guidance" in said

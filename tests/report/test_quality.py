"""What other commands measured is in the report, for the weights that it was measured for and no others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from report_cases import Page, make_run
from tarflow.checkpoint import open_run, weights_digest
from tarflow.config import TarFlowConfig, to_dict
from tarflow.evaluation.likelihood.patch_maps import ends_of_a_map
from tarflow.evaluation.quality.judge import QUALITY_FILE, Figure, keep_quality, kept_quality
from tarflow.evaluation.quality.sweep import SWEEP, Row, edges, write_rows
from tarflow.kept import save_setting
from tarflow.model.flow import TarFlow
from tarflow.report.build import write_report
from tarflow.report.subject import Settings, Subject
from tarflow.sampling.guidance import Guidance
from tarflow.sampling.sample import sample
from tarflow.sampling.setting import Setting, StoredSetting

SETTINGS = Settings(images=2, limit=8)
FD = "FD-Classifier"


def measured(name: str, value: float) -> dict[str, Any]:
    figures = {
        f"FD-{name}": Figure(value, 500, 1.25, 100, value + 1),
        f"KD-{name}": Figure(0.5, 500, 0.1, 100, 0.6, 0.05),
    }
    return {
        "extractor": {"name": name, "description": "of a test"},
        "samples": 500,
        "seed": 3,
        "setting": to_dict(Setting(Guidance(1.5), denoise=0.1)),
        "figures": {figure: values.to_dict() for figure, values in figures.items()},
        "agreement": 0.875,
        "diversity": None,
    }


def swept(run: Path, *, weights: str | None = None, done: bool = True) -> None:
    rows = [
        Row(Setting(Guidance(scale), 0.1), {FD: Figure(value, 200, 1.25, 200, value)})
        for scale, value in ((0.0, 9.5), (1.0, 7.25), (2.0, 6.125))
    ]
    rows.append(Row(Setting(Guidance(3.0), denoise=0.1), {}, "sample 0 is not finite"))
    more = {"by": FD, "again": {FD: Figure(6.75, 200, 1.25, 200, 6.75).to_dict()}} if done else {}
    (run / SWEEP).mkdir()
    write_rows(run / SWEEP / "sweep.json", {"weights": weights or weights_digest(run)}, rows, **more)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", classes=True, noise="gaussian")


def page_of(*runs: Path) -> Page:
    return Page(write_report(runs, runs[0].parent / "out", settings=SETTINGS).read_text())


def test_quality_is_shown_by_extractor_with_its_floor(run: Path) -> None:
    keep_quality(open_run(run), measured("Old", 8.5))
    keep_quality(open_run(run), measured("Classifier", 3.25))
    keep_quality(open_run(run), measured("Old", 7.5))  # the newest of each
    shown = page_of(run).section("quality")
    for words in ("FD-Classifier", "3.25", "1.25", "FD-Old", "7.5", "0.5 ± 0.05", "500 samples", "100 held-out images"):
        assert words in shown, words
    assert "8.5" not in shown and "guidance 1.5" in shown and "seed 3" in shown and "0.875" in shown
    assert "diversity" not in shown, "it was not measured"


def test_the_sweep_is_shown_with_its_best_and_its_edge(run: Path) -> None:
    swept(run)
    page = page_of(run)
    shown = page.section("sweep")
    for words in ("guidance 2 (linear, paper), denoised with σ=0.1 (best)", "6.125", "6.75", "9.5", "failed"):
        assert words in shown, words
    assert "The best scale of the guidance, 2, is" not in shown, "3 was tried too"
    assert "over the scale of the guidance" in shown and "interrupted" not in shown


def test_an_interrupted_sweep_is_called_so(run: Path) -> None:
    swept(run, done=False)
    assert "interrupted" in page_of(run).section("sweep")


def test_what_was_measured_for_other_weights_is_not_shown(run: Path) -> None:
    swept(run, weights="of others")
    keep_quality(open_run(run), measured("Classifier", 3.25))
    (run / QUALITY_FILE).write_text((run / QUALITY_FILE).read_text().replace(weights_digest(run), "of others"))
    page = page_of(run)
    assert "other weights" in page.section("sweep") and "6.125" not in page.section("sweep")
    assert "Nothing was measured" in page.section("quality") and "3.25" not in page.section("quality")


def damaged(figure: dict[str, Any], setting: dict[str, Any] | None = None) -> str:
    entry = {"setting": setting or {}, "figures": {"FD-a": figure}}
    return json.dumps({"weights": "W", "measured": {"a": entry}})


FIGURE = {"value": 1.0, "samples": 20, "floor": 1.0, "floor_samples": 20, "value_at_floor_samples": 1.0}
DAMAGED = {
    "no JSON": "{",
    "a list": "[]",
    "no measurement": '{"weights": "W", "measured": {"a": 3}}',
    "no figures": '{"weights": "W", "measured": {"a": {"setting": {}, "figures": {}}}}',
    "a figure that is a word": damaged(FIGURE | {"value": "x"}),
    "a figure of 400 digits": damaged(FIGURE | {"floor": 10**400}),
    "a field too many": damaged(FIGURE | {"ceiling": 1.0}),
    "no such setting": damaged(FIGURE, {"scale": -1}),
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_counts_as_nothing(text: str, run: Path) -> None:
    (run / QUALITY_FILE).write_text(text.replace("W", weights_digest(run)))
    assert kept_quality(open_run(run)) == {}
    sound = damaged(FIGURE).replace("W", weights_digest(run))
    (run / QUALITY_FILE).write_text(sound)
    assert kept_quality(open_run(run)) == json.loads(sound)["measured"]


def test_samples_are_drawn_as_the_stored_default_says(run: Path) -> None:
    plain = page_of(run).section("samples")
    assert "no guidance, denoised with σ=0.1" in plain and "default" not in plain
    setting = Setting(Guidance(2.0, "constant"), 0.2)
    stored = StoredSetting(weights_digest(run), setting, FD, 6.125, 200, 4)
    save_setting(open_run(run), stored)
    page = page_of(run)
    assert "guidance 2 (constant, paper), denoised with σ=0.2" in page.section("samples")
    assert "the best of 4 by FD-Classifier (6.125, 200 samples)" in page.section("samples")
    assert "guidance 2 (constant, paper)" in page.section("neighbours")
    subject = Subject(open_run(run), SETTINGS)
    drawn = sample(subject.run.flow, 20, subject.labels, Guidance(2.0, "constant"), 0, denoise=0.2)
    assert torch.allclose(subject.samples, drawn, atol=1e-4)
    assert not torch.allclose(subject.plain_samples, drawn, atol=1e-1)
    save_setting(open_run(run), StoredSetting("of others", setting, FD, 6.125, 200, 4))
    assert page_of(run).section("samples") == plain


def test_several_runs_have_a_table(run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", classes=False, noise="uniform")
    bare = make_run(tmp_path / "bare", classes=False, noise="uniform", source=str(tmp_path / "gone"))
    keep_quality(open_run(other), measured("Classifier", 3.25))
    shown = page_of(run, other, bare).section("runs")
    for words in (
        "3 runs",
        "other",
        "bare",
        "FD-Classifier 3.25 (N = 500)",
        "40 steps, 20 s",
        "worse",
        "different data",
    ):
        assert words in shown, words
    assert "not comparable" in shown, "one is of noisy images"


def test_edges_of_a_grid() -> None:
    tried = [
        Setting(),
        Setting(Guidance(1.0)),
        Setting(Guidance(2.0)),
        Setting(Guidance(1.0, temperature=0.5)),
        Setting(Guidance(1.0), denoise=0.1),
    ]
    assert edges(tried, Setting()) == [] and edges(tried, Setting(Guidance(1.0))) == [
        "the best temperature, 1, is the largest that was tried: a better one may lie beyond it"
    ]
    (found,) = edges([Setting(), Setting(Guidance(1.0)), Setting(Guidance(2.0))], Setting(Guidance(2.0)))
    assert "scale of the guidance, 2, is the largest" in found
    assert edges([Setting(Guidance(1.0))], Setting(Guidance(1.0))) == [], "nothing else was tried"
    assert (
        "σ of the denoising, 0.1, is the largest" in edges([Setting(), Setting(denoise=0.1)], Setting(denoise=0.1))[0]
    )
    low = edges([Setting(Guidance(1.0)), Setting(Guidance(2.0)), Setting(Guidance(3.0))], Setting(Guidance(1.0)))
    assert "scale of the guidance, 1, is the smallest" in low[0]


def test_maps_explain_their_first_and_last_patch(run: Path) -> None:
    flow = open_run(run).flow
    shown = page_of(run).section("maps")
    assert ends_of_a_map(flow) in shown
    assert "1 of the 2 blocks" in shown and "top left" in shown and "bottom right" in shown
    fields = dict(image_size=4, channels=1, patch_size=2, width=64, layers=(1, 1))
    causal, started = (
        TarFlow(TarFlowConfig(**fields, **more)) for more in ({"order": "causal"}, {"start_token": True})
    )
    assert "top left" in ends_of_a_map(causal) and "bottom" not in ends_of_a_map(causal)
    assert "apart" not in ends_of_a_map(started)

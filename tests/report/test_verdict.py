"""Each sentence of the verdict appears under its condition with its figure, and does not otherwise."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from report_cases import make_run
from tarflow import checkpoint, storage
from tarflow.checkpoint import open_run
from tarflow.evaluation.quality.judge import QUALITY_FILE
from tarflow.report import verdict
from tarflow.report.findings import Agreement, Distance, Estimate, Findings, Share, Trend, difference, findings, trend
from tarflow.report.subject import Settings, Subject
from tarflow.report.verdict import MOST, NEXT, RULES, sentences

SURE, UNSURE = 0.01, 0.1  # errors, of differences of 0.2


def curve(change: float, error: float = SURE, drop: float = 0.02) -> Trend:
    return Trend(Estimate(change, error), 6, 500, 1000, drop)


# A run of which all is well.
WELL = Findings(
    "bits/dim",
    images=100,
    step=1000,
    steps=1000,
    evaluations=20,
    trend=curve(-0.002, 0.001),
    best=950,
    gap=Estimate(0.004, 0.01),
    advantage=Estimate(1.25, 0.02),
    distance=Distance("FD on digits", 2.0, 1.9, 500),
    accuracy=Share(0.97, 100, 0.12),
)

SAID = {  # what is other than well: what is said then, of the topic and of what to do
    "problem": ({"problem": "Gone."}, "No image was scored: Gone.", "Next: name the place of its images by --data"),
    "not finite": ({"not_finite": 3}, "3 of 100 held-out images have a log-density that is not finite.", "Nothing"),
    "diverged": ({"finite": False}, "The training diverged: the last loss", "Next: a lower rate (--lr)"),
    "some skipped": ({"skipped": 4}, "4 of 1,000 steps did not count: their loss or gradient", "Nothing"),
    "many skipped": ({"skipped": 40}, "40 of 1,000 steps did not count", "Next: a lower rate (--lr)"),
    "stopped": ({"step": 600}, "it stands at step 600 of 1,000.", "Next: go on with “tarflow train --resume”"),
    "falls": (
        {"trend": curve(-0.2)},
        "Held-out scores still fall: by 0.200 ± 0.010 bits/dim over the last 6 evaluations, steps 500 to 1,000.",
        "Next: train longer, by “tarflow train --resume --steps”",
    ),
    "slows": (
        {"trend": curve(-0.2, drop=0.008)},
        "all but levelled off: they fell by 0.200 ± 0.010 bits/dim over the last 6 evaluations, steps 500 to 1,000, "
        "the last time by 0.008.",
        "Nothing",
    ),
    "rises": ({"trend": curve(0.2)}, "rise again: by 0.200 ± 0.010 bits/dim over", "Nothing"),
    "falls or not": (
        {"trend": curve(-0.2, UNSURE)},
        "have levelled off: they moved by 0.200 ± 0.100 bits/dim",
        "Nothing",
    ),
    "few scores": (
        {"trend": None, "evaluations": 3},
        "a trend takes 5 held-out scores, there are 3.",
        "Nothing",
    ),
    "no metrics": ({"trend": None, "step": None, "steps": None}, "no metrics.jsonl is beside the model.", "Nothing"),
    "overfits": (
        {"trend": curve(0.2), "gap": Estimate(0.2, SURE)},
        "It overfits: held-out images take 0.200 ± 0.010 bits/dim more than training images",
        "Next: more images, --flip or --crop-padding where they suit the data, a smaller model, or fewer steps",
    ),
    "memorises": (
        {"gap": Estimate(0.2, SURE)},
        "Training images are known better: held-out images take 0.200 ± 0.010 bits/dim more.",
        "Next: more images, or --flip and --crop-padding",
    ),
    "gap or not": (
        {"gap": Estimate(0.2, UNSURE)},
        "No overfitting is seen: held-out images take +0.200 ± 0.100",
        "Nothing",
    ),
    "gap below": (
        {"gap": Estimate(-0.2, SURE)},
        "No overfitting is seen: held-out images take -0.200 ± 0.010",
        "Nothing",
    ),
    "behind": (
        {"advantage": Estimate(-1.5, SURE)},
        "The model is behind a Gaussian that is fitted to the training images, by 1.500 ± 0.010 bits/dim.",
        "Next: look whether images and levels are what they should be",
    ),
    "level": (
        {"advantage": Estimate(0.2, UNSURE)},
        "The model is level with a Gaussian that is fitted to the training images, 0.200 ± 0.100",
        "Next: look whether images and levels are what they should be",
    ),
    "far": (
        {"distance": Distance("FD on digits", 6.0, 1.5, 500)},
        "4 times as far from the training images as held-out ones: FD on digits 6 against 1.5, 500 of each.",
        "Next: “tarflow sweep”",
    ),
    "agreement": (
        {"agreement": Agreement(0.946, 0.981)},
        "94.6% of samples show the class that was asked for, to a classifier that is right about 98.1% of held-out",
        "Nothing",
    ),
    "disagreement": (
        {"agreement": Agreement(0.5, 0.981)},
        "Only 50.0% of samples show the class that was asked for, to a classifier that is right about 98.1% of",
        "Nothing",
    ),
    "no classes": (
        {"accuracy": Share(0.15, 100, 0.12)},
        "Classes do not show: 15.0% of 100 held-out images are likeliest under their own; 12.0% are of the most",
        "Nothing",
    ),
    "atypical": (
        {"atypical": Estimate(0.2, SURE)},
        "Held-out images are not typical of the model: they take 0.200 ± 0.010 bits/dim more than its own samples.",
        "Nothing",
    ),
    "wider": (
        {"atypical": Estimate(-0.2, SURE)},
        "The model is wider than the images: held-out ones take 0.200 ± 0.010 bits/dim less than its own samples.",
        "Nothing",
    ),
}


def test_of_a_run_that_is_well_all_is_said_and_nothing_else() -> None:
    assert sentences(WELL) == [
        "Held-out scores have levelled off: they moved by 0.002 ± 0.001 bits/dim over the last 6 evaluations, steps "
        "500 to 1,000.",
        "No overfitting is seen: held-out images take +0.004 ± 0.010 bits/dim beside training images.",
        "The model is ahead of a Gaussian that is fitted to the training images, by 1.250 ± 0.020 bits/dim.",
        "Samples are as near to the training images as held-out ones: FD on digits 2 against 1.9, 500 of each.",
        "Classes show: 97.0% of 100 held-out images are likeliest under their own; 12.0% are of the most frequent one.",
        "Nothing in these figures asks for a next step.",
    ]
    assert "typical of the model: they take +0.001 ± 0.010" in " ".join(
        sentences(dataclasses.replace(WELL, atypical=Estimate(0.001, SURE), accuracy=None))
    )
    asked = sentences(dataclasses.replace(WELL, distance=None))[-1]
    assert asked == "Next: “tarflow quality”, which was not run yet, measures what samples are worth."


@pytest.mark.parametrize("case", SAID)
def test_a_sentence_appears_under_its_condition_alone(case: str) -> None:
    changes, expected, what_next = SAID[case]
    said = sentences(dataclasses.replace(WELL, **changes))
    assert 3 <= len(said) <= MOST and sum(expected in one for one in said) == 1
    assert said[-1].startswith(what_next)
    assert not any(expected in one for one in sentences(WELL))
    for other, (others, sentence, _) in SAID.items():
        if not changes.keys() & others.keys():
            assert not any(sentence in one for one in said), other


def test_every_rule_and_every_advice_is_met_by_a_case() -> None:
    cases = [WELL, dataclasses.replace(WELL, atypical=Estimate(0.001, SURE)), dataclasses.replace(WELL, distance=None)]
    cases += [dataclasses.replace(WELL, **changes) for changes, _, _ in SAID.values()]
    for rule in RULES:
        topic = [other for other in RULES if other.topic == rule.topic]
        assert any(next((r for r in topic if r.when(case)), None) is rule for case in cases), rule.text
    for number, (_, text) in enumerate(NEXT):
        first = [next(k for k, (when, _) in enumerate(NEXT) if when(case)) for case in cases]
        assert number in first, text


def test_what_is_no_number_has_no_sentence() -> None:
    nothing = Estimate(math.nan, math.nan)
    lost = dataclasses.replace(WELL, gap=nothing, advantage=Estimate(1.0, math.nan), atypical=nothing, accuracy=None)
    said = sentences(dataclasses.replace(lost, distance=Distance("FD", 1.0, 0.0, 5)))
    assert len(said) == 2 and "nan" not in " ".join(said)


def test_good_news_makes_room() -> None:
    changes = {"skipped": 1, "atypical": Estimate(0.2, SURE), "not_finite": 1}
    said = sentences(dataclasses.replace(WELL, **changes))
    assert len(said) == MOST and "not finite" in said[0] and "did not count" in said[1] and "not typical" in said[-2]


# --- the figures -----------------------------------------------------------------------------------------------------


def test_a_trend_is_that_of_the_last_third_with_the_error_of_its_line() -> None:
    flat = [(100 * k, 3.0) for k in range(1, 21)]
    steep = [(step, 3.0 - 0.001 * step) for step in range(10, 60, 10)]
    found = trend([*((step - 1000, 50.0) for step in range(100)), *steep])
    assert found is not None and found.scores == 35
    assert (found := trend(steep)) is not None and found.change.value == pytest.approx(-0.04)
    assert found.change.clear and (found.first, found.last) == (10, 50)
    assert found.drop == pytest.approx(0.01)
    assert (level := trend(flat)) is not None and level.scores == 6 and not level.change.clear
    assert trend(flat[:4]) is None

    generator = torch.Generator().manual_seed(0)
    slopes, errors = [], []
    for _ in range(400):
        noise = torch.randn(12, generator=generator, dtype=torch.float64).tolist()
        found = trend([(k, 0.1 * value) for k, value in enumerate(noise)])
        assert found is not None
        slopes.append(found.change.value)
        errors.append(found.change.error)
    scatter, mean = float(torch.tensor(slopes).std()), float(torch.tensor(errors).square().mean().sqrt())
    assert mean == pytest.approx(scatter, rel=0.15)


def test_a_difference_has_the_error_of_two_independent_means() -> None:
    a, b = torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0.0, 2.0])
    assert difference(a, b) == Estimate(2.0, pytest.approx(math.sqrt(4 / 3 + 2 / 2)))
    assert difference(a, b[:1]) is None and difference(a, torch.tensor([0.0, math.inf])) is None


def test_the_figures_are_those_of_the_run(noisy: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    found = findings(noisy)
    assert found.unit == "noisy bits/dim" and (found.step, found.steps, found.evaluations) == (40, 40, 1)
    assert found.images == 40 and found.trend is None and found.distance is None
    best = noisy.likelihoods[0]
    assert best.yardstick is not None and found.advantage is not None
    assert found.advantage.value == best.yardstick.advantage
    # An untrained flow knows no image, and no class.
    assert found.gap is not None and not found.gap.clear and found.accuracy is not None and not found.accuracy.above
    assert found.atypical is not None and found.atypical.clear and found.atypical.value > 0
    assert found.atypical.value > 10 * found.atypical.error


def test_what_the_metrics_and_the_judge_kept_is_read(tmp_path: Any) -> None:
    path = make_run(tmp_path / "run", classes=False, noise="uniform")
    (path / checkpoint.METRICS_FILE).unlink()
    for step in range(1, 8):
        line = {"step": step, "loss": math.nan if step == 7 else 1.0, "skipped": step // 3}
        checkpoint.append_metrics(path, line)
        checkpoint.append_metrics(path, {"step": step, "held_out_bits_per_dim": 8.0 - step})
    figure = {"value": 9.0, "samples": 50, "floor": 1.5, "floor_samples": 20, "value_at_floor_samples": 3.0}
    entry = {"setting": {"guidance": {}, "denoise": None}, "figures": {"KD": figure, "FD": figure}}
    kept = {
        "weights": checkpoint.weights_digest(path),
        "measured": {"digits": {**entry, "agreement": 0.5, "classifier_accuracy": 0.9}},
    }
    storage.write_json(path / QUALITY_FILE, kept)
    found = findings(Subject(open_run(path), Settings(images=2, limit=8)))
    assert not found.finite and found.skipped == 2 and found.step == 7 and found.stopped
    assert found.best == 7 and found.falls and found.evaluations == 7
    assert found.distance == Distance("FD", 3.0, 1.5, 20) and found.agreement == Agreement(0.5, 0.9)
    assert found.accuracy is None


def test_without_images_the_reason_is_said(tmp_path: Any) -> None:
    path = make_run(tmp_path / "run", classes=False, noise="uniform", source="nowhere")
    said = verdict.verdict(Subject(open_run(path), Settings(images=2, limit=8)))
    assert isinstance(said[0], str) and said[0].startswith("No image was scored: The data cannot be read here")
    assert len(said) == 3

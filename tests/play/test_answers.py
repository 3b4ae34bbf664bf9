"""What the page shows: each tab's answer, controls that a model has a use for, and one clear line for what is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from play_cases import answers_of, outcome, picture, sent
from report_cases import Page
from tarflow.play.answers import Answers
from tarflow.play.parts import worth
from tarflow.sampling.inpaint import Inpainted


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return answers_of(tmp_path_factory.mktemp("play") / "run")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return answers_of(tmp_path_factory.mktemp("play") / "plain", classes=False, noise="uniform")


def images(html: str) -> list[str]:
    """The texts in place of the pictures of a piece of HTML, every one of which holds its picture itself."""
    found = Page(html).all("img")
    assert all(e.attributes["src"].startswith("data:image/png;base64,") and e.attributes["alt"] for e in found)
    return [e.attributes["alt"] for e in found]


def test_controls_are_those_that_the_model_has_a_use_for(answers: Answers, plain: Answers) -> None:
    assert answers.drawing == ("images", "seed", "class", "guidance", "rule", "temperature", "denoise")
    assert plain.drawing == ("images", "seed", "guidance", "rule", "temperature")


def test_images_appear_as_they_finish(answers: Answers) -> None:
    told = list(answers.draw(10, 0, "all", 0, "paper", 1, True))
    grids = [len(images(result)) for _, result in told if result]
    assert grids == [2, 4, 6, 8, 10]
    assert "0 of 10 images" in told[0][0] and "<progress" in told[0][0] and "<progress" not in told[-1][0]
    assert "10 images in" in told[-1][0] and "denoised with σ=0.1; seed 0" in told[-1][0]
    assert images(told[-2][1] or "")[3] == "Sample 4, 3"


def test_a_trace_is_a_film_that_ends_in_the_image(answers: Answers) -> None:
    word, film = outcome(answers.follow(2, 4, 0, "all", 0, "paper", 1, True))
    assert "Image 2 in 4 stages" in word
    assert images(film)[1:] == ["noise", "after block 1", "after block 0", "denoised"] and images(film)[0] == "denoised"
    (slider,) = Page(film).all("input")
    assert slider.attributes["max"] == "3" and slider.attributes["id"] == "film-trace"


def test_pictures_are_scored_each_with_its_own_outcome(answers: Answers) -> None:
    word, result = outcome(answers.score(sent(picture(), b"no picture", names=("a<b>.png", "b.txt")), 0, "all"))
    assert "1 scored, 1 could not be read" in word
    page = Page(result)
    assert [e.text for e in page.all("h3")] == ["a<b>.png", "b.txt"], "names are text, and no HTML"
    assert "not an image" in result and "log-likelihood" in result and "less likely" in result
    assert len(images(result)) == 2 and len(page.all("svg")) == 1 and len(page.all("meter")) == 5


def test_without_pictures_a_sample_is_scored(answers: Answers, plain: Answers) -> None:
    assert "sample of seed 5, 3<" in outcome(answers.score("[]", 5, "3"))[1]
    assert "sample of seed 12, 2<" in outcome(answers.score("[]", 12, "all"))[1], "any class: one after the other"
    word, result = outcome(plain.score(None, 5))
    assert "1 scored" in word and "bits/dim" in result and "Most likely classes" not in result


def test_a_walk_and_an_edit(answers: Answers, plain: Answers) -> None:
    word, film = outcome(answers.walk("[]", 0, sent(picture()), 1, 5, "1", "null"))
    assert "5 images" in word and len(images(film)) == 6
    told = list(plain.redraw(sent(picture()), 0, "[2, 3]", 3, 9, 1))
    assert "<progress" in told[1][0] and "the chains are on their way" in told[1][0]
    word, found = told[-1]
    assert "3 drawings in" in word and "seed 9" in word
    assert images(found or "") == ["The picture itself", "Drawing 1", "Drawing 2", "Drawing 3"]
    assert "R-hat" in (found or "") and "independent" in (found or "")


def test_figures_of_chains_that_do_not_move_can_be_read() -> None:
    drawn = Inpainted(torch.zeros(1, 1, 1), False, *(torch.tensor([v], dtype=torch.float64) for v in (0, 3, 1.7e308)))
    assert worth(drawn)[-1] == ("R-hat, 1 where chains have met", "over 100")
    assert len(drawn.verdict) < 240 and "1.7e+308" in drawn.verdict


def test_a_look_inside_names_no_place_on_the_machine(answers: Answers) -> None:
    word, result = outcome(answers.look())
    assert "Measured just now" in word and len(Page(result).all("svg")) == 2
    assert str(answers.studio.run.path.parent) not in result


WRONG: list[tuple[str, tuple[Any, ...], str]] = [
    ("draw", (65, 0, "all", 0, "paper", 1, True), "images: expected a whole number from 1 to 64, got 65"),
    ("draw", (4, 0, "null", 2, "paper", 1, True), "both branches are the same"),
    ("draw", (4, 0), "expected 7 values"),
    ("follow", (5, 4, 0, "all", 0, "paper", 1, True), "which image: expected a whole number from 1 to 4, got 5"),
    ("score", ("{", 0, "all"), "pictures: expected a JSON list"),
    ("score", ("[]", -1, "all"), "seed: expected a whole number"),
    ("score", ("[]", 0, "77"), "class: expected a class from 0 to 9"),
    ("walk", ("[]", None, "[]", 1, 5, "1", "1"), "seed of the first picture"),
    ("walk", ("[]", 0, "[]", 1, 2, "1", "1"), "steps: expected a whole number from 3 to 33, got 2"),
    ("walk", ("[]", 0, "[]", 1, 5), "expected 2 classes, got 0"),
    ("walk", (sent(b"no", names=("x.png",)), 0, "[]", 1, 5, "1", "1"), "x.png: not an image"),
    ("walk", (sent(picture(), picture()), 0, "[]", 1, 5, "1", "1"), "at most 1 at a time, got 2"),
    ("redraw", ("[]", 0, "[4]", 3, 0, 5, "1"), "drawn anew: expected a JSON list of numbers from 0 to 3, got '[4]'"),
    ("redraw", ("[]", 0, "[true]", 3, 0, 5, "1"), "drawn anew: expected a JSON list"),
    ("redraw", ("[]", 0, "[", 3, 0, 5, "1"), "drawn anew: expected a JSON list"),
    ("redraw", ("[]", 0, "[]", 3, 0, 5, "1"), "nothing is chosen"),
    ("redraw", ("[]", 0, "[2]", 17, 0, 5, "1"), "drawings: expected a whole number from 1 to 16, got 17"),
    ("redraw", ("[]", 0, "[2]", 3, 0, 121, "1"), "seconds: expected a whole number from 1 to 120, got 121"),
]


@pytest.mark.parametrize(("method", "values", "message"), WRONG)
def test_what_is_wrong_is_one_line_and_the_result_stays(
    answers: Answers, method: str, values: tuple[Any, ...], message: str
) -> None:
    *_, (word, result) = getattr(answers, method)(*values)
    assert result is None and 'role="alert"' in word
    (line,) = Page(word).all("p")
    assert message in line.text and "\n" not in line.text


def test_what_should_not_happen_is_one_line_without_details(
    answers: Answers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("/home/somebody/secret")

    monkeypatch.setattr(answers.studio, "draw", broken)
    ((_, _), (word, result)) = answers.draw(1, 0, "all", 0, "paper", 1, True)
    assert result is None and "KeyError" in word and "secret" not in word
    assert "secret" in capsys.readouterr().err

    def greedy(*_: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(answers.studio, "draw", greedy)
    assert "memory of the machine" in outcome(answers.draw(1, 0, "all", 0, "paper", 1, True))[0]


def test_a_source_has_labels_and_limits(answers: Answers) -> None:
    html = answers.source("score", "Pictures to score", many=True)
    page = Page(html)
    assert page.all("legend")[0].text == "Pictures to score"
    inputs = page.all("input")
    assert all("label" in e.parents for e in inputs) and {e.attributes["type"] for e in inputs} == {"file", "number"}
    assert page.all("canvas")[0].attributes["aria-label"] and re.search(r'data-bytes="6000000"', html)


def test_nothing_is_left_in_the_directory_of_the_run_but_what_is_kept(tmp_path: Path) -> None:
    found = answers_of(tmp_path / "run", classes=False, noise="uniform")
    before = {path.name for path in (tmp_path / "run").iterdir()}
    for answer in (found.draw(2, 0, 0, "paper", 1), found.score(None, 0), found.look()):
        outcome(answer)
    assert {path.name for path in (tmp_path / "run").iterdir()} - before <= {"solvers.json", "held_out_scores.json"}

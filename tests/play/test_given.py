"""What a picture is drawn under where that is more than a class: texts of fields, and one line for what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tarflow
from play_cases import conditioned, outcome, picture, sent
from report_cases import Page
from tarflow.measure import to_8bit
from tarflow.play.answers import Answers
from tarflow.play.given import fields_of, value_of
from tarflow.play.studio import Studio

CONDITION = "classes:4+vector:2+tokens:2:3+image:1:8:8:4"


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """Of a flow on four conditions, whose numbers have means of their own, with a training in Gaussian noise."""
    return conditioned(tmp_path_factory.mktemp("play") / "run", CONDITION)


def read(answers: Answers, *texts: Any) -> Any:
    return value_of(answers.studio.flow, answers.studio.fields, texts)


def test_each_condition_is_a_field_that_begins_at_the_mean(answers: Answers) -> None:
    fields = answers.studio.fields
    assert [field.name for field in fields] == [
        *("class of 4", "2 numbers", "2 tokens of 3 numbers", "grey picture of 8×8")
    ]
    assert [field.start for field in fields] == ["null", "0.5, -100", "1, 2, 3\n1, 2, 3", ""]
    assert answers.drawing[:6] == ("images", "seed", "given 0", "given 1", "given 2", "given 3")
    assert answers.studio.classes == () and answers.studio.by_class


def test_what_is_aligned_is_a_field_as_a_sequence_or_an_image_is(tmp_path: Path) -> None:
    fields = conditioned(tmp_path / "run", "aligned:4:1+aligned-image:3:4:4:2").studio.fields
    assert [field.name for field in fields] == ["4 tokens of 1 number", "RGB picture of 4×4"]


def test_texts_become_the_value_of_a_row(answers: Answers) -> None:
    label, numbers, tokens, image = read(answers, "3", "[0.5,\n-1e2]", "1 2 3\n4;5;6", sent(picture((8, 8))))
    assert label.tolist() == [3] and numbers.tolist() == [[0.5, -100]]
    assert tokens.tolist() == [[[1, 2, 3], [4, 5, 6]]]
    assert image.shape == (1, 1, 8, 8) and float(image.min()) < -0.9 and float(image.max()) > 0.9


def test_an_empty_field_is_null(answers: Answers) -> None:
    value = read(answers, "null", "[]", " ", "[]")
    assert bool(answers.studio.flow.conditions.missing(value).all())
    assert bool(answers.studio.flow.conditions.differs(read(answers, "null", "1 2", "", "")))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("4", "", "", ""), "class of 4: expected a class from 0 to 3, or null, got '4'"),
        (("", "", "", ""), "class of 4: expected a class"),
        (("0", "1", "", ""), "2 numbers: expected 2 numbers, or nothing, got 1"),
        (("0", "1 x", "", ""), "2 numbers: number 2: expected a finite number, got 'x'"),
        (("0", "1 nan", "", ""), "2 numbers: number 2: expected a finite number, got 'nan'"),
        (("0", 3, "", ""), "2 numbers: expected numbers as text, got 3"),
        (("0", "", "1 2 3", ""), "2 tokens of 3 numbers: expected 6 numbers, or nothing, got 3"),
        (("0", "", "", sent(b"no", names=("a.png",))), "grey picture of 8×8: a.png: not an image"),
        (("0", "", "", sent(picture(), picture())), "expected at most 1 at a time, got 2"),
        (("0", "", "", "{"), "expected a JSON list"),
    ],
)
def test_what_is_no_value_is_one_line_that_names_the_field(
    answers: Answers, texts: tuple[Any, ...], message: str
) -> None:
    *_, (word, result) = answers.draw(1, 0, *texts, 0, "paper", 1, False)
    (line,) = Page(word).all("p")
    assert result is None and message in line.text and "\n" not in line.text


def test_all_that_can_be_done_is_done_under_what_is_given(answers: Answers) -> None:
    studio, texts = answers.studio, ("1", "2 -50", "", sent(picture((8, 8))))
    value = read(answers, *texts)
    images = torch.cat([d.images for d in studio.draw(wish(answers, texts)) if d.images is not None])
    y = studio.flow.conditions.repeat(value, 3)
    guidance = tarflow.Guidance(1.0, rule="stable")
    x = tarflow.sample(studio.flow, 3, y, guidance, 7, denoise=0.1, solver="sequential")
    assert (images.int() - to_8bit(studio.run.pixels(x), studio.run.levels).int()).abs().max() <= 16

    word, result = outcome(answers.draw(3, 7, *texts, 1, "stable", 1, True))
    assert "3 images in" in word and Page(result).all("img")[0].attributes["alt"] == "Sample 1"
    assert "Image 2 in" in outcome(answers.follow(2, 3, 7, *texts, 1, "stable", 1, True))[0]
    word, result = outcome(answers.score(sent(picture()), 0, *texts))
    assert (
        "1 scored" in word and "Scored with what is given" in result and "There are no percentiles: it is not" in result
    )
    word, result = outcome(answers.score(sent(picture()), 0, "null", "", "", ""))
    assert "Scored with the null class" in result and "less likely" in result, "as held-out images are"
    null = ("null", "", "", "")
    assert "5 images" in outcome(answers.walk("[]", 0, "[]", 1, 5, *texts, *null))[0]
    assert "expected 8 values of conditions, got 4" in outcome(answers.walk("[]", 0, "[]", 1, 5, *texts))[0]
    assert "Conditioned on" in outcome(answers.look())[1]


def wish(answers: Answers, texts: tuple[Any, ...]) -> Any:
    return answers._wish((3, 7, *texts, 1, "stable", 1, True))


def test_classes_alone_and_nothing_are_no_fields(tmp_path: Path) -> None:
    for k, condition in enumerate(("none", "classes:3")):
        flow = tarflow.TarFlow(
            tarflow.TarFlowConfig(8, channels=1, patch_size=4, width=64, layers=(1,), condition=condition)
        )
        flow.save_pretrained(tmp_path / str(k))
        assert fields_of(tarflow.open_run(tmp_path / str(k))) == ()


def test_a_picture_that_cannot_be_shown_is_said_at_once(tmp_path: Path) -> None:
    config = tarflow.TarFlowConfig(8, channels=1, patch_size=4, width=64, layers=(1,), condition="image:2:8:8:4")
    tarflow.TarFlow(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="conditioned on images of 2 channels, which the page cannot show"):
        Studio(tarflow.open_run(tmp_path))

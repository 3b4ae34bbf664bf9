"""What the page computes is what the library computes: samples, traces, walks, edits, scores, a look inside."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

import tarflow
from play_cases import answers_of
from tarflow.evaluation.likelihood import held_out
from tarflow.evaluation.likelihood.held_out import held_out_scores, run_scoring
from tarflow.evaluation.likelihood.scores import class_scores
from tarflow.measure import to_8bit
from tarflow.play import inside
from tarflow.play.scoring import BINS, Scorer
from tarflow.play.studio import Studio
from tarflow.play.wishes import Drawing

WISH = Drawing(images=10, seed=3, label=None, guidance=1.0, rule="stable", temperature=1.0, denoised=True)


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return answers_of(tmp_path_factory.mktemp("play") / "run").studio


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    """Without classes, of uniform noise."""
    return answers_of(tmp_path_factory.mktemp("play") / "plain", classes=False, noise="uniform").studio


def shown(run: tarflow.Run, x: torch.Tensor) -> torch.Tensor:
    return to_8bit(run.pixels(x), run.levels)


def test_a_drawing_is_what_sample_draws(studio: Studio) -> None:
    run = studio.run
    told = list(studio.draw(WISH))
    images = torch.cat([each.images for each in told if each.images is not None])
    guidance = tarflow.Guidance(1.0, rule="stable")
    expected = tarflow.sample(run.flow, 10, torch.arange(10), guidance, 3, denoise=0.1, solver="sequential")
    assert (images.int() - shown(run, expected).int()).abs().max() <= 16  # a level, where rounding decides
    assert told[0].labels == tuple(range(10)) and told[-1].done == told[-1].total == 10
    done = [each.done for each in told]
    assert done == sorted(done) and sum(each.images is not None for each in told) == 5, "images come as they finish"


def test_one_class_no_class_and_no_guidance(studio: Studio) -> None:
    run = studio.run
    for label in (4, -1):
        wish = Drawing(2, 0, label, 0.0, "paper", 1.0, False)
        images = torch.cat([each.images for each in studio.draw(wish) if each.images is not None])
        expected = tarflow.sample(run.flow, 2, torch.tensor([label, label]), solver="sequential")
        assert (images.int() - shown(run, expected).int()).abs().max() <= 16


def test_what_a_sweep_found_best_is_the_default() -> None:
    """The shipped digits have such a setting."""
    run = tarflow.open_run("digits")
    studio = Studio(run)
    assert studio.usual == run.setting and studio.usual.guidance.scale > 0
    usual = studio.usual.guidance
    wish = Drawing(1, 0, 3, usual.scale, usual.rule, usual.temperature, studio.usual.denoise is not None)
    assert studio.setting(wish) == studio.usual


def test_a_drawing_that_is_left_frees_the_studio(studio: Studio) -> None:
    drawing = studio.draw(Drawing(64, 0, None, 0.0, "paper", 1.0, True))
    next(drawing)
    assert studio.turn.locked()
    drawing.close()  # type: ignore[attr-defined]
    assert not studio.turn.locked()


def test_a_trace_ends_in_the_image_of_the_drawing(studio: Studio) -> None:
    images = torch.cat([each.images for each in studio.draw(WISH) if each.images is not None])
    (stages,) = studio.follow(WISH, 7)
    assert len(stages) == len(studio.flow.blocks) + 2
    assert (stages[-1].int() - images[7].int()).abs().max() <= 16
    assert not torch.equal(stages[0], stages[1])


def test_a_walk_goes_from_one_end_to_the_other(studio: Studio, plain: Studio) -> None:
    for each, labels in ((studio, (2, 5)), (plain, (None, None))):
        ends = [each.sampled(seed, label) for seed, label in enumerate(labels)]
        (images,) = each.walk(ends, labels, 5)
        assert images.shape == (5, 1, 8, 8)
        for end, image, label in zip(ends, (images[0], images[-1]), labels, strict=True):
            y = None if label is None else torch.tensor([label])
            clean = end[None] if each.sigma is None else tarflow.denoise(each.flow, end[None], each.sigma, y)
            assert (shown(each.run, clean)[0].int() - image.int()).abs().max() <= 16


def test_what_is_kept_of_a_picture_stays(plain: Studio) -> None:
    pixels = plain.run.images().held_out.images[0]
    lower = plain.region([2, 3])  # of four patches of 4x4
    assert plain.cells == (2, 2) and torch.equal(lower, torch.arange(8).view(8, 1).expand(8, 8) >= 4)
    *on_the_way, last = plain.redraw(plain.seen(pixels), lower, 5, 0, None, 1)
    own, found = last.own, last.images
    assert own is not None and found is not None and last.drawn is not None and last.share == 1
    assert torch.equal(own[0], to_8bit(pixels, plain.run.levels))
    assert found.shape == (5, 1, 8, 8) and last.drawn.samples.shape[0] == 5 and not last.drawn.exact
    assert bool((found[:, :, :4] == own[:, :, :4]).all())
    assert len({image.numpy().tobytes() for image in found}) == 5
    shares = [each.share for each in on_the_way]
    assert shares == sorted(shares) and 0 < shares[0] < 1 and all(each.drawn is None for each in on_the_way)


def test_drawing_anew_can_be_left(plain: Studio) -> None:
    pixels = plain.run.images().held_out.images[0]
    began = time.monotonic()
    drawing = plain.redraw(plain.seen(pixels), plain.region([0]), 2, 0, None, 100)
    next(drawing)
    drawing.close()  # type: ignore[attr-defined]
    assert time.monotonic() - began < 50 and not plain.turn.locked()


def test_scores_are_those_of_the_command(studio: Studio) -> None:
    pixels = studio.run.images().held_out.images[:3]
    shares = list(Scorer(studio).score(pixels, None))
    found = shares[-1][1]
    assert found is not None and [share for share, _ in shares] == sorted(share for share, _ in shares)
    scoring = run_scoring(studio.run)
    expected = class_scores(studio.flow, pixels, scoring=scoring, all_classes=True, maps=True)
    known = held_out_scores(studio.run, scoring)
    assert found.policy == "marginal" and found.figure == "noisy_bits_per_dim" and not found.problem
    for k, score in enumerate(found.scores):
        assert score.log_likelihood == pytest.approx(float(expected.mean[k]))
        assert score.percentile == pytest.approx(
            100 * float((known.log_prob < expected.mean[k]).double().mean()), abs=0.3
        )
        assert score.heat is not None and score.heat.shape == (3, 8, 8)
        posterior = expected.conditions.log_posterior(expected.log_prob[:, k]).exp().mean(dim=0)
        assert score.classes[0][0] == str(int(posterior.argmax())) and len(score.classes) == 5
        assert score.classes[0][1] == pytest.approx(float(posterior.max()))
    assert found.histogram is not None and sum(found.histogram.counts) == found.histogram.images == len(known.log_prob)
    assert len(found.histogram.edges) == BINS + 1


@pytest.mark.parametrize("name", ["digits", "fashion-mnist"])
def test_a_model_that_comes_along_knows_how_usual_a_picture_is_at_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its data, which are not at hand everywhere, and without scoring them."""
    monkeypatch.setenv("TARFLOW_CACHE", str(tmp_path))
    monkeypatch.setattr(held_out, "open_held_out", None)
    studio = Studio(tarflow.open_run(name))
    pixels = torch.zeros(1, 1, *studio.run.config.model.image_shape, dtype=torch.uint8)
    for label in (None, -1, 3):
        *_, (_, found) = Scorer(studio).score(pixels, label)
        assert found is not None and found.histogram is not None and not found.problem
        assert 0 <= found.scores[0].percentile <= 100 and found.histogram.images in (359, 2000)


def test_a_run_whose_data_are_gone_scores_without_percentiles_and_names_no_place(tmp_path: Path) -> None:
    lost = answers_of(tmp_path / "run", classes=False, noise="uniform", source="/nowhere/images").studio
    pixels = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    *_, (_, found) = Scorer(lost).score(pixels, None)
    assert found is not None and found.histogram is None and found.scores[0].percentile != found.scores[0].percentile
    assert found.problem and "nowhere" not in found.problem and not found.scores[0].classes


def test_a_look_inside_adds_up_to_the_density(plain: Studio) -> None:
    (found,) = inside.look(plain)
    assert [block.number for block in found.blocks] == list(range(len(plain.flow.blocks)))
    x = tarflow.sample(plain.flow, inside.IMAGES, solver="sequential")
    _, ladj = plain.flow.encode(x)
    bits = float(ladj.detach().double().mean()) / 64 / 0.6931471805599453
    assert sum(block.bits for block in found.blocks) == pytest.approx(bits, abs=1e-3)
    assert all(block.solver == "one patch a step" and "not measured" in block.why for block in found.blocks)
    assert found.facts["Images"] == "grey, 8×8 pixels of 17 levels"


def test_a_run_of_other_channels_is_refused(tmp_path: Path) -> None:
    config = tarflow.TarFlowConfig(8, channels=2, patch_size=4, width=64, layers=(1,))
    tarflow.TarFlow(config).save_pretrained(tmp_path / "two")
    with pytest.raises(ValueError, match="two: expected images of 1 or 3 channels, got 2"):
        Studio(tarflow.open_run(tmp_path / "two"))


def test_a_model_without_a_training_can_be_drawn_from_and_not_scored(tmp_path: Path) -> None:
    config = tarflow.TarFlowConfig(8, channels=3, patch_size=4, width=64, layers=(1, 1))
    tarflow.TarFlow(config).save_pretrained(tmp_path / "bare")
    studio = Studio(tarflow.open_run(tmp_path / "bare"))
    assert (
        sum(len(d.images) for d in studio.draw(Drawing(3, 0, None, 0.0, "paper", 1.0, False)) if d.images is not None)
        == 3
    )
    pixels = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    assert studio.seen(pixels[0]).shape == (3, 8, 8)
    with pytest.raises(ValueError, match="no section `training`"):
        list(Scorer(studio).score(pixels, None))

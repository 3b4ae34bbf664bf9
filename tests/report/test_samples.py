"""Pictures of the report show what they say: copies are found, and rows are of their class and their noise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from subject_cases import SETTINGS, caption_of, seen_as, strips_of
from tarflow.checkpoint import open_run
from tarflow.evaluation.quality.ratios import novelty
from tarflow.measure import Measure, to_8bit
from tarflow.report import samples
from tarflow.report.build import resolutions, subjects_of
from tarflow.report.subject import Subject
from tarflow.sampling.denoise import denoise
from tarflow.sampling.guidance import Guidance
from tarflow.sampling.sample import sample
from tarflow.seeding import seeded_generator

# --- nearest training images ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["noisy", "exact"])
def test_copies_of_training_images_are_found_among_the_training_images(kind: str, runs: dict[str, Path]) -> None:
    subject = Subject(open_run(runs[kind]), SETTINGS)
    copies = subject.splits.train.images[torch.tensor([7, 300, 1100, 1616])]
    subject.samples = seen_as(subject, copies)  # type: ignore[misc]
    parts = samples.neighbours(subject)
    strips = strips_of(parts)
    assert torch.equal(strips["sample"].images, to_8bit(copies, 17))
    assert torch.equal(strips["nearest"].images, strips["sample"].images)
    assert "nearest of 1,617 training images" in caption_of(parts)
    assert "0.0 to 0.0 here; 0 would be a copy" in caption_of(parts)
    assert "the median distance is 0.00 times that of held-out images" in caption_of(parts)


def test_held_out_images_are_no_copies_of_training_images(noisy: Subject) -> None:
    images = noisy.held_out.images
    noisy.samples = seen_as(noisy, images)  # type: ignore[misc]
    strips, caption = strips_of(samples.neighbours(noisy)), caption_of(samples.neighbours(noisy))
    drawn, train = noisy.pixels(samples.spread(noisy.samples, 4)), noisy.splits.train.images
    distances = torch.cdist(drawn.flatten(1).double(), train.flatten(1).double())
    assert torch.equal(strips["nearest"].images, to_8bit(train[distances.argmin(dim=1)], 17))
    least, most = distances.amin(dim=1).min(), distances.amin(dim=1).max()
    assert least > 0 and f"{least:.1f} to {most:.1f} here" in caption
    # The samples are what they are compared with.
    assert "Over all 40 samples the median distance is 1.00 times that of held-out images" in caption


def test_novelty_is_that_of_all_samples_and_not_of_those_that_are_shown(noisy: Subject) -> None:
    train, held_out = noisy.splits.train.images, noisy.held_out.images
    noisy.samples = seen_as(noisy, torch.cat([train[:4], held_out[:5], held_out[:5], train[4:8]]))  # type: ignore[misc]
    ratio = novelty(noisy.pixels(noisy.samples), train, held_out)
    assert ratio > 0.5 and f"the median distance is {ratio:.2f} times" in caption_of(samples.neighbours(noisy))


# --- samples --------------------------------------------------------------------------------------------------------


def test_a_row_of_samples_is_of_the_class_beside_it(noisy: Subject) -> None:
    strips = strips_of(samples.samples(noisy))
    assert list(strips) == [str(k) for k in range(10)]
    for k in (0, 3, 9):
        labels = torch.arange(10).repeat_interleave(4)
        x = sample(noisy.run.flow, 40, labels, seed=5, denoise=0.1, solver="sequential")[4 * k : 4 * k + 4]
        shown = to_8bit(Measure(17, "gaussian", 1.0).pixels(x), 17)
        # The solver is measured, and may differ in the last bit from what is drawn here.
        assert (strips[str(k)].images.int() - shown.int()).abs().max() <= 16
        assert (strips[str(k)].images == shown).double().mean() > 0.99


def test_where_every_image_is_clipped_the_caption_says_100_percent(exact: Subject) -> None:
    exact.samples = torch.full((4, 1, 8, 8), 1.5)  # type: ignore[misc]
    assert "100 % of their numbers, in 100 % of the images, are no pixels" in caption_of(samples.samples(exact))


def test_rows_of_guidance_start_from_the_same_noise(noisy: Subject) -> None:
    strips = strips_of(samples.guidance(noisy))
    assert list(strips) == ["w = 0", "w = 0.5", "w = 1", "w = 2", "w = 3"]
    y = torch.arange(4)
    for scale in (0.0, 2.0):
        guide = Guidance(scale) if scale else None
        x = sample(noisy.run.flow, 4, y, guide, 5, denoise=0.1, solver="sequential")
        same = strips[f"w = {scale:g}"].images == to_8bit(Measure(17, "gaussian", 1.0).pixels(x), 17)
        assert same.double().mean() > 0.97


def test_noisy_and_denoised_rows_are_the_held_out_images_with_their_noise(noisy: Subject) -> None:
    parts = samples.denoising(noisy)
    strips, images = strips_of(parts), noisy.held_out.images[:4]
    x = Measure(17, "gaussian", 0.1).noisy(images, seeded_generator(5, "report"))
    assert noisy.held_out.labels is not None
    cleaned = denoise(noisy.run.flow, x, 0.1, noisy.held_out.labels[:4])
    for label, shown in (("held out", Measure(17, "gaussian", 1.0).clean(images)), ("noisy", x), ("denoised", cleaned)):
        assert torch.equal(strips[label].images, samples.SHOWN.pixels(shown)), label
    drawn = strips_of(parts, 1)
    assert torch.equal(drawn["as drawn"].images, samples.SHOWN.pixels(samples.spread(noisy.raw_samples, 4)))
    assert torch.equal(drawn["denoised"].images, samples.SHOWN.pixels(samples.spread(noisy.samples, 4)))


def test_resolutions_go_from_the_smallest_images_to_the_largest(noisy: Subject, exact: Subject) -> None:
    first, second = subjects_of([noisy.run, exact.run], SETTINGS)
    for subject, side in ((first, 16), (second, 8)):
        subject.samples = torch.zeros(4, 1, 8, 8)  # type: ignore[misc]
        object.__setattr__(subject.run.config.model, "image_size", side)
    strips = strips_of(resolutions([first, second]))
    assert [", ".join(name.split(", ")[:2]) for name in strips] == ["exact, 8×8", "noisy, 16×16"]
    assert "the smallest images first" in caption_of(resolutions([first, second]))

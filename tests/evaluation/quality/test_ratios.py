"""What samples are worth, on samples that were made to be good, copied, collapsed and mislabelled."""

import itertools
import json

import pytest
import torch
from sklearn.datasets import load_digits

from tarflow.data.sets import ImageSet, Splits
from tarflow.evaluation.quality import ratios as module
from tarflow.evaluation.quality.extractors import small_network
from tarflow.evaluation.quality.ratios import (
    class_agreement,
    diversity,
    mean_distance,
    nearest_distances,
    novelty,
    sample_quality,
)


@pytest.fixture(scope="module")
def digits():
    """Three parts of the real digits: to train on, to hold out, and to stand for perfect samples."""
    data = load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    images = torch.from_numpy(data.images.astype("uint8")).unsqueeze(1)[order]
    labels = torch.from_numpy(data.target).long()[order]
    train, held_out = (
        ImageSet(images[part], labels[part], range(len(images[part])), 17, tuple("0123456789"))
        for part in (slice(900), slice(900, 1300))
    )
    return Splits(train, held_out, False, ()), images[1300:], labels[1300:]


@pytest.fixture(scope="module")
def network(digits):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_network, "STEPS", 200)  # of 600: as good as these tests need it
        return small_network.trained_network(digits[0].train)


@pytest.fixture(scope="module")
def judge(digits, network):
    return lambda samples, intended: sample_quality(samples, intended, digits[0], network=network)


def test_real_images_are_perfect_samples(digits, judge):
    _, images, labels = digits
    quality = judge(images, labels)
    assert quality.agreement > 0.96
    assert quality.classifier_accuracy > 0.96
    assert quality.diversity == pytest.approx(1, abs=0.05)
    assert 0.8 < quality.diversity_worst <= quality.diversity
    assert quality.novelty == pytest.approx(1, abs=0.05)
    assert quality.agreement_standard_error == pytest.approx((quality.agreement * (1 - quality.agreement) / 497) ** 0.5)
    assert json.loads(json.dumps(quality.to_dict()))["samples"] == 497


def test_copies_of_training_images_are_not_new(digits, judge):
    train = digits[0].train
    quality = judge(train.images[:300], train.labels[:300])
    assert quality.novelty == 0
    assert quality.diversity == pytest.approx(1, abs=0.06)


def test_held_out_images_are_as_new_as_held_out_images(digits, judge):
    held_out = digits[0].held_out
    quality = judge(held_out.images, held_out.labels)
    assert quality.novelty == 1 and quality.agreement == quality.classifier_accuracy < 1
    assert quality.classifier == "a small convolutional network, trained on 900 images"


def test_one_image_a_class_is_a_collapse(digits, judge):
    _, images, labels = digits
    first = torch.stack([images[labels == k][0] for k in range(10)])
    samples, intended = first.repeat(5, 1, 1, 1), torch.arange(10).repeat(5)
    quality = judge(samples, intended)
    assert quality.diversity == quality.diversity_worst == 0


def test_a_single_collapsed_class_shows_as_the_worst(digits, judge):
    _, images, labels = digits
    samples = torch.where((labels == 7).view(-1, 1, 1, 1), images[labels == 7][:1], images)
    quality = judge(samples, labels)
    assert quality.diversity_worst == 0
    assert quality.diversity_worst_class == 7
    assert quality.diversity > 0.8


def test_samples_of_the_wrong_class_do_not_agree(digits, judge):
    _, images, labels = digits
    assert judge(images, (labels + 1) % 10).agreement < 0.03


def test_agreement_is_the_share_of_what_was_meant(digits):
    class Bright(torch.nn.Module):
        def predict(self, pixels, levels):
            return (pixels.flatten(1).float().mean(dim=1) >= levels / 2).long()

    pixels = torch.tensor([0, 16, 16, 3], dtype=torch.uint8).view(4, 1, 1, 1)
    assert class_agreement(Bright(), pixels, torch.tensor([0, 1, 1, 0]), 17) == 1
    assert class_agreement(Bright(), pixels, torch.tensor([0, 1, 0, 1]), 17) == 0.5
    with pytest.raises(ValueError, match=r"expected 4 integer labels, got \(3,\)"):
        class_agreement(Bright(), pixels, torch.tensor([0, 1, 1]), 17)


def test_the_classifier_is_trained_on_the_training_images(digits, judge, network, monkeypatch):
    splits, images, labels = digits
    calls = []
    monkeypatch.setattr(module, "trained_network", lambda *given: calls.append(given) or network)
    assert sample_quality(images, labels, splits) == judge(images, labels)
    assert calls == [(splits.train, None)]


def test_what_is_not_to_be_had_is_left_out_with_a_note(digits, judge):
    splits, images, _ = digits
    unlabelled = sample_quality(images, None, splits)
    assert unlabelled.agreement is unlabelled.diversity is None and unlabelled.novelty == pytest.approx(1, abs=0.05)
    assert unlabelled.notes == ("agreement and diversity: there are no classes",)
    single = judge(images[:1], torch.zeros(1, dtype=torch.int64))
    assert single.notes == ("agreement and diversity: class 0: expected at least two samples, got 1",)
    copied = Splits(splits.train, splits.train, False, ())
    assert sample_quality(images, None, copied).notes[1].startswith("novelty: held_out_images: at least half of them")


def test_mean_distance_by_hand():
    images = torch.tensor([[0, 0], [3, 4], [6, 8]], dtype=torch.uint8).view(3, 1, 1, 2)
    assert mean_distance(images) == pytest.approx(20 / 3)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, 3, 4, 4), generator=generator).to(torch.uint8)
    pairs = [(a.float() - b.float()).norm() for a, b in itertools.combinations(images, 2)]
    assert mean_distance(images) == pytest.approx(float(torch.stack(pairs).mean()), rel=1e-5)
    assert mean_distance(images, max_images=30) == pytest.approx(mean_distance(images), rel=0.05)


def test_nearest_distances_by_hand_in_any_chunks(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    queries, references = (torch.randint(0, 256, (n, 3, 8, 8), generator=generator).to(torch.uint8) for n in (20, 90))
    queries[3], queries[4] = references[50], references[89]
    by_hand = torch.stack([(q.float() - references.float()).flatten(1).norm(dim=1).min() for q in queries])
    assert by_hand[3] == by_hand[4] == 0
    for chunk in (1 << 26, 4 * 192 * 7):
        monkeypatch.setattr(module, "CHUNK_BYTES", chunk)
        torch.testing.assert_close(nearest_distances(queries, references), by_hand)


def test_what_leaves_nothing_to_compare_with_is_named(digits):
    splits, images, labels = digits
    real = splits.train.images
    train = {"images": real, "labels": splits.train.labels}
    with pytest.raises(ValueError, match="class 3: expected at least two samples, got 1"):
        diversity(images[labels == 3][:1], torch.tensor([3]), **train)
    with pytest.raises(ValueError, match="class 11: expected at least two real images, got 0"):
        diversity(images[:2], torch.tensor([11, 11]), **train)
    same = real[:1].expand(5, -1, -1, -1)
    with pytest.raises(ValueError, match="class 0: all real images are the same"):
        diversity(images[:2], torch.tensor([0, 0]), same, torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least half of them are training images"):
        novelty(images, real, real[:50])
    with pytest.raises(ValueError, match="expected images of one shape"):
        novelty(images, real, real[:, :, :4])


def test_novelty_is_a_ratio_of_medians_by_hand():
    """A few samples far from everything say nothing of the others: copies stay copies, and new ones new."""

    def images(*values):
        return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1)

    train, held_out = images(0, 100, 200), images(2, 104, 206, 0)  # 2, 4, 6 and 0 away
    assert novelty(images(10, 101, 250), train, held_out) == pytest.approx(10 / 2)  # 10, 1 and 50: the median is 10
    assert novelty(images(0, 100, 255), train, held_out) == 0
    assert novelty(images(3, 103, 250), train, images(6, 106, 200, 255)) == pytest.approx(3 / 6)

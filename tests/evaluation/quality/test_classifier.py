"""The classifier that judges samples: as good as promised, chosen without the held-out images, the same every time."""

import pytest
import torch
from sklearn.datasets import load_digits

from tarflow.evaluation.quality.classifier import class_agreement, fit_classifier


def digits():
    data = load_digits()
    images = torch.from_numpy(data.images.astype("uint8")).unsqueeze(1)
    return images, torch.from_numpy(data.target).long()


IMAGES, LABELS = digits()


def test_on_digits_it_is_right_on_97_percent_and_knows_it():
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    images, labels = IMAGES[order], LABELS[order]
    classifier = fit_classifier(images[400:], labels[400:], images[:400], labels[:400])
    assert classifier.accuracy > 0.97
    assert classifier.accuracy == pytest.approx(class_agreement(classifier, images[:400], labels[:400]))
    assert (classifier.images, classifier.held_out) == (1397, 400)


def test_held_out_images_have_no_say_in_what_is_trained():
    wrong = (LABELS + 1) % 10
    a = fit_classifier(IMAGES[:300], LABELS[:300], IMAGES[1200:1500], LABELS[1200:1500])
    b = fit_classifier(IMAGES[:300], LABELS[:300], IMAGES[1200:1500], wrong[1200:1500])
    assert a.name == b.name
    assert torch.equal(a.predict(IMAGES[1200:1500]), b.predict(IMAGES[1200:1500]))
    assert b.accuracy < 0.1


def test_agreement_is_the_share_of_what_was_meant():
    classifier = fit_classifier(IMAGES[:600], LABELS[:600], IMAGES[1200:1300], LABELS[1200:1300], max_images=400)
    assert classifier.images == 400
    predicted = classifier.predict(IMAGES[1200:1300])
    assert class_agreement(classifier, IMAGES[1200:1300], predicted) == 1
    half = torch.where(torch.arange(100) < 50, predicted, (predicted + 1) % 10)
    assert class_agreement(classifier, IMAGES[1200:1300], half) == 0.5


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="images: expected 300 integer labels"):
        fit_classifier(IMAGES[:300], LABELS[:299], IMAGES, LABELS)
    with pytest.raises(ValueError, match="held_out_images: expected at least one"):
        fit_classifier(IMAGES[:300], LABELS[:300], IMAGES[:0], LABELS[:0])
    with pytest.raises(ValueError, match="at least two classes, got 300 of classes"):
        fit_classifier(IMAGES[:300], torch.zeros(300, dtype=torch.int64), IMAGES, LABELS)


@pytest.mark.parametrize("limit", [200, 79, 60, 12])
def test_the_winner_is_trained_on_all_of_the_images_that_it_may_see(limit):
    held_out = IMAGES[1200:1500], LABELS[1200:1500]
    found = fit_classifier(IMAGES[:200], LABELS[:200], *held_out, max_images=limit)
    assert found.images == limit == found.estimator[0].n_samples_
    assert found.accuracy == class_agreement(found, *held_out)

"""A small classifier trained on real images, which judges whether samples show the class that they were meant to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tarflow.data.batches import seeded_permutation

COMPONENTS = 64  # principal components that the classifiers see: all of an 8x8 digit, and enough of larger images
MAX_IMAGES = 5_000  # trained on; the time of a support vector machine grows with their square


@dataclass(frozen=True)
class Classifier:
    """A trained classifier, and how far it can be trusted.

    Attributes:
        name: what it is.
        accuracy: share of held-out real images that it gets right. They had no part in training or choosing it.
        images: how many it was trained on. held_out: how many `accuracy` is a share of.
        estimator: the scikit-learn estimator behind `predict`.
    """

    name: str
    accuracy: float
    images: int
    held_out: int
    estimator: Any

    def predict(self, pixels: Tensor) -> Tensor:
        """The class of each image (N, C, H, W) uint8, of as many levels as those of the training: (N,) int64."""
        return torch.as_tensor(self.estimator.predict(_features(pixels)), device="cpu", dtype=torch.int64)


def fit_classifier(
    images: Tensor,
    labels: Tensor,
    held_out_images: Tensor,
    held_out_labels: Tensor,
    *,
    max_images: int = MAX_IMAGES,
    seed: int = 0,
) -> Classifier:
    """Train a support vector machine on real images, the better of two, and measure it on held-out ones.

    Both have a Gaussian kernel on principal components, as they are or whitened. Which is better, a fifth of the
    training images decides, and the winner is trained again on all of them: were it chosen by the held-out images, its
    accuracy on them would flatter it. On digits it is about 0.99, on CIFAR-10 about 0.45: the accuracy belongs beside
    every agreement.

    Args:
        images: (N, C, H, W) uint8; of more than `max_images` a seeded choice is trained on. labels: (N,) integers.
        held_out_images, held_out_labels: as many as you like, of the same kind.

    Raises:
        ValueError: images and labels that do not fit each other, too few of them, or a single class.
    """
    _check("images", images, labels)
    _check("held_out_images", held_out_images, held_out_labels)
    chosen = seeded_permutation(len(images), "classifier", seed)[:max_images]
    features, targets = _features(images[chosen.to(images.device)]), labels.cpu()[chosen].numpy()
    classes = sorted(set(targets.tolist()))
    if len(chosen) < 10 or len(classes) < 2:
        raise ValueError(
            f"images: expected at least 10 of at least two classes, got {len(chosen)} of classes {classes}"
        )
    fifth = len(chosen) // 5
    best, winner = -1.0, 0
    for number, estimator in enumerate(_candidates(len(chosen) - fifth, features.shape[1]).values()):
        if len(set(targets[fifth:].tolist())) < 2:
            break  # so few images that the rest has one class: nothing to choose by
        score = float(estimator.fit(features[fifth:], targets[fifth:]).score(features[:fifth], targets[:fifth]))
        if score > best:
            best, winner = score, number
    # By its place: of few images the whole has more components than four fifths, and its candidates another name.
    name, estimator = list(_candidates(len(chosen), features.shape[1]).items())[winner]
    estimator.fit(features, targets)
    accuracy = float(estimator.score(_features(held_out_images), held_out_labels.cpu().numpy()))
    return Classifier(name, accuracy, len(chosen), len(held_out_images), estimator)


def class_agreement(classifier: Classifier, pixels: Tensor, intended: Tensor) -> float:
    """Share of samples (N, C, H, W) uint8 that the classifier gives the class they were meant to show, (N,)."""
    _check("pixels", pixels, intended)
    return float((classifier.predict(pixels) == intended.cpu()).double().mean())


def _candidates(count: int, dims: int) -> dict[str, Any]:
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import SVC

    components = min(COMPONENTS, count, dims)
    kind = f"support vector machine on {components}"
    return {
        f"{kind} principal components": make_pipeline(PCA(components, random_state=0), SVC(C=10)),
        f"{kind} whitened components": make_pipeline(PCA(components, whiten=True, random_state=0), SVC(C=3)),
    }


def _features(pixels: Tensor) -> Any:
    """Levels (N, D) as float32. No scale is needed: the kernel's width follows the variance."""
    return pixels.flatten(1).cpu().float().numpy()


def _check(name: str, images: Tensor, labels: Tensor) -> None:
    if images.ndim != 4 or images.dtype != torch.uint8 or len(images) == 0:
        raise ValueError(f"{name}: expected at least one, (N, C, H, W) uint8, got {tuple(images.shape)} {images.dtype}")
    if labels.shape != images.shape[:1] or labels.is_floating_point():
        raise ValueError(f"{name}: expected {len(images)} integer labels, got {tuple(labels.shape)} {labels.dtype}")

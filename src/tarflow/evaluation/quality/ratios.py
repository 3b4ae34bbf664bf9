"""Are samples of the right class, as varied as real images, and new? Three ratios with what is needed to judge them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tarflow.data.sets import Splits
from tarflow.evaluation.quality.extractors.small_network import SmallNetwork, trained_network
from tarflow.evaluation.shares import standard_error
from tarflow.seeding import seeded_permutation

MAX_A_CLASS = 1_000  # images of a class whose distances to each other are averaged: half a million pairs
MAX_HELD_OUT = 1_000  # held-out images whose nearest training image is looked for; a median needs no more
CHUNK_BYTES = 1 << 26  # float32 training images that are compared at once


@dataclass(frozen=True)
class SampleQuality:
    """What samples are worth beside real images; None where `notes` says why. Distances are Euclidean, between levels.

    Attributes:
        samples: how many were judged.
        agreement: share of samples that the classifier gives the class they were meant to show.
        agreement_standard_error: √(a(1-a)/n); NaN where all agree, or none.
        classifier: what it is. classifier_accuracy: its share of right answers on held-out real images, which had no
            part in its training.
        diversity: mean distance between samples of a class over that of real images, both averaged over the classes
            that were sampled. 0 where each class has collapsed to one image, about 1 where they vary as real images do.
        diversity_worst: the smallest of that ratio over the classes. diversity_worst_class: which class has it.
        novelty: median distance of samples to their nearest training image over that of held-out images. 0 where more
            than half are copies, about 1 for images as new as held-out ones, more for images unlike any real one.
        notes: a sentence for each figure that there is not.
    """

    samples: int
    agreement: float | None = None
    agreement_standard_error: float | None = None
    classifier: str | None = None
    classifier_accuracy: float | None = None
    diversity: float | None = None
    diversity_worst: float | None = None
    diversity_worst_class: int | None = None
    novelty: float | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """A dictionary that JSON can hold. A number that is not finite is null."""
        values = dataclasses.asdict(self) | {"notes": list(self.notes)}
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def sample_quality(
    samples: Tensor,
    intended: Tensor | None,
    splits: Splits,
    *,
    network: SmallNetwork | None = None,
    cache: Path | None = None,
) -> SampleQuality:
    """Judge samples by a classifier, by their distances to each other and by those to the training images.

    Args:
        samples: (N, C, H, W) uint8, quantised to the levels of the data: a sample is compared as what is written to a
            file. intended: (N,) integers, the class of each, at least two of each that occurs; None without classes.
        splits: the real images, of which those held out have no part in training the classifier.
        network: the classifier, trained on the same images; None trains it, or takes it from `cache`.
    """
    found: dict[str, Any] = {}
    notes = []
    try:
        found |= _of_classes(samples, intended, splits, network, cache)
    except ValueError as error:
        notes.append(f"agreement and diversity: {error}")
    try:
        found["novelty"] = novelty(samples, splits.train.images, splits.held_out.images)
    except ValueError as error:
        notes.append(f"novelty: {error}")
    return SampleQuality(len(samples), **found, notes=tuple(notes))


def _of_classes(
    samples: Tensor, intended: Tensor | None, splits: Splits, network: SmallNetwork | None, cache: Path | None
) -> dict[str, Any]:
    train, held_out = splits.train, splits.held_out
    if intended is None or train.labels is None or held_out.labels is None:
        raise ValueError("there are no classes")
    by_class = diversity(samples, intended, train.images, train.labels)
    network = network or trained_network(train, cache)
    agreement = class_agreement(network, samples, intended, train.levels)
    worst = min(by_class, key=lambda k: by_class[k][0] / by_class[k][1])
    ours, real = (sum(pair[i] for pair in by_class.values()) for i in (0, 1))
    return {
        "agreement": agreement,
        "agreement_standard_error": standard_error(agreement * (1 - agreement) / len(samples)),
        "classifier": f"a small convolutional network, trained on {len(train)} images",
        "classifier_accuracy": class_agreement(network, held_out.images, held_out.labels, held_out.levels),
        "diversity": ours / real,
        "diversity_worst": by_class[worst][0] / by_class[worst][1],
        "diversity_worst_class": worst,
    }


def class_agreement(network: SmallNetwork, pixels: Tensor, intended: Tensor, levels: int) -> float:
    """Share of images (N, C, H, W) uint8 that the network gives the class they are meant to show, (N,)."""
    if len(pixels) == 0 or intended.shape != pixels.shape[:1] or intended.is_floating_point():
        raise ValueError(
            f"expected {len(pixels) or 'some'} integer labels, got {tuple(intended.shape)} {intended.dtype}"
        )
    return float((network.predict(pixels, levels) == intended.cpu()).double().mean())


def diversity(samples: Tensor, intended: Tensor, images: Tensor, labels: Tensor) -> dict[int, tuple[float, float]]:
    """For each class among `intended`: the mean distance between its samples, and that between real images of it.

    Raises ValueError where a class has fewer than two of either, or real images that are all the same.
    """
    result = {}
    for k in sorted(set(intended.tolist())):
        pair = (samples[intended == k], images[labels == k])
        for name, members in zip(("samples", "real images"), pair, strict=True):
            if len(members) < 2:
                raise ValueError(f"class {k}: expected at least two {name}, got {len(members)}")
        ours, real = (mean_distance(members) for members in pair)
        if real == 0:
            raise ValueError(f"class {k}: all real images are the same, and no diversity is relative to them")
        result[k] = (ours, real)
    return result


def mean_distance(images: Tensor, *, max_images: int = MAX_A_CLASS, seed: int = 0) -> float:
    """Mean distance between two different images of (N, C, H, W); of more than `max_images`, of a seeded choice."""
    chosen = seeded_permutation(len(images), "diversity", seed)[:max_images].to(images.device)
    return float(torch.pdist(images[chosen].flatten(1).float()).double().mean())


def novelty(samples: Tensor, images: Tensor, held_out_images: Tensor, *, max_held_out: int = MAX_HELD_OUT) -> float:
    """Median distance of samples to their nearest training image, over that of held-out images (a seeded choice).

    Raises ValueError where at least half of the held-out images are training images too, for they prove nothing.
    """
    chosen = seeded_permutation(len(held_out_images), "novelty")[:max_held_out].to(held_out_images.device)
    real = float(nearest_distances(held_out_images[chosen], images).median())
    if real == 0:
        raise ValueError("held_out_images: at least half of them are training images too")
    return float(nearest_distances(samples, images).median()) / real


def nearest_distances(queries: Tensor, references: Tensor) -> Tensor:
    """Distance of each query (N, C, H, W) to its nearest reference (M, C, H, W): (N,), exact where it is 0."""
    return nearest(queries, references)[0]


def nearest(queries: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of each query (N, C, H, W) to its nearest reference (M, C, H, W), and which that is: (N,) each."""
    if queries.shape[1:] != references.shape[1:] or not len(references):
        raise ValueError(f"expected images of one shape, got {tuple(queries.shape)} and {tuple(references.shape)}")
    flat = queries.flatten(1).float()
    best = flat.new_full((len(flat),), math.inf)
    which = torch.zeros(len(flat), dtype=torch.int64, device=flat.device)
    step = max(1, CHUNK_BYTES // (4 * flat.shape[1]))
    for start in range(0, len(references), step):
        distances = torch.cdist(flat, references[start : start + step].flatten(1).float())  # by a matrix product
        found, place = distances.min(dim=1)
        which = torch.where(found < best, place + start, which)
        best = torch.minimum(found, best)
    # The matrix product cancels at small distances: it finds the neighbour, and the difference measures it.
    return (flat - references[which].flatten(1).float()).norm(dim=1), which

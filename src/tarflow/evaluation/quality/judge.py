"""How good are samples? Named figures on features, each with its N and with what real images score at the same N."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from torch import Tensor

from tarflow import storage
from tarflow.checkpoint import Run, weights_digest
from tarflow.config import from_dict
from tarflow.data.sets import Splits
from tarflow.evaluation.quality.distances import frechet_distance, kernel_distance, moments
from tarflow.evaluation.quality.extractors import needs_images, open_extractor
from tarflow.evaluation.quality.extractors.extractor import Extractor
from tarflow.evaluation.quality.manifolds import manifolds
from tarflow.evaluation.quality.reference import MAX_REFERENCE, Progress, Reference, open_reference
from tarflow.kept import kept_file, place_to_keep
from tarflow.model.saving import read_json
from tarflow.run_data import open_splits, stored_data
from tarflow.sampling.setting import Setting
from tarflow.seeding import seeded_permutation

Kind: TypeAlias = Literal["FD", "KD", "precision", "recall", "density", "coverage"]
KINDS: tuple[Kind, ...] = ("FD", "KD", "precision", "recall", "density", "coverage")
LOWER_IS_BETTER: tuple[Kind, ...] = ("FD", "KD")
LEAST_IMAGES = 12  # samples or real images: a neighbourhood takes five others, a kernel distance two halves
QUALITY_FILE = "quality.json"
LARGEST_FIGURE = 1e300  # what is larger in a file is damage, and an integer of 400 digits no float
MAX_NEIGHBOURHOODS = 5_000  # features on either side of precision, recall, density and coverage


@dataclass(frozen=True)
class Figure:
    """A figure, never without its N, and beside what held-out real images score.

    Attributes:
        value: of `samples` samples against the training images.
        samples: N.
        floor: the same of `floor_samples` held-out images: what a perfect sampler would score.
        floor_samples: N, or all held-out images where there are fewer.
        value_at_floor_samples: of the first `floor_samples` samples, which alone may be compared with the floor; it is
            `value` where there are enough held-out images.
        standard_error: of `value`, where the figure has one.
    """

    value: float
    samples: int
    floor: float
    floor_samples: int
    value_at_floor_samples: float
    standard_error: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """A dictionary that JSON can hold; without a standard error where there is none."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Figure:
        """What `to_dict` made. Raises ValueError or TypeError where a number is none."""
        figure = cls(**values)
        for name, value in vars(figure).items():
            if value is not None and not (type(value) in (int, float) and abs(value) < LARGEST_FIGURE):
                raise ValueError(f"{name}: expected a number, got {value!r}")
        return figure


@dataclass(frozen=True)
class Judge:
    """Compares any number of sets of samples with the same real images, on the same features."""

    extractor: Extractor
    reference: Reference
    _floors: dict[int, dict[Kind, tuple[float, float | None]]] = field(default_factory=dict, repr=False)

    def figures(self, pixels: Tensor, levels: int, progress: Progress | None = None) -> dict[str, Figure]:
        """Every figure of samples (N, C, H, W) uint8, at the levels of the data, by its name, such as "FD-EffNetLite0".

        Raises ValueError for fewer than `LEAST_IMAGES` samples, or held-out images.
        """
        return self.figures_of_features(self.extractor.features(pixels, levels, progress))

    def figures_of_features(self, features: Tensor) -> dict[str, Figure]:
        """The same of features (N, d) of the samples."""
        count, real = len(features), len(self.reference.held_out)
        for name, found in (("samples", count), ("held-out images", real)):
            if found < LEAST_IMAGES:
                raise ValueError(f"{name}: expected at least {LEAST_IMAGES} to measure quality, got {found}")
        at_floor = min(count, real)
        values = _values(features, self.reference)
        fewer = values if at_floor == count else _values(features[:at_floor], self.reference)
        floors = self._floor(at_floor)
        return {
            self.extractor.figure(kind): Figure(
                value=values[kind][0],
                samples=count,
                floor=floors[kind][0],
                floor_samples=at_floor,
                value_at_floor_samples=fewer[kind][0],
                standard_error=values[kind][1],
            )
            for kind in KINDS
        }

    def to_dict(self) -> dict[str, Any]:
        """What figures depend on besides the samples, as JSON can hold it."""
        extractor, reference = self.extractor, self.reference
        return {
            "extractor": {
                "name": extractor.name,
                "description": extractor.description,
                "digest": extractor.digest,
            },
            "reference": {
                "training_images": len(reference.features),
                "held_out_images": len(reference.held_out),
                "digest": reference.digest,
            },
        }

    def _floor(self, count: int) -> dict[Kind, tuple[float, float | None]]:
        """What `count` held-out images score, a choice that is always the same; computed once."""
        if count not in self._floors:
            chosen = seeded_permutation(len(self.reference.held_out), "floor")[:count]
            self._floors[count] = _values(self.reference.held_out[chosen], self.reference)
        return self._floors[count]


def _values(features: Tensor, reference: Reference) -> dict[Kind, tuple[float, float | None]]:
    """(value, standard error) of each kind of figure."""
    kernel = kernel_distance(features, reference.features)
    # Neighbourhoods shrink as their number grows: both sides have the same.
    count = min(len(features), len(reference.features), MAX_NEIGHBOURHOODS)
    chosen = seeded_permutation(len(reference.features), "neighbourhoods")[:count]
    found = manifolds(reference.features[chosen], features[:count])
    return {
        "FD": (frechet_distance(moments(features), reference.moments), None),
        "KD": (kernel.value, kernel.standard_error),
        "precision": (found.precision, None),
        "recall": (found.recall, None),
        "density": (found.density, None),
        "coverage": (found.coverage, None),
    }


def open_judge(
    run: Run,
    extractor: str = "efficientnet",
    *,
    weights: str | Path | None = None,
    source: str | None = None,
    limit: int = MAX_REFERENCE,
    cache: Path | None = None,
    loading: Progress | None = None,
    progress: Progress | None = None,
) -> tuple[Judge, Splits]:
    """The judge of a run's samples, and the run's images.

    Args:
        extractor, weights: see `open_extractor`.
        source: where the images of the run's training are now; None is where they were then.
        limit: training and held-out images that samples are compared with, at most.
        cache: where features of real images are kept; None is `$TARFLOW_CACHE`, or what the system has for caches.
        loading, progress: called with (images done, of how many), of reading them and of their features.

    Raises ValueError or OSError naming what is missing, as `open_extractor`, `open_splits` and `open_reference` do.
    """
    stored_data(run)  # what is missing is said before the images are read, which may take long
    if (channels := run.config.model.channels) not in (1, 3):
        raise ValueError(f"{run.path}: expected images of 1 or 3 channels, got {channels}")
    cache, device = cache or storage.cache_directory(), run.flow.device
    if not needs_images(extractor):
        found = open_extractor(extractor, device, weights=weights)
    splits = open_splits(run, source, progress=loading)
    for name, images in (("training", splits.train), ("held-out", splits.held_out)):  # before hours of sampling
        if len(images) < LEAST_IMAGES:
            raise ValueError(
                f"{run.path}: expected at least {LEAST_IMAGES} {name} images to compare with, got {len(images)}"
            )
    if needs_images(extractor):
        found = open_extractor(extractor, device, weights=weights, images=splits.train, cache=cache)
    return Judge(found, open_reference(splits, found, cache, limit=limit, progress=progress)), splits


def keep_quality(run: Run, measured: dict[str, Any]) -> None:
    """Keep what `tarflow quality` printed in RUN/quality.json, the newest of each extractor, where one may write."""
    weights = weights_digest(run.path)
    known = {name: entry for name, entry in kept_quality(run).items() if name != measured["extractor"]["name"]}
    entries = known | {measured["extractor"]["name"]: measured}
    with contextlib.suppress(OSError):
        storage.write_json(place_to_keep(run) / QUALITY_FILE, {"weights": weights, "measured": entries})


def kept_quality(run: Run) -> dict[str, dict[str, Any]]:
    """What was kept for the weights of this run, by extractor. Empty where nothing was.

    A file that is damaged, or written by another version, counts as nothing: measuring again replaces it.
    """
    file = kept_file(run, QUALITY_FILE)
    try:
        stored = read_json(file) if file.exists() else {}
        if stored.get("weights") != weights_digest(run.path):
            return {}
        for entry in stored["measured"].values():
            from_dict(Setting, entry["setting"])
            figures = [Figure.from_dict(values) for values in entry["figures"].values()]
            if not figures:
                return {}
        return dict(stored["measured"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}

"""What a report is about: one run, its data where they can be reached, and what several sections draw from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tarflow.checkpoint import CHECKPOINTS, Run, read_metrics, weights_digest
from tarflow.config import TrainingConfig
from tarflow.data.load import ImageSet, Splits
from tarflow.drawing import values_like
from tarflow.evaluation.likelihood.evaluate import Likelihood, summary
from tarflow.evaluation.likelihood.gaussian import GaussianYardstick, NoYardstick, fit_yardstick
from tarflow.evaluation.likelihood.scores import ClassScores, class_scores
from tarflow.evaluation.likelihood.scoring import Scoring
from tarflow.kept import open_setting
from tarflow.measure import to_8bit
from tarflow.model.condition import Value
from tarflow.pretrained import name_of
from tarflow.run_data import numbers_of, open_splits
from tarflow.sampling.denoise import denoise
from tarflow.sampling.sample import SamplingError, sample
from tarflow.sampling.setting import Setting, StoredSetting

CLASSES = 20  # shown at most, and gone through one by one where the label is not given
ROWS = 4  # of samples where there are no classes
DRAWS = 2  # of the noise for each image that is scored

Count = Callable[[int, int], None]
"""count(done, total)"""


@dataclass(frozen=True)
class Watch:
    """What is called with a line before each section, and with how far reading, scoring and sampling are, in images."""

    say: Callable[[str], None] = lambda text: None
    loading: Count | None = None
    scoring: Count | None = None
    sampling: Callable[[float, int], None] | None = None


@dataclass(frozen=True)
class Settings:
    """What a caller may choose.

    Attributes:
        images: in a row of a figure.
        limit: held-out images that are scored; of more, a seeded choice.
        seed: of samples and of the noise on images.
        data: where the images of the training are now; None is where they were.
    """

    images: int = 10
    limit: int = 1000
    seed: int = 0
    data: str | None = None

    def __post_init__(self) -> None:
        for name in ("images", "limit"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")


class Unavailable(Exception):
    """Why a section has nothing to show, in one sentence for its reader."""


class Subject:
    """One run under report. What is expensive is computed when it is first asked for, and once."""

    def __init__(self, run: Run, settings: Settings, prefix: str = "", watch: Watch | None = None) -> None:
        self.run, self.settings, self.watch = run, settings, watch or Watch()
        self.prefix = prefix  # of ids and file names, so that several runs fit on one page

    @property
    def name(self) -> str:
        """The directory's name; for a `step-N` that of its run too; of a model of the hub its id."""
        path = self.run.path.resolve()
        if (name := name_of(path)) is not None:
            return name
        return f"{path.parent.parent.name}/{path.name}" if path.parent.name == CHECKPOINTS else path.name

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of the run's metrics.jsonl; empty where there are none."""
        path = self.run.path.resolve()
        return read_metrics(path.parent.parent if path.parent.name == CHECKPOINTS else path)

    # --- data ------------------------------------------------------------------------------------------------------

    @property
    def training(self) -> TrainingConfig:
        """Raises Unavailable where the model does not say how it was trained."""
        if self.run.config.training is None:
            raise Unavailable("The config.json of this model has no section “training”: its noise is not known.")
        return self.run.config.training

    @cached_property
    def _opened(self) -> Splits | str:
        if self.run.config.data is None:
            return "The config.json of this model has no section “data”: it does not say what was learned."
        try:
            return open_splits(self.run, self.settings.data, progress=self.watch.loading)
        except (OSError, ValueError) as error:  # moved, deleted, or no longer what it was: the rest can still be shown
            return f"The data cannot be read here ({error})."

    @property
    def splits(self) -> Splits:
        """The images of the run. Raises Unavailable with the reason where they cannot be had."""
        if isinstance(self._opened, str):
            raise Unavailable(self._opened)
        return self._opened

    @cached_property
    def held_out(self) -> ImageSet:
        """The held-out images that are scored."""
        return self.splits.held_out.choice(self.settings.limit, self.settings.seed)

    # --- likelihood --------------------------------------------------------------------------------------------------

    @property
    def held_out_values(self) -> Value:
        """What the held-out images are given; None where the model is not conditioned, or nothing is known of them."""
        return self.held_out.values(self.run.config.model.conditioned_on)

    @cached_property
    def yardstick(self) -> GaussianYardstick | NoYardstick:
        splits, _ = self.splits, self.training  # Unavailable where nothing says what the noise is
        return fit_yardstick(splits.train.images, self.run.measure)

    @cached_property
    def class_scores(self) -> ClassScores:
        """Of the held-out images, in one pass: under their labels, under each class where there are few, by patch."""
        yardstick = self.yardstick
        return class_scores(
            self.run.flow,
            self.held_out.images,
            self.held_out_values,
            scoring=Scoring(self.run.measure, DRAWS, self.settings.seed),
            all_classes=0 < self.run.config.model.num_classes <= CLASSES,
            maps=True,
            yardstick=yardstick if isinstance(yardstick, GaussianYardstick) else None,
            progress=self.watch.scoring,
        )

    @cached_property
    def likelihoods(self) -> list[Likelihood]:
        """Under the default policy, and under "marginal" where that is not too much work."""
        found = self.class_scores
        policies = [found]
        if found.scoring.policy == "given" and (marginal := found.under("marginal", self.run.flow)) is not None:
            policies.append(marginal)
        return [summary(each, self.yardstick) for each in policies]

    @property
    def likelihood(self) -> Likelihood | None:
        """Under the default policy; None where nothing can be scored."""
        try:
            return self.likelihoods[0]
        except Unavailable:
            return None

    @cached_property
    def scores(self) -> Tensor:
        """log p of each held-out image under the default policy, mean over the draws, nats, (N,)."""
        return self.class_scores.mean

    # --- samples -----------------------------------------------------------------------------------------------------

    @cached_property
    def labels(self) -> Tensor | None:
        """Of the samples: `images` of each class that is shown, a class after the other. None without classes."""
        shown = min(self.run.config.model.num_classes, CLASSES)
        if not shown:
            return None
        return torch.arange(shown, device="cpu", dtype=torch.int64).repeat_interleave(self.settings.images)

    @cached_property
    def stored_setting(self) -> StoredSetting | None:
        """What `tarflow sweep` found best for these weights; None where nothing is stored, or is of others."""
        try:
            stored = open_setting(self.run)
        except ValueError as error:
            raise Unavailable(f"The default for samples cannot be read: {error}.") from None
        return stored if stored is not None and stored.weights == weights_digest(self.run.path) else None

    @property
    def setting(self) -> Setting:
        """How samples of the run are drawn where nobody says otherwise: the stored setting, else denoised alone."""
        return self.stored_setting.setting if self.stored_setting else Setting(denoise=self.run.sigma)

    @cached_property
    def samples(self) -> Tensor:
        """Drawn as `tarflow sample` does by default, (n, C, H, W)."""
        is_plain = self.setting == Setting(denoise=self.run.sigma)
        return self.plain_samples if is_plain else self._drawn(self.setting)

    @cached_property
    def raw_samples(self) -> Tensor:
        """As the model draws them, unguided and with their noise."""
        return self._drawn(Setting())

    @cached_property
    def given(self) -> Value:
        """What the samples are given: their labels, or the numbers of held-out images in turn."""
        return self.in_turn(ROWS * self.settings.images) if self.labels is None else self.labels

    def in_turn(self, count: int) -> Value:
        """What `count` samples are given: classes in turn, or the values of held-out images where there are numbers.

        None where there is no condition, or no such image.
        """
        try:
            return values_like(self.run, self.held_out if numbers_of(self.run) else None, count)
        except Unavailable:
            return None

    def _drawn(self, setting: Setting) -> Tensor:
        n = ROWS * self.settings.images if self.labels is None else len(self.labels)
        return self.draw(setting, n, self.given)

    def draw(self, setting: Setting, n: int, y: Value) -> Tensor:
        """`sample` with the seed of the report: the same noise under every setting. Raises Unavailable if it fails."""
        told = self.watch.sampling
        progress = None if told is None else lambda done, total: told(n * done / total, n)
        seed = self.settings.seed
        try:
            return sample(self.run.flow, n, y, setting.guidance, seed, denoise=setting.denoise, progress=progress)
        except SamplingError as error:
            raise Unavailable(f"No samples could be drawn: {error}.") from None

    @cached_property
    def plain_samples(self) -> Tensor:
        """Unguided, and denoised where the model was trained with Gaussian noise."""
        sigma = self.run.sigma
        if sigma is None:
            return self.raw_samples
        cleaned = denoise(self.run.flow, self.raw_samples, sigma, self.given)
        if not bool(torch.isfinite(cleaned).all()):
            raise Unavailable("Denoising leaves samples that are not finite.")
        return cleaned

    def pixels(self, x: Tensor) -> Tensor:
        """What the model sees (N, C, H, W) as uint8 of the data's levels."""
        return self.run.measure.pixels(x.cpu())

    def shown(self, x: Tensor) -> Tensor:
        """The same with 256 levels, to look at."""
        return to_8bit(self.pixels(x), self.run.levels)

"""A run as a program uses it: opened with all that is known of it, drawn from, scored with; and made of own data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tarflow import checkpoint, kept, recipes
from tarflow.config import TrainingConfig
from tarflow.data.load import load_dataset, load_pixels
from tarflow.data.numbers import ImageNumbers
from tarflow.data.options import LoadOptions
from tarflow.data.sets import Splits, given_values
from tarflow.devices import pick_device
from tarflow.drawing import Given, Sampler, class_count, class_number, labels_in_turn, numbers_given
from tarflow.evaluation.likelihood.evaluation import Evaluation, Split, choose_images, evaluate_images
from tarflow.evaluation.likelihood.held_out import run_scoring
from tarflow.evaluation.likelihood.scores import class_scores
from tarflow.evaluation.likelihood.scoring import Scoring
from tarflow.evaluation.likelihood.table import ScoredFiles, score_files
from tarflow.fields import integer
from tarflow.model.flow import TarFlow
from tarflow.pretrained import name_of
from tarflow.run_data import image_options, numbers_of, open_splits
from tarflow.sampling.auto import Auto
from tarflow.sampling.sample import sample
from tarflow.sampling.setting import Setting
from tarflow.seeding import seeded_generator


@dataclasses.dataclass(frozen=True)
class Run(checkpoint.Run):
    """A model with what is known of its data and training; `tarflow.open_run` opens one.

    Attributes:
        path, flow, config: where it lies, the model in eval mode, and the sections of its `config.json`.
        levels: values a pixel can take. class_names: in the order of the labels. noise: "gaussian" or "uniform".
        sigma: of Gaussian noise in training, by which samples are denoised; None where there was none.
    """

    def __repr__(self) -> str:
        """What it is, in a few lines."""
        data, noise = self.config.data, str(self.measure) if self.config.training else "noise of training not stored"
        source = f"of {data.source}, {self.levels} levels; {noise}" if data else noise
        return f"Run {name_of(self.path) or self.path}: {source}\n{self.flow!r}"

    @property
    def setting(self) -> Setting:
        """How samples are drawn where nothing is said: what `tarflow sweep` kept for these weights, else denoised by σ.

        Guidance and σ are `setting.guidance` and `setting.denoise`, as `tarflow.sample` takes them.
        """
        stored = kept.open_setting(self)
        if stored is not None and stored.weights == checkpoint.weights_digest(self.path):
            return stored.setting
        return Setting(denoise=self.sigma)

    def labels(self, classes: str | int | Sequence[str | int] | None, n: int) -> Tensor | None:
        """The labels of n images that go through classes, by name or number in turn; all where `classes` is None."""
        return labels_in_turn(self, () if classes is None else self._several(classes), n)

    @property
    def numbers(self) -> tuple[str, ...]:
        """The names of the numbers that it is conditioned on; none of another."""
        return numbers_of(self)

    def class_number(self, wanted: str | int) -> int:
        """The label of a class by its name or number; -1 for the null class, `"null"`."""
        return class_number(self, wanted)

    def sample(
        self,
        classes: str | int | Sequence[str | int] | None = None,
        n: int | None = None,
        *,
        given: Given = None,
        setting: Setting | None = None,
        seed: int = 0,
        **options: Any,
    ) -> Tensor:
        """Draw images (n, C, H, W), -1 … 1 and not clipped; `pixels` makes pixels of them.

        Args:
            classes: a class by name or number, or several, in turn; None goes through all.
            n: how many; None is one a class.
            given: of a run that is conditioned on numbers, these: by name, one for all images or (n,) of them; or
                (n, K) in the order of `numbers`. None is null.
            setting: guidance and denoising; None is `setting` of the run.
            seed, options: as for `tarflow.sample`.
        """
        how = self.setting if setting is None else setting
        n = self._number(classes, n)
        if options.get("solver", "auto") == "auto":
            options["solver"] = Auto(kept.open_calibration(self))
        numbers = numbers_given(self, given, n)
        y = given_values(self.config.model.conditioned_on, self.labels(classes, n), numbers)
        return sample(self.flow, n, y, how.guidance, seed, how.denoise, **options)

    def write_samples(
        self,
        out: str | Path,
        classes: str | int | Sequence[str | int] | None = None,
        n: int | None = None,
        *,
        setting: Setting | None = None,
        seed: int = 0,
        columns: int | None = None,
        given: Mapping[str, float] | None = None,
        **options: Any,
    ) -> None:
        """What `tarflow sample` does: draw, and write a sheet `.png`, an archive `.npz`, or a new directory.

        Args:
            classes, n, setting, seed: as of `sample`. given: numbers by name.
            columns: of a sheet; None is one a class where they fit.
            options: of `tarflow.drawing.Sampler`.
        """
        names, n = () if classes is None else self._several(classes), self._number(classes, n)
        sampler, numbers = Sampler(self, **options), numbers_given(self, given, 1)
        sampler.write(Path(out), n, names, setting or self.setting, seed, columns, numbers=numbers)

    def images(self, source: str | None = None) -> Splits:
        """What the run was trained on and what it held out, `train` and `held_out`, each with `images` and `labels`.

        Of another `source`, a path or a name as for `--data`, the same: sized, levelled and split as those.
        """
        return open_splits(self, source)

    def pixels(self, x: Tensor) -> Tensor:
        """Images -1 … 1 as pixels, uint8 0 … levels-1 on the CPU, rounded and clipped: what is written to files."""
        return self.measure.pixels(x.cpu())

    def noisy(self, images: Tensor, seed: int = 0) -> Tensor:
        """Pixels (N, C, H, W) uint8 as the model sees them: scaled, with the noise of its training; float32."""
        self._training()
        generators = [seeded_generator(seed, "noisy", k) for k in range(len(images))]
        return self.measure.noisy(images, generators)

    def score(
        self,
        images: Tensor,
        classes: str | int | None = None,
        *,
        given: Given = None,
        draws: int = 4,
        seed: int = 0,
        batch_size: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """The log-likelihood of images, nats, (N,) float64 on the CPU: what `tarflow score` writes.

        Args:
            images: (N, C, H, W) uint8, levels 0 … levels-1.
            classes: the class of all of them, by name or number; None is `log mean_y p(x|y)`, or `log p(x)`.
            given: numbers that they are scored under, as of `sample`; None is null.
            draws, seed: of the noise of training, over which the mean is taken.
        """
        label = None if classes is None else self.class_number(classes)
        c = given_values(self.config.model.conditioned_on, None, numbers_given(self, given, len(images)))
        scoring = run_scoring(self, label, numbers=c is not None, draws=draws, seed=seed)
        return class_scores(self.flow, images, c, scoring=scoring, batch_size=batch_size, progress=progress).mean

    def write_scores(
        self,
        source: str,
        out: str | Path,
        classes: str | int | None = None,
        *,
        given: Mapping[str, float] | ImageNumbers | None = None,
        draws: int = 4,
        seed: int = 0,
        **options: Any,
    ) -> ScoredFiles:
        """What `tarflow score` does: score every image of a path or a name, and write a line of a CSV file for each.

        Args:
            classes, draws, seed: as of `score`. given: numbers by name, for all images, or those of each in a table.
            options: of `tarflow.evaluation.likelihood.table.score_files`, such as `maps`.
        """
        label = None if classes is None else self.class_number(classes)
        numbers = given if isinstance(given, ImageNumbers) else numbers_given(self, given, 1)
        scoring = run_scoring(self, label, numbers=numbers is not None, draws=draws, seed=seed)
        return score_files(self, source, out, scoring=scoring, numbers=numbers, **options)

    def evaluate(
        self, source: str | None = None, split: Split = "held-out", *, scoring: Scoring | None = None, **options: Any
    ) -> Evaluation:
        """What `tarflow evaluate` does: bits/dim with their error of the run's own held-out images, or of others.

        Args:
            source, split: see `tarflow.evaluation.likelihood.evaluation.choose_images`.
            scoring: draws, seed and labels; None is four draws under the labels that there are.
            options: of `evaluate_images` there, such as `yardstick` or `against`.
        """
        self._training()
        images = choose_images(self, source, split)[0]
        return evaluate_images(self, images, scoring or Scoring(self.measure), **options)

    def bits_per_dim(self, log_prob: Tensor) -> Tensor:
        """Log-likelihoods in nats as bits a dimension; of a model of noisy images those of noisy images."""
        return self.measure.bits_per_dim(log_prob, self.config.model.num_dims)

    def _several(self, classes: str | int | Sequence[str | int] | None) -> list[str | int]:
        if classes is None:
            return list(range(class_count(self)))
        return list(classes) if isinstance(classes, list | tuple | range) else [classes]  # type: ignore[list-item]

    def _number(self, classes: str | int | Sequence[str | int] | None, n: int | None) -> int:
        """n, checked; where it is None one image a class, or one where there are none."""
        return max(1, len(self._several(classes))) if n is None else integer("n", n, 1)

    def _training(self) -> TrainingConfig:
        if self.config.training is None:
            raise ValueError(f"{self.path}: no section `training` in its config.json says the noise of its training")
        return self.config.training


def open_run(path: str | Path, *, device: torch.device | str = "cpu") -> Run:
    """Open a run directory, a hub directory, one `step-N` of a run, or a model of the package or the hub by its name.

    Raises FileNotFoundError or ValueError naming the file that is missing or does not fit.

    >>> import tempfile, tarflow
    >>> directory = tempfile.mkdtemp()
    >>> config = tarflow.TarFlowConfig(8, channels=1, patch_size=2, width=64, layers=(1, 1), num_classes=3)
    >>> tarflow.TarFlow(config).save_pretrained(directory)
    >>> run = tarflow.open_run(directory)
    >>> run.class_names, run.levels, run.sigma
    (('0', '1', '2'), 256, None)
    >>> run.sample("2", n=4).shape
    torch.Size([4, 1, 8, 8])
    """
    opened = checkpoint.open_run(path, device)
    return Run(opened.path, opened.flow, opened.config)


def from_pil(images: Any, of: Run | TarFlow) -> Tensor:
    """Pillow's pictures as pixels (N, C, H, W) uint8 of a run or a flow, read as `tarflow score` reads files.

    They are turned upright, laid over white where they are transparent, made grey or RGB, brought to the size of the
    model by the run's `aspect`, and more than 8 bits become levels by its `value_range`. `run.score` takes the pixels;
    `run.measure.clean` and `run.noisy` make of them what the flow sees.

    Args:
        images: one picture, or several, of any size and mode.
        of: a run, which knows its levels; a flow takes 256.

    Raises:
        ValueError: nothing, or something else; the message names it.

    >>> from PIL import Image
    >>> import tarflow
    >>> pixels = tarflow.from_pil(Image.new("RGB", (30, 20), "white"), tarflow.open_run("digits"))
    >>> pixels.shape, int(pixels.min())
    (torch.Size([1, 1, 8, 8]), 16)
    """
    several = [images] if isinstance(images, Image.Image) else list(images)
    if isinstance(of, checkpoint.Run):
        options = image_options(of) if of.config.data else LoadOptions(levels=of.levels)
        config = of.config.model
    elif isinstance(of, TarFlow):
        options, config = LoadOptions(), of.config
    else:
        raise ValueError(f"of: expected a run or a TarFlow, got {type(of).__name__}")
    return load_pixels(several, options.replace(image_size=config.image_shape, channels=config.channels))


def train(
    data: Any,
    out: str | Path,
    *,
    held_out: Any = None,
    recipe: str | Path = "default",
    levels: int = 256,
    class_names: Sequence[str] | None = None,
    resume: bool = False,
    device: str = "auto",
    report: Callable[[dict[str, Any]], None] | None = None,
    **fields: Any,
) -> Run:
    """Train on a data set of one's own, and leave a run directory as `tarflow train` does.

    Args:
        data: a `torch.utils.data.Dataset`, or any sequence, of images or (image, label); see
            `tarflow.data.readers.dataset.open_dataset`. It is read once, into memory. held_out: another one; None holds
            out a seeded fraction.
        out: the run directory; must not hold a run unless `resume`, which goes on from its newest checkpoint.
        recipe: by name, or the path of a `.toml` file. Channels, levels, classes and, without `image_size` among the
            fields, the size are those of the data.
        levels, class_names: see `open_dataset`.
        report: called after every step, with a dictionary of what was measured.
        fields: of the recipe to replace, such as `steps=1000` or `width=128`: those of the three sections of a run's
            config.json.

    Raises:
        DataError, ConfigError (ValueErrors): what does not fit; the message names the item or the field.
    """
    from tarflow.training.setup import resolve  # here, because sampling and scoring should not wait for it
    from tarflow.training.trainer import train as train_run

    sections = recipes.load(recipe)
    for name in ("image_size", "channels", "num_classes"):
        sections["model"].pop(name, None)
    sections["data"]["source"] = f"{type(data).__name__}, given to tarflow.train"
    sections = recipes.with_fields(sections, fields)
    names = (
        *("held_out_fraction", "split_seed", "value_range", "aspect", "pad_with", "crop_from"),
        *("conditions_from", "conditions"),
    )
    options = {name: sections["data"][name] for name in names if name in sections["data"]}
    options["image_size"] = sections["model"].get("image_size")
    splits = load_dataset(data, held_out, levels=levels, class_names=class_names, **options)
    train_run(resolve(sections, splits), splits, out, resume=resume, device=pick_device(device), report=report)
    return open_run(out)

"""What can be done with one run, and what the page computes of it: draw, follow, walk, and draw a part anew.

Nothing here knows of a page. Numbers come checked (`wishes`), images leave as (N, C, H, W) uint8 of 256 levels.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tarflow.drawing import Sampler
from tarflow.measure import to_8bit
from tarflow.model.condition import Value
from tarflow.play.given import fields_of, value_of
from tarflow.play.streaming import streamed
from tarflow.play.wishes import Drawing
from tarflow.report.samples import SHOWN
from tarflow.runs import Run
from tarflow.sampling.decode import draw_noise
from tarflow.sampling.denoise import denoise
from tarflow.sampling.editing import interpolate, nearer_end, trace
from tarflow.sampling.guidance import Guidance
from tarflow.sampling.inpaint import Inpainted, inpaint
from tarflow.sampling.sample import sample
from tarflow.sampling.setting import Setting

BATCHES = 8  # that a drawing is cut into, so that its first images are there soon
MOST_CELLS = 16  # a side of what a region is chosen from
LEAST_CHAINS, MOST_STATES = 4, 100  # chains whose figures say something, and states that are kept of each
STATES_BYTES = 64_000_000  # that all of them take, about
OFTEN = 1.0  # seconds between two looks at chains on their way


@dataclass(frozen=True)
class Redrawn:
    """How far drawing a region anew is, `share` of it, and what chains are at, (n, C, H, W) uint8, only now and then.

    At last the picture itself, (1, C, H, W), the drawings, and what they are worth.
    """

    share: float
    images: Tensor | None = None
    own: Tensor | None = None
    drawn: Inpainted | None = None


@dataclass(frozen=True)
class Drawn:
    """How far a drawing is: so many of `total` images are computed, an unfinished one by its share; those that are
    finished, (n, C, H, W) uint8, only where they are new; and the labels of all, if any."""

    done: float
    total: int
    images: Tensor | None = None
    labels: tuple[int, ...] | None = None


class Studio:
    """One run to play with. One thing is computed at a time, whoever asks for it.

    Attributes:
        classes: their names; empty where the model has none, or is conditioned on more than a class.
        fields: what it is conditioned on where that is no class alone; the `label` of an image is then one row of it.
        by_class, by_temperature: whether guidance by the condition does anything, and by the temperature.
        sigma: of the noise that the model has learned; None where there is nothing to remove.
        usual: how samples are drawn where nobody says otherwise, such as what `tarflow sweep` found best.
    """

    def __init__(self, run: Run) -> None:
        model = run.config.model
        if model.channels not in (1, 3):
            raise ValueError(f"{run.path}: expected images of 1 or 3 channels, got {model.channels}")
        self.run, self.flow, self.sigma, self.usual = run, run.flow, run.sigma, run.setting
        conditions = run.flow.conditions
        self.fields = fields_of(run)
        self.classes = () if self.fields else tuple(run.class_names[: conditions.size])
        self.by_class = bool(conditions) and conditions.size != 1
        self.by_temperature = run.flow.sequence.slots + conditions.places > 2
        self.turn = threading.Lock()

    # --- draw -------------------------------------------------------------------------------------------------------

    def setting(self, wish: Drawing) -> Setting:
        """Guidance and denoising as the samplers take them."""
        schedule = self.usual.guidance.schedule
        guidance = Guidance(wish.guidance, schedule, wish.temperature, wish.rule)  # type: ignore[arg-type]
        return Setting(guidance, (self.usual.denoise or self.sigma) if wish.denoised else None)

    def draw(self, wish: Drawing) -> Iterator[Drawn]:
        """Images as they finish, with how far it is in between; leaving the iterator ends the work."""
        n, y, setting = wish.images, self._labels(wish.label, wish.images), self.setting(wish)
        labels = tuple(y.tolist()) if isinstance(y, Tensor) and self.classes else None

        def work(tell: Callable[[Drawn], None]) -> None:
            with self.turn:
                tell(Drawn(0, n, None, labels))
                sampler = Sampler(self.run, batch_size=math.ceil(n / BATCHES))
                done = 0
                for batch in sampler.batches(n, y, setting, wish.seed, lambda done, _: tell(Drawn(done, n))):
                    done += len(batch.images)
                    tell(Drawn(done, n, self.shown(batch.images)))

        return streamed(work)

    def follow(self, wish: Drawing, which: int) -> Iterator[list[Tensor]]:
        """Image `which` of a drawing on its way from noise: what each block leaves, (C, H, W) uint8 each."""
        y = self._labels(wish.label, wish.images)

        def work(tell: Callable[[list[Tensor]], None]) -> None:
            setting = self.setting(wish)
            with self.turn:
                noise = draw_noise(self.flow, torch.tensor([which], device="cpu", dtype=torch.int64), wish.seed)
                own = self.flow.conditions.rows(y, slice(which, which + 1))
                stages = trace(self.flow, 1, own, setting.guidance, wish.seed, setting.denoise, noise)
                images = [*(SHOWN.pixels(stage.cpu()) for stage in stages[:-1]), self.shown(stages[-1])]
                tell([image[0] for image in images])

        return streamed(work)

    # --- walk and edit ----------------------------------------------------------------------------------------------

    def sampled(self, seed: int, label: Any) -> Tensor:
        """The image that the model draws of a seed, as it sees it, (C, H, W), with the noise that it has learned."""
        return sample(self.flow, 1, self._labels(label, 1), seed=seed, solver="sequential")[0]

    def seen(self, pixels: Tensor) -> Tensor:
        """Pixels (C, H, W) as the model sees them, with the noise of its training; without, where none is known."""
        if self.run.config.training is None:
            return self.run.measure.clean(pixels).to(self.flow.device)
        return self.run.noisy(pixels[None])[0].to(self.flow.device)

    def clean(self, x: Tensor, label: Any) -> Tensor:
        """An image (C, H, W) as the model sees it without the noise that it has learned."""
        return self._cleaned(x[None], self._labels(label, 1))[0]

    def walk(self, ends: Sequence[Tensor], labels: Sequence[Any], steps: int) -> Iterator[Tensor]:
        """Images (steps, C, H, W) uint8 on the way between two (C, H, W) as the model sees them, denoised."""
        conditions = self.flow.conditions
        first, last = (self._labels(label, 1) for label in labels)

        def work(tell: Callable[[Tensor], None]) -> None:
            with self.turn:
                x = interpolate(self.flow, ends[0], ends[1], steps, first, last)
                y = conditions.rows(conditions.cat([first, last]), nearer_end(steps))
                tell(self.shown(self._cleaned(x, y)))

        return streamed(work)

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of what a region is chosen from: the patches, or several at once where they are many."""
        height, width = self.run.config.model.image_shape
        return -(-height // self._cell), -(-width // self._cell)

    @property
    def _cell(self) -> int:
        """Pixels of a side of a cell."""
        model = self.run.config.model
        return model.patch_size * math.ceil(max(model.image_shape) / model.patch_size / MOST_CELLS)

    def region(self, chosen: Sequence[int]) -> Tensor:
        """The pixels (H, W) of cells, which are counted row by row: True where they are."""
        height, width = self.run.config.model.image_shape
        rows, columns = self.cells
        grid = torch.zeros(rows * columns, device="cpu", dtype=torch.bool)
        grid[list(chosen)] = True
        wide = grid.view(rows, columns).repeat_interleave(self._cell, 0).repeat_interleave(self._cell, 1)
        return wide[:height, :width]

    def redraw(
        self, x: Tensor, region: Tensor, images: int, seed: int, label: Any, seconds: float
    ) -> Iterator[Redrawn]:
        """The picture x (C, H, W), clean where the model removes noise, and `images` others with another region (H, W).

        Within some seconds of `tarflow.inpaint`; leaving the iterator ends the work.
        """
        chains = max(LEAST_CHAINS, images)
        steps = min(MOST_STATES, max(LEAST_CHAINS, STATES_BYTES // (4 * chains * x.numel())))

        def work(tell: Callable[[Redrawn], None]) -> None:
            told = time.monotonic()

            def on_the_way(share: float, events: Tensor) -> None:
                nonlocal told
                if time.monotonic() - told < OFTEN:
                    return tell(Redrawn(share))
                told = time.monotonic()
                return tell(Redrawn(share, self.shown(events[:images])))

            with self.turn:
                options: dict[str, Any] = {"denoise": self.sigma, "chains": chains, "steps": steps, "warmup": steps}
                drawn = inpaint(
                    self.flow,
                    x[None],
                    region,
                    self._labels(label, 1),
                    images,
                    seed=seed,
                    seconds=seconds,
                    progress=on_the_way,
                    **options,
                )
                tell(Redrawn(1.0, self.shown(drawn.samples[:, 0]), self.shown(x[None]), drawn))

        return streamed(work)

    # --- what several of them do ------------------------------------------------------------------------------------

    def shown(self, x: Tensor) -> Tensor:
        """What the model draws as pixels of 256 levels, clipped, on the CPU."""
        return to_8bit(self.run.pixels(x), self.run.levels)

    def _cleaned(self, x: Tensor, y: Value) -> Tensor:
        return x if self.sigma is None else denoise(self.flow, x, self.sigma, y)

    def usual_labels(self, n: int) -> Value:
        """Of n images where nobody says: all classes in turn, or what stands in the fields at first."""
        starts = [field.start for field in self.fields]
        return self._labels(value_of(self.flow, self.fields, starts) if starts else None, n)

    def _labels(self, label: Any, n: int) -> Value:
        """Of n images: one class, none (-1), or all in turn; or one value of another condition."""
        if not self.classes:
            return self.flow.conditions.repeat(label, n)
        if label is None:
            return self.run.labels(None, n)
        return torch.full((n,), label, device="cpu", dtype=torch.int64)

"""What the page answers: from what its controls say to pieces of HTML, without knowing what draws the page.

Every answer is an iterator of (word, result): what stands in the line of a tab that says how it is going, and what
stands below it; None leaves the result as it is. What goes wrong is one line there, and nothing is lost.
"""

from __future__ import annotations

import functools
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tarflow.model.condition import Value
from tarflow.play import inside
from tarflow.play.given import Field, value_of
from tarflow.play.parts import PARTS, histogram, variations, worth
from tarflow.play.pictures import MOST_BYTES, MOST_FILES, Picture, address, read_pictures
from tarflow.play.scoring import Scorer, Scores
from tarflow.play.studio import Studio
from tarflow.play.wishes import (
    ALL,
    MOST_SECONDS,
    MOST_SEED,
    MOST_STEPS,
    MOST_VARIATIONS,
    Drawing,
    cells,
    drawing,
    label,
    whole,
)
from tarflow.report.facts import insides, stack
from tarflow.report.likelihood import LABELS, unit_of
from tarflow.report.words import plural
from tarflow.sampling.sample import SamplingError

Answer: TypeAlias = Iterator[tuple[str, str | None]]
Method = Callable[..., Answer]

OFTEN = 0.2  # seconds between two words on how far it is


def explained(error: Exception) -> str:
    """One line for somebody who is not at this machine."""
    if isinstance(error, ValueError | SamplingError):
        return " ".join(str(error).split())
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
        return "The memory of the machine does not suffice for this; ask for less at a time."
    if os.environ.get("TARFLOW_DEBUG"):
        traceback.print_exception(error)
    sys.stderr.write(f"tarflow: play: {type(error).__name__}: {error}\n")
    return f"Something went wrong here that should not ({type(error).__name__}); please report it."


def answered(method: Method) -> Method:
    """An answer whose errors are a word on the page."""

    @functools.wraps(method)
    def guarded(self: Answers, *values: Any) -> Answer:
        try:
            yield from method(self, *values)
        except Exception as error:
            yield str(PARTS.message(explained(error), True)), None

    return guarded


class Answers:
    """The answers for one run.

    Attributes:
        drawing: the names of the controls of Draw, in their order; those that the model has a use for, and no others.
    """

    def __init__(self, studio: Studio) -> None:
        self.studio, self.scorer = studio, Scorer(studio)
        guided = studio.by_class or studio.by_temperature
        self.drawing = (
            *("images", "seed"),
            *(["class"] if studio.classes else []),
            *(f"given {k}" for k in range(len(studio.fields))),
            *(["guidance", "rule"] if guided else []),
            *(["temperature"] if studio.by_temperature else []),
            *(["denoise"] if studio.sigma is not None else []),
        )

    def source(self, name: str, legend: str, *, many: bool = False, seed: int = 0) -> str:
        """Where somebody chooses or draws pictures, by the name that `tarflowSource` in page.js takes."""
        limits = {"bytes": MOST_BYTES, "files": MOST_FILES}
        return str(PARTS.source(name, legend, many, seed, limits, self.studio.run.config.model.channels))

    def given(self, name: str, field: Field) -> str:
        """Where somebody chooses or draws a picture that the model is given."""
        limits = {"bytes": MOST_BYTES, "files": 1}
        return str(PARTS.source(name, f"Given: a {field.name}", False, None, limits, field.sizes[0]))

    def region(self, name: str) -> str:
        """Where somebody chooses what of a picture is drawn anew, by the name that `tarflowRegion` in page.js takes."""
        rows, columns = self.studio.cells
        return str(PARTS.region(name, rows, columns))

    def stopped(self) -> str:
        return str(PARTS.message("Stopped."))

    # --- draw -------------------------------------------------------------------------------------------------------

    def _wish(self, values: tuple[Any, ...]) -> Drawing:
        if len(values) != len(self.drawing):
            raise ValueError(f"expected {len(self.drawing)} values ({', '.join(self.drawing)}), got {len(values)}")
        named = dict(zip(self.drawing, values, strict=True))
        wish = drawing(named, len(self.studio.classes))
        given = [value for name, value in named.items() if name.startswith("given ")]
        return replace(wish, label=self._given(given)) if given else wish

    @answered
    def draw(self, *values: Any) -> Answer:
        """Images as they finish."""
        wish = self._wish(values)
        setting = self.studio.setting(wish)
        items: list[dict[str, str]] = []
        labels: tuple[int, ...] | None = None
        told = began = time.monotonic()
        yield str(PARTS.progress(0, wish.images, "images")), ""
        for drawn in self.studio.draw(wish):
            labels = drawn.labels or labels
            if drawn.images is None:
                if time.monotonic() - told < OFTEN:
                    continue
                told = time.monotonic()
                yield str(PARTS.progress(f"{drawn.done:.1f}", wish.images, "images")), None
                continue
            for image in drawn.images:
                k = len(items)
                kind = "" if labels is None else self._name(labels[k])
                name = f"Sample {k + 1}, {kind}" if kind else f"Sample {k + 1}"
                items.append({"src": address(image), "alt": name, "caption": kind})
            yield str(PARTS.progress(len(items), wish.images, "images")), str(PARTS.grid(items))
        seconds = time.monotonic() - began
        how = setting if self.studio.sigma is not None else setting.guidance
        text = f"{plural(wish.images, 'image')} in {seconds:.1f} s; {how}; seed {wish.seed}."
        yield str(PARTS.message(text)), None

    @answered
    def follow(self, which: Any, *values: Any) -> Answer:
        """One image of those on its way from noise."""
        wish = self._wish(values)
        k = whole("which image", which, 1, wish.images) - 1
        yield str(PARTS.waiting(0, "following the image through the blocks")), None
        for stages in self.studio.follow(wish, k):
            blocks = len(self.studio.flow.blocks)
            names = ["noise", *(f"after block {n}" for n in range(blocks - 1, -1, -1)), "denoised"]
            frames = [{"src": address(s), "alt": n} for s, n in zip(stages, names, strict=False)]
            caption = "Samples go through the blocks from the last to the first. Beyond −1 … 1 is black or white."
            yield (
                str(PARTS.message(f"Image {k + 1} in {len(frames)} stages.")),
                str(PARTS.film("trace", frames, "Stage", caption)),
            )

    # --- score ------------------------------------------------------------------------------------------------------

    @answered
    def score(self, files: Any, seed: Any, *chosen: Any) -> Answer:
        """Pictures, or a sample, scored."""
        every = bool(self.studio.classes) and chosen == (ALL,)
        given = None if every else self._several(chosen, 1)[0]
        pictures = read_pictures(self.studio.run, files) or [self._sample(seed, given)]
        good = [picture for picture in pictures if picture.pixels is not None]
        yield str(PARTS.waiting(0, "scoring")), None
        found: Scores | None = None
        if good:
            told = time.monotonic()
            pixels = torch.stack([picture.pixels for picture in good if picture.pixels is not None])
            for share, scores in self.scorer.score(pixels, given):
                found = scores
                if scores is None and time.monotonic() - told > OFTEN:
                    told = time.monotonic()
                    doing = "scoring" if share < 0.9 else "scoring the held-out images, once"
                    yield str(PARTS.waiting(share, doing)), None
        bad = len(pictures) - len(good)
        text = f"{len(good)} scored" + (f", {bad} could not be read" if bad else "") + "."
        yield str(PARTS.message(text, bool(bad) and not good)), self._scored(pictures, found)

    def _scored(self, pictures: list[Picture], found: Scores | None) -> str:
        scores, items = iter(found.scores if found else ()), []
        unit = unit_of(found.figure) if found else ""
        for picture in pictures:
            item: dict[str, Any] = {"name": picture.name, "problem": picture.problem}
            if picture.pixels is not None:
                score = next(scores)
                item["image"] = address(score.image)
                item["heat"] = None if score.heat is None else address(score.heat)
                item["facts"] = [("log-likelihood", f"{score.log_likelihood:.2f} nats"), (unit, f"{score.bits:.3f}")]
                if not math.isnan(score.percentile):
                    item["facts"] += [
                        ("held-out images that are less likely", f"{score.percentile:.1f} %"),
                        ("held-out images that are less typical", f"{score.typicality:.1f} %"),
                    ]
                item["classes"] = [(name, f"{100 * p:.2f}") for name, p in score.classes]
            items.append(item)
        if found is None:
            return str(PARTS.scored(items, "", ""))
        policy = "what is given" if self.studio.fields and found.policy == "given" else LABELS[found.policy]
        note = f"Scored with {policy}; the mean over {found.draws} draws of the noise of the training."
        if found.problem:
            note += f" There are no percentiles: {found.problem}."
        drawn = "" if found.histogram is None else histogram(found.histogram, found, unit)
        return str(PARTS.scored(items, drawn, note))

    # --- walk and edit ----------------------------------------------------------------------------------------------

    @answered
    def walk(self, files: Any, seed: Any, to_files: Any, to_seed: Any, steps: Any, *chosen: Any) -> Answer:
        """The way from one picture to another, in noise."""
        count = whole("steps", steps, 3, MOST_STEPS)
        labels = self._several(chosen, 2)
        yield str(PARTS.waiting(0, "walking")), None
        ends = [
            self._seen("first picture", files, seed, labels[0]),
            self._seen("last picture", to_files, to_seed, labels[1]),
        ]
        for images in self.studio.walk(ends, labels, count):
            frames = [{"src": address(image), "alt": f"step {k + 1} of {count}"} for k, image in enumerate(images)]
            caption = "The way leads through the noise that the two encode to, along the arc between them."
            film = PARTS.film("walk", frames, "On the way", caption)
            yield str(PARTS.message(f"{count} images, both ends included.")), str(film)

    @answered
    def redraw(self, files: Any, seed: Any, chosen: Any, images: Any, again: Any, seconds: Any, *labels: Any) -> Answer:
        """A region of a picture drawn anew, given the rest."""
        rows, columns = self.studio.cells
        region = self.studio.region(cells("what is drawn anew", chosen, rows * columns))
        count, start = whole("drawings", images, 1, MOST_VARIATIONS), whole("seed of the new", again, 0, MOST_SEED)
        limit = whole("seconds", seconds, 1, MOST_SECONDS)
        (own,) = self._several(labels, 1)
        yield str(PARTS.waiting(0, "the chains begin")), None
        x = self._seen("picture", files, seed, own, clean=True)
        began = told = time.monotonic()
        for redrawn in self.studio.redraw(x, region, count, start, own, limit):
            if redrawn.drawn is None:
                if redrawn.images is not None or time.monotonic() - told > OFTEN:
                    told = time.monotonic()
                    seen = None if redrawn.images is None else variations(redrawn.images, "on the way")
                    yield str(PARTS.waiting(redrawn.share, "the chains are on their way")), seen
                continue
            assert redrawn.images is not None and redrawn.own is not None
            text = f"{plural(count, 'drawing')} in {time.monotonic() - began:.1f} s, seed {start}."
            yield (
                str(PARTS.message(text)),
                str(PARTS.verdict(redrawn.drawn.verdict, not redrawn.drawn.mixed, worth(redrawn.drawn)))
                + variations(redrawn.images, "drawing", redrawn.own),
            )

    # --- look inside ------------------------------------------------------------------------------------------------

    @answered
    def look(self) -> Answer:
        """What the model is, and what each block does."""
        yield str(PARTS.waiting(0, "looking")), None
        for found in inside.look(self.studio):
            drawings = [stack("play-stack", self.studio.flow), *insides("play-inside", self.studio.flow)]
            blocks = [vars(block) | {"src": address(block.image)} for block in found.blocks]
            shown = PARTS.inside(found.facts, address(found.image), blocks, drawings, inside.IMAGES, found.why)
            yield str(PARTS.message("Measured just now.")), str(shown)

    # --- what several of them do ------------------------------------------------------------------------------------

    def _name(self, number: int) -> str:
        return "no class" if number < 0 else self.studio.classes[number]

    def _several(self, chosen: tuple[Any, ...], count: int) -> list[Any]:
        """What `count` pictures are conditioned on, one after the other, of the controls that each has: one of a class,
        where the model has classes, or one of each other condition, of which it is a value of one row."""
        classes, fields = len(self.studio.classes), len(self.studio.fields)
        width = fields or bool(classes)
        if len(chosen) != count * width:
            what = "values of conditions" if fields else "classes"
            raise ValueError(f"expected {count * width} {what}, got {len(chosen)}")
        if fields:
            return [self._given(chosen[k * fields : (k + 1) * fields]) for k in range(count)]
        return [label("class", value, classes) for value in chosen] if classes else [None] * count

    def _given(self, texts: Sequence[Any]) -> Value:
        return value_of(self.studio.flow, self.studio.fields, texts)

    def _seen(self, what: str, files: Any, seed: Any, own: Any, *, clean: bool = False) -> Tensor:
        """The one picture that was given, or the sample of a seed, as the model sees it; `clean`, without its noise."""
        pictures = read_pictures(self.studio.run, files, 1)
        if not pictures:
            x = self.studio.sampled(whole(f"seed of the {what}", seed, 0, MOST_SEED), own)
            return self.studio.clean(x, own) if clean else x
        pixels = pictures[0].pixels
        if pixels is None:
            raise ValueError(f"{pictures[0].name}: {pictures[0].problem}")
        if clean and self.studio.sigma is not None:
            return self.studio.run.measure.clean(pixels).to(self.studio.flow.device)
        return self.studio.seen(pixels)

    def _sample(self, seed: Any, own: Any) -> Picture:
        number, classes = whole("seed", seed, 0, MOST_SEED), len(self.studio.classes)
        own = number % classes if own is None and classes else own  # of any class: one after the other
        x = self.studio.sampled(number, own)
        name = f"sample of seed {number}" + (f", {self._name(own)}" if classes else "")
        return Picture(name, self.studio.run.pixels(x[None])[0])

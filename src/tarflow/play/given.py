"""What a picture is drawn or scored under where that is more than a class: numbers, a sequence, another picture.

Each condition of the model is a field of the page, whose value comes as text. An empty one is null.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tarflow.architecture import condition_parts
from tarflow.config import finite_number, values_in
from tarflow.model.condition import Condition, Value
from tarflow.model.flow import TarFlow
from tarflow.model.numeric import Numbers
from tarflow.model.several import Several
from tarflow.play.pictures import read_condition
from tarflow.play.wishes import NULL, label, quoted
from tarflow.report.facts import KINDS
from tarflow.report.words import plural
from tarflow.runs import Run

APART = re.compile(r"[\s,;]+")


@dataclass(frozen=True)
class Field:
    """One condition of a model as somebody gives it.

    Attributes:
        kind: "classes", "vector", "tokens" or "image", as in a config, where what is aligned is a sequence or an image.
        sizes: behind it there.
        start: what stands there at first: of numbers the mean of what training saw, else no condition.
        names: of the numbers, or the classes, where they have any.
    """

    kind: str
    sizes: tuple[int, ...]
    start: str = ""
    names: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What it is, in words, as "3 numbers"."""
        if self.kind == "classes":
            return f"class of {self.sizes[0]}"
        if self.kind == "image":
            return f"{KINDS[self.sizes[0]]} picture of {self.sizes[1]}×{self.sizes[2]}"
        if self.kind == "vector":
            return ", ".join(self.names) or plural(self.sizes[0], "number")
        return f"{plural(self.sizes[0], 'token')} of {plural(self.sizes[1], 'number')}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the numbers of one value; (C, H, W) of an image."""
        return self.sizes[:3]


def fields_of(run: Run) -> tuple[Field, ...]:
    """The conditions of a run as fields, one each; none where it has none, or is conditioned on classes alone.

    Raises ValueError where one of them is no picture that can be shown.
    """
    condition = run.flow.sequence.condition
    found = condition_parts(condition)
    if [kind for kind, _ in found] in (["none"], ["classes"]):
        return ()
    parts = conditions.parts if isinstance(conditions := run.flow.conditions, Several) else [conditions]
    return tuple(_field(run, kind, sizes, part) for (kind, sizes), part in zip(found, parts, strict=True))


def value_of(flow: TarFlow, fields: Sequence[Field], texts: Sequence[Any]) -> Value:
    """The checked value of one row, of what stands in the fields; null of each in which nothing does.

    Raises ValueError with one line that names the field.
    """
    found = tuple(_value(field, text) for field, text in zip(fields, texts, strict=True))
    return flow.conditions.check(found if len(found) > 1 else found[0], 1, torch.device("cpu"))


def _field(run: Run, kind: str, sizes: tuple[int, ...], part: Condition) -> Field:
    kind = {"aligned": "tokens", "aligned-image": "image"}.get(kind, kind)
    if kind == "image" and sizes[0] not in KINDS:
        raise ValueError(
            f"{run.path}: conditioned on images of {sizes[0]} channels, which the page cannot show; expected 1 or 3; "
            "`tarflow.sample` draws, in Python"
        )
    if kind == "classes":
        return Field(kind, sizes, NULL, run.class_names if len(run.class_names) == sizes[0] else ())
    if kind == "image" or not isinstance(part, Numbers):
        return Field(kind, sizes)
    numbers = [f"{value:.4g}" for value in part.mean.flatten().tolist()]
    if kind == "tokens":
        return Field(kind, sizes, "\n".join([", ".join(numbers)] * sizes[0]))
    names = run.numbers if len(run.numbers) == sizes[0] else ()
    if names:
        numbers = [f"{name}={value}" for name, value in zip(names, numbers, strict=True)]
    return Field(kind, sizes, ", ".join(numbers), names)


def _value(field: Field, text: Any) -> Tensor:
    """A value (1, …)."""
    if field.kind == "classes":
        return torch.tensor([label(field.name, text, field.sizes[0])], device="cpu", dtype=torch.int64)
    null = torch.full((1, *field.shape), math.nan, device="cpu", dtype=torch.float32)
    if field.kind == "image":
        given = read_condition(field.name, text, field.shape)
        return null if given is None else given
    if not isinstance(text, str | None):
        raise ValueError(f"{field.name}: expected numbers as text, got {quoted(text)}")
    expected = torch.Size(field.shape).numel()
    try:
        if field.names:
            words = values_in(text or "", field.names)
        else:
            words = [word for word in APART.split(re.sub(r"[][]", " ", text or "")) if word] or None
        if words is None:
            return null
        if len(words) != expected:
            raise ValueError(f"expected {plural(expected, 'number')}, or nothing, got {len(words)}")
        names = field.names or [f"number {place}" for place in range(1, expected + 1)]
        values = [finite_number(name, word) for name, word in zip(names, words, strict=True)]
    except ValueError as error:
        raise ValueError(f"{field.name}: {error}") from None
    return torch.tensor(values, device="cpu", dtype=torch.float64).view(1, *field.shape)

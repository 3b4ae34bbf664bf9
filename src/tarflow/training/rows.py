"""Events in memory with what they are given, row by row: what `fit` learns from and holds out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tarflow.fields import real
from tarflow.model.sequence import SequenceFlow
from tarflow.seeding import seeded_permutation

SCORED_AT_ONCE = 4096
LEAST_ROWS = 10  # to learn from: of fewer not even means and deviations are known to a third


@dataclass(frozen=True, eq=False)  # equality of tensors is no truth value
class Rows:
    """Checked events x (N, …) of a flow, c, the values of its condition, and the mask of tokens, on its device."""

    flow: SequenceFlow
    x: Tensor
    c: Any = None
    mask: Tensor | None = None

    @classmethod
    def checked(cls, flow: SequenceFlow, x: Any, c: Any, name: str = "x", mask: Any = None) -> Rows:
        """Rows of what a caller gave; ValueError where it does not fit the flow, or holds what is not finite."""
        flow.event.check(x, name)
        mask = flow.check_mask(mask, len(x))
        if mask is not None:
            check_base(flow)
            x = flow.event.filled(x, mask.to(x.device))
        finite = x.isfinite()
        if not bool(finite.all()):
            place = (~finite).nonzero()[0].tolist()
            raise ValueError(
                f"{name}[{', '.join(map(str, place))}]: expected finite numbers, got {x[tuple(place)].item()}; "
                "leave such rows out"
            )
        inside = flow.event.support.check(x) if len(x) else None  # torch cannot reshape nothing
        if inside is not None and not bool(inside.all()):
            raise ValueError(f"{name}: row {int((~inside).nonzero()[0])} lies outside of the support of the flow")
        x = x.detach().to(flow.device)
        # Under `torch.inference_mode` tensors are made that no gradient may see; a copy is an ordinary one.
        return cls(flow, x.clone() if x.is_inference() else x, flow.check_condition(c, len(x)), mask)

    def __len__(self) -> int:
        return len(self.x)

    def choose(self, index: Tensor) -> Rows:
        """The rows at `index` (n,), in that order."""
        index = index.to(self.x.device)
        mask = None if self.mask is None else self.mask[index]
        return Rows(self.flow, self.x[index], self.flow.conditions.rows(self.c, index), mask)

    def parts(self, size: int) -> Iterator[Rows]:
        """All rows in their order, `size` at a time."""
        for index in torch.arange(len(self), device=self.x.device, dtype=torch.int64).split(size):
            yield self.choose(index)

    @torch.no_grad()
    def log_prob(self) -> Tensor:
        """The log-likelihood of each row under the flow as it is, nats, (N,) float64 on the CPU."""
        flow = self.flow
        return torch.cat(
            [
                flow.log_prob(part.x.to(flow.device), part.c, mask=part.mask).double().cpu()
                for part in self.parts(SCORED_AT_ONCE)
            ]
        )

    def check_learnable(self) -> None:
        """Raise ValueError where there are too few rows, or a number is the same in all: it has no density."""
        if len(self) < LEAST_ROWS:
            raise ValueError(f"x: expected at least {LEAST_ROWS} rows to learn from, got {len(self)}")
        if self.mask is None:
            constant = (self.x == self.x[:1]).all(dim=0)
        else:  # where two rows at least have a token
            there = self.mask.unsqueeze(2)
            highest, lowest = (torch.where(there, self.x, end) for end in (-torch.inf, torch.inf))
            constant = (highest.amax(dim=0) == lowest.amin(dim=0)) & (self.mask.sum(dim=0) > 1).unsqueeze(1)
        if bool(constant.any()):
            place = constant.nonzero()[0].tolist()
            value = self.x[(slice(None), *place)][
                0 if self.mask is None else int(self.mask[:, place[0]].long().argmax())
            ]
            raise ValueError(
                f"x[:, {', '.join(map(str, place))}]: {value.item():g} in all of {len(self)} rows: what "
                "does not vary has no density; leave it out, or add noise"
            )


def check_base(flow: SequenceFlow) -> None:
    """Raise ValueError where padding would be learned from: the variance that a base follows is that of all places."""
    if flow.base.follows:
        raise ValueError(
            "mask: expected none with the base 'followed', whose variance knows of no padding; use 'normal'"
        )


def split_rows(rows: Rows, held_out: Any, seed: int) -> tuple[Rows, Rows]:
    """Rows to learn from and rows held out: a share of them, drawn by `seed`; or a caller's, x, (x, c) or (x, c, mask).

    Raises ValueError where it is neither, or leaves too few to learn from.
    """
    if isinstance(held_out, Tensor | tuple):
        given = held_out if isinstance(held_out, tuple) else (held_out,)
        if not 1 <= len(given) <= 3:
            raise ValueError(f"held_out: expected a share, x, (x, c) or (x, c, mask), got {len(given)} values")
        x, c, mask = (*given, None, None)[:3]
        other = Rows.checked(rows.flow, x, c, "held_out", mask)
        if not len(other):
            raise ValueError("held_out: expected at least one row, got none")
        if (other.c is None) != (rows.c is None):
            raise ValueError("held_out: expected (x, c) where rows to learn from have c, and x where they have none")
        rows.check_learnable()
        return rows, other
    share = real("held_out", held_out, "a share between 0 and 1, or rows x or (x, c)", lambda value: 0 < value < 1)
    count = max(1, round(share * len(rows)))
    order = seeded_permutation(len(rows), "held out rows", seed)
    train = rows.choose(order[count:].sort().values)
    train.check_learnable()
    return train, rows.choose(order[:count].sort().values)

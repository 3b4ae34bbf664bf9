"""Several conditions at once: a value is a tuple with an entry for each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from tarflow.model.condition import Condition
from tarflow.model.context import Embedded


class Several(Condition):
    """The conditions that a config joins by "+": c is a tuple with a value for each; None in it is null in all rows.

    A row is null where all its parts are. `drop` takes (B, K+1): what it has in column k drops part k, in the last one
    all of them; or (B,), which drops all.
    """

    def __init__(self, parts: Sequence[Condition]) -> None:
        super().__init__()
        self.parts = cast("list[Condition]", nn.ModuleList(parts))
        self.drops = (len(parts) + 1,)
        self.places = sum(part.places for part in parts)

    def __bool__(self) -> bool:
        return True

    def as_values(self, c: Any) -> Any:
        if c is None:
            return None
        if not isinstance(c, tuple | list) or len(c) != len(self.parts):
            got = f"{len(c)} entries" if isinstance(c, tuple | list) else type(c).__name__
            raise ValueError(f"y: expected a tuple of {len(self.parts)}, one for each condition, or None, got {got}")
        return tuple(part.as_values(value) for part, value in zip(self.parts, c, strict=True))

    def check(self, c: Any, batch: int, device: torch.device) -> Any:
        values = self.as_values(c)
        return self._each(lambda part, value: part.check(value, batch, device), values)

    def count(self, c: Any) -> int | None:
        counts = [] if c is None else [part.count(value) for part, value in zip(self.parts, c, strict=True)]
        return next((count for count in counts if count is not None), None)

    def rows(self, c: Any, index: slice | Tensor) -> Any:
        return self._each(lambda part, value: part.rows(value, index), c)

    def chunk(self, c: Any, parts: int) -> list[Any]:
        if c is None:
            return [None] * parts
        return list(zip(*(part.chunk(value, parts) for part, value in zip(self.parts, c, strict=True)), strict=True))

    def repeat(self, c: Any, n: int) -> Any:
        return self._each(lambda part, value: part.repeat(value, n), c)

    def cat(self, values: list[Any]) -> Any:
        if values[0] is None:
            return None
        return tuple(part.cat(list(each)) for part, each in zip(self.parts, zip(*values, strict=True), strict=True))

    def flatten(self, c: Any) -> tuple[Any, torch.Size]:
        """As of one condition; the leading shapes of the parts are broadcast."""
        values = self.as_values(c)
        if values is None:
            return None, torch.Size()
        found = [part.flatten(value) for part, value in zip(self.parts, values, strict=True)]
        try:
            shape = torch.broadcast_shapes(*(each for _, each in found))
        except RuntimeError:
            shapes = ", ".join(str(tuple(each)) for _, each in found)
            raise ValueError(f"y: the leading shapes {shapes} of its entries do not broadcast") from None
        index = [torch.arange(s.numel(), device="cpu", dtype=torch.int64).view(s).expand(shape) for _, s in found]
        triples = zip(self.parts, found, index, strict=True)
        return tuple(part.rows(value, where.reshape(-1)) for part, (value, _), where in triples), shape

    def labels(self, c: Any) -> Any:
        found = [] if c is None else [part.labels(value) for part, value in zip(self.parts, c, strict=True)]
        return next((labels for labels in found if labels is not None), None)

    def labelled(self, c: Any, label: int, count: int) -> Any:
        values = [None] * len(self.parts) if c is None else c
        pairs = zip(self.parts, values, strict=True)
        return tuple(part.labelled(value, label, count) if part.size else value for part, value in pairs)

    def missing(self, c: Any) -> Tensor | None:
        if c is None:
            return None
        found = [part.missing(value) for part, value in zip(self.parts, c, strict=True)]
        known = [each for each in found if each is not None]
        return torch.stack(known).all(dim=0) if known else None

    def differs(self, c: Any) -> bool:
        return c is not None and any(part.differs(value) for part, value in zip(self.parts, c, strict=True))

    def drop(self, c: Any, dropped: Tensor) -> Any:
        if c is None:
            return None
        columns = [dropped] * len(self.parts)
        if dropped.ndim > 1:
            *columns, every = dropped.unbind(dim=1)
            columns = [column | every for column in columns]
        return tuple(part.drop(value, column) for part, value, column in zip(self.parts, c, columns, strict=True))

    def fit(self, c: Any) -> None:
        self._each(lambda part, value: part.fit(value), c)

    def standardised(self, c: Any) -> Any:
        return self._each(lambda part, value: part.standardised(value), c)

    def example(self) -> Any:
        return tuple(part.example() for part in self.parts)

    def embedding(self, width: int, **made: Any) -> nn.Module:
        made_of = (part.embedding(width, **made) for part in self.parts)
        return SeveralEmbedding([embedding for embedding in made_of if embedding is not None])

    def _each(self, do: Callable[[Condition, Any], Any], c: Any) -> Any:
        """`do` with each part and its value; None of None."""
        return None if c is None else tuple(do(part, value) for part, value in zip(self.parts, c, strict=True))


class SeveralEmbedding(nn.ModuleList):
    """What the embeddings of all parts add, together, and their prefixes one after the other."""

    def forward(self, c: Any) -> Embedded:
        values = [None] * len(self) if c is None else c
        found: list[Embedded] = [embed(value) for embed, value in zip(self, values, strict=True)]
        added = [part.added for part in found if part.added is not None]
        aligned = [part.aligned for part in found if part.aligned is not None]
        prefixes = [part.prefix for part in found if part.prefix is not None]
        rows = max(prefix.shape[0] for prefix in prefixes) if prefixes else 1  # a null one has a single row
        return Embedded(
            torch.stack(torch.broadcast_tensors(*added)).sum(dim=0) if added else None,
            torch.cat([prefix.expand(rows, -1, -1) for prefix in prefixes], dim=1) if prefixes else None,
            torch.stack(torch.broadcast_tensors(*aligned)).sum(dim=0) if aligned else None,
        )

"""A number that was estimated from draws, with its standard error."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Estimate(NamedTuple):
    """A mean and its standard error, of any one shape.

    >>> import torch
    >>> print(Estimate.of(torch.tensor([1.0, 2.0, 3.0])))
    2 ± 0.577
    """

    mean: Tensor
    error: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Estimate:
        """Of independent values (n, …), n ≥ 2: mean and std/√n."""
        if len(values) < 2:
            raise ValueError(f"n: expected at least 2 draws for a standard error, got {len(values)}")
        return cls(values.mean(dim=0), values.std(dim=0) / len(values) ** 0.5)

    def __str__(self) -> str:
        if self.mean.ndim:
            return f"{self.mean.tolist()} ± {self.error.tolist()}"
        return f"{float(self.mean):.6g} ± {float(self.error):.3g}"

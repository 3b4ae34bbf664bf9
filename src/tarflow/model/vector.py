"""VectorFlow: the flow on vectors, of which each number, or a few in succession, is a token."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from tarflow.fields import ConfigError, check_fields
from tarflow.model.config import SequenceConfig, VectorConfig
from tarflow.model.events import Vectors
from tarflow.model.sequence import SequenceFlow


class VectorFlow(SequenceFlow):
    """A normalizing flow on vectors x (B, N) with an exact density.

        v = (map(x) - mean) / deviation
        log p(x|c) = log N(z; 0, 1) + Σ_blocks ladj + log|∂v/∂x|,    z, ladj = blocks(v, c)

    A `SequenceFlow` on T tokens of N/T numbers. map is that of each number's support (all numbers; log for positive
    ones; logit between two bounds), and mean and deviation are those of the data once `flow.event.fit(x)` has seen
    them. Outside of the support the log-density is -∞.

    Args:
        dim: N, or a `VectorConfig`, and then nothing else.
        tokens: T, a divisor of N; None is N up to 16, and 4 at most beyond. Given numbers, an image or tokens it is 1
            for N from 3 to 8, unless there are orders.
        condition: as in `VectorConfig`; a number n is n numbers, "vector:n".
        fields: any others of `VectorConfig`, such as width or support.

    >>> import torch, tarflow
    >>> flow = tarflow.VectorFlow(3, support=("real", "positive", "interval:0:1"))
    >>> x = torch.tensor([[-2.0, 3.0, 0.5], [1.0, 1.0, 0.25]])
    >>> flow.event.fit(x)
    >>> flow.log_prob(x).shape, tarflow.sample(flow, 4).shape
    (torch.Size([2]), torch.Size([4, 3]))
    >>> flow.log_prob(torch.tensor([[0.0, -1.0, 0.5]])).item()
    -inf
    """

    config: VectorConfig
    config_type: ClassVar[type] = VectorConfig
    kind: ClassVar[str] = "vectors"

    def __init__(
        self,
        dim: int | VectorConfig,
        tokens: int | None = None,
        condition: str | int = "none",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **fields: Any,
    ) -> None:
        if not isinstance(dim, VectorConfig):
            check_fields(VectorConfig, fields)
            dim = VectorConfig(dim, tokens, condition, **fields)
        elif fields or tokens is not None or condition != "none":
            raise ConfigError("dim: expected a number where other fields are given, got a VectorConfig")
        super().__init__(dim, device=device, dtype=dtype)

    @staticmethod
    def _adapted(config: VectorConfig, **made: Any) -> tuple[SequenceConfig, Vectors]:
        assert config.tokens is not None
        return config.sequence, Vectors(config.dim, config.tokens, config.support, config.standardise, **made)

"""The form of zuko's flows: a module that is called with a condition and returns a distribution."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.distributions import Distribution

from tarflow.model.sequence import SequenceFlow


class LazyFlow(nn.Module):
    """A flow as a lazy distribution: `module(c)` is p(x|c).

    Its weights are those of the flow, so that an optimizer of either moves both. See `lazy`.
    """

    def __init__(self, flow: SequenceFlow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, c: Any = None, mask: Tensor | None = None) -> Distribution:
        """p(x|c), whose `batch_shape` is the leading shape of c, and () for None; `mask` is that of `distribution`."""
        return self.flow.distribution(c, mask=mask)


def lazy(flow: SequenceFlow) -> LazyFlow:
    """A flow in the form of zuko's: called with a condition it is a distribution, which `flow(x, c)` is not.

    It stands where `zuko.flows.Flow` does, also as the base of one of zuko's.

    >>> import torch, tarflow
    >>> from tarflow.adapters import lazy
    >>> flow = lazy(tarflow.VectorFlow(2, condition=3))
    >>> c = torch.randn(5, 3)
    >>> flow(c).log_prob(torch.zeros(5, 2)).shape, flow(c).sample((4,)).shape
    (torch.Size([5]), torch.Size([4, 5, 2]))
    """
    return LazyFlow(flow)

"""Distributions for `pyro`: a flow that `pyro.sample` takes, in a model or in a guide.

    from tarflow.adapters.pyro import distribution
    def guide():
        pyro.module("flow", flow)
        pyro.sample("theta", distribution(flow))

It has `rsample`, so that `SVI` with `Trace_ELBO` trains the flow by gradients through its draws. Tried with pyro 1.9,
https://pyro.ai.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tarflow.model.sequence import SequenceFlow
from tarflow.sampling.distribution import FlowDistribution

try:
    from pyro.distributions.torch_distribution import TorchDistributionMixin
except ImportError as error:
    raise ImportError("pyro is not installed: pip install 'tarflow[pyro]'") from error


class PyroDistribution(FlowDistribution, TorchDistributionMixin):  # type: ignore[misc, unused-ignore]
    """A `FlowDistribution` with what pyro asks of one besides: to be called, and `to_event`, `mask`, `expand_by`."""


def distribution(
    flow: SequenceFlow, y: Any = None, *, validate_args: bool | None = None, mask: Tensor | None = None
) -> PyroDistribution:
    """p(x|y) of a flow for `pyro.sample`; arguments and errors are those of `flow.distribution`."""
    return PyroDistribution(flow, y, validate_args, mask)

"""Density estimators for `sbi`: posteriors (NPE) and likelihoods (NLE) that are a `VectorFlow`.

    from sbi.inference import NPE
    from tarflow.adapters import sbi
    inference = NPE(prior, density_estimator=sbi.posterior())
    inference.append_simulations(theta, x).train()
    samples = inference.build_posterior().sample((1000,), x=observed)

Tried with sbi 0.27, https://sbi.readthedocs.io.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tarflow.model.vector import VectorFlow

try:
    from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
    from sbi.utils.sbiutils import standardizing_net
except ImportError as error:
    raise ImportError("sbi is not installed: pip install 'tarflow[sbi]'") from error

SEEDS = 1 << 62  # seeds that a draw from the global generator chooses from
Build = Callable[[Tensor, Tensor], "FlowEstimator"]


class FlowEstimator(ConditionalDensityEstimator):  # type: ignore[misc, unused-ignore]
    """p(input | condition) of a `VectorFlow`, in the form of sbi's density estimators.

    Args:
        flow: the density, of vectors as long as an input, whose condition is what `embedding_net` makes.
        condition_shape: of one condition. embedding_net: from conditions (B, *condition_shape) to vectors (B, N).
    """

    def __init__(self, flow: VectorFlow, condition_shape: torch.Size, embedding_net: nn.Module) -> None:
        super().__init__(flow, torch.Size((flow.config.dim,)), condition_shape)
        self.flow = flow
        self._embedding_net = embedding_net

    @property
    def embedding_net(self) -> nn.Module:
        """What comes between a condition and the flow."""
        return self._embedding_net

    def log_prob(self, input: Tensor, condition: Tensor, **_: Any) -> Tensor:
        """log-density (S, B), nats, of inputs (S, B, N) or (B, N), given conditions (B, …) or (S, B, …)."""
        x, c, batch = self._broadcast_and_align(input, condition)
        embedded = self._embedding_net(c.reshape(-1, *self.condition_shape))
        log_prob: Tensor = self.flow.log_prob(x.reshape(-1, *self.input_shape), embedded)
        return log_prob.view(len(x), batch)

    def loss(self, input: Tensor, condition: Tensor, **_: Any) -> Tensor:
        """-log p of inputs (B, N) given conditions (B, …), nats, (B,)."""
        return -self.log_prob(input.unsqueeze(0), condition)[0]

    def sample(self, sample_shape: Any, condition: Tensor, **options: Any) -> Tensor:
        """Draw (*sample_shape, B, N) given conditions (B, …); torch's global generator decides on the seed."""
        return self.sample_and_log_prob(sample_shape, condition, **options)[0]

    @torch.no_grad()
    def sample_and_log_prob(self, sample_shape: Any, condition: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        """Draws (*sample_shape, B, N) given conditions (B, …), and their log-density (*sample_shape, B)."""
        shape = torch.Size(sample_shape)
        c = self._embedding_net(condition.reshape(-1, *self.condition_shape))
        seed = int(torch.randint(SEEDS, (), device="cpu", dtype=torch.int64))
        rows = c.repeat(shape.numel(), 1)
        if not len(rows):
            return rows.new_empty(*shape, len(c), *self.input_shape), rows.new_empty(*shape, len(c))
        x, log_prob = self.flow.sample_and_log_prob(len(rows), rows, seed)
        return x.view(*shape, len(c), *self.input_shape), log_prob.view(*shape, len(c))


def posterior(embedding_net: nn.Module | None = None, **fields: Any) -> Build:
    """What NPE takes as `density_estimator`: it makes p(theta | x) when the first simulations are there.

    Args:
        embedding_net: from simulated data (B, …), standardised, to vectors (B, N); trained along. None takes them as
            they are, which must be vectors then.
        fields: of `tarflow.VectorConfig`, such as width, or support for parameters that are bounded.
    """
    return lambda theta, x: _estimator(theta, x, embedding_net, fields)


def likelihood(embedding_net: nn.Module | None = None, **fields: Any) -> Build:
    """What NLE takes as `density_estimator`: it makes p(x | theta). Arguments are those of `posterior`, of theta."""
    return lambda theta, x: _estimator(x, theta, embedding_net, fields)


def _estimator(x: Tensor, c: Tensor, embedding_net: nn.Module | None, fields: dict[str, Any]) -> FlowEstimator:
    """An estimator of p(x|c), standardised by these rows."""
    if x.ndim != 2:
        raise ValueError(f"expected vectors (B, N) to have a density, got {tuple(x.shape)}")
    if embedding_net is None and c.ndim != 2:
        raise ValueError(f"expected vectors (B, N) to condition on, or an embedding_net, got {tuple(c.shape)}")
    network = nn.Sequential(standardizing_net(c), nn.Identity() if embedding_net is None else embedding_net)
    with torch.no_grad():
        size = network(c[:2]).shape
    if len(size) != 2:
        raise ValueError(f"embedding_net: expected vectors (B, N), got {tuple(size)}")
    flow = VectorFlow(x.shape[1], condition=size[1], device=x.device, **fields)
    flow.event.fit(x)
    return FlowEstimator(flow, c.shape[1:], network)

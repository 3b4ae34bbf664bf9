"""What a flow is trained on where there is a density, and no data or both: reverse KL, and a mixture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tarflow.fields import integer, real
from tarflow.model.sequence import SequenceFlow
from tarflow.sampling.decode import draw_noise, latents_of
from tarflow.sampling.implicit import decode_with_gradients
from tarflow.sampling.inverse import InverseFlow
from tarflow.sampling.solver import Solver


def rsample_and_log_prob(
    flow: SequenceFlow,
    n: int,
    c: Any = None,
    seed: int = 0,
    mask: Tensor | None = None,
    solver: Solver | str = "auto",
) -> tuple[Tensor, Tensor]:
    """Draw x (n, …) from a flow and log q(x|c) (n,), nats, both with gradients to the weights and to c.

    The gradient of x goes through the decode (`FlowDistribution.rsample`), that of log q through x and the weights.
    """
    c, mask = flow.check_condition(c, integer("n", n, 1)), flow.check_mask(mask, n)
    noise = draw_noise(flow, torch.arange(n, device="cpu", dtype=torch.int64), integer("seed", seed))
    x = flow.event.from_tokens(decode_with_gradients(flow, latents_of(flow, noise), c, solver, mask), mask)
    return x, flow.log_prob(x, c, mask=mask)


def reverse_kl(
    q: SequenceFlow | InverseFlow,
    log_target: Callable[[Tensor], Tensor],
    n: int,
    c: Any = None,
    seed: int = 0,
    mask: Tensor | None = None,
) -> Tensor:
    """KL(q‖p) - log Z of p = exp(log_target)/Z, by n draws of q: to be made small, where p is known and data are not.

        mean_i log q(x_i) - log p̃(x_i),    x_i ~ q, differentiable

    With a flow run in its other direction (`flow.inverse()`) that is one pass; with a flow, one fast decode, its
    gradient and one encode. Its least value is -log Z, the free energy. It forgives a q that leaves out modes of p.

    Args:
        q: what is trained. log_target: log p̃ (n,) of x (n, …), nats, differentiable.
        seed: of the draws; another one at every step.
        mask: (n, T) booleans, which tokens of a sequence are there; log_target sees zeros elsewhere.

    >>> import torch, tarflow
    >>> flow = tarflow.SequenceFlow(tarflow.SequenceConfig(tokens=4, dim=1, width=64, layers=(1, 1)))
    >>> loss = tarflow.reverse_kl(flow.inverse(), lambda x: -0.5 * (x - 1).square().sum((1, 2)), 64)
    >>> loss.backward()
    """
    draw = q.rsample_and_log_prob if isinstance(q, InverseFlow) else lambda *a: rsample_and_log_prob(q, *a)
    x, log_q = draw(n, c, seed, mask)
    log_p = log_target(x)
    if log_p.shape != log_q.shape:
        raise ValueError(f"log_target: expected {tuple(log_q.shape)}, one number a draw, got {tuple(log_p.shape)}")
    return (log_q - log_p).mean()


def mixed_kl(
    q: SequenceFlow | InverseFlow,
    log_target: Callable[[Tensor], Tensor],
    x: Tensor,
    n: int,
    share: float = 0.5,
    c: Any = None,
    seed: int = 0,
    mask: Tensor | None = None,
) -> Tensor:
    """Likelihood of draws of p, which find its modes, and reverse KL, which sharpens them.

        share · mean_i -log q(x_i)  +  (1 - share) · reverse_kl

    Args:
        x: (B, …), draws of p, such as those of a Markov chain; with a condition c or a mask B = n, and they are both's.
        share: of the first, 0 to 1. The other arguments are those of `reverse_kl`.
    """
    share = real("share", share, "a number from 0 to 1", lambda value: 0 <= value <= 1)
    likelihood = q.log_prob(x, c, mask=mask).mean()
    return -share * likelihood + (1 - share) * reverse_kl(q, log_target, n, c, seed, mask)

"""A flow run in its other direction: noise is encoded, so that drawing is one pass, and scoring is the decode."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tarflow.fields import integer
from tarflow.model.events import only
from tarflow.model.sequence import SequenceFlow
from tarflow.sampling.decode import draw_noise, latents_of
from tarflow.sampling.implicit import decode_with_gradients
from tarflow.sampling.solver import Solver


class InverseFlow(nn.Module):
    """The distribution of encode(u), u ~ N(0, V): what a flow makes of noise when it is run the other way.

        t, ladj = blocks(u),    x = event⁻¹(t)
        log q(x|c) = log N(u; 0, V) - Σ ladj + log|det ∂t/∂x|

    It is another density than the flow's own, with the same weights: an inverse autoregressive flow (arXiv
    1606.04934). Drawing with its log-density and gradients is one pass of the network, which is what reverse KL
    wants; `log_prob` of given x decodes. A flow that was trained this way is used this way: `flow.inverse()` again.

    Args:
        flow: its weights are shared, and are the parameters here.

    >>> import torch, tarflow
    >>> flow = tarflow.SequenceFlow(tarflow.SequenceConfig(tokens=4, dim=2, width=64, layers=(1, 1)))
    >>> q = flow.inverse()
    >>> x, log_q = q.rsample_and_log_prob(5)
    >>> x.shape, log_q.requires_grad, torch.allclose(q.log_prob(x), log_q, rtol=1e-4)
    (torch.Size([5, 4, 2]), True, True)
    """

    def __init__(self, flow: SequenceFlow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, u: Tensor, c: Any = None, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latents u (n, T, D) to x (n, …) and log q(x|c) (n,), nats, with gradients to u and to the weights.

        A mask (n, T) says which tokens are there, as in `flow.encode`; here and in all that follows.
        """
        flow = self.flow
        flow.check_latents(u, "u")
        c, mask = flow.check_condition(c, len(u)), flow.check_mask(mask, len(u))
        tokens, log_q = self._blocks(only(mask, flow.as_state(u)), c, mask)
        x = flow.event.from_tokens(tokens, mask)
        return x, (log_q + flow.event.to_tokens(x, mask)[1]).sum(dim=1)

    def _blocks(self, u: Tensor, c: Any, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Latents u (n, T, D) to the tokens that the blocks make of them, and their log-density by token, (n, T)."""
        tokens, log_q = u, only(mask, self.flow.base.log_prob(u))
        for block in self.flow.blocks:
            tokens, ladj = block.padded(mask).encode(tokens, c)
            log_q = log_q - ladj
        return tokens, log_q

    def rsample_and_log_prob(
        self, n: int, c: Any = None, seed: int = 0, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw x (n, …) and log q(x|c) (n,), differentiable; the noise of draw k is that of `tarflow.sample`."""
        numbers = torch.arange(integer("n", n, 1), device="cpu", dtype=torch.int64)
        return self(latents_of(self.flow, draw_noise(self.flow, numbers, integer("seed", seed))), c, mask)

    @torch.no_grad()
    def sample_and_log_prob(
        self, n: int, c: Any = None, seed: int = 0, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The same without gradients."""
        return self.rsample_and_log_prob(n, c, seed, mask)

    def sample(self, n: int, c: Any = None, seed: int = 0, mask: Tensor | None = None) -> Tensor:
        """Draw x (n, …), without gradients."""
        return self.sample_and_log_prob(n, c, seed, mask)[0]

    def log_prob(self, x: Tensor, c: Any = None, solver: Solver | str = "auto", mask: Tensor | None = None) -> Tensor:
        """log q(x|c) (B,), nats, of any x (B, …), with gradients to x, to c and to the weights.

        The latents are found by decoding, token after token or with a solver that iterates, within its tolerance.
        """
        flow = self.flow
        flow.event.check(x)
        c, mask = flow.check_condition(c, len(x)), flow.check_mask(mask, len(x))
        tokens, outside = flow.event.to_tokens(flow.as_state(x), mask)
        u = decode_with_gradients(flow, tokens, c, solver, mask)
        return (self._blocks(u, c, mask)[1] + outside).sum(dim=1)

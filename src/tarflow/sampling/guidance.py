"""Guidance: pushing each block's prediction away from an unguided branch.

The unguided branch knows less: it has no label (the null class), or, for models without classes, its attention logits
are divided by a temperature. Both branches go through the network in one batch. Guidance changes the distribution that
is sampled, and is no inverse of the flow; that is why it lives here and not in the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tarflow.fields import real
from tarflow.model.block import Block
from tarflow.model.cache import KVCache
from tarflow.model.condition import Condition, Value
from tarflow.model.context import Context
from tarflow.model.order import Padded
from tarflow.model.transform import Rule, Transform
from tarflow.sampling.cpu.step import HostStep
from tarflow.sampling.solver import Predict


@dataclass(frozen=True)
class Guidance:
    """How strongly, when and by which rule samples are guided.

    With v the parameters, `c` the guided and `u` the unguided branch, and strength g:

        rule "paper"    v = v_c + g (v_c - v_u)                                    TarFlow, arXiv 2412.06329
        rule "stable"   s = clip(σ_c²/σ_u², 0, 1),  σ = σ_c / √(1+g-gs),           STARFlow, arXiv 2506.06276, Prop. 2
                        μ = ((1+g) μ_c - g s μ_u) / (1+g-gs)

    The second knows what a shift and a scale are: it belongs to the affine and the additive transform.

    Attributes:
        scale: w ≥ 0. The paper's best are 1 to 3 with classes, and 0.2 with temperature 0.3 without.
        schedule: "linear", g_i = w·i/(T-1) for patch i of the block's own order, or "constant", g_i = w.
        temperature: τ > 0, divides the attention logits of the unguided branch.
        rule: "paper" or "stable".
    """

    scale: float = 2.0
    schedule: Literal["linear", "constant"] = "linear"
    temperature: float = 1.0
    rule: Literal["paper", "stable"] = "paper"

    def __post_init__(self) -> None:
        scale = real("guidance scale", self.scale, "a number of 0 or more", lambda value: value >= 0)
        warmth = real("guidance temperature", self.temperature, "a positive number", lambda value: value > 0)
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "temperature", warmth)
        if self.schedule not in ("linear", "constant"):
            raise ValueError(f"guidance schedule: expected 'linear' or 'constant', got {self.schedule!r}")
        if self.rule not in ("paper", "stable"):
            raise ValueError(f"guidance rule: expected 'paper' or 'stable', got {self.rule!r}")

    def __str__(self) -> str:
        """In words, such as `guidance 2 (linear, paper)`."""
        if not self.scale:
            return "no guidance"
        warm = "" if self.temperature == 1 else f", temperature {self.temperature:g}"
        return f"guidance {self.scale:g} ({self.schedule}, {self.rule}{warm})"

    def check(self, y: Value, condition: Condition, slots: int) -> None:
        """Raise ValueError where the two branches coincide, so that guidance would do nothing, silently.

        Args:
            y: checked values of the `condition`. slots: of a block, its tokens and its start token.
        """
        if self.scale == 0:
            return
        by_temperature = self.temperature != 1.0 and slots + condition.places > 2  # one key has none
        if not (condition.differs(y) or by_temperature):
            raise ValueError(
                f"guidance scale {self.scale}: both branches are the same here and nothing is guided; it takes a "
                "condition that is not null in all rows (of two classes at least), or three patches and a temperature "
                "other than 1"
            )

    def strength(self, places: Tensor, tokens: int | Tensor) -> Tensor | float:
        """g_i for patches at `places` of the block's own order; of a single one it is w."""
        if self.schedule == "constant" or (isinstance(tokens, int) and tokens == 1):
            return self.scale
        if isinstance(tokens, int):
            return self.scale * places / (tokens - 1)
        return torch.where(tokens == 1, self.scale, self.scale * places / (tokens - 1).clamp(min=1))


def active(guidance: Guidance | None) -> Guidance | None:
    """The guidance, or None where its scale is 0: then there is one branch, and none guides it."""
    return guidance if guidance is not None and guidance.scale != 0 else None


def guided_rows(guidance: Guidance | None, batch: int) -> int:
    """Sequences that go through the network for `batch` samples: both branches where there is guidance."""
    return batch if active(guidance) is None else 2 * batch


def branches(block: Block, y: Value, guidance: Guidance | None, batch: int) -> tuple[Context | None, Tensor | None]:
    """The context and the temperature (R,) of the sequences that go through the network.

    R is `guided_rows`: the guided ones before the unguided ones. None where there is no condition, no temperature.
    """
    context, guidance = block.context(y), active(guidance)
    if guidance is None:
        return context, None
    if context is not None:
        null = block.context(None)
        assert null is not None
        context = context.expand(batch).above(null.expand(batch))
    if guidance.temperature == 1.0:
        return context, None
    dtype = block.state_dtype
    temperature = torch.ones(2 * batch, device=block.position.device, dtype=dtype)
    temperature[batch:] = guidance.temperature
    return context, temperature


@dataclass(frozen=True)
class Guided:
    """The inverse of a block under guidance, of the parameters of both branches and the strength side by side."""

    transform: Transform
    rule: Rule

    @property
    def size(self) -> int:
        return 2 * self.transform.size + 1

    def inverse(self, z: Tensor, params: Tensor) -> Tensor:
        """z (B, n, D) and params (B, n, 2·size+1) to x (B, n, D)."""
        size = self.transform.size
        conditional, unguided, strength = params.split([size, size, 1], dim=-1)
        return self.transform.guided_inverse(z, conditional, unguided, strength, self.rule)


def inverse_of(block: Block, guidance: Guidance | None) -> Transform | Guided:
    """What makes x of z and the parameters that `side_by_side` gives."""
    guidance = active(guidance)
    return block.transform if guidance is None else Guided(block.transform, guidance.rule)


def side_by_side(block: Block, params: Tensor, guidance: Guidance | None, places: Tensor) -> Tensor:
    """Parameters (R, n, size) of all branches to what `inverse_of` takes, (B, n, …), of slots `places` (n,)."""
    guidance = active(guidance)
    if guidance is None:
        return params
    conditional, unguided = params.chunk(2)
    tokens = places.to(params.dtype).view(-1, 1) - int(block.config.start_token)
    count = block.order.counts.view(-1, 1, 1) if isinstance(block.order, Padded) else block.config.tokens
    strength = torch.zeros_like(conditional[..., :1]) + guidance.strength(tokens, count)
    return torch.cat([conditional, unguided, strength], dim=-1)


def predictor_of(block: Block, conditioner: Callable[[Tensor, int], Tensor], guidance: Guidance | None) -> Predict:
    """What a solver sees of a block, with what evaluates its conditioner for all branches: (R, n, size)."""
    inverse = inverse_of(block, guidance)
    if active(guidance) is None:
        return Predict(conditioner, inverse)

    def evaluate(x: Tensor, start: int) -> Tensor:
        params = conditioner(torch.cat([x, x]), start)
        places = torch.arange(start + 1, start + 1 + x.shape[1], device=x.device, dtype=params.dtype)
        return side_by_side(block, params, guidance, places)

    return Predict(evaluate, inverse)


def predictor(block: Block, y: Value, guidance: Guidance | None, cache: KVCache) -> Predict:
    """A block with its values of the condition, guidance and cache as the one function that a solver sees.

    The cache must have been made for `guided_rows` sequences. Where `HostStep` can stand in for the block's
    conditioner, it does.
    """
    rows = cache.keys.shape[1]
    batch = rows if guided_rows(guidance, 1) == 1 else rows // 2
    context, temperature = branches(block, y, guidance, batch)
    network = block.repeated(rows // batch) if batch else block
    if HostStep.fits(network, cache):
        return predictor_of(block, HostStep(network, context, cache, temperature), guidance)

    def conditioner(x: Tensor, start: int) -> Tensor:
        return network.conditioner(x, context, start, cache, temperature)

    return predictor_of(block, conditioner, guidance)

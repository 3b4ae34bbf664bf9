"""What follows given what is observed: exact where all blocks walk in one order, as they do for time series."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution, constraints

from tarflow.fields import integer
from tarflow.model.block import Block
from tarflow.model.checks import check_tensor
from tarflow.model.events import only
from tarflow.model.sequence import SequenceFlow
from tarflow.model.support import Preprocessing
from tarflow.sampling.decode import default_batch_size, draw_noise, draw_seed, latents_of
from tarflow.sampling.guidance import predictor
from tarflow.sampling.sample import check_finite
from tarflow.sampling.solver import Solver, solver_of


class Observed(Distribution):
    """p(future | past, c) of a flow whose blocks all walk in one direction; `flow.condition(past, c)` makes one.

    The latents of the past are its own, and those of the future are drawn:

        log p(future | past) = Σ_{i ≥ k} log N(z_i; 0, V_i) + ladj_i      of tokens k … T-1

    `event_shape` is that of the future, `batch_shape` that of the pasts. Of images the past are the upper rows, of
    sequences the first tokens, of vectors the first numbers: whole tokens in each case.

    Args:
        past: (…, as an event, but shorter along one axis). c: None, one value, or one for each past.
        mask: (T,) or (…, T) booleans, which tokens of a sequence are there, of its past and of its future; draws are 0
            elsewhere.

    Raises:
        ValueError: blocks that walk in several orders; a past that is no whole number of tokens.

    >>> import torch, tarflow
    >>> config = tarflow.SequenceConfig(tokens=6, dim=2, width=64, layers=(1, 1), orders=("raster", "raster"))
    >>> flow = tarflow.SequenceFlow(config)
    >>> p = flow.condition(torch.zeros(4, 2))  # the first 4 of 6 tokens
    >>> future = p.sample(3)
    >>> future.shape, p.log_prob(future).shape
    (torch.Size([3, 2, 2]), torch.Size([3]))
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}  # the flow checks its condition

    def __init__(self, flow: SequenceFlow, past: Tensor, c: Any = None, mask: Tensor | None = None) -> None:
        if common_order(flow) is None or not flow.blocks[0].order.is_raster:
            raise ValueError(
                "condition: expected a flow whose blocks all walk in raster order (TarFlowConfig(order='causal'), "
                f"SequenceConfig(orders=('raster',) * {len(flow.blocks)})), got orders {flow.sequence.orders}; "
                "tarflow.inpaint draws given any part, by Markov chains"
            )
        check_tensor("prefix", past, f"the beginning of {flow.event.meaning} (…, {_words(flow.event.shape)})")
        self.flow = flow
        self.axis, self.tokens = _part(flow, tuple(past.shape))
        axes = len(flow.event.shape)
        batch, shape = past.shape[: past.ndim - axes], list(flow.event.shape)
        shape[self.axis] -= past.shape[self.axis - axes]
        self.past = flow.as_state(past.detach().to(flow.device)).reshape(-1, *past.shape[past.ndim - axes :])
        rows, given = flow.conditions.flatten(c)
        if rows is not None and given.numel() == 1:
            rows = flow.conditions.repeat(rows, len(self.past))
        elif rows is not None and given != batch:
            raise ValueError(f"c: expected one value, or one for each past {tuple(batch)}, got {tuple(given)}")
        self.c = flow.check_condition(rows, len(self.past))
        if mask is not None:
            check_tensor("mask", mask, f"(…, {flow.sequence.tokens}) booleans, True where a token is there")
            whole = mask.shape[:-1] == batch
            mask = mask.reshape(-1, mask.shape[-1]) if whole and batch else mask.expand(len(self.past), *mask.shape)
        self.mask = flow.check_mask(mask, len(self.past))
        super().__init__(batch, torch.Size(shape), validate_args=False)

    @property
    def support(self) -> Any:
        """Where futures may lie: of a vector the supports of its last numbers."""
        preprocessing = self.flow.event.preprocessing
        numbers: constraints.Constraint = constraints.real
        if preprocessing is not None:
            names = preprocessing.names[-self.event_shape[-1] :]
            numbers = Preprocessing(names, len(names), False).constraint
        return constraints.independent(numbers, len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(future | past, c), nats, of futures (…, *batch_shape, *event_shape); gradients flow to them."""
        check_tensor("value", value, f"(…, {_words(self.event_shape)})")
        shape, whole = value.shape[: value.ndim - len(self.event_shape)], self.batch_shape + self.event_shape
        if value.shape[max(0, value.ndim - len(whole)) :] != whole:
            raise ValueError(f"value: expected (…, {_words(whole)}), got {tuple(value.shape)}")
        future = value.reshape(-1, *self.event_shape)
        past, c, mask = self._repeated(len(future))
        x = torch.cat([past.to(future.device), self.flow.as_state(future)], dim=self.axis + 1)
        return self.flow.log_prob_by_token(x, c, mask=mask)[:, self.tokens :].sum(dim=1).reshape(shape)

    def sample(self, sample_shape: Sequence[int] | int = ()) -> Tensor:
        """Draw (*sample_shape, *batch_shape, *event_shape), without gradients; a number is a shape, too.

        One number from torch's global generator is the seed, as in `FlowDistribution.sample`.
        """
        sample_shape = (integer("n", sample_shape, 0),) if isinstance(sample_shape, int) else sample_shape
        shape = torch.Size(sample_shape) + self.batch_shape
        seed = draw_seed()
        past, c, mask = self._repeated(shape.numel())
        whole = futures(self.flow, _filled(self.flow, past, self.axis), self.tokens, c, seed, mask=mask)
        future = whole.narrow(self.axis + 1, past.shape[self.axis + 1], self.event_shape[self.axis])
        return future.reshape(*shape, *self.event_shape)

    def _repeated(self, count: int) -> tuple[Tensor, Any, Tensor | None]:
        """The pasts, conditions and masks, one after the other, again and again: `count` rows."""
        index = torch.arange(count, device=self.past.device, dtype=torch.int64) % max(1, len(self.past))
        mask = None if self.mask is None else self.mask[index]
        return self.past[index], self.flow.conditions.rows(self.c, index), mask

    def __repr__(self) -> str:
        return f"Observed(batch_shape: {tuple(self.batch_shape)}, event_shape: {tuple(self.event_shape)})"


def common_order(flow: SequenceFlow) -> tuple[int, ...] | None:
    """The permutation by which all blocks walk; None where they differ."""
    walks = {block.order.permutation for block in flow.blocks}
    return walks.pop() if len(walks) == 1 else None


@torch.no_grad()
def futures(
    flow: SequenceFlow,
    x: Tensor,
    known: int,
    c: Any = None,
    seed: int = 0,
    solver: Solver | str = "auto",
    mask: Tensor | None = None,
) -> Tensor:
    """x (B, …) with all but its first `known` tokens drawn anew given those, in the one order of all blocks: exact.

    Each block finds the tokens that follow given the known ones, which go through it once: their keys and values are in
    the cache when the solver begins. The noise of row k is a function of (seed, k), as in `tarflow.sample`.

    Args:
        known: 1 … T-1, or 0 with a start token. c, mask: checked values, and which tokens are there.
    """
    solver = solver_of(solver)
    size = min(default_batch_size(flow, None), max(1, len(x)))
    solvers = solver.by_block(flow, None, size, len(x) / size)
    drawn = torch.empty_like(flow.as_state(x))
    for known_there, rows in _alike(flow, known, len(x), mask):
        for part in rows.split(size):
            index = part.to(x.device)
            own, there = flow.conditions.rows(c, index), None if mask is None else mask[index]
            drawn[index] = _followed(flow, x[index], known_there, own, draw_noise(flow, part, seed), solvers, there)
    return check_finite(drawn, "draw {}", "the past leads where the model was not trained")


def _alike(flow: SequenceFlow, known: int, count: int, mask: Tensor | None) -> Iterator[tuple[int, Tensor]]:
    """How many of the known tokens are there, and the numbers of the rows of which that is so."""
    rows = torch.arange(count, device="cpu", dtype=torch.int64)
    if mask is None:
        yield from [(known, rows)] if count else []
        return
    there = flow.blocks[0].order.forward(mask)[:, :known].sum(dim=1).cpu()
    for each in there.unique().tolist():
        yield each, rows[there == each]


def _followed(
    flow: SequenceFlow,
    x: Tensor,
    known: int,
    c: Any,
    noise: Tensor,
    solvers: Sequence[Solver],
    mask: Tensor | None,
) -> Tensor:
    """What `futures` does with rows of which the same number of known tokens is there."""
    blocks = [block.padded(mask) for block in flow.blocks]
    order = blocks[0].order
    stage, _ = flow.event.to_tokens(flow.as_state(x), mask)
    given = []  # of each block, the known tokens that go into it, in its own order
    for block in blocks:
        given.append(order.forward(stage)[:, :known])
        stage, _ = block.encode(order.inverse(_padded(given[-1], flow.sequence.tokens)), c)
    rest = order.forward(latents_of(flow, noise))[:, known:].to(stage.dtype)
    there = None if mask is None else order.forward(mask)[:, known:]
    for block, before, each in zip(reversed(blocks), reversed(given), solvers, strict=True):
        rest = only(there, _following(block, before, only(there, rest), c, each))
    return flow.event.from_tokens(order.inverse(torch.cat([given[0], rest], dim=1)), mask)


def _following(block: Block, known: Tensor, z: Tensor, c: Any, solver: Solver) -> Tensor:
    """Tokens (B, n, D) of latents z (B, n, D) after known tokens (B, k, D), all in the block's own order."""
    inside = torch.cat([block.mixed(known), z], dim=1)
    if block.start is not None:
        inside = F.pad(inside, (0, 0, 1, 0))
    last = inside.shape[1] - z.shape[1] - 1  # the last known slot: what a solver takes for its first token
    predict = predictor(block, c, None, block.new_cache(len(z)))
    if last:
        predict(inside[:, :last], 0)
    evaluate = predict.evaluate
    shifted = dataclasses.replace(predict, evaluate=lambda x, start: evaluate(x, start + last))
    return block.unmixed(solver.solve(shifted, inside[:, last:]).x[:, 1:])


def _padded(tokens: Tensor, length: int) -> Tensor:
    """Tokens (B, k, D) and zeros behind them, which those do not see: (B, length, D)."""
    return F.pad(tokens, (0, 0, 0, length - tokens.shape[1]))


def _filled(flow: SequenceFlow, past: Tensor, axis: int) -> Tensor:
    """The past (B, …) as whole events, with its own last slice again and again behind it: within the support."""
    missing = flow.event.shape[axis] - past.shape[axis + 1]
    return torch.cat([past, *[past.narrow(axis + 1, past.shape[axis + 1] - 1, 1)] * missing], dim=axis + 1)


def _part(flow: SequenceFlow, shape: tuple[int, ...]) -> tuple[int, int]:
    """Along which axis of an event a past of this shape is shorter, and how many tokens it has."""
    event = flow.event.shape
    own = shape[len(shape) - len(event) :]
    shorter = [axis for axis, (part, whole) in enumerate(zip(own, event, strict=False)) if part != whole]
    if len(own) == len(event) and len(shorter) == 1 and 0 < own[shorter[0]] < event[shorter[0]]:
        axis = shorter[0]
        mask = torch.zeros(1, *event, device="cpu", dtype=torch.float32)
        mask.narrow(axis + 1, 0, own[axis]).fill_(1)
        there = flow.event.cut(mask)[0]  # (T, D)
        count = int(there.amin(dim=1).sum())
        if bool(there[:count].all()) and not bool(there[count:].any()):
            return axis, count
    raise ValueError(
        f"prefix: expected the first tokens of {flow.event.meaning} (…, {_words(event)}), whole and in raster order, "
        f"shorter along one axis, got {shape}"
    )


def _words(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))

"""The flow as a `torch.distributions.Distribution`: `log_prob`, `sample`, batch and event shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from tarflow.fields import integer
from tarflow.inference.estimate import Estimate
from tarflow.model.checks import check_tensor
from tarflow.model.condition import Value
from tarflow.model.sequence import SequenceFlow
from tarflow.sampling.decode import default_batch_size, draw_noise, draw_seed, latents_of
from tarflow.sampling.implicit import decode_with_gradients
from tarflow.sampling.sample import check_finite, sample


class FlowDistribution(Distribution):
    """p(x|y) of a flow; `flow.distribution(y)` makes one.

    `event_shape` and `support` are those of `flow.event`, (C, H, W) for images, and `batch_shape` is the shape of the
    labels, broadcast with that of the masks where there are any. There is no guidance here, which is no density, and no
    denoising: of a model of noisy images these are the noisy images, and `tarflow.denoise` cleans them. Works in
    `Independent`, `TransformedDistribution` and `MixtureSameFamily`; the last one over all classes is the marginal
    `log mean_y p(x|y)`.

    Moments, entropy and divergences are not known in closed form. `entropy(n)` and `kl(q, n)` estimate them from draws
    and say how well; `entropy()` and `torch.distributions.kl_divergence`, which promise a number without an error,
    raise NotImplementedError, as torch's own do where there is no formula.

    Args:
        flow: the model; not copied, so training it changes the distribution.
        y: integer labels of any shape, or one int; -1 (`NULL_CLASS`) is the null class. None is the null class too, and
            `batch_shape` is ().
        validate_args: None as everywhere in torch.distributions. Labels are checked always, values in `log_prob` where
            it is on.
        mask: (…, T) booleans, which tokens of a sequence are there; draws are 0 elsewhere, and there is nothing that
            values hold looked at.

    Raises:
        ValueError: labels that are no classes of this model, or a mask of a flow that takes none.

    >>> import torch, tarflow
    >>> from torch.distributions import Categorical, MixtureSameFamily
    >>> config = tarflow.TarFlowConfig(8, channels=1, patch_size=2, width=64, layers=(1, 1), num_classes=3)
    >>> p = tarflow.TarFlow(config).distribution(torch.arange(3))
    >>> p.batch_shape, p.event_shape
    (torch.Size([3]), torch.Size([1, 8, 8]))
    >>> p.sample((5,)).shape                          # five images of every class
    torch.Size([5, 3, 1, 8, 8])
    >>> x = torch.zeros(7, 1, 8, 8)
    >>> p.log_prob(x.unsqueeze(1)).shape              # every image under every class
    torch.Size([7, 3])
    >>> MixtureSameFamily(Categorical(torch.ones(3)), p).log_prob(x).shape
    torch.Size([7])
    """

    # Labels are checked by the flow, which knows its classes.
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = True

    def __init__(
        self, flow: SequenceFlow, y: Any = None, validate_args: bool | None = None, mask: Tensor | None = None
    ) -> None:
        self.flow = flow
        rows, batch_shape = flow.conditions.flatten(y)
        rows = flow.check_condition(rows, batch_shape.numel())
        index = _numbers(batch_shape)
        self.there: Tensor | None = None  # the mask; `mask` is a method of pyro's distributions
        if mask is not None:
            check_tensor("mask", mask, f"(…, {flow.sequence.tokens}) booleans, True where a token is there")
            mask = torch.atleast_1d(mask)
            leading = mask.shape[:-1]
            batch_shape = broadcast(leading, batch_shape, "mask")
            there = cast("Tensor", flow.check_mask(mask.reshape(leading.numel(), mask.shape[-1]), leading.numel()))
            self.there = there[_numbers(leading).expand(batch_shape).reshape(-1).to(there.device)]
            rows = flow.conditions.rows(rows, index.expand(batch_shape).reshape(-1))
            index = _numbers(batch_shape)
        self.y, self.rows = rows, index  # values of the condition, and which of them each element of the batch has
        super().__init__(batch_shape, torch.Size(flow.event.shape), validate_args)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """Where values may lie: that of the event. Outside of it `log_prob` is -∞, or ValueError where validated."""
        support = self.flow.event.support
        return support if self.there is None else _WhereThere(self.flow, support, self.there[self.rows])

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> FlowDistribution:
        """The same distribution with labels repeated to `batch_shape`."""
        new = self._get_checked_instance(FlowDistribution, _instance)
        new.flow, new.there = self.flow, self.there
        new.y, new.rows = self.y, self.rows.expand(batch_shape)
        super(FlowDistribution, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(x|y), nats, for x (..., *event_shape) with a leading shape that is broadcast with `batch_shape`.

        All of them go through the network at once. Gradients flow to x and to the weights.

        Raises:
            ValueError: values of another size or dtype, a shape that does not broadcast, or (where validated) NaN and
                what is outside of the support.
        """
        axes = len(self.event_shape)
        expected = f"{self.flow.event.meaning} (..., {', '.join(map(str, self.event_shape))})"
        check_tensor("value", value, expected)
        if value.ndim < axes or value.shape[-axes:] != self.event_shape:
            raise ValueError(f"value: expected {expected}, got {tuple(value.shape)}")
        if self._validate_args and value.numel():  # torch's check cannot reshape nothing
            self._validate_sample(value)
        shape = broadcast(value.shape[:-axes], self.batch_shape, "value")
        x = value.expand(*shape, *self.event_shape).reshape(shape.numel(), *self.event_shape)
        return self.flow.log_prob(x, self._values(shape), mask=self._there(shape)).reshape(shape)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw (*sample_shape, *batch_shape, *event_shape), detached, as fast as `tarflow.sample`.

        One number from torch's global generator (of the CPU, whatever the device) is the seed of `tarflow.sample`:
        `torch.manual_seed` makes it reproducible, and successive calls differ.

        Raises:
            tarflow.SamplingError: an image was not finite, time and again.
        """
        shape, seed = torch.Size(sample_shape) + self.batch_shape, draw_seed()
        if shape.numel() == 0:
            dtype = torch.promote_types(self.flow.dtype, torch.float32)
            return torch.empty(*shape, *self.event_shape, dtype=dtype, device=self.flow.device)
        x = sample(self.flow, shape.numel(), self._values(shape), seed=seed, mask=self._there(shape))
        return x.reshape(*shape, *self.event_shape)

    def sample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """The same with log p(x|y) of each, (*sample_shape, *batch_shape), as `flow.sample_and_log_prob` has it."""
        shape, seed = torch.Size(sample_shape) + self.batch_shape, draw_seed()
        x, log_p = self.flow.sample_and_log_prob(shape.numel(), self._values(shape), seed, mask=self._there(shape))
        return x.reshape(*shape, *self.event_shape), log_p.reshape(shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw as `sample` does, with gradients to the weights, and to conditions that are numbers.

        They are exact, and cost some evaluations of each block, one block's at a time in memory, instead of the T steps
        of decoding (`sampling.implicit`). Nothing can be differentiated twice.

        Raises:
            tarflow.SamplingError: an image was not finite; nothing is drawn again here.
        """
        shape, seed = torch.Size(sample_shape) + self.batch_shape, draw_seed()
        if shape.numel() == 0:
            return self.sample(sample_shape)
        noise = draw_noise(self.flow, torch.arange(shape.numel(), device="cpu", dtype=torch.int64), seed)
        there = self._there(shape)
        tokens = decode_with_gradients(self.flow, latents_of(self.flow, noise), self._values(shape), mask=there)
        x = self.flow.event.from_tokens(tokens, there)
        return check_finite(x, "draw {}", "bound the log-scale").reshape(*shape, *self.event_shape)

    def entropy(self, n: int | None = None) -> Estimate:  # type: ignore[override]
        """-E log p(x|y), nats, (*batch_shape), from n draws, with its standard error.

        Without n this is torch's method, for which there is no formula: NotImplementedError.
        """
        if n is None:
            raise NotImplementedError("a flow's entropy has no formula: p.entropy(n) estimates it from n draws")
        return Estimate.of(-self.sample_and_log_prob((integer("n", n, 2),))[1])

    @torch.no_grad()
    def kl(self, q: Distribution, n: int) -> Estimate:
        """KL(p‖q) = E_p log p(x|y) - log q(x), nats, (*batch_shape), from n draws of p, with its standard error.

        Infinite where p draws what q has no density for. Their expectation is never negative; an estimate may be.

        Args:
            q: over the same events; its `batch_shape` is that of p, or broadcasts to it.
        """
        x, log_p = self.sample_and_log_prob((integer("n", n, 2),))
        rows = max(1, default_batch_size(self.flow, None) // max(1, self.batch_shape.numel()))
        return Estimate.of(log_p - torch.cat([q.log_prob(part) for part in x.split(rows)]))

    @property
    def mean(self) -> Tensor:
        """It has no formula: NotImplementedError, as `variance` and `stddev`."""
        raise NotImplementedError("a flow's mean has no formula: p.sample((n,)).mean(dim=0) estimates it")

    @property
    def variance(self) -> Tensor:
        raise NotImplementedError("a flow's variance has no formula: p.sample((n,)).var(dim=0) estimates it")

    def _values(self, shape: torch.Size) -> Value:
        """The values of the condition, for as many rows as `shape` has."""
        return self.flow.conditions.rows(self.y, self.rows.expand(shape).reshape(-1))

    def _there(self, shape: torch.Size) -> Tensor | None:
        """The masks of as many rows."""
        return None if self.there is None else self.there[self.rows.expand(shape).reshape(-1).to(self.there.device)]

    def __repr__(self) -> str:
        return f"FlowDistribution(batch_shape: {tuple(self.batch_shape)}, event_shape: {tuple(self.event_shape)})"


class _WhereThere(constraints.Constraint):
    """A constraint on the tokens (…, T, D) that a mask (…, T) says are there; whatever lies elsewhere is allowed."""

    def __init__(self, flow: SequenceFlow, base: constraints.Constraint, mask: Tensor) -> None:
        self.flow, self.base, self.there = flow, base, mask
        self.event_dim, self.is_discrete = base.event_dim, base.is_discrete
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        return self.base.check(self.flow.event.filled(value, self.there.to(value.device)))


def broadcast(shape: torch.Size, batch_shape: torch.Size, name: str) -> torch.Size:
    """The two shapes broadcast; ValueError, which begins with `name`, where they do not."""
    try:
        return torch.broadcast_shapes(shape, batch_shape)
    except RuntimeError:  # what torch's own check says, where it is asked to
        raise ValueError(f"{name}: leading shape {tuple(shape)} does not broadcast with {tuple(batch_shape)}") from None


def _numbers(shape: torch.Size) -> Tensor:
    """0, 1, … in this shape."""
    return torch.arange(shape.numel(), device="cpu", dtype=torch.int64).view(shape)

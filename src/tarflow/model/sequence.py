"""The flow on sequences: a stack of blocks between the tokens of an event and a base distribution."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from tarflow import storage
from tarflow.config import to_dict
from tarflow.model.base import BASES, Normal
from tarflow.model.block import Block
from tarflow.model.checks import check_batch, check_mask
from tarflow.model.condition import Value, make_condition
from tarflow.model.config import SequenceConfig
from tarflow.model.events import Tokens, only
from tarflow.model.saving import CONFIG_FILE, WEIGHTS_FILE, load_weights, read_model, with_kind
from tarflow.model.summary import summary
from tarflow.pretrained import located
from tarflow.tensor_files import save_tensors

if TYPE_CHECKING:
    from tarflow.sampling.distribution import FlowDistribution
    from tarflow.sampling.inverse import InverseFlow
    from tarflow.sampling.observed import Observed
    from tarflow.training.fitted import Fit

RANGE = 0.4  # the exponent of the largest number that `in_range` lets through


class SequenceFlow(nn.Module):
    """A normalizing flow on sequences x (B, T, D) with an exact density, TarFlow, arXiv 2412.06329.

        log p(x|y) = Σ_i log N(z_i; 0, V_i) + Σ_blocks ladj_i,    z, ladj = encode(x, y)

    Each block transforms every token in view of those before it, in an order of its own. The condition y is None for
    the null one, or has a row for each sequence. State and density are float32 at least.

    Attributes:
        config, sequence: what it was made from, and its architecture; the same where x are tokens already.
        event: what x is, and how it becomes tokens. conditions: what y is. base: the distribution of z.

    >>> import torch, tarflow
    >>> config = tarflow.SequenceConfig(tokens=6, dim=2, width=64, layers=(1, 1), orders=("raster", "random:1"))
    >>> flow = tarflow.SequenceFlow(config)
    >>> x = torch.zeros(5, 6, 2)
    >>> flow.log_prob(x).shape
    torch.Size([5])
    >>> z, ladj = flow.encode(x)
    >>> flow.decode(z).shape, tarflow.sample(flow, 3).shape
    (torch.Size([5, 6, 2]), torch.Size([3, 6, 2]))
    """

    config_type: ClassVar[type] = SequenceConfig
    kind: ClassVar[str] = "sequences"
    """What config.json says that it is, by which `tarflow.from_pretrained` knows the class."""

    @torch.inference_mode(False)  # where weights would be made that nothing can be differentiated through
    def __init__(
        self, config: Any, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """New weights, from torch's global generator; where and in which dtype as any module's: None is torch's own."""
        super().__init__()
        self.config = config
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.sequence, self.event = self._adapted(config, **made)
        self.conditions = make_condition(self.sequence.condition, **made)
        blocks = (Block(self.sequence, index, self.conditions, **made) for index in range(len(self.sequence.layers)))
        self.blocks = cast("list[Block]", nn.ModuleList(blocks))  # which has no type for its elements
        self.base: Normal = BASES[self.sequence.base](self.sequence.tokens, self.sequence.dim, **made)

    @staticmethod
    def _adapted(config: Any, **made: Any) -> tuple[SequenceConfig, Tokens]:
        """The architecture and the event that a config comes to: what an adapter overrides, with `config_type`."""
        return config, Tokens((config.tokens, config.dim), config.support, config.standardise, **made)

    def __repr__(self) -> str:
        """What it is, in a few lines; its modules one by one are printed by `flow.blocks`."""
        return summary(self)

    @property
    def device(self) -> torch.device:
        return self.blocks[0].position.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.blocks[0].dtype

    @property
    def in_inference_mode(self) -> bool:
        """Whether some weights were made in `torch.inference_mode`, by a copy or a cast there: no gradient flows."""
        return any(tensor.is_inference() for tensor in (*self.parameters(), *self.buffers()))

    @torch.inference_mode(False)  # a copy or a cast is a flow as good as the first, wherever it was made
    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        new = memo[id(self)] = type(self).__new__(type(self))
        new.__dict__ = copy.deepcopy(self.__dict__, memo)
        return new

    @torch.inference_mode(False)
    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        return super()._apply(fn, recurse)

    # --- the flow ------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, y: Value = None, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z (B, T, D) and ladj by token (B, T): what training calls.

        Nothing is checked, which would wait for the device, and no row is kept within the range of the network, because
        training skips a batch that is not finite.
        """
        z, ladj = self.event.to_tokens(self.as_state(x), mask)
        for block in self.blocks:
            z, block_ladj = block.padded(mask).encode(z, y)
            ladj = block_ladj + ladj
        return z, cast("Tensor", ladj)

    def encode_in_range(self, x: Tensor, y: Value = None, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `encode`, by token and unchecked: z (B, T, D) and ladj (B, T).

        Rows that leave the range of the network go on through the blocks as zeros, which overflow nowhere.
        """
        tokens, ladj = self.event.to_tokens(self.as_state(x), mask)
        z, inside = self.in_range(tokens)
        for block in self.blocks:
            z, block_ladj = block.padded(mask).encode(z, y)
            ladj = block_ladj.to(z.dtype) + ladj
            z, still = self.in_range(z)
            inside = inside & still
        outside = torch.where(tokens.isnan().flatten(1).any(dim=1), torch.nan, torch.inf).to(z.dtype)
        z = only(mask, torch.where(inside.view(-1, 1, 1), z, outside.view(-1, 1, 1)))
        return z, torch.where(inside.view(-1, 1), ladj, 0)

    def encode(self, x: Tensor, y: Value = None, *, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (B, …) to latents z (B, T, D) and ladj = log|det ∂z/∂x| (B,), nats.

        A mask (B, T) says which tokens are there, in a flow on sequences with a start token: the others are padding,
        which changes nothing, and z and x are 0 there. The same holds wherever there is a `mask`.

        A row so far from the data that the network leaves the range of its numbers, or outside of the support, has
        z = ∞ and ladj = 0, and no gradient: a density of 0. NaN stays NaN.
        """
        self.event.check(x)
        z, ladj = self.encode_in_range(x, self.check_condition(y, x.shape[0]), self.check_mask(mask, x.shape[0]))
        return z, ladj.sum(dim=1)

    def in_range(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z (B, T, D) with zeros for the rows that are not within the range of the network, and which are: (B,).

        The range is ± the largest number to the power of 0.4, 2.6e15 in float32: its square is far from overflowing,
        and so are the sums in a norm. In float16 it is ±1000, of which a product may well overflow.
        """
        inside = z.abs().amax(dim=(1, 2)) <= max(torch.finfo(self.dtype).max ** RANGE, 1e3)
        return torch.where(inside.view(-1, 1, 1), z, 0), inside

    def decode(self, z: Tensor, y: Value = None, *, mask: Tensor | None = None) -> Tensor:
        """Latents z (B, T, D) to x (B, …): the exact inverse of `encode`, by the slow reference.

        `tarflow.sample(flow, n, noise=flow.base.standardised(z))` does the same many times faster.
        """
        self.check_latents(z)
        y, mask = self.check_condition(y, z.shape[0]), self.check_mask(mask, z.shape[0])
        x = only(mask, self.as_state(z))
        for block in reversed(self.blocks):
            x = block.padded(mask).decode(x, y)
        return self.event.from_tokens(x, mask)

    def log_prob(self, x: Tensor, y: Value = None, *, mask: Tensor | None = None) -> Tensor:
        """log p(x|y), the log-density at x, nats, shape (B,). Gradients flow to x and to the weights.

        -∞, without a gradient, where a finite x is outside of `event.support`, an end of it included, or beyond the
        range of the network; NaN only where x holds one.
        """
        return self.log_prob_by_token(x, y, mask=mask).sum(dim=1)

    def log_prob_by_token(self, x: Tensor, y: Value = None, *, mask: Tensor | None = None) -> Tensor:
        """What each token adds to log p(x|y), nats, (B, T).

            c_i = log N(z_i; 0, V_i) + Σ_blocks ladj_i,      Σ_i c_i = log p(x|y)

        With several blocks c_i is no conditional density of token i: later blocks mix what earlier ones made.
        """
        self.event.check(x)
        y, mask = self.check_condition(y, x.shape[0]), self.check_mask(mask, x.shape[0])
        z, ladj = self.encode_in_range(x, y, mask)
        return only(mask, self.base.log_prob(z) + ladj)

    def distribution(self, y: Any = None, validate_args: bool | None = None, mask: Any = None) -> FlowDistribution:
        """p(x|y) as a `torch.distributions.Distribution`, for code that is written against that interface.

        Labels of any shape are its `batch_shape`; None is the null class and `batch_shape` (). See
        `tarflow.FlowDistribution`, also for `validate_args` and a `mask` (…, T).

        >>> import torch, tarflow
        >>> flow = tarflow.TarFlow(tarflow.TarFlowConfig(8, channels=1, patch_size=2, width=64, layers=(1, 1)))
        >>> p = flow.distribution()
        >>> x = p.sample((4,))
        >>> x.shape, p.log_prob(x).shape
        (torch.Size([4, 1, 8, 8]), torch.Size([4]))
        """
        # The one import that points down the list of rooms (tests/test_imports.py): drawing x fast is a matter of
        # sampling/, and whoever calls this asks for that. It runs at the call; nothing here depends on it.
        from tarflow.sampling.distribution import FlowDistribution

        return FlowDistribution(self, y, validate_args, mask)

    def sample_and_log_prob(
        self, n: int, c: Any = None, seed: int = 0, solver: Any = "auto", batch_size: Any = None, mask: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Draw x (n, …) as `tarflow.sample` does, and log q(x|c) (n,), nats, without gradients: `log_prob(x, c)`.

        Where a solver predicts each token once (the sequential one), that comes out of decoding, at no second pass. A
        solver that iterates leaves x with other latents than were drawn, within its tolerance: there x is encoded.

        >>> import torch, tarflow
        >>> flow = tarflow.TarFlow(tarflow.TarFlowConfig(8, channels=1, patch_size=2, width=64, layers=(1, 1)))
        >>> x, log_q = flow.sample_and_log_prob(3)
        >>> x.shape, torch.allclose(log_q, flow.log_prob(x), rtol=1e-4)
        (torch.Size([3, 1, 8, 8]), True)
        """
        from tarflow.sampling.sample import sample_and_log_prob  # as above

        return sample_and_log_prob(self, n, c, seed, solver, batch_size, mask)

    def inverse(self) -> InverseFlow:
        """This flow in its other direction: x and log q(x) by one differentiable pass; see `tarflow.InverseFlow`."""
        from tarflow.sampling.inverse import InverseFlow  # as above

        return InverseFlow(self)

    def condition(self, prefix: Tensor, c: Any = None, mask: Any = None) -> Observed:
        """p(future | prefix, c), exactly, where all blocks walk in raster order; `tarflow.Observed` says more.

        >>> import torch, tarflow
        >>> config = tarflow.TarFlowConfig(8, channels=1, patch_size=2, width=64, layers=(1, 1), order="causal")
        >>> p = tarflow.TarFlow(config).condition(torch.zeros(1, 4, 8))  # the upper half of an image
        >>> p.sample(3).shape
        torch.Size([3, 1, 4, 8])
        """
        from tarflow.sampling.observed import Observed  # as above

        return Observed(self, prefix, c, mask)

    def fit(self, x: Tensor, c: Any = None, **options: Any) -> Fit:
        """Fit this flow to rows x (N, …) given c, and say what came of it: `tarflow.training.fit.fit`.

        Options are `held_out`, `steps`, `patience`, `batch_size`, `lr`, `seed`, `progress`, … of that function.
        """
        from tarflow.training.fit import fit  # as above

        return fit(self, x, c, **options)

    # --- what comes in ---------------------------------------------------------------------------------------------

    def check_latents(self, z: Any, name: str = "z") -> None:
        """Raise ValueError unless z, called `name`, is a floating (B, T, D) of this model's size."""
        check_batch(name, z, "latents", (self.sequence.tokens, self.sequence.dim))

    def check_condition(self, y: Any, batch: int) -> Value:
        """Values of the condition on this model's device; ValueError where they are not (batch, …) known ones."""
        return self.conditions.check(y, batch, self.device)

    def check_mask(self, mask: Tensor | None, batch: int) -> Tensor | None:
        """A mask (batch, T) on this model's device; ValueError where it is none, or the flow takes none."""
        if mask is None:
            return None
        start = "" if self.sequence.start_token else "as without start_token the first token has no density of its own"
        check_mask(mask, batch, self.sequence.tokens, start if self.event.may_be_padded else f"of {self.event.meaning}")
        return mask.to(self.device)

    def as_state(self, x: Tensor) -> Tensor:
        """x in the dtype of the state: the widest of its own, the weights' and float32."""
        return x.to(torch.promote_types(torch.promote_types(x.dtype, self.dtype), torch.float32))

    # --- save and load -----------------------------------------------------------------------------------------------

    def save_pretrained(self, directory: str | Path) -> None:
        """Write `config.json` (its `model` section) and `model.safetensors`, each whole or not at all."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.save_weights(directory / WEIGHTS_FILE)
        storage.write_json(directory / CONFIG_FILE, with_kind({"model": to_dict(self.config)}, self.kind))

    def save_weights(self, path: str | Path) -> None:
        """Write the weights as safetensors, with a digest in the file by which damage is found."""
        save_tensors(path, self.state_dict())

    @classmethod
    @torch.inference_mode(False)  # as above
    def from_pretrained(
        cls, directory: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> Self:
        """Load what `save_pretrained`, a training run or `tarflow convert` left in a directory; in eval mode.

        It must be a flow of this class; `tarflow.from_pretrained` loads one of any.

        Args:
            directory: or the name of a model that comes with the package, such as "digits" (`tarflow models`), or of
                one of the hub, "owner/name" or "owner/name@revision" (extra `[hub]`). A path that exists goes before a
                name, and a name before the hub.
            dtype: of the weights. None is that of the file, and float32 for narrower ones: bf16 in a file saves room,
                and loses nothing on its way to float32, in which products are exact, and on a CPU several times as
                fast. `tarflow.narrowed` is for narrow products.

        Raises FileNotFoundError or ValueError naming the file that is missing or does not fit.
        """
        directory = located(directory)
        config, tensors = read_model(directory, cls.config_type, cls.kind)
        flow = cls(config, device="meta")  # no memory, no random numbers: every value is the file's
        load_weights(flow, tensors, directory / WEIGHTS_FILE, assign=True)
        return flow._apply(lambda t: t.to(device, dtype or torch.promote_types(t.dtype, torch.float32))).eval()

"""TarFlow: the stack of blocks, its density, and how it is saved and loaded."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from tarflow import storage
from tarflow.config import ConfigError, Recompute, TarFlowConfig, from_dict, to_dict
from tarflow.model import checks
from tarflow.model.block import Block
from tarflow.model.patches import patchify, unpatchify
from tarflow.tensor_files import read_tensors, save_tensors

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

RANGE = 0.4  # the exponent of the largest number that `in_range` lets through


class TarFlow(nn.Module):
    """A normalizing flow on images x (B, C, H, W) with an exact density, TarFlow, arXiv 2412.06329.

        log p(x|y) = log N(z; 0, V) + Σ_blocks ladj,    z, ladj = encode(x, y)

    with V = 1 for the affine transform and V = `base_variance` (T, D) for the additive one. Labels `y` are (B,)
    integers; `None`, or `NULL_CLASS` (-1) in a row, means the null class. State and density are float32 at least.

    >>> import torch, tarflow
    >>> flow = tarflow.TarFlow(tarflow.TarFlowConfig(image_size=8, channels=1, patch_size=2, width=64, layers=(1, 1)))
    >>> x = torch.zeros(5, 1, 8, 8)
    >>> flow.log_prob(x).shape
    torch.Size([5])
    >>> z, ladj = flow.encode(x)
    >>> flow.decode(z).shape
    torch.Size([5, 1, 8, 8])
    """

    base_variance: Tensor | None

    @torch.inference_mode(False)  # where weights would be made that nothing can be differentiated through
    def __init__(
        self, config: TarFlowConfig, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """New weights, from torch's global generator; where and in which dtype as any module's: None is torch's own."""
        super().__init__()
        self.config = config
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        blocks = (Block(config, layers, index % 2 == 1, **made) for index, layers in enumerate(config.layers))
        self.blocks = cast("list[Block]", nn.ModuleList(blocks))  # which has no type for its elements
        variance = torch.ones(config.num_patches, config.patch_dim, **made) if config.transform == "additive" else None
        self.register_buffer("base_variance", variance)

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
    def __deepcopy__(self, memo: dict[int, Any]) -> TarFlow:
        new = memo[id(self)] = type(self).__new__(type(self))
        new.__dict__ = copy.deepcopy(self.__dict__, memo)
        return new

    @torch.inference_mode(False)
    def _apply(self, fn: Any, recurse: bool = True) -> TarFlow:
        return super()._apply(fn, recurse)

    # --- the flow ------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, y: Tensor | None = None, recompute: Recompute | None = None) -> tuple[Tensor, Tensor]:
        """`encode` without its checks, which wait for the device.

        Training says what the backward pass computes again instead of keeping it (`recompute`, which changes no value).
        It skips a batch that is not finite, so that then no row is kept within the range of the network (`in_range`).
        """
        if recompute is None:
            z, ladj = self._encode_in_range(x, y)
            return z, ladj.sum(dim=1)
        z = self.to_patches(x)
        ladj = z.new_zeros(())
        for block in self.blocks:
            z, block_ladj = block.encode(z, y, recompute)
            ladj = ladj + block_ladj
        return z, ladj.sum(dim=1)

    def encode(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images x (B, C, H, W) to latents z (B, T, D) and ladj = log|det ∂z/∂x| (B,), nats.

        An image so far from the data that the network leaves the range of its numbers has z = ∞ and ladj = 0, and no
        gradient: a density of 0. NaN stays NaN.
        """
        self.check_images(x)
        return self(x, self.check_labels(y, x.shape[0]))

    def encode_patches(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `encode`, with ladj patch by patch: z (B, T, D) and (B, T), raster order; the sum over T is `ladj`."""
        self.check_images(x)
        y = self.check_labels(y, x.shape[0])
        return self._encode_in_range(x, y)

    def _encode_in_range(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """z and ladj by patch; rows that leave the range go on through the blocks as zeros, which overflow nowhere."""
        z, inside = self.in_range(self.to_patches(x))
        ladj = z.new_zeros(())
        for block in self.blocks:
            z, block_ladj = block.encode(z, y)
            ladj = ladj + block_ladj.to(z.dtype)
            z, still = self.in_range(z)
            inside = inside & still
        outside = torch.where(x.isnan().flatten(1).any(dim=1), torch.nan, torch.inf).to(z.dtype)
        z = torch.where(inside.view(-1, 1, 1), z, outside.view(-1, 1, 1))
        return z, torch.where(inside.view(-1, 1), ladj, 0)

    def in_range(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z (B, T, D) with zeros for the rows that are not within the range of the network, and which are: (B,).

        The range is ± the largest number to the power of 0.4, 2.6e15 in float32: its square is far from overflowing,
        and so are the sums in a norm. In float16 it is ±1000, of which a product may well overflow.
        """
        inside = z.abs().amax(dim=(1, 2)) <= max(torch.finfo(self.dtype).max ** RANGE, 1e3)
        return torch.where(inside.view(-1, 1, 1), z, 0), inside

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Latents z (B, T, D) to images (B, C, H, W): the exact inverse of `encode`, by the slow reference.

        `tarflow.sample(flow, n, noise=z / flow.base_std())` does the same many times faster.
        """
        self.check_latents(z)
        y = self.check_labels(y, z.shape[0])
        x = self._as_state(z)
        for block in reversed(self.blocks):
            x = block.decode(x, y)
        return self.to_images(x)

    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """log p(x|y), the log-density at x, nats, shape (B,). Gradients flow to x and to the weights.

        -∞, without a gradient, where a finite x is beyond the range of the network; NaN only where x holds one.
        """
        z, ladj = self.encode(x, y)
        return self.base_log_prob(z) + ladj

    def distribution(self, y: Tensor | int | None = None) -> Distribution:
        """p(x|y) as a `torch.distributions.Distribution`, for code that is written against that interface.

        Labels of any shape are its `batch_shape`; None is the null class and `batch_shape` (). See
        `tarflow.FlowDistribution`.

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

        return FlowDistribution(self, y)

    def base_log_prob(self, z: Tensor) -> Tensor:
        """log N(z; 0, V) of latents (B, T, D), nats, shape (B,)."""
        energy = z.square()
        log_det = z.new_zeros(())
        if self.base_variance is not None:
            variance = self.base_variance.to(z.dtype)
            energy, log_det = energy / variance, variance.log().sum()
        return -0.5 * (energy.sum(dim=(1, 2)) + log_det + self.config.num_dims * math.log(2 * math.pi))

    def base_std(self) -> Tensor | float:
        """The root of V: what standard noise (B, T, D) is multiplied by before it is decoded into a sample."""
        return 1.0 if self.base_variance is None else self.base_variance.sqrt()

    def to_patches(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to patches (B, T, D) in raster order, in the dtype of the state."""
        return patchify(self._as_state(x), self.config.patch_size)

    def to_images(self, x: Tensor) -> Tensor:
        """Patches (B, T, D) in raster order to images (B, C, H, W)."""
        return unpatchify(x, self.config.patch_size, self.config.image_shape)

    # --- what comes in ---------------------------------------------------------------------------------------------

    def check_images(self, x: Any) -> None:
        """Raise ValueError unless x is a floating (B, C, H, W) of this model's size; warn where it holds pixels."""
        checks.check_images(x, self.config)

    def check_latents(self, z: Any, name: str = "z") -> None:
        """Raise ValueError unless z, called `name`, is a floating (B, T, D) of this model's size."""
        checks.check_latents(z, self.config, name)

    def check_labels(self, y: Any, batch: int) -> Tensor | None:
        """Return labels as int64 on this model's device; raise ValueError where they are not (batch,) known classes."""
        return checks.check_labels(y, batch, self.config, self.device)

    def _as_state(self, x: Tensor) -> Tensor:
        """x in the dtype of the state: the widest of its own, the weights' and float32."""
        return x.to(torch.promote_types(torch.promote_types(x.dtype, self.dtype), torch.float32))

    # --- save and load -----------------------------------------------------------------------------------------------

    def save_pretrained(self, directory: str | Path) -> None:
        """Write `config.json` (its `model` section) and `model.safetensors`, each whole or not at all."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.save_weights(directory / WEIGHTS_FILE)
        storage.write_json(directory / CONFIG_FILE, {"model": to_dict(self.config)})

    def save_weights(self, path: str | Path) -> None:
        """Write the weights as safetensors, with a digest in the file by which damage is found."""
        save_tensors(path, self.state_dict())

    @classmethod
    @torch.inference_mode(False)  # as above
    def from_pretrained(cls, directory: str | Path, *, device: torch.device | str = "cpu") -> TarFlow:
        """Load what `save_pretrained`, a training run or `tarflow convert` left in a directory; in eval mode.

        Raises FileNotFoundError or ValueError naming the file that is missing or does not fit.
        """
        directory = Path(directory)
        sections = read_json(directory / CONFIG_FILE)
        if not isinstance(sections, dict) or "model" not in sections:
            raise ConfigError(f"{directory / CONFIG_FILE}: expected a section 'model'")
        config = from_dict(TarFlowConfig, sections["model"], f"{directory / CONFIG_FILE}: model")
        tensors = read_tensors(directory / WEIGHTS_FILE)
        if sum(config.layers) > len(tensors):  # before as many modules are made
            raise ValueError(
                f"{directory / WEIGHTS_FILE}: has {len(tensors)} tensors, too few for the {sum(config.layers)} layers "
                f"in {CONFIG_FILE}"
            )
        flow = cls(config, device="meta")  # no memory, no random numbers: every value, and its dtype, is the file's
        load_weights(flow, tensors, directory / WEIGHTS_FILE, assign=True)
        return flow.to(device).eval()


def read_json(path: Path) -> Any:
    """The contents of a JSON file, or an error that names it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a directory with {CONFIG_FILE} and {WEIGHTS_FILE}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # the latter is what brackets without end come to
        raise ValueError(f"{path}: not JSON ({error})") from None


def load_weights(flow: TarFlow, tensors: dict[str, Tensor], origin: str | Path, *, assign: bool = False) -> None:
    """Copy `tensors` into the flow's, or put them in their place, dtype and all, with `assign`.

    Raises ValueError naming the first that is missing, foreign, of another shape, or not of finite floating-point
    numbers.
    """
    expected = flow.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors:
            raise ValueError(f"{origin}: tensor {name} is missing")
        if name not in expected:
            raise ValueError(f"{origin}: tensor {name} is not one of this model's")
        if expected[name].shape != tensors[name].shape:
            got, want = tuple(tensors[name].shape), tuple(expected[name].shape)
            raise ValueError(f"{origin}: tensor {name}: expected shape {want}, got {got}")
        if not tensors[name].is_floating_point():
            raise ValueError(f"{origin}: tensor {name}: expected floating-point numbers, got {tensors[name].dtype}")
        if not bool(tensors[name].isfinite().all()):
            raise ValueError(f"{origin}: tensor {name}: holds numbers that are not finite")
    flow.load_state_dict(tensors, assign=assign)

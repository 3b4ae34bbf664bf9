"""TarFlow: the stack of blocks, its density, and how it is saved and loaded."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from tarflow import storage
from tarflow.config import ConfigError, Recompute, TarFlowConfig, from_dict, to_dict
from tarflow.model.block import NULL_CLASS, Block
from tarflow.model.patches import patchify, unpatchify
from tarflow.tensor_files import read_tensors, save_tensors

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


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

    def __init__(self, config: TarFlowConfig) -> None:
        super().__init__()
        self.config = config
        blocks = (Block(config, layers, flipped=index % 2 == 1) for index, layers in enumerate(config.layers))
        self.blocks = cast("list[Block]", nn.ModuleList(blocks))  # which has no type for its elements
        variance = torch.ones(config.num_patches, config.patch_dim) if config.transform == "additive" else None
        self.register_buffer("base_variance", variance)

    @property
    def device(self) -> torch.device:
        return self.blocks[0].position.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.blocks[0].dtype

    # --- the flow ------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, y: Tensor | None = None, recompute: Recompute = "nothing") -> tuple[Tensor, Tensor]:
        """`encode` without its checks, which wait for the device: what training calls.

        `recompute` says what the backward pass computes again instead of keeping it; it changes no value.
        """
        z = self.to_patches(x)
        ladj = z.new_zeros(len(z))
        for block in self.blocks:
            z, block_ladj = block.encode(z, y, recompute)
            ladj = ladj + block_ladj
        return z, ladj

    def encode(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images x (B, C, H, W) to latents z (B, T, D) and ladj = log|det ∂z/∂x| (B,), nats."""
        self.check_images(x)
        return self(x, self.check_labels(y, len(x)))

    def encode_patches(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `encode`, with ladj patch by patch: z (B, T, D) and (B, T), raster order; the sum over T is `ladj`."""
        self.check_images(x)
        y = self.check_labels(y, len(x))
        z = self.to_patches(x)
        ladj = z.new_zeros(z.shape[:2])
        for block in self.blocks:
            z, block_ladj = block.encode_patches(z, y)
            ladj = ladj + block_ladj
        return z, ladj

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Latents z (B, T, D) to images (B, C, H, W): the exact inverse of `encode`, by the slow reference.

        `tarflow.sample(flow, n, noise=z / flow.base_std())` does the same many times faster.
        """
        self.check_latents(z)
        y = self.check_labels(y, len(z))
        x = self._as_state(z)
        for block in reversed(self.blocks):
            x = block.decode(x, y)
        return self.to_images(x)

    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """log p(x|y), the log-density at x, nats, shape (B,). Gradients flow to x and to the weights."""
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

    def check_images(self, x: Tensor) -> None:
        """Raise ValueError unless x is a floating (B, C, H, W) of this model's size."""
        height, width = self.config.image_shape
        expected = (self.config.channels, height, width)
        if x.ndim != 4 or tuple(x.shape[1:]) != expected:
            raise ValueError(f"x: expected images (B, {', '.join(map(str, expected))}), got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"x: expected floating-point values, got {x.dtype}; pixels are scaled to -1 … 1 first")

    def check_latents(self, z: Tensor, name: str = "z") -> None:
        """Raise ValueError unless z, called `name`, is a floating (B, T, D) of this model's size."""
        expected = (self.config.num_patches, self.config.patch_dim)
        if z.ndim != 3 or tuple(z.shape[1:]) != expected:
            raise ValueError(f"{name}: expected latents (B, {expected[0]}, {expected[1]}), got {tuple(z.shape)}")
        if not z.is_floating_point():
            raise ValueError(f"{name}: expected floating-point values, got {z.dtype}")

    def check_labels(self, y: Tensor | None, batch: int) -> Tensor | None:
        """Return labels as int64 on this model's device; raise ValueError where they are not (batch,) known classes."""
        if y is None:
            return None
        y = torch.as_tensor(y)
        if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool or tuple(y.shape) != (batch,):
            raise ValueError(f"y: expected ({batch},) integer labels, got {tuple(y.shape)} of {y.dtype}")
        if batch and (int(y.min()) < NULL_CLASS or int(y.max()) >= self.config.num_classes):
            wrong = y[(y < NULL_CLASS) | (y >= self.config.num_classes)][0].item()
            known = (
                f"0 to {self.config.num_classes - 1}" if self.config.num_classes else "no class (unconditional model)"
            )
            raise ValueError(f"y: expected {known}, or {NULL_CLASS} for the null class, got {wrong}")
        return y.to(device=self.device, dtype=torch.int64)

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
        with torch.device("meta"):  # no memory, and no random numbers: every value, and its dtype, is the file's
            flow = cls(config)
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

"""Official checkpoints (https://github.com/apple/ml-tarflow) to ours and back, by one declared key map."""

from __future__ import annotations

import functools
import itertools
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tarflow.config import ConfigError, TarFlowConfig
from tarflow.model.flow import TarFlow
from tarflow.tensor_files import read_torch_file

KEY_MAP = (
    # official, ours; {b} is a block, {l} one of its layers, {p} weight or bias
    ("blocks.{b}.proj_in.{p}", "blocks.{b}.proj_in.{p}"),
    ("blocks.{b}.pos_embed", "blocks.{b}.position"),  # in raster order on both sides
    ("blocks.{b}.class_embed", "blocks.{b}.embedding.classes"),  # (classes, 1, W) there, (classes, W) here
    ("blocks.{b}.attn_blocks.{l}.attention.norm.{p}", "blocks.{b}.layers.{l}.attention.norm.{p}"),
    ("blocks.{b}.attn_blocks.{l}.attention.qkv.{p}", "blocks.{b}.layers.{l}.attention.qkv.{p}"),
    ("blocks.{b}.attn_blocks.{l}.attention.proj.{p}", "blocks.{b}.layers.{l}.attention.out.{p}"),
    ("blocks.{b}.attn_blocks.{l}.mlp.norm.{p}", "blocks.{b}.layers.{l}.mlp.0.{p}"),
    ("blocks.{b}.attn_blocks.{l}.mlp.main.0.{p}", "blocks.{b}.layers.{l}.mlp.1.{p}"),
    ("blocks.{b}.attn_blocks.{l}.mlp.main.2.{p}", "blocks.{b}.layers.{l}.mlp.3.{p}"),
    ("blocks.{b}.proj_out.{p}", "blocks.{b}.proj_out.{p}"),  # rows: log-scale, then shift, on both sides
    ("var", "base.variance"),  # of the additive variant; in the affine one it is a constant, see `_constants`
)
"""Every tensor of a TarFlow, by its name in an official checkpoint and its name here."""

HEAD_DIM = 64  # the one number that changes the result and that no shape tells; fixed in the official code
OFFICIAL = {"affine", "additive"}  # transforms
_WRAPPERS = ("module", "_orig_mod")  # what DistributedDataParallel and torch.compile put into names
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_EXPECTED = "expected the state dict of an apple/ml-tarflow Model, names to tensors, as train.py saves in *_model_*.pth"


@torch.inference_mode(False)  # where weights would be made that nothing can be differentiated through
def load_official(
    path_or_state_dict: str | os.PathLike[str] | Mapping[str, Tensor],
    image_size: int | tuple[int, int] | None = None,
    *,
    device: torch.device | str = "cpu",
) -> TarFlow:
    """Turn a checkpoint of apple/ml-tarflow into a TarFlow, in eval mode, its architecture read from the shapes.

        T, width     pos_embed (T, W)                  classes      class_embed (classes, 1, W); absent: 0
        D = C·P²     proj_in (W, D), C is 1 or 3       transform    proj_out (2D, W) affine, (D, W) additive
        layers       the names, block by block         expansion    mlp.main.0 (expansion·W, W)

    P² = 3Q² has no solution, so D decides C. `var` becomes the base variance of the additive transform; for the affine
    one it must be 1 everywhere. Masks must be the causal one, may be missing, and are not kept. The prefixes of
    DistributedDataParallel and torch.compile are removed. The weights keep their dtype, the widest of the file.

    Args:
        path_or_state_dict: a `.pth` file, read without running any code in it, or the dictionary in such a file, which
            is copied.
        image_size: height and width in pixels, one number for a square; a square of T patches when not given.
        device: where the flow goes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not such a checkpoint; the message names the file, and the tensor that is missing, foreign or
            of the wrong shape. Also where `image_size` does not fit T and P.

    >>> import tarflow
    >>> shape = dict(image_size=8, channels=1, patch_size=2, width=64, layers=(2, 1), num_classes=3)
    >>> config = tarflow.TarFlowConfig(**shape, log_scale_bound=None)  # as all of them are
    >>> load_official(to_official(tarflow.TarFlow(config))).config == config
    True
    """
    if isinstance(path_or_state_dict, Mapping):
        origin, content = "state dict", path_or_state_dict
    else:
        origin, content = str(path_or_state_dict), read_torch_file(Path(path_or_state_dict), _EXPECTED)
    tensors = _check_tensors(content, origin)
    config = _read_config(tensors, image_size, origin)
    flow = TarFlow(config, device="meta")  # no memory, no random numbers: every value comes from the file
    _check_values(tensors, flow, origin)
    like, names = flow.state_dict(), _names(flow)
    dtype = functools.reduce(torch.promote_types, (tensors[official].dtype for official in names))
    state = {
        ours: tensors[official].detach().reshape(like[ours].shape).to(device, dtype, copy=True).contiguous()
        for official, ours in names.items()
    }
    flow.load_state_dict(state, assign=True)
    return flow.eval()


def to_official(flow: TarFlow) -> dict[str, Tensor]:
    """The inverse of `load_official`: a state dict that the official `Model` accepts with `strict=True`.

    Masks and `var` included, copied to the CPU, in the dtype of the weights; `torch.save` makes a checkpoint of it. The
    constructor of `Model` knows one number of layers for all blocks and an expansion of 4: a flow with others needs a
    `Model` whose `blocks` were replaced.

    Raises:
        ValueError: the official code cannot hold this flow, or its checkpoint would be read as another one.
    """
    config = flow.config
    height, width = config.image_shape
    kinds = set(config.block_transforms)
    for fits, field, expected, got in (
        (config.log_scale_bound is None, "log_scale_bound", "an unbounded log-scale", config.log_scale_bound),
        (config.condition in ("auto", "none"), "condition", "classes or none", config.condition),
        (not config.rotary, "rotary", "learned positions alone", config.rotary),
        (not config.start_token, "start_token", "none", config.start_token),
        (config.order == "alternating", "order", "alternating blocks", config.order),
        (len(kinds) == 1 and kinds <= OFFICIAL, "transforms", "affine or additive blocks, all alike", sorted(kinds)),
        (config.head_dim == HEAD_DIM, "head_dim", f"heads of {HEAD_DIM} channels", config.head_dim),
        (height == width, "image_size", "square images", f"{height}x{width}"),
        # the checkpoint keeps C·P² only, which for another C says another C and P, or none
        (config.channels in (1, 3), "channels", "1 or 3", config.channels),
    ):
        if not fits:
            raise ValueError(f"{field}: official checkpoints have {expected}, got {got}")
    tensors = {
        name: _to_official_shape(name, tensor.detach().to("cpu", copy=True))
        for name, tensor in _named_officially(flow).items()
    }
    return tensors | {name: constant.to(flow.dtype) for name, constant in _constants(config).items()}


def noise_from_name(path: str | os.PathLike[str]) -> tuple[Literal["gaussian", "uniform"], float] | None:
    """The noise of the training, as the official train.py writes it into the name of a checkpoint.

    σ is rounded to two decimals there. None where the name does not tell, also where it says 0.00.

    >>> noise_from_name("runs/afhq_model_8_768_8_8_0.07.pth")
    ('gaussian', 0.07)
    >>> noise_from_name("imagenet64_model_2_768_8_8_uniform.pth")
    ('uniform', 0.0)
    >>> noise_from_name("model.pth")
    """
    match = re.search(r"_model(?:_[0-9]+){4}_(uniform|[0-9]+\.[0-9]{2})\.pth$", Path(path).name)
    if match is None:
        return None
    if match[1] == "uniform":
        return "uniform", 0.0
    return ("gaussian", float(match[1])) if float(match[1]) > 0 else None


# --- the map, for one architecture -----------------------------------------------------------------------------------


def _names(flow: TarFlow) -> dict[str, str]:
    """Official name to ours, for every tensor of the flow."""
    known = flow.state_dict().keys()
    names = {}
    for block, layers in enumerate(flow.config.layers):
        for (official, ours), layer, part in itertools.product(KEY_MAP, range(layers), ("weight", "bias")):
            name = ours.format(b=block, l=layer, p=part)
            if name in known:  # the embedding of classes, or the variance, may be absent
                names[official.format(b=block, l=layer, p=part)] = name
    assert set(names.values()) == known, "the key map does not cover the flow"
    return names


def _named_officially(flow: TarFlow) -> dict[str, Tensor]:
    """The tensors of the flow under their official names, in our shapes."""
    state = flow.state_dict()
    return {official: state[ours] for official, ours in _names(flow).items()}


def _to_official_shape(official: str, tensor: Tensor) -> Tensor:
    """Our shape to the official one: they differ for the class embeddings only."""
    return tensor.unsqueeze(1) if official.endswith(".class_embed") else tensor


def _constants(config: TarFlowConfig) -> dict[str, Tensor]:
    """What official checkpoints hold besides, with the only value that it may have."""
    kind: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}
    mask = torch.ones(config.num_patches, config.num_patches, **kind).tril()
    constants = {f"blocks.{block}.attn_mask": mask for block in range(len(config.layers))}
    if config.block_transforms[0] == "affine":
        constants["var"] = torch.ones(config.num_patches, config.patch_dim, **kind)
    return constants


# --- what is in a file -----------------------------------------------------------------------------------------------


def _check_tensors(content: Any, origin: str) -> dict[str, Tensor]:
    """Names to dense floating tensors, the names freed of wrappers, or an error that says what it is instead."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{origin}: {_EXPECTED}, got {type(content).__name__}")
    tensors: dict[str, Tensor] = {}
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f"{origin}: {_EXPECTED}, got an entry {key!r} that is {type(value).__name__}")
        name = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
        if name in tensors:
            raise ValueError(f"{origin}: tensor {name} is there twice, once as {key}")
        if value.dtype not in _DTYPES or value.layout != torch.strided or value.is_meta:
            raise ValueError(f"{origin}: tensor {name}: expected dense floating-point values, got {value.dtype}")
        tensors[name] = value
    return tensors


def _read_config(tensors: dict[str, Tensor], image_size: Any, origin: str) -> TarFlowConfig:
    """The architecture, from the shapes of the first block and the names of all."""

    def shape(name: str, ndim: int) -> torch.Size:
        if name not in tensors:
            raise ValueError(f"{origin}: tensor {name} is missing; {_EXPECTED}")
        got = tensors[name].shape
        if len(got) != ndim or 0 in got:
            raise ValueError(f"{origin}: tensor {name}: expected {ndim} dimensions, none of them 0, got {tuple(got)}")
        return got

    def count(prefix: str) -> int:
        pattern = re.compile(re.escape(prefix) + r"(0|[1-9][0-9]{0,3})\.")
        found = {int(match[1]) for match in map(pattern.match, tensors) if match}
        if found != set(range(max(1, len(found)))):
            raise ValueError(f"{origin}: tensors {prefix}*: expected numbers from 0 on, got {sorted(found)}")
        return len(found)

    num_patches, width = shape("blocks.0.pos_embed", 2)
    patch_dim = shape("blocks.0.proj_in.weight", 2)[1]
    outputs = shape("blocks.0.proj_out.weight", 2)[0]
    first_mlp = "blocks.0.attn_blocks.0.mlp.main.0.weight"
    hidden = shape(first_mlp, 2)[0]
    if outputs not in (patch_dim, 2 * patch_dim):
        expected = f"2D = {2 * patch_dim} rows (affine) or D = {patch_dim} (additive)"
        raise ValueError(f"{origin}: tensor blocks.0.proj_out.weight: expected {expected}, got {outputs}")
    if hidden % width:
        expected = f"a multiple of the width {width} in rows"
        raise ValueError(f"{origin}: tensor {first_mlp}: expected {expected}, got {hidden}")
    sides = {channels: math.isqrt(patch_dim // channels) for channels in (1, 3)}
    fitting = [(channels, side) for channels, side in sides.items() if side and channels * side**2 == patch_dim]
    if not fitting:
        expected = "C·P² columns with C = 1 or 3"
        raise ValueError(f"{origin}: tensor blocks.0.proj_in.weight: expected {expected}, got {patch_dim}")
    ((channels, patch_size),) = fitting
    try:
        return TarFlowConfig(
            image_size=_check_image_size(image_size, num_patches, patch_size),
            patch_size=patch_size,
            width=width,
            layers=tuple(count(f"blocks.{block}.attn_blocks.") for block in range(count("blocks."))),
            channels=channels,
            num_classes=shape("blocks.0.class_embed", 3)[0] if "blocks.0.class_embed" in tensors else 0,
            transform="affine" if outputs == 2 * patch_dim else "additive",
            log_scale_bound=None,
            head_dim=HEAD_DIM,
            expansion=hidden // width,
        )
    except ConfigError as error:
        raise ValueError(f"{origin}: {error}") from None


def _check_values(tensors: dict[str, Tensor], flow: TarFlow, origin: str) -> None:
    """Raise ValueError unless these are the tensors of this flow, all of them and no others, with possible values."""
    shapes = {name: _to_official_shape(name, like).shape for name, like in _named_officially(flow).items()}
    constants = _constants(flow.config)
    for name in sorted(tensors.keys() | shapes.keys() | {"var"}):
        if name not in tensors:
            raise ValueError(f"{origin}: tensor {name} is missing")
        got = tensors[name]
        if name in constants:
            expected = constants[name].to(got.device)
            if got.shape != expected.shape or not bool((got == expected).all()):
                meaning = "1 everywhere" if name == "var" else "the causal mask"
                raise ValueError(f"{origin}: tensor {name}: expected {meaning}, of shape {tuple(expected.shape)}")
        elif name not in shapes:
            raise ValueError(
                f"{origin}: tensor {name} is not one of an official {flow.config.block_transforms[0]} model's"
            )
        elif got.shape != shapes[name]:
            raise ValueError(f"{origin}: tensor {name}: expected shape {tuple(shapes[name])}, got {tuple(got.shape)}")
        elif not bool(torch.isfinite(got).all()):
            raise ValueError(f"{origin}: tensor {name}: expected finite values")
        elif name == "var" and not bool((got > 0).all()):
            raise ValueError(f"{origin}: tensor {name}: expected positive values")


def _check_image_size(image_size: Any, num_patches: int, patch_size: int) -> int | tuple[int, int]:
    """The image size that was asked for, or the square one, if T patches of P x P pixels make it."""
    size = math.isqrt(num_patches) * patch_size if image_size is None else image_size
    sides = size if isinstance(size, tuple | list) else (size, size)
    if (
        len(sides) == 2
        and all(isinstance(side, int) and side > 0 and side % patch_size == 0 for side in sides)
        and sides[0] * sides[1] == num_patches * patch_size**2
    ):
        return sides[0] if sides[0] == sides[1] else (sides[0], sides[1])
    got = "a square" if image_size is None else repr(image_size)
    raise ConfigError(
        f"image_size: expected one of {num_patches} patches of {patch_size}x{patch_size} pixels, "
        f"such as ({patch_size}, {num_patches * patch_size}), got {got}"
    )

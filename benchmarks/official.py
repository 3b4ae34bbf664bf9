"""The other codes, run from clones that the user names: apple/ml-tarflow and GS-Jacobi_for_TarFlow.

Nothing of either is kept here. The one file that holds the model is imported from the clone under a private name; its
`Model` gets the very weights of a TarFlow through the key map of `tarflow.interop`, and its own `reverse` is called the
way its authors call it (evaluate_fid.py, sample.ipynb; Sampling.py): without gradients, under bf16 autocast where bf16
is asked for, guidance annealed, which is our linear schedule.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tarflow.interop import to_official
from tarflow.model.flow import TarFlow
from tarflow.sampling.guidance import Guidance

OFFICIAL, GS_JACOBI = "official", "gs-jacobi"
FILES = {OFFICIAL: "transformer_flow.py", GS_JACOBI: "GS_Jacobi_sampling.py"}
REPOSITORIES = {OFFICIAL: "apple/ml-tarflow", GS_JACOBI: "encoreus/GS-Jacobi_for_TarFlow"}
EXPANSION = 4  # of the MLP, fixed in both


@dataclass(frozen=True)
class GSJacobi:
    """Settings of the second code, the same for every block, where its authors' are typed in for each checkpoint.

    Attributes:
        windows: into how many modules a block's sequence is cut (`num_GS`); 1 is plain Jacobi.
        iterations: at most so many in each (`max_jacobi`).
        bound: on the norm of the change over B·D, which ends a module before that (`ebound`).
    """

    windows: int = 8
    iterations: int = 32
    bound: float = 1e-6


def load_module(code: str, clone: Path) -> types.ModuleType:
    """The model file of a clone, as a module that nobody else can import.

    Raises FileNotFoundError or ValueError naming the folder or the file that is not what it should be.
    """
    expected = f"expected a clone of {REPOSITORIES[code]}"
    if not clone.is_dir():
        raise FileNotFoundError(f"{clone}: no such directory; {expected}")
    path = clone / FILES[code]
    if not path.is_file():
        raise ValueError(f"{clone}: no {FILES[code]} in it; {expected}")
    spec = importlib.util.spec_from_file_location(f"_benchmarks_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    absent = importlib.util.find_spec("numpy") is None
    if absent:  # GS_Jacobi_sampling.py imports it for its detect_mode alone, which sampling never turns on
        sys.modules["numpy"] = types.ModuleType("numpy")
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a foreign file does
        raise ValueError(f"{path}: cannot be imported ({type(error).__name__}: {error}); {expected}") from error
    finally:
        if absent:
            del sys.modules["numpy"]
    if not hasattr(module, "Model"):
        raise ValueError(f"{path}: no class Model in it; {expected}")
    return module


def fingerprint(code: str, clone: Path) -> dict[str, str]:
    """What was measured, without where it lies: the repository, the file, and the SHA-256 of its content."""
    content = (clone / FILES[code]).read_bytes()
    return {"repository": REPOSITORIES[code], "file": FILES[code], "sha256": hashlib.sha256(content).hexdigest()}


def build(code: str, module: types.ModuleType, flow: TarFlow) -> nn.Module:
    """Their Model with the weights of `flow`, on its device, in eval mode, in float32.

    Blocks may be of unequal depth, and may be a part of a larger flow's (`models.first_decoded`): each is built with
    the depth and the direction of ours.

    Raises ValueError where their code cannot hold this flow.
    """
    config = flow.config
    if config.expansion != EXPANSION:
        raise ValueError(f"expansion: the {code} code has {EXPANSION}, got {config.expansion}")
    if code == GS_JACOBI and set(config.block_transforms) != {"affine"}:
        raise ValueError(f"transform: the {code} code has the affine one only, got {config.block_transforms}")
    state = to_official(flow)
    arguments: dict[str, Any] = {
        "in_channels": config.channels,
        "img_size": config.image_shape[0],
        "patch_size": config.patch_size,
        "channels": config.width,
        "num_classes": config.num_classes,
    }
    if code == OFFICIAL:
        arguments["nvp"] = config.block_transforms[0] == "affine"
    try:
        with torch.device("meta"):  # every value comes from the state
            model: nn.Module = module.Model(num_blocks=1, layers_per_block=1, **arguments)
            pairs = [module.Model(num_blocks=2, layers_per_block=layers, **arguments) for layers in config.layers]
        model.blocks = nn.ModuleList(
            pair.blocks[int(block.order.is_flipped)] for pair, block in zip(pairs, flow.blocks, strict=True)
        )
        model.num_blocks = len(flow.blocks)  # type: ignore[assignment]
        model.load_state_dict(state, strict=True, assign=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{FILES[code]}: its Model does not take these weights ({reason})") from error
    return model.to(flow.device).eval()


def reverse(
    code: str,
    model: nn.Module,
    noise: Tensor,
    y: Tensor | None,
    guidance: Guidance | None,
    *,
    bf16: bool,
    settings: GSJacobi = GSJacobi(),
) -> Tensor:
    """Their images (n, C, H, W) from standard normal noise (n, T, D), as float32.

    Their gradients are off by `inference_mode`, and the weights still ask for some: autocast keeps the bf16 copy of a
    weight only then, and would convert all of them at every step otherwise. That is in their favour.
    """
    options: dict[str, Any] = {"annealed_guidance": True}
    if guidance is not None:
        options |= {"guidance": guidance.scale, "attn_temp": guidance.temperature}
    if code == GS_JACOBI:
        blocks = len(model.blocks)  # type: ignore[arg-type]
        options |= {
            "num_GS_list": [settings.windows] * blocks,
            "max_jacobi_list": [settings.iterations] * blocks,
            "guess_list": [0] * blocks,  # start from the noise, as ours
            "ebound": settings.bound,
        }
    with torch.inference_mode(), torch.autocast(noise.device.type, torch.bfloat16, enabled=bf16):
        images: Tensor = model.reverse(noise, y, **options)  # type: ignore[operator]
    return images.float().clone()

"""How a flow is written to a directory and read from one: `config.json` and `model.safetensors`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tarflow.config import ConfigError, from_dict
from tarflow.pretrained import CONFIG_FILE as CONFIG_FILE
from tarflow.pretrained import WEIGHTS_FILE as WEIGHTS_FILE
from tarflow.tensor_files import read_tensors


def read_model(directory: Path, kind: type[Any]) -> tuple[Any, dict[str, Tensor]]:
    """The config and the tensors of a directory, or an error that names the file that is missing or does not fit."""
    sections = read_json(directory / CONFIG_FILE)
    if not isinstance(sections, dict) or "model" not in sections:
        raise ConfigError(f"{directory / CONFIG_FILE}: expected a section 'model'")
    config = from_dict(kind, sections["model"], f"{directory / CONFIG_FILE}: model")
    tensors = read_tensors(directory / WEIGHTS_FILE)
    if sum(config.layers) > len(tensors):  # before as many modules are made
        raise ValueError(
            f"{directory / WEIGHTS_FILE}: has {len(tensors)} tensors, too few for the {sum(config.layers)} layers "
            f"in {CONFIG_FILE}"
        )
    return config, tensors


def read_json(path: Path) -> Any:
    """The contents of a JSON file, or an error that names it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a directory with {CONFIG_FILE} and {WEIGHTS_FILE}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # the latter is what brackets without end come to
        raise ValueError(f"{path}: not JSON ({error})") from None


def load_weights(flow: nn.Module, tensors: dict[str, Tensor], origin: str | Path, *, assign: bool = False) -> None:
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

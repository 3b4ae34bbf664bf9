"""How a flow is written to a directory and read from one: `config.json` and `model.safetensors`."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tarflow.config import ConfigError, from_dict
from tarflow.pretrained import CONFIG_FILE as CONFIG_FILE
from tarflow.pretrained import TABLE_SECTION, located
from tarflow.pretrained import WEIGHTS_FILE as WEIGHTS_FILE
from tarflow.tensor_files import read_tensors

if TYPE_CHECKING:
    from tarflow.model.sequence import SequenceFlow


KINDS = {  # the kind of flow in config.json, and where its class is
    "images": "tarflow.model.flow:TarFlow",
    "sequences": "tarflow.model.sequence:SequenceFlow",
    "vectors": "tarflow.model.vector:VectorFlow",
}
DEFAULT_KIND = "images"  # which config.json does not name


def with_kind(sections: dict[str, Any], kind: str) -> dict[str, Any]:
    """The sections of a config.json with the kind of flow, where it has to be named."""
    return sections if kind == DEFAULT_KIND else {"kind": kind, **sections}


def read_kind(directory: Path) -> tuple[str, dict[str, Any]]:
    """The kind of flow in a directory, and the sections of its config.json, or an error that names the file."""
    file = directory / CONFIG_FILE
    sections = read_json(file)
    if not isinstance(sections, dict) or "model" not in sections:
        raise ConfigError(f"{file}: expected a section 'model'")
    kind = sections.get("kind", DEFAULT_KIND)
    if kind not in KINDS:
        raise ConfigError(f"{file}: kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    return kind, sections


def from_pretrained(
    directory: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> SequenceFlow:
    """Load a flow of any class from what its `save_pretrained` wrote; `TarFlow.from_pretrained` has the arguments.

    >>> import tarflow, tempfile
    >>> place = tempfile.mkdtemp()
    >>> tarflow.VectorFlow(2, width=16, layers=(1,)).save_pretrained(place)
    >>> type(tarflow.from_pretrained(place)).__name__
    'VectorFlow'
    """
    directory = located(directory)
    module, _, name = KINDS[read_kind(directory)[0]].partition(":")
    flow: SequenceFlow = getattr(importlib.import_module(module), name).from_pretrained(
        directory, device=device, dtype=dtype
    )
    return flow


def read_model(directory: Path, config_type: type[Any], kind: str) -> tuple[Any, dict[str, Tensor]]:
    """The config and the tensors of a directory, or an error that names the file that is missing or does not fit."""
    stored, sections = read_kind(directory)
    if stored != kind:
        found = f"got one on {stored}; tarflow.from_pretrained loads it"
        raise ConfigError(f"{directory / CONFIG_FILE}: expected a flow on {kind}, {found}")
    config = from_dict(config_type, sections["model"], f"{directory / CONFIG_FILE}: model")
    tensors = read_tensors(directory / WEIGHTS_FILE)
    if sum(config.layers) > len(tensors):  # before as many modules are made
        raise ValueError(
            f"{directory / WEIGHTS_FILE}: has {len(tensors)} tensors, too few for the {sum(config.layers)} layers "
            f"in {CONFIG_FILE}"
        )
    return config, tensors


def of_images(sections: Any, path: str | Path) -> Any:
    """The sections of a config.json; ConfigError where they are of a flow on anything but images."""
    if isinstance(sections, dict) and TABLE_SECTION in sections:
        raise ConfigError(f"{path}: a flow on the columns of a table; expected one on images")
    if isinstance(sections, dict) and (kind := sections.get("kind")) in KINDS and kind != DEFAULT_KIND:
        raise ConfigError(f"{path}: a flow on {kind}; expected one on {DEFAULT_KIND}; tarflow.from_pretrained loads it")
    return sections


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

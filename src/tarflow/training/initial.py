"""The weights that a run starts from: those of another run, of a directory, or of an official checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tarflow.architecture import BY_NUMBER, MIXED, plain, starts_as
from tarflow.checkpoint import open_run, weights_digest
from tarflow.config import ConfigError, TarFlowConfig, from_dict, to_dict
from tarflow.interop import load_official, noise_from_name
from tarflow.measure import NOISES
from tarflow.model.flow import TarFlow
from tarflow.recipes import Sections, with_fields
from tarflow.tensor_files import tensors_digest


@dataclass(frozen=True)
class Initial:
    """A flow to start from, opened from `path`, the digest of its weights, and the fields of its noise, where known."""

    path: str
    flow: TarFlow
    digest: str
    noise: Mapping[str, Any]

    def apply(self, sections: Sections, typed: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """The sections of a run that starts from it: its architecture and its noise, but for what was typed.

        Raises ConfigError where what was typed is not the architecture of the weights.
        """
        model = {name: value for name, value in to_dict(self.flow.config).items() if name != "num_classes"}
        inherited = {name: value for name, value in (model | dict(self.noise)).items() if name not in typed}
        found = with_fields({**sections, "model": {}}, {name: typed[name] for name in model if name in typed})
        found = with_fields(found, inherited | {"init_from": f"{self.path} ({self.digest[:16]})"})
        check_architecture(self.flow.config, from_dict(TarFlowConfig, found["model"], "model"))
        return found

    def other_noise(self, training: Mapping[str, Any]) -> str | None:
        """What to say where a run trains with other noise than the weights were: its model is another one."""
        if all(training.get(name) == value for name, value in self.noise.items()):
            return None
        return f"starts from weights of {_in_words(self.noise)}, and trains with {_in_words(training)}"


def _in_words(noise: Mapping[str, Any]) -> str:
    std = f" of σ {noise.get('noise_std')}" if NOISES[noise["noise"]].has_std else ""
    return f"{noise['noise']} noise{std}"


def open_initial(path: str) -> Initial:
    """Open the weights of a run, a directory, or an official checkpoint (.pth, .pt), whose name may tell its noise."""
    if Path(path).suffix in (".pth", ".pt"):
        flow, named = load_official(path), noise_from_name(path)
        return Initial(path, flow, tensors_digest(flow.state_dict()), {} if named is None else _noise_fields(*named))
    run = open_run(path)
    known = run.config.training is not None
    noise = _noise_fields(run.noise, run.measure.noise_std) if known else {}
    return Initial(path, run.flow, weights_digest(run.path), noise)


def _noise_fields(noise: str, std: float) -> dict[str, Any]:
    return {"noise": noise, "noise_std": std} if NOISES[noise].has_std else {"noise": noise}


def check_architecture(source: TarFlowConfig, wanted: TarFlowConfig) -> None:
    """Raise ConfigError naming the field where a flow that is `wanted` cannot start from the weights of another."""
    free = {"num_classes", "log_scale_bound", "transform", "transforms"}
    if not any(plain(name) == "spline" for name in source.block_transforms):
        free |= {"bins", "interval"}
    for entry in dataclasses.fields(TarFlowConfig):
        have, want = getattr(source, entry.name), getattr(wanted, entry.name)
        if entry.name == "image_size":
            have, want = source.image_shape, wanted.image_shape
        if entry.name not in free and have != want:
            raise ConfigError(f"model.{entry.name}: the weights to start from have {have}, got {want}")
    for index, (have, want) in enumerate(zip(source.block_transforms, wanted.block_transforms, strict=True)):
        if not starts_as(want, have):
            field = "transforms" if index < len(wanted.transforms) else "transform"
            raise ConfigError(
                f"model.{field}: the weights to start from have {have} in block {index}, which cannot start as {want}; "
                f"{BY_NUMBER}, {MIXED} and a spline where it was affine can be added"
            )


@torch.no_grad()
def start_from(flow: TarFlow, source: TarFlow) -> None:
    """Give `flow` the weights of `source`, whose architecture must be the same but for the classes and what transforms
    add: then `flow` is the same function, and what was added learns from there (as in Net2Net, arXiv 1511.05641).

    Other classes start from what the source does without a label: each new class has the mean of the old embeddings,
    and a model without classes adds that mean to its positions. Raises ConfigError naming the field that differs.
    """
    check_architecture(source.config, flow.config)
    tensors = source.state_dict()
    old, new = source.config.num_classes, flow.config.num_classes
    if old != new:
        for index in range(len(flow.blocks)):
            name = f"blocks.{index}.embedding.classes"
            null = tensors.pop(name).mean(dim=0) if old else torch.zeros_like(tensors[f"blocks.{index}.position"][0])
            if new:
                tensors[name] = null.expand(new, -1).clone()
            else:
                for table in {f"blocks.{index}.position", f"blocks.{index}.start"} & tensors.keys():
                    tensors[table] = tensors[table] + null
    flow.load_state_dict(_grown(tensors, flow.state_dict()))


def _grown(tensors: Mapping[str, Tensor], fresh: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors for a flow whose `fresh` ones have more rows, or are more: rows that are added are zero, and tensors of
    a transform as they are at first. Both leave the transform what it was."""
    grown = {}
    for name, new in fresh.items():
        old = tensors.get(name, new)
        grown[name] = torch.cat([old, old.new_zeros(len(new) - len(old), *new.shape[1:])]) if new.ndim else old
    return grown

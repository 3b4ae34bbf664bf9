"""A training run that takes a second: random 4x4 images of two classes, and a flow to go with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tarflow import checkpoint, digests, storage
from tarflow.config import RunConfig
from tarflow.data.load import ImageSet, Splits
from tarflow.model.saving import WEIGHTS_FILE
from tarflow.tensor_files import read_tensors
from tarflow.training import trainer
from tarflow.training.setup import resolve

MODEL = {"patch_size": 2, "width": 16, "head_dim": 8, "layers": [1, 1]}
TRAINING = {
    "steps": 12,
    "batch_size": 8,
    "lr": 1e-3,
    "warmup_steps": 2,
    "log_every": 1,
    "evaluate_every": 5,
    "sample_every": 0,
    "save_every": 4,
}


def images(count: int, seed: int) -> ImageSet:
    generator = torch.Generator("cpu").manual_seed(seed)
    labels = torch.arange(count, device="cpu") % 2
    pixels = torch.randint(0, 8, (count, 1, 4, 4), generator=generator, device="cpu") + 8 * labels.view(-1, 1, 1, 1)
    names = tuple(f"image {i}" for i in range(count))
    return ImageSet(pixels.to(torch.uint8), labels, names, 17, ("dark", "light"))


def splits() -> Splits:
    return Splits(images(30, 0), images(10, 1), own_split=True, skipped=())


def run_config(model: dict[str, Any] | None = None, data: dict[str, Any] | None = None, **training: Any) -> RunConfig:
    sections = {"model": MODEL | (model or {}), "data": data or {}, "training": TRAINING | training}
    return resolve(sections, splits())


def run_weights(run: Path) -> dict[str, torch.Tensor]:
    """Everything that a finished run comes to: best averaged weights, last averaged weights, last weights, moments."""
    last = checkpoint.latest_checkpoint(run)
    assert last is not None
    state = checkpoint.load_state(last)
    result = {f"best.{k}": v for k, v in read_tensors(run / WEIGHTS_FILE).items()}
    result |= {f"ema.{k}": v for k, v in read_tensors(last / WEIGHTS_FILE).items()}
    result |= {f"flow.{k}": v for k, v in state["flow"].items()}
    for index, moments in state["optimizer"]["state"].items():
        result |= {f"optimizer.{index}.{k}": torch.as_tensor(v, device="cpu") for k, v in moments.items()}
    return result


def assert_bitwise_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def digest_again(step: Path) -> None:
    """Write the digests of a checkpoint that was changed: as somebody's mistake or malice leaves it, whole."""
    facts = {name: digests.file_facts(step / name) for name in checkpoint.ALL_FILES}
    storage.write_json(step / digests.DIGESTS_FILE, facts)


def poison_batches(monkeypatch: pytest.MonkeyPatch, is_poisoned: Callable[[int], bool]) -> None:
    """Make every number of a training batch NaN at the steps that `is_poisoned` says."""
    real = trainer.training_batch

    def poisoned(images: Any, labels: Any, step: int, **options: Any) -> Any:
        x, y = real(images, labels, step, **options)
        return (x * float("nan"), y) if is_poisoned(step) else (x, y)

    monkeypatch.setattr(trainer, "training_batch", poisoned)

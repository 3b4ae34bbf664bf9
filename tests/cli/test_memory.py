"""Where memory ends, the advice fits what it went to: each place is made to ask for too much, for real."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tarflow.cli import main
from tarflow.cli.memory import is_out_of_memory

RECIPE = """
[model]
patch_size = 4
width = 64
layers = [1]
[data]
source = "digits"
[training]
steps = 2
batch_size = 4
evaluate_every = 1
evaluate_images = 4
sample_every = 2
"""


def train(run: Path) -> list[str]:
    (run.parent / "small.toml").write_text(RECIPE)
    return ["train", "--recipe", str(run.parent / "small.toml"), "--out", str(run), "--device", "cpu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("place") / "run"
    assert main(train(run)) == 0
    return run


def asked_by(place: str) -> Callable[[], bool]:
    """Says whether what is called just then was called by code in `place`, over however many steps."""

    def called() -> bool:
        frame = sys._getframe(2)
        while frame is not None:
            if place in frame.f_code.co_filename:
                return True
            frame = frame.f_back  # type: ignore[assignment]
        return False

    return called


ATTENTION, MOMENTS = (torch.nn.functional, "scaled_dot_product_attention"), (torch, "zeros_like")
# The command, what fails, where it is called, words of the advice, and words that would be wrong there.
CASES: dict[str, tuple[str, Any, str, list[str], list[str]]] = {
    "activations": ("train", ATTENTION, "training/step.py", ["--accumulate", "--checkpoint-activations"], ["fsdp"]),
    "moments": ("train", MOMENTS, "torch/optim", ["moments", "--width", "fsdp"], ["--batch-size", "--accumulate"]),
    "weights": ("train", (torch.nn, "Linear"), "training/build.py", ["weights", "--width"], ["--batch-size"]),
    "evaluation": ("train", ATTENTION, "evaluation/", ["evaluation", "--width"], ["--batch-size", "--accumulate"]),
    "sheet": ("train", ATTENTION, "sampling/", ["--sample-every 0"], ["--batch-size"]),
    "samples": ("sample {run} -n 2 --out {out}.png", ATTENTION, "sampling/", ["samples", "--batch-size"], ["--width"]),
    "scores": ("evaluate {run} --draws 1", ATTENTION, "evaluation/", ["--batch-size"], ["--width"]),
    "report": ("report {run} --out {out}", ATTENTION, "report/", ["--images", "--limit"], ["--batch-size"]),
}


@pytest.mark.parametrize("name", CASES)
def test_the_advice_fits_where_the_memory_went(
    name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command, (owner, function), place, words, wrong = CASES[name]
    real, here = getattr(owner, function), asked_by(place)

    def ask(*arguments: Any, **named: Any) -> Any:
        if here():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return real(*arguments, **named)

    monkeypatch.setattr(owner, function, ask)
    argv = train(tmp_path / "run") if command == "train" else command.format(run=run, out=tmp_path / "out").split()
    assert main(argv) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("tarflow: error: out of memory for "), said
    assert all(word in said for word in words), said
    assert not any(word in said for word in wrong), said


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (MemoryError(), True),
        (RuntimeError("shapes differ"), False),
        (ValueError("a class that is called out of memory"), False),
    ],
)
def test_what_is_out_of_memory(error: Exception, is_one: bool) -> None:
    assert is_out_of_memory(error) == is_one

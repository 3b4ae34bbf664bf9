"""What to do where the memory is too small: that depends on which code asked for more."""

from __future__ import annotations

import traceback
from pathlib import PurePath

import torch

# What memory is spent on, by the innermost of these places in a traceback.
SPENT_ON = {
    "torch/optim": "weights",
    "tarflow/training/optimizer.py": "weights",
    "tarflow/training/ema.py": "weights",
    "tarflow/training/sharding.py": "weights",
    "tarflow/training/build.py": "weights",
    "tarflow/training/step.py": "activations",
    "tarflow/sampling": "samples",
    "tarflow/model/cache.py": "samples",
    "tarflow/evaluation": "scores",
    "tarflow/data": "data",
    "tarflow/checkpoint.py": "model",
    "tarflow/interop.py": "model",
}
BATCHED = ("sample", "quality", "sweep", "evaluate", "score", "denoise")  # have --batch-size
SMALLER = "lower --width or --layers"
ADVICE: dict[str | None, str] = {
    "data": "for the images; lower --image-size, take fewer, or `tarflow prepare` them, which maps them from a file",
    "weights": f"for the weights, their gradients, moments and averages, which no batch changes; {SMALLER}, or share "
    "them among devices (torchrun, --strategy fsdp)",
    "activations": "for the activations of a batch; raise --accumulate (the same step in smaller parts), give "
    "--checkpoint-activations layers, or lower --batch-size",
}
OF_TRAINING: dict[str | None, str] = {
    "samples": f"for a sheet of samples; --sample-every 0 draws none; or {SMALLER}",
    "scores": f"for an evaluation, which scores some held-out images at once; {SMALLER}",
}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was asked for that is not there, on whichever device, in torch, a library of it, or Python."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    said = ("can't allocate memory", "out of memory", "STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(words in text for words in said)


def advice(error: BaseException, command: str) -> str:
    """What the memory went to, and which options of `command` make that less: one line."""
    kind = _spent_on(error)
    if kind in ADVICE:
        return ADVICE[kind]
    if command in BATCHED:
        what = "samples that are drawn" if kind == "samples" else "images that are worked on"
        return f"for the {what} at once; lower --batch-size"
    if command == "report":
        return "for the figures; lower --images and --limit, or take --device cpu"
    return (
        OF_TRAINING.get(kind, f"for the model; {SMALLER}") if command == "train" else "for the model; take --device cpu"
    )


def _spent_on(error: BaseException) -> str | None:
    """What the code was doing where the memory ended, None where that is unknown."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        parts = PurePath(frame.filename).parts
        for place, kind in SPENT_ON.items():
            wanted = tuple(place.split("/"))
            if any(parts[k : k + len(wanted)] == wanted for k in range(len(parts))):
                return kind
    return None

"""Which solver decodes each block fastest: a choice, where choices are kept, and what they depend on."""

from __future__ import annotations

import dataclasses
import os
import weakref
from pathlib import Path
from typing import Literal

import torch

from tarflow import storage
from tarflow.model.saving import read_json
from tarflow.model.sequence import SequenceFlow
from tarflow.sampling.guidance import Guidance
from tarflow.sampling.jacobi import Jacobi
from tarflow.sampling.sequential import Sequential
from tarflow.sampling.solver import Solver


@dataclasses.dataclass(frozen=True)
class Choice:
    """How one block is decoded, and what that took when it was measured.

    Attributes:
        solver: "sequential" or "jacobi".
        window: patches that "jacobi" evaluates at once.
            seconds: for the batch that was measured; of "sequential", estimated from a few steps.
        sequential_seconds: the same of the sequential solver, to compare with.
    """

    solver: Literal["sequential", "jacobi"]
    window: int | None = None
    seconds: float = 0.0
    sequential_seconds: float = 0.0

    def __post_init__(self) -> None:
        known = self.solver == "jacobi" or (self.solver == "sequential" and self.window is None)
        if not known or not (self.window is None or self.window >= 1):
            raise ValueError(
                f"solver: expected 'sequential', or 'jacobi' and a window, got {self.solver} {self.window}"
            )

    def __str__(self) -> str:
        return self.solver if self.window is None else f"{self.solver} {self.window}"

    def solver_of(self, tol: float | None) -> Solver:
        """The solver as a value."""
        return Sequential() if self.solver == "sequential" else Jacobi(self.window, tol)


class Calibration:
    """Which solver decodes each block of one flow fastest, for the batch sizes and guidances it was measured for.

    `tarflow.Auto(calibration)` reads it and fills it; `load` and `save` keep it beside a checkpoint, as `tarflow
    sample` does in RUN/solvers.json. Without one, a measurement lasts as long as the process and the weights.

    >>> import tarflow
    >>> flow = tarflow.TarFlow(tarflow.TarFlowConfig(8, channels=1, patch_size=2, width=64, layers=(1, 1)))
    >>> calibration = tarflow.Calibration()
    >>> x = tarflow.sample(flow, 2, solver=tarflow.Auto(calibration))
    >>> [len(choices) for choices in calibration.choices.values()]  # one a block
    [2]
    """

    def __init__(self, choices: dict[str, tuple[Choice, ...]] | None = None) -> None:
        self.choices = dict(choices or {})

    @classmethod
    def load(cls, path: str | Path, weights: str) -> Calibration:
        """What `save` wrote for the same `weights`; empty where there is no such file, or it is of other weights."""
        path = Path(path)
        if not path.is_file():
            return cls()
        try:
            stored = read_json(path)
            if stored["weights"] != weights:
                return cls()
            return cls({key: tuple(Choice(**c) for c in choices) for key, choices in stored["choices"].items()})
        except (ValueError, KeyError, TypeError, AttributeError):
            return cls()  # a measurement, not data: it is simply made again

    def save(self, path: str | Path, weights: str) -> None:
        """Write the choices, with a name for the weights that they were measured with."""
        choices = {key: [dataclasses.asdict(c) for c in choices] for key, choices in self.choices.items()}
        storage.write_json(Path(path), {"weights": weights, "choices": choices})


def calibration_key(flow: SequenceFlow, batch: int, guidance: Guidance | None, tol: float | None) -> str:
    """What a choice depends on: the machine, the precision, the batch, the guidance and the tolerance."""
    device = flow.device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} threads"
    guided = "no guidance" if guidance is None or guidance.scale == 0 else repr(guidance)
    tolerance = "default tolerance" if tol is None else f"tolerance {tol:g}"
    autocast = ", autocast" if torch.is_autocast_enabled(device.type) else ""
    dtype = str(flow.dtype).removeprefix("torch.")
    return f"{where}, {threads}, torch {torch.__version__}, {dtype}{autocast}, batch {batch}, {guided}, {tolerance}"


_REMEMBERED: weakref.WeakKeyDictionary[SequenceFlow, tuple[int, Calibration]] = weakref.WeakKeyDictionary()


def remembered(flow: SequenceFlow) -> Calibration:
    """What was measured for this flow in this process, as long as its weights are the same.

    Timings and nothing else: no sample depends on it beyond the tolerance of the solvers.
    """
    # What was made in inference mode counts no versions. A choice of weights that changed is slower, and not wrong.
    version = sum(0 if parameter.is_inference() else parameter._version for parameter in flow.parameters())
    known = _REMEMBERED.get(flow)
    if known is None or known[0] != version:
        known = _REMEMBERED[flow] = (version, Calibration())
    return known[1]

"""Which guidance and denoising are best for a model? Every setting of a grid, from the same noise, measured."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from tarflow import digests, storage
from tarflow.architecture import condition_parts
from tarflow.checkpoint import Run, weights_digest
from tarflow.config import TarFlowConfig, from_dict, to_dict
from tarflow.data.sets import given_values
from tarflow.evaluation.quality.judge import LOWER_IS_BETTER, Figure, Judge, Kind
from tarflow.fields import real
from tarflow.model.condition import make_condition
from tarflow.model.flow import sequence_config
from tarflow.model.saving import read_json
from tarflow.sampling.guidance import Guidance
from tarflow.sampling.sample import SamplingError
from tarflow.sampling.setting import UNGUIDED, Setting

SCALES = (0.0, 0.5, 1.0, 2.0, 3.0)  # the paper's best with classes are 1 to 3
UNCONDITIONAL_SCALES = (0.0, 0.1, 0.2, 0.5)  # and 0.2 without, at this temperature
UNCONDITIONAL_TEMPERATURE = 0.3
SWEEP = "sweep"  # the directory in a run
SWEEP_FILE = "sweep.json"  # in there: the rows
SWEEP_FILES = (SWEEP_FILE, "sweep.md", "sweep.svg")

Draw: TypeAlias = Callable[[Setting, int], Tensor]
"""draw(setting, seed): samples as uint8 pixels (N, C, H, W)."""


@dataclass(frozen=True)
class Row:
    """A setting with its figures by name; or with the reason why nothing could be drawn, and no figures."""

    setting: Setting
    figures: dict[str, Figure]
    failed: str = ""

    def to_dict(self) -> dict[str, Any]:
        """A dictionary that JSON can hold."""
        figures = {name: figure.to_dict() for name, figure in self.figures.items()}
        return {"setting": to_dict(self.setting), "figures": figures, "failed": self.failed}


def grid(
    config: TarFlowConfig,
    sigma: float | None,
    *,
    scales: Sequence[float] = (),
    schedules: Sequence[Literal["linear", "constant"]] = ("linear",),
    temperatures: Sequence[float] = (),
    rules: Sequence[Literal["paper", "stable"]] = ("paper",),
    strengths: Sequence[float] = (),
) -> list[Setting]:
    """Every combination once, the weakest guidance first.

    Args:
        config: of the model; decides what `scales` and `temperatures` are where none are given: with classes 0 to 3
            away from the null class, without 0 to 0.5 at temperature 0.3.
        sigma: σ of the noise in training; None where it was uniform.
        strengths: of denoising, as multiples of σ; 0 leaves the noise. None given: 1, or 0 without σ.

    Raises:
        ValueError: a value that `Setting` refuses, a strength without σ, guidance that would do nothing.
    """
    sizes = dict(condition_parts(config.conditioned_on))
    has_branches = config.num_classes > 1 or "vector" in sizes  # what null is another one than
    known = (
        torch.zeros(1, device="cpu", dtype=torch.int64),
        torch.zeros(1, *sizes.get("vector", ()), device="cpu", dtype=torch.float32),
    )
    first = given_values(config.conditioned_on, *known) if has_branches else None
    scales = scales or (SCALES if has_branches else UNCONDITIONAL_SCALES)
    temperatures = temperatures or ((1.0,) if has_branches else (UNCONDITIONAL_TEMPERATURE,))
    strengths = strengths or ((0.0,) if sigma is None else (1.0,))
    for strength in strengths:
        real("denoising strength", strength, "0 or more, as a multiple of σ", lambda value: value >= 0)
        if strength > 0 and sigma is None:
            raise ValueError(f"denoising strength {strength}: the model was not trained with Gaussian noise")
    settings: dict[Setting, None] = {}
    for strength, rule, temperature, schedule, scale in itertools.product(
        strengths, rules, temperatures, schedules, sorted(scales)
    ):
        denoise = None if sigma is None or strength == 0 else strength * sigma
        # Without guidance there is no rule to it: one setting, however many rules are tried.
        kept = Setting(Guidance(scale, schedule, temperature, rule) if scale else UNGUIDED, denoise)
        kept.guidance.check(first, make_condition(sequence_config(config).condition), config.num_patches)
        settings[kept] = None
    return list(settings)


def sweep(
    settings: Sequence[Setting],
    draw: Draw,
    judge: Judge,
    levels: int,
    *,
    seed: int = 0,
    known: Sequence[Row] = (),
    done: Callable[[list[Row]], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Measure every setting with the samples of one seed, so that all of them start from the same noise.

    Args:
        known: rows of an earlier sweep that was interrupted; their settings are not drawn again.
        done: called with all rows so far after each that is new. progress: told of the features of its samples.

    A setting whose samples are not finite has a row that says so.
    """
    found: list[Row] = []
    before = {row.setting: row for row in known}
    for setting in settings:
        if setting in before:
            found.append(before[setting])
            continue
        try:
            row = Row(setting, judge.figures(draw(setting, seed), levels, progress))
        except SamplingError as error:
            row = Row(setting, {}, str(error))
        found.append(row)
        if done is not None:
            done(found)
    return found


def best_row(rows: Sequence[Row], judge: Judge, by: Kind = "FD") -> Row:
    """The row that is best by one figure; of equals the first, which has the weakest guidance.

    Raises ValueError where no setting could be drawn.
    """
    measured = [row for row in rows if row.figures]
    if not measured:
        raise ValueError(f"no setting gave finite samples; of the first: {rows[0].failed if rows else 'there is none'}")
    sign = 1 if by in LOWER_IS_BETTER else -1
    return min(measured, key=lambda row: sign * row.figures[judge.extractor.figure(by)].value)


@dataclass(frozen=True)
class Swept:
    """What a sweep found: its rows, the best of them by the figure `by`, and the best's figures with other noise."""

    rows: list[Row]
    by: str
    best: Row
    again: dict[str, Figure]
    at_edge: list[str]

    def summary(self, judge: Judge) -> dict[str, Any]:
        """What is said of the rows, as JSON can hold it."""
        return {
            "by": self.by,
            "best": to_dict(self.best.setting),
            "at_edge": self.at_edge,
            "again": {name: figure.to_dict() for name, figure in self.again.items()},
            "extractor": {"name": judge.extractor.name, "description": judge.extractor.description},
        }


def sweep_run(
    run: Run,
    settings: Sequence[Setting],
    draw: Draw,
    judge: Judge,
    out: Path,
    *,
    samples: int,
    by: Kind = "FD",
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
    progress: Callable[[int, int], None] | None = None,
) -> Swept:
    """`sweep` with its rows kept in `out`, so that it goes on after an interruption; and the best drawn once more.

    Args:
        samples: how many `draw` gives. by: the figure that decides which is the best.
        say: told of each row, and of what is replaced.
    """
    key = {
        "weights": weights_digest(run.path),
        "extractor": judge.extractor.digest,
        "reference": judge.reference.digest,
        "samples": samples,
        "seed": seed,
    }
    name = judge.extractor.figure(by)
    out.mkdir(parents=True, exist_ok=True)
    file = out / SWEEP_FILE
    before = read_sweep(file)
    if before is not None and (lost := before.replaced_by(key, settings)) is not None:
        say(f"{file}: replaced: {lost}")

    def done(rows: list[Row]) -> None:
        write_rows(file, key, rows)
        last = rows[-1]
        found = f"{name} {last.figures[name].value:.4g}" if last.figures else f"failed: {last.failed}"
        say(f"{len(rows)}/{len(settings)}  {last.setting}: {found}")

    known = before.rows if before is not None and before.key == key else ()
    rows = sweep(settings, draw, judge, run.levels, seed=seed, known=known, done=done, progress=progress)
    best = best_row(rows, judge, by)
    again = judge.figures(draw(best.setting, seed + 1), run.levels, progress)
    found = Swept(rows, name, best, again, edges([row.setting for row in rows], best.setting))
    write_rows(file, key, rows, **found.summary(judge))
    return found


@dataclass(frozen=True)
class StoredSweep:
    """What a file of `write_rows` holds: its key, its rows, and what was said of them when the sweep was done."""

    key: dict[str, Any]
    rows: list[Row]
    more: dict[str, Any]

    def replaced_by(self, key: dict[str, Any], settings: Sequence[Setting]) -> str | None:
        """What is lost when a sweep of other settings, or of another key, is written over this one; None where nothing
        is."""
        differs = sorted(name for name in self.key.keys() | key.keys() if self.key.get(name) != key.get(name))
        if differs:
            return f"{len(self.rows)} settings measured with other {', '.join(differs)}"
        lost = sum(row.setting not in settings for row in self.rows)
        return f"{lost} of {len(self.rows)} settings measured before, which are not in this grid" if lost else None


def edges(settings: Sequence[Setting], best: Setting) -> list[str]:
    """In a sentence each, on which sides the grid ends at the best setting, so that a better one may lie beyond.

    No guidance, and no denoising, are no edge: there is nothing below. Neither is a value that was the only one tried.
    """
    guidances = [s.guidance for s in settings]
    guided = best.guidance.scale > 0
    axes: list[tuple[str, float | None, set[float]]] = [
        ("scale of the guidance", best.guidance.scale, {g.scale for g in guidances}),
        ("temperature", best.guidance.temperature if guided else None, {g.temperature for g in guidances if g.scale}),
        ("σ of the denoising", best.denoise, {s.denoise or 0.0 for s in settings}),
    ]
    found = []
    for name, value, tried in axes:
        if value and len(tried) > 1 and value in (min(tried), max(tried)):
            end = "largest" if value == max(tried) else "smallest"
            found.append(f"the best {name}, {value:g}, is the {end} that was tried: a better one may lie beyond it")
    return found


def read_sweep(path: Path) -> StoredSweep | None:
    """What `write_rows` left in a file; None where it is missing, damaged, or written by another version."""
    if not path.is_file():
        return None
    try:
        stored = digests.unsealed(read_json(path))
        if stored is None:
            return None
        rows = [
            Row(
                from_dict(Setting, row["setting"]),
                {str(name): Figure.from_dict(values) for name, values in row["figures"].items()},
                str(row["failed"]),
            )
            for row in stored["rows"]
        ]
        return StoredSweep(dict(stored["key"]), rows, {k: v for k, v in stored.items() if k not in ("key", "rows")})
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def write_rows(path: Path, key: dict[str, Any], rows: Sequence[Row], **more: Any) -> None:
    """Write rows with what they depend on, whole or not at all."""
    storage.write_json(path, digests.sealed({"key": key, "rows": [row.to_dict() for row in rows], **more}))

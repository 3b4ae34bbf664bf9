"""A flow on the columns of a table: which are events and which conditions, and what numbers they become.

    RUN/config.json           sections model (a VectorFlow), table (the columns), training (how it was fitted)
    RUN/model.safetensors     the averaged weights with the best held-out likelihood
    RUN/metrics.jsonl         one evaluation a line, nats a row

A condition of words is one of classes, in the order of the alphabet; all conditions that are numbers are one vector.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tarflow import checkpoint, runs, storage
from tarflow.config import ConfigError, from_dict, to_dict
from tarflow.data.errors import DataError, DataWarning
from tarflow.data.names import few
from tarflow.data.tables import Table
from tarflow.fields import coerce_fields
from tarflow.model.saving import CONFIG_FILE, read_json
from tarflow.model.vector import VectorFlow
from tarflow.pretrained import TABLE_SECTION, is_table_run, located
from tarflow.sampling.sample import sample
from tarflow.training.fit import HELD_OUT, fit
from tarflow.training.fitted import Fit
from tarflow.training.rows import Rows, split_rows

MOST_CLASSES = 1000  # words in a column of conditions; a column of names or texts has more
DIGITS = 1e4  # how far from zero, in its deviations, a column may lie to be learned from in float32
TOLD = ("held_out_log_prob", "standard_error", "best_step", "steps", "stopped", "skipped", "rows", "held_out_rows")
"""What config.json says of a fit, beside its arguments."""
REPEATED = 10  # rows a distinct number, from which on a column is said to repeat itself


@dataclass(frozen=True)
class TableConfig:
    """The section `table` of a run: which columns it is about.

    Attributes:
        source: the table it was fitted to. events, conditions: names of columns.
        classes: for each condition its words; none of numbers.
    """

    source: str
    events: tuple[str, ...]
    conditions: tuple[str, ...] = ()
    classes: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        coerce_fields(self)
        if not self.events:
            raise ConfigError("events: expected at least one column")
        if len(self.classes) != len(self.conditions):
            raise ConfigError(f"classes: expected {len(self.conditions)} entries, got {len(self.classes)}")

    @property
    def numbers(self) -> list[str]:
        """The conditions that are numbers."""
        return [name for name, words in zip(self.conditions, self.classes, strict=True) if not words]

    @property
    def words(self) -> dict[str, tuple[str, ...]]:
        """The conditions that are words, and which there are."""
        return {name: words for name, words in zip(self.conditions, self.classes, strict=True) if words}

    @property
    def condition(self) -> str:
        """What a `VectorConfig` calls them."""
        parts = [f"classes:{len(words)}" for words in self.words.values()]
        parts += [f"vector:{len(self.numbers)}"] if self.numbers else []
        return "+".join(parts) or "none"

    def events_of(self, table: Table) -> Tensor:
        """x (N, E) of the rows of a table, float64."""
        return torch.from_numpy(table.numbers(self.events, "an event"))

    def values_of(self, table: Table) -> Any:
        """c of the rows of a table, as a flow takes it; None where there are no conditions."""
        values: list[Tensor] = []
        for name, known in self.words.items():
            index = {word: k for k, word in enumerate(known)}
            found = table.words(name)
            for row, word in enumerate(found):
                if word not in index:
                    raise DataError(
                        f"{table.path}: column {name!r}, row {row}: expected one of {few(known)}, got {word!r}"
                    )
            values.append(torch.tensor([index[word] for word in found], device="cpu", dtype=torch.int64))
        if self.numbers:
            numbers = table.numbers(self.numbers, "a condition")
            values.append(torch.from_numpy(numbers).float())
        return None if not values else values[0] if len(values) == 1 else tuple(values)


def choose_columns(table: Table, events: Sequence[str], conditions: Sequence[str]) -> TableConfig:
    """The columns that are events and conditions; without names of events all other numbers are.

    Raises `DataError` naming the option and the column.
    """
    given = table.named(conditions, "--conditions")
    chosen = table.named(events, "--events")
    if not events:
        chosen = tuple(name for name in table.columns if table.numeric(name) and name not in given)
        if not chosen:
            raise DataError(f"{table.path}: no column of numbers is left for events")
    both = [name for name in chosen if name in given]
    if both:
        raise DataError(f"--conditions: column {both[0]!r} is an event already")
    for name in chosen:
        if not table.numeric(name):
            raise DataError(f"--events: {table.path}: column {name!r} holds words; only a condition may")
    return TableConfig(str(table.path), chosen, given, tuple(_classes(table, name) for name in given))


def _classes(table: Table, name: str) -> tuple[str, ...]:
    """The words of a column, in the order of the alphabet; none of a column of numbers."""
    if table.numeric(name):
        return ()
    words = sorted(set(table.words(name)))
    if len(words) > MOST_CLASSES:
        raise DataError(
            f"--conditions: {table.path}: column {name!r} holds {len(words)} different words; at most {MOST_CLASSES}"
        )
    return tuple(words)


@dataclass(frozen=True)
class TableRun:
    """A flow on the columns of a table. `fit_table` makes one, `tarflow.open_run` opens it."""

    path: Path
    flow: VectorFlow
    columns: TableConfig

    def score(self, table: Table) -> Tensor:
        """The log-likelihood of every row given its conditions, nats, (N,) float64."""
        return Rows(self.flow, self.columns.events_of(table), self.columns.values_of(table)).log_prob()

    def held_out(self, table: Table) -> Rows:
        """The rows that the fit held out, where the table has as many rows as the one fitted to; else all rows."""
        rows = Rows.checked(self.flow, self.columns.events_of(table), self.columns.values_of(table))
        told = self.training
        if told.get("rows", 0) + told.get("held_out_rows", 0) != len(table):
            return rows
        return split_rows(rows, told.get("held_out", HELD_OUT), told["seed"])[1]

    @property
    def training(self) -> dict[str, Any]:
        """What config.json says of the fit; nothing where it says nothing."""
        found: dict[str, Any] = read_json(self.path / CONFIG_FILE).get("training") or {}
        return found

    def sample(
        self, n: int, given: Table | None = None, seed: int = 0, *, null: bool = False, **options: Any
    ) -> dict[str, Any]:
        """Draw n rows, or n for each row of a table of conditions: columns by name, and which row each was drawn for.

        Args:
            given: a table with the columns of the conditions; None where there are none, or with `null`, under what was
                learned for when they are left open (`label_drop`).
            seed, options: as of `tarflow.sample`.
        """
        if given is None and self.columns.conditions and not null:
            raise ValueError(
                f"{self.path}: conditioned on {', '.join(self.columns.conditions)}; expected values of them"
            )
        c = None if given is None else self.flow.conditions.repeat(self.columns.values_of(given), n)
        rows = 1 if given is None else len(given)
        drawn = sample(self.flow, n * rows, c, seed=seed, **options).double().cpu().numpy()
        columns: dict[str, Any] = {}
        if given is not None and self.columns.conditions:
            if rows > 1:
                columns["row"] = np.repeat(np.arange(rows), n)
            columns |= {name: np.repeat(given.columns[name], n) for name in self.columns.conditions}
        return columns | {name: drawn[:, k] for k, name in enumerate(self.columns.events)}


def open_run(path: str | Path, *, device: torch.device | str = "cpu") -> Any:
    """Open a RUN of any kind by its path, or a model of the package or the hub by its name.

    A `tarflow.Run` where it is one of images (or one `step-N` of it, or a hub directory), and a `TableRun` where it is
    one of the columns of a table.

    Raises FileNotFoundError or ValueError naming the file that is missing or does not fit.

    >>> import tarflow
    >>> run = tarflow.open_run("digits")
    >>> run.levels, run.sample("2", n=4).shape
    (17, torch.Size([4, 1, 8, 8]))
    """
    where = located(path)
    return open_table_run(where, device) if is_table_run(where) else runs.open_run(path, device=device)


def open_table_run(path: str | Path, device: torch.device | str = "cpu") -> TableRun:
    """Open the directory that `fit_table` left. Raises FileNotFoundError or ValueError naming the file."""
    file = Path(path) / CONFIG_FILE
    sections = read_json(file)
    if not isinstance(sections, dict) or TABLE_SECTION not in sections:
        raise ValueError(f"{file}: expected a section {TABLE_SECTION!r}, as of a flow on the columns of a table")
    columns = from_dict(TableConfig, sections[TABLE_SECTION], f"{file}: {TABLE_SECTION}")
    flow = VectorFlow.from_pretrained(path, device=device)
    if (flow.config.dim, flow.config.condition) != (len(columns.events), columns.condition):
        raise ConfigError(
            f"{file}: a flow on {flow.config.dim} numbers given {flow.config.condition}, and {len(columns.events)} "
            f"events given {columns.condition} in section {TABLE_SECTION!r}"
        )
    return TableRun(Path(path), flow, columns)


def fit_table(
    table: Table,
    columns: TableConfig,
    out: str | Path,
    *,
    model: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool | Callable[[dict[str, float]], None] = False,
    **training: Any,
) -> tuple[TableRun, Fit]:
    """Fit a flow to a table, and leave a run directory, when it is done: a run that is stopped leaves nothing.

    Args:
        table: its rows are learned from, and a share of them held out. columns: `choose_columns`.
        out: a new or an empty directory.
        model: fields of `VectorConfig`, such as width. seed: of the weights too.
        progress, training: as of `tarflow.training.fit.fit`.
    """
    out = Path(out)
    storage.check_vacant(out, "--out")
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    storage.check_writable(there / CONFIG_FILE)
    x, c = columns.events_of(table), columns.values_of(table)
    _warn_of_repetition(columns, x, table.path)
    centre, spread = x.abs().amax(dim=0), x.std(dim=0)
    if bool((centre <= DIGITS * spread).all()):
        x = x.float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flow = VectorFlow(len(columns.events), condition=columns.condition, device="cpu", **(model or {})).to(device)
    result = fit(flow, x, c, seed=seed, progress=progress, **training)
    flow.eval()
    storage.check_vacant(out)  # another may have written there in between
    out.parent.mkdir(parents=True, exist_ok=True)
    with storage.replacing_directory(out) as place:
        flow.save_pretrained(place)
        told = {"seed": seed, **training} | {name: getattr(result, name) for name in TOLD}
        storage.write_json(
            place / CONFIG_FILE, read_json(place / CONFIG_FILE) | {TABLE_SECTION: to_dict(columns), "training": told}
        )
        for entry in result.curve:
            checkpoint.append_metrics(place, dataclasses.asdict(entry))
    return TableRun(out, flow, columns), result


def _warn_of_repetition(columns: TableConfig, x: Tensor, where: Path) -> None:
    """A `DataWarning` that names the events whose numbers repeat themselves: their density has no upper bound."""
    names = [name for k, name in enumerate(columns.events) if len(x[:, k].unique()) * REPEATED <= len(x)]
    if names:
        warnings.warn(
            f"{where}: {few(names)}: few different numbers in {len(x)} rows; a density of numbers that repeat has no "
            "upper bound: add noise of the width to which they are rounded, or give them as conditions",
            DataWarning,
            stacklevel=3,
        )

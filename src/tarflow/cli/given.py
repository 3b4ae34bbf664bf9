"""What `--given name=value,name=value` and `--conditions-from TABLE` say of the conditions of a run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tarflow.config import names_in

if TYPE_CHECKING:
    from torch import Tensor

    from tarflow.checkpoint import Run
    from tarflow.data.numbers import ImageNumbers
    from tarflow.data.tables import Table

NULL = "null"


def given_row(words: str, names: Sequence[str], of_words: Collection[str] = ()) -> Table:
    """A table of one row, of what words say of the columns `names`, of which those `of_words` are no numbers.

    Raises ValueError that names the column that is missing, unknown, there twice or no number.
    """
    import numpy as np

    from tarflow.data.tables import Table

    found: dict[str, str] = {}
    for word in names_in(words):
        name, equals, value = word.partition("=")
        name = name.strip()
        if not equals or name not in names or name in found:
            raise ValueError(f"--given: expected {'=…,'.join(names)}=…, each once, got {word!r}")
        found[name] = value.strip()
    values: dict[str, Any] = {}
    for name in names:
        if name not in found:
            raise ValueError(f"--given: {name} is missing; the conditions are {', '.join(names)}")
        try:
            text = found[name]
            values[name] = np.array([text], object) if name in of_words else np.array([float(text)])
        except ValueError:
            raise ValueError(f"--given: {name}: expected a number, got {found[name]!r}") from None
    return Table(Path("--given"), values, {}, {})


def check_one(given: str, conditions_from: Path | None) -> None:
    """Raise ValueError where both say what the conditions are."""
    if given and conditions_from is not None:
        raise ValueError("--given, --conditions-from: expected one of them")


def given_numbers(run: Run, given: str, conditions_from: Path | None) -> Tensor | None:
    """Numbers (M, K) float32 of a run on images: one row, or those of a table. None is null, and of a run without.

    Raises ValueError where it is conditioned on numbers and nothing says which, or the other way round.
    """
    import torch

    from tarflow.data.tables import read_table
    from tarflow.run_data import check_numbers, numbers_of

    check_one(given, conditions_from)
    names = numbers_of(run)
    if not names:
        if given or conditions_from is not None:
            check_numbers(run, "--given" if given else "--conditions-from")
        return None
    if given == NULL:
        return None
    if not given and conditions_from is None:
        raise ValueError(
            f"--given or --conditions-from: expected one; {run.path} is conditioned on {', '.join(names)} "
            f"(--given {NULL} leaves that open)"
        )
    table = given_row(given, names) if conditions_from is None else read_table(conditions_from)
    return torch.from_numpy(table.numbers(names, "a condition")).float()


def numbers_for_images(run: Run, given: str, conditions_from: Path | None) -> ImageNumbers | Tensor | None:
    """Numbers that images are scored under: one row (1, K) for all, or a table with those of each. None is null."""
    from tarflow.data.numbers import ImageNumbers
    from tarflow.run_data import check_numbers, numbers_of

    check_one(given, conditions_from)
    if conditions_from is not None:
        check_numbers(run, "--conditions-from")
        return ImageNumbers(str(conditions_from), ",".join(numbers_of(run)))
    return given_numbers(run, given, None) if given else None

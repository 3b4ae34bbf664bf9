"""What `--given name=value,name=value` and `--conditions-from TABLE` say of the conditions of a run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tarflow.config import NULL, finite_number, values_in

if TYPE_CHECKING:
    from torch import Tensor

    from tarflow.checkpoint import Run
    from tarflow.data.numbers import ImageNumbers
    from tarflow.data.tables import Table


def given_row(words: str, names: Sequence[str], of_words: Collection[str] = ()) -> Table | None:
    """A table of one row, of what words say of the columns `names`, of which those `of_words` are no numbers.

    None of `null`. Raises ValueError that names the column that is missing, unknown, there twice or no number.
    """
    import numpy as np

    from tarflow.data.tables import Table

    try:
        found = values_in(words, names)
        if found is None:
            return None
        columns: dict[str, Any] = {
            name: np.array([word], object) if name in of_words else np.array([finite_number(name, word)])
            for name, word in zip(names, found, strict=True)
        }
    except ValueError as error:
        raise ValueError(f"--given: {error}") from None
    return Table(Path("--given"), columns, {}, {})


def check_one(given: str, conditions_from: Path | None) -> None:
    """Raise ValueError where both say what the conditions are."""
    if given and conditions_from is not None:
        raise ValueError("--given, --conditions-from: expected one of them")


def check_null_is_known(
    run: Any, names: Sequence[str], label_drop: float, problem: str = "--given or --conditions-from: expected one"
) -> None:
    """Raise ValueError that begins with `problem` where conditions are left open that training never dropped.

    Nothing was learned for that.
    """
    if not label_drop:
        raise ValueError(
            f"{problem}; {run} was trained with --label-drop 0, and has learned nothing for when {', '.join(names)} "
            f"{'is' if len(names) == 1 else 'are'} left open"
        )


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
    if not given and conditions_from is None:
        raise ValueError(
            f"--given or --conditions-from: expected one; {run.path} is conditioned on {', '.join(names)} "
            f"(--given {NULL} leaves that open)"
        )
    table = given_row(given, names) if conditions_from is None else read_table(conditions_from)
    if table is None:
        check_open(run)
        return None
    return torch.from_numpy(table.numbers(names, "a condition")).float()


def numbers_for_images(run: Run, given: str, conditions_from: Path | None) -> ImageNumbers | Tensor | None:
    """Numbers that images are looked at under: one row (1, K) for all, or a table with those of each. None is null.

    Where nothing says which, that is null.
    """
    from tarflow.data.numbers import ImageNumbers
    from tarflow.run_data import check_numbers, numbers_of

    check_one(given, conditions_from)
    names = numbers_of(run)
    if conditions_from is not None:
        check_numbers(run, "--conditions-from")
        return ImageNumbers(str(conditions_from), ",".join(names))
    if given or not names:
        return given_numbers(run, given, None)
    check_open(run)
    return None


def said_of(run: Run, labels: str, numbers: ImageNumbers | Tensor | None) -> str:
    """What a command says that images were taken to be of: these labels, where there are classes, and these numbers.

    What is left open is what training learned for that: the rest is then drawn, or denoised, as under any of them.
    """
    from torch import Tensor

    from tarflow.drawing import class_count
    from tarflow.run_data import numbers_of

    said = [labels] if class_count(run) else []
    if names := numbers_of(run):
        if numbers is None:
            said.append(f"{', '.join(names)} left open")
        elif isinstance(numbers, Tensor):
            said += [f"{name}={value:g}" for name, value in zip(names, numbers[0].tolist(), strict=True)]
        else:
            said.append(f"{', '.join(names)} of {numbers.table.path}")
    return ", ".join(said) or "unconditional"


def check_open(run: Run, *problem: str) -> None:
    """`check_null_is_known` of the numbers of a run on images, if there are any."""
    from tarflow.run_data import numbers_of

    training = run.config.training
    if names := numbers_of(run):
        check_null_is_known(run.path, names, 1.0 if training is None else training.label_drop, *problem)

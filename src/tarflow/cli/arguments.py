"""From words to options: tyro fills a dataclass, and what it refuses is one line."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    NoReturn,
    TypeAlias,
    TypedDict,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import tyro
from tyro import _errors  # its hook for errors has no public name: pyproject.toml pins the minor version
from tyro.conf import FlagCreatePairsOff, Positional, arg

from tarflow import pretrained
from tarflow.fields import integer

# Options that several commands have.
Flag: TypeAlias = FlagCreatePairsOff[bool]
RunPath: TypeAlias = Annotated[  # no Path, for which `./digits` would be the name of a model
    Positional[str],
    arg(
        help="a run, a directory with a model, one step-N, a name of `tarflow models`, or one of the hub",
        metavar="RUN",
    ),
]
Device: TypeAlias = Annotated[Literal["auto", "cpu", "cuda", "mps"], arg(help="where to compute")]
SkipBad: TypeAlias = Annotated[Flag, arg(help="leave out files that cannot be read")]
GivenOrOpen: TypeAlias = Annotated[
    str,
    arg(help="of a model given numbers, these for all images: name=value, with commas; left open when not given"),
]
ConditionsOfImages: TypeAlias = Annotated[
    Path | None, arg(help="a table with these numbers for each image, by the column `file` (docs/conditions.md)")
]
Precision: TypeAlias = Annotated[
    Literal["auto", "float32"], arg(help="of products on CUDA; auto: tf32, to 6e-5 bits/dim, and faster")
]


def parse(options: Any, argv: Sequence[str], prog: str) -> Any:
    """Fill the dataclass `options` from `argv`. Raises ValueError with one line in place of tyro's box."""

    def refuse(event: _errors.ParseErrorEvent) -> NoReturn:
        raise ValueError(f"{_problem(event, options)}; see {prog} --help")

    with _errors.on_parse_error(refuse):
        return tyro.cli(options, args=list(argv), prog=prog, description=inspect.getdoc(options))


def _problem(event: _errors.ParseErrorEvent, options: Any) -> str:
    """What is wrong, in one line. An option that is nearly one of ours comes first: what it leaves missing follows."""
    unknown = [] if not isinstance(event, _errors.UnrecognizedArgs) else event.tokens
    unknown = event.unrecognized_tokens if isinstance(event, _errors.MissingArgs) else unknown
    known = option_names(options)
    for word in unknown:
        name = word.partition("=")[0].replace("_", "-")
        if name.startswith("-") and (near := difflib.get_close_matches(name, known, 1)):
            return f"{name}: no such option; perhaps {near[0]}?"
    if isinstance(event, _errors.MissingArgs):
        missing = [f"{each.arg.get_invocation_text()[1]} {each.arg.field.helptext}" for each in event.missing_arguments]
        return f"Missing from {event.prog}: " + ", ".join(missing)
    if isinstance(event, _errors.BadValue):
        return f"{event.argument.display_name()}: expected a value"
    if isinstance(event, _errors.InvalidChoice):
        return f"{event.argument.display_name()}: expected one of {', '.join(event.choices)}, got {event.value!r}"
    if isinstance(event, _errors.InstantiationFailure):
        return f"{event.argument.display_name() if event.argument else 'options'}: {event.message}"
    return "Unrecognized options: " + ", ".join(unknown)


def is_table_run(word: str) -> bool:
    """Whether a word is the directory of a flow on the columns of a table, which a few options are different for."""
    return not word.startswith("-") and pretrained.is_table_run(word)


def check_positive(args: Any, *names: str) -> None:
    """Raise ValueError that names the first of these options that was given and is no positive number."""
    for name in names:
        if (value := getattr(args, name)) is not None:
            integer(f"--{name.replace('_', '-')}", value, 1)


def option_names(options: Any) -> list[str]:
    """The options of a dataclass, with those of what is nested in it.

    >>> @dataclasses.dataclass
    ... class Options:
    ...     batch_size: int
    ...     flip: bool = False
    >>> option_names(Options)
    ['--batch-size', '--flip', '--no-flip']
    """
    names = []
    for name, hint in get_type_hints(options, include_extras=True).items():
        kind, marks = (get_args(hint)[0], get_args(hint)[1:]) if get_origin(hint) is Annotated else (hint, ())
        if dataclasses.is_dataclass(kind) or is_typeddict(kind):
            names += option_names(kind)
            continue
        named = next((mark.name for mark in marks if getattr(mark, "name", None)), name).replace("_", "-")
        names += [f"--{named}", f"--no-{named}"] if kind is bool else [f"--{named}"]
    return names


def check_for_tables(argv: Sequence[str], of_images: Any, of_tables: Any) -> None:
    """Raise ValueError that names the first word of `argv` that is an option of a command on images alone."""
    known = set(option_names(of_tables))
    for word in argv:
        name = word.partition("=")[0].replace("_", "-")
        if name not in known and name in option_names(of_images):
            raise ValueError(f"{name}: an option for images, which means nothing for a table")


def typed_fields(cls: type, shown: Mapping[str, Any], names: Collection[str] | None = None) -> Any:
    """Options for the fields of a config, those with `names` or all that can be typed, as a type of dictionaries.

    What is parsed holds the fields that were typed, and no others: what the user says is never mistaken for a default.
    `shown` are the values that --help shows for the others.
    """
    hints, fields = get_type_hints(cls), {}
    for entry in dataclasses.fields(cls):
        if "option" not in entry.metadata or (names is not None and entry.name not in names):
            continue
        value = shown.get(entry.name, entry.default)
        known = value is not None and value is not dataclasses.MISSING
        words = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        fields[entry.name] = Annotated[
            hints[entry.name],
            arg(
                help=entry.metadata["help"],
                name=entry.metadata["option"] or entry.name.replace("_", "-"),
                help_behavior_hint=f"(default: {words})" if known else "(not given by default)",
            ),
        ]
    return TypedDict(cls.__name__, fields, total=False)  # type: ignore[operator]

"""Strict fields of frozen dataclasses: their help text, their types, and errors that name them.

An unknown field, a value of the wrong type and a contradiction are each a `ConfigError` that names the field.
"""

from __future__ import annotations

import dataclasses
import difflib
import numbers
import operator
import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

T = TypeVar("T")


class ConfigError(ValueError):
    """A field that does not exist, has the wrong type, or contradicts another one."""


def option(default: Any = dataclasses.MISSING, *, help: str, name: str = "") -> Any:
    """A dataclass field that the command line takes, by its own name or another; without a default it is required."""
    return field(default=default, metadata={"help": help, "option": name})


def derived(default: Any, *, help: str, compare: bool = True) -> Any:
    """A dataclass field that nobody types: it follows from the data or the weights, or is drawn."""
    return field(default=default, metadata={"help": help}, compare=compare)


def to_dict(config: Any) -> dict[str, Any]:
    """A config as a dictionary that JSON can hold."""
    return dataclasses.asdict(config)


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Build the dataclass `cls` from `values`, strictly.

    Raises `ConfigError` naming the field: unknown (with the nearest known name), missing, of the wrong type, or refused
    by the dataclass itself. `where` stands before the field's name in the message, such as `"recipe.toml: training"`.
    """
    check_fields(cls, values, where)
    for name, value in values.items():  # what is there before what is missing
        check_value(cls, name, value, where)
    prefix = f"{where}." if where else ""
    for entry in dataclasses.fields(cls):  # type: ignore[arg-type]
        required = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        if required and entry.name not in values:
            raise ConfigError(f"{prefix}{entry.name}: missing")
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"{prefix}{error}") from None


def own_number(value: Any) -> Any:
    """A NumPy scalar, or an array or tensor without axes, as Python's own number; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def integer(name: str, value: Any, least: int | None = None) -> int:
    """The value of an integer of any kind: Python's, NumPy's, an array or a tensor without axes.

    Raises ValueError that begins with `name` for anything else, also for a boolean, a float that is whole, and what is
    below `least`: to go on with another number than was meant would go unnoticed.

    >>> import numpy
    >>> integer("seed", 7), integer("seed", numpy.uint8(7))
    (7, 7)
    """
    number = own_number(value)
    try:
        found = None if isinstance(number, bool) or hasattr(number, "ndim") else operator.index(number)
    except TypeError:
        found = None
    if found is None:
        raise ValueError(f"{name}: expected a whole number, got {value!r}")
    if least is not None and found < least:
        expected = {0: "0 or more", 1: "a positive number"}.get(least, f"at least {least}")
        raise ValueError(f"{name}: expected {expected}, got {found}")
    return found


def real(name: str, value: Any, expected: str, holds: Callable[[float], bool] = lambda _: True) -> float:
    """The value of a finite number of any kind for which a condition holds, as a float; no boolean is a number.

    Raises ValueError that names it, and what was `expected`.
    """
    number = own_number(value)
    of_kind = not isinstance(number, bool) and isinstance(number, numbers.Real)
    if not of_kind or not abs(number) <= sys.float_info.max or not holds(float(number)):
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return float(number)


def check_fields(cls: type, values: Mapping[str, Any], where: str = "") -> None:
    """Raise ConfigError naming the first of `values` that is no field of the dataclass `cls`."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or cls.__name__}: expected a table of fields, got {values!r}")
    known = [entry.name for entry in dataclasses.fields(cls)]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"; perhaps {near[0]}?" if near else f"; known: {', '.join(known)}"
            raise ConfigError(f"{where}{'.' if where else ''}{name}: no such field{hint}")


def check_value(cls: type, name: str, value: Any, where: str = "") -> Any:
    """`value` as the field `name` of the dataclass `cls` holds it; ConfigError where it has another type."""
    return _coerce(value, typing.get_type_hints(cls)[name], f"{where}{'.' if where else ''}{name}")


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """`value` as the annotated type `hint`: a whole float is an int, an int is a float, a list (JSON's) is a tuple."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        for choice in args:
            try:
                return _coerce(value, choice, where)
            except ConfigError:
                continue
    elif origin is Literal:
        if value in args:
            return value
    elif origin is tuple:
        if isinstance(value, list | tuple) and (args[-1] is Ellipsis or len(value) == len(args)):
            inner = [args[0]] * len(value) if args[-1] is Ellipsis else args
            return tuple(_coerce(v, h, f"{where}[{i}]") for i, (v, h) in enumerate(zip(value, inner, strict=True)))
    elif dataclasses.is_dataclass(hint):
        if dataclasses.is_dataclass(value) and isinstance(value, hint):  # type: ignore[arg-type]
            return value
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    elif hint is types.NoneType:
        if value is None:
            return None
    elif isinstance(number := own_number(value), bool):
        if hint is bool:
            return number
    elif hint is int and isinstance(number, int | float) and number == number // 1:
        return int(number)
    elif hint is float and isinstance(number, int | float) and abs(number) <= sys.float_info.max:
        return float(number)
    elif hint is str and isinstance(value, str):
        return value
    raise ConfigError(f"{where}: expected {_describe(hint)}, got {value!r}")


def _describe(hint: Any) -> str:
    """A type in the words of a message to a user."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(a) for a in args if a is not types.NoneType)
    if origin is Literal:
        return " or ".join(repr(a) for a in args)
    if origin is tuple:
        if args[-1] is Ellipsis:
            return f"a list, each {_describe(args[0])}"
        return f"{len(args)} values, each {_describe(args[0])}"
    names = {
        int: "a whole number",
        float: "a number",
        str: "a string",
        bool: "true or false",
        types.NoneType: "nothing",
    }
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def coerce_fields(config: Any) -> None:
    """Check every field of a frozen config against its annotation, however it was built."""
    hints = typing.get_type_hints(type(config))
    for entry in dataclasses.fields(config):
        value = _coerce(getattr(config, entry.name), hints[entry.name], entry.name)
        object.__setattr__(config, entry.name, value)


def check(holds: bool, name: str, expected: str, got: Any) -> None:
    """Raise a ConfigError that names the field unless a condition on its value holds."""
    if not holds:
        raise ConfigError(f"{name}: expected {expected}, got {got!r}")

"""Ways to spoil a file, by a seed: as bytes, and for text as text that still parses, with other values in it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any, TypeAlias

Mutation: TypeAlias = Callable[[bytes, random.Random], bytes]

# What stands where a number, a name or a list was expected. JSON and TOML both read most of these.
STRANGE: tuple[Any, ...] = (
    *(
        None,
        True,
        "",
        "nan",
        -1,
        0,
        1e308,
        -0.5,
        10**12,
        2**63,
        2**70,
        float("nan"),
        float("inf"),
        [],
        {},
        [[]],
        [1, "a"],
    ),
    *("a" * 4000, "../../../etc/passwd", "\x00", "\ud800", "%s%n", [0] * 300, {"": {}}, "1; import os"),
)
TOKENS = (
    b"-1",
    b"0",
    b"nan",
    b"inf",
    b"1e999",
    b"99999999999999999999",
    b'""',
    b"[]",
    b"{}",
    b"true",
    b"null",
    b"\x00",
)


def mutate(data: bytes, rng: random.Random, ways: tuple[Mutation, ...]) -> bytes:
    """`data` spoilt in one of the `ways`, or sometimes two; never as it was."""
    result = data
    while result == data:
        for _ in range(rng.choice((1, 1, 1, 2))):
            result = rng.choice(ways)(result, rng)
    return result


def truncate(data: bytes, rng: random.Random) -> bytes:
    """Only the beginning, perhaps nothing."""
    return data[: rng.choice((0, 1, rng.randrange(len(data) + 1), max(0, len(data) - 1 - rng.randrange(16))))]


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    """A few bits anywhere."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 3, 20)) if data else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def spoil_head(data: bytes, rng: random.Random) -> bytes:
    """A byte among the first hundred, where lengths and kinds are."""
    changed = bytearray(data)
    if changed:
        changed[rng.randrange(min(100, len(changed)))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(changed)


def spoil_tail(data: bytes, rng: random.Random) -> bytes:
    """A byte among the last hundred, where archives and tables have their index."""
    return spoil_head(data[::-1], rng)[::-1]


def large_numbers(data: bytes, rng: random.Random) -> bytes:
    """Four or eight bytes that say how long something is become very many."""
    at, size = rng.randrange(len(data) + 1), rng.choice((4, 8))
    number = rng.choice((0xFF, 0x7F, 0x10)).to_bytes(1, "big") * size
    return data[:at] + (number if rng.random() < 0.5 else number[::-1]) + data[at + size :]


def cut_out(data: bytes, rng: random.Random) -> bytes:
    """A stretch is missing."""
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start + rng.randrange(1, 200) :]


def repeat(data: bytes, rng: random.Random) -> bytes:
    """A stretch is there twice."""
    start = rng.randrange(len(data) + 1)
    part = data[start : start + rng.randrange(1, 200)]
    return data[:start] + part + data[start:]


def zeros(data: bytes, rng: random.Random) -> bytes:
    """A stretch of zeros, as a file system leaves it after the power went."""
    start = rng.randrange(len(data) + 1)
    return data[:start] + bytes(min(rng.randrange(1, 4096), len(data) - start)) + data[start + 4096 :]


def garbage(data: bytes, rng: random.Random) -> bytes:
    """Something else altogether."""
    return rng.choice(
        (rng.randbytes(rng.randrange(1, 500)), b"<html>404</html>", b"version https://git-lfs", b"\xff\xfe")
    )


def appended(data: bytes, rng: random.Random) -> bytes:
    """More after the end."""
    return data + rng.randbytes(rng.randrange(1, 64))


BYTES: tuple[Mutation, ...] = (
    *(truncate, flip_bits, spoil_head, spoil_tail, large_numbers, cut_out, repeat, zeros, garbage, appended),
)


def other_token(data: bytes, rng: random.Random) -> bytes:
    """A number or a word of a text becomes another one."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?|\btrue\b|\bfalse\b|\"[^\"\n]*\"", data))
    if not found:
        return data + b"x"
    match = rng.choice(found)
    return data[: match.start()] + rng.choice(TOKENS) + data[match.end() :]


def without_line(data: bytes, rng: random.Random) -> bytes:
    """A line is missing, or there twice."""
    lines = data.splitlines(keepends=True) or [b""]
    at = rng.randrange(len(lines))
    return b"".join(lines[:at] + lines[at : at + 1] * rng.choice((0, 2)) + lines[at + 1 :])


def deeply_nested(data: bytes, rng: random.Random) -> bytes:
    """Brackets that a recursive reader falls over."""
    return rng.choice((b"[" * 100_000, b'{"a":' * 50_000, b"[" * 100_000 + b"]" * 100_000))


def json_value(data: bytes, rng: random.Random) -> bytes:
    """JSON in which one value, anywhere, is something strange, or a key is gone, renamed or new."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return data + b"}"
    found = places(values)
    if not found:
        return b"[]"
    holder, key = rng.choice(found)
    what = rng.randrange(6)
    if what == 0:
        del holder[key]
    elif what == 1 and isinstance(holder, dict):
        holder[rng.choice(("", "Model", "__class__", "a" * 300))] = holder.pop(key)
    elif what == 2 and isinstance(holder, list):
        holder.extend([holder[key]] * rng.choice((1, 50)))
    else:
        holder[key] = rng.choice(STRANGE)
    return json.dumps(values).encode()


def json_lines(data: bytes, rng: random.Random) -> bytes:
    """Lines of JSON, one of them with another value."""
    lines = data.splitlines(keepends=True)
    if not lines:
        return b"[]\n"
    at = rng.randrange(len(lines))
    return b"".join([*lines[:at], json_value(lines[at], rng) + b"\n", *lines[at + 1 :]])


def places(values: Any) -> list[tuple[Any, Any]]:
    """Every (holder, key) of nested dictionaries and lists."""
    keys = list(values) if isinstance(values, dict) else list(range(len(values))) if isinstance(values, list) else []
    return [place for key in keys for place in ((values, key), *places(values[key]))]


TEXT: tuple[Mutation, ...] = (
    *[other_token] * 4,
    without_line,
    without_line,
    truncate,
    flip_bits,
    cut_out,
    zeros,
    garbage,
)
JSON: tuple[Mutation, ...] = (json_value, json_value, json_value, deeply_nested, *TEXT)
JSON_LINES: tuple[Mutation, ...] = (json_lines, json_lines, *TEXT)

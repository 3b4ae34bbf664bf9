"""Files that are well formed and mean harm: ways to spoil them that know what is in each format, for `benchmarks.fuzz`.

Random bytes hardly get past the first check of a reader. These do: values of other types and sizes in JSON and TOML,
headers that claim what is not there. What
carries a digest gets a right one again, as whoever means harm would see to. What `torch.save` writes is in
`hostile_torch`, data sets are in `hostile_data` and `hostile_images`.
"""

from __future__ import annotations

import copy
import json
import random
import re
import struct
from collections.abc import Callable
from typing import Any

from benchmarks.mutations import Mutation, places
from tarflow import digests

DEEP = 100_000
RAW = (  # of JSON, as no `json.dumps` writes it
    *("[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP, "1" + "0" * 400, "-1" + "0" * 5000),
    *("1e400", "-1e400", "NaN", "Infinity", "1e-400", "-0.0", '"\\ud800"', '"\\u0000"', "0.1e0000001"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, "", " ", "nan", "1", -1, 0, 1, 2, 0.5, -0.0, 1e308, 5e-324, 2**31, 2**53 + 1, 2**63, 2**64),
    *(
        [],
        {},
        [[]],
        [{}],
        [None],
        {"": None},
        [0] * 10_000,
        [1] * 100_000,
        "a" * 1_000_000,
        "\u202e",
        "\x00",
        "é" * 300,
    ),
    *(
        "hub:owner/name",
        "../../../etc/passwd",
        "/dev/zero",
        "/dev/stdin",
        "/proc/self/mem",
        "file:///etc",
        "~root",
        ".",
    ),
    *([1, 10**9], [10**9, 10**9], {"a": {"b": {"c": []}}}, 10**9, 10**6, 65_537, 3, 1e-9),
)


def tolerant(change: Mutation) -> Mutation:
    """`change`, or a byte more where it cannot read what another one made of the file before."""

    def changed(data: bytes, rng: random.Random) -> bytes:
        try:
            return change(data, rng)
        except Exception:
            return data + b"x"

    return changed


# --- JSON and TOML ---------------------------------------------------------------------------------------------------


def table_value(data: bytes, rng: random.Random) -> bytes:
    """JSON with another value, or a few, in one of its places; sealed again where it was."""
    try:
        table = json.loads(data)
    except ValueError:
        return data + b" "
    was_sealed = digests.is_sealed(table)
    if was_sealed:
        table.pop("blake2b")
    raw: dict[str, str] = {}
    for _ in range(rng.choice((1, 1, 1, 3))):
        found = places(table)
        if not found:
            break
        holder, key = rng.choice(found)
        what = rng.randrange(8)
        if what == 0:
            del holder[key]
        elif what == 1 and isinstance(holder, dict):
            holder[rng.choice(("", "x" * 10_000, "__class__", key + " ", "\x00"))] = holder.pop(key)
        elif what == 2:
            mark = f"@RAW{len(raw)}@"
            holder[key], raw[mark] = mark, rng.choice(RAW)
        elif what == 3:
            holder[key] = [copy.deepcopy(holder[key])] * rng.choice((1, 1000))
        elif what == 4 and isinstance(holder[key], list | dict | str):
            holder[key] = type(holder[key])()
        elif what == 5 and isinstance(holder[key], int | float):
            holder[key] = holder[key] * rng.choice((-1, 10**6, 10**12, 10**300)) + rng.choice((0, 1, 0.5))
        else:
            holder[key] = copy.deepcopy(rng.choice(VALUES))
    if was_sealed and isinstance(table, dict) and not raw:
        table = digests.sealed(table)
    text = json.dumps(table)
    for mark, value in raw.items():
        text = text.replace(f'"{mark}"', value)
    return text.encode()


def whole_table(data: bytes, rng: random.Random) -> bytes:
    """JSON that is something else altogether, or holds a name twice."""
    return rng.choice(
        (rng.choice(RAW).encode(), json.dumps(rng.choice(VALUES)).encode(), data.replace(b"{", b'{"model": 1, ', 1))
    )


def line_value(data: bytes, rng: random.Random) -> bytes:
    """Lines of JSON, one of them spoilt as a table, or all of them with one value."""
    lines = data.splitlines()
    if rng.random() < 0.3:
        name = rng.choice(("loss", "lr", "seconds", "grad_norm", "bits_per_dim", "noisy_bits_per_dim", "step"))
        value = rng.choice((*RAW[2:], *(json.dumps(v) for v in VALUES)))
        found = re.sub(rf'("{name}": )[^,}}]+', lambda match: match[1] + value, data.decode())
        return found.encode() if found.encode() != data else data + b"[]\n{}"
    at = rng.randrange(len(lines))
    lines[at] = rng.choice((table_value, table_value, whole_table))(lines[at], rng)
    return b"\n".join([*lines, *lines[at : at + 1] * rng.choice((0, 3)), b""])


TOML_VALUES = (
    *(
        "[" * 500 + "]" * 500,
        "[" * DEEP + "]" * DEEP,
        "{a=" * 500 + "1" + "}" * 500,
        "{a=" * 50_000 + "1" + "}" * 50_000,
    ),
    *(
        "1" + "0" * 400,
        "1" + "0" * 5000,
        "inf",
        "-inf",
        "nan",
        "-0",
        "1e400",
        "true",
        '""',
        "[]",
        "{}",
        "[[], []]",
        "[1, 'a']",
    ),
    *(
        "1979-05-27",
        "07:32:00",
        "1979-05-27T07:32:00Z",
        "'''\n\n'''",
        '"\\u0000"',
        "'" + "x" * 100_000 + "'",
        "[1000000]",
    ),
    *(
        "0x7fffffffffffffff",
        "-1",
        "0",
        "1.5",
        "1000000000",
        "0.0",
        "[" + "1," * 100_000 + "]",
        "'hub:owner/name'",
        "'/dev/zero'",
    ),
)


def toml_value(data: bytes, rng: random.Random) -> bytes:
    """A recipe with another value, another key, or another table."""
    lines = data.decode().splitlines()
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.choice([k for k, line in enumerate(lines) if "=" in line] or [0])
        name = lines[at].partition(" =")[0]
        what = rng.randrange(8)
        if what == 0:
            del lines[at]
        elif what == 1:
            lines.insert(
                at, rng.choice((f"{'a.' * 20_000}b = 1", '"" = 1', f"{name} = 1\n{name} = 2", f"{name}.x = 1"))
            )
        elif what == 2:
            lines.append(
                rng.choice(("[" + "a." * 20_000 + "b]", "[[training]]", "[model]", "[expects]\nimages = 1e400"))
            )
        else:
            lines[at] = f"{name} = {rng.choice(TOML_VALUES)}"
    return "\n".join([*lines, ""]).encode()


# --- safetensors -----------------------------------------------------------------------------------------------------


def weights_header(data: bytes, rng: random.Random) -> bytes:
    """A header of safetensors that says something else of the bytes behind it."""
    if len(data) < 8:
        return data + b"x"
    size = struct.unpack("<Q", data[:8])[0]
    try:
        header = json.loads(data[8 : 8 + size])
    except ValueError:
        return data + b"x"
    body = data[8 + size :]
    names = [name for name in header if name != "__metadata__"]
    if not names:
        return data + b"x"
    name = rng.choice(names)
    entry = header[name]
    changes: list[Callable[[], Any]] = [
        lambda: entry.update(shape=[rng.choice((2**31, 2**63, 2**40)), *entry["shape"][1:]]),
        lambda: entry.update(shape=[2**32, 2**32]),
        lambda: entry.update(shape=[2**40, 0], data_offsets=[0, 0]),
        lambda: entry.update(shape=[]),
        lambda: entry.update(shape=[1] * 5000 + entry["shape"]),
        lambda: entry.update(shape=[-1]),
        lambda: entry.update(shape=[1.5]),
        lambda: entry.update(
            dtype=rng.choice(("F8_E4M3", "F8_E8M0", "F4", "U64", "BOOL", "C64", "F128", "", None, "I8"))
        ),
        lambda: entry.update(data_offsets=[0, 2**63]),
        lambda: entry.update(data_offsets=header[rng.choice(names)]["data_offsets"]),
        lambda: entry.update(data_offsets=entry["data_offsets"][::-1]),
        lambda: header.update({"a" * 100_000: header.pop(name)}),
        lambda: header.update({"": header.pop(name)}),
        lambda: header.update({f"blocks.{k}.x": entry for k in range(10_000)}),
        lambda: header.update(
            __metadata__=rng.choice(({"a": 1}, {"format": "np"}, None, [], {"x": "y" * 100_000}, {}))
        ),
        lambda: header.update(__metadata__={"written_by": "tarflow"}),
        lambda: header.pop("__metadata__", None),
    ]
    rng.choice(changes)()
    if rng.random() < 0.7 and isinstance(header.get("__metadata__"), dict):
        header.pop("__metadata__")  # whose digest would end it all
    text = json.dumps(header).encode()
    if rng.random() < 0.1:
        text = rng.choice(RAW[:2]).encode()
    length = rng.choice((len(text), len(text), len(text), len(text), 2**63, 2**40, 0))
    return struct.pack("<Q", length) + text + body

"""What `torch.load` reads and nobody saves: strides that reach past their memory, containers without end, bombs.

As `hostile`, for training states, official checkpoints and the weights of extractors.
"""

from __future__ import annotations

import copy
import io
import pickle
import random
import re
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.hostile import DEEP, VALUES
from benchmarks.mutations import places

STRIDED: tuple[Callable[[torch.Tensor], Any], ...] = (
    lambda t: torch.zeros(1, dtype=t.dtype).expand(t.shape) if t.ndim else t.expand(2),
    lambda t: t[:1].expand(t.shape) if t.ndim else t[None],
    lambda t: torch.zeros(1, dtype=t.dtype).expand(100_000, 100_000),
    lambda t: torch.zeros(1, dtype=t.dtype).expand(2**31),
    lambda t: t.flatten().as_strided(t.shape, [1] * t.ndim) if t.numel() > sum(t.shape) else t[None],
    lambda t: t.t().contiguous().t() if t.ndim == 2 else t.flatten(),
    lambda t: t.contiguous().view(-1)[: t.numel()].clone().view(t.shape)[..., :1],
    lambda t: t.to(torch.float16) if t.is_floating_point() else t.to(torch.int8),
    lambda t: t.to(torch.complex64),
    lambda t: t.to(torch.float64) * 1e300,
    lambda t: t.bool(),
    lambda t: t.to_sparse() if t.ndim else t[None],
    lambda t: torch.quantize_per_tensor(torch.zeros(t.shape), 1.0, 0, torch.qint8),
    lambda t: t.to("meta"),
    lambda t: t.new_zeros((*t.shape[:-1], 0)) if t.ndim else t,
    lambda t: torch.nn.Parameter(t.float()),
    lambda t: t.numpy().tolist() if t.dtype is not torch.bfloat16 else 1,
    lambda t: -t,
    lambda t: torch.full_like(t, 3e38) if t.is_floating_point() else t,
)


def nested(depth: int) -> Any:
    """Lists in one another."""
    content: Any = 1
    for _ in range(depth):
        content = [content]
    return content


def laughing() -> Any:
    """A few lists that are a great many when they are walked."""
    content: Any = ["ha"] * 10
    for _ in range(15):
        content = [content] * 10
    return content


def torch_content(data: bytes, rng: random.Random) -> bytes:
    """What `torch.load` reads, with tensors of other layouts, sizes and types, or other containers, in it."""
    try:
        content = torch.load(io.BytesIO(data), weights_only=True)
    except Exception:
        return data + b"x"
    found = places(content)  # before there may be a great many
    for holder, key in rng.sample(found, min(rng.choice((1, 1, 4)), len(found))):
        value = holder[key]
        if isinstance(value, torch.Tensor) and rng.random() < 0.8:
            holder[key] = rng.choice(STRIDED)(value)
        elif rng.random() < 0.4:
            holder[key] = rng.choice(
                (nested(19), nested(200), laughing(), content, 10**400, -(10**400), 2**64, {}, set())
            )
        else:
            holder[key] = copy.copy(rng.choice(VALUES))
        if isinstance(holder, dict) and rng.random() < 0.1:
            holder[rng.choice((7, "", None, (1, 2), "blocks.9999.pos_embed", "blocks." + "9" * 5000 + ".x"))] = value
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=rng.random() < 0.8)
    return buffer.getvalue()


def many_blocks(data: bytes, rng: random.Random) -> bytes:
    """An official state dict that names more blocks, layers or classes than anybody has."""
    content = torch.load(io.BytesIO(data), weights_only=True)
    small = torch.zeros(1)
    for k in range(rng.choice((10, 1000))):
        name = rng.choice(
            ("blocks.{}.pos_embed", "blocks.0.attn_blocks.{}.attention.norm.weight", "module.blocks.{}.x")
        )
        content[name.format(k)] = small
    if rng.random() < 0.5:
        name = rng.choice(list(content))
        shape = rng.choice(((10**6, 64), (2**20, 1), (1, 10**6), (64, 0), ()))
        content[name] = torch.zeros(shape, dtype=torch.uint8 if rng.random() < 0.3 else torch.float16)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def torch_archive(data: bytes, rng: random.Random) -> bytes:
    """The archive of `torch.save` packed anew: compressed, with other sizes, with another pickle."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    except Exception:
        return data + b"x"
    name = rng.choice(list(entries))
    (pickled,) = [key for key in entries if key.endswith("data.pkl")]
    tensors = [key for key in entries if "/data/" in key] or [name]
    bombs = (
        lambda: entries.update({rng.choice(tensors): bytes(rng.choice((1 << 20, 1 << 28)))}),
        lambda: entries.update({name: b""}),
        lambda: entries.pop(name),
        lambda: entries.update({pickled: pickle.dumps(nested(500), protocol=2)}),
        lambda: entries.update({pickled: b"\x80\x02" + b"]" * DEEP + b"a" * (DEEP - 1) + b"."}),
        lambda: entries.update({pickled: b"\x80\x02" + b"(" * DEEP + b"."}),
        lambda: entries.update({pickled: b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"."}),
        lambda: entries.update({pickled: pickle.dumps({"a": 10**5000}, protocol=2)}),
        lambda: entries.update({pickled: entries[pickled].replace(b"FloatStorage", b"DoubleStorage")}),
        lambda: entries.update({pickled: _larger(entries[pickled], rng)}),
        lambda: entries.update({pickled: _larger(entries[pickled], rng)}),
    )
    rng.choice(bombs)()
    buffer = io.BytesIO()
    kind = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for key, value in entries.items():
            archive.writestr(key, value)
    return buffer.getvalue()


def _larger(pickled: bytes, rng: random.Random) -> bytes:
    """Small numbers of a pickle, which are sizes and strides, become large or none."""
    found = [match.start() for match in re.finditer(rb"K[\x01-\xff]", pickled)]
    if not found:
        return pickled + b"."
    at = rng.choice(found)
    number = rng.choice((b"J" + struct.pack("<i", 2**31 - 1), b"J" + struct.pack("<i", -1), b"K\x00", b"K\xff"))
    return pickled[:at] + number + pickled[at + 2 :]

"""Images that are well formed and mean harm: small files of a great many pixels, tables of other columns.

As `hostile`, for image files, folders of them, and Parquet.
"""

from __future__ import annotations

import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.hostile import DEEP


def png(
    width: int, height: int, depth: int = 8, colour: int = 2, body: bytes | None = None, chunks: bytes = b""
) -> bytes:
    """A PNG file with whatever header; its pixels are black where no body is given."""

    def chunk(name: bytes, contents: bytes) -> bytes:
        return struct.pack(">I", len(contents)) + name + contents + struct.pack(">I", zlib.crc32(name + contents))

    header = struct.pack(">IIBBBBB", width & 0xFFFFFFFF, height & 0xFFFFFFFF, depth, colour, 0, 0, 0)
    if body is None:
        size = (1 + -(-width * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour] * depth // 8)) * height
        packer, zeros = zlib.compressobj(1), bytes(1 << 22)
        parts = [packer.compress(zeros[: size - start]) for start in range(0, size, len(zeros))]
        body = b"".join([*parts, packer.flush()])
    palette = chunk(b"PLTE", bytes(768)) if colour == 3 else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + chunks + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def image_bomb(data: bytes, rng: random.Random) -> bytes:
    """An image of a great many pixels, or one that says so."""
    large = rng.choice(((9000, 9000), (1, 80_000_000), (80_000_000, 1), (12_000, 7_000)))
    text = zlib.compress(bytes(100_000_000), 1)
    what = rng.randrange(12)
    if what < 4:
        depth, colour = rng.choice(((8, 2), (8, 6), (16, 0), (8, 0), (8, 3), (8, 4), (16, 2)))
        return png(*large, depth=depth, colour=colour)
    if what == 4:
        return png(rng.choice((2**31 - 1, 2**32 - 1, 0)), rng.choice((2**31 - 1, 1, 0)), body=zlib.compress(b""))
    if what == 5:
        return png(8, 8, body=zlib.compress(bytes(500_000_000), 1))
    if what == 6:
        name = rng.choice((b"zTXt", b"iCCP", b"iTXt"))
        contents = b"a\x00\x00" + text if name != b"iTXt" else b"a\x00\x01\x00\x00\x00" + text
        chunks = struct.pack(">I", len(contents)) + name + contents + struct.pack(">I", zlib.crc32(name + contents))
        return png(8, 8, chunks=chunks)
    if what == 7:
        return f"P{rng.choice((2, 3, 5, 6))}\n{rng.choice((9000, 10**9, 10**30))} 9000\n255\n".encode() + bytes(1000)
    buffer = io.BytesIO()
    small = Image.new("L", (9000, 9000) if what in (8, 9) else (16, 16))
    kind = rng.choice(("JPEG", "TIFF", "GIF", "BMP", "WEBP"))
    options: dict[str, Any] = {"compression": "tiff_deflate"} if kind == "TIFF" else {}
    if kind == "GIF" and what > 9:
        options = {"save_all": True, "append_images": [Image.new("L", (16, 16), k % 256) for k in range(2000)]}
    small.convert("RGB" if kind == "WEBP" else "L").save(buffer, kind, **options)
    packed = bytearray(buffer.getvalue())
    if what > 9 and kind == "JPEG":  # its sizes
        at = packed.find(b"\xff\xc0") + 5
        packed[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\x24\x00\x24\x00", b"\x00\x00\x00\x01"))
    if what > 9 and kind == "BMP":
        packed[18:26] = struct.pack("<ii", *rng.choice(((2**31 - 1, 1), (9000, 9000), (-1, -1), (16, -(2**31)))))
    if what > 9 and kind == "GIF":
        packed[6:10] = b"\xff\xff\xff\xff"
    return bytes(packed)


def many_large_images(root: Path, rng: random.Random) -> None:
    """A folder of small files that are large images."""
    depth, colour, side = rng.choice(((8, 2, 9000), (8, 6, 9000), (16, 0, 9000), (8, 3, 9000), (8, 0, 6000)))
    contents = png(side, side, depth, colour)
    for k in range(4):
        (root / f"large{k:02}.png").write_bytes(contents)


# --- Parquet ---------------------------------------------------------------------------------------------------------


def parquet_table(data: bytes, rng: random.Random) -> bytes:
    """A table of other columns, of other types, or that unpacks to gigabytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "PNG")
    image, n = buffer.getvalue(), 8
    structs = [{"bytes": image, "path": "a.png"}] * n
    columns: dict[str, Any] = {"image": structs, "label": [k % 3 for k in range(n)]}
    bomb = png(9000, 9000)
    choices: tuple[Callable[[], Any], ...] = (
        lambda: columns.update(label=[None] * n),
        lambda: columns.update(label=[rng.choice((-1, 2**62, 2**40, 1_000_000))] * n),
        lambda: columns.update(label=[0.5] * n),
        lambda: columns.update(label=["a", "b"] * (n // 2)),
        lambda: columns.update(label=[[1]] * n),
        lambda: columns.update(label=[{"x": 1}] * n),
        lambda: columns.update(image=[None] * n),
        lambda: columns.update(image=[{"bytes": None, "path": "/etc/passwd"}] * n),
        lambda: columns.update(image=[{"bytes": b"", "path": None}] * n),
        lambda: columns.update(image=[{"path": "x"}] * n),
        lambda: columns.update(image=["text"] * n),
        lambda: columns.update(image=[b"garbage"] * n),
        lambda: columns.update(image=[1] * n),
        lambda: columns.update(image=[[image]] * n),
        lambda: columns.update(image=[{"bytes": bomb, "path": ""}] * n),
        lambda: columns.update(image=[{"bytes": image + bytes(200_000_000), "path": ""}] * n),
        lambda: columns.update(image=[{"bytes": bytes(500_000_000), "path": ""}], label=[1]),
        lambda: columns.pop("image"),
        lambda: columns.pop("label"),
        lambda: columns.update(img=columns["image"]),
        lambda: columns.update({k: [] for k in list(columns)}),
        lambda: columns.update({f"c{k}": [1] * n for k in range(3000)}),
        lambda: columns.update({"": [1] * n, "\x00": [1] * n}),
        lambda: columns.update({k: v[:1] * 2_000_000 for k, v in columns.items()}),
    )
    rng.choice(choices)()
    table = pa.table(columns)
    if rng.random() < 0.3:
        features = {
            "image": {"_type": "Image"},
            "label": {
                "_type": "ClassLabel",
                "names": rng.choice((["a"], "abc", 5, [], [1, 2], ["a"] * 10_000, None, [None, "a", "b"])),
            },
        }
        meta = rng.choice(
            (
                json.dumps({"info": {"features": features}}),
                "[" * DEEP,
                "{}",
                "1",
                '{"info": []}',
                '{"info": {"features": 1}}',
            )
        )
        table = table.replace_schema_metadata({"huggingface": meta})
    out = io.BytesIO()
    pq.write_table(
        table, out, compression=rng.choice(("snappy", "gzip", "zstd")), row_group_size=rng.choice((n, 1, 10**7))
    )
    return out.getvalue()

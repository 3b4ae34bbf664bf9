"""Data sets that are well formed and mean harm: archives that unpack to gigabytes, images of billions of pixels.

As `hostile`, for what images and labels come in: NumPy's arrays and archives, IDX, image files and folders, Parquet.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import hostile
from benchmarks.hostile import DEEP
from tarflow import caching

# --- NumPy -----------------------------------------------------------------------------------------------------------


def npy(header: str, body: bytes, version: bytes = b"\x01\x00") -> bytes:
    """An .npy file with whatever header."""
    text = header.encode("latin-1", "replace").ljust(53) + b"\n"
    size = struct.pack("<H", len(text) & 0xFFFF) if version == b"\x01\x00" else struct.pack("<I", len(text))
    return b"\x93NUMPY" + version + size + text + body


def npy_header(data: bytes, rng: random.Random) -> bytes:
    """An array whose header says something else of the numbers behind it."""
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception:
        return data + b"x"
    body, descr, shape = array.tobytes(), array.dtype.str, tuple(array.shape)
    other = (
        *((2**63, *shape[1:]), (2**31, *shape[1:]), (10**9,), (), (0,), shape[::-1], (*shape, 1), (1, *shape), (-1,)),
        *(tuple([1] * 40), (2**62, 4), (shape[0] - 1, *shape[1:])),
    )
    if rng.random() < 0.4:
        shape = rng.choice(other)
    if rng.random() < 0.3:
        descr = rng.choice(("<f8", "|O", "|V1000000", "<U100000", "|S0", ">i8", "<c16", "<M8[ns]", "|b1", "x", "<i1"))
    header = repr({"descr": descr, "fortran_order": rng.random() < 0.2, "shape": shape})
    what = rng.randrange(12)
    if what == 0:
        header = header.replace("'shape'", "'shapes'")
    elif what == 1:
        header = "(" * 5000 + ")" * 5000
    elif what == 2:
        header = rng.choice(
            ("{}", "[]", "1", "{'descr': [('a', '<i8'), ('b', '|O')], 'fortran_order': 0, 'shape': (1,)}")
        )
    if what in (3, 4, 5) and array.dtype.kind in "iu":  # well formed, with other numbers
        changed = array.copy().reshape(-1)
        for _ in range(rng.choice((1, 5))):
            if changed.size:
                changed[rng.randrange(changed.size)] = rng.choice((0, np.iinfo(array.dtype).max, 3, 100))
        if rng.random() < 0.3:
            changed = changed[::-1]
        header, body = repr({"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}), changed.tobytes()
    return npy(
        header,
        body[: rng.choice((len(body), len(body), len(body) // 2, 0))],
        rng.choice((b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00")) if what == 6 else b"\x01\x00",
    )


def sealed_npy(data: bytes, rng: random.Random) -> bytes:
    """As `npy_header`, of a file with a digest behind it."""
    contents = npy_header(data[:-16], rng)
    return contents + caching.seal(contents)


def npz_archive(data: bytes, rng: random.Random) -> bytes:
    """An archive of arrays that unpack to gigabytes, or are not what a model learns from."""
    count = 12
    images = np.zeros((count, 8, 8), np.uint8)
    huge = 350_000_000
    members: dict[str, bytes] = {"images.npy": _array(images), "labels.npy": _array(np.arange(count) % 3)}
    zeros = bytes(1 << 24)

    def bomb(header: str, size: int) -> Callable[[Any], None]:
        def write(file: Any) -> None:
            file.write(npy(header, b""))
            for start in range(0, size, len(zeros)):
                file.write(zeros[: size - start])

        return write

    big: dict[str, Callable[[Any], None]] = {}
    what = rng.randrange(16)
    if what == 0:
        big["labels.npy"] = bomb(f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({huge},)}}", huge * 8)
    elif what == 1:
        big["images.npy"] = bomb(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({huge}, 2, 4)}}", huge * 8)
    elif what == 2:
        big["images.npy"] = bomb(f"{{'descr': '|u1', 'fortran_order': True, 'shape': ({huge}, 2, 4)}}", huge * 8)
    elif what == 3:
        big["labels.npy"] = bomb(f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({count},)}}", huge * 4)
    elif what == 4:
        big["images.npy"] = bomb("{'descr': '|u1', 'fortran_order': False, 'shape': (2, 30000, 30000)}", 1_800_000_000)
    elif what == 5:
        members["labels.npy"] = npy(f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({2**40},)}}", b"")
    elif what == 6:
        members["labels.npy"] = _array(
            rng.choice(
                (
                    np.full(count, 2**40),
                    np.full(count, -1),
                    np.zeros((count, 1)),
                    np.arange(count) > 3,
                    np.arange(count) * 1.0,
                    np.array(["a"] * count),
                    np.arange(count, dtype=np.uint64) + 2**63,
                    np.zeros(count, "M8[s]"),
                )
            )
        )
    elif what == 7:
        members["images.npy"] = _array(
            rng.choice(
                (
                    images[:0],
                    images[:, :0],
                    images[..., None, None],
                    images > 0,
                    images.astype(np.uint16),
                    np.zeros((4, 3, 3), np.uint8),
                    np.zeros((4, 1, 5, 3), np.uint8),
                    np.zeros((10**6, 1, 1), np.uint8),
                )
            )
        )
    elif what == 8:
        members["images.npy"] = npy_header(members["images.npy"], rng)
    elif what == 9:
        members["labels.npy"] = npy_header(members["labels.npy"], rng)
    elif what == 10:
        members |= {f"key{k}.npy": b"" for k in range(5000)}
    elif what == 11:
        members = {f"images/{'x' * 200}.npy": members["images.npy"], "images": members["labels.npy"]}
    elif what == 12:
        members["images"] = members.pop("images.npy")
    elif what == 13:
        members["images.npy"] = _array(np.array([{"a": 1}], dtype=object))
    buffer = io.BytesIO()
    kind = (
        rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
        if not big
        else zipfile.ZIP_DEFLATED
    )
    with zipfile.ZipFile(buffer, "w", kind, compresslevel=1) as archive:
        for key, write in big.items():
            with archive.open(key, "w", force_zip64=True) as file:
                write(file)
        for key, value in members.items():
            if key not in big:
                archive.writestr(key, value)
    packed = bytearray(buffer.getvalue())
    if what in (14, 15):  # sizes, flags and methods in the index
        at = packed.rfind(b"PK\x01\x02") + rng.choice((8, 10, 16, 20, 24, 28, 42))
        packed[at : at + 4] = rng.choice((b"\xff" * 4, bytes(4), b"\x01\x00\x63\x00"))
    return bytes(packed)


def _array(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


# --- IDX -------------------------------------------------------------------------------------------------------------


def idx_array(data: bytes, rng: random.Random) -> bytes:
    """An IDX file of other sizes, dimensions or types."""
    shapes = (
        (2**32 - 1, 2**32 - 1, 2**32 - 1),
        (12, 0, 8),
        (0, 8, 8),
        (12, 8, 8, 1),
        (12, 64),
        (768,),
        (2**31, 1, 1),
        (13, 8, 8),
        (11, 8, 8),
        (1, 768, 1),
        (12, 2**32 - 1, 0),
        (768, 1, 1),
    )
    shape = rng.choice(shapes)
    kind = rng.choice((8, 8, 8, 8, 0x09, 0x0D, 0xFF))
    body = bytes(768)
    return (
        bytes((0, 0, kind, rng.choice((len(shape), len(shape), 255, 0))))
        + struct.pack(f">{len(shape)}I", *shape)
        + body
    )


def idx_bomb(data: bytes, rng: random.Random) -> bytes:
    """A gzip file that unpacks to gigabytes, whatever its header says."""
    what = rng.randrange(5)
    header = struct.pack(">3I", *((12, 8, 8) if what == 0 else (400_000, 100, 80)))
    if what > 2:
        packed = gzip.compress(idx_array(data, rng))
        return packed if what == 3 else packed + rng.choice((packed, b"\x1f\x8b" + bytes(30), bytes(100)))
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    zeros = bytes(1 << 24)
    parts = [packer.compress(b"\x00\x00\x08\x03" + header)]
    parts += [packer.compress(zeros) for _ in range(3_200_000_000 // len(zeros) if what < 2 else 20)]
    return b"".join([*parts, packer.flush()])


def spoil_features(root: Path, rng: random.Random) -> None:
    """A cache with another file in it: features, or a trained network."""
    file = rng.choice(sorted(path for path in root.rglob("*") if path.is_file()))
    change = hostile.weights_header if file.suffix == ".safetensors" else sealed_npy
    file.write_bytes(change(file.read_bytes(), rng))


# --- images ----------------------------------------------------------------------------------------------------------


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

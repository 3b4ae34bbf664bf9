"""Arrays that are well formed and mean harm: headers that claim what is not there, archives that unpack to gigabytes.

As `hostile`, for NumPy's arrays and archives, cached features and IDX files.
"""

from __future__ import annotations

import functools
import gzip
import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import hostile
from tarflow import digests

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
    return contents + digests.seal(contents)


def npz_archive(data: bytes, rng: random.Random) -> bytes:
    """An archive of arrays that unpack to gigabytes, or are not what a model learns from."""
    count = 12
    images = np.zeros((count, 8, 8), np.uint8)
    huge = 200_000_000
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
    count = 250_000 if what < 2 else 40_000
    if what > 2:
        packed = gzip.compress(idx_array(data, rng))
        return packed if what == 3 else packed + rng.choice((packed, b"\x1f\x8b" + bytes(30), bytes(100)))
    shape = rng.choice(((12, 8, 8), (count, 100, 80)))
    return gzip.compress(b"\x00\x00\x08\x03" + struct.pack(">3I", *shape)) + _packed_zeros(count * 8000)


@functools.cache
def _packed_zeros(count: int) -> bytes:
    """A member of a gzip file."""
    packer, zeros = zlib.compressobj(1, zlib.DEFLATED, 31), bytes(1 << 24)
    parts = [packer.compress(zeros[: count - start]) for start in range(0, count, len(zeros))]
    return b"".join([*parts, packer.flush()])


def spoil_features(root: Path, rng: random.Random) -> None:
    """A cache with another file in it: features, or a trained network."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    if rng.random() < 0.8:  # for without the network it is trained again, which takes seconds
        files = [path for path in files if path.suffix == ".npy"]
    file = rng.choice(files)
    change = hostile.weights_header if file.suffix == ".safetensors" else sealed_npy
    file.write_bytes(change(file.read_bytes(), rng))

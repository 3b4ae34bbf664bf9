"""Tensors in files: are they the numbers that were written, and plain arrays of them?

Tensors are written as safetensors with a digest in the header: of every name, type, shape and byte, and of the header's
other words. A copy of the file is checked by it as well; a file by other software has none, and is read as it is. What
`torch.save` wrote is read without running code, and only where it holds plain values and dense tensors.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tarflow import digests, storage

# Two words, so that no single flipped bit makes a file of ours one that never had a digest.
WRITER, DIGEST = "written_by", "blake2b"
HEADER_WORDS = {"format": "pt", WRITER: "tarflow"}
MAX_DEPTH = 20  # of containers in one another; a training state has five
MAX_ENTRIES = 1_000_000  # of all containers together; a training state has some for each tensor
MAX_SHARED = 4  # times the size of a file that its tensors may have together, where some are views of others


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors with their digest, whole or not at all."""
    from safetensors.torch import save_file

    plain = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    words = HEADER_WORDS
    with storage.replacing_file(path) as temporary:
        save_file(plain, temporary, metadata=words | {DIGEST: tensors_digest(plain, words)})
        _sort_words(temporary)


def _sort_words(path: Path) -> None:
    """Put the words of a header in order, which safetensors writes in another each time: same tensors, same file."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:  # as long as both escape names in the same way
            file.seek(8)
            file.write(text.ljust(size))


def read_tensors(path: Path, expected: str = "expected weights in safetensors") -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises FileNotFoundError or ValueError naming it, also where they are not those that were written.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; {expected}")
    try:
        with safe_open(path, "pt") as opened:
            words = dict(opened.metadata() or {})
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no dictionary
    except (SafetensorError, OSError, KeyError, TypeError, RuntimeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error}); {expected}") from None
    written = words.pop(DIGEST, None)
    if (written is not None or WRITER in words) and written != tensors_digest(tensors, words):
        raise ValueError(f"{path}: damaged, its digest is not that of what was written")
    return tensors


def stored_digest(path: Path) -> str:
    """The digest of the tensors in a safetensors file, from its header; of a file that has none, that of its bytes."""
    with contextlib.suppress(ValueError, AttributeError), open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        if isinstance(digest := header.get("__metadata__", {}).get(DIGEST), str):
            return digest
    return str(digests.file_facts(path)["blake2b"])


def tensors_digest(tensors: Mapping[str, Tensor], words: Mapping[str, str] = HEADER_WORDS) -> str:
    """A digest of tensors by name, and of the words of a header: of the contents, not of how safetensors lays them out.

    It is the one that `save_tensors` writes, so it tells whether two files or flows have the same weights.
    """
    digest = hashlib.blake2b(repr(sorted(words.items())).encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_torch_file(path: Path, expected: str) -> Any:
    """What `torch.save` wrote, on the CPU: dense tensors and plain values only, never code.

    Each tensor has memory of its own, in C's order. Raises FileNotFoundError or ValueError naming the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; {expected}")
    reason = "damaged, not written by torch.save, or holding Python objects (which are never run)"
    # What torch warns of ends in the error below.
    with path.open("rb") as file, warnings.catch_warnings(action="ignore"):
        try:
            if zipfile.is_zipfile(file):  # torch never compresses: what is smaller than its contents is a trap
                with zipfile.ZipFile(file) as archive:
                    sizes = sum(entry.file_size for entry in archive.infolist())
                if sizes > path.stat().st_size:
                    reason = f"unpacks to {sizes} bytes, more than the file has"
                    raise ValueError(reason)
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever zip and pickle make of garbage; torch advises to switch the guard off
            raise ValueError(f"{path}: {reason}; {expected}") from error
    try:
        return _plain(content, MAX_SHARED * path.stat().st_size)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {expected}") from None


def check_dense(tensor: Tensor) -> None:
    """Raise ValueError unless a tensor is an array with a number of its own at each place.

    Sparse and quantised ones hardly any operation takes; and one that is expanded (a stride of 0), or reaches over
    itself, claims room that it has not: who writes into it in one go writes past its end.
    """
    if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided or tensor.is_quantized:
        raise ValueError("expected dense values, got a tensor that is not a plain array of numbers")
    if tensor.device.type != "cpu":
        raise ValueError(f"expected dense values, got a tensor that has none (device {tensor.device})")
    dense = 1  # strides, from the least on, of an array without gaps or overlaps
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride < dense and tensor.numel():
            raise ValueError(
                f"expected dense values, got a tensor of shape {tuple(tensor.shape)} that repeats its numbers (strides "
                f"{tuple(tensor.stride())})"
            )
        if size > 1:
            dense = stride * (size - 1) + dense
    if tensor.numel() and tensor.untyped_storage().nbytes() < (tensor.storage_offset() + dense) * tensor.itemsize:
        raise ValueError(f"expected dense values, got a tensor of shape {tuple(tensor.shape)} with fewer of them")


def _plain(content: Any, room: int) -> Any:
    """`content` with each tensor in memory of its own, at most `room` bytes together.

    Raises ValueError where it is not what a file may hold.
    """
    seen: set[int] = set()
    used = entries = 0

    def own(tensor: Tensor, name: str) -> Tensor:
        nonlocal used
        try:
            check_dense(tensor)
        except ValueError as error:
            raise ValueError(f"tensor {name[1:]}: {error}") from None
        used += tensor.numel() * tensor.itemsize
        if used > room:
            raise ValueError(f"tensor {name[1:]}: more numbers than the file has")
        place = tensor.untyped_storage().data_ptr()
        alone = place not in seen and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.itemsize
        seen.add(place)
        return tensor if alone and tensor.is_contiguous() else tensor.clone(memory_format=torch.contiguous_format)

    def visit(entry: Any, name: str, depth: int) -> Any:
        nonlocal entries
        entries += 1
        if depth > MAX_DEPTH or entries > MAX_ENTRIES:  # or a container that holds itself
            raise ValueError(f"holds containers nested more than {MAX_DEPTH} deep, or over {MAX_ENTRIES} entries")
        if isinstance(entry, Tensor):
            return own(entry, name)
        if isinstance(entry, dict):
            entry.update({key: visit(value, f"{name}.{key}", depth + 1) for key, value in entry.items()})
        elif isinstance(entry, list):
            entry[:] = [visit(value, f"{name}.{k}", depth + 1) for k, value in enumerate(entry)]
        elif type(entry) is tuple:
            return tuple(visit(value, f"{name}.{k}", depth + 1) for k, value in enumerate(entry))
        return entry

    return visit(content, "", 0)

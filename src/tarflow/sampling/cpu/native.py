"""`native.c`, compiled where there is a compiler for it: a step of decoding in one call, for float32 on a CPU.

Called from Python one after the other, PyTorch's operations for one step of 16 images take seven times as long as its
arithmetic at the rate of large products; this takes under three times as long. It is compiled into the user's cache
once for each kind of processor, in a second or two, and loaded from there afterwards, where it is still what was
compiled and nobody else can have put it there. Without GCC and the OpenMP that PyTorch brings on Linux, or with
TARFLOW_NATIVE=0 in the environment, PyTorch's operations do the same work.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tarflow import digests, storage
from tarflow.model.block import Block
from tarflow.model.transformer import Layer

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("native.c")
FLAGS = ("-O2", "-march=native", "-fopenmp", "-fPIC", "-shared", "-std=gnu11")
SECONDS = 120  # that a compiler may take
PARALLEL = 1 << 20  # bytes of a block's weights from which on threads are worth waking

Pointer = ctypes.c_void_p
Number = ctypes.c_int64


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled `native.c`, made at the first call; None where no compiler can make it, and the log says why."""
    if os.environ.get("TARFLOW_NATIVE", "1") == "0":
        return None
    # PyTorch's own OpenMP. The threads of a second one would wait, busily, on the same cores.
    threads = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    compilers = list(filter(None, map(shutil.which, [os.environ.get("CC") or "gcc", "cc"])))
    if not threads or not compilers:
        log.info("no native code: %s", "no C compiler" if threads else "this PyTorch has no libgomp")
        return None
    # Told to look, the linker finds now what another OpenMP would lack when it is loaded.
    libraries = ("-nodefaultlibs", str(threads[0]), "-lm", "-lc", "-lgcc", "-Wl,-z,defs")
    for compiler in compilers:
        try:
            return _typed(_compiled((compiler, *FLAGS, str(SOURCE), *libraries)))
        except (OSError, subprocess.SubprocessError) as error:
            log.info("no native code: %s %s", error, getattr(error, "stderr", None) or "")
    return None


def _compiled(command: Sequence[str]) -> ctypes.CDLL:
    """The library that `command` makes, from the cache where it is there."""
    parts = [SOURCE.read_bytes(), *(word.encode() for word in command), _processor()]
    file = _folder() / f"step-{hashlib.sha256(b''.join(parts)).hexdigest()[:32]}.so"
    if os.path.lexists(file):
        try:
            return _trusted(file)
        except OSError as error:
            log.warning("%s: %s; compiled again", file, error.strerror or error)
    with storage.replacing_file(file) as unfinished:  # whoever looks for it finds all of it
        subprocess.run([*command, "-o", str(unfinished)], check=True, capture_output=True, text=True, timeout=SECONDS)
        contents = unfinished.read_bytes()
        unfinished.write_bytes(contents + digests.seal(contents))  # behind it, which the loader passes over
    with contextlib.suppress(OSError):
        file.chmod(0o600)  # a compiler leaves what the umask allows
    return _trusted(file)


def _trusted(file: Path) -> ctypes.CDLL:
    """Load what this user wrote, what is all there, and nobody else can change. Raises OSError where it is not that.

    It is loaded by the number of the open file and not by its name, so that it is the one that was looked at.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
    with open(descriptor, "rb", closefd=False) as opened:
        contents = opened.read()
    problem = _open_to_others(os.fstat(descriptor))
    if problem is None and digests.opened(contents) is None:
        problem = "damaged"
    if problem is not None:
        os.close(descriptor)
        raise OSError(problem)
    number = f"/proc/self/fd/{descriptor}"  # open as long as the process, so that no other library has this name
    return ctypes.CDLL(number if os.path.exists(number) else str(file))


def _open_to_others(facts: os.stat_result) -> str | None:
    """Who else could have written what is to be run; None where nobody could."""
    if facts.st_uid != os.geteuid():
        return f"belongs to user {facts.st_uid}"
    return "others may write to it" if facts.st_mode & 0o022 else None


@functools.cache
def _folder() -> Path:
    """Where compiled code is kept: this user's own folder in the cache, else one of this process.

    A cache may be shared, or lie where others write, and what is in it is run: so the folder is ours alone.
    """
    if (cache := storage.cache_directory()) is not None:
        folder = cache / f"native-{os.geteuid()}"
        try:
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            facts = folder.lstat()
            problem = _open_to_others(facts) if stat.S_ISDIR(facts.st_mode) else "not a directory"
            if problem is None and os.access(folder, os.W_OK):
                return folder
            log.warning("%s: %s; not used for compiled code", folder, problem or "cannot be written to")
        except OSError as error:
            log.info("%s: %s", folder, error)
    own = Path(tempfile.mkdtemp(prefix="tarflow-"))
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    return own


def _processor() -> bytes:
    """What -march=native depends on: a home directory may be shared by machines of several kinds."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
        return b"".join(sorted({line for line in lines if line.lower().startswith((b"flags", b"features", b"model"))}))
    return f"{platform.machine()} {platform.processor()}".encode()


def _typed(result: ctypes.CDLL) -> ctypes.CDLL:
    """The library with the types of its functions."""
    result.tarflow_panel.restype = ctypes.c_int
    block = ctypes.POINTER(_Block)
    result.tarflow_scratch.argtypes, result.tarflow_scratch.restype = [block, Number, Number], Number
    result.tarflow_step.argtypes = [block, *[Pointer] * 3, *[Number] * 3, ctypes.c_int]
    result.tarflow_step.restype = None
    return result


class _Layer(ctypes.Structure):
    """layer_t of native.c."""

    _fields_ = (
        *((f"{name}_{kind}", Pointer) for name in ("norm1", "qkv", "out") for kind in ("weight", "bias")),
        *((f"{name}_{kind}", Pointer) for name in ("norm2", "up", "down") for kind in ("weight", "bias")),
        *((f"norm{number}_eps", ctypes.c_float) for number in (1, 2)),
    )


class _Block(ctypes.Structure):
    """block_t of native.c."""

    _fields_ = (
        *((name, Number) for name in ("layers", "width", "hidden", "head_dim", "dim", "outputs", "length")),
        ("layer", ctypes.POINTER(_Layer)),
        *((name, Pointer) for name in ("in_weight", "proj_weight", "proj_bias", "entry")),
        ("entry_batch", Number),
        *((name, Pointer) for name in ("scale", "cos", "sin", "store")),
        *((f"store_{name}", Number) for name in ("layer", "kind", "batch", "head")),
    )


class NativeBlock:
    """One block with its cache, as `native.c` sees it.

    Args:
        library: what `library()` gave.
        block: a block of plain layers in float32; its weights are copied.
        entry: (B, T, W) or expanded to it over B, what a token is before its patch is added.
        store: (layers, 2, B, H, T, K), the cache, which is written to.
        scale: (B, …), the factors of the queries, or None.
    """

    def __init__(self, library: ctypes.CDLL, block: Block, entry: Tensor, store: Tensor, scale: Tensor | None) -> None:
        self.library, config = library, block.config
        self.kept: list[Tensor] = []  # what C holds pointers to
        layers = block.layers
        self.array = (_Layer * len(layers))(*(self._layer(layer) for layer in layers))
        self.outputs = block.proj_out.out_features
        proj_weight, proj_bias = self._linear(block.proj_out)
        rotation = block.rotation()  # float32, as the weights are
        entry = entry if entry.stride()[1:] == (config.width, 1) else entry.contiguous()
        assert store.stride()[-2:] == (config.head_dim, 1)  # a copy would not be written to
        self.block = _Block(
            layers=len(layers),
            width=config.width,
            hidden=cast("nn.Linear", layers[0].mlp[1]).out_features,
            head_dim=config.head_dim,
            dim=config.dim,
            outputs=self.outputs,
            length=entry.shape[1],
            layer=self.array,
            in_weight=self._pointer(self._panels(block.proj_in.weight)),
            proj_weight=proj_weight,
            proj_bias=proj_bias,
            entry=self._pointer(entry),
            entry_batch=entry.stride(0),
            scale=None if scale is None else self._pointer(scale.reshape(-1).contiguous()),
            cos=None if rotation is None else self._pointer(rotation[0].contiguous()),
            sin=None if rotation is None else self._pointer(rotation[1].contiguous()),
            store=self._pointer(store),
            **dict(zip(("store_layer", "store_kind", "store_batch", "store_head"), store.stride(), strict=False)),
        )
        size = sum(parameter.numel() * parameter.itemsize for parameter in layers[0].parameters()) * len(layers)
        self.threads = torch.get_num_threads() if size >= PARALLEL else 1
        self.scratch, self.room = torch.empty(0, device="cpu", dtype=torch.float32), (0, 0)  # of rows and threads
        self.shape = store.shape[2], entry.shape[1], config.dim

    def __call__(self, x: Tensor, start: int) -> Tensor:
        """x (B, n, D) float32, patches start … start+n-1, to the outputs (B, n, O) of the last layer."""
        batch, count, size = x.shape
        rows, length, dim = self.shape
        # C looks at no shape: what does not fit would be read from, and written to, memory of somebody else.
        assert x.dtype == torch.float32 and x.device.type == "cpu" and (batch, size) == (rows, dim), (x.dtype, x.shape)
        assert start >= 0 and start + count <= length, (start, count, length)
        x = x.contiguous()
        asked = (batch * count, self.threads)
        if asked != self.room:
            size = self.library.tarflow_scratch(self.block, *asked)
            self.scratch, self.room = torch.empty(size, device="cpu", dtype=torch.float32), asked
        out = torch.empty(batch, count, self.outputs, device="cpu", dtype=torch.float32)
        pointers = (x.data_ptr(), out.data_ptr(), self.scratch.data_ptr())
        self.library.tarflow_step(self.block, *pointers, batch, count, start, self.threads)
        return out

    def _layer(self, layer: Layer) -> _Layer:
        attention = layer.attention
        norm2, up, _, down = cast("tuple[nn.LayerNorm, nn.Linear, nn.GELU, nn.Linear]", tuple(layer.mlp))
        pointers: list[int] = []
        for norm, *linears in ((attention.norm, attention.qkv, attention.out), (norm2, up, down)):
            pointers += [self._pointer(norm.weight.contiguous()), self._pointer(norm.bias.contiguous())]
            for linear in linears:
                pointers += self._linear(linear)
        return _Layer(*pointers, attention.norm.eps, norm2.eps)

    def _linear(self, linear: nn.Linear) -> tuple[int, int]:
        size = self.library.tarflow_panel()
        bias = F.pad(linear.bias, (0, -linear.out_features % size)).contiguous()
        return self._pointer(self._panels(linear.weight)), self._pointer(bias)

    def _panels(self, weight: Tensor) -> Tensor:
        """(N, K) to panels of columns (N/size, K, size), the last one filled up with zeros."""
        size = self.library.tarflow_panel()
        padded = F.pad(weight, (0, 0, 0, -len(weight) % size))
        return padded.view(-1, size, weight.shape[1]).transpose(1, 2).contiguous()

    def _pointer(self, tensor: Tensor) -> int:
        self.kept.append(tensor)
        return tensor.data_ptr()

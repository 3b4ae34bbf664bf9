"""Peak memory of one side on the CPU: a fresh process loads the weights, draws one batch, and says how it grew.

    peak_bytes = highest resident memory while drawing - resident memory just before

On CUDA the allocator counts by itself, and `sampling.measure` asks it during the first call.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import tarflow
from benchmarks import ROOT, models, official
from tarflow.interop import load_official, to_official

if TYPE_CHECKING:
    from benchmarks.sampling import Settings, Subject


def of_side(subject: Subject, settings: Settings, side: str, batch: int, scale: float) -> int:
    """Bytes by which a process grows at most while `side` draws one batch.

    Ours runs all its blocks. Theirs runs one, where all are of one depth: their caches are dropped after each block,
    so that one is enough to see the peak.
    """
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pt"
        torch.save(to_official(subject.checked if side in subject.others else subject.flow), weights)
        spec = {
            "weights": str(weights),
            "image_size": subject.flow.config.image_shape,
            "side": side,
            "clone": str(subject.clones[side]) if side in subject.others else "",
            "batch": batch,
            "scale": scale,
            "temperature": settings.temperature,
            "dtype": settings.dtype,
            "threads": settings.threads,
            "gs_jacobi": vars(settings.gs_jacobi),
        }
        source = str(Path(tarflow.__file__).parent.parent)
        path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.memory"],
            input=json.dumps(spec),
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": path},
            check=False,
        )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise RuntimeError(f"the process that measures the memory of {side!r} failed: {last[0]}")
    return int(done.stdout)


def main() -> None:
    """What the fresh process does: a specification on stdin, the bytes on stdout."""
    spec: dict[str, Any] = json.load(sys.stdin)
    torch.set_num_threads(spec["threads"])
    guidance = tarflow.Guidance(spec["scale"], temperature=spec["temperature"]) if spec["scale"] else None
    flow = load_official(Path(spec["weights"]), tuple(spec["image_size"])).requires_grad_(False)
    bf16, side = spec["dtype"] == "bf16", spec["side"]
    noise = models.draw_noise(flow.config, spec["batch"], flow.device)
    y = models.labels(flow.config, spec["batch"], flow.device)
    model = None
    if spec["clone"]:
        part = models.first_decoded(flow, 1) if len(set(flow.config.layers)) == 1 else flow
        model = official.build(side, official.load_module(side, Path(spec["clone"])), part)
        del flow, part
    elif bf16:
        flow = flow.to(torch.bfloat16)
    warm = torch.randn(256, 256)
    warm @ warm  # the threads and the buffers of the library of products are nobody's
    before = reset_peak()
    if model is not None:
        settings = official.GSJacobi(**spec["gs_jacobi"])
        official.reverse(side, model, noise, y, guidance, bf16=bf16, settings=settings)
    else:
        solver = side.removeprefix("ours, ")
        tarflow.sample(flow, len(noise), y, guidance, noise=noise, solver=solver, batch_size=len(noise))
    print(max(0, peak() - before))


def reset_peak() -> int:
    """Give back what is free, and bytes that are resident now, from which the peak is counted."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc keeps freed memory, which would then be used unseen
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):  # Linux forgets its high-water mark when told to
        Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    """The high-water mark of resident memory in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()

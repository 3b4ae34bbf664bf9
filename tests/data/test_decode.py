"""The processes that decode: how they begin, and what a signal to a whole job does to them."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tarflow.data import decode
from tarflow.data.decode import Decoder, Spec, decode_rows
from tarflow.data.errors import DataError

SOURCE = Path(__file__).resolve().parents[2] / "src"
SPEC = Spec((3, 4, 4), 256, None, None)
UNGUARDED = """
from tarflow.data.decode import Decoder, Spec
Decoder(2)([b""] * 64, Spec((3, 4, 4), 256, None, None))
"""


def encoded(count: int) -> list[bytes]:
    images = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    files = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        files.append(file.getvalue())
    return files


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    with contextlib.closing(Decoder(2)) as made:
        yield made


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_signals_to_a_whole_job_are_left_to_the_training(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first moment on: a worker that is only beginning would die of them."""
    start = decode._start_worker

    def start_in_a_wave() -> object:
        process, pipe = start()
        for signum in (signal.SIGHUP, signal.SIGUSR1, signal.SIGINT, signal.SIGTERM):
            os.kill(process.pid or 0, signum)
        return process, pipe

    monkeypatch.setattr(decode, "_start_worker", start_in_a_wave)
    contents = encoded(64)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    for _ in range(2):
        pixels, bad = decoder(contents, SPEC)
        assert not bad and np.array_equal(pixels, decode_rows(contents, SPEC)[0])
        for process, _ in decoder.pool:
            os.kill(process.pid or 0, signal.SIGHUP)
        time.sleep(0.05)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_a_script_without_a_main_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(UNGUARDED)
    path = os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, timeout=60
    )
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and 'if __name__ == "__main__":' in last and "workers" in last, done.stderr
    assert "memory" not in last


def test_a_worker_that_is_killed_before_it_begins_is_not_taken_for_that(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = decode._start_worker

    def start_and_kill() -> object:
        process, pipe = start()
        process.kill()
        return process, pipe

    monkeypatch.setattr(decode, "_start_worker", start_and_kill)
    with pytest.raises(DataError, match="was killed, perhaps for want of memory"):
        decoder(encoded(64), SPEC)
    assert decoder.pool == []

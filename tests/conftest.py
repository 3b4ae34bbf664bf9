"""What every test gets: few threads, a fixed seed, Ctrl-C, and the shared image sets where they are."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# The tensors here are tiny: a second thread costs more than it brings, and stalls where other processes run.
torch.set_num_threads(1)

# Shells ignore Ctrl-C for what they start in the background, and with it all that the tests start. Some tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: a busy machine is no defect. The same examples every time: what fails here fails there.
settings.register_profile("tarflow", deadline=None, derandomize=True)
settings.load_profile("tarflow")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    # `torch.manual_seed` also formats the stack for each kind of device that is not there, thrice a test.
    torch.default_generator.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of image sets that are too large for the repository: $TARFLOW_DATA, else `../shared/data`."""
    folder = Path(os.environ.get("TARFLOW_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"{folder}: no such folder; TARFLOW_DATA names the one with the shared image sets")
    return folder

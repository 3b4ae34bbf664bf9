"""What is shown while a model trains, of whose steps most report no more than their number."""

from __future__ import annotations

import pytest

from tarflow.cli import progress as progress_module
from tarflow.cli.progress import Progress


def test_steps_without_metrics_show_the_last_that_were_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter(range(0, 10_000, 20))
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: float(next(now)))
    with Progress() as progress:
        progress.report({"step": 1, "total": 4})
        progress.report({"step": 2, "total": 4, "loss": 1.25, "bits_per_dim": 3.5, "images_per_second": 7.0})
        progress.report({"step": 3, "total": 4})
        progress.report({"step": 4, "held_out_bits_per_dim": 3.25, "standard_error": 0.1})
    lines = [line.rstrip() for line in capsys.readouterr().err.splitlines()]
    assert [line.split("  ")[0] for line in lines] == [
        "training 1/4",
        "training 2/4",
        "training 3/4",
        "step 4: held out bits per dim 3.2500",
    ]
    assert "loss" not in lines[0]
    assert "loss 1.250  3.500 bits/dim  7 images/s" in lines[1]
    assert "loss 1.250  3.500 bits/dim  7 images/s" in lines[2]

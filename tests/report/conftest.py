"""Two runs to report on: of noisy digits with classes, and of exact ones without."""

from __future__ import annotations

from pathlib import Path

import pytest

from report_cases import make_run
from subject_cases import SETTINGS
from tarflow.checkpoint import open_run
from tarflow.report.subject import Subject


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    return {
        "noisy": make_run(root / "noisy", classes=True, noise="gaussian"),
        "exact": make_run(root / "exact", classes=False, noise="uniform"),
    }


@pytest.fixture
def noisy(runs: dict[str, Path]) -> Subject:
    return Subject(open_run(runs["noisy"]), SETTINGS)


@pytest.fixture
def exact(runs: dict[str, Path]) -> Subject:
    return Subject(open_run(runs["exact"]), SETTINGS)

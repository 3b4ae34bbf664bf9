"""Fixtures of the commands' tests."""

from __future__ import annotations

import pytest

from tarflow.evaluation.quality.extractors import small_network


@pytest.fixture
def quick_network(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A network that learns little, in a cache that all tests share."""
    monkeypatch.setattr(small_network, "STEPS", 5)
    monkeypatch.setenv("TARFLOW_CACHE", str(tmp_path_factory.getbasetemp() / "quality-cache"))

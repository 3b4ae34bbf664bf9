"""What is found out of a model is kept beside it; of a model of the package in the cache directory, by its name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flow_cases import build
from tarflow import checkpoint, kept, pretrained, storage
from tarflow.checkpoint import weights_digest
from tarflow.sampling.auto import Calibration, Choice
from tarflow.sampling.guidance import Guidance
from tarflow.sampling.setting import Setting, StoredSetting

FLOW = build("conditional", torch.float32)


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> checkpoint.Run:
    """A model that comes with a package of its own, with a setting, and a cache directory."""
    monkeypatch.setattr(pretrained, "ROOT", tmp_path / "package")
    monkeypatch.setenv("TARFLOW_CACHE", str(tmp_path / "cache"))
    FLOW.save_pretrained(tmp_path / "package" / "small")
    run = checkpoint.open_run(tmp_path / "package" / "small")
    setting = StoredSetting(weights_digest(run.path), Setting(denoise=0.5), "FD", 1.0, 10, 2)
    (tmp_path / "elsewhere").mkdir()
    elsewhere = checkpoint.Run(tmp_path / "elsewhere", run.flow, run.config)
    shutil.move(kept.save_setting(elsewhere, setting), run.path / kept.SETTING_FILE)
    return checkpoint.open_run("small")


def test_solvers_that_were_measured_for_other_weights_of_the_same_size_are_forgotten(tmp_path: Path) -> None:
    FLOW.save_pretrained(tmp_path)
    run = checkpoint.open_run(tmp_path)
    kept.save_calibration(run, Calibration({"key": (Choice("sequential"),)}))
    assert list(kept.open_calibration(run).choices) == ["key"]
    size = (tmp_path / "model.safetensors").stat().st_size
    build("conditional", torch.float32, seed=1).save_weights(tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_size == size
    assert kept.open_calibration(run).choices == {}


def test_what_a_user_found_of_a_model_of_the_package_goes_before_what_came_along(shipped: checkpoint.Run) -> None:
    before = sorted(shipped.path.iterdir())
    stored = kept.open_setting(shipped)
    assert stored is not None and stored.setting.denoise == 0.5
    own = StoredSetting(weights_digest(shipped.path), Setting(Guidance(2.0), 0.25), "FD", 0.5, 10, 2)
    file = kept.save_setting(shipped, own)
    cache = storage.cache_directory()
    assert cache is not None and file == cache / "models" / f"small-{own.weights[:8]}" / "sampling.json"
    assert kept.open_setting(shipped) == own and kept.kept_file(shipped, kept.SETTING_FILE) == file
    kept.save_calibration(shipped, Calibration({"key": (Choice("sequential"),)}))
    assert list(kept.open_calibration(shipped).choices) == ["key"]
    assert sorted(shipped.path.iterdir()) == before
    file.unlink()
    assert kept.open_setting(shipped) == stored


def test_what_was_found_of_older_weights_does_not_hide_what_came_with_new_ones(shipped: checkpoint.Run) -> None:
    old = StoredSetting(weights_digest(shipped.path), Setting(denoise=0.25), "FD", 0.5, 10, 2)
    kept.save_setting(shipped, old)
    assert kept.open_setting(shipped) == old
    build("conditional", torch.float32, seed=1).save_weights(shipped.path / "model.safetensors")
    came = kept.open_setting(shipped)
    assert came is not None and came.setting.denoise == 0.5


def test_a_run_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    FLOW.save_pretrained(tmp_path / "run")
    run = checkpoint.open_run(tmp_path / "run")
    stored = StoredSetting(weights_digest(run.path), Setting(), "FD", 0.5, 10, 2)
    shutil.rmtree(run.path)
    with pytest.raises(OSError, match="run"):
        kept.save_setting(run, stored)
    assert not run.path.exists()


def no_cache(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(storage, "cache_directory", lambda: None)
    return "small: comes with the package.*TARFLOW_CACHE"


def cache_that_is_a_file(monkeypatch: pytest.MonkeyPatch) -> str:
    cache = storage.cache_directory()
    assert cache is not None
    cache.write_text("")
    return "cache"


@pytest.mark.parametrize("trouble", [no_cache, cache_that_is_a_file])
def test_without_a_cache_a_model_of_the_package_is_used_and_nothing_is_kept(
    trouble: Callable[[pytest.MonkeyPatch], str], shipped: checkpoint.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {file: file.read_bytes() for file in shipped.path.iterdir()}
    message = trouble(monkeypatch)
    kept.save_calibration(shipped, Calibration({"key": (Choice("sequential"),)}))
    assert kept.open_calibration(shipped).choices == {}
    stored = kept.open_setting(shipped)
    assert stored is not None and stored.setting.denoise == 0.5
    with pytest.raises(OSError, match=message):
        kept.save_setting(shipped, stored)
    assert {file: file.read_bytes() for file in shipped.path.iterdir()} == before

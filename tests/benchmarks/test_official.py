"""Other codes with our weights: stand-ins, and the clones that TARFLOW_OFFICIAL and TARFLOW_GS_JACOBI name."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import tarflow
from benchmark_cases import STAND_INS, small_flow
from benchmarks import models, official
from benchmarks.official import GS_JACOBI, OFFICIAL, GSJacobi

GUIDANCES = {
    "unguided": None,
    "guided": tarflow.Guidance(1.5),
    "by temperature": tarflow.Guidance(1.0, temperature=0.5),
}
# Windows of four of the sixteen patches, and as many iterations as are always exact.
EXACT = GSJacobi(windows=4, iterations=16, bound=0.0)


def clone(code: str, where: str) -> Path:
    if where == "stand-in":
        return STAND_INS
    variable = {OFFICIAL: "TARFLOW_OFFICIAL", GS_JACOBI: "TARFLOW_GS_JACOBI"}[code]
    if variable not in os.environ:
        pytest.skip(f"{variable} is not set to a clone of {official.REPOSITORIES[code]}")
    return Path(os.environ[variable])


everywhere = pytest.mark.parametrize("where", ["stand-in", "clone"])


@everywhere
@pytest.mark.parametrize("name", GUIDANCES)
@pytest.mark.parametrize(
    "changes", [{}, {"transform": "additive"}, {"num_classes": 0}, {"layers": (2, 1, 1, 1)}], ids=str
)
def test_the_official_code_draws_what_ours_draws(where: str, name: str, changes: dict[str, Any]) -> None:
    flow, guidance = small_flow(**changes), GUIDANCES[name]
    if flow.config.num_classes == 0 and name == "guided":
        return  # both branches are the same then
    module = official.load_module(OFFICIAL, clone(OFFICIAL, where))
    noise, y = models.draw_noise(flow.config, 3, flow.device), models.labels(flow.config, 3, flow.device)
    before = noise.clone()
    for part in (flow, models.first_decoded(flow, 2)):
        model = official.build(OFFICIAL, module, part)
        theirs = official.reverse(OFFICIAL, model, noise, y, guidance, bf16=False)
        torch.testing.assert_close(tarflow.sample(part, 3, y, guidance, noise=noise), theirs, atol=1e-3, rtol=1e-3)
    assert torch.equal(noise, before)


@everywhere
@pytest.mark.parametrize("name", ["unguided", "guided"])
def test_gs_jacobi_draws_what_ours_draws_where_it_does_not_clamp(where: str, name: str) -> None:
    flow, guidance = small_flow(), GUIDANCES[name]
    module = official.load_module(GS_JACOBI, clone(GS_JACOBI, where))
    model = official.build(GS_JACOBI, module, flow)
    noise, y = 0.1 * models.draw_noise(flow.config, 3, flow.device), models.labels(flow.config, 3, flow.device)
    theirs = official.reverse(GS_JACOBI, model, noise, y, guidance, bf16=False, settings=EXACT)
    ours = tarflow.sample(flow, 3, y, guidance, noise=noise)
    assert ours.abs().max() < 3
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    wild = official.reverse(GS_JACOBI, model, 20 * noise, y, guidance, bf16=False, settings=EXACT)
    assert (tarflow.sample(flow, 3, y, guidance, noise=20 * noise) - wild).abs().max() > 0.1


def test_bf16_is_asked_of_theirs_by_autocast() -> None:
    flow = small_flow()
    model = official.build(OFFICIAL, official.load_module(OFFICIAL, STAND_INS), flow)
    noise, y = models.draw_noise(flow.config, 2, flow.device), models.labels(flow.config, 2, flow.device)
    narrow, wide = (official.reverse(OFFICIAL, model, noise, y, None, bf16=bf16) for bf16 in (True, False))
    assert narrow.dtype == torch.float32
    assert 1e-4 < (narrow - wide).abs().max() < 1
    assert all(p.requires_grad for p in model.parameters())  # without it autocast converts the weights at every step


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no transformer_flow.py in it; expected a clone of apple/ml-tarflow"),
        ("1/0", "transformer_flow.py: cannot be imported (ZeroDivisionError"),
        ("Modell = 1", "transformer_flow.py: no class Model in it"),
    ],
)
def test_a_folder_that_is_no_clone_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "transformer_flow.py").write_text(content)
    with pytest.raises(ValueError) as error:
        official.load_module(OFFICIAL, tmp_path)
    assert message in str(error.value)
    with pytest.raises(FileNotFoundError, match="no such directory; expected a clone of apple/ml-tarflow"):
        official.load_module(OFFICIAL, tmp_path / "nowhere")


def test_numpy_is_not_needed_for_a_clone_that_imports_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "GS_Jacobi_sampling.py").write_text("import numpy as np\nclass Model: pass\n")
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "numpy", raising=False)
        patch.setattr(official.importlib.util, "find_spec", lambda name: None)
        official.load_module(GS_JACOBI, tmp_path)
        assert "numpy" not in sys.modules


@pytest.mark.parametrize(
    ("code", "changes", "message"),
    [
        (OFFICIAL, {"expansion": 2}, "expansion: the official code has 4, got 2"),
        (OFFICIAL, {"head_dim": 32}, "head_dim"),
        (OFFICIAL, {"image_size": (4, 8)}, "image_size"),
        (OFFICIAL, {"log_scale_bound": 2.0}, "log_scale_bound"),
        (GS_JACOBI, {"transform": "additive"}, "transform: the gs-jacobi code has the affine one only"),
    ],
)
def test_what_the_others_cannot_hold_is_named(code: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        official.build(code, official.load_module(code, STAND_INS), small_flow(**changes))


def test_a_model_of_another_version_is_named(tmp_path: Path) -> None:
    text = (STAND_INS / "transformer_flow.py").read_text()
    (tmp_path / "transformer_flow.py").write_text(text.replace("self.proj_in", "self.enter"))
    with pytest.raises(ValueError, match="transformer_flow.py: its Model does not take these weights"):
        official.build(OFFICIAL, official.load_module(OFFICIAL, tmp_path), small_flow())

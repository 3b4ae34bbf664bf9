"""What the spline costs and how it is guided: the benchmarks measure what is used, and what they say they do."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from benchmarks import spline, spline_guidance
from spline_cases import drawn, make, needs_compiler
from tarflow.model.spline import Spline
from tarflow.model.transform import Rule


def test_a_side_is_compared_with_the_first_one_of_the_same_turn() -> None:
    def work(seconds: float) -> None:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    found = spline.paired({"one": lambda: work(0.01), "three": lambda: work(0.03)}, turns=3)
    assert found["one"]["ratio"] == 1 and found["three"]["ratio"] == pytest.approx(3, rel=0.3)
    assert found["three"]["milliseconds"] == pytest.approx(30, rel=0.3)


@needs_compiler
def test_operations_are_operations_within_it_and_c_behind_it() -> None:
    numbers = drawn(make(4), dtype=torch.float32)
    with spline.operations():
        assert not make(4).native.fits(*numbers)
    assert make(4).native.fits(*numbers)


@pytest.mark.slow
# torch's tracer looks at `.grad` of what it traces, and hides the warning only from where it is shown.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_everything_is_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, size in spline.SIZES.items():
        monkeypatch.setitem(spline.SIZES, name, size | {"tokens": 4, "width": 64, "layers": (1,)})
        monkeypatch.setitem(spline.BATCH, name, 2)
    monkeypatch.setattr(spline, "LEAST", 0.0)
    quick = ["--turns", "1", "--threads", "1", "--backend", "aot_eager", "--out", str(tmp_path / "out.json")]
    assert spline.main(quick) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert len({(row["size"], row["what"]) for row in rows}) == len(rows) == 12
    assert all(row["sides"]["affine"]["ratio"] == 1 and any("spline" in side for side in row["sides"]) for row in rows)
    assert spline.main([*quick, "--only", "drawing"]) == 0
    again = json.loads((tmp_path / "out.json").read_text())["rows"]
    changed = [new["what"] for new, old in zip(again, rows, strict=True) if new != old]
    assert changed == ["drawing 1", "drawing 16"]


def test_the_ways_that_the_rules_take_are_theirs() -> None:
    made = make(1, spline_guidance.BINS)
    assert isinstance(made, Spline)
    _, (conditional, unguided) = drawn(made)
    ways: dict[Rule, spline_guidance.Curves] = {"stable": spline_guidance.kept, "paper": spline_guidance.extrapolated}
    for rule, way in ways.items():
        assert torch.equal(
            made.combine(conditional, unguided, 2.0, rule)[:, 2:], way(conditional, unguided, 2.0)[:, 2:]
        )  # type: ignore[arg-type]


def test_splines_that_are_alike_are_tilted_to_themselves() -> None:
    _, (params, _) = drawn(make(1, spline_guidance.BINS))
    curve = params[:, 2:]
    same = spline_guidance.tilted(curve, curve, 2.0)
    densities = [spline_guidance.log_density(make(1), torch.cat([params[:, :2], c], dim=-1)) for c in (curve, same)]
    torch.testing.assert_close(densities[0], densities[1], atol=1e-6, rtol=1e-6)


def test_what_is_exact_has_no_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Branches with one spline, of which the affine map's rule clips some."""
    monkeypatch.setattr(spline_guidance, "KINDS", ((0.3, 0.0, 0.1),))
    for row in spline_guidance.measure(20):
        kl = row["kl"]
        assert kl["kept"] < 0.2 * kl["p_c"] and kl["kept"] == kl["extrapolated"] == pytest.approx(
            kl["tilted"], abs=1e-3
        )

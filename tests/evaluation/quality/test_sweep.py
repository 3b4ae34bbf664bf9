"""Grids of settings, measured one after the other: what is tried, what is best, and what an interruption leaves."""

import pytest
import torch

from flow_cases import config_of
from tarflow.evaluation.quality.judge import Figure
from tarflow.evaluation.quality.sweep import Row, best_row, grid, read_sweep, sweep, write_rows
from tarflow.report.sweep import sweep_chart, sweep_table
from tarflow.sampling.guidance import Guidance
from tarflow.sampling.sample import SamplingError
from tarflow.sampling.setting import Setting

CONDITIONAL, UNCONDITIONAL = config_of("conditional"), config_of("unconditional")


class Named:
    """A judge whose figures are the mean of the pixels."""

    class extractor:
        @staticmethod
        def figure(kind):
            return f"{kind}-Mean"

    def figures(self, pixels, levels, progress=None):
        value = float(pixels.float().mean())
        return {f"{kind}-Mean": Figure(value, len(pixels), 1.0, 2, value, 0.5) for kind in ("FD", "precision")}


def draw(setting, seed):
    if setting.guidance.scale == 3:
        raise SamplingError("2 of 4 samples were not finite")
    return torch.full((4, 1, 2, 2), int(abs(setting.guidance.scale - 1) * 10 + 5 + seed), dtype=torch.uint8)


def test_the_grid_is_every_combination_once_and_unguided_is_one():
    found = grid(CONDITIONAL, 0.1, scales=(2.0, 0.0), schedules=("linear", "constant"), rules=("paper", "stable"))
    assert found == [
        Setting(denoise=0.1),
        Setting(Guidance(2.0, "linear", 1.0, "paper"), 0.1),
        Setting(Guidance(2.0, "constant", 1.0, "paper"), 0.1),
        Setting(Guidance(2.0, "linear", 1.0, "stable"), 0.1),
        Setting(Guidance(2.0, "constant", 1.0, "stable"), 0.1),
    ]
    found = grid(CONDITIONAL, 0.1, scales=(1.0,), temperatures=(0.5, 1.0), strengths=(0.0, 0.5))
    assert [(s.guidance.temperature, s.denoise) for s in found] == [(0.5, None), (1, None), (0.5, 0.05), (1, 0.05)]


def test_what_is_tried_when_nothing_is_said():
    assert [s.guidance.scale for s in grid(CONDITIONAL, 0.1)] == [0, 0.5, 1, 2, 3]
    assert {(s.guidance.temperature, s.denoise) for s in grid(CONDITIONAL, 0.1)} == {(1, 0.1)}
    guided = grid(UNCONDITIONAL, None)
    assert [(s.guidance.scale, s.guidance.temperature) for s in guided] == [(0, 1), (0.1, 0.3), (0.2, 0.3), (0.5, 0.3)]
    assert {s.denoise for s in guided} == {None}


def test_what_cannot_be_tried_is_named():
    with pytest.raises(ValueError, match="denoising strength 1.0: the model was not trained with Gaussian noise"):
        grid(CONDITIONAL, None, strengths=(1.0,))
    with pytest.raises(ValueError, match="denoising strength: expected 0 or more"):
        grid(CONDITIONAL, 0.1, strengths=(-1.0,))
    with pytest.raises(ValueError, match="both branches are the same here"):
        grid(UNCONDITIONAL, None, temperatures=(1.0,))
    with pytest.raises(ValueError, match="guidance scale: expected a number of 0 or more, got -1"):
        grid(CONDITIONAL, None, scales=(-1.0,))


def test_the_best_is_the_lowest_distance_or_the_highest_share_and_a_failure_is_a_row():
    rows = sweep(grid(CONDITIONAL, 0.1), draw, Named(), 17)
    assert [len(row.figures) for row in rows] == [2, 2, 2, 2, 0]
    assert "not finite" in rows[-1].failed
    assert best_row(rows, Named()).setting.guidance.scale == 1
    assert best_row(rows, Named(), "precision").setting.guidance.scale == 0  # 0 and 2 are equal: the weaker one
    with pytest.raises(ValueError, match="no setting gave finite samples.*not finite"):
        best_row(rows[-1:], Named())


def test_an_interrupted_sweep_goes_on(tmp_path):
    path, key = tmp_path / "sweep.json", {"weights": "abc", "samples": 4}
    settings = grid(CONDITIONAL, 0.1)
    drawn = []

    def counted(setting, seed):
        drawn.append(setting)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return draw(setting, seed)

    with pytest.raises(KeyboardInterrupt):
        sweep(settings, counted, Named(), 17, done=lambda rows: write_rows(path, key, rows))
    known = read_sweep(path).rows
    assert [row.setting for row in known] == settings[:2]
    rows = sweep(settings, counted, Named(), 17, known=known, done=lambda rows: write_rows(path, key, rows))
    assert drawn == settings[:3] + settings[2:]
    assert rows == sweep(settings, draw, Named(), 17) == read_sweep(path).rows


def test_damaged_rows_are_not_used(tmp_path):
    path, key = tmp_path / "sweep.json", {"weights": "abc"}
    assert read_sweep(path) is None
    write_rows(path, key, sweep(grid(CONDITIONAL, 0.1), draw, Named(), 17))
    stored = read_sweep(path)
    assert stored is not None and stored.key == key and len(stored.rows) == 5
    sound = path.read_text()
    numbers = [sound.replace('"value": 15', f'"value": {value}') for value in ('"15"', "NaN", "[15]", "true")]
    assert all(text != sound for text in numbers)
    for text in ("{", "[]", '{"key": {"weights": "abc"}, "rows": [{"setting": {"scal": 1}}]}', *numbers):
        path.write_text(text)
        assert read_sweep(path) is None


# --- as a table and as a drawing ------------------------------------------------------------------------------------


def rows_of(settings):
    return sweep(settings, draw, Named(), 17)


def test_the_table_has_every_row_and_the_floor():
    rows = rows_of(grid(CONDITIONAL, 0.1))
    text = sweep_table(rows, best_row(rows, Named()))
    lines = text.splitlines()
    assert lines[0] == "| setting | FD-Mean | precision-Mean |"
    assert lines[2].startswith("| no guidance, denoised with σ=0.1 | 15 ± 0.5 |")
    assert lines[4].startswith("| **guidance 1 (linear, paper), denoised with σ=0.1** | 5 ± 0.5 |")
    assert "failed: 2 of 4 samples" in lines[6]
    assert lines[7] == "| held-out images (2) | 1 | 1 |"
    assert lines[8] == "| best, as many samples (2) | 5 | 5 |"
    assert len({line.count("|") for line in lines}) == 1


def test_the_chart_has_a_panel_for_each_rule_and_a_line_for_each_schedule():
    settings = grid(
        CONDITIONAL, 0.1, scales=(0.0, 0.5, 1.0), schedules=("linear", "constant"), rules=("paper", "stable")
    )
    text = sweep_chart(rows_of(settings), "FD-Mean")
    assert text.startswith("<svg ") and 'xmlns="http://www.w3.org/2000/svg"' in text
    assert text.count('class="heading"') == 2 and "rule stable, denoised with σ=0.1" in text
    assert text.count("<polyline") == 4  # two lines a panel; the floor has another number of images
    assert text.count("<circle") == 2 * (3 + 3) + 4  # and a dot for each in the legend
    assert "lower is better, N = 4" in text
    everything = [Row(r.setting, {"FD-Mean": Figure(1.0, 4, 0.5, 4, 1.0)}) for r in rows_of(settings)]
    assert sweep_chart(everything, "FD-Mean").count("<polyline") == 6
    only = sweep_chart(rows_of([Setting(denoise=0.1)]), "FD-Mean")
    assert only.count('class="heading"') == 1
    constant = sweep_chart(rows_of(grid(CONDITIONAL, None, scales=(0.0, 1.0), schedules=("constant",))), "FD-Mean")
    assert ">constant<" in constant and ">linear<" not in constant
    with pytest.raises(ValueError, match="KD-Mean: no row of the sweep has this figure"):
        sweep_chart(everything, "KD-Mean")

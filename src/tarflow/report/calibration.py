"""Calibration as charts: how ranks and coverage differ from what exact posteriors have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from markupsafe import Markup
from torch import Tensor

from tarflow import storage
from tarflow.inference.calibration import Coverage
from tarflow.report.charts import Series, document, line_chart


def rank_chart(ranks: Tensor, draws: int, name: str = "ranks") -> Markup:
    """The distribution of ranks (N,) of one number among `draws`, less that of uniform ones, and where that lies.

    The dashed lines hold 95 % of the points of a calibrated posterior. A curve that falls below 0 first and then rises
    above has its ranks in the middle (too wide); the other way round, at both ends (too narrow).

    Source: Säilynoja et al., arXiv 2103.10522, whose band holds whole curves and is wider.
    """
    levels = torch.linspace(0, 1, 101, device="cpu", dtype=torch.float64)
    share = (ranks.double().cpu() + 0.5) / (draws + 1)
    below = torch.stack([(share <= level).double().mean() for level in levels])
    error = (levels * (1 - levels) / len(ranks)).sqrt()
    title = f"{name}: ranks of the truth, {len(ranks)} simulations"
    return _chart(name, below - levels, error, levels, title, "rank of the truth, as a share", "share below it - rank")


def coverage_chart(coverage: Coverage, name: str = "coverage") -> Markup:
    """What regions hold of the truths, less what they claim, over what they claim; dashed, 95 % of exact posteriors."""
    title = f"{name}: held less claimed"
    difference = coverage.covered - coverage.levels
    return _chart(name, difference, coverage.error, coverage.levels, title, "credibility", "truths held - credibility")


def write_charts(path: str | Path, charts: Sequence[tuple[str, Markup]]) -> None:
    """Write charts with a heading each, two side by side, as an SVG file with the page's colours, light and dark."""
    storage.write_text(Path(path), document(charts))


def _chart(
    name: str, difference: Tensor, error: Tensor, levels: Tensor, title: str, x_label: str, y_label: str
) -> Markup:
    curve = list(zip(levels.tolist(), difference.tolist(), strict=True))
    upper = list(zip(levels.tolist(), (1.96 * error).tolist(), strict=True))
    band = upper + [(x, -y) for x, y in reversed(upper)]
    series = [Series("measured", curve, "first"), Series("95 % of exact ones", band, "third")]
    identifier = "".join(letter if letter.isalnum() else "-" for letter in name)
    return line_chart(identifier, series, title=title, x_label=x_label, y_label=y_label)

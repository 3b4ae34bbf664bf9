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


def rank_histogram(ranks: Tensor, draws: int, name: str = "ranks", bins: int = 20) -> Markup:
    """How often ranks (N,) of one number among `draws` fall into each bin, over how often uniform ranks would.

    The dashed lines hold the bins of a calibrated posterior in 95 % of cases, each by itself. High in the middle, it is
    too wide; at both ends, too narrow; at one end, off to the other side. There are at most `bins`, and as few as give
    each 5 simulations.

    Source: Talts et al., arXiv 1804.06788.
    """
    bins = max(2, min(bins, draws + 1, len(ranks) // 5))
    places = torch.arange(draws + 1, device="cpu", dtype=torch.int64) * bins // (draws + 1)
    share = places.bincount(minlength=bins).double() / (draws + 1)
    ratio = places[ranks.cpu().long()].bincount(minlength=bins).double() / (len(ranks) * share)
    edges = torch.linspace(0, 1, bins + 1, device="cpu", dtype=torch.float64)
    width = 1.96 * ((1 - share) / (share * len(ranks))).sqrt()
    counted, upper, lower = (_steps(edges, values) for values in (ratio, 1 + width, (1 - width).clamp(min=0)))
    series = [Series("measured", counted, "first"), Series("95 % of exact ones", upper + lower[::-1], "third")]
    title = f"{name}: ranks of the truth, {len(ranks)} simulations"
    return line_chart(
        _identifier(name),
        series,
        title=title,
        x_label=f"{name}: rank of the truth, as a share",
        y_label="count / expected",
    )


def _steps(edges: Tensor, values: Tensor) -> list[tuple[float, float]]:
    """A histogram as the line along its tops."""
    return list(zip(edges.repeat_interleave(2)[1:-1].tolist(), values.repeat_interleave(2).tolist(), strict=True))


def coverage_chart(coverage: Coverage, name: str = "coverage") -> Markup:
    """What regions hold of the truths, less what they claim, over what they claim; dashed, 95 % of exact posteriors."""
    title = f"{name}: held less claimed"
    difference = coverage.covered - coverage.levels
    return _chart(
        name, difference, coverage.error, coverage.levels, title, f"{name}: credibility", "truths held - credibility"
    )


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
    return line_chart(_identifier(name), series, title=title, x_label=x_label, y_label=y_label)


def _identifier(name: str) -> str:
    """A name as an id on a page."""
    return "".join(letter if letter.isalnum() else "-" for letter in name)

"""A result of `benchmarks.compare` as text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.sampling import TOLERANCE

Row = Sequence[str]


def render(result: Mapping[str, Any]) -> str:
    """Everything a reader wants first: what ran, who is how fast, how far from the floors, and what to distrust."""
    device, versions, config = result["device"], result["versions"], result["config"]
    layers = " ".join(map(str, config["layers"]))
    parts = [
        f"{device['name']} ({device['kind']}, {device['threads']} threads), torch {versions['torch']}, "
        f"tarflow {versions['tarflow']}, {result['date']}",
        f"{config['channels']} channels, image {config['image_size']}, patch {config['patch_size']}, width "
        f"{config['width']}, layers {layers}, {config['num_classes']} classes, {result['dtype']}, "
        f"{result['weights']} weights{': ' if result['note'] else ''}{result['note']}",
        f"products {_giga(result['rates']['flops_per_second'])} GFLOP/s at best",
    ]
    if result["cases"]:
        parts += ["", "Sampling. Seconds a batch; what `x floor` says is the best time over the floor.", _times(result)]
        parts += ["", "How many times faster ours is: best against best (median against median).", _ratios(result)]
        parts += [
            "",
            "Agreement: the worst |a - b| / max(1, |b|) of so many images, and the share of the numbers in which it is "
            f"above {TOLERANCE:g}.",
            _agreement(result["cases"]),
        ]
    if result["growth"]:
        parts += [
            "",
            f"Growth with the number of patches, {result['growth_weights']} weights: best seconds a batch, and in "
            "brackets the exponent since the length before.",
            _growth(result["growth"]),
        ]
    if result["official_blocks"]:
        parts += ["", f"Times of the others are those of {result['official_blocks']} blocks, scaled to all of them."]
    parts += [f"not measured, out of time: {what}" for what in result["skipped"]]
    parts += [f"DISAGREES: {what}" for what in result["disagreements"]]
    return "\n".join(parts)


def aligned(rows: Sequence[Row]) -> str:
    """Columns of equal width, the first one to the left and the others to the right; the first row is the head."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]

    def line(row: Row) -> str:
        padded = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        return "  ".join([row[0].ljust(widths[0]), *padded[1:]]).rstrip()

    return "\n".join([line(rows[0]), "  ".join("-" * width for width in widths), *map(line, rows[1:])])


def _times(result: Mapping[str, Any]) -> str:
    rows = [("batch, guidance, side", "best", "median", "worst/best", "first", "s/image", "x arithmetic floor",
             "x cached-loop floor", "peak MB", "iterations")]  # fmt: skip
    for case in result["cases"]:
        for name, side in case["sides"].items():
            rows.append(
                (
                    f"{_title(case)}, {name}",
                    _seconds(side["best"]),
                    _seconds(side["median"]),
                    f"{side['spread']:.2f}",
                    _seconds(side["first_call_seconds"]),
                    _seconds(side["seconds_per_image"]),
                    f"{side['over_arithmetic_floor']:.1f}",
                    f"{side['over_cached_loop_floor']:.1f}",
                    f"{side['peak_bytes'] / 1e6:.0f}" if "peak_bytes" in side else "-",
                    _iterations(side),
                )
            )
    return aligned(rows)


def _iterations(side: Mapping[str, Any]) -> str:
    if "iterations" not in side:
        return "-"
    return f"{' '.join(map(str, side['iterations']))} ({', '.join(dict.fromkeys(side['solvers']))})"


def _ratios(result: Mapping[str, Any]) -> str:
    others = list(result["others"])
    rows = [("batch, guidance, side", *(f"than {other}" for other in others))]
    for case in result["cases"]:
        for name, side in case["sides"].items():
            if side["faster_than"]:
                ratios = (side["faster_than"][other] for other in others)
                rows.append((f"{_title(case)}, {name}", *(f"{r['best']:.2f} ({r['median']:.2f})" for r in ratios)))
    return aligned(rows)


def _agreement(cases: Sequence[Mapping[str, Any]]) -> str:
    rows: list[Row] = [("batch, guidance, side", "reference decode", "official code", "verdict")]
    for case in cases:
        for name, side in case["sides"].items():
            for kind in ("agreement", "deviation"):
                found = side.get(kind, {})
                if not found:
                    continue
                verdict = "yes" if all(one["agrees"] for one in found.values()) else "NO"
                if kind == "deviation":  # of bf16 from float32: a fact, no verdict
                    verdict = "bf16"
                cells = (_difference(found.get(key)) for key in ("reference decode", "official code"))
                rows.append((f"{_title(case)}, {name}", *cells, verdict))
    return aligned(rows)


def _difference(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    beyond = f", {100 * found['share_beyond']:.2g} % above" if found["share_beyond"] else ""
    return f"{found['worst']:.1e} of {found['images']}{beyond}"


def _growth(cases: Sequence[Mapping[str, Any]]) -> str:
    """A row a side, a column a length; in brackets the exponent p of time ~ T^p from the length before."""
    lengths = list(dict.fromkeys(case["tokens"] for case in cases))
    times = {
        (f"{case['batch']}, {name}", case["tokens"]): side["best"]
        for case in cases
        for name, side in case["sides"].items()
    }
    rows: list[Row] = [("batch, side", *(f"{tokens} patches" for tokens in lengths))]
    for title in dict.fromkeys(title for title, _ in times):
        cells = [_seconds(times[title, lengths[0]])]
        for before, tokens in itertools.pairwise(lengths):
            if (title, tokens) not in times:  # the time was up
                cells.append("-")
                continue
            power = math.log(times[title, tokens] / times[title, before]) / math.log(tokens / before)
            cells.append(f"{_seconds(times[title, tokens])} ({power:.2f})")
        rows.append((title, *cells))
    return aligned(rows)


def _title(case: Mapping[str, Any]) -> str:
    return f"{case['batch']}, {case['guidance']:g}"


def _seconds(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _giga(value: float) -> str:
    return f"{value / 1e9:.0f}"

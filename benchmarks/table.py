"""A result of `benchmarks.compare` as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
        parts += ["", "Agreement: the worst |a - b| / max(1, |b|), and where it is above", _agreement(result["cases"])]
    if result["growth"]:
        parts += [
            "",
            f"Growth with the number of patches, {result['growth_weights']} weights: best seconds a batch.",
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
                    " ".join(map(str, side.get("iterations", ["-"]))),
                )
            )
    return aligned(rows)


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
    rows = [("batch, guidance, side", "with", "images", "worst", "share above", "tolerance", "agrees")]
    for case in cases:
        for name, side in case["sides"].items():
            for kind in ("agreement", "deviation"):
                for reference, found in side.get(kind, {}).items():
                    # A deviation is that of bf16 from float32: a fact, no verdict.
                    verdict = ("yes" if found["agrees"] else "NO") if kind == "agreement" else "bf16"
                    rows.append(
                        (
                            f"{_title(case)}, {name}",
                            reference,
                            str(found["images"]),
                            f"{found['worst']:.1e}",
                            f"{100 * found['share_beyond']:.2f} %",
                            f"{found['tolerance']:g}",
                            verdict,
                        )
                    )
    return aligned(rows)


def _growth(cases: Sequence[Mapping[str, Any]]) -> str:
    names = list(cases[0]["sides"])
    rows: list[Row] = [("patches, batch", *names, *(f"x arithmetic floor, {name}" for name in names))]
    for case in cases:
        sides = [case["sides"][name] for name in names]
        rows.append(
            (
                f"{case['tokens']}, {case['batch']}",
                *(_seconds(side["best"]) for side in sides),
                *(f"{side['over_arithmetic_floor']:.1f}" for side in sides),
            )
        )
    return aligned(rows)


def _title(case: Mapping[str, Any]) -> str:
    return f"{case['batch']}, {case['guidance']:g}"


def _seconds(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _giga(value: float) -> str:
    return f"{value / 1e9:.0f}"

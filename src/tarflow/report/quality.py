"""The section on what samples are worth, as `tarflow quality` measured it and left it in the run."""

from __future__ import annotations

from tarflow.config import from_dict
from tarflow.evaluation.quality.judge import Figure, kept_quality
from tarflow.report.parts import Parts, Table
from tarflow.report.subject import Subject, Unavailable
from tarflow.report.sweep import better_is, with_error
from tarflow.sampling.setting import Setting

OF_PIXELS = {  # what is said besides distances of features: (what it is, what is good)
    "agreement": ("share of samples of the class they were meant to show", "1, or as held-out images"),
    "classifier_accuracy": ("the same of held-out images", ""),
    "diversity": ("distance between samples of a class over that of real ones", "about 1"),
    "novelty": ("distance to the nearest training image over that of held-out images", "about 1"),
}


def quality(subject: Subject) -> Parts:
    """Every figure of `tarflow quality`, beside what held-out images score."""
    kept = kept_quality(subject.run)
    if not kept:
        raise Unavailable(
            "Nothing was measured for these weights: “tarflow quality RUN” measures what samples are worth."
        )
    parts: Parts = []
    for name, entry in kept.items():
        figures = {figure: Figure.from_dict(values) for figure, values in entry["figures"].items()}
        rows = [[figure, with_error(f), f"{f.floor:.4g}", better_is(figure)] for figure, f in figures.items()]
        first = next(iter(figures.values()))
        head = ["figure", f"{first.samples} samples", f"{first.floor_samples} held-out images", "better is"]
        extractor = entry.get("extractor")
        description = extractor.get("description", "") if isinstance(extractor, dict) else ""
        parts.append(Table(f"On features of {name}: {description}", head, rows, numbers=True))
        text = f"Drawn with {from_dict(Setting, entry['setting'])}, seed {entry.get('seed', '?')}."
        if first.floor_samples < first.samples:
            text += " Figures depend on how many images there are: fewer held-out ones have a higher floor."
        parts.append(text)
    newest = entry
    rows = [
        [what, f"{newest[key]:.3f}", good]
        for key, (what, good) in OF_PIXELS.items()
        if isinstance(newest.get(key), float | int)
    ]
    if rows:
        parts.append(Table("By a classifier, and by distances of pixels", ["of the pixels", "value", "good is"], rows))
    return parts

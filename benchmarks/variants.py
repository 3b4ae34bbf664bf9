"""The ideas that `benchmarks.ablations` tries: fields of the config where there are any, else `benchmarks.networks`.

What has not been shown to help enough does not get into the library.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from benchmarks.networks import DEQUANTISER, Parts
from tarflow.config import TarFlowConfig, TrainingConfig


@dataclass(frozen=True)
class Variant:
    """One idea: how it differs from the baseline.

    Attributes:
        group: which of the questions it belongs to. model, training: fields of the configs. parts: of `Network`.
    """

    group: str
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    parts: Parts = frozenset()

    @property
    def is_free(self) -> bool:
        """Whether a step has the same arithmetic as the baseline's, to the operation: only numbers differ."""
        return not self.model and not self.parts and self.training.keys() <= FREE


FREE = frozenset(
    ("lr", "final_lr", "betas", "weight_decay", "schedule", "warmup_share", "label_drop", "noise", "noise_std")
)


def _part(group: str, *parts: str) -> Variant:
    return Variant(group, parts=frozenset(parts))


def _training(group: str, **fields: Any) -> Variant:
    return Variant(group, training=fields)


BASELINE = "baseline"
BASE: dict[str, Any] = {  # of apple/ml-tarflow's train.py: AdamW, no clipping, no averaged weights, a cosine to 1e-6
    "noise": "uniform",
    "lr": 8e-3,  # train.py has 1e-4, the MNIST notebook 2e-3: at these budgets this is the best, see the rows `lr`
    "final_lr": 1e-6,
    "betas": (0.9, 0.95),
    "weight_decay": 1e-4,
    "clip_norm": 0.0,
    "ema_decay": 0.0,
    "label_drop": 0.1,
}
VARIANTS: dict[str, Variant] = {
    BASELINE: Variant("baseline"),
    "lr 1e-4": _training("learning rate", lr=1e-4),
    "lr 2e-3": _training("learning rate", lr=2e-3),
    "lr 4e-3": _training("learning rate", lr=4e-3),
    "lr 1.6e-2": _training("learning rate", lr=1.6e-2),
    "muon 1e-3": _training("optimizer", optimizer="muon", muon_lr=1e-3),
    "muon 2e-3": _training("optimizer", optimizer="muon", muon_lr=2e-3),
    "muon 4e-3": _training("optimizer", optimizer="muon", muon_lr=4e-3),
    "muon 8e-3": _training("optimizer", optimizer="muon", muon_lr=8e-3),
    "muon 1.6e-2": _training("optimizer", optimizer="muon", muon_lr=1.6e-2),
    "betas 0.9 0.99": _training("optimizer", betas=(0.9, 0.99)),
    "clip 1": _training("clipping", clip_norm=1.0),
    "ema 0.99": _training("averaged weights", ema_decay=0.99),
    "ema 0.999": _training("averaged weights", ema_decay=0.999),
    "linear to zero": _training("schedule", schedule="linear", final_lr=0.0),
    "constant, then linear": _training("schedule", schedule="trapezoid", final_lr=0.0),
    "warm-up 1/4": _training("schedule", warmup_share=0.25),
    "bounded scale 4": Variant("bounded scale", {"log_scale_bound": 4.0}),
    "bounded scale 2": Variant("bounded scale", {"log_scale_bound": 2.0}),
    "8 blocks of 1": Variant("layout", {"layers": (1,) * 8}),
    "2 blocks of 4": Variant("layout", {"layers": (4, 4)}),
    "deep last (1 1 1 5)": Variant("layout", {"layers": (1, 1, 1, 5)}),
    "deep first (5 1 1 1)": Variant("layout", {"layers": (5, 1, 1, 1)}),
    "rotary": Variant("positions", {"rotary": True}),
    "rotary alone": _part("positions", "rotary alone"),
    "qk norm": _part("query/key norm", "qk norm"),
    "start token": Variant("start token", {"start_token": True}),
    "spline": Variant("spline", {"transforms": ("spline",)}),  # in block 0, next to the pixels
    "spline of 4 bins": Variant("spline", {"transforms": ("spline",), "bins": 4}),
    "spline of 16 bins": Variant("spline", {"transforms": ("spline",), "bins": 16}),
    "spline of 32 bins": Variant("spline", {"transforms": ("spline",), "bins": 32}),
    "spline in 2 blocks": Variant("spline", {"transforms": ("spline", "spline")}),
    "spline in all blocks": Variant("spline", {"transform": "spline"}),
    "spline by number": Variant("spline", {"transforms": ("spline-by-number",)}),
    "spline mixed": Variant("spline", {"transforms": ("spline-mixed",)}),
    "spline, then spline mixed": Variant("spline", {"transforms": ("spline", "spline-mixed")}),  # with "mixed" after it
    "mixed": Variant("order within a patch", {"transform": "affine-mixed"}),  # but for blocks that others name
    "affine by number": Variant("order within a patch", {"transforms": ("affine-by-number",)}),
    "affine by number in all blocks": Variant("order within a patch", {"transform": "affine-by-number"}),
    "smaller patches first": _part("patches", "smaller patches first"),
    "smaller patches last": _part("patches", "smaller patches last"),
    "larger patches last": _part("patches", "larger patches last"),
    "larger patches in turn": _part("patches", "larger patches in turn"),  # every other pair of blocks
    "shifted patches in turn": _part("patches", "shifted patches in turn"),
    DEQUANTISER: _part("dequantisation", DEQUANTISER),
    "always raster": _part("order", "raster only"),
    "four orders": _part("order", "four orders"),
    "label drop 0": _training("label drop", label_drop=0.0),
    "label drop 0.3": _training("label drop", label_drop=0.3),
}


def together(names: list[str]) -> Variant:
    """Several variants as one; of a field that two of them set, the later one's value counts. One is itself."""
    if len(names) == 1:
        return VARIANTS[names[0]]
    chosen = [VARIANTS[name] for name in names]
    model: dict[str, Any] = {}
    training: dict[str, Any] = {}
    for each in chosen:
        model |= each.model
        training |= each.training
    return Variant("together", model, training, frozenset().union(*(each.parts for each in chosen)))


def configs(variant: Variant, model: TarFlowConfig, **training: Any) -> tuple[TarFlowConfig, TrainingConfig]:
    """The configs of a variant of a baseline."""
    return dataclasses.replace(model, **variant.model), TrainingConfig(**{**BASE, **training, **variant.training})

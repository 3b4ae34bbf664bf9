"""`torch.set_default_dtype` and `set_default_device` are the caller's: no number of ours depends on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import tarflow
from flow_cases import build, images, labels, latents
from tarflow.config import TarFlowConfig
from tarflow.data.batches import batch_indices
from tarflow.data.sets import ImageSet
from tarflow.evaluation.likelihood.anomalies import shuffled
from tarflow.evaluation.likelihood.bayes import classification
from tarflow.evaluation.likelihood.evaluate import evaluate_likelihood
from tarflow.evaluation.likelihood.gaussian import fit_yardstick
from tarflow.evaluation.likelihood.patch_maps import heat_map
from tarflow.evaluation.likelihood.scores import class_scores
from tarflow.evaluation.likelihood.scoring import Scoring
from tarflow.evaluation.quality.distances import frechet_distance, kernel_distance, moments
from tarflow.evaluation.quality.extractors.small_network import open_extractor
from tarflow.evaluation.quality.manifolds import manifolds
from tarflow.interop import load_official, to_official
from tarflow.measure import Measure, requantize
from tarflow.seeding import seeded_generator, seeded_normal
from tarflow.training.trainer import train
from training_cases import run_config, run_weights, splits


@contextmanager
def defaults(dtype: torch.dtype | None, device: str | None) -> Iterator[None]:
    """A caller who has set them."""
    before = torch.get_default_dtype()
    try:
        if dtype is not None:
            torch.set_default_dtype(dtype)
        if device is not None:
            torch.set_default_device(device)
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(before)


FLOW = build("bounded_conditional", torch.float32).requires_grad_(False)
PLAIN = build("rotary_additive", torch.float32).requires_grad_(False)
X, Y, Z = images(FLOW, 3, dtype=torch.float32), labels(FLOW, 3), latents(FLOW, 3)
PIXELS = torch.randint(0, 16, (12, 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
CLASSES = torch.arange(12) % 3
IMAGES = ImageSet(PIXELS, CLASSES, range(12), 16, ("a", "b", "c"))
SPLITS = splits()
FEATURES = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
SHAPE: dict[str, Any] = dict(image_size=8, patch_size=2, width=64, layers=(1, 1), log_scale_bound=None)
OFFICIAL = to_official(tarflow.TarFlow(TarFlowConfig(**SHAPE), dtype=torch.float32))
SCORING = Scoring(Measure(16), labels="marginal")
GUIDED = tarflow.Guidance(1.0, temperature=0.7, rule="stable")


def trained(tmp_path: Path) -> Any:
    config = run_config(model={"transform": "additive"}, steps=3, evaluate_every=2, sample_every=2, save_every=3)
    train(config, SPLITS, tmp_path / "run")
    return run_weights(tmp_path / "run")


MADE: dict[str, Callable[[Path], Any]] = {
    "noise of a seed": lambda _: seeded_normal((3,), 1, "a"),
    "a generator": lambda _: torch.rand(3, generator=seeded_generator(1), device="cpu", dtype=torch.float32),
    "an order": lambda _: batch_indices(9, 4, 1, 0),
    "samples": lambda _: tarflow.sample(FLOW, 3, Y, GUIDED, denoise=0.1, solver="sequential"),
    "samples of an additive flow": lambda _: tarflow.sample(PLAIN, 3, solver="jacobi"),
    "given noise": lambda _: tarflow.sample(FLOW, 3, Y, noise=Z, solver=tarflow.Jacobi(window=2)),
    "stages": lambda _: tarflow.trace(FLOW, 3, Y),
    "edits": lambda _: [tarflow.resample(FLOW, X, 2, Y), tarflow.interpolate(FLOW, X[0], X[1], 3, 0, 1)],
    "a density": lambda _: [FLOW.log_prob(X, Y), FLOW.log_prob(X, [0, 1, -1]), FLOW.decode(Z, Y), PLAIN.log_prob(X)],
    "a distribution": lambda _: FLOW.distribution([0, 1, 2]).log_prob(X),
    "a likelihood": lambda _: evaluate_likelihood(FLOW, PIXELS, scoring=SCORING).scores,
    "noisy images": lambda _: Measure(16, "gaussian", 0.1).noisy(PIXELS, seeded_generator(0)),
    "levels": lambda _: requantize(PIXELS, 16, 256),
    "a yardstick": lambda _: fit_yardstick(PIXELS, Measure(16)).log_prob(X),
    "posteriors": lambda _: classification(class_scores(FLOW, PIXELS, scoring=SCORING), CLASSES).to_dict(),
    "maps": lambda _: heat_map(class_scores(FLOW, PIXELS, scoring=SCORING, maps=True).maps[0], PIXELS[0]),
    "shuffled images": lambda _: shuffled(PIXELS, 16, 1),
    "distances": lambda _: [
        frechet_distance(moments(FEATURES), moments(FEATURES[:9])),
        kernel_distance(FEATURES, FEATURES[:12]),
        manifolds(FEATURES, FEATURES[:12] + 0.1),
    ],
    "a classifier's features": lambda _: open_extractor(IMAGES).features(PIXELS, 16),
    "an official checkpoint": lambda _: load_official(OFFICIAL).state_dict(),
    "a training run": trained,
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return bool(a == b)


@pytest.mark.parametrize("name", MADE)
def test_nothing_depends_on_defaults(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "a classifier's features":
        monkeypatch.setattr("tarflow.evaluation.quality.extractors.small_network.STEPS", 2)
    right = MADE[name](tmp_path / "right")
    for number, (dtype, device) in enumerate(((torch.float64, None), (torch.bfloat16, None), (None, "meta"))):
        with defaults(dtype, device):
            found = MADE[name](tmp_path / str(number))
        assert same(found, right), (dtype, device)


def test_a_new_flow_goes_by_them_as_any_module_does_unless_told() -> None:
    config = TarFlowConfig(4, channels=1, patch_size=2, width=16, head_dim=8, layers=(1,), transform="additive")
    with defaults(torch.float64, "meta"):
        assert {(t.dtype, t.device.type) for t in tarflow.TarFlow(config).state_dict().values()} == {
            (torch.float64, "meta")
        }
        told = tarflow.TarFlow(config, device="cpu", dtype=torch.float32).state_dict()
        assert {(t.dtype, t.device.type) for t in told.values()} == {(torch.float32, "cpu")}


def test_a_saved_flow_is_what_was_saved(tmp_path: Path) -> None:
    FLOW.save_pretrained(tmp_path)
    with defaults(torch.float64, "meta"):
        loaded = tarflow.TarFlow.from_pretrained(tmp_path).requires_grad_(False)
        assert same(loaded.state_dict(), FLOW.state_dict())
        assert same(loaded.log_prob(X, Y), FLOW.log_prob(X, Y))

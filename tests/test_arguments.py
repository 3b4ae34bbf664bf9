"""What people pass: each either works or says what is expected. No boolean is a number."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

import tarflow
from flow_cases import build, images, labels, latents
from tarflow.evaluation.likelihood.evaluate import evaluate_likelihood
from tarflow.evaluation.likelihood.scoring import Scoring
from tarflow.measure import Measure, check_levels

FLOW = build("conditional", torch.float32).requires_grad_(False)
X, Y, Z = images(FLOW, 2, dtype=torch.float32), labels(FLOW, 2), latents(FLOW, 2)
PIXELS = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)

BOOLEANS: dict[str, tuple[Callable[[], object], str]] = {
    "denoise=True": (lambda: tarflow.sample(FLOW, 2, denoise=True), "sigma: expected a positive number, got True"),
    "n=True": (lambda: tarflow.sample(FLOW, True), "n: expected a whole number, got True"),
    "seed=True": (lambda: tarflow.sample(FLOW, 2, seed=True), "seed: expected a whole number, got True"),
    "batch_size=True": (lambda: tarflow.sample(FLOW, 2, batch_size=True), "batch_size: expected a whole number"),
    "first=False": (lambda: tarflow.sample(FLOW, 2, first=False), "first: expected a whole number"),
    "window=True": (lambda: tarflow.Jacobi(window=True), "window: expected a whole number"),
    "tol=False": (lambda: tarflow.Auto(tol=False), "tol: expected 0 or more, got False"),
    "guidance=True": (lambda: tarflow.sample(FLOW, 2, Y, guidance=True), r"guidance: expected tarflow.Guidance\("),
    "scale=True": (lambda: tarflow.Guidance(True), "guidance scale: expected a number of 0 or more, got True"),
    "temperature=True": (lambda: tarflow.Guidance(1.0, temperature=True), "guidance temperature: expected"),
    "sigma=True": (lambda: tarflow.denoise(FLOW, X, True), "sigma: expected a positive number"),
    "sigma=np.True_": (lambda: tarflow.denoise(FLOW, X, np.True_), "sigma: expected a positive number"),
    "y=True": (lambda: tarflow.sample(FLOW, 2, y=True), r"y: expected \(2,\) integer labels, got \(\) of torch.bool"),
    "y=[True, 1]": (lambda: FLOW.log_prob(X, [True, 1]), "y: expected integer labels, got a boolean"),
    "y0=True": (
        lambda: tarflow.interpolate(FLOW, X[0], X[1], y0=True, y1=1),
        "y: expected .* integer labels, got .*bool",
    ),
    "steps=True": (lambda: tarflow.interpolate(FLOW, X[0], X[1], steps=True), "steps: expected a whole number"),
    "keep=True": (lambda: tarflow.resample(FLOW, X, True), "keep: expected a whole number"),
    "block=False": (lambda: tarflow.resample(FLOW, X, 1, block=False), "block: expected a whole number"),
    "draws=True": (
        lambda: evaluate_likelihood(FLOW, PIXELS, scoring=Scoring(Measure(4), draws=True)),
        "draws: expected a whole number",
    ),
    "levels=True": (lambda: check_levels(True), "levels: expected a whole number"),
    "width=True": (lambda: tarflow.TarFlowConfig(8, 2, True, (1,)), "width: expected a whole number"),
    "bound=True": (lambda: tarflow.TarFlowConfig(8, 2, 64, (1,), log_scale_bound=True), "log_scale_bound: expected"),
}

OTHERS: dict[str, tuple[Callable[[], object], str]] = {
    "guidance as a number": (
        lambda: tarflow.sample(FLOW, 2, Y, guidance=1.0),
        r"guidance: expected tarflow.Guidance\(",
    ),
    "guidance as its scale's name": (
        lambda: tarflow.trace(FLOW, 2, Y, guidance="2"),
        "guidance: expected tarflow.Guid",
    ),
    "one label for all": (lambda: tarflow.sample(FLOW, 2, y=1), r"y: expected \(2,\) integer labels, got \(\)"),
    "a class name": (lambda: FLOW.log_prob(X, "cat"), "y: expected integer labels, got str 'cat'"),
    "labels that are floats": (lambda: FLOW.log_prob(X, [0.0, 1.0]), "y: expected .* integer labels"),
    "a picture": (lambda: FLOW.log_prob(Image.new("L", (4, 4))), "x: expected a tensor of images .* got PIL.Image"),
    "an array": (lambda: FLOW.log_prob(X.numpy()), "x: expected a tensor of images .* numpy.ndarray; .*from_numpy"),
    "an array to denoise": (lambda: tarflow.denoise(FLOW, X.numpy(), 0.1), "x: expected a tensor"),
    "a picture to edit": (lambda: tarflow.resample(FLOW, Image.new("L", (4, 4)), 1), "x: expected a tensor"),
    "pictures to walk between": (
        lambda: tarflow.interpolate(FLOW, Image.new("L", (4, 4)), X[0]),
        "x0: expected a tensor of one image",
    ),
    "an array as latents": (lambda: FLOW.decode(Z.numpy()), "z: expected a tensor of latents"),
    "an array as noise": (lambda: tarflow.sample(FLOW, 2, noise=Z.numpy()), "noise: expected a tensor of latents"),
    "an array for a distribution": (lambda: FLOW.distribution().log_prob(X.numpy()), "value: expected a tensor"),
    "an array to evaluate": (
        lambda: evaluate_likelihood(FLOW, PIXELS.numpy(), scoring=Scoring(Measure(4))),
        "images: expected a tensor",
    ),
    "levels that are not whole": (lambda: check_levels(16.5), "levels: expected a whole number, got 16.5"),
    "n that is a float": (lambda: tarflow.sample(FLOW, 2.0), "n: expected a whole number, got 2.0"),
}


@pytest.mark.parametrize("name", BOOLEANS)
def test_no_boolean_is_a_number(name: str) -> None:
    call, message = BOOLEANS[name]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", OTHERS)
def test_what_does_not_work_says_what_is_expected(name: str) -> None:
    call, message = OTHERS[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_numbers_and_labels_of_any_kind_work() -> None:
    right = tarflow.sample(FLOW, 2, torch.tensor([0, 2]), tarflow.Guidance(1.0), denoise=0.5, solver="sequential")
    for y in ([0, 2], (0, 2), np.array([0, 2]), torch.tensor([0, 2], dtype=torch.uint8), [np.int64(0), 2]):
        found = tarflow.sample(
            FLOW,
            np.int64(2),  # type: ignore[arg-type]
            y,  # type: ignore[arg-type]
            tarflow.Guidance(np.float32(1.0)),  # type: ignore[arg-type]
            denoise=torch.tensor(0.5),  # type: ignore[arg-type]
            solver="sequential",
        )
        assert torch.equal(found, right)


def test_pixels_that_nobody_has_scaled_are_noticed() -> None:
    pixels = (255 * torch.rand(2, 1, 4, 4)).round()
    for call in (FLOW.log_prob, lambda x: tarflow.denoise(FLOW, x, 0.1), lambda x: tarflow.reconstruct(FLOW, x)):
        with pytest.warns(UserWarning, match="x: values from .* look like pixels; the model sees -1 … 1"):
            call(pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FLOW.log_prob(pixels / 127.5 - 1)
        FLOW.log_prob(torch.zeros(2, 1, 4, 4))
        FLOW.log_prob(30 * X)  # far away, and not pixels

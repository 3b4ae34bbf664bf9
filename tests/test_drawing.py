"""What commands that draw samples share: labels in turn, pixels at the levels of the data, and their judges."""

from __future__ import annotations

import pytest
import torch

from report_cases import make_run
from tarflow import NULL_CLASS
from tarflow.checkpoint import Run, open_run
from tarflow.drawing import Sampler, labels_in_turn
from tarflow.measure import Measure
from tarflow.sampling.guidance import Guidance
from tarflow.sampling.sample import sample
from tarflow.sampling.setting import Setting


@pytest.fixture(scope="module", params=["gaussian", "uniform"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return open_run(make_run(tmp_path_factory.mktemp("runs") / "run", classes=True, noise=request.param))


def test_labels_go_through_the_classes_in_turn(run: Run) -> None:
    for names, expected in (
        ((), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]),
        (("3", "8", "null"), [3, 8, NULL_CLASS] * 4 + [3]),
        (("7",), [7] * 13),
    ):
        labels = labels_in_turn(run, names, 13)
        assert labels is not None and labels.tolist() == expected


def test_pixels_are_samples_at_the_levels_of_the_data(run: Run) -> None:
    y = labels_in_turn(run, (), 12)
    for setting, seed in ((Setting(), 0), (Setting(Guidance(1.0), run.sigma), 3)):
        found = Sampler(run, "sequential", 5).pixels(12, y, setting, seed)
        x = sample(run.flow, 12, y, setting.guidance, seed, denoise=setting.denoise, solver="sequential")
        assert found.dtype == torch.uint8 and int(found.max()) <= 16
        assert torch.equal(found, Measure(17, run.noise, 1.0).pixels(x))

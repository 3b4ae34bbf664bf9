"""Sample sheets: what is on them, by which weights, from which noise, and whoever draws which part of them."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flow_cases import build
from tarflow import TarFlow, checkpoint
from tarflow.config import RunConfig
from tarflow.evaluation.likelihood import evaluate as likelihood
from tarflow.measure import Measure, to_8bit
from tarflow.pictures import grid
from tarflow.ranks import ALONE, Ranks
from tarflow.sampling.sample import sample
from tarflow.training import monitoring as scoring_module
from tarflow.training import monitoring as sheets_module
from tarflow.training.monitoring import draw_sheet
from tarflow.training.trainer import train
from training_cases import run_config, splits


def pixels_of(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path)))


def case(name: str = "conditional", **training: object) -> tuple[TarFlow, RunConfig]:
    flow, config = build(name, torch.float32), run_config(**training)  # type: ignore[arg-type]
    return flow, dataclasses.replace(config, model=flow.config)


def test_the_sheets_of_a_run_are_those_of_its_averaged_weights(tmp_path: Path) -> None:
    config = run_config(steps=6, lr=3e-2, sample_every=3, log_every=6, evaluate_every=6)
    train(config, splits(), tmp_path / "run")
    last = checkpoint.latest_checkpoint(tmp_path / "run")
    assert last is not None
    averaged, raw = (checkpoint.open_run(last).flow for _ in range(2))
    raw.load_state_dict(checkpoint.load_state(last)["flow"])
    for name, flow in (("averaged", averaged), ("raw", raw)):
        draw_sheet(flow, config, tmp_path / name, ALONE, nullcontext)
    drawn = pixels_of(tmp_path / "run" / "samples" / "step-0000006.png")
    assert torch.equal(drawn, pixels_of(tmp_path / "averaged"))
    assert not torch.equal(drawn, pixels_of(tmp_path / "raw")), "the two must differ for this test to mean anything"


@pytest.mark.parametrize("noise", ["gaussian", "uniform"])
def test_a_sheet_is_what_sample_draws_class_after_class_and_cleaned(noise: str, tmp_path: Path) -> None:
    flow, config = case("bounded_conditional", noise=noise, noise_std=0.3, seed=4)
    assert draw_sheet(flow, config, tmp_path / "sheet.png", ALONE, nullcontext) == str(tmp_path / "sheet.png")
    y = torch.arange(sheets_module.SHEET_IMAGES) % 3
    sigma = 0.3 if noise == "gaussian" else None
    x = sample(flow, len(y), y, seed=4, denoise=sigma, solver="sequential")
    pixels = to_8bit(Measure(17, config.training.noise, 1.0).pixels(x), 17)  # type: ignore[union-attr]
    enlarged = pixels.repeat_interleave(8, dim=-2).repeat_interleave(8, dim=-1)
    assert torch.equal(pixels_of(tmp_path / "sheet.png"), grid(enlarged, 3)[0])  # a column a class


def test_the_shares_of_the_ranks_make_up_the_sheet(tmp_path: Path) -> None:
    flow, config = case()
    whole = sheets_module._draw_share(flow, config, None, slice(0, sheets_module.SHEET_IMAGES))
    parts = [
        sheets_module._draw_share(flow, config, None, Ranks(k, 3).share(sheets_module.SHEET_IMAGES)) for k in range(3)
    ]
    assert torch.equal(torch.cat(parts), whole)  # type: ignore[arg-type]
    assert len(sheets_module._draw_share(flow, config, None, slice(5, 5))) == 0


@pytest.mark.parametrize("seed", [0, 1])
def test_an_evaluation_looks_at_a_choice_by_the_seed_of_the_run(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []

    def noted(flow: TarFlow, images: torch.Tensor, *rest: object, **options: object) -> likelihood.Likelihood:
        seen.append(images)
        return likelihood.evaluate_likelihood(flow, images, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(scoring_module, "evaluate_likelihood", noted)
    train(run_config(steps=2, evaluate_every=1, evaluate_images=4, seed=seed), splits(), tmp_path / "run")
    held_out = splits().held_out
    assert len(seen) == 2 and torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], held_out.choice(4, seed).images)
    assert not torch.equal(seen[0], held_out.choice(4, 1 - seed).images)

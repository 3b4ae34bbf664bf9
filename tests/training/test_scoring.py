"""What the additive variant still lacks when a run ends: its base variance, over all images."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from flow_cases import build, images, labels
from tarflow import checkpoint
from tarflow.data.batches import batch_indices
from tarflow.model.condition import Classes
from tarflow.model.flow import TarFlow
from tarflow.training.monitoring import measure_base_variance, one_pass
from tarflow.training.step import training_batch
from tarflow.training.trainer import train
from training_cases import run_config, splits


def test_the_base_variance_is_measured_over_all_that_is_given() -> None:
    flow = build("additive_conditional")
    batches = [(images(flow, 6, seed=k), labels(flow, 6)) for k in range(4)]
    z = torch.cat([flow(x, y)[0] for x, y in batches])
    for parts in (1, 3):
        flow.base.variance.fill_(9.0)
        measure_base_variance(flow, iter(batches), parts)
        torch.testing.assert_close(flow.base.variance, z.square().mean(dim=0).detach())
    # It is the maximum of the likelihood of what it was measured on.
    x, y = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    best = flow.log_prob(x, y).mean()
    for factor in (0.9, 1.1):
        flow.base.variance.mul_(factor)
        assert flow.log_prob(x, y).mean() < best
        flow.base.variance.div_(factor)


def test_a_finished_run_has_the_variance_of_all_its_images(tmp_path: Path) -> None:
    config = run_config(model={"transform": "additive"}, steps=12, batch_size=10, lr=5e-3, accumulate=2)
    result = train(config, splits(), tmp_path / "run")
    flow = TarFlow.from_pretrained(tmp_path / "run")
    assert config.training is not None and flow.base.follows
    train_set, seen = splits().train, []
    for step in range(3):  # 30 images in batches of 10, in whichever order
        rows = slice(10 * step, 10 * step + 10)
        seen.append(
            training_batch(
                train_set.images[rows],
                None if train_set.labels is None else train_set.labels[rows],
                step,
                config=config.training,
                condition=Classes(10),
                measure=config.measure,
                flip=False,
            )
        )
    with torch.no_grad():
        exact = torch.cat([flow(x, y)[0] for x, y in seen]).square().mean(dim=0)
        followed = TarFlow.from_pretrained(tmp_path / "run" / "checkpoints" / f"step-{result.best_step}").base.variance
    assert followed is not None
    assert (flow.base.variance - exact).abs().mean() < 0.1 * (followed - exact).abs().mean() + 0.1
    # What is written down is the score of what is left, and resuming a finished run changes nothing.
    last = checkpoint.read_metrics(tmp_path / "run")[-1]
    assert last["step"] == 12 and last["settled_noisy_bits_per_dim"] == result.best_score
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    again = train(config, splits(), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before and again.best_score == result.best_score
    assert json.dumps(checkpoint.read_metrics(tmp_path / "run")[-1])


def test_one_pass_is_an_epoch_wherever_it_begins() -> None:
    for count, batch_size, after in ((30, 10, 12), (7, 3, 50), (5, 8, 1), (6, 6, 6)):
        steps = one_pass(count, batch_size, after)
        seen = torch.cat([batch_indices(count, batch_size, step, 0) for step in steps])
        assert steps.start >= after and len(seen) < count + batch_size
        assert sorted(seen[:count].tolist()) == list(range(count))

"""What is measured: weights, noise, and the part of a flow that the others run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tarflow
from benchmark_cases import SMALL, small_flow
from benchmarks import models
from tarflow.interop import to_official

CPU = torch.device("cpu")
CONFIG = tarflow.TarFlowConfig(**SMALL)


def test_fresh_weights_are_those_of_a_new_flow_and_the_same_every_time() -> None:
    state = torch.get_rng_state()
    one, other = (models.open_flow("fresh", CONFIG, CPU) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    assert all(not block.proj_out.weight.any() for block in one.blocks)


def test_hard_weights_need_many_jacobi_iterations_in_every_block() -> None:
    config = tarflow.TarFlowConfig(
        image_size=16, patch_size=2, width=64, layers=(1, 1), num_classes=3, log_scale_bound=None
    )
    flow = models.open_flow("hard", config, CPU)
    noise, y = models.draw_noise(config, 2, CPU), models.labels(config, 2, CPU)
    x = noise
    for block in reversed(flow.blocks):
        z = x = block.order.forward(x)
        counts = 0
        while True:
            counts += 1
            before, (log_scale, shift) = x, block.conditioner(x[:, :-1], block.context(y)).chunk(2, dim=-1)
            x = torch.cat([z[:, :1], z[:, 1:] * log_scale.exp() + shift], dim=1)
            if ((x - before).abs() <= 1e-4 * before.abs().clamp(min=1)).all():
                break
        assert 15 <= counts <= 20
        x = block.order.inverse(x)


def test_sequences_too_short_to_be_hard_are_refused() -> None:
    with pytest.raises(ValueError, match="weights hard: no outputs of block 0"):
        models.open_flow("hard", tarflow.TarFlowConfig(image_size=4, patch_size=2, width=64, layers=(1,)), CPU)


def test_weights_of_a_run_and_of_a_file(tmp_path: Path) -> None:
    flow = small_flow()
    flow.save_pretrained(tmp_path / "run")
    torch.save(to_official(flow), tmp_path / "weights.pt")
    for place in ("run", "weights.pt"):
        opened = models.open_flow(str(tmp_path / place), CONFIG, CPU)
        assert opened.config == flow.config
        for name, tensor in flow.state_dict().items():
            assert torch.equal(tensor, opened.state_dict()[name]), name


def test_a_smaller_batch_gets_the_first_rows_of_a_larger_one() -> None:
    noise = models.draw_noise(CONFIG, 5, CPU)
    assert torch.equal(models.draw_noise(CONFIG, 3, CPU), noise[:3])
    assert not torch.equal(noise[0], noise[1])
    assert abs(noise.std() - 1) < 0.1


def test_the_first_blocks_that_are_decoded() -> None:
    flow = small_flow()
    z, y = torch.randn(2, 16, 12), torch.tensor([0, 2])
    for count in (1, 2):
        part = models.first_decoded(flow, count)
        assert part.config.layers == flow.config.layers[-count:]
        x = z
        for block in list(reversed(flow.blocks))[:count]:
            x = block.decode(x, y)
        assert torch.equal(part.decode(z, y), flow.event.from_tokens(x))
    assert models.first_decoded(flow, 3) is flow

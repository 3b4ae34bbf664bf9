"""What `benchmarks.conditions` compares: two ways to take the same numbers, each of which learns."""

from __future__ import annotations

import torch

from benchmarks.conditions import BATCH, TASKS, build, held_out_score


def test_both_ways_take_the_condition() -> None:
    x, c = TASKS["SLCP"](BATCH, torch.Generator().manual_seed(0))
    for side in ("added", "adaptive norms"):
        torch.manual_seed(0)
        flow = build(5, 8, side)
        assert flow.log_prob(x, c).shape == (BATCH,)
        for block in flow.blocks:
            torch.nn.init.normal_(block.proj_out.weight, std=0.1)
            for layer in block.layers:
                if side == "adaptive norms":
                    torch.nn.init.normal_(layer.modulation.weight, std=0.1)  # type: ignore[operator]
        assert bool((flow.log_prob(x, c) != flow.log_prob(x, c.flip(0))).all())


def test_a_score_is_of_so_much_time() -> None:
    score, steps = held_out_score(TASKS["two moons"], "adaptive norms", 0, 0.2)
    assert steps >= 1 and -50 < score < 5

"""The law of solvers: what is returned solves the equation of every block, by one evaluation without a cache."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from flow_cases import labels, latents, repeated
from tarflow import Guidance, TarFlow
from tarflow.model.block import Block
from tarflow.sampling.cuda.graph import BlockReplay, Captured
from tarflow.sampling.guidance import guided_rows, predictor
from tarflow.sampling.solver import Solver


def residual(block: Block, x: Tensor, z: Tensor, y: Tensor | None, guidance: Guidance | None) -> float:
    """max |F(x) - x| / max(1, |x|) of the rows that are finite, F evaluated in one go and without a cache."""
    if x.shape[1] == 1:
        return float((x - z).abs().max())
    params = block.conditioner(x[:, :-1], block.context(y))
    if guidance is not None:
        warmth = torch.full((len(x),), guidance.temperature, dtype=x.dtype)
        unguided = block.conditioner(x[:, :-1], block.context(None), temperature=warmth)
        lead, tokens = int(block.config.start_token), block.config.tokens
        places = torch.arange(1 - lead, tokens, dtype=x.dtype).unsqueeze(1)
        g = guidance.strength(places, tokens)
        inverted = block.transform.guided_inverse(z[:, 1:], params, unguided, g, guidance.rule)
    else:
        inverted = block.transform.inverse(z[:, 1:], params)
    want = torch.cat([z[:, :1], inverted], dim=1)
    finite = torch.isfinite(x).flatten(1).all(dim=1)
    return float(((want - x).abs() / x.abs().clamp(min=1))[finite].amax()) if finite.any() else 0.0


def assert_solves(
    solver: Solver, flow: TarFlow, guidance: Guidance | None, batch: int, seed: int, tol: float, replayed: bool = False
) -> None:
    """A solver inverts every block of a flow within its tolerance, also with what a GPU replays."""
    y, tokens, slots = labels(flow, batch), latents(flow, batch, seed), flow.sequence.slots
    with torch.no_grad():
        for block in flow.blocks:
            z = block.enter(tokens)
            predict = predictor(block, y, guidance, block.new_cache(guided_rows(guidance, batch)))
            if replayed:  # as on a GPU
                predict = replace(predict, replay=BlockReplay(Captured(repeated), block, y, guidance, batch))
            found = solver.solve(predict, z)
            assert found.iterations <= max(0, slots - 1)
            assert found.residual <= tol
            # A tolerance is that of one evaluation; what a patch depends on has moved by as much since.
            assert residual(block, found.x, z, y, guidance) <= 30 * tol + 1e-9
            assert torch.equal(found.x[:, 0], z[:, 0])

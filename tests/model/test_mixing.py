"""The numbers of a token mixed by a triangular matrix in front of a block."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from flow_cases import SEQUENCE, assert_close
from tarflow import SequenceConfig, SequenceFlow
from tarflow.model.mixing import Mixing


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixing_of(dim: int) -> Mixing:
    """One whose matrix is random, in float64."""
    mixing = Mixing(dim, dtype=torch.float64)
    torch.nn.init.normal_(mixing.lower, std=0.3, generator=torch.Generator().manual_seed(0))
    return mixing


def test_a_new_flow_is_the_one_without() -> None:
    flows = []
    for name in ("affine-mixed", "affine"):
        torch.manual_seed(0)
        config = SequenceConfig(**{**SEQUENCE, "dim": 4, "transforms": (name, name)})
        flows.append(SequenceFlow(config, dtype=torch.float64))
    x = normal(3, 4, 4, seed=1)
    assert torch.equal(flows[0].log_prob(x), flows[1].log_prob(x))


def test_a_conditional_is_a_gaussian_with_full_covariance() -> None:
    """L x ~ N(shift, diag(σ²)), so that x has the mean L⁻¹ shift and the covariance L⁻¹ diag(σ²) L⁻ᵀ."""
    fields = {"dim": 6, "layers": (1,), "tokens": 1, "start_token": True, "transforms": ("affine-mixed",)}
    flow = SequenceFlow(SequenceConfig(**{**SEQUENCE, **fields}), dtype=torch.float64).requires_grad_(False)
    (block,) = flow.blocks
    assert block.mixing is not None
    block.mixing.load_state_dict(mixing_of(6).state_dict())
    torch.nn.init.normal_(block.proj_out.bias, std=0.5, generator=torch.Generator().manual_seed(2))
    v, shift = block.proj_out.bias.chunk(2)
    back = torch.linalg.inv(torch.eye(6, dtype=torch.float64) + block.mixing.lower.tril(-1))
    wanted = MultivariateNormal(back @ shift, back @ torch.diag((2 * v).exp()) @ back.mT)
    x = normal(5, 1, 6, seed=3)
    assert_close(flow.log_prob(x), wanted.log_prob(x[:, 0]))


def test_nothing_above_the_diagonal_is_read() -> None:
    mixing = mixing_of(5).requires_grad_(False)
    x = normal(2, 3, 5, seed=5)
    mixed = mixing(x)
    assert_close(mixing.inverse(mixed), x)
    again = mixing.inverse(mixed)
    mixing.lower += torch.full((5, 5), torch.nan, dtype=torch.float64).triu()
    assert torch.equal(mixing(x), mixed) and torch.equal(mixing.inverse(mixed), again)


def test_autocast_rounds_no_number_of_the_state() -> None:
    mixing, x = mixing_of(5).float(), normal(2, 3, 5, seed=7).float()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = mixing(x)
        back = mixing.inverse(mixed)
    assert torch.equal(mixed, mixing(x)) and torch.equal(back, mixing.inverse(mixed))


def test_gradients_of_both_ways() -> None:
    mixing, x = mixing_of(3), normal(2, 1, 3, seed=9).requires_grad_()
    assert torch.autograd.gradcheck(mixing, (x,)) and torch.autograd.gradcheck(mixing.inverse, (x,))

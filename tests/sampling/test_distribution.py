"""The flow as a `torch.distributions.Distribution`: its values are the flow's, its shapes those of torch."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

import tarflow
from flow_cases import assert_close, build, every_kind, images, labels, names, unchanged
from tarflow import NULL_CLASS, FlowDistribution


@every_kind
def test_log_prob_is_the_flows(name: str) -> None:
    flow = build(name)
    x, y = images(flow, 4), labels(flow, 4)
    p = flow.distribution(y)
    assert p.event_shape == x.shape[1:] and p.batch_shape == (() if y is None else (4,))
    with unchanged(x, y):
        assert_close(p.log_prob(x), flow.log_prob(x, y))
        assert_close(flow.distribution().log_prob(x), flow.log_prob(x))
        assert_close(flow.distribution().log_prob(x[0]), flow.log_prob(x[:1])[0])


@pytest.mark.parametrize("name", names(conditional=True))
def test_values_and_labels_are_broadcast(name: str) -> None:
    flow = build(name)
    classes = flow.config.num_classes
    y, x = torch.arange(-1, classes), images(flow, 5)
    want = torch.stack([flow.log_prob(x, torch.full((5,), int(label))) for label in y], dim=1)  # (5, classes + 1)
    p = flow.distribution(y)
    assert_close(p.log_prob(x.unsqueeze(1)), want)
    assert_close(p.log_prob(x.unsqueeze(1).expand(5, classes + 1, *p.event_shape)), want)
    assert_close(p.log_prob(x[0]), want[0])
    assert_close(flow.distribution(y.view(-1, 1)).log_prob(x), want.T)
    assert_close(flow.distribution(1).log_prob(x), want[:, 2])
    assert flow.distribution(1).batch_shape == () and flow.distribution(y.view(-1, 1)).batch_shape == (classes + 1, 1)
    assert flow.distribution(y).log_prob(x[:0].unsqueeze(1)).shape == (0, classes + 1)


def test_gradients_flow_to_the_image_and_to_the_weights() -> None:
    flow = build("conditional")
    x = images(flow, 2).requires_grad_()
    flow.distribution(torch.tensor([0, 2])).log_prob(x).sum().backward()
    assert x.grad is not None and all(p.grad is not None for p in flow.parameters())
    (want,) = torch.autograd.grad(flow.log_prob(x, torch.tensor([0, 2])).sum(), [x])
    assert_close(x.grad, want)


@every_kind
def test_samples_have_the_shape_and_the_seed_is_torchs(name: str) -> None:
    flow = build(name)
    y = labels(flow, 3)
    p = flow.distribution(y)
    shape = (2, *p.batch_shape, *p.event_shape)
    torch.manual_seed(5)
    first, second = p.sample((2,)), p.sample((2,))
    torch.manual_seed(5)
    assert torch.equal(p.sample((2,)), first) and not torch.equal(first, second)
    assert first.shape == shape and first.dtype == torch.float64 and not first.requires_grad
    assert p.sample().shape == shape[1:] and p.sample((0,)).shape == (0, *shape[1:])
    assert (
        p.sample(torch.Size([2, 3])).shape == (2, 3, *shape[1:]) == p.log_prob(p.sample((2, 3))).shape + p.event_shape
    )


@pytest.mark.parametrize("name", ["bounded_conditional", "additive_conditional"])
def test_each_label_gets_samples_of_its_own_class(name: str) -> None:
    """E over samples of q(x)/p(x) is 1 where x is drawn from p, label by label; another order of labels would show."""
    flow = build(name)
    y = torch.tensor([2, 0, NULL_CLASS])
    p = flow.distribution(y)
    x = p.sample((1500,))
    assert x.dtype == flow.dtype
    with torch.no_grad():
        shifted = x + 0.1 * images(flow, 1)
        ratio = (p.log_prob(shifted) - p.log_prob(x)).exp()  # (1500, 3)
        assert ((ratio.mean(0) - 1).abs() < 4 * ratio.std(0) / math.sqrt(1500)).all()
        other = (flow.distribution(y.roll(1)).log_prob(x) - p.log_prob(x)).mean(0)
    assert (other < 0).all(), "Monte Carlo KL(p_y || p_other) is positive"


def test_moments_are_those_of_sample() -> None:
    flow = build("bounded_conditional")
    got = flow.distribution(2).sample((3000,))
    want = tarflow.sample(flow, 3000, torch.full((3000,), 2), seed=11)
    error = ((got.var(0) + want.var(0)) / 3000).sqrt()
    assert ((got.mean(0) - want.mean(0)).abs() < 4 * error).all()
    assert ((got.var(0) / want.var(0)).log().abs() < 0.4).all()


def test_a_mixture_over_the_classes_is_the_marginal() -> None:
    flow = build("conditional")
    x = images(flow, 6)
    marginal = MixtureSameFamily(Categorical(torch.ones(3, dtype=torch.float64)), flow.distribution(torch.arange(3)))
    each = torch.stack([flow.log_prob(x, torch.full((6,), label)) for label in range(3)])
    assert_close(marginal.log_prob(x), each.logsumexp(0) - math.log(3))
    assert marginal.sample((4,)).shape == x[:4].shape and marginal.event_shape == x.shape[1:]


def test_independent_sums_over_the_labels() -> None:
    flow = build("conditional")
    y = torch.tensor([0, 2])
    p = Independent(flow.distribution(y), 1)
    x = p.sample((5,))
    assert p.batch_shape == () and p.event_shape == (2, 1, 4, 4) and x.shape == (5, *p.event_shape)
    assert_close(p.log_prob(x), sum(flow.log_prob(x[:, i], y[i].expand(5)) for i in range(2)))
    p.log_prob(x).sum().backward()


@every_kind
def test_expand_repeats_the_labels(name: str) -> None:
    flow = build(name)
    y = labels(flow, 3)
    p = flow.distribution(y)
    wide = p.expand(torch.Size([2, 3]))
    assert type(wide) is FlowDistribution and wide.batch_shape == (2, 3) and wide.event_shape == p.event_shape
    x = images(flow, 3)
    assert_close(wide.log_prob(x), p.log_prob(x).expand(2, 3))
    assert wide.sample((2,)).shape == (2, 2, 3, *p.event_shape)
    assert p.batch_shape == (() if y is None else (3,)), "expand changed the original"


def test_what_it_says_of_itself() -> None:
    p = build("conditional").distribution(torch.tensor([0, 1]))
    assert p.has_rsample and p.support.event_dim == 3 and p.arg_constraints == {}
    assert repr(p) == "FlowDistribution(batch_shape: (2,), event_shape: (1, 4, 4))"
    for unknown in (lambda: p.mean, lambda: p.variance, p.entropy):
        with pytest.raises(NotImplementedError):
            unknown()
    again = pickle.loads(pickle.dumps(p))
    assert_close(again.log_prob(torch.zeros(1, 4, 4)), p.log_prob(torch.zeros(1, 4, 4)))
    with pytest.raises(NotImplementedError):  # none is registered; Monte Carlo is the caller's
        torch.distributions.kl_divergence(p, Normal(0.0, 1.0))


def test_labels_are_copied_by_nobody_and_written_by_nobody() -> None:
    flow = build("conditional")
    y = torch.tensor([0, 1])
    with unchanged(y):
        flow.distribution(y).sample((2,))
        flow.distribution(y.to(torch.int32)).sample()


@pytest.mark.parametrize(
    ("y", "message"), [(torch.tensor([0, 3]), "got 3"), (-2, "got -2"), (torch.zeros(2), "float32"), (True, "bool")]
)
def test_labels_that_are_no_classes_are_refused(y: torch.Tensor | int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^y: expected .*{message}"):
        build("conditional").distribution(y)


def test_values_that_do_not_fit_are_refused() -> None:
    p = FlowDistribution(build("four_channels"), torch.tensor([0, 1, 0]), validate_args=True)
    with pytest.raises(ValueError, match="value: leading shape .2,. does not broadcast with .3,."):
        FlowDistribution(p.flow, torch.tensor([0, 1, 0]), validate_args=False).log_prob(torch.zeros(2, 4, 2, 3))
    with pytest.raises(ValueError, match=r"^value: expected images \(..., 4, 2, 3\), got \(3, 1, 2, 3\)"):
        p.log_prob(torch.zeros(3, 1, 2, 3))  # torch's own check would broadcast the one channel
    with pytest.raises(ValueError, match="broadcast"):
        p.log_prob(torch.zeros(2, 4, 2, 3))
    with pytest.raises(ValueError, match="within the support"):
        p.log_prob(torch.full((3, 4, 2, 3), math.nan))
    with pytest.raises(ValueError, match="floating-point"):
        p.log_prob(torch.zeros(3, 4, 2, 3, dtype=torch.int64))
    trusting = FlowDistribution(build("four_channels"), validate_args=False)
    assert trusting.log_prob(torch.full((3, 4, 2, 3), math.nan)).isnan().all()
    assert not trusting.expand((2,))._validate_args and p.expand((2, 3))._validate_args


# --- what is estimated from draws -----------------------------------------------------------------------------------


def test_entropy_and_divergence_are_within_their_errors() -> None:
    """Of a flow without weights in its outputs, which is a normal distribution, and of a normal q."""
    flow = build("vector", condition="none", transform="affine", start_token=False, standardise=False)
    with torch.no_grad():
        for block in flow.blocks:
            block.proj_out.weight.zero_()
            block.proj_out.bias.zero_()
    p = flow.distribution()
    torch.manual_seed(0)
    entropy = p.entropy(500)
    want = 4 * 0.5 * (1 + math.log(2 * math.pi))
    assert entropy.mean.shape == () and 0 < float(entropy.error) < 0.1
    assert abs(float(entropy.mean) - want) < 4 * float(entropy.error)
    q = Independent(Normal(torch.full((4,), 0.5, dtype=torch.float64), 2.0), 1)
    divergence = p.kl(q, 500)
    want = 4 * (math.log(2) + (1 + 0.25) / 8 - 0.5)
    assert abs(float(divergence.mean) - want) < 4 * float(divergence.error)


def test_estimates_have_the_shape_of_the_labels() -> None:
    flow = build("bounded_conditional")
    p = flow.distribution(torch.tensor([0, 2]))
    assert p.entropy(4).mean.shape == p.entropy(4).error.shape == (2,)
    torch.manual_seed(3)
    divergence = p.kl(flow.distribution(1), 400)
    assert divergence.mean.shape == (2,) and (divergence.mean > 3 * divergence.error).all()
    torch.manual_seed(3)
    same = p.kl(p, 10)
    assert_close(same.mean, torch.zeros(2, dtype=torch.float64))
    assert not same.mean.requires_grad


def test_what_has_no_formula_is_not_given_as_a_number() -> None:
    p = build("unconditional").distribution()
    with pytest.raises(NotImplementedError, match=r"p.entropy\(n\)"):
        p.entropy()
    with pytest.raises(NotImplementedError):
        torch.distributions.kl_divergence(p, p)
    with pytest.raises(ValueError, match="n: expected at least 2"):
        p.entropy(1)


def test_a_draw_comes_with_its_density() -> None:
    flow = build("conditional")
    p = flow.distribution(torch.tensor([0, 2]))
    x, log_p = p.sample_and_log_prob((3,))
    assert x.shape == (3, 2, 1, 4, 4)
    assert_close(log_p, p.log_prob(x).detach(), 1e-9)


def test_values_are_validated_where_it_is_asked_for() -> None:
    flow = build("bounded_vector")
    x = torch.full((1, 4), 9.0, dtype=torch.float64)
    assert flow.distribution(validate_args=False).log_prob(x) == -torch.inf
    with pytest.raises(ValueError, match="within the support"):
        flow.distribution(validate_args=True).log_prob(x)

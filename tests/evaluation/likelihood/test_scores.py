"""Label policies: what each computes, which is the default, and which are refused."""

import math

import pytest
import torch

import flow_cases
from tarflow import NULL_CLASS
from tarflow.evaluation.likelihood import scores
from tarflow.evaluation.likelihood.scores import class_scores, default_batch_size, log_likelihood
from tarflow.evaluation.likelihood.scoring import Scoring
from tarflow.measure import Measure

CONDITIONAL = flow_cases.build("conditional")
UNCONDITIONAL = flow_cases.build("unconditional")
X = flow_cases.images(CONDITIONAL, 5)
Y = torch.tensor([0, 1, 2, 2, 0])
CONDITIONAL_PIXELS = (CONDITIONAL.config.channels, *CONDITIONAL.config.image_shape)


def test_policies_are_what_their_names_say():
    with torch.no_grad():
        by_class = torch.stack([CONDITIONAL.log_prob(X, torch.full((5,), k)) for k in range(3)])
        given = CONDITIONAL.log_prob(X, Y)
        null = CONDITIONAL.log_prob(X, torch.full((5,), NULL_CLASS))
    flow_cases.assert_close(log_likelihood(CONDITIONAL, X, Y, labels="given"), given)
    flow_cases.assert_close(log_likelihood(CONDITIONAL, X, Y, labels="null"), null)
    marginal = torch.logsumexp(by_class, dim=0) - math.log(3)
    flow_cases.assert_close(log_likelihood(CONDITIONAL, X, Y, labels="marginal"), marginal)
    assert not torch.allclose(given, null)
    assert not torch.allclose(marginal, null)
    assert not torch.allclose(by_class[0], by_class[1])


def test_marginal_of_densities_that_underflow_is_finite():
    score = log_likelihood(flow_cases.build("bounded_conditional"), X * 100, labels="marginal")
    assert torch.isfinite(score).all()
    assert (score < -750).all(), "exp of it would be 0"


def test_the_unconditional_model_has_one_policy():
    with torch.no_grad():
        expected = UNCONDITIONAL.log_prob(X)
    flow_cases.assert_close(log_likelihood(UNCONDITIONAL, X), expected)
    flow_cases.assert_close(log_likelihood(UNCONDITIONAL, X, Y, labels="none"), expected)


def test_default_policy():
    scoring = Scoring(Measure())
    assert scoring.resolved(UNCONDITIONAL, Y).labels == "none"
    assert scoring.resolved(CONDITIONAL, Y).labels == "given"
    assert scoring.resolved(CONDITIONAL, None).labels == "marginal"
    assert scoring.resolved(CONDITIONAL, torch.tensor([0, NULL_CLASS])).labels == "marginal"
    assert torch.equal(log_likelihood(CONDITIONAL, X), log_likelihood(CONDITIONAL, X, labels="marginal"))
    assert torch.equal(log_likelihood(CONDITIONAL, X, Y), log_likelihood(CONDITIONAL, X, Y, labels="given"))


@pytest.mark.parametrize("policy", ["given", "null", "marginal"])
def test_any_batch_size(policy):
    whole = log_likelihood(CONDITIONAL, X, Y, labels=policy)
    assert not whole.requires_grad
    for batch_size in (1, 2, 99):
        flow_cases.assert_close(log_likelihood(CONDITIONAL, X, Y, labels=policy, batch_size=batch_size), whole)
    assert log_likelihood(CONDITIONAL, X[:0], Y[:0], labels=policy).shape == (0,)


def test_scores_are_float32_at_least_and_autocast_does_not_lower_them():
    flow = flow_cases.build("conditional", torch.float32)
    x = X.float()
    outside = log_likelihood(flow, x, Y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = log_likelihood(flow, x, Y)
    assert torch.equal(inside, outside)
    assert log_likelihood(flow_cases.build("conditional", torch.bfloat16), x, Y).dtype == torch.float32


def test_batches_have_as_many_patches_for_every_size():
    assert default_batch_size(CONDITIONAL) * CONDITIONAL.config.num_patches == 1 << 14


@pytest.mark.parametrize(
    ("flow", "y", "policy", "message"),
    [
        (CONDITIONAL, None, "given", "expected labels, got none"),
        (CONDITIONAL, torch.tensor([0, 1, -1, 2, 0]), "given", "image 2 has no label"),
        (CONDITIONAL, torch.tensor([0, 1, 3, 2, 0]), "given", "y: expected 0 to 2"),
        (CONDITIONAL, Y[:4], "given", r"y: expected \(5,\) integer labels"),
        (CONDITIONAL, Y, "none", "expected 'given' or 'null' or 'marginal' for a conditional model, got 'none'"),
        (CONDITIONAL, Y, "mean", "for a conditional model, got 'mean'"),
        (UNCONDITIONAL, Y, "marginal", "expected 'none' for an unconditional model, got 'marginal'"),
    ],
)
def test_a_policy_that_cannot_be_honoured_is_refused(flow, y, policy, message):
    with pytest.raises(ValueError, match=message):
        log_likelihood(flow, X, y, labels=policy)


def test_a_batch_size_of_none_at_all_is_refused():
    with pytest.raises(ValueError, match="batch_size: expected a positive number, got 0"):
        log_likelihood(CONDITIONAL, X, Y, batch_size=0)


def counted(monkeypatch, flow):
    """The sizes of the passes through a flow from now on."""
    sizes, real = [], flow.log_prob_by_token
    monkeypatch.setattr(flow, "log_prob_by_token", lambda x, y=None: sizes.append(len(x)) or real(x, y))
    return sizes


def test_few_images_under_many_classes_are_full_passes(monkeypatch):
    """2 images under 3 classes: one pass of 6 pairs, not 3 of 2; and never more than were asked for."""
    sizes = counted(monkeypatch, CONDITIONAL)
    whole = log_likelihood(CONDITIONAL, X[:2], labels="marginal")
    assert sizes == [6]
    sizes.clear()
    flow_cases.assert_close(log_likelihood(CONDITIONAL, X[:2], labels="marginal", batch_size=4), whole)
    assert sizes == [4, 2]
    monkeypatch.setattr(scores, "CPU_TOKENS", 2 * CONDITIONAL.config.num_patches)
    flow_cases.assert_close(log_likelihood(CONDITIONAL, X[:2], labels="marginal"), whole)
    assert sizes[2:] == [2, 2, 2]


def test_progress_under_every_class_counts_the_passes():
    told = []
    pixels = torch.zeros(3, *CONDITIONAL_PIXELS, dtype=torch.uint8)
    scoring = Scoring(Measure(), draws=2, labels="marginal")
    class_scores(CONDITIONAL, pixels, scoring=scoring, batch_size=2, progress=lambda *done: told.append(done))
    assert told[0] == (2, 18) and told[-1] == (18, 18) and told == sorted(told)


PIXELS = torch.randint(0, 256, (5, *CONDITIONAL_PIXELS), generator=torch.Generator().manual_seed(3)).to(torch.uint8)


@pytest.mark.parametrize(("labels", "passes"), [("given", 3), ("marginal", 3), ("null", 4), (1, 3)])
def test_one_pass_holds_every_policy(labels, passes, monkeypatch):
    """What the policy needs and each class are scored once, and all that follows is what it is alone."""
    sizes = counted(monkeypatch, CONDITIONAL)
    scoring = Scoring(Measure(), draws=2, seed=7, labels=labels)
    found = class_scores(CONDITIONAL, PIXELS, Y, scoring=scoring, all_classes=True, maps=True)
    assert sum(sizes) == 5 * 2 * passes
    alone = class_scores(CONDITIONAL, PIXELS, Y, scoring=scoring)
    flow_cases.assert_close(found.scores, alone.scores)
    flow_cases.assert_close(found.maps.sum(dim=(1, 2)), found.mean)
    marginal = class_scores(CONDITIONAL, PIXELS, scoring=Scoring(Measure(), 2, 7))
    flow_cases.assert_close(found.under("marginal", CONDITIONAL).scores, marginal.scores)
    assert (alone.under("marginal", CONDITIONAL) is None) == (labels != "marginal")
    by_class = torch.stack(
        [class_scores(CONDITIONAL, PIXELS, scoring=Scoring(Measure(), 2, 7, k)).scores for k in range(3)], dim=2
    )
    flow_cases.assert_close(found.conditions.log_posterior(found.log_prob), by_class.log_softmax(dim=2))


def test_one_class_of_all_images_is_given():
    scoring = Scoring(Measure(), labels=2)
    found = class_scores(CONDITIONAL, PIXELS, scoring=scoring)
    given = class_scores(CONDITIONAL, PIXELS, torch.full((5,), 2), scoring=Scoring(Measure()))
    assert torch.equal(found.scores, given.scores)
    assert (scoring.policy, Scoring(Measure(), labels=NULL_CLASS).labels) == ("given", "null")
    with pytest.raises(ValueError, match="y: expected 0 to 2, .* got 3"):
        class_scores(CONDITIONAL, PIXELS, scoring=Scoring(Measure(), labels=3))

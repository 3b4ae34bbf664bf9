"""Guidance: against a slow decoder written from the formulas, and what it must refuse."""

from __future__ import annotations

import itertools

import pytest
import torch

import slow_flow
import tarflow
from flow_cases import assert_close, build, labels, latents, names, transform_of, unchanged
from tarflow import NULL_CLASS, Guidance, TarFlow
from tarflow.model.events import patchify
from tarflow.sampling.guidance import guided_rows, predictor

BATCH = 4
RULES = ["paper", "stable"]
SCHEDULES = ["linear", "constant"]
CONDITIONAL = names(sequences=True, given=True, long=True)
SEEING = names(sequences=True, long=True)


def standard(flow: TarFlow, z: torch.Tensor) -> torch.Tensor:
    """The noise from which latents z come: `sample` multiplies by the root of the base variance."""
    return z if not flow.base.follows else z / flow.base.variance.sqrt()


def guided(flow: TarFlow, y: torch.Tensor | None, guidance: Guidance | None) -> torch.Tensor:
    noise = latents(flow, BATCH)
    with unchanged(noise, y):
        return tarflow.sample(flow, BATCH, y, guidance, noise=noise)


@pytest.mark.parametrize(  # every value beside every value of the other fields
    ("temperature", "schedule", "rule"),
    [(1.0, "linear", "paper"), (1.0, "constant", "stable"), (0.25, "linear", "stable"), (0.25, "constant", "paper")],
)
@pytest.mark.parametrize("name", CONDITIONAL)
def test_guided_samples_of_a_conditional_model_are_the_formula(
    name: str, temperature: float, schedule: str, rule: str
) -> None:
    """Rows of every class and of the null class in one batch; the bound, where there is one, comes after guidance."""
    flow, options = build(name), {"scale": 1.5, "schedule": schedule, "temperature": temperature, "rule": rule}
    z, y = latents(flow, BATCH), labels(flow, BATCH)
    got = tarflow.sample(flow, BATCH, y, Guidance(**options), noise=standard(flow, z))
    assert_close(flow.event.to_tokens(got)[0], slow_flow.decode(flow, z, y, **options))


@pytest.mark.parametrize(
    ("name", "schedule", "rule"),
    # Two of the four for each flow: flows that follow one another in the table take turns.
    [
        (name, schedule, rule)
        for turn, name in enumerate(SEEING)
        for schedule, rule in zip(SCHEDULES, RULES[:: 1 if turn % 2 else -1], strict=True)
    ],
)
def test_guided_samples_without_classes_are_the_formula(name: str, schedule: str, rule: str) -> None:
    """Guidance by temperature alone: unconditional models, and conditional ones that are given no label."""
    flow, options = build(name), {"scale": 0.8, "schedule": schedule, "temperature": 0.25, "rule": rule}
    z = latents(flow, 2)
    got = tarflow.sample(flow, 2, None, Guidance(**options), noise=standard(flow, z))
    assert_close(flow.event.to_tokens(got)[0], slow_flow.decode(flow, z, None, **options))


def test_the_temperature_is_not_rounded_on_its_way() -> None:
    """0.3 is no float32: rounded to one, it would move a float64 sample by some 1e-8."""
    flow, options = build("unconditional"), {"scale": 0.8, "schedule": "linear", "temperature": 0.3, "rule": "paper"}
    z = latents(flow, BATCH)
    got = tarflow.sample(flow, BATCH, None, Guidance(**options), noise=z)
    assert_close(patchify(got, 2), slow_flow.decode(flow, z, None, **options), 1e-11)


@pytest.mark.parametrize("name", SEEING)
def test_guidance_of_scale_zero_is_no_guidance(name: str) -> None:
    flow = build(name)
    y = labels(flow, BATCH)
    for rule in RULES:
        for temperature in (1.0, 0.3):
            none = Guidance(scale=0, rule=rule, temperature=temperature)
            assert torch.equal(guided(flow, y, none), guided(flow, y, None))
            assert torch.equal(guided(flow, None, none), guided(flow, None, None))


@pytest.mark.parametrize("name", SEEING)
def test_every_field_changes_the_samples(name: str) -> None:
    flow = build(name)
    y = labels(flow, BATCH)
    base = {"scale": 1.0, "schedule": "linear", "temperature": 0.5, "rule": "paper"}
    outputs = [guided(flow, y, None), guided(flow, y, Guidance(**base))]
    for change in ({"scale": 2.0}, {"temperature": 0.25}, {"temperature": 2.0}):
        outputs.append(guided(flow, y, Guidance(**{**base, **change})))
    constant, stable = (
        guided(flow, y, Guidance(**{**base, **c})) for c in ({"schedule": "constant"}, {"rule": "stable"})
    )
    if flow.sequence.tokens == 3 and not flow.conditions:
        assert_close(constant, outputs[1])  # patch 1 has a single key, without a branch; patch 2 is the end of the line
    else:
        outputs.append(constant)
    if all(transform.startswith("additive") for transform in flow.sequence.transforms):
        assert_close(stable, outputs[1])  # equal scales: s = 1, and the two rules are one
    else:
        outputs.append(stable)
    for i, one in enumerate(outputs):
        for other in outputs[:i]:
            assert (one - other).abs().flatten(1).amax(dim=1).min() > 1e-5, "a row is what it was under other guidance"


def test_rows_of_the_null_class_are_unguided_beside_guided_ones() -> None:
    flow, guidance = build("conditional"), Guidance(scale=2.0)
    y = torch.tensor([0, NULL_CLASS, 2, NULL_CLASS])
    mixed, plain = guided(flow, y, guidance), guided(flow, y, None)
    assert_close(mixed[[1, 3]], plain[[1, 3]])
    assert (mixed[[0, 2]] - plain[[0, 2]]).abs().flatten(1).amax(dim=1).min() > 1e-3


def test_the_linear_schedule_ends_at_the_scale() -> None:
    places = torch.arange(1.0, 5.0)
    assert torch.equal(torch.as_tensor(Guidance(scale=2.0).strength(places, 5)), torch.tensor([0.5, 1.0, 1.5, 2.0]))
    constant = Guidance(scale=2.0, schedule="constant").strength(places, 5)
    assert torch.equal(torch.as_tensor(constant).expand(4), torch.full((4,), 2.0))


def test_the_stable_rule_never_widens_beyond_the_guided_branch() -> None:
    """Where σ_u ≤ σ_c nothing is rescaled; where σ_u is wide, σ shrinks to σ_c/√(1+w) and μ stays at μ_c."""
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    conditional = torch.cat([0.5 * one, 2 * one], dim=-1)
    unguided = torch.cat([-4 * one, one], dim=-1)
    log_scale, shift = transform_of("affine").combine(conditional, unguided, 3.0, "stable").chunk(2, dim=-1)
    assert_close(shift, 5 * one)
    assert_close(log_scale, 0.5 * one)
    unguided = torch.cat([400 * one, one], dim=-1)
    log_scale, shift = transform_of("affine").combine(conditional, unguided, 3.0, "stable").chunk(2, dim=-1)
    assert_close(shift, 2 * one)
    assert_close(log_scale.exp(), (0.5 * one).exp() / 2)


@pytest.mark.parametrize("options", [{}, {"rule": "stable"}, {"schedule": "constant"}, {"temperature": 0.5}])
def test_a_guided_prediction_is_the_same_in_any_windows(options: dict[str, object]) -> None:
    """The strength follows the place in the sequence, not the place in the window."""
    flow = build("non_square")
    block, y, x = flow.blocks[1], labels(flow, BATCH), latents(flow, BATCH)[:, :-1]
    guidance = Guidance(scale=1.5, **options)  # type: ignore[arg-type]
    outputs = []
    for edges in ([0, 5], [0, 1, 2, 3, 4, 5], [0, 2, 5]):
        predict = predictor(block, y, guidance, block.new_cache(guided_rows(guidance, BATCH)))
        outputs.append(torch.cat([predict(x[:, a:b], a) for a, b in itertools.pairwise(edges)], dim=1))
    for other in outputs[1:]:
        assert_close(other, outputs[0])


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "y", "temperature"),
    [
        ("unconditional", None, 1.0),
        ("additive", None, 1.0),
        ("unconditional", [NULL_CLASS] * BATCH, 1.0),
        ("conditional", None, 1.0),
        ("conditional", [NULL_CLASS] * BATCH, 1.0),
        ("one_class", [0] * BATCH, 1.0),  # the mean of one class is that class
        ("two_tokens", None, 0.5),  # a single key has all the attention, at any temperature
    ],
)
def test_guidance_whose_branches_coincide_is_an_error(name: str, y: list[int] | None, temperature: float) -> None:
    flow = build(name)
    labels_ = None if y is None else torch.tensor(y)
    with pytest.raises(ValueError, match="guid"):
        tarflow.sample(flow, BATCH, labels_, Guidance(scale=1.0, temperature=temperature))
    with pytest.raises(ValueError, match="guid"):
        tarflow.sample_batches(flow, BATCH, labels_, Guidance(scale=1.0, temperature=temperature))  # before any batch


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scale", -0.1),
        ("scale", float("nan")),
        ("scale", float("inf")),
        ("temperature", 0.0),
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("schedule", "cosine"),
        ("rule", "best"),
    ],
)
def test_a_field_out_of_range_is_an_error_that_names_it(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"guidance {field}: expected .*, got"):
        Guidance(**{field: value})  # type: ignore[arg-type]


def test_an_unknown_field_is_refused_and_guidance_is_frozen() -> None:
    with pytest.raises(TypeError, match="sacle"):
        Guidance(sacle=1.0)  # type: ignore[call-arg]
    with pytest.raises(AttributeError):
        Guidance().scale = 1.0  # type: ignore[misc]

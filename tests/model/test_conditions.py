"""What is conditioned on: values that are checked, null, dropped and standardised, of every kind."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import tarflow
from flow_cases import assert_close, images, latents, randomise
from tarflow import ConfigError, SequenceConfig, SequenceFlow
from tarflow.architecture import condition_parts
from tarflow.evaluation.likelihood.scores import log_likelihood
from tarflow.model.condition import make_condition

CPU = torch.device("cpu")
NULL = math.nan
NUMBERS = torch.tensor([[1.0, 20.0], [3.0, 20.0], [NULL, NULL], [5.0, 20.0]])


def made(condition: str, **changes: Any) -> SequenceFlow:
    fields = dict(tokens=3, dim=2, width=16, head_dim=8, layers=(1, 1), log_scale_bound=0.6, condition=condition)
    return randomise(SequenceFlow(SequenceConfig(**{**fields, **changes})).double())


@pytest.mark.parametrize(
    "condition",
    ["", "class:3", "classes", "classes:0", "classes:-1", "classes:1:2", "vector:1.5", "none+vector:2", "vector:2+"],
)
def test_a_condition_that_is_none_is_refused(condition: str) -> None:
    with pytest.raises(ConfigError, match="condition: expected none, classes:NUMBER, vector:N"):
        condition_parts(condition)


def test_numbers_are_standardised_by_what_was_fitted_and_constants_are_not_divided() -> None:
    condition = make_condition("vector:2")
    condition.fit(NUMBERS)
    assert condition.mean.tolist() == [3, 20] and condition.deviation.tolist() == pytest.approx([(8 / 3) ** 0.5, 1])
    standardised = condition.standardised(NUMBERS)
    assert_close(standardised[[0, 1, 3]].mean(dim=0), torch.zeros(2), 1e-6)
    assert standardised[2].isnan().all()


def test_the_fitted_numbers_are_saved_and_a_scaled_condition_is_the_same(tmp_path: Path) -> None:
    flow, y = made("vector:2"), NUMBERS.double()
    x, wanted = images(flow, 4), flow.log_prob(images(flow, 4), y)
    scale, offset = torch.tensor([10.0, -2.0]).double(), torch.tensor([7.0, 3.0]).double()
    flow.conditions.mean.mul_(scale).add_(offset)
    flow.conditions.deviation.mul_(scale)
    assert_close(flow.log_prob(x, y * scale + offset), wanted)
    flow.save_pretrained(tmp_path)
    loaded = SequenceFlow.from_pretrained(tmp_path)
    assert torch.equal(loaded.log_prob(x, y), flow.log_prob(x, y))
    assert {"conditions.mean", "conditions.deviation"} <= set(loaded.state_dict())


def test_a_row_of_nan_is_null_and_so_is_a_dropped_one() -> None:
    flow, y = made("vector:2"), NUMBERS.double()
    x = images(flow, 4)
    density, null = flow.log_prob(x, y), flow.log_prob(x)
    assert density[2] == null[2] and bool((density[[0, 1, 3]] != null[[0, 1, 3]]).all())
    dropped = torch.tensor([True, False, False, False])
    assert flow.log_prob(x, flow.conditions.drop(y, dropped))[0] == null[0]
    assert flow.conditions.differs(y) and not flow.conditions.differs(y[2:3]) and not flow.conditions.differs(None)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(4), r"y: expected numbers \(4, 2\), got \(4,\)"),
        (torch.zeros(1, 2), r"got \(1, 2\) of torch.float32; one value for all rows is c.expand\(4, 2\)"),
        (torch.zeros(3, 2), r"y: expected numbers \(4, 2\), got \(3, 2\)"),
        (torch.zeros(4, 2, dtype=torch.bool), "of torch.bool"),
        (torch.tensor([[0, 0], [0, NULL], [0, 0], [0, 0]]), "NaN in all of a row for null; row 1 has others"),
        (torch.tensor([[0, 0], [0, 0], [0, 0], [math.inf, 0]]), "row 3 has others"),
        ("four", r"y: expected \(2,\) numbers a row, got str"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(value: Any, message: str) -> None:
    flow = made("vector:2")
    with pytest.raises(ValueError, match=message):
        flow.log_prob(images(flow, 4), value)


def test_numbers_may_come_in_lists_and_as_integers() -> None:
    flow = made("vector:2")
    x, y = images(flow, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert torch.equal(flow.log_prob(x, [[1, 2], [3, 4]]), flow.log_prob(x, y))
    assert torch.equal(flow.log_prob(x, y.numpy()), flow.log_prob(x, y.long()))


def test_several_conditions_are_a_tuple_of_which_each_may_be_missing() -> None:
    flow = made("classes:3+vector:2")
    labels, numbers = torch.tensor([0, 1, -1, -1]), NUMBERS.double()
    x = images(flow, 4)
    both, null = flow.log_prob(x, (labels, numbers)), flow.log_prob(x)
    assert both[2] == null[2] and len({*both.tolist(), *null.tolist()}) == 7
    assert torch.equal(flow.log_prob(x, (None, None)), null)
    assert torch.equal(flow.log_prob(x, (None, numbers)), flow.log_prob(x, (torch.full((4,), -1), numbers)))
    with pytest.raises(ValueError, match="y: expected a tuple of 2, one for each condition, or None, got Tensor"):
        flow.log_prob(x, labels)
    with pytest.raises(ValueError, match=r"y: expected \(4,\) integer labels"):
        flow.log_prob(x, (labels[:3], numbers))


def test_rows_of_several_conditions_are_those_of_each() -> None:
    conditions = make_condition("classes:3+vector:2")
    value = conditions.check((torch.tensor([0, 1, -1, 2]), NUMBERS), 4, CPU)
    assert conditions.count(value) == 4 and conditions.count((None, None)) is None
    some = conditions.rows(value, torch.tensor([3, 0]))
    assert some[0].tolist() == [2, 0] and some[1].tolist() == [[5, 20], [1, 20]]
    assert conditions.repeat(value, 2)[0].tolist() == [0, 0, 1, 1, -1, -1, 2, 2]
    assert [part[0].tolist() for part in conditions.chunk(value, 2)] == [[0, 1], [-1, 2]]
    assert conditions.missing(value).tolist() == [False, False, True, False]
    rows, shape = conditions.flatten((torch.tensor([[0], [1]]), torch.zeros(3, 2)))
    assert shape == (2, 3) and rows[0].tolist() == [0, 0, 0, 1, 1, 1] and rows[1].shape == (6, 2)


def test_each_of_several_conditions_is_dropped_alone_and_all_together() -> None:
    conditions = make_condition("classes:3+vector:2")
    value = (torch.tensor([0, 1, 2, 0]), torch.ones(4, 2))
    dropped = torch.tensor([[True, False, False], [False, True, False], [False, False, True], [False, False, False]])
    labels, numbers = conditions.drop(value, dropped)
    assert labels.tolist() == [-1, 1, -1, 0]
    assert numbers.isnan().all(dim=1).tolist() == [False, True, True, False]
    assert conditions.drop(value, torch.tensor([True] * 4))[0].tolist() == [-1] * 4


@pytest.mark.parametrize("condition", ["vector:2", "classes:3+vector:2"])
def test_they_are_sampled_guided_denoised_edited_and_given_densities(condition: str) -> None:
    flow = made(condition)
    y: Any = NUMBERS.double() if condition == "vector:2" else (torch.tensor([0, 1, -1, 2]), NUMBERS.double())
    flow.conditions.fit(y)
    z = latents(flow, 4)
    for solver in ("sequential", "jacobi", "auto"):
        assert_close(tarflow.sample(flow, 4, y, noise=z, solver=solver), flow.decode(z, y), 1e-3)
    guided = tarflow.sample(flow, 4, y, tarflow.Guidance(1.0), noise=z)
    assert bool((guided[[0, 1, 3]] != flow.decode(z, y)[[0, 1, 3]]).any())
    with pytest.raises(ValueError, match="both branches are the same"):
        tarflow.sample(flow, 4, None, tarflow.Guidance(1.0))
    x = images(flow, 4)
    several = tarflow.denoise(flow, x, 0.3, y, batch_size=3)
    assert_close(several, tarflow.denoise(flow, x, 0.3, y))
    assert_close(tarflow.reconstruct(flow, x, y)[0], x, 1e-8)
    first, last = (flow.conditions.rows(y, torch.tensor(i)) for i in (0, 3))
    walk = tarflow.interpolate(flow, x[0], x[3], 3, first, last)
    assert_close(walk[[0, 2]], x[[0, 3]], 1e-8)
    p = flow.distribution(y)
    assert p.batch_shape == (4,) and p.event_shape == (3, 2) and p.support.event_dim == 2
    assert_close(p.log_prob(x), flow.log_prob(x, y))
    assert p.expand((2, 4)).sample((3,)).shape == (3, 2, 4, 3, 2)
    one = flow.distribution(first)
    assert one.batch_shape == () and torch.equal(
        one.log_prob(x[0]), flow.log_prob(x[:1], flow.conditions.rows(y, slice(1)))[0]
    )


def test_an_image_is_read_in_patches_and_standardised_by_its_channels() -> None:
    condition = make_condition("image:2:4:6:2")
    images = torch.randn(50, 2, 4, 6, generator=torch.Generator().manual_seed(0)) * 3 + torch.tensor([5.0, -1.0]).view(
        2, 1, 1
    )
    condition.fit(images)
    assert condition.mean.shape == (2, 1, 1)
    assert_close(condition.mean.flatten(), images.mean(dim=(0, 2, 3)), 1e-5)
    patches = condition.standardised(images)
    assert patches.shape == (50, 6, 8) and condition.places == 6
    assert_close(
        patches[:, 4, 4:6], (images[:, 1, 2, 2:4] - condition.mean[1, 0, 0]) / condition.deviation[1, 0, 0], 1e-5
    )
    with pytest.raises(ConfigError, match="condition: expected a patch size that divides 4x6, got 'image:2:4:6:4'"):
        condition_parts("image:2:4:6:4")


def test_what_is_far_off_in_a_prefix_is_seen_by_the_first_token_and_both_ways() -> None:
    """The last token of a prefix changes what the first token of the sequence becomes, and its own first one."""
    flow = made("tokens:3:2", start_token=True)
    x, c = images(flow, 1), torch.zeros(1, 3, 2, dtype=torch.float64)
    other = c.clone()
    other[0, 2, 1] = 1.0
    first, second = (flow.blocks[0].context(value).prefix for value in (c, other))
    z, moved = (flow.blocks[0].encode(x, value)[0][0, 0] for value in (c, other))
    assert bool((z != moved).all())
    assert torch.equal(first[0, :, :, :, :2], second[0, :, :, :, :2])  # of the first layer, which sees each alone
    deep = made("tokens:3:2", layers=(2, 1))
    first, second = (deep.blocks[0].context(value).prefix for value in (c, other))
    assert bool((first[1, :, :, :, 0] != second[1, :, :, :, 0]).any())


def test_an_image_model_is_conditioned_by_its_config() -> None:
    shape = dict(image_size=4, channels=1, patch_size=2, width=64, layers=(1, 1))
    assert tarflow.TarFlowConfig(**shape, condition="classes:3").num_classes == 3
    assert tarflow.TarFlow(tarflow.TarFlowConfig(**shape, num_classes=3)).sequence.condition == "classes:3"
    assert tarflow.TarFlow(tarflow.TarFlowConfig(**shape)).sequence.condition == "none"
    with pytest.raises(ConfigError, match="num_classes: expected 0, as condition vector:2 says, got 3"):
        tarflow.TarFlowConfig(**shape, condition="vector:2", num_classes=3)


def test_scores_are_under_values_or_null_where_they_cannot_be_counted() -> None:
    config = tarflow.TarFlowConfig(
        4, channels=1, patch_size=2, width=16, head_dim=8, layers=(1, 1), condition="vector:2"
    )
    flow = randomise(tarflow.TarFlow(config))
    x, y = images(flow, 4, dtype=torch.float32), NUMBERS
    assert_close(log_likelihood(flow, x, y.nan_to_num(1.0)), flow.log_prob(x, y.nan_to_num(1.0)), 1e-4)
    assert_close(log_likelihood(flow, x, y), flow.log_prob(x), 1e-4)  # a row is null, so that all are scored alike
    with pytest.raises(
        ValueError, match="expected 'given' or 'null' for a conditional .of vector:2, not classes alone"
    ):
        log_likelihood(flow, x, y, labels="marginal")
    with pytest.raises(ValueError, match="label policy 'given': image 2 has no label"):
        log_likelihood(flow, x, y, labels="given")


# --- a value of each token -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("aligned:4:2", "condition: expected aligned values of all 3 tokens, got 'aligned:4:2'"),
        ("vector:2+aligned-image:1:2:2:1", "condition: expected aligned-image in 3 patches, one for each token, got"),
        ("aligned-image:1:3:4:2", "condition: expected a patch size that divides 3x4"),
    ],
)
def test_what_is_aligned_has_a_value_for_each_token(condition: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(condition)


def test_an_aligned_image_lies_in_the_patches_of_the_image() -> None:
    config: dict[str, Any] = dict(channels=1, patch_size=2, width=16, head_dim=8, layers=(1,))
    with pytest.raises(ConfigError, match=r"condition: expected aligned-image in 2x4 patches, as the images are, got"):
        tarflow.TarFlowConfig((4, 8), condition="aligned-image:1:8:4:2", **config)
    tarflow.TarFlowConfig((4, 8), condition="aligned-image:3:2:4:1", **config)  # of half the size, and in colour


def test_a_token_is_given_its_own_value_and_those_before_it() -> None:
    flow = made("aligned:3:2", start_token=True, orders=((2, 0, 1), "raster"))
    x, c = latents(flow, 1), torch.randn(1, 3, 2).double()
    for block, order in zip(flow.blocks, [(2, 0, 1), (0, 1, 2)], strict=True):
        params = block.conditioner(block.enter(x)[:, :-1], block.context(c))
        for place, token in enumerate(order):
            other = c.clone()
            other[0, token] += 1
            changed = block.conditioner(block.enter(x)[:, :-1], block.context(other)) - params
            assert [bool(each.any()) for each in changed[0]] == [later >= place for later in range(3)]


def test_the_values_of_padding_change_nothing() -> None:
    flow = made("aligned:3:2", start_token=True)
    x, c = images(flow, 2), torch.randn(2, 3, 2).double()
    mask = torch.tensor([[True, False, True], [False, True, True]])
    density = flow.log_prob(x, c, mask=mask)
    assert torch.equal(flow.log_prob(x, torch.where(mask.unsqueeze(2), c, 7.0), mask=mask), density)
    assert not torch.equal(flow.log_prob(x, c + 1, mask=mask), density)

"""Patch maps add up to log p under every policy, name the right places, and are drawn on the documented scale."""

import math

import pytest
import torch
from torch import Tensor

import flow_cases
from tarflow.evaluation.likelihood.patch_maps import heat_map, patch_log_prob
from tarflow.evaluation.likelihood.scores import class_scores, log_likelihood, patch_log_likelihood
from tarflow.evaluation.likelihood.scoring import Scoring
from tarflow.measure import Measure
from tarflow.model.events import patchify

CONDITIONAL = flow_cases.build("conditional")
UNCONDITIONAL = flow_cases.build("unconditional")


@flow_cases.every_case
def test_the_sum_over_patches_is_log_prob(name: str) -> None:
    flow = flow_cases.build(name)
    x, y = flow_cases.images(flow, 6), flow_cases.labels(flow, 6)
    maps = patch_log_prob(flow, x, y)
    height, width = flow.config.image_shape
    side = flow.config.patch_size
    assert maps.shape == (6, height // side, width // side)
    flow_cases.assert_close(maps.sum(dim=(1, 2)), flow.log_prob(x, y))
    flow_cases.assert_close(flow(x, y)[1].sum(dim=1), flow.encode(x, y)[1])


@flow_cases.every_case
def test_each_patch_has_the_determinant_of_its_own_part_of_the_jacobian(name: str) -> None:
    """A block is triangular, so -Σ_d log_scale_id is log|det ∂z_i/∂x_i|, here by autograd, block by block."""
    flow = flow_cases.build(name)
    x, y = flow_cases.images(flow, 1), flow_cases.labels(flow, 1)
    h = patchify(x, flow.config.patch_size)
    expected = torch.zeros(flow.config.num_patches, dtype=torch.float64)
    for block in flow.blocks:

        def own_part(patch: Tensor, i: int, h: Tensor = h, block: torch.nn.Module = block) -> Tensor:
            return block.encode(torch.cat([h[:, :i], patch[None, None], h[:, i + 1 :]], dim=1), y)[0][0, i]

        for i in range(flow.config.num_patches):
            jacobian = torch.autograd.functional.jacobian(lambda patch, i=i: own_part(patch, i), h[0, i])
            expected[i] += torch.linalg.slogdet(jacobian).logabsdet
        h = block.encode(h, y)[0].detach()
    variance = torch.ones_like(h[0]) if not flow.base.follows else flow.base.variance
    base = torch.distributions.Normal(torch.zeros_like(variance), variance.sqrt()).log_prob(h[0]).sum(dim=1)
    flow_cases.assert_close(patch_log_prob(flow, x, y).detach().flatten(), base + expected)


def test_rows_and_columns_are_those_of_the_image() -> None:
    """One block: patch (1, 2) of a 2x3 grid changes its own contribution and no earlier one."""
    flow = flow_cases.build("non_square", layers=(1,))
    x = flow_cases.images(flow, 1)
    changed = x.clone()
    changed[..., 2:4, 4:6] += 0.5
    difference = (patch_log_prob(flow, changed) - patch_log_prob(flow, x))[0].abs() > 1e-9
    assert difference.tolist() == [[False, False, False], [False, False, True]]


@pytest.mark.parametrize("policy", ["given", "null", "marginal"])
@pytest.mark.parametrize("name", flow_cases.names(labelled=True))
def test_the_sum_is_the_score_under_every_policy(name: str, policy: str) -> None:
    flow = flow_cases.build(name)
    x, y = flow_cases.images(flow, 5), torch.arange(5) % flow.config.num_classes
    maps = patch_log_likelihood(flow, x, y, labels=policy)
    assert not maps.requires_grad
    flow_cases.assert_close(maps.sum(dim=(1, 2)), log_likelihood(flow, x, y, labels=policy))


def test_the_marginal_map_weighs_the_classes_by_their_posterior() -> None:
    x = flow_cases.images(CONDITIONAL, 4)
    with torch.no_grad():
        maps = torch.stack([patch_log_prob(CONDITIONAL, x, torch.full((4,), k)) for k in range(3)])
        posterior = torch.stack([CONDITIONAL.log_prob(x, torch.full((4,), k)) for k in range(3)]).softmax(dim=0)
    mean = torch.einsum("kb,kbij->bij", posterior, maps)
    rest = mean - patch_log_likelihood(CONDITIONAL, x, labels="marginal")
    divergence = (posterior * (posterior * 3).log()).sum(dim=0)
    flow_cases.assert_close(rest, (divergence / 4)[:, None, None].expand(4, 2, 2))
    assert (divergence > 0).all() and (divergence < math.log(3)).all()


def test_a_class_that_is_certain_leaves_a_finite_marginal() -> None:
    flow = flow_cases.build("bounded_conditional")
    x = flow_cases.images(flow, 3) * 100
    maps = patch_log_likelihood(flow, x, labels="marginal")
    assert torch.isfinite(maps).all()
    flow_cases.assert_close(maps.sum(dim=(1, 2)), log_likelihood(flow, x, labels="marginal"))


def test_a_policy_that_cannot_be_honoured_is_refused() -> None:
    x = flow_cases.images(UNCONDITIONAL, 2)
    with pytest.raises(ValueError, match="expected 'none' for an unconditional model"):
        patch_log_likelihood(UNCONDITIONAL, x, labels="marginal")
    with pytest.raises(ValueError, match="expected labels, got none"):
        patch_log_likelihood(CONDITIONAL, x, labels="given")
    with pytest.raises(ValueError, match=r"x: expected images \(B, 1, 4, 4\)"):
        patch_log_prob(CONDITIONAL, x[..., :2])


def test_maps_of_pixels_add_up_to_their_scores() -> None:
    flow = flow_cases.build("conditional")
    images = torch.randint(0, 17, (5, 1, 4, 4), dtype=torch.uint8)
    scoring = Scoring(Measure(17, "gaussian", 0.3), draws=3, seed=5)
    options = {"scoring": scoring, "indices": [3, 1, 4, 8, 9]}
    found = class_scores(flow, images, **options, maps=True, batch_size=2)
    assert found.maps is not None
    torch.testing.assert_close(found.maps.sum(dim=(1, 2)), found.mean, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(found.scores, class_scores(flow, images, **options).scores)


def test_the_map_of_a_noiseless_image_is_no_draw_of_another() -> None:
    """The noise is used at all, and is that of the seed."""
    images = torch.full((1, 1, 4, 4), 3, dtype=torch.uint8)
    one, other = (
        class_scores(UNCONDITIONAL, images, scoring=Scoring(Measure(17), draws=1, seed=seed), maps=True).maps
        for seed in (1, 2)
    )
    assert one is not None and other is not None and not torch.allclose(one, other)
    clean = patch_log_prob(UNCONDITIONAL, Measure(17, "gaussian", 1.0).clean(images))
    noisy = Measure(17, "gaussian", 1e-6).noisy(images, torch.Generator())
    torch.testing.assert_close(patch_log_prob(UNCONDITIONAL, noisy), clean, atol=1e-3, rtol=1e-3)


def test_the_scale_is_the_documented_one() -> None:
    image = torch.full((1, 2, 6), 100, dtype=torch.uint8)
    patches = torch.tensor([[-8.0, -2.0, 1.0]])  # mean -3, largest distance 5
    drawn = heat_map(patches, image, opacity=1.0)
    assert drawn.shape == (3, 2, 6) and drawn.dtype == torch.uint8
    assert drawn[:, 0, 0].tolist() == [178, 24, 43]
    assert (drawn[:, :, :2] == drawn[:, :1, :1]).all() and (drawn[:, :, 4:] == drawn[:, :1, 5:]).all()
    fixed = heat_map(patches, image, centre=-2.0, span=3.0, opacity=1.0)
    assert fixed[:, 0, 0].tolist() == [178, 24, 43], "clipped"
    assert fixed[:, 0, 2].tolist() == [247, 247, 247], "the centre is white"
    assert fixed[:, 0, 4].tolist() == [33, 102, 172]
    half = heat_map(patches, image, centre=-2.0, span=6.0, opacity=1.0)
    assert half[:, 0, 4].tolist() == [103, 169, 207], "half way up is the anchor there"


def test_the_image_shows_through() -> None:
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    image[:, 1, 1] = torch.tensor([200, 100, 50], dtype=torch.uint8)
    patches = torch.tensor([[0.0, 1.0], [2.0, 5.0]])
    bare = heat_map(patches, image, opacity=0.0)
    assert bare[:, 1, 1].tolist() == [124] * 3, "its luma"
    assert bare.sum() == 3 * 124
    assert not torch.equal(heat_map(patches, image)[:, 0, 0], heat_map(patches, image)[:, 1, 1])


def test_a_flat_map_is_white_and_what_is_no_number_is_red() -> None:
    image = torch.zeros(1, 2, 2, dtype=torch.uint8)
    assert (heat_map(torch.full((2, 2), -7.0), image, opacity=1.0) == 247).all()
    broken = heat_map(torch.tensor([[math.nan, 0.0], [1.0, -math.inf]]), image, opacity=1.0)
    assert broken[:, 0, 0].tolist() == broken[:, 1, 1].tolist() == [178, 24, 43]


@pytest.mark.parametrize(
    ("patches", "image", "options", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(1, 4, 4, dtype=torch.uint8), {}, r"divide \(4, 4\), got \(3, 2\)"),
        (torch.zeros(2), torch.zeros(1, 4, 4, dtype=torch.uint8), {}, r"expected \(rows, columns\)"),
        (torch.zeros(2, 2), torch.zeros(1, 4, 4), {}, "uint8 with C 1 or 3"),
        (torch.zeros(2, 2), torch.zeros(2, 4, 4, dtype=torch.uint8), {}, "uint8 with C 1 or 3"),
        (torch.zeros(2, 2), torch.zeros(1, 4, 4, dtype=torch.uint8), {"span": 0.0}, "span: expected a positive"),
        (torch.zeros(2, 2), torch.zeros(1, 4, 4, dtype=torch.uint8), {"opacity": 1.5}, "opacity: expected 0 to 1"),
        (torch.full((2, 2), math.nan), torch.zeros(1, 4, 4, dtype=torch.uint8), {}, "expected finite numbers"),
    ],
)
def test_what_cannot_be_drawn_is_refused(patches: Tensor, image: Tensor, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        heat_map(patches, image, **options)


def test_without_a_scale_the_patch_farthest_from_the_mean_has_the_last_colour() -> None:
    """And no other: the map of an image whose patches differ little but for one must not be red and blue all over."""
    patches, image = torch.tensor([[0.0, 0.0, 0.0, 4.0]]), torch.zeros(1, 1, 4, dtype=torch.uint8)  # the mean is 1
    found = heat_map(patches, image, opacity=1.0)
    assert found[:, 0, 3].tolist() == [33, 102, 172]
    assert torch.equal(found, heat_map(patches, image, centre=1.0, span=3.0, opacity=1.0))
    assert found[:, 0, 0].tolist() == found[:, 0, 2].tolist() != [178, 24, 43]
    red = heat_map(-patches, image, opacity=1.0)
    assert red[:, 0, 3].tolist() == [178, 24, 43]
    steady = heat_map(torch.ones(1, 4), image, opacity=1.0)
    assert (steady == 247).all(), "where all are the same, all are white"

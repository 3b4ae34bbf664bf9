"""Patches: cut and put together again, in the documented order."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tarflow.model.events import patchify, unpatchify

SHAPES = [(1, 4, 4, 2), (3, 4, 6, 2), (4, 6, 3, 3), (1, 5, 5, 5), (2, 3, 4, 1), (3, 8, 4, 4)]
every_shape = pytest.mark.parametrize(("channels", "height", "width", "patch_size"), SHAPES)


@every_shape
def test_unpatchify_inverts_patchify(channels: int, height: int, width: int, patch_size: int) -> None:
    x = torch.arange(2.0 * channels * height * width).view(2, channels, height, width)
    patches = patchify(x, patch_size)
    assert patches.shape == (2, height * width // patch_size**2, channels * patch_size**2)
    assert torch.equal(unpatchify(patches, patch_size, (height, width)), x)
    assert torch.equal(patchify(unpatchify(patches, patch_size, (height, width)), patch_size), patches)


@every_shape
def test_order_is_raster_and_within_a_patch_channel_row_column(
    channels: int, height: int, width: int, patch_size: int
) -> None:
    x = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))
    unfolded = F.unfold(x, patch_size, stride=patch_size).transpose(1, 2)  # (B, T, D)
    assert torch.equal(patchify(x, patch_size), unfolded)
    columns = width // patch_size
    for i in (0, columns - 1, unfolded.shape[1] - 1):
        row, column = divmod(i, columns)
        patch = x[:, :, row * patch_size : (row + 1) * patch_size, column * patch_size : (column + 1) * patch_size]
        assert torch.equal(patchify(x, patch_size)[:, i], patch.flatten(1))


def test_patches_of_a_view_that_is_not_contiguous() -> None:
    x = torch.randn(2, 4, 4, 3, generator=torch.Generator().manual_seed(0)).permute(0, 3, 1, 2)
    assert torch.equal(patchify(x, 2), patchify(x.contiguous(), 2))


def test_both_are_linear_and_carry_gradients() -> None:
    x = torch.randn(1, 2, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: unpatchify(patchify(x, 2) * 3, 2, (4, 2)), x)

"""The work of decoding, against counts by hand and by PyTorch's own counter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import tarflow
from benchmark_cases import small_flow
from benchmarks.floor import arithmetic_floor, decoding_work, loop_floor, reference_flops
from tarflow.planning.work import block_parameters

VARIANTS: dict[str, dict[str, Any]] = {
    "affine": {},
    "additive": {"transform": "additive", "image_size": 4},
    "two heads, thin MLP": {"width": 128, "expansion": 1, "layers": (2,), "image_size": (4, 6)},
    "two patches": {"image_size": (2, 4)},
}
every_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)


def counted(run: Any) -> int:
    # The fused attention of the CPU is unknown to the counter; written as products it is not.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def test_a_model_counted_by_hand() -> None:
    # T = 3 patches of D = 1, W = 2, one head, one layer, MLP of 2·2.
    config = tarflow.TarFlowConfig(
        (1, 3), channels=1, patch_size=1, width=2, head_dim=2, expansion=2, layers=(1,), num_classes=0
    )
    # Two tokens, each: in 2·1·2 = 4, qkv 2·2·6 = 24, out 2·2·2 = 8, MLP 2·(2·4 + 4·2) = 32, to scale and shift 8.
    # Attention, per key 2·2 for q·k and 2·2 for the sum: 1 key, then 2.
    work = decoding_work(config, 5, guided=False, itemsize=4)
    assert work.flops == 5 * (2 * (4 + 24 + 8 + 32 + 8) + (1 + 2) * 8)
    # Weights with biases: in 2+2, norm 4, qkv 12+6, out 4+2, norm 4, MLP 8+4 and 8+2, out 4+2.
    assert block_parameters(config, 0) == 4 + 4 + 18 + 6 + 4 + 12 + 10 + 6
    assert work.weight_bytes == 2 * 64 * 4  # in each of two steps, whatever the batch
    assert work.weight_set == 64 * 4
    assert work.cache_bytes == 5 * (1 + 2) * 2 * 2 * 4  # keys and values of 1, then of 2 patches
    assert work.cache_set == 5 * 2 * 2 * 2 * 4
    guided = decoding_work(config, 5, guided=True, itemsize=2)
    assert guided.flops == 2 * work.flops
    assert guided.cache_bytes == work.cache_bytes  # twice the rows, half the bytes of a number
    assert guided.weight_bytes == work.weight_bytes // 2


@every_variant
def test_the_cached_loop_multiplies_as_often_as_pytorch_counts(changes: dict[str, Any]) -> None:
    flow = small_flow(**changes)
    rows = 6  # three images, guided

    def decode() -> None:
        x = torch.randn(rows, flow.config.num_patches, flow.config.patch_dim)
        for block in flow.blocks:
            context, cache = block.context(None), block.new_cache(rows)
            for i in range(flow.config.num_patches - 1):
                block.conditioner(x[:, i : i + 1], context, i, cache)

    assert counted(decode) == decoding_work(flow.config, 3, guided=True, itemsize=4).flops


@every_variant
def test_the_reference_multiplies_as_often_as_pytorch_counts(changes: dict[str, Any]) -> None:
    flow = small_flow(**changes)
    z = torch.randn(2, flow.config.num_patches, flow.config.patch_dim)
    assert counted(lambda: flow.decode(z)) == reference_flops(flow.config, 2)


@every_variant
def test_the_weights_of_a_block_are_all_but_its_positions_and_classes(changes: dict[str, Any]) -> None:
    flow = small_flow(**changes)
    for index, block in enumerate(flow.blocks):
        named = dict(block.named_parameters())
        rows = named.pop("position").numel() + named.pop("embedding.classes").numel()
        assert block_parameters(flow.config, index) == sum(p.numel() for p in named.values())
        assert rows


def test_floors_are_work_over_rates() -> None:
    work = decoding_work(small_flow().config, 2, guided=False, itemsize=4)
    assert arithmetic_floor(work, 100.0) == work.flops / 100
    expected = work.flops / 100 + work.weight_bytes / 10 + work.cache_bytes / 5
    assert loop_floor(work, 100.0, 10.0, 5.0) == pytest.approx(expected)

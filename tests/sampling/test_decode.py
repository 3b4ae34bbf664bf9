"""How many images are decoded at once: as many as have room for the cache that they really need."""

from __future__ import annotations

import pytest
import torch

from flow_cases import build
from tarflow import Guidance
from tarflow.sampling import decode
from tarflow.sampling.decode import default_batch_size
from tarflow.sampling.guidance import guided_rows

GUIDANCES = [None, Guidance(0.0), Guidance(1.0), Guidance(1.0, temperature=0.5)]


@pytest.mark.parametrize("guidance", GUIDANCES, ids=str)
@pytest.mark.parametrize("name", ["conditional", "unequal_depths", "non_square"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_default_batch_fills_the_room_and_no_more(
    guidance: Guidance | None, name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow, room = build(name, dtype), 100_000
    monkeypatch.setattr(decode, "CACHE_BYTES", room)
    count = default_batch_size(flow, guidance)

    def needed(images: int) -> int:
        """Of the last place of a sequence nothing is kept, for which there is room all the same."""
        length = flow.config.num_patches
        stores = [block.new_cache(guided_rows(guidance, images)).store for block in flow.blocks]
        return max(store.nbytes // store.shape[4] * length for store in stores)

    assert count > 1
    assert needed(count) <= room < needed(count + 1)


def test_guidance_halves_the_batch_where_it_guides() -> None:
    flow = build("conditional", torch.float32)
    plain = default_batch_size(flow, None)
    assert [default_batch_size(flow, guidance) for guidance in GUIDANCES] == [plain, plain, plain // 2, plain // 2]


def test_there_is_always_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "CACHE_BYTES", 1)
    assert default_batch_size(build("conditional"), Guidance(1.0)) == 1

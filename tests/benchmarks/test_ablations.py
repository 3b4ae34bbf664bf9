"""The ablations: networks under the laws of a flow, rows that are trained, a table that does its sums."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmark_cases import STAND_INS
from benchmarks import ablation_table, ablations, bench
from benchmarks.ablations import OFFICIAL
from benchmarks.bench import SETUPS, Bench
from benchmarks.networks import (
    DEQUANTISER,
    ORDERS,
    Dequantised,
    Network,
    Parts,
    Patches,
    RepackedBlock,
    patch_order,
)
from benchmarks.variants import BASELINE, VARIANTS, together
from flow_cases import BASE, randomise
from tarflow import TarFlow, TarFlowConfig

PARTS = [*(v.parts for v in VARIANTS.values() if v.parts), frozenset({"rotary alone", "qk norm"})]
every_part = pytest.mark.parametrize("parts", PARTS, ids=lambda parts: "+".join(sorted(parts)))


def network(parts: Parts, **fields: Any) -> TarFlow:
    """Random weights, four blocks, so that every order is there, and patches of a size and a place of their own."""
    config = TarFlowConfig(**{**BASE, "layers": (1,) * 4, "num_classes": 2, "start_token": True, **fields})
    torch.manual_seed(0)
    return randomise(Network.build(config, parts, levels=4)).double()


def images(count: int) -> torch.Tensor:
    return 2 * torch.rand(count, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 1


@every_part
def test_ladj_is_that_of_the_jacobian(parts: Parts) -> None:
    flow, x, y = network(parts), images(1), torch.tensor([1])
    jacobian = torch.autograd.functional.jacobian(lambda x: flow(x, y)[0].flatten(), x).reshape(16, 16)
    torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, flow(x, y)[1][0].sum())


@every_part
def test_decoding_is_the_inverse(parts: Parts) -> None:
    flow, x, y = network(parts), images(3), torch.tensor([1, 0, -1])
    torch.testing.assert_close(flow.decode(flow.encode(x, y)[0], y), x)


@every_part
def test_a_block_is_causal_in_its_own_order(parts: Parts) -> None:
    for block in network(parts).blocks:
        own = block.config
        x, places = torch.randn(1, own.tokens, own.dim, dtype=torch.float64), list(block.order.permutation)

        def encode(x: torch.Tensor, block: Any = block) -> torch.Tensor:
            return super(RepackedBlock, block).encode(x)[0] if isinstance(block, RepackedBlock) else block.encode(x)[0]

        jacobian = torch.autograd.functional.jacobian(encode, x)
        reach = jacobian[0, :, :, 0].abs().amax(dim=(1, 3))[places][:, places]  # (T, T), own order
        assert torch.equal(reach > 0, torch.ones(own.tokens, own.tokens, dtype=torch.bool).tril())


@every_part
def test_every_part_changes_the_density(parts: Parts) -> None:
    flow, plain = network(parts), network(frozenset())
    shapes = {name: weight.shape for name, weight in plain.state_dict().items()}
    known = {name: weight for name, weight in flow.state_dict().items() if shapes.get(name) == weight.shape}
    plain.load_state_dict(known, strict=False)
    assert not torch.allclose(flow.log_prob(images(2)), plain.log_prob(images(2)))


def test_patches_have_the_sizes_and_places_that_their_names_say() -> None:
    config = TarFlowConfig(28, channels=1, patch_size=4, width=64, layers=(1,) * 8)

    def seen(part: str) -> list[tuple[int, int]]:
        return [(place.size, place.shift) for place in (Patches.of(config, i, frozenset({part})) for i in range(8))]

    assert seen("smaller patches first") == [(2, 0)] + [(4, 0)] * 7
    assert seen("smaller patches last") == [(4, 0)] * 7 + [(2, 0)]
    assert seen("larger patches last") == [(4, 0)] * 7 + [(7, 0)]
    assert seen("larger patches in turn") == [(4, 0), (4, 0), (7, 0), (7, 0)] * 2
    assert seen("shifted patches in turn") == [(4, 0), (4, 0), (4, 2), (4, 2)] * 2


def test_a_dequantiser_moves_the_noise_within_its_level_and_is_uniform_at_first() -> None:
    flow, x = network(frozenset({DEQUANTISER})), images(5)
    tokens, _ = flow.event.to_tokens(x)
    moved = flow.event.join(tokens)
    assert torch.equal(((x + 1) * 2).floor(), ((moved + 1) * 2).floor()) and not torch.allclose(x, moved, atol=1e-3)
    fresh = Dequantised((1, 4, 4), flow.sequence, 2, levels=4).double()
    tokens, ladj = fresh.to_tokens(x)
    torch.testing.assert_close(fresh.join(tokens), x)
    torch.testing.assert_close(ladj, torch.zeros(5, 4, dtype=torch.float64))


def test_without_parts_it_is_a_tarflow() -> None:
    assert type(network(frozenset()).blocks[0]).__name__ == "Block"


@pytest.mark.parametrize("order", ORDERS)
def test_orders_are_their_own_inverse(order: str) -> None:
    places = patch_order((3, 3), order)
    assert [places[place] for place in places] == list(range(9))


def test_two_parts_of_a_name_are_both_there() -> None:
    both = together(["muon 2e-3", "bounded scale 4", "rotary", "qk norm"])
    assert both.training == {"optimizer": "muon", "muon_lr": 2e-3} and both.model["log_scale_bound"] == 4.0
    assert together(["muon 2e-3"]) is VARIANTS["muon 2e-3"]
    assert both.model["rotary"] and both.parts == {"qk norm"}


@pytest.fixture(scope="module")
def tiny() -> Iterator[Bench]:
    setup = dataclasses.replace(SETUPS["digits"], model=SETUPS["digits"].model | {"layers": (1,) * 4}, batch=4, steps=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SETUPS, "digits", setup)
        for name, value in {"TIMED": 1, "FINAL_IMAGES": 8, "CURVE_IMAGES": 8}.items():
            patch.setattr(bench, name, value)
        yield Bench("digits", None, None, torch.device("cpu"))


@pytest.fixture(scope="module")
def tiny_baseline(tiny: Bench) -> float:
    return tiny.score(tiny.train(VARIANTS[BASELINE], 8, seed=0).flow, 8)["bits_per_dim"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in VARIANTS if name != BASELINE])
def test_every_variant_trains_and_differs_from_the_baseline(name: str, tiny: Bench, tiny_baseline: float) -> None:
    model, training = tiny.configs(VARIANTS[name], 8, 0)
    found = tiny.score(tiny.train(VARIANTS[name], 8, seed=0).flow, 8)["bits_per_dim"]
    assert abs(found) < 1e4 and found != tiny_baseline
    assert (model, training) != tiny.configs(VARIANTS[BASELINE], 8, 0) or VARIANTS[name].parts


def test_rows_are_kept_and_not_done_again(tiny: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.json"
    command = ["--set", "digits", "--official", str(STAND_INS), "--out", str(out), "--seeds", "0", "1"]
    assert ablations.main([*command, "--variants", BASELINE]) == 0
    assert ablations.main([*command, "--variants", BASELINE, "muon 2e-3+clip 1@0.5", OFFICIAL]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["variant"], row["seed"]) for row in rows] == [
        *((BASELINE, 0), (BASELINE, 1)),
        *(("muon 2e-3+clip 1@0.5", 0), (OFFICIAL, 0), ("muon 2e-3+clip 1@0.5", 1), (OFFICIAL, 1)),
    ]
    assert len(capsys.readouterr().out.splitlines()) == 6
    assert all(len(row["curve"]) >= 1 and row["curve"][-1]["step"] == row["steps"] for row in rows)
    assert str(tmp_path) not in out.read_text() and str(STAND_INS) not in out.read_text()
    assert ablations.main([*command, "--variants", "moon"]) == 2
    assert "moon" in capsys.readouterr().err
    assert ablation_table.main([str(out)]) == 0
    assert "| together | muon 2e-3+clip 1@0.5 |" in capsys.readouterr().out


def test_a_budget_is_a_factor_of_the_steps_with_columns_of_its_own(
    tiny: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.json"
    command = ["--set", "digits", "--out", str(out), "--seeds", "0", "1", "--variants", BASELINE, "lr 2e-3"]
    assert ablations.main([*command, "--budgets", "1", "2"]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["variant"], row["budget"], row["seed"], row["steps"]) for row in rows] == [
        (name, budget, seed, 8 * budget) for budget in (1, 2) for seed in (0, 1) for name in (BASELINE, "lr 2e-3")
    ]
    assert all(row["curve"][-1]["seconds"] == row["seconds"] > 0 for row in rows)
    capsys.readouterr()
    assert ablation_table.main([str(out)]) == 0
    table = capsys.readouterr().out
    assert "digits x1: cost" in table and "digits x2: cost" in table and "16 steps of 4" in table


def test_the_table_says_what_is_beyond_the_spread() -> None:
    baseline = (3.0, 3.1, 9.0)  # the last one blew up
    rows = [{"variant": BASELINE, "seed": s, "bits_per_dim": b, "cost": 1.0} for s, b in enumerate(baseline)]
    for name, values in {
        "a": (2.8, 2.9, 3.0),
        "b": (3.05, 3.0, 9.1),
        "c": (3.5, 3.6, 9.4),
        "d": (None, None, 3.0),
    }.items():
        rows += [{"variant": name, "seed": s, "bits_per_dim": b, "cost": 1.5} for s, b in enumerate(values)]
    rows.append({"variant": "e", "seed": 0, "bits_per_dim": 2.9, "cost": 1.0})
    found = ablation_table.differences(rows)
    assert {name: d.verdict for name, d in found.items()} == {
        "a": "helps",
        "b": "no difference",
        "c": "harms",
        "d": "harms",
        "e": "no difference",  # one seed: its spread is that of the baseline's seeds
    }
    assert found["a"].median == pytest.approx(-0.2) and found["b"].spread == pytest.approx(1.4826 * 0.05)
    assert found["e"].spread == pytest.approx(1.4826 * 0.1 * 2**0.5)
    assert str(found["d"]) == "blew up (3)"
    assert str(found["c"]).startswith("+0.500 ± 0.000 (3)")

"""`flow.fit`: the best weights of held-out rows, the same ones every time, and one line for rows that do not fit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from flow_cases import build
from tarflow import ConfigError, SequenceConfig, SequenceFlow
from tarflow.training.fit import FitError, fit
from tarflow.training.rows import Rows, split_rows

FIELDS: dict[str, Any] = dict(tokens=3, dim=1, width=16, head_dim=8, layers=(1, 1), start_token=True)
QUICK: dict[str, Any] = dict(steps=40, lr=5e-3, batch_size=64)


def make(seed: int = 0, **fields: Any) -> SequenceFlow:
    torch.manual_seed(seed)
    return SequenceFlow(SequenceConfig(**{**FIELDS, **fields}))


def rows(count: int = 400, seed: int = 0) -> Tensor:
    """Correlated normal numbers (N, 3, 1), whose entropy is known."""
    noise = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return (noise @ torch.tensor([[1.0, 0.8, 0.0], [0.0, 0.5, 0.4], [0.0, 0.0, 0.3]]) + 0.5).unsqueeze(-1)


@torch.no_grad()
def mean_log_prob(flow: SequenceFlow, x: Tensor, c: Tensor | None = None) -> float:
    return float(flow.log_prob(x, c).mean())


def weights(flow: SequenceFlow) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in flow.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_it_comes_near_the_entropy_and_says_what_the_flow_is_worth_now() -> None:
    flow, x = make(), rows(1000)
    result = flow.fit(x, steps=160, lr=1e-2, patience=None, batch_size=128)
    entropy = 1.5 * math.log(2 * math.pi * math.e) + math.log(0.5 * 0.3)
    assert abs(result.held_out_log_prob + entropy) < 3 * result.standard_error + 0.05
    _, held_out = split_rows(Rows.checked(flow, x, None), 0.1, 0)
    assert mean_log_prob(flow, held_out.x) == pytest.approx(result.held_out_log_prob, abs=1e-5)
    assert result.held_out_log_prob == max(e.held_out for e in result.curve)
    assert next(e.step for e in result.curve if e.held_out == result.held_out_log_prob) == result.best_step
    assert (result.rows, result.held_out_rows, result.stopped, result.steps) == (900, 100, "steps", 160)
    assert result.curve[-1].step == 160 and result.curve[0].held_out < result.held_out_log_prob - 0.3


def test_the_same_arguments_give_the_same_weights_and_another_seed_others() -> None:
    found = []
    for seed in (0, 0, 1):
        flow = make(condition="classes:2")
        torch.manual_seed(seed + 10 * len(found))  # nothing is drawn from it
        flow.fit(rows(), torch.arange(400) % 2, seed=seed, label_drop=0.2, **QUICK)
        found.append(weights(flow))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def test_it_stops_where_held_out_rows_are_explained_no_better_and_keeps_the_best() -> None:
    flow = make(width=64, layers=(2, 2))
    result = flow.fit(rows(40), steps=400, lr=5e-3, patience=4)  # 36 rows are soon known by heart
    assert result.stopped == "patience"
    assert result.best_step < result.steps < 400
    assert result.steps - result.best_step == 4 * 10
    assert result.curve[-1].held_out < result.held_out_log_prob
    assert result.curve[-1].train > result.curve[0].train


def test_a_condition_is_learned_and_dropped() -> None:
    c = torch.arange(1000) % 2
    x = rows(1000) + 3 * c.view(-1, 1, 1)
    flow = make(condition="classes:2")
    flow.fit(x, c, steps=150, lr=5e-3, label_drop=0.2)
    assert (flow.log_prob(x, c) - flow.log_prob(x, 1 - c)).mean() > 3
    assert flow.log_prob(x).mean() > flow.log_prob(x, 1 - c).mean()


def test_held_out_rows_may_be_given() -> None:
    flow, c = make(condition="classes:2"), torch.arange(400) % 2
    result = flow.fit(rows(), c, held_out=(rows(50, 1), c[:50]), **QUICK)
    assert (result.rows, result.held_out_rows) == (400, 50)
    assert mean_log_prob(flow, rows(50, 1), c[:50]) == pytest.approx(result.held_out_log_prob, abs=1e-5)


def test_the_base_variance_of_an_additive_flow_is_that_of_all_rows() -> None:
    flow, x = make(transforms=("additive",) * 2), rows()
    result = flow.fit(x, **{**QUICK, "batch_size": 90})
    train, held_out = split_rows(Rows.checked(flow, x, None), 0.1, 0)
    expected = flow.encode(train.x)[0].square().mean(dim=0)
    torch.testing.assert_close(flow.base.variance, expected, atol=1e-4, rtol=1e-4)
    assert mean_log_prob(flow, held_out.x) == pytest.approx(result.held_out_log_prob, abs=1e-5)


@pytest.mark.parametrize("name", ["conditional", "unconditional"])
def test_images_are_fitted_like_anything_else(name: str) -> None:
    flow = build(name, torch.float32)
    x = torch.rand(60, *flow.event.shape) * 2 - 1
    result = flow.fit(x, torch.arange(60) % 3 if name == "conditional" else None, steps=12)
    assert result.curve[-1].held_out > result.curve[0].held_out


def test_the_flow_keeps_its_mode_and_has_no_gradients_after() -> None:
    for training in (True, False):
        flow = make().train(training)
        with torch.no_grad():
            flow.fit(rows(), **QUICK)
        assert flow.training == training and all(block.training == training for block in flow.blocks)
        assert all(p.grad is None and p.requires_grad for p in flow.parameters())


def test_rows_of_inference_mode_are_rows() -> None:
    with torch.inference_mode():
        x = rows()
    assert make().fit(x, **QUICK).steps == 40


def test_interrupted_it_keeps_the_best_so_far() -> None:
    flow, seen = make(), []

    def progress(metrics: dict[str, float]) -> None:
        seen.append(metrics)
        if len(seen) == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        flow.fit(rows(), progress=progress, **QUICK)
    _, held_out = split_rows(Rows.checked(flow, rows(), None), 0.1, 0)
    assert mean_log_prob(flow, held_out.x) == pytest.approx(seen[-1]["best"], abs=1e-5)


def test_what_did_not_fit_leaves_the_flow_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = make()
    before = weights(flow)
    monkeypatch.setattr("tarflow.training.fit.score_rows", lambda *_: (math.nan, math.nan))
    with pytest.raises(FitError, match="no held-out likelihood was finite"):
        flow.fit(rows(), **QUICK)
    assert same(before, weights(flow))


def test_it_says_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    make().fit(rows(), progress=True, **QUICK)
    captured = capsys.readouterr()
    assert "held-out" in captured.err and "100%" in captured.err
    assert captured.out == ""


def nan_at(row: int, token: int) -> Tensor:
    x = rows()
    x[row, token] = math.nan
    return x


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((nan_at(7, 2),), r"x\[7, 2, 0\]: expected finite numbers, got nan"),
        ((rows()[:, :2],), r"x: expected tokens \(B, 3, 1\), got \(400, 2, 1\)"),
        ((rows().numpy(),), "an array becomes one by torch.from_numpy"),
        ((rows().long(),), "expected floating-point values"),
        ((rows(9),), "expected at least 10 rows to learn from, got 8"),
        ((rows()[:0],), "expected at least 10 rows to learn from, got 0"),
        ((torch.cat([rows()[:, :2], torch.ones(400, 1, 1)], 1),), r"x\[:, 2, 0\]: 1 in all of 360 rows"),
        ((rows(), torch.zeros(400, dtype=torch.int64)), "no class"),
        ((rows(), torch.zeros(40, dtype=torch.int64)), r"expected \(400,\) integer labels"),
    ],
)
def test_rows_that_do_not_fit_are_one_line(arguments: tuple[Any, ...], message: str) -> None:
    flow = make()
    before = weights(flow)
    with pytest.raises(ValueError, match=message):
        fit(flow, *arguments, **QUICK)
    assert same(before, weights(flow))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"held_out": 0}, "held_out: expected a share between 0 and 1"),
        ({"held_out": 1}, "held_out: expected a share between 0 and 1"),
        ({"held_out": (rows(), None, None, 1)}, r"expected a share, x, \(x, c\) or \(x, c, mask\), got 4 values"),
        ({"held_out": rows()[:0]}, "expected at least one row"),
        ({"held_out": nan_at(0, 0)}, r"held_out\[0, 0, 0\]: expected finite"),
        ({"seed": 0.5}, "seed: expected a whole number"),
        ({"steps": 0}, "steps: expected a positive number"),
        ({"patience": 0}, "patience: expected a positive number"),
        ({"batch_size": 0}, "batch_size: expected a positive number"),
        ({"lr": -1.0}, "lr: expected a positive number"),
        ({"optimizer": "sgd"}, "optimizer: expected 'adamw' or 'muon'"),
        ({"noise_std": 0.1}, "noise_std: no such field"),
    ],
)
def test_options_that_make_no_sense_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make().fit(rows(), **options)


def test_a_field_that_is_none_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="momentum: no such field; known: "):
        make().fit(rows(), momentum=0.9)


def test_every_field_reaches_the_weights() -> None:
    def fitted(**options: Any) -> dict[str, Tensor]:
        flow = make(condition="classes:2")
        flow.fit(rows(), torch.arange(400) % 2, **{**QUICK, "steps": 20, **options})
        return weights(flow)

    plain = fitted()
    changed: dict[str, Any] = dict(
        weight_decay=0.5,
        betas=(0.5, 0.5),
        clip_norm=0.01,
        ema_decay=0.0,
        label_drop=0.5,
        final_lr=1e-3,
        warmup_steps=0,
        optimizer="muon",
        schedule="linear",
        lr=1e-2,
        batch_size=32,
        held_out=0.3,
    )
    for name, value in changed.items():
        assert not same(plain, fitted(**{name: value})), name
    assert not same(fitted(optimizer="muon"), fitted(optimizer="muon", muon_lr=1e-2))


# --- sequences of several lengths -----------------------------------------------------------------------------------


def padded(count: int = 200) -> tuple[Tensor, Tensor]:
    """Rows of one to three tokens, NaN under the padding, and their mask."""
    mask = torch.arange(3) <= torch.arange(count).unsqueeze(1) % 3
    return torch.where(mask.unsqueeze(2), rows(count) * 100, math.nan), mask


def test_what_lies_under_the_padding_is_not_learned_from() -> None:
    x, mask = padded()
    found = []
    for under in (math.nan, 1e6):
        flow = make()
        before = flow.log_prob(x, mask=mask).mean().item()
        result = flow.fit(torch.where(mask.unsqueeze(2), x, under), mask=mask, **QUICK)
        assert flow.log_prob(x, mask=mask).mean().item() > before and result.rows == 180
        found.append(weights(flow))
    assert same(*found)
    assert result.curve[-1].train == pytest.approx(result.held_out_log_prob, abs=2.0), "both are of what is there"
    z = flow.event.to_tokens(x, mask)[0][mask]
    assert abs(float(z.mean())) < 0.2 and float(z.std()) == pytest.approx(1, abs=0.2), "standardised by what is there"


def test_masked_rows_that_do_not_fit_are_named() -> None:
    x, mask = padded(40)
    flow = make(support="positive")
    with pytest.raises(ValueError, match=r"^x: "):
        flow.fit(x - 1e3, mask=mask)
    with pytest.raises(ValueError, match=r"^mask: expected \(40, 3\) booleans"):
        make().fit(x, mask=mask[1:])
    with pytest.raises(ValueError, match=r"^x\[:, 2, 0\]: 5 in all of"):
        make().fit(torch.where(mask.unsqueeze(2) & (torch.arange(3).view(1, 3, 1) == 2), 5.0, x), mask=mask)
    with pytest.raises(ValueError, match=r"^mask: expected none with the base 'followed'"):
        make(base="followed").fit(x, mask=mask)
    result = make().fit(x, mask=mask, held_out=(x, None, mask), **QUICK)
    assert result.rows == result.held_out_rows == 40

"""A plan's arithmetic by hand, what it advises, and that each advice, followed, fits."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from tarflow.config import ConfigError, DataConfig, RunConfig, TarFlowConfig, TrainingConfig
from tarflow.planning import devices
from tarflow.planning.devices import KNOWN, Device, find_device
from tarflow.planning.plan import FITS, Plan, make_plan
from tarflow.planning.work import inner_weights, muon_flops, parameters, recomputed_flops, training_flops

MODEL = TarFlowConfig(image_size=16, patch_size=2, width=64, layers=(2, 2))
CARD = Device("card", "a card", 2e12, 1e12, 1e12, 1e11, 1e9, 0.5, "nowhere")


def config(**training: Any) -> RunConfig:
    return RunConfig(MODEL, DataConfig(), TrainingConfig(**{"steps": 100, "batch_size": 64, **training}))


def test_time_is_work_over_rates() -> None:
    plan = make_plan(config(), CARD)
    assert plan.products == "bf16" and plan.compute_seconds == pytest.approx(training_flops(MODEL, 64) / (2e12 * 0.5))
    assert plan.update_seconds == pytest.approx(52 * parameters(MODEL) / 1e11)
    assert plan.exchange_seconds == 0
    assert plan.step_seconds == plan.compute_seconds + plan.update_seconds
    assert plan.hours == pytest.approx(100 * plan.step_seconds / 3600)
    narrow = make_plan(config(precision="float32"), CARD, share=0.25)
    assert narrow.products == "float32" and narrow.compute_seconds == pytest.approx(4 * plan.compute_seconds)
    uniform = make_plan(config(noise="uniform"), CARD)  # as `auto` means it
    assert uniform.products == "tf32" and uniform.compute_seconds == pytest.approx(2 * plan.compute_seconds)


def test_recomputation_takes_time_and_is_not_counted_as_work() -> None:
    plain, again = make_plan(config(), CARD), make_plan(config(checkpoint_activations="layers"), CARD)
    assert again.step_flops == plain.step_flops
    assert again.recomputed_flops == recomputed_flops(MODEL, 64, "layers") > 0
    factor = 1 + again.recomputed_flops / again.step_flops
    assert again.compute_seconds == pytest.approx(factor * plain.compute_seconds)
    assert again.memory.activations < plain.memory.activations


def test_devices_share_the_work_and_exchange_gradients() -> None:
    one, four = make_plan(config(), CARD), make_plan(config(), CARD, devices=4)
    assert four.compute_seconds == pytest.approx(one.compute_seconds / 4)
    assert four.exchange_seconds == pytest.approx(2 * 4 * parameters(MODEL) * 3 / 4 / 1e9)
    slow = dataclasses.replace(CARD, link=1e3)
    waiting = make_plan(config(), slow, devices=4)  # the longer of the two counts
    assert waiting.step_seconds == waiting.exchange_seconds + waiting.update_seconds > four.step_seconds
    shares = make_plan(config(), CARD, devices=4, strategy="fsdp")
    assert shares.exchange_seconds == pytest.approx(1.5 * four.exchange_seconds)
    assert shares.update_seconds == pytest.approx(four.update_seconds / 4)
    assert shares.memory.moments < four.memory.moments


@pytest.mark.parametrize("images", [10, 64, 1000, 1001])
def test_steps_are_those_of_training(images: int) -> None:
    run = config(steps=None, epochs=2.5)
    assert run.training is not None
    assert make_plan(run, CARD, images=images).steps == run.training.step_counts(images)[0]


ADVICE = {
    "activations": (config(batch_size=256), {}),
    "several devices": (config(batch_size=256), {"devices": 4}),
    "images and activations": (config(batch_size=256), {"images": 30_000}),
}


def test_images_lie_on_the_device_only_where_they_are_a_small_part_of_it() -> None:
    """As `data.feed` decides."""
    some = make_plan(config(batch_size=8), CARD, images=1000)
    assert some.memory.images == 1000 * MODEL.num_dims
    small = dataclasses.replace(CARD, memory=8 * 1000 * MODEL.num_dims - 1)
    assert make_plan(config(batch_size=8), small, images=1000).memory.images == 0


@pytest.mark.parametrize("name", ADVICE)
def test_every_advice_fits_when_it_is_followed(name: str) -> None:
    run, options = ADVICE[name]
    enough = make_plan(run, CARD, **options)
    assert enough.fits and enough.advice == []
    small = dataclasses.replace(CARD, memory=0.7 * enough.memory.peak)
    plan = make_plan(run, small, **options)
    assert not plan.fits and plan.advice
    for line in plan.advice:
        followed = follow(run, line, small, options)
        assert followed.fits, line
        assert f"{followed.memory.peak / 1e9:.1f} GB" in line


def follow(run: RunConfig, line: str, device: Device, options: dict[str, Any]) -> Plan:
    """Do what a line of advice says."""
    assert run.training is not None
    training, data = run.training, run.data
    if found := re.search(r"--accumulate (\d+)", line):
        training = dataclasses.replace(training, accumulate=int(found[1]))
    if found := re.search(r"--checkpoint-activations (\w+)", line):
        training = dataclasses.replace(training, checkpoint_activations=found[1])  # type: ignore[arg-type]
    if found := re.search(r"FSDP over (?:the )?(\d+)", line):
        options = options | {"devices": int(found[1]), "strategy": "fsdp"}
    changed = RunConfig(run.model, data, training)
    assert changed != run or "FSDP" in line
    return make_plan(changed, device, **options)


def test_what_fits_nowhere_is_said() -> None:
    (line,) = make_plan(config(batch_size=2), dataclasses.replace(CARD, memory=1e5, link=0)).advice
    assert line.startswith("nothing that a plan may change")
    needed = make_plan(config(batch_size=2), CARD).memory.peak
    assert make_plan(config(batch_size=2), dataclasses.replace(CARD, memory=1.01 * needed / FITS)).fits


@pytest.mark.parametrize(
    ("run", "options", "message"),
    [
        (config(), {"devices": 0}, "devices: expected a positive number, got 0"),
        (config(), {"devices": 3}, "batch_size: expected a multiple of devices times accumulate, 3 x 1, got 64"),
        (config(accumulate=32), {"devices": 4}, "batch_size: .* 4 x 32"),
        (config(), {"share": 1.5}, "share: expected more than 0 and at most 1, got 1.5"),
        (config(steps=None, epochs=1.0), {}, "images: the recipe counts in epochs"),
        (config(steps=None, epochs=1.0), {"images": 0}, "images: expected a positive number, got 0"),
        (config(steps=None), {}, "training.steps: missing"),
        (RunConfig(MODEL), {}, "training: missing"),
    ],
)
def test_what_cannot_be_planned_is_refused(run: RunConfig, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan(run, CARD, **options)


def test_a_cpu_is_one_device() -> None:
    with pytest.raises(ConfigError, match="devices: expected 1 with card"):
        make_plan(config(), dataclasses.replace(CARD, link=0.0), devices=2)


def test_the_cpu_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "LARGE", 1 << 22)
    monkeypatch.setattr(devices, "SQUARES", {"cpu": (128,)})
    found = find_device("cpu", seconds=0.05)
    assert found.name == "cpu" and not found.assumed and found.link == 0
    assert found.float32 > 1e8 and found.bf16 > 1e6 and found.bandwidth > 1e7 and found.memory > 1e8


def test_data_sheets_are_in_the_units_they_say() -> None:
    for device in KNOWN.values():
        assert device.assumed and 1e14 < device.bf16 < 5e15 and device.float32 < device.bf16
        assert 1e10 < device.memory < 3e11 and 5e11 < device.bandwidth < 1e13
        assert 1e10 < device.link < device.bandwidth
        assert f"{device.memory / 1e9:.0f} GB" in device.label


@pytest.mark.parametrize(
    ("name", "message"),
    [("h10", "no such device 'h10'; perhaps h100"), ("tpu", "no such device 'tpu'; .*known: a100")],
)
def test_an_unknown_device_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_device(name)


def test_muon_has_products_of_its_own_and_one_moment_less() -> None:
    plain, plan = make_plan(config(), CARD), make_plan(config(optimizer="muon"), CARD)
    assert plan.update_seconds - plain.update_seconds == pytest.approx(muon_flops(MODEL) / (2e12 * 0.5))
    assert plain.memory.moments - plan.memory.moments == 4 * inner_weights(MODEL)
    with pytest.raises(ConfigError, match="muon"):
        make_plan(config(optimizer="muon"), CARD, devices=2, strategy="fsdp")


@pytest.mark.parametrize(("share", "fits"), [(0.89, True), (0.91, False), (0.99, False), (1.1, False)])
def test_a_tenth_of_the_memory_is_left_to_others(share: float, fits: bool) -> None:
    peak = make_plan(config(), CARD).memory.peak
    plan = make_plan(config(), dataclasses.replace(CARD, memory=peak / share))
    assert plan.fits == fits and bool(plan.advice) != fits

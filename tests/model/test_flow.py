"""TarFlow as an object: dtypes, input that does not fit, saving and loading, copies."""

from __future__ import annotations

import copy
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flow_cases import assert_close, build, every_kind, images, labels, latents, unchanged
from tarflow import ConfigError, TarFlow
from tarflow.model.saving import load_weights

LOW = [torch.bfloat16, torch.float16]
FLOATS = [*LOW, torch.float32, torch.float64]


# --- precision ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", FLOATS)
@pytest.mark.parametrize("data", FLOATS)
@pytest.mark.parametrize("name", ["conditional", "additive", "two_tokens"])
def test_state_and_density_are_float32_at_least(name: str, weights: torch.dtype, data: torch.dtype) -> None:
    flow, exact = build(name, weights), build(name)
    want = torch.promote_types(torch.promote_types(weights, data), torch.float32)
    x, y = images(flow, 3, dtype=data), labels(flow, 3)
    z, ladj = flow.encode(x, y)
    assert z.dtype == ladj.dtype == flow.log_prob(x, y).dtype == flow.base.log_prob(z).sum(dim=1).dtype == want
    assert flow(x, y)[0].dtype == flow.decode(z.to(data), y).dtype == want
    tolerance = 0.3 if weights in LOW else 1e-3
    assert_close(z.double(), exact.encode(x.double(), y)[0], tolerance)
    assert_close(flow.log_prob(x, y).double(), exact.log_prob(x.double(), y), tolerance * 5)


@pytest.mark.parametrize("weights", [*LOW, torch.float32])
def test_a_float64_state_is_not_rounded_by_narrower_weights(weights: torch.dtype) -> None:
    flow = build("one_block", weights)
    x = images(flow, 2)
    z, _ = flow.encode(x)
    assert torch.equal(z[:, 0], x[:, 0, :2, :2].flatten(1))  # z_0 = x_0
    assert torch.equal(flow.decode(z)[:, 0, :2, :2], x[:, 0, :2, :2])
    assert_close(flow.decode(z), x, 0.05 if weights in LOW else 1e-5)


@pytest.mark.parametrize("name", ["conditional", "additive"])
def test_autocast_narrows_the_products_only(name: str) -> None:
    flow = build(name, torch.float32)
    x, y = images(flow, 3, dtype=torch.float32), labels(flow, 3)
    with torch.autocast("cpu", torch.bfloat16):
        z, ladj = flow.encode(x, y)
        log_prob, back = flow.log_prob(x, y), flow.decode(z, y)
    assert z.dtype == ladj.dtype == log_prob.dtype == back.dtype == torch.float32
    assert_close(z, flow.encode(x, y)[0], 0.1)
    assert_close(back, x, 0.1)
    one = build("one_block", torch.float32)  # whose z_0 = x_0 must come through untouched
    with torch.autocast("cpu", torch.bfloat16):
        z = one.encode(x[:, :, :4, :4])[0]
        assert torch.equal(z[:, 0], x[:, 0, :2, :2].flatten(1))
        assert torch.equal(one.decode(z)[:, :, :2, :2], x[:, :, :2, :2])


# --- input that does not fit ---------------------------------------------------------------------------------------

BAD_LABELS: dict[str, tuple[str, Tensor, str]] = {
    "floating": ("conditional", torch.zeros(2), "float32"),
    "bool": ("conditional", torch.zeros(2, dtype=torch.bool), "bool"),
    "too few": ("conditional", torch.zeros(1, dtype=torch.int64), r"\(2,\).*\(1,\)"),
    "a column": ("conditional", torch.zeros(2, 1, dtype=torch.int64), r"\(2, 1\)"),
    "a scalar": ("conditional", torch.tensor(0), r"\(\)"),
    "too large": ("conditional", torch.tensor([0, 3]), "0 to 2.*got 3"),
    "below the null class": ("conditional", torch.tensor([-2, 0]), "got -2"),
    "of no class": ("unconditional", torch.tensor([0, -1]), "unconditional.*got 0"),
}


@pytest.mark.parametrize("name", BAD_LABELS)
@pytest.mark.parametrize("method", ["encode", "decode", "log_prob"])
def test_labels_that_do_not_fit_are_refused(name: str, method: str) -> None:
    case, y, message = BAD_LABELS[name]
    flow = build(case)
    with pytest.raises(ValueError, match=f"^y: .*{message}"):
        getattr(flow, method)(latents(flow, 2) if method == "decode" else images(flow, 2), y)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int8, torch.uint8, torch.int64])
def test_labels_of_any_integer_dtype_are_taken(dtype: torch.dtype) -> None:
    flow = build("conditional")
    x, y = images(flow, 3), torch.tensor([0, 2, 1])
    assert torch.equal(flow.log_prob(x, y.to(dtype)), flow.log_prob(x, y))


def test_images_and_latents_that_do_not_fit_are_refused() -> None:
    flow = build("four_channels")  # (B, 4, 2, 3), (B, 6, 4)
    for wrong in (torch.zeros(2, 4, 3, 2), torch.zeros(2, 3, 2, 3), torch.zeros(4, 2, 3), torch.zeros(2, 6, 4)):
        for method in (flow.encode, flow.log_prob):
            with pytest.raises(
                ValueError, match=r"^x: expected .*4, 2, 3.*got " + repr(tuple(wrong.shape)).replace("(", r"\(")[:-1]
            ):
                method(wrong)
    for wrong in (torch.zeros(2, 4, 6), torch.zeros(6, 4), torch.zeros(2, 4, 2, 3)):
        with pytest.raises(ValueError, match=r"^z: expected .*6, 4.*got"):
            flow.decode(wrong)
    with pytest.raises(ValueError, match=r"^x: .*uint8"):
        flow.encode(torch.zeros(2, 4, 2, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"^z: .*int64"):
        flow.decode(torch.zeros(2, 6, 4, dtype=torch.int64))


# --- saving and loading --------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_is_the_same_bit_for_bit(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    flow = build(name, dtype)
    flow.save_pretrained(tmp_path / "new" / "folder")
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == ["config.json", "model.safetensors"]
    loaded = type(flow).from_pretrained(tmp_path / "new" / "folder", dtype=dtype)
    assert loaded.config == flow.config and loaded.dtype == dtype and not loaded.training
    state, other = flow.state_dict(), loaded.state_dict()
    assert state.keys() == other.keys()
    for key in state:
        assert state[key].dtype == other[key].dtype and torch.equal(state[key], other[key]), key
    x, y = images(flow, 2, dtype=torch.float32), labels(flow, 2)
    assert torch.equal(flow.log_prob(x, y), loaded.log_prob(x, y))


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_saved_files_can_be_read_by_whom_the_umask_allows(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        build("conditional").save_pretrained(tmp_path)
    finally:
        os.umask(before)
    assert {p.name: p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {
        "config.json": mode,
        "model.safetensors": mode,
    }


def test_saving_again_replaces_what_was_there(tmp_path: Path) -> None:
    build("conditional", seed=1).save_pretrained(tmp_path)
    build("additive", torch.float32, seed=2).save_pretrained(tmp_path)
    loaded = TarFlow.from_pretrained(tmp_path)
    assert torch.equal(loaded.blocks[0].position, build("additive", torch.float32, seed=2).blocks[0].position)


def _edit_config(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        sections = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(change(sections)))

    return edit


def _edit_weights(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        tensors = change(load_file(directory / "model.safetensors"))
        save_file(tensors, directory / "model.safetensors")

    return edit


def _truncate(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


DAMAGE: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "no config": (lambda d: (d / "config.json").unlink(), FileNotFoundError, r"config\.json: no such file"),
    "no weights": (
        lambda d: (d / "model.safetensors").unlink(),
        FileNotFoundError,
        r"model\.safetensors: no such file",
    ),
    "config not JSON": (lambda d: (d / "config.json").write_text("{"), ValueError, r"config\.json: not JSON"),
    "config not text": (
        lambda d: (d / "config.json").write_bytes(b"\xff\xfe\x00"),
        ValueError,
        r"config\.json: not JSON",
    ),
    "config a list": (_edit_config(lambda c: []), ConfigError, r"config\.json: .*'model'"),
    "no model section": (_edit_config(lambda c: {"data": {}}), ConfigError, r"config\.json: .*'model'"),
    "model section empty": (_edit_config(lambda c: {"model": None}), ConfigError, r"config\.json: model"),
    "field missing": (_edit_config(lambda c: c["model"].pop("width") and c), ConfigError, r"model\.width: missing"),
    "unknown field": (_edit_config(lambda c: c["model"].update(widht=64) or c), ConfigError, r"model\.widht.*width"),
    "wrong type": (_edit_config(lambda c: c["model"].update(width="64") or c), ConfigError, r"model\.width.*'64'"),
    "contradiction": (_edit_config(lambda c: c["model"].update(patch_size=3) or c), ConfigError, r"model\.patch_size"),
    "garbage weights": (
        lambda d: (d / "model.safetensors").write_bytes(b"junk" * 99),
        ValueError,
        r"model\.safetensors: not",
    ),
    "empty weights": (lambda d: (d / "model.safetensors").write_bytes(b""), ValueError, r"model\.safetensors: not"),
    "weights cut short": (_truncate, ValueError, r"model\.safetensors: not"),
    "tensor missing": (
        _edit_weights(lambda t: {k: v for k, v in t.items() if k != "blocks.1.position"}),
        ValueError,
        r"model\.safetensors: tensor blocks\.1\.position is missing",
    ),
    "tensor foreign": (
        _edit_weights(lambda t: {**t, "blocks.0.mask": torch.ones(2)}),
        ValueError,
        r"model\.safetensors: tensor blocks\.0\.mask",
    ),
    "tensor of another shape": (
        _edit_weights(lambda t: {**t, "blocks.0.position": torch.ones(2, 16)}),
        ValueError,
        r"model\.safetensors: tensor blocks\.0\.position.*\(4, 16\).*\(2, 16\)",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_cannot_be_loaded_is_named_in_one_line(name: str, tmp_path: Path) -> None:
    damage, error, message = DAMAGE[name]
    build("conditional", torch.float32).save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(error, match=message) as caught:
        TarFlow.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


# --- copies ----------------------------------------------------------------------------------------------------------


@every_kind
def test_deep_copies_and_pickles_are_the_same_flow_with_weights_of_their_own(name: str) -> None:
    flow = build(name)
    x, y = images(flow, 2), labels(flow, 2)
    want = flow.log_prob(x, y)
    for other in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        assert other.config == flow.config
        assert torch.equal(other.log_prob(x, y), want)
        with torch.no_grad(), unchanged(*flow.parameters()):
            for parameter in other.parameters():
                parameter.add_(1)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_narrow_weights_are_loaded_as_float32_and_no_number_changes(stored: torch.dtype, tmp_path: Path) -> None:
    """A narrow file saves room; a likelihood of it is that of the same weights in float32."""
    flow = build("additive", stored)
    flow.base.variance = flow.base.variance.to(torch.float32)
    flow.save_pretrained(tmp_path)
    before = torch.get_rng_state()
    loaded = TarFlow.from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    wide = torch.promote_types(stored, torch.float32)
    assert loaded.dtype == wide and loaded.base.variance.dtype == torch.float32
    assert all(p.requires_grad for p in loaded.parameters())
    for name, tensor in flow.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.to(wide)), name
    x, y = images(flow, 2, dtype=torch.float32), labels(flow, 2)
    assert torch.equal(loaded.log_prob(x, y), flow.to(wide).log_prob(x, y))


def test_a_dtype_that_is_asked_for_is_that_of_every_tensor(tmp_path: Path) -> None:
    build("additive", torch.float32).save_pretrained(tmp_path)
    for dtype in (torch.bfloat16, torch.float64):
        assert {t.dtype for t in TarFlow.from_pretrained(tmp_path, dtype=dtype).state_dict().values()} == {dtype}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_not_loaded(value: float, tmp_path: Path) -> None:
    flow = build("additive", torch.float32)
    for name in ("blocks.0.proj_in.weight", "base.variance"):
        tensors = {key: tensor.clone() for key, tensor in flow.state_dict().items()}
        tensors[name][1, 0] = value
        with pytest.raises(ValueError, match=f"file: tensor {name}: holds numbers that are not finite"):
            load_weights(build("additive", torch.float32), tensors, "file")
    flow.blocks[1].position.data[0, 0] = value
    flow.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model\.safetensors: tensor blocks\.1\.position: holds numbers"):
        TarFlow.from_pretrained(tmp_path)

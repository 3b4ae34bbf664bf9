"""Official checkpoints to ours and back, without the official code: the round trip, and every refusal."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tarflow.checkpoint import open_run
from tarflow.cli import main
from tarflow.config import TarFlowConfig
from tarflow.interop import load_official, noise_from_name, to_official
from tarflow.model.flow import TarFlow

State = dict[str, Tensor]


def make(dtype: torch.dtype = torch.float32, seed: int = 0, **fields: Any) -> TarFlow:
    """A tiny flow in which no tensor is left at its initial value."""
    defaults: dict[str, Any] = {"image_size": 8, "channels": 1, "patch_size": 2, "width": 64, "layers": (1, 1)}
    defaults["log_scale_bound"] = None
    flow = TarFlow(TarFlowConfig(**(defaults | fields))).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    for tensor in flow.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    if flow.base.follows:
        flow.base.variance.copy_(0.5 + torch.rand(flow.base.variance.shape, generator=generator))
    return flow


CASES: dict[str, dict[str, Any]] = {
    "affine": {},
    "additive": {"transform": "additive"},
    "conditional": {"num_classes": 3},
    "one class": {"num_classes": 1},
    "additive, conditional": {"transform": "additive", "num_classes": 3},
    "three channels": {"channels": 3},
    "three channels, patch of 3": {"channels": 3, "patch_size": 3, "image_size": 9},
    "one channel, patch of 3": {"patch_size": 3, "image_size": 9},
    "patch of 1": {"patch_size": 1, "image_size": 3},
    "unequal depths": {"layers": (3, 1, 2), "num_classes": 2},
    "one block": {"layers": (2,)},
    "eleven blocks": {"layers": (1,) * 11},
    "wider": {"width": 128, "expansion": 2},
}


@pytest.mark.parametrize("fields", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_round_trip_is_bitwise(fields: dict[str, Any], dtype: torch.dtype) -> None:
    flow = make(dtype, **fields)
    official = to_official(flow)
    again = load_official(official)
    assert again.config == flow.config
    assert not again.training
    assert all(parameter.requires_grad for parameter in again.parameters())
    for (name, ours), (other, back) in zip(flow.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other
        assert back.dtype == dtype
        assert torch.equal(ours, back), name
    for name, tensor in to_official(again).items():
        assert torch.equal(tensor, official[name]), name


def test_through_a_file(tmp_path: Path) -> None:
    flow = make(num_classes=2, layers=(2, 1))
    path = tmp_path / "digits_model_2_64_2_1_0.10.pth"
    torch.save(to_official(flow), path)
    for origin in (path, str(path)):
        again = load_official(origin)
        assert all(
            torch.equal(a, b) for a, b in zip(flow.state_dict().values(), again.state_dict().values(), strict=True)
        )
    x, y = torch.randn(3, 1, 8, 8), torch.tensor([0, 1, -1])
    assert torch.equal(flow.log_prob(x, y), again.log_prob(x, y))


def test_legacy_file_format(tmp_path: Path) -> None:
    flow = make()
    torch.save(to_official(flow), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert load_official(tmp_path / "old.pth").config == flow.config


def test_neither_side_shares_memory_with_the_other() -> None:
    flow = make()
    official = to_official(flow)
    again = load_official(official)
    before = {name: tensor.clone() for name, tensor in again.state_dict().items()}
    with torch.no_grad():
        for tensor in (*official.values(), *flow.state_dict().values()):
            tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in again.state_dict().items())


def test_random_numbers_are_left_alone() -> None:
    official = to_official(make())
    state = torch.get_rng_state()
    load_official(official)
    assert torch.equal(torch.get_rng_state(), state)


def test_parameters_and_strided_tensors_are_taken() -> None:
    flow = make()
    official = {
        name: tensor.T.contiguous().T if tensor.ndim == 2 else tensor for name, tensor in to_official(flow).items()
    }
    official["blocks.0.pos_embed"] = torch.nn.Parameter(official["blocks.0.pos_embed"])
    again = load_official(official)
    assert all(tensor.is_contiguous() for tensor in again.state_dict().values())
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in flow.state_dict().items())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_removed(prefix: str) -> None:
    flow = make(num_classes=2)
    official = {prefix + name: tensor for name, tensor in to_official(flow).items()}
    assert load_official(official).config == flow.config


def test_submodules_that_were_compiled() -> None:
    flow = make()
    official = {name.replace("blocks.1.", "blocks.1._orig_mod."): tensor for name, tensor in to_official(flow).items()}
    assert load_official(official).config == flow.config


def test_masks_may_be_missing() -> None:
    flow = make()
    official = {name: tensor for name, tensor in to_official(flow).items() if not name.endswith("attn_mask")}
    assert load_official(official).config == flow.config


def test_the_widest_dtype_of_a_file_is_kept() -> None:
    official = {name: tensor.half() for name, tensor in to_official(make()).items()}
    official["var"] = official["var"].double()  # of an affine model: a constant, and no weight
    assert load_official(official).dtype == torch.float16
    official["blocks.1.proj_out.bias"] = official["blocks.1.proj_out.bias"].bfloat16()
    flow = load_official(official)
    assert {tensor.dtype for tensor in flow.state_dict().values()} == {torch.float32}


# --- image size -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image_size", "expected"), [(None, 8), (8, 8), ((8, 8), 8), ((4, 16), (4, 16)), ([32, 2], (32, 2))], ids=str
)
def test_image_size(image_size: Any, expected: int | tuple[int, int]) -> None:
    flow = load_official(to_official(make()), image_size)
    assert flow.config.image_size == expected


@pytest.mark.parametrize("image_size", [9, 16, 4, 0, -8, (8, 4), (2, 2, 2), (8,), "8", 8.0, (1, 64)], ids=str)
def test_image_size_that_does_not_fit(image_size: Any) -> None:
    with pytest.raises(ValueError, match=r"state dict: image_size: .* 16 patches of 2x2 pixels") as caught:
        load_official(to_official(make()), image_size)
    assert repr(image_size) in str(caught.value)


def test_a_number_of_patches_that_is_no_square_needs_an_image_size() -> None:
    official = to_official(make())
    for name, tensor in official.items():
        if name.endswith("pos_embed") or name == "var":
            official[name] = tensor[:12]
        elif name.endswith("attn_mask"):
            official[name] = tensor[:12, :12]
    with pytest.raises(ValueError, match=r"12 patches of 2x2 pixels, such as \(2, 24\), got a square"):
        load_official(official)
    assert load_official(official, (6, 8)).config.grid == (3, 4)


# --- what is refused --------------------------------------------------------------------------------------------------


def rename(old: str, new: str) -> Callable[[State], None]:
    def edit(state: State) -> None:
        for name in [name for name in state if name.startswith(old)]:
            state[name.replace(old, new, 1)] = state.pop(name)

    return edit


def put(name: Any, value: Any) -> Callable[[State], None]:
    return lambda state: state.update({name: value})


def drop(name: str) -> Callable[[State], None]:
    return lambda state: state.__delitem__(name)


PROJ_IN, PROJ_OUT, MLP = (f"blocks.0.{name}.weight" for name in ("proj_in", "proj_out", "attn_blocks.0.mlp.main.0"))
BIAS, MASK = "blocks.0.proj_in.bias", "blocks.1.attn_mask"

REFUSED: dict[str, tuple[Callable[[State], None], str]] = {
    "foreign": (put("blocks.0.gate", torch.zeros(3)), "tensor blocks.0.gate is not one of an official affine"),
    "foreign at the top": (put("ema", torch.zeros(3)), "tensor ema is not one"),
    "mask of no block": (put("blocks.7.attn_mask", torch.zeros(3)), "tensors blocks.*: expected numbers from 0 on"),
    "missing": (drop("blocks.1.attn_blocks.0.mlp.norm.bias"), "blocks.1.attn_blocks.0.mlp.norm.bias is missing"),
    "missing position": (drop("blocks.0.pos_embed"), "tensor blocks.0.pos_embed is missing"),
    "missing class embedding": (drop("blocks.1.class_embed"), "tensor blocks.1.class_embed is missing"),
    "class embedding in one block": (drop("blocks.0.class_embed"), "tensor blocks.1.class_embed is not one"),
    "missing var": (drop("var"), "tensor var is missing"),
    "shape": (put(BIAS, torch.zeros(65)), "tensor blocks.0.proj_in.bias: expected shape (64,), got (65,)"),
    "shape of classes": (put("blocks.0.class_embed", torch.zeros(3, 64)), "class_embed: expected 3 dimensions"),
    "dimensions": (put("blocks.0.pos_embed", torch.zeros(16)), "expected 2 dimensions, none of them 0, got (16,)"),
    "empty": (put("blocks.0.pos_embed", torch.zeros(16, 0)), "none of them 0, got (16, 0)"),
    "scalar": (put(PROJ_IN, torch.zeros(())), "tensor blocks.0.proj_in.weight: expected 2 dimensions"),
    "rows of the output": (put(PROJ_OUT, torch.zeros(7, 64)), "2D = 8 rows (affine) or D = 4 (additive), got 7"),
    "columns of the input": (put(PROJ_IN, torch.zeros(64, 5)), "tensor blocks.0.proj_out.weight: expected 2D = 10"),
    "no whole expansion": (put(MLP, torch.zeros(100, 64)), "expected a multiple of the width 64 in rows, got 100"),
    "expansion of one layer": (put(MLP, torch.zeros(128, 64)), "mlp.main.0.bias: expected shape (128,), got (256,)"),
    "gap in the blocks": (rename("blocks.1.", "blocks.2."), "blocks.*: expected numbers from 0 on, got [0, 2]"),
    "huge block number": (rename("blocks.1.", f"blocks.{10**9}."), f"tensor blocks.{10**9}.attn_blocks.0."),
    "leading zero": (rename("blocks.1.", "blocks.01."), "tensor blocks.01.attn_blocks.0."),
    "gap in the layers": (rename("blocks.1.attn_blocks.0.", "blocks.1.attn_blocks.1."), "from 0 on, got [1]"),
    "mask that is not causal": (put(MASK, torch.ones(16, 16)), "tensor blocks.1.attn_mask: expected the causal mask"),
    "shape of a mask": (put(MASK, torch.ones(4, 4).tril()), "expected the causal mask, of shape (16, 16)"),
    "var of an affine model": (put("var", torch.full((16, 4), 1.01)), "tensor var: expected 1 everywhere"),
    "not finite": (put(BIAS, torch.full((64,), torch.nan)), "proj_in.bias: expected finite values"),
    "integers": (put(BIAS, torch.zeros(64, dtype=torch.int64)), "dense floating-point values, got torch.int64"),
    "sparse": (put(BIAS, torch.zeros(64).to_sparse()), "tensor blocks.0.proj_in.bias: expected dense"),
    "meta": (put(BIAS, torch.zeros(64, device="meta")), "tensor blocks.0.proj_in.bias: expected dense"),
    "twice": (put("module.var", torch.ones(16, 4)), "tensor var is there twice, once as module.var"),
    "not a tensor": (put("epoch", 3), "an entry 'epoch' that is int"),
    "not a name": (put(5, torch.zeros(3)), "an entry 5 that is Tensor"),
    "wrapped": (put("model", {}), "an entry 'model' that is dict"),
}


@pytest.mark.parametrize(("edit", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(tmp_path: Path, edit: Callable[[State], None], message: str) -> None:
    official = to_official(make(num_classes=3))
    edit(official)
    path = tmp_path / "model.pth"
    torch.save(official, path)
    for origin, name in ((official, "state dict"), (path, str(path))):
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            load_official(origin)
        assert str(caught.value).startswith(f"{name}: ")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [0.0, -1.0, float("nan"), float("inf")])
def test_variance_that_is_none(values: float) -> None:
    official = to_official(make(transform="additive"))
    official["var"][3, 1] = values
    with pytest.raises(ValueError, match=r"tensor var: expected (finite|positive) values"):
        load_official(official)


def test_width_that_heads_of_64_do_not_divide() -> None:
    official = to_official(make())
    for name, tensor in official.items():
        if name.endswith("pos_embed"):
            official[name] = torch.zeros(len(tensor), 32)
    with pytest.raises(ValueError, match="state dict: width: expected a multiple of head_dim 64, got 32"):
        load_official(official)


def test_patch_of_neither_one_nor_three_channels() -> None:
    official = to_official(make())
    official[PROJ_IN], official[PROJ_OUT] = torch.zeros(64, 5), torch.zeros(10, 64)
    with pytest.raises(ValueError, match=r"C·P² columns with C = 1 or 3, got 5"):
        load_official(official)


# --- files that are not checkpoints -----------------------------------------------------------------------------------


class Payload:
    """What a pickle with code looks like: unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def refuse(path: Path) -> str:
    with warnings.catch_warnings(action="error"), pytest.raises(ValueError, match="expected the state dict") as caught:
        load_official(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert "weights_only" not in message  # torch's own message advises to switch the protection off
    return message


@pytest.mark.parametrize("how", ["pickle", "torch.save", "legacy", "beside the weights"])
def test_code_in_a_pickle_is_never_run(tmp_path: Path, how: str) -> None:
    trace, path = tmp_path / "was-run", tmp_path / "evil.pth"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Payload(trace)))
    else:
        content = to_official(make()) | {"extra": Payload(trace)} if how == "beside the weights" else Payload(trace)
        torch.save(content, path, _use_new_zipfile_serialization=how != "legacy")
    assert "never run" in refuse(path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Payload(trace)))  # the payload is a real one
    assert trace.exists()


@pytest.mark.parametrize(
    "content", [b"", b"garbage" * 100, b"PK\x03\x04" + bytes(200), b"\x80\x02}q\x00.", b"<html>404</html>"], ids=repr
)
def test_garbage(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "garbage.pth"
    path.write_bytes(content)
    refuse(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated(tmp_path: Path, zipped: bool, share: float) -> None:
    path = tmp_path / "model.pth"
    torch.save(to_official(make()), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    refuse(path)


def test_the_optimizer_file(tmp_path: Path) -> None:
    path = tmp_path / "afhq_opt_8_768_8_8_0.07.pth"
    torch.save({"optimizer": torch.optim.AdamW(make().parameters()).state_dict(), "lr_schedule": {"counter": 3}}, path)
    assert "an entry 'optimizer' that is dict" in refuse(path)


@pytest.mark.parametrize(
    "content", [torch.zeros(3), [torch.zeros(3)], 3.5, {}, {"fc.weight": torch.zeros(3, 3)}], ids=str
)
def test_other_things_in_a_file(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "other.pth"
    torch.save(content, path)
    refuse(path)


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.pth", tmp_path):
        with pytest.raises(FileNotFoundError, match="no such file; expected the state dict"):
            load_official(path)


# --- what the official code cannot hold -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"log_scale_bound": 4.0}, "log_scale_bound: official checkpoints have an unbounded log-scale, got 4.0"),
        ({"order": "causal"}, "order: official checkpoints have alternating blocks, got causal"),
        ({"head_dim": 32}, "head_dim: official checkpoints have heads of 64 channels, got 32"),
        ({"image_size": (4, 16)}, "image_size: official checkpoints have square images, got 4x16"),
        ({"channels": 4}, "channels: official checkpoints have 1 or 3, got 4"),
    ],
    ids=["bounded", "one direction", "heads", "not square", "four channels"],
)
def test_flows_that_the_official_code_cannot_hold(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_official(make(**fields))


# --- the noise in the name --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("afhq_model_8_768_8_8_0.07.pth", ("gaussian", 0.07)),
        (Path("runs") / "imagenet_model_2_768_8_8_0.05.pth", ("gaussian", 0.05)),
        ("/a/b_c/mnist_model_4_128_4_4_1.25.pth", ("gaussian", 1.25)),
        ("imagenet64_model_2_768_8_8_uniform.pth", ("uniform", 0.0)),
        ("imagenet64_model_2_768_8_8_0.00.pth", None),  # rounded away: unknown
        ("afhq_opt_8_768_8_8_0.07.pth", None),
        ("afhq_model_8_768_8_0.07.pth", None),
        ("afhq_model_8_768_8_8_0.07.pth.bak", None),
        ("afhq_model_8_768_8_8_nan.pth", None),
        ("a_model_8_768_8_8_0.07.pth/model.pth", None),
        ("model.pth", None),
        ("", None),
    ],
    ids=str,
)
def test_noise_from_name(path: str | Path, expected: tuple[str, float] | None) -> None:
    assert noise_from_name(path) == expected


def test_a_conversion_that_is_killed_leaves_nothing_that_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the two files: nothing is there, and it is converted again."""
    torch.save(to_official(make()), tmp_path / "model.pth")
    command = ["convert", str(tmp_path / "model.pth"), str(tmp_path / "out"), "--noise-std", "0.1"]

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tarflow.checkpoint.write_config", killed)
        assert main(command) == 130
    assert list((tmp_path / "out").iterdir()) == []
    assert main(command) == 0
    assert open_run(tmp_path / "out").sigma == 0.1
    weights = tmp_path / "out" / "model.safetensors"
    spoilt = bytearray(weights.read_bytes())
    spoilt[-1] ^= 1
    weights.write_bytes(spoilt)
    with pytest.raises(ValueError, match="damaged, its digest is not that"):
        TarFlow.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("transform", ["affine", "additive"])
def test_every_tensor_of_an_official_checkpoint_has_the_dtype_of_the_weights(
    dtype: torch.dtype, transform: str
) -> None:
    config = TarFlowConfig(
        8, channels=1, patch_size=2, width=64, layers=(1, 1), transform=transform, log_scale_bound="none"
    )  # type: ignore[arg-type]
    tensors = to_official(TarFlow(config).to(dtype))
    assert {name.rpartition(".")[2] for name in tensors} >= {"attn_mask", "var", "weight"}
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}

"""What is exported computes what the flow does, for any number of rows, and what cannot be is said in one line."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tarflow
from flow_cases import build, images, labels, tensors_of
from tarflow import exporting
from tarflow.cli import main

# Spline, start token, rotary, by number, additive, labels: whatever is written in C, or takes a way of its own.
CASES = [
    *("conditional", "spline_first", "start_token_rotary", "by_number", "spline_by_number", "random_orders", "mixed"),
    "given_several",
]
# The exporter to ONNX takes the program that the other one makes, and several times as long.
ONNX_CASES = ["conditional", "spline_first", "start_token_rotary", "spline_by_number", "mixed", "image_given_numbers"]


def narrow(name: str) -> tarflow.SequenceFlow:
    return build(name).float().eval()


def rows(flow: tarflow.SequenceFlow, count: int) -> tuple[Any, ...]:
    """x and, where there is a condition, y, with nulls among its values."""
    generator = torch.Generator().manual_seed(count)
    x, y = torch.randn(count, *flow.event.shape, generator=generator), labels(flow, count)
    parts = [part.float() if part.is_floating_point() else part for part in tensors_of(y)]
    return (x, tuple(parts) if isinstance(y, tuple) else parts[0]) if parts else (x,)


def check_pt2(name: str, what: str, tmp_path: Path) -> None:
    flow = narrow(name)
    (path,) = tarflow.export(flow, tmp_path / "flow.pt2", what)
    program = torch.export.load(path).module()
    for count in (1, 5):
        given = rows(flow, count)
        found, right = program(*given), getattr(flow, what)(*given)
        pairs = zip(found, right, strict=True) if what == "encode" else [(found, right)]
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in pairs)


def test_a_program_takes_any_number_of_rows(tmp_path: Path) -> None:
    check_pt2("conditional", "log_prob", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_programs_of_every_kind_of_flow(name: str, tmp_path: Path) -> None:
    check_pt2(name, "encode", tmp_path)


def decoded(steps: list[Path], flow: tarflow.SequenceFlow, z: Tensor, *y: Any) -> Tensor:
    """z decoded by the programs of all blocks, as docs/export.md does it."""
    x = z
    for number in reversed(range(len(steps))):
        step, block = torch.export.load(steps[number]).module(), flow.blocks[number]
        store = torch.zeros_like(block.new_cache(len(z)).store)
        for place in range(block.config.slots - 1):
            x = step(x, store, torch.tensor([place]), *y)
    return flow.event.from_tokens(x)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_steps_of_all_blocks_decode(name: str, tmp_path: Path) -> None:
    flow = narrow(name)
    steps = tarflow.export(flow, tmp_path / "steps", "step")
    assert [path.name for path in steps] == [f"block-{k}.pt2" for k in range(len(flow.blocks))]
    for count in (1, 5):
        x, *y = rows(flow, count)
        z, _ = flow.encode(x, *y)  # of any noise these wild flows make numbers of any size
        right = flow.decode(z, *y)
        assert torch.allclose(decoded(steps, flow, z, *y), right, rtol=1e-4, atol=1e-4)


@pytest.mark.extra
@pytest.mark.slow
@pytest.mark.parametrize(("name", "what"), [(name, "log_prob") for name in ONNX_CASES] + [("spline_first", "encode")])
def test_onnx_runtime_computes_the_same(name: str, what: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra [export]")
    pytest.importorskip("onnxscript", reason="needs the extra [export]")
    flow = narrow(name)
    (path,) = tarflow.export(flow, tmp_path / "flow.onnx", what)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == ["x", "y"][: len(rows(flow, 2))]
    for count in (1, 5):
        given = rows(flow, count)
        right = getattr(flow, what)(*given)
        found = session.run(None, {name: value.numpy() for name, value in zip("xy", given, strict=False)})
        for a, b in zip(found, right if what == "encode" else (right,), strict=True):
            assert torch.allclose(torch.from_numpy(a), b, rtol=1e-4, atol=1e-4)


@pytest.mark.extra
@pytest.mark.slow
def test_a_model_that_came_along_is_exported_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra [export]")
    pytest.importorskip("onnxscript", reason="needs the extra [export]")
    assert main(["export", "digits", "--out", str(tmp_path / "digits.onnx")]) == 0
    assert "digits.onnx: log_prob, " in capsys.readouterr().err
    session = onnxruntime.InferenceSession(tmp_path / "digits.onnx", providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    assert (facts["levels"], facts["noise"], json.loads(facts["class_names"])[3]) == ("17", "gaussian", "3")
    run = tarflow.open_run("digits")
    x, y = run.noisy(run.images().held_out.images[:20]), run.images().held_out.labels[:20]  # type: ignore[index]
    (found,) = session.run(None, {"x": x.numpy(), "y": y.numpy()})
    assert torch.allclose(torch.from_numpy(found), run.flow.log_prob(x, y), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_narrow_flow_is_exported_wide_with_what_is_known_of_its_run(tmp_path: Path) -> None:
    run = tarflow.open_run("digits-likelihood")
    with torch.inference_mode():
        (path,) = tarflow.export(run, tmp_path / "digits.pt2", "encode")
    with zipfile.ZipFile(path) as archive:
        (entry,) = (name for name in archive.namelist() if name.endswith("tarflow.json"))
        facts = json.loads(archive.read(entry))
    assert (facts["what"], facts["levels"], facts["event"]) == ("encode", 17, [1, 8, 8])
    x = run.noisy(run.images().held_out.images[:3])
    z, ladj = torch.export.load(path).module()(x)
    right = run.flow.encode(x)
    assert torch.allclose(z, right[0], atol=1e-4) and torch.allclose(ladj, right[1], atol=1e-3)
    assert not any(p.requires_grad is False for p in run.flow.parameters())  # the flow is as it was


# --- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "what", "message"),
    [
        ("flow.pth", "log_prob", "expected the name of a .pt2 or .onnx file"),
        ("flow", "encode", "expected the name of a .pt2 or .onnx file"),
        ("flow.onnx", "step", "expected a directory, for a file of each block"),
        ("flow.pt2", "sample", "what: expected one of log_prob, encode, step, got 'sample'"),
    ],
)
def test_a_wrong_name_is_said_before_any_work(name: str, what: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        tarflow.export(narrow("conditional"), tmp_path / name, what)
    assert list(tmp_path.iterdir()) == []


def test_without_its_packages_onnx_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    assert main(["export", "digits", "--out", str(tmp_path / "digits.onnx")]) == 2
    assert capsys.readouterr().err == ("tarflow: error: .onnx: onnx is not installed; pip install 'tarflow[export]'\n")
    assert list(tmp_path.iterdir()) == []


class Asking(nn.Module):
    """A layer that asks for a value, which nobody has while a graph is made."""

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        return x if float(x.sum()) > 0 else x + 1


def test_what_is_no_flow_of_ours_is_said_before_any_work(tmp_path: Path) -> None:
    flow = narrow("unconditional")
    flow.blocks[0].layers[0] = Asking()
    with pytest.raises(ValueError, match="step: expected the layers of a flow as they are"):
        tarflow.export(flow, tmp_path / "steps", "step")
    with pytest.raises(ValueError, match="model: expected a run or a flow, got Linear"):
        tarflow.export(nn.Linear(1, 1), tmp_path / "flow.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_the_exporter_refuses_is_one_line(tmp_path: Path) -> None:
    flow = narrow("unconditional")
    flow.blocks[0].layers[0] = Asking()
    with pytest.raises(ValueError, match=r"^log_prob: this flow cannot be exported as .pt2: [^\n]+$"):
        tarflow.export(flow, tmp_path / "flow.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_file_that_computes_something_else_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = exporting._pt2

    def wrong(*given: Any) -> Any:
        data, run = right(*given)
        return data, lambda *values: run(*values) + 0.5

    monkeypatch.setattr(exporting, "_pt2", wrong)
    with pytest.raises(ValueError, match="log_prob: the .pt2 computes log_prob otherwise, by 0"):
        tarflow.export(narrow("unconditional"), tmp_path / "flow.pt2")
    assert list(tmp_path.iterdir()) == []


# --- compiled by the user ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ["conditional", "spline_first"])
def test_a_flow_may_be_compiled_by_its_user(name: str) -> None:
    flow = build(name).float()
    compiled = torch.compile(flow)
    x, y = images(flow, 4).float(), labels(flow, 4)
    gradients = []
    for module in (flow, compiled):
        flow.zero_grad()
        z, ladj = module(x, y)
        (z.square().mean() - ladj.mean()).backward()
        gradients.append([z, ladj, *(p.grad for p in flow.parameters())])
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4)
    assert torch.allclose(compiled.log_prob(x, y), flow.log_prob(x, y))

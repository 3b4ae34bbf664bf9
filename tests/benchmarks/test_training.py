"""The training benchmark, on a tiny model beside a stand-in for the official code that is written from the formulas."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import training, training_sides
from benchmarks.training_sides import Job
from tarflow.config import TarFlowConfig

ROOT = Path(__file__).resolve().parents[2]

# The names of the official modules, and a forward pass of our own: explicit softmax under a triangle of -inf.
STAND_IN = """
import torch
from torch import nn


class Attention(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(w), nn.Linear(w, 3 * w), nn.Linear(w, w)

    def forward(self, h):
        b, n, w = h.shape
        q, k, v = (t.view(b, n, -1, 64).transpose(1, 2) for t in self.qkv(self.norm(h)).split(w, -1))
        hidden = torch.full((n, n), float("-inf")).triu(1)
        return self.proj(((q @ k.mT / 8 + hidden).softmax(-1) @ v).transpose(1, 2).reshape(b, n, w))


class MLP(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.norm, self.main = nn.LayerNorm(w), nn.Sequential(nn.Linear(w, 4 * w), nn.GELU(), nn.Linear(4 * w, w))

    def forward(self, h):
        return self.main(self.norm(h))


class Layer(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.attention, self.mlp = Attention(w), MLP(w)

    def forward(self, h):
        h = h + self.attention(h)
        return h + self.mlp(h)


class Block(nn.Module):
    def __init__(self, d, w, t, layers, classes, flipped):
        super().__init__()
        self.flipped = flipped
        self.proj_in, self.proj_out = nn.Linear(d, w), nn.Linear(w, 2 * d)
        self.pos_embed = nn.Parameter(torch.randn(t, w) * 1e-2)
        self.class_embed = nn.Parameter(torch.randn(classes, 1, w) * 1e-2)
        self.attn_blocks = nn.ModuleList(Layer(w) for _ in range(layers))

    def forward(self, x, y):
        table = torch.cat([self.class_embed, self.class_embed.mean(0, keepdim=True)])  # -1 is the last
        places = self.pos_embed
        if self.flipped:
            x, places = x.flip(1), places.flip(0)
        h = self.proj_in(x) + places + table[y]
        for layer in self.attn_blocks:
            h = layer(h)
        log_scale, shift = nn.functional.pad(self.proj_out(h)[:, :-1], (0, 0, 1, 0)).chunk(2, -1)
        z = (x - shift) * (-log_scale).exp() BREAK
        return (z.flip(1) if self.flipped else z), -log_scale.mean((1, 2))


class Model(nn.Module):
    def __init__(self, channels, size, patch, width, blocks, layers, affine, classes):
        super().__init__()
        assert affine
        self.patch, d, t = patch, channels * patch**2, (size // patch) ** 2
        self.blocks = nn.ModuleList(Block(d, width, t, layers, classes, k % 2 == 1) for k in range(blocks))
        self.register_buffer("var", torch.ones(t, d))

    def forward(self, x, y):
        x = nn.functional.unfold(x, self.patch, stride=self.patch).mT
        outputs, total = [], 0
        for block in self.blocks:
            x, ladj = block(x, y)
            outputs.append(x)
            total = total + ladj
        return x, outputs, total

    def get_loss(self, z, ladj):
        return z.square().mean() / 2 - ladj.mean()
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clone")
    (folder / "transformer_flow.py").write_text(STAND_IN.replace("BREAK", ""))
    return folder


TINY = ["--image-size", "8", "--width", "64", "--blocks", "2", "--layers", "1", "--classes", "3", "--batch", "4"]


def tiny_job(clone: Path) -> Job:
    model = TarFlowConfig(image_size=8, channels=3, patch_size=2, width=64, layers=(1, 1), num_classes=3)
    return Job(clone, model, 4, torch.device("cpu"), False)


def test_measures_both_sides_and_says_how_far_they_are_apart(
    clone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(training, "peak_memory_apart", lambda argv, name: asked.append(name) or 12.5)
    out = tmp_path / "result.json"
    rows = ["ours", "ours, as trained", "ours, 2 micro-batches", "ours, layers recomputed"]
    command = ["--official", str(clone), "--out", str(out), *TINY, "--rounds", "3", "--rows", *rows]
    training.main(command)
    result = json.loads(out.read_text())
    assert str(clone) not in out.read_text() and str(tmp_path) not in out.read_text()
    assert result["command"].startswith("python -m benchmarks.training --official DIR --image-size 8")
    assert result["disagreement"]["loss"] < 1e-5 and result["disagreement"]["gradient"] < 1e-5
    assert list(result["rows"]) == ["official", *rows] == asked
    assert result["rows"]["official"]["rounds"] == 12 and result["rows"]["ours"]["rounds"] == 3
    for row in result["rows"].values():
        assert 0 < row["min"] <= row["median"] and row["peak_memory_mb"] == 12.5
        assert row["share_of_matmul_rate"] == pytest.approx(
            result["gflop_per_step"] / row["min"] / result["matmul_gflops"]["best"]
        )
    assert result["data"]["seconds"] > 0
    table = capsys.readouterr().out
    assert all(name in table for name in result["rows"])


def test_time_runs_out_after_two_rounds(clone: Path) -> None:
    job = tiny_job(clone)
    pair = training.time_pair(job, training.build(job, "official"), "ours", 5, until=0.0)
    assert (len(pair["official"]), len(pair["ours"]), len(pair["rates"])) == (2, 2, 4)


def test_refuses_to_time_what_computes_something_else(tmp_path: Path) -> None:
    (tmp_path / "transformer_flow.py").write_text(STAND_IN.replace("BREAK", "* 1.001"))
    with pytest.raises(SystemExit, match="disagree"):
        training.measure(tiny_job(tmp_path), ["ours"], 1, 1.0, [])


def test_rows_differ_from_the_official_step_in_what_they_name() -> None:
    fields = training_sides.ROWS
    assert fields["ours"] == {}
    assert all(len(value) > 0 for name, value in fields.items() if name != "ours")


def test_counts_the_products_of_the_step(clone: Path) -> None:
    """By torch's own counter, which does not know the CPU's attention."""
    from torch.utils.flop_counter import FlopCounterMode

    job = tiny_job(clone)
    step = training_sides.build(job, "ours, nothing recomputed")
    with FlopCounterMode(display=False) as counter:
        step()
    count, width, layers = 15, 64, 2
    attention = sum(4 * width * seen for seen in range(1, count + 1)) * layers  # q·k and p·v of every query
    of_images = 2 * count * job.model.patch_dim * width  # the gradient that nobody needs
    assert job.flops == counter.get_total_flops() + job.batch * (3 * attention + of_images)


def test_memory_is_that_of_a_process_of_its_own(clone: Path) -> None:
    """Also the proof that it runs from source, with torch and nothing else to import."""
    banned = clone / "banned"
    banned.mkdir()
    for name in ("pydantic", "tyro", "lightning_fabric", "safetensors", "rich", "sklearn", "pyarrow", "PIL"):
        (banned / f"{name}.py").write_text("raise ImportError('not on this machine')")
    large = [*TINY, "--image-size", "32", "--batch", "32"]  # 16 widths of 256 tokens in two layers, 67 MB and the rest
    command = [sys.executable, "-m", "benchmarks.training", "--official", str(clone), *large, "--memory-of", "ours"]
    path = os.pathsep.join([str(banned), str(ROOT), str(ROOT / "src")])
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, check=True)
    assert 20 < float(done.stdout) < 500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--official", "nowhere"], "nowhere/transformer_flow.py: no such file"),
        (["--official", "nowhere", "--batch", "6"], "accumulate: expected a divisor of batch_size 6"),
        (["--official", "nowhere", "--width", "100"], "width: expected a multiple of head_dim 64"),
    ],
)
def test_what_cannot_be_run_is_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        training.main(arguments)

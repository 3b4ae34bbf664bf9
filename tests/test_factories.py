"""No tensor is made under the caller's defaults: `torch.set_default_dtype` and `set_default_device` are not ours."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "tarflow"

# What makes a tensor out of nothing, or out of Python's numbers. `zeros_like` and `new_zeros` follow their tensor;
# `from_numpy` and `frombuffer` follow their memory.
MADE = re.compile(
    "arange|as_tensor|asarray|empty|empty_strided|eye|full|linspace|logspace|normal|ones|rand|randint|randn|randperm"
    "|range|scalar_tensor|sparse_.*_tensor|tensor|complex|tri[lu]_indices|zeros|.*_window"
).fullmatch
MODULES = re.compile(
    "(Lazy)?(Linear|Bilinear|(Conv|ConvTranspose|BatchNorm|InstanceNorm)[123]d)|(Layer|RMS|Group)Norm|Embedding(Bag)?"
    "|MultiheadAttention|PReLU|LSTM|GRU|RNN|Transformer.*"
).fullmatch
OURS = {"TarFlow", "Block", "Layer", "Attention"}


def careless(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, what) of everything that is made under a default: without a device, or without a dtype."""
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("torch", "torch.nn"):
            names = [alias.name for alias in node.names]
            taken = [name for name in names if MADE(name) or MODULES(name) or name == "Generator"]
            yield from ((node.lineno, f"import of {name}") for name in taken)
        elif isinstance(node, ast.Attribute) and id(node) not in called and ast.unparse(node.value) == "torch":
            if MADE(node.attr):
                yield node.lineno, f"torch.{node.attr} under another name"
        elif isinstance(node, ast.Call):
            owner, _, name = ast.unparse(node.func).rpartition(".")
            given = {keyword.arg for keyword in node.keywords}
            everything = None in given  # `**options`, which carry both
            made = (owner == "torch" and MADE(name)) or (owner in ("nn", "torch.nn") and MODULES(name))
            ours = not owner and name in OURS and "device" not in given
            if not everything and (ours or (made and not {"device", "dtype"} <= given)):
                yield node.lineno, ast.unparse(node.func)
            if owner == "torch" and name == "Generator" and not node.args and "device" not in given:
                yield node.lineno, "torch.Generator"
            if owner == "torch" and name.startswith("set_default_"):
                yield node.lineno, f"torch.{name}"


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_whatever_is_made_says_where_and_of_which_numbers(path: Path) -> None:
    assert list(careless(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "line",
    [
        "torch.zeros(3)",
        "torch.zeros(3, dtype=torch.float32)",
        "torch.arange(3, device='cpu')",
        "torch.as_tensor(y, dtype=torch.int64)",
        "torch.Generator()",
        "draw = torch.rand if uniform else torch.randn",
        "from torch import zeros",
        "nn.Linear(3, 4)",
        "nn.Linear(3, 4, device='cpu')",
        "torch.nn.LayerNorm(3)",
        "TarFlow(config)",
        "torch.set_default_dtype(torch.float64)",
    ],
)
def test_a_planted_one_is_found(line: str) -> None:
    assert list(careless(ast.parse(f"import torch\n{line}\n")))


@pytest.mark.parametrize(
    "line",
    [
        "torch.zeros(3, device=x.device, dtype=x.dtype)",
        "torch.zeros(3, **made)",
        "torch.zeros_like(x)",
        "torch.Generator('cpu')",
        "isinstance(m, nn.Linear)",
        "nn.Linear(3, 4, device='cpu', dtype=torch.float32)",
        "TarFlow(config, device='meta')",
    ],
)
def test_what_is_made_with_care_passes(line: str) -> None:
    assert list(careless(ast.parse(f"import torch\n{line}\n"))) == []

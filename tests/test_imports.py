"""Imports point one way, the core needs nothing compiled but torch, and files stay small enough to read."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.installs import PACKAGES

SOURCE = Path(__file__).resolve().parent.parent / "src" / "tarflow"
BENCHMARKS = SOURCE.parent.parent / "benchmarks"

# A room may import itself and the rooms above it in this list. A new room is one line here, and one in docs/design.md.
ROOMS = [
    "fields",
    "measure",
    "architecture",
    "config",
    "unfinished",
    "jsontext",
    "locks",
    "storage",
    "digests",
    "tensor_files",
    "seeding",
    "devices",
    "ranks",
    "native",
    "hub",
    "pretrained",
    "inference",
    "model",
    "sampling",
    "exporting",
    "data",
    "pictures",
    "recipes",
    "checkpoint",
    "kept",
    "run_data",
    "drawing",
    "interop",
    "evaluation",
    "training",
    "runs",
    "sharing",
    "tables",
    "adapters",
    "planning",
    "report",
    "play",
    "cli",
]
# What a method may import from below, at the call: a convenience that users look for on the object, and that belongs to
# a later room. Nothing else in the module may depend on it. A line here has to be argued for in docs/design.md.
CONVENIENCES = {
    ("model.sequence", "tarflow.sampling.distribution.FlowDistribution"),
    ("model.sequence", "tarflow.sampling.sample.sample_and_log_prob"),
    ("model.sequence", "tarflow.sampling.inverse.InverseFlow"),
    ("model.sequence", "tarflow.sampling.observed.Observed"),
    ("model.sequence", "tarflow.training.fit.fit"),
    ("model.sequence", "tarflow.training.fitted.Fit"),
}
NOT_ROOMS = {"__init__", "__main__"}  # the front door, whose names are lazy, and `python -m tarflow`

# What must run from source wherever torch is: nothing else compiled when it is imported.
PORTABLE = [
    "native",
    "model",
    "sampling",
    "measure.py",
    "data/batches.py",
    "training/optimizer.py",
    "training/ema.py",
    "training/step.py",
    "training/layers.py",
    "planning",
]
# Kernels that only torch's builds for CUDA import, which bring what they are written in.
KERNELS = {"sampling.cuda.kernels": "triton"}
# Of benchmarks/: they read images, or measure or damage how they are read, or run the tests.
READ_IMAGES = {
    *("loader", "killing", "fuzz", "corpus", "bench", "ablations", "peers", "recipe_samples"),
    *("long_run", "planted", "play_fuzz", "precision", "ship", "timed_training"),
}
MAX_LINES = 320
# Modules that are made of an optional package. Whatever else needs one imports it where it is asked for.
OPTIONAL = {"play.page": "gradio", "adapters.sbi": "sbi", "adapters.pyro": "pyro"}


def modules(root: Path) -> dict[str, Path]:
    """Every module below `root`, by its dotted name within the package; a package goes by its `__init__`."""
    return {".".join(path.relative_to(root).with_suffix("").parts): path for path in sorted(root.rglob("*.py"))}


def imported(tree: ast.AST, *, anywhere: bool) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of every import: anywhere in the file, or only of those that run when it is imported."""
    pending = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import; write the room's full name"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from ((name.value, node.lineno) for name in node.args[:1] if isinstance(name, ast.Constant))
        if not anywhere and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue  # runs later, if ever
        if not anywhere and isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            pending.extend(node.orelse)
            continue
        pending.extend(ast.iter_child_nodes(node))


def wrong_imports(root: Path) -> list[str]:
    """Every import that points down the list of rooms."""
    found = []
    for module, path in modules(root).items():
        room = module.split(".")[0]
        if room in NOT_ROOMS:
            continue
        if room not in ROOMS:
            found.append(f"{module}: {room} is not in the list of rooms")
            continue
        tree = ast.parse(path.read_text())
        at_import = set(imported(tree, anywhere=False))
        for name, line in imported(tree, anywhere=True):
            if (module, name) in CONVENIENCES and (name, line) not in at_import:
                continue
            package, _, rest = name.partition(".")
            if package != "tarflow":
                continue
            target = rest.split(".")[0]
            if target == "__version__" or room == ROOMS[-1]:  # the last room may use the front door, as users do
                continue
            if target not in ROOMS:
                found.append(f"{module}, line {line}: {name} is no room; import it from where it lives")
            elif ROOMS.index(target) > ROOMS.index(room):
                found.append(f"{module}, line {line}: {room} may not import {target}, which comes after it")
    return found


def compiled_imports(root: Path, start: list[str]) -> list[str]:
    """Imports besides the standard library and torch that run when the modules in `start` are imported."""
    known = modules(root)
    pending = [name for entry in start for name in _named(known, entry)]
    seen: set[str] = set()
    found = []
    while pending:
        module = pending.pop()
        if module in seen:
            continue
        seen.add(module)
        parts = module.split(".")
        pending += [".".join([*parts[:i], "__init__"]) for i in range(len(parts))]  # importing it runs these first
        for name, line in imported(ast.parse(known[module].read_text()), anywhere=False):
            top, _, rest = name.partition(".")
            if top == "tarflow":
                pending.append(_module_of(known, rest))
            elif top != "torch" and top not in sys.stdlib_module_names and top != KERNELS.get(module):
                found.append(f"{module}, line {line}: {name}")
    return found


def _named(known: dict[str, Path], entry: str) -> list[str]:
    """The modules that a line of PORTABLE stands for."""
    name = entry.removesuffix(".py").replace("/", ".")
    names = [module for module in known if module == name or module.startswith(f"{name}.")]
    assert names, f"PORTABLE names {entry}, which is not there"
    return names


def _module_of(known: dict[str, Path], dotted: str) -> str:
    """The module of ours that `import tarflow.<dotted>` runs, or that has the last part of it as a name."""
    parts = dotted.split(".")
    while parts:
        for name in (".".join(parts), ".".join([*parts, "__init__"])):
            if name in known:
                return name
        parts.pop()
    return "__init__"


def test_imports_point_one_way() -> None:
    assert wrong_imports(SOURCE) == []


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("model/block.py", "from tarflow.sampling.guidance import Guidance", "model may not import sampling"),
        ("model/block.py", "def f():\n    import tarflow.training.trainer", "model may not import training"),
        (
            "model/sequence.py",
            "from tarflow.sampling.distribution import FlowDistribution",
            "model may not import sampling",
        ),
        ("model/flow.py", "def f():\n    from tarflow.sampling.sample import sample", "model may not import sampling"),
        ("sampling/sample.py", "from tarflow import checkpoint", "sampling may not import checkpoint"),
        ("sampling/sample.py", "from tarflow import TarFlow", "tarflow.TarFlow is no room"),
        ("config.py", "import importlib\nimportlib.import_module('tarflow.model.flow')", "config may not import model"),
        ("evaluation/scores.py", "import tarflow", "tarflow is no room"),
        ("attic/old.py", "", "attic is not in the list of rooms"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, file: str, line: str, message: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"import tarflow.config\n{line}\n")
    (violation,) = wrong_imports(tmp_path)
    assert message in violation


def circles(root: Path) -> list[str]:
    """Circles of modules, each of which imports the next one when it is imported."""
    known = modules(root)
    imports: dict[str, set[str]] = {}
    for module, path in known.items():
        named = [name for name, _ in imported(ast.parse(path.read_text()), anywhere=False)]
        inside = (name.removeprefix("tarflow.") for name in named if name.startswith("tarflow."))
        imports[module] = {_module_of(known, name) for name in inside} - {module, "__init__"}
    found, done = [], set()

    def walk(module: str, path: list[str]) -> None:
        if module in path:
            found.append(" -> ".join([*path[path.index(module) :], module]))
        elif module not in done:
            for target in sorted(imports[module]):
                walk(target, [*path, module])
            done.add(module)

    for module in imports:
        walk(module, [])
    return found


def test_no_modules_import_each_other() -> None:
    assert circles(SOURCE) == []


def test_a_planted_circle_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("from tarflow.b import f\n")
    (tmp_path / "b.py").write_text("import tarflow.c\n")
    (tmp_path / "c.py").write_text("def g():\n    from tarflow.a import f\n")
    assert circles(tmp_path) == []
    (tmp_path / "c.py").write_text("from tarflow import a\n")
    assert circles(tmp_path) == ["a -> b -> c -> a"]


def test_a_convenience_may_be_imported_at_the_call_and_is_one_that_exists(tmp_path: Path) -> None:
    for module, name in CONVENIENCES:
        path = tmp_path / (module.replace(".", "/") + ".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"def f():\n    from {name.rpartition('.')[0]} import {name.rpartition('.')[2]}\n")
        assert name in dict(imported(ast.parse(modules(SOURCE)[module].read_text()), anywhere=True)), "a stale line"
    assert wrong_imports(tmp_path) == []


def optional_imports(root: Path) -> list[str]:
    """Imports of optional packages, or of the modules that are made of them, that run when a module is imported."""
    found = []
    for module, path in modules(root).items():
        for name, line in imported(ast.parse(path.read_text()), anywhere=False):
            top = name.partition(".")[0]
            made_of_one = any(f"{name}.".startswith(f"tarflow.{made}.") for made in OPTIONAL)
            if made_of_one or (top in PACKAGES and OPTIONAL.get(module) != top):
                found.append(f"{module}, line {line}: {name}")
    return found


def test_no_extra_is_imported_without_being_asked_for(tmp_path: Path) -> None:
    assert optional_imports(SOURCE) == []
    (tmp_path / "hub.py").write_text("def f():\n    import huggingface_hub\n")
    assert optional_imports(tmp_path) == []
    (tmp_path / "hub.py").write_text("try:\n    from huggingface_hub import errors\nexcept ImportError:\n    pass\n")
    (tmp_path / "serve.py").write_text("from tarflow.play import page\n")
    assert optional_imports(tmp_path) == [
        "hub, line 2: huggingface_hub.errors",
        "serve, line 1: tarflow.play.page",
    ]


def test_the_core_needs_nothing_compiled_but_torch() -> None:
    assert compiled_imports(SOURCE, PORTABLE) == []


def test_a_planted_compiled_import_is_found(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "model" / "__init__.py").write_text("")
    (tmp_path / "model" / "flow.py").write_text("import torch.nn, math\nfrom tarflow import storage\n")
    (tmp_path / "storage.py").write_text("def f():\n    import pyarrow\n")
    assert compiled_imports(tmp_path, ["model"]) == []
    (tmp_path / "storage.py").write_text("try:\n    import numpy as np\nexcept ImportError:\n    pass\n")
    assert compiled_imports(tmp_path, ["model"]) == ["storage, line 2: numpy"]


def test_the_benchmarks_run_where_torch_and_the_source_are() -> None:
    needed = []
    for module, path in modules(BENCHMARKS).items():
        if module in READ_IMAGES or "hostile" in module:
            continue  # they read images, or measure or damage how they are read, which takes what reads them
        for name, line in imported(ast.parse(path.read_text()), anywhere=False):
            top, _, rest = name.partition(".")
            if top == "tarflow":
                needed.append(_module_of(modules(SOURCE), rest).replace(".", "/") + ".py")
            else:
                known = top in ("torch", "benchmarks") or top in sys.stdlib_module_names
                assert known, f"benchmarks.{module}, line {line}: {name}"
    assert needed
    assert compiled_imports(SOURCE, sorted(set(needed))) == []


def test_files_are_short_enough_to_read() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in modules(SOURCE).items()}
    lengths |= {f"benchmarks.{name}": len(path.read_text().splitlines()) for name, path in modules(BENCHMARKS).items()}
    assert lengths
    assert {name: count for name, count in lengths.items() if count > MAX_LINES} == {}


def test_no_file_is_a_drawer_for_everything() -> None:
    drawers = {"utils", "util", "helpers", "misc", "common"}
    found = [name for name in modules(SOURCE) if drawers & set(name.split("."))]
    assert found == []

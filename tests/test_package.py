"""What is installed: lazy imports, a quick command line, a wheel that carries everything, versions that are pinned."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from trove_classifiers import classifiers

import tarflow
from tarflow import pretrained
from tarflow.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent


def python(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run this Python in a process of its own; it must succeed."""
    command = [sys.executable, *arguments]
    ended = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended


def test_importing_tarflow_imports_nothing_heavy() -> None:
    code = "import sys, tarflow; print(tarflow.__version__); print(*sys.modules)"
    version, names = python("-c", code).stdout.splitlines()
    assert version == tarflow.__version__
    assert "tarflow" in names.split()
    assert not {"torch", "numpy", "sklearn", "tyro"} & set(names.split())


@pytest.mark.parametrize("name", tarflow.__all__)
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(tarflow, name)
    assert name in dir(tarflow)
    home = getattr(value, "__module__", None)
    if home is not None:  # a class or a function says where it lives; a constant cannot
        assert getattr(importlib.import_module(home), name) is value


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'tarflow' has no attribute 'TarFloww'"):
        _ = tarflow.TarFloww


def machine() -> float:
    """How many times as long as where the limits were set this machine takes to import what comes with Python."""
    code = (
        "import asyncio, unittest.mock, email.message, http.client, xml.dom.minidom, logging.config, pydoc, resource;"
        "usage = resource.getrusage(resource.RUSAGE_SELF); print(usage.ru_utime + usage.ru_stime)"
    )
    return min(float(python("-c", code).stdout) for _ in range(3)) / 0.1


CALLS = [["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)]


@pytest.mark.parametrize("arguments", CALLS, ids=" ".join)
def test_the_command_line_answers_quickly(arguments: list[str]) -> None:
    code = (
        "import atexit, resource, sys\n"
        "def report():\n"
        "    usage = resource.getrusage(resource.RUSAGE_SELF)\n"
        "    print(usage.ru_utime + usage.ru_stime, 'torch' in sys.modules)\n"
        "atexit.register(report)\n"
        "from tarflow.cli import main\n"
        "raise SystemExit(main())"
    )
    most = 0.3 if len(arguments) == 1 else 1.0  # the options of a command are made by a library, which takes its time
    seconds: list[float] = []
    for _ in range(5):  # CPU time, but other processes still cost us some, in the caches
        *text, last = python("-c", code, *arguments).stdout.splitlines()
        assert "tarflow" in "".join(text)
        taken, has_torch = last.split()
        assert has_torch == "False"
        seconds.append(float(taken))
        if seconds[-1] < most or seconds[-1] < most * machine():
            return
    pytest.fail(f"tarflow {' '.join(arguments)} took {seconds} s of CPU time, never less than {most}")


def check_metadata(wheel: Path) -> None:
    """What an index asks of a wheel before it takes it; and that it brings its types, and the licence of all of it."""
    with zipfile.ZipFile(wheel) as archive:
        inside = f"tarflow-{tarflow.__version__}.dist-info"
        assert {"tarflow/py.typed", f"{inside}/licenses/LICENSE"} <= set(archive.namelist())
        text = archive.read(f"{inside}/METADATA")
    found = Metadata.from_email(text, validate=True)  # raises what is wrong
    assert (found.name, str(found.version), found.license_expression) == ("tarflow", tarflow.__version__, "MIT")
    assert found.description_content_type == "text/markdown" and found.description.startswith("# tarflow")
    assert found.classifiers and set(found.classifiers) <= classifiers
    assert all(version in (found.requires_python or []) for version in ("3.11", "3.12", "3.13"))
    assert "Typing :: Typed" in found.classifiers
    assert not any(requirement.url for requirement in found.requires_dist or [])


def test_the_wheel_carries_recipes_and_models_and_runs(tmp_path: Path) -> None:
    python("-m", "build", "--wheel", "--sdist", "--no-isolation", "--outdir", str(tmp_path), str(ROOT))
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"tarflow-{tarflow.__version__}-py3-none-any.whl"

    target = tmp_path / "site"
    install = ["-m", "pip", "install", "--no-index", "--no-deps", "--quiet", "--target", str(target), str(wheel)]
    python(*install)
    # PYTHONPATH goes before the checkout that this environment has installed.
    where = python("-c", "import tarflow; print(tarflow.__file__)", cwd=tmp_path, PYTHONPATH=str(target)).stdout
    assert Path(where.strip()).is_relative_to(target)
    printed = python(str(target / "bin" / "tarflow"), "--version", cwd=tmp_path, PYTHONPATH=str(target)).stdout
    assert printed == f"tarflow {tarflow.__version__}\n"
    code = "from tarflow import recipes; print(*recipes.names()); [recipes.load(name) for name in recipes.names()]"
    names = python("-c", code, cwd=tmp_path, PYTHONPATH=str(target)).stdout.split()
    assert names == sorted(path.stem for path in (ROOT / "src/tarflow/recipes").glob("*.toml"))

    printed = python(str(target / "bin" / "tarflow"), "models", cwd=tmp_path, PYTHONPATH=str(target)).stdout
    models = pretrained.names()
    assert [line.split()[0] for line in printed.splitlines()[1:]] == models and models

    packed = set(zipfile.ZipFile(wheel).namelist())
    source = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*") if path.is_file()}
    expected = {name for name in source if "__pycache__" not in name}
    assert {name for name in packed if ".dist-info/" not in name} == expected, "the package and nothing else"
    check_metadata(wheel)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        beside = ("LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "constraints.txt", "PKG-INFO")
        assert {f"tarflow-{tarflow.__version__}/{name}" for name in beside} <= set(archive.getnames())
        assert {f"tarflow-{tarflow.__version__}/src/{name}" for name in expected} <= set(archive.getnames())


def test_every_requirement_is_pinned_to_a_version_it_allows() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    required = [Requirement(text) for text in [*project["dependencies"], *(text for extra in extras for text in extra)]]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = dict(re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+)", line).groups() for line in lines)  # type: ignore[union-attr]
    assert next(iter(pins)) == "torch"
    for requirement in required:
        if requirement.name == "tarflow":  # `all`
            assert requirement.extras == set(project["optional-dependencies"]) - {"all", "dev", "docs"}
            continue
        version = pins.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(version), f"{requirement} does not allow the pinned {version}"


def test_opening_a_model_does_not_import_the_compiler(tmp_path: Path) -> None:
    """It takes seconds, as does the algebra that it comes with, and one random number on the meta device needs them."""
    code = (
        "import sys, tarflow;"
        "more = dict(num_classes=3, start_token=True, transforms=('spline-by-number',));"
        "config = tarflow.TarFlowConfig(8, channels=1, patch_size=2, width=64, layers=(1, 1), **more);"
        f"tarflow.TarFlow(config).save_pretrained({str(tmp_path)!r}); run = tarflow.open_run({str(tmp_path)!r});"
        "run.sample('1'); print('torch._dynamo' in sys.modules, 'sympy' in sys.modules)"
    )
    assert python("-c", code, OMP_NUM_THREADS="1").stdout.split() == ["False", "False"]

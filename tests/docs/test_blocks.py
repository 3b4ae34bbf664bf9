"""Every shell and Python block of the README and of docs/ runs, page by page, on small stand-ins.

A page is run in the order in which it is read, in an empty directory that holds what the page takes for granted
(`STAND_INS`): a folder of photographs, an official checkpoint. Its Python blocks share one namespace. Its shell blocks
are handed to the command line in this process, made shorter by `SHORTER`. A block that cannot run here has a comment
`<!-- not run: reason -->` before it, and `NOT_RUN` counts them.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tarflow
from photographs import make_photographs, photograph
from tarflow import recipes
from tarflow.cli import COMMANDS, main
from tarflow.evaluation.quality.extractors import small_network
from tarflow.interop import to_official

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
PAGES = {name: path for name, path in PAGES.items() if "_build" not in name}
# Pages whose blocks start PyTorch's compiler, and pages that fit many flows or draw much.
SLOW_PAGES = {
    *("docs/export.md", "docs/domains.md", "docs/tables.md"),
    *("docs/inference.md", "docs/tutorials/likelihoods.md", "docs/tutorials/guidance.md"),
}

# Options added to a command, in place of its own where it has them: the same code, in seconds.
SMALL_MODEL = "--image-size 32 --width 64 --layers 1 1 --patch-size 8"
FEW_STEPS = "--steps 3 --evaluate-every 3 --evaluate-images 8 --sample-every 0 --save-every 3 --batch-size 8"
SHORTER = [  # (what the command matches, options)
    (r"train .*--recipe digits", f"{FEW_STEPS} --layers 1 1"),
    (r"train .*--resume", ""),
    (r"train .*--init", FEW_STEPS),
    (r"train .*--events", "--steps 20 --layers 1 1 --width 16 --head-dim 8"),
    (r"train .*--conditions-from", f"{FEW_STEPS} --width 64 --layers 1 1 --patch-size 8"),
    (r"train .*--data prepared/photos", f"{FEW_STEPS} {SMALL_MODEL}"),
    (r"train .*--data prepared", f"{FEW_STEPS} --width 64 --layers 1 1 --patch-size 8"),  # the size is the prepared one
    (r"train .*--data", f"{FEW_STEPS} {SMALL_MODEL}"),
    # Below the size at which the Gaussian that `evaluate` fits takes half a minute.
    (r"prepare photos", "--image-size 32"),
    (r"(score|sample) runs/stars", ""),
    (r"sample ", "-n 4"),
    (r"score ", "--draws 1"),
    (r"quality ", "-n 12"),
    (r"sweep ", "-n 12 --guidance 0 1"),
    (r"report ", "--images 2 --limit 4"),
    (r"evaluate ", "--draws 2 --limit 16"),
    (r"denoise .* digits ", "--limit 4"),
    (r"inpaint ", "-n 2 --warmup 4"),
]

NOT_RUN = {
    "README.md": 2,
    "docs/data.md": 1,
    "docs/releasing.md": 2,
    "docs/reliability.md": 1,
    "docs/devices.md": 2,
    "docs/export.md": 2,
    "docs/hub.md": 3,
    "docs/inference.md": 1,
    "docs/play.md": 1,
    "docs/quick-start.md": 3,
    "docs/official-checkpoints.md": 1,
    "docs/quality.md": 1,
    "docs/recipes.md": 12,
    "docs/science.md": 8,
    "docs/results.md": 3,
    "docs/speed.md": 0,
    "docs/tables.md": 2,
}


@dataclasses.dataclass
class Block:
    """A block of a page: its language, its text, the line it starts at, and why it is not run, or None."""

    language: str
    text: str
    line: int
    not_run: str | None


def blocks(text: str) -> list[Block]:
    """The fenced blocks, and the indented ones that are commands."""
    found: list[Block] = []
    lines = text.splitlines()
    reason, k = None, 0
    while k < len(lines):
        line = lines[k]
        if fence := re.fullmatch(r"```([\w{}-]*)", line):
            end = lines.index("```", k + 1)
            found.append(Block(fence[1], "\n".join(lines[k + 1 : end]), k + 1, reason))
            k, reason = end, None
        elif re.match(r"    (tarflow|make|pip|git|python|bash|TARFLOW_\w+=) ?", line) and (k == 0 or not lines[k - 1]):
            end = next((i for i in range(k, len(lines)) if not lines[i].startswith("    ")), len(lines))
            found.append(Block("shell", "\n".join(text[4:] for text in lines[k:end]), k + 1, reason))
            k, reason = end, None
        elif comment := re.fullmatch(r"<!-- not run: (.+) -->", line):
            reason = comment[1]
        elif line:
            reason = None
        k += 1
    return found


# --- what the pages take for granted --------------------------------------------------------------------------------


def photographs(place: Path) -> None:
    make_photographs(place / "photos", 40)


def noisy_digits(place: Path) -> None:
    (place / "noisy").mkdir()
    for k in range(3):
        pixels = torch.randint(0, 256, (8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(k))
        Image.fromarray(pixels.numpy()).save(place / "noisy" / f"{k}.png")


def bars(place: Path) -> None:
    (place / "bars").mkdir()
    rows = []
    for k in range(20):
        pixels = np.zeros((16, 16), np.uint8)
        pixels[k % 16] = 255
        Image.fromarray(pixels).save(place / "bars" / f"{k}.png")
        rows.append(f"{k}.png,{10 * (k % 16)},{0.5 + k / 40}")
    for name, header, some in (("numbers", "file,", rows), ("asked", "", ["10,0.6", "90,0.9"])):
        (place / f"{name}.csv").write_text("\n".join([f"{header}angle,brightness", *some]))


def region(place: Path) -> None:
    pixels = np.zeros((8, 8), dtype=np.uint8)
    pixels[2:6, 2:6] = 255
    Image.fromarray(pixels).save(place / "region.png")


def official_checkpoint(place: Path) -> None:
    config = tarflow.TarFlowConfig(
        image_size=16, patch_size=8, width=64, layers=(1, 1), num_classes=3, log_scale_bound=None
    )
    torch.save(to_official(tarflow.TarFlow(config)), place / "afhq_model_8_768_8_8_0.07.pth")


def run_of_photographs(place: Path) -> None:
    photographs(place)
    run_command("tarflow train --data photos/ --image-size 32 --out runs/photos")


def downsampled_imagenet(place: Path) -> None:
    for split in ("train_64x64", "valid_64x64"):
        (place / "imagenet64" / split).mkdir(parents=True)
        for k in range(12):
            photograph(k, (64, 64)).save(place / "imagenet64" / split / f"{k:07}.png")


def scans(place: Path) -> None:
    (place / "scans").mkdir()
    for k in range(12):
        Image.fromarray(np.random.default_rng(k).integers(0, 4096, (32, 32), np.uint16)).save(place / f"scans/{k}.png")


def stars(place: Path) -> None:
    generator = np.random.default_rng(0)
    mass, age = generator.lognormal(size=200), generator.uniform(1, 10, 200)
    lines = [f"{m},{m**0.8},{a},{'dwarf' if m < 1 else 'giant'}" for m, a in zip(mass, age, strict=True)]
    (place / "stars.csv").write_text("\n".join(["mass,radius,age,kind", *lines]))
    (place / "observed.csv").write_text("age,kind\n4.5,dwarf\n2,giant\n")


STAND_INS: dict[str, list[Callable[[Path], None]]] = {
    "docs/conditions.md": [bars],
    "README.md": [photographs, noisy_digits, region, official_checkpoint],
    "docs/inference.md": [noisy_digits, region],
    "docs/data.md": [photographs, downsampled_imagenet, scans],
    "docs/models.md": [noisy_digits],
    "docs/official-checkpoints.md": [official_checkpoint],
    "docs/tables.md": [stars],
    "docs/tutorials/own-images.md": [photographs],
    "docs/tutorials/guidance.md": [run_of_photographs, noisy_digits],
    "docs/tutorials/likelihoods.md": [photographs],
}


# --- running them ---------------------------------------------------------------------------------------------------


def shortened(words: list[str]) -> list[str]:
    """The words of a command with the options of the first line of `SHORTER` that it matches."""
    for pattern, options in SHORTER:
        if re.match(pattern, " ".join(words) + " "):
            extra = shlex.split(options)
            given = {word for word in extra if re.fullmatch(r"--?[a-z-]+", word)}
            kept, skipping = [], False
            for word in words:
                is_option = re.fullmatch(r"--?[a-z][a-z-]*", word) is not None
                skipping = word in given or (skipping and not is_option)
                kept += [] if skipping else [word]
            return kept + extra
    return words


def run_command(line: str) -> None:
    command, _, target = line.partition(" > ")
    words = shlex.split(command, comments=True)
    assert words[0] == "tarflow", f"only tarflow's own commands can be run: {line}"
    with contextlib.ExitStack() as stack:
        if target:
            file = stack.enter_context(open(shlex.split(target, comments=True)[0], "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(file))
        assert main(shortened(words[1:])) == 0, line


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW_PAGES else name for name in PAGES]
)
def test_the_blocks_of_a_page_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [block for block in blocks(PAGES[name].read_text()) if block.language in ("shell", "python")]
    if not found:
        return
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TARFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(small_network, "STEPS", 5)
    for make in STAND_INS.get(name, []):
        make(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for block in found:
        if block.not_run is not None:
            continue
        if block.language == "python":
            exec(compile("\n" * block.line + block.text, PAGES[name], "exec"), names)
        else:
            for line in block.text.replace("\\\n", " ").splitlines():
                if line.strip() and not line.startswith("#"):
                    run_command(line)


@pytest.mark.parametrize("path", sorted((ROOT / "docs").rglob("notebooks/*.ipynb")), ids=lambda path: path.stem)
def test_the_cells_of_a_notebook_run_and_show_what_it_holds(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each cell in turn, without a kernel: the value of its last line is what a notebook would display."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TARFLOW_CACHE", str(tmp_path / "cache"))
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"cell {number}", "exec"), names)
        value = last and eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
        shown = {"image/png"} if hasattr(value, "_repr_png_") else set()
        assert not shown or value._repr_png_().startswith(b"\x89PNG")
        held = {kind for output in cell["outputs"] for kind in output.get("data", {}) if kind != "text/plain"}
        printed = any(output["output_type"] == "stream" for output in cell["outputs"])
        assert (shown, bool(capsys.readouterr().out)) == (held, printed), f"cell {number} holds something else"
    words = re.sub(r'"image/png": "[^"]*"', "", path.read_text())
    assert len(cells) >= 5 and not re.search(r"(?<![\w./])/(\w+/)+", words), "a path of a machine"


def test_blocks_that_are_not_run_say_why_and_are_few() -> None:
    counted = {name: sum(b.not_run is not None for b in blocks(path.read_text())) for name, path in PAGES.items()}
    assert counted == {name: NOT_RUN.get(name, 0) for name in PAGES}


@pytest.mark.parametrize("name", PAGES)
def test_no_command_stands_outside_of_the_blocks(name: str) -> None:
    text = PAGES[name].read_text()
    shown = [
        line.strip() for line in text.splitlines() if re.match(rf"( {{4}})?tarflow +({'|'.join(COMMANDS)}) ", line)
    ]
    found = [line.strip() for b in blocks(text) if b.language == "shell" for line in b.text.splitlines()]
    # A line of prose may begin with the name, but has no path or option behind it.
    assert [line for line in shown if line not in found and re.search(r" --\w| \S+/", line)] == []


def test_fences_have_a_language_that_is_known() -> None:
    known = {"python", "shell", "text", "toml", "json", "{toctree}", "{eval-rst}"}
    for name, path in PAGES.items():
        assert {b.language for b in blocks(path.read_text())} <= known, name


# --- what they show -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_links_and_pictures_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", PAGES[name].read_text()):
        if not target.startswith(("https://", "http://")):
            assert (PAGES[name].parent / target).exists(), target


def test_the_readme_names_every_recipe_and_every_command() -> None:
    text = (ROOT / "README.md").read_text()
    assert [name for name in recipes.names() if f"`{name}`" not in text] == []
    assert [name for name in COMMANDS if f"tarflow {name}" not in text and f"make {name}" not in text] == []

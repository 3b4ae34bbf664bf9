"""`tarflow models`, and the name of a model in place of RUN: no command writes into the package."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from small_runs import write_images
from tarflow import pretrained
from tarflow.checkpoint import read_config, weights_digest
from tarflow.cli import demo, main
from tarflow.data.readers import idx

pytestmark = pytest.mark.usefixtures("quick_network")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_network: None) -> Path:
    """A copy of the models that come along, an empty cache, and an empty directory to work in."""
    root = tmp_path / "package" / "pretrained"
    shutil.copytree(pretrained.ROOT, root, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(pretrained, "ROOT", root)
    monkeypatch.setenv("TARFLOW_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_images(Path("some"), 3, size=(8, 8))
    return root


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_table_says_what_the_cards_say(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split()[:4] == ["name", "draws", "images", "classes"]
    assert [row.split()[0] for row in rows] == pretrained.names()
    card = pretrained.read_card(package / "digits" / "README.md")
    (digits,) = (row for row in rows if row.startswith("digits "))
    size = sum(file.stat().st_size for file in (package / "digits").iterdir()) / 1e6
    figure = f"{card['held_out']['value']:.3f} ± {card['held_out']['standard_error']:.3f} "
    for cell in (card["draws"], "1x8x8", f"{card['parameters']:,}", f"{size:.2f}", figure, "MIT, of data CC BY 4.0"):
        assert f"  {cell}" in digits


def test_json_has_all_of_it(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    models = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["models"]}
    assert list(models) == pretrained.names()
    for name, entry in models.items():
        assert entry.items() >= pretrained.read_card(package / name / "README.md").items()
    assert models["digits"]["image_shape"] == [1, 8, 8] and models["digits"]["classes"] == 10


def test_a_card_that_is_damaged_is_named(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (package / "digits" / "README.md").write_text("# digits\n")
    assert main(["models"]) == 2
    assert "digits/README.md: expected lines" in capsys.readouterr().err


def test_the_models_are_listed_without_torch() -> None:
    code = "import sys; from tarflow.cli import main; main(['models']); print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "False" and "digits" in ended.stdout


COMMANDS = {  # with the name of a model, and what is kept of it in the cache
    "sample digits -n 20 --out drawn.png": {"solvers.json"},
    "sample digits -n 2 --solver sequential --out drawn": set(),
    "evaluate digits --limit 12 --draws 1 --float64 0 --no-classify": set(),
    "evaluate digits-likelihood --draws 1 --float64 0 --against inverted": {"detector.json"},
    "score digits-likelihood some --draws 1 --out scores.csv --maps maps": set(),
    "denoise digits digits --add-noise --limit 4 --out clean.png": set(),
    "quality digits -n 12 --extractor classifier": {"solvers.json", "quality.json"},
    "sweep digits -n 12 --extractor classifier --guidance 0 1": {"solvers.json", "sampling.json", "sweep"},
    "sweep digits -n 12 --extractor classifier --guidance 0 --no-save --out swept": {"solvers.json"},
    "report digits --images 2 --limit 4 --out report": set(),
}


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_takes_the_name_and_writes_nothing_into_the_package(
    line: str, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(package)
    assert main(line.split()) == 0, capsys.readouterr().err
    assert contents(package) == before
    own = (tmp_path / "cache" / "models").glob(f"{line.split()[1]}-{weights_digest(package / line.split()[1])[:8]}/*")
    assert {path.name for path in own} == COMMANDS[line]


def test_what_was_kept_is_used_by_the_next_command(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "digits", "-n", "12", "--extractor", "classifier", "--guidance", "3"]) == 0
    said = capsys.readouterr().err
    own = f"cache/models/digits-{weights_digest(package / 'digits')[:8]}"
    assert f"{own}/sampling.json" in said and f"{own}/sweep" in said
    assert main(["sample", "digits", "-n", "2", "--out", "drawn.png"]) == 0
    assert f"{own}/sampling.json: guidance 3" in capsys.readouterr().err
    assert main(["report", "digits", "--images", "2", "--limit", "4", "--out", "report"]) == 0
    assert "“tarflow sweep RUN”" not in Path("report/report.html").read_text(), "which it says where there was none"


def test_a_report_needs_a_place_outside_of_the_package(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(package)
    for run in ("digits", str(package / "digits")):
        assert main(["report", run]) == 2
        assert f"{run}: comes with the package" in capsys.readouterr().err.splitlines()[-1]
    assert contents(package) == before


def test_training_starts_from_one(package: Path, tmp_path: Path) -> None:
    line = (
        "train --recipe digits --init digits --steps 1 --batch-size 4 --evaluate-images 4 --sample-every 0 --out tuned"
    )
    assert main(line.split()) == 0
    training = read_config("tuned").training
    digest = weights_digest(package / "digits")
    assert training is not None and training.init_from == f"digits ({digest[:16]})"


def test_data_that_are_not_at_hand_are_one_line(
    package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of Fashion-MNIST, which a Debian package brings."""
    monkeypatch.setattr(idx, "FASHION_MNIST", Path("nowhere"))
    config = package / "digits-likelihood" / "config.json"
    config.write_text(config.read_text().replace('"source": "digits"', '"source": "fashion-mnist"'))
    assert main(["evaluate", "digits-likelihood"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "fashion-mnist: nowhere does not exist; install Debian's package dataset-fashion-mnist" in line
    assert line.endswith("name their new place by --data")
    assert main(["sample", "digits-likelihood", "-n", "2", "--solver", "sequential", "--out", "drawn.png"]) == 0


def test_a_run_that_is_nowhere_is_told_the_names(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "digit", "--out", "drawn.png"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "digit: no such directory" in message and "perhaps digits?" in message


def test_the_demo_draws_them(package: Path) -> None:
    assert demo._came_along(demo.Demo(out=Path("demo")), torch.device("cpu")) == pretrained.names()
    assert sorted(path.stem for path in Path("demo/came-along").iterdir()) == pretrained.names()
    with Image.open("demo/came-along/digits.png") as sheet:
        assert sheet.width > sheet.height, "a column a class, and half as many rows"

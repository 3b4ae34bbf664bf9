"""`tarflow score`: every line is `log_prob` of that image alone, in order, with its place; and memory stays flat."""

from __future__ import annotations

import contextlib
import csv
import errno
import itertools
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
import torch
from PIL import Image

import tarflow
from benchmarks.memory import peak, reset_peak
from flow_cases import BASE, build, randomise
from tarflow import checkpoint, digests
from tarflow.checkpoint import write_config
from tarflow.cli import main
from tarflow.config import DataConfig, RunConfig, TrainingConfig
from tarflow.data.load import load
from tarflow.evaluation.likelihood import held_out, scores, table
from tarflow.evaluation.likelihood.anomalies import DETECTOR_FILE, code_bits
from tarflow.evaluation.likelihood.held_out import HELD_OUT_FILE
from tarflow.measure import Measure
from tarflow.run_data import open_held_out
from tarflow.seeding import seeded_generator


def write_run(root: Path, name: str, case: str, source: Path | str, training: TrainingConfig, seed: int = 0) -> Path:
    flow = build(case, torch.float32, seed)
    flow.save_pretrained(root / name)
    classes = tuple("abc"[: flow.config.num_classes])
    write_config(root / name, RunConfig(flow.config, DataConfig(source=str(source), class_names=classes), training))
    return root / name


def write_images(folder: Path, count: int, size: tuple[int, int] = (4, 4)) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(count)
    for i in range(count):
        Image.fromarray(generator.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Images to train on and to score, and runs of each kind."""
    train = write_images(tmp_path / "train", 40)
    write_images(tmp_path / "photos", 7)
    gaussian = TrainingConfig(steps=1, noise_std=0.1)
    uniform = TrainingConfig(steps=1, noise="uniform")
    write_run(tmp_path, "run", "conditional", train, gaussian)
    write_run(tmp_path, "uniform", "unconditional", train, uniform)
    (tmp_path / "new").mkdir()
    return tmp_path


def score(place: Path, run: str, path: str | Path, *options: str, code: int = 0) -> list[dict[str, str]]:
    out = place / "new" / "scores.csv"
    assert main(["score", str(place / run), str(path), "--out", str(out), "--device", "cpu", *options]) == code
    return read(out) if code == 0 else []


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def alone(place: Path, run: str, file: Path, index: int, *, draws: int = 4, seed: int = 0) -> list[Any]:
    """The noisy draws of one image, each (1, 1, 4, 4), and the flow, by hand."""
    opened = checkpoint.open_run(place / run)
    training = opened.config.training
    assert training is not None
    with Image.open(file) as image:
        pixels = torch.from_numpy(np.array(image))[None, None]
    generators = [seeded_generator(seed, "evaluation", draw, index) for draw in range(draws)]
    return [
        opened.flow,
        [Measure(256, training.noise, training.noise_std).noisy(pixels, [generator]) for generator in generators],
    ]


def test_each_line_is_log_prob_of_that_image_alone(place: Path) -> None:
    rows = score(place, "uniform", place / "photos", "--batch-size", "3", "--seed", "5", "--draws", "2")
    assert list(rows[0]) == [
        *("file", "log_likelihood", "bits_per_dim", "rank", "percentile", "complexity", "complexity_percentile"),
        *("typicality", "typicality_percentile", "ranked_by", "labels", "error"),
    ]
    assert [row["file"] for row in rows] == [f"{i:02}.png" for i in range(7)]
    for index, row in enumerate(rows):
        flow, draws = alone(place, "uniform", place / "photos" / row["file"], index, draws=2, seed=5)
        with torch.no_grad():
            expected = sum(float(flow.log_prob(x)) for x in draws) / 2
        assert float(row["log_likelihood"]) == pytest.approx(expected, rel=1e-5)
        bits = -expected / (16 * math.log(2)) + 7
        assert float(row["bits_per_dim"]) == pytest.approx(bits, rel=1e-5)
        assert row["labels"] == "none" and row["error"] == ""


@pytest.mark.parametrize("option", [None, "b", "1", "null"])
def test_the_policy_is_the_one_that_the_line_names(place: Path, option: str | None) -> None:
    rows = score(place, "run", place / "photos", *(["--class", option] if option else []))
    assert "noisy_bits_per_dim" in rows[0] and "bits_per_dim" not in rows[0]
    for index, row in enumerate(rows):
        flow, draws = alone(place, "run", place / "photos" / row["file"], index)
        with torch.no_grad():
            if option is None:
                by_class = torch.stack(
                    [torch.cat([flow.log_prob(x, torch.tensor([k])) for x in draws]) for k in range(3)]
                )
                expected = (by_class.logsumexp(dim=0) - math.log(3)).mean()
            else:
                label = {"b": 1, "1": 1, "null": tarflow.NULL_CLASS}[option]
                expected = torch.cat([flow.log_prob(x, torch.tensor([label])) for x in draws]).mean()
        assert float(row["log_likelihood"]) == pytest.approx(float(expected), rel=1e-5)
        assert row["labels"] == {None: "marginal", "null": "null"}.get(option, "class=b")


def test_ranks_and_percentiles_by_hand(place: Path) -> None:
    rows = score(place, "uniform", place / "photos")
    values = [float(row["log_likelihood"]) for row in rows]
    assert [int(row["rank"]) for row in rows] == [1 + sum(other > value for other in values) for value in values]
    reference = json.loads((place / "uniform" / HELD_OUT_FILE).read_text())["scored"][0]["log_prob"]
    assert len(reference) == 4, "a tenth of 40"
    for row, value in zip(rows, values, strict=True):
        assert float(row["percentile"]) == pytest.approx(100 * sum(r < value for r in reference) / 4, abs=1e-3)


def test_the_reference_is_the_score_of_the_held_out_images(place: Path) -> None:
    score(place, "run", place / "photos", "--draws", "2", "--seed", "3")
    reference = json.loads((place / "run" / HELD_OUT_FILE).read_text())["scored"][0]["log_prob"]
    held = load(str(place / "train")).held_out
    flow = checkpoint.open_run(place / "run").flow
    for index, (image, expected) in enumerate(zip(held.images, reference, strict=True)):
        generators = [seeded_generator(3, "evaluation", draw, index) for draw in range(2)]
        x = Measure(256, "gaussian", 0.1).noisy(torch.stack([image] * 2), generators)
        got = tarflow_marginal(flow, x).mean()
        assert float(got) == pytest.approx(expected, rel=1e-5)


def tarflow_marginal(flow: tarflow.TarFlow, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        by_class = torch.stack([flow.log_prob(x, torch.full((len(x),), k)) for k in range(3)])
    return by_class.logsumexp(dim=0) - math.log(3)


def test_the_reference_is_kept_and_computed_again_when_it_is_stale(place: Path, monkeypatch: Any) -> None:
    calls = []

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(args)
        return open_held_out(*args, **options)

    monkeypatch.setattr(held_out, "open_held_out", counted)
    first = score(place, "run", place / "photos")
    kept = (place / "run" / HELD_OUT_FILE).read_text()
    assert score(place, "run", place / "photos") == first
    assert len(calls) == 1, "kept"
    for options in (["--class", "a"], ["--draws", "1"], ["--seed", "1"]):
        score(place, "run", place / "photos", *options)
        assert (place / "run" / HELD_OUT_FILE).read_text() != kept
    assert len(calls) == 4
    assert score(place, "run", place / "photos") == first and len(calls) == 4, "that of every scoring is kept"
    old = json.loads(kept)
    build("conditional", torch.float32, seed=1).save_weights(place / "run" / "model.safetensors")
    score(place, "run", place / "photos")
    assert len(calls) == 5, "other weights"
    fresh = json.loads((place / "run" / HELD_OUT_FILE).read_text())
    assert fresh["key"]["weights"] != old["key"]["weights"]
    assert fresh["scored"][0]["log_prob"] != old["scored"][0]["log_prob"]
    assert len(fresh["scored"]) == 1, "those of other weights are gone"
    (place / "run" / HELD_OUT_FILE).write_text("{")
    score(place, "run", place / "photos")
    assert json.loads((place / "run" / HELD_OUT_FILE).read_text()) == fresh, "a damaged one is made again"


def test_without_the_training_data_there_are_no_percentiles(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "train").rename(place / "gone")
    rows = score(place, "uniform", place / "photos")
    for name in ("percentile", "complexity_percentile", "typicality", "typicality_percentile"):
        assert {row[name] for row in rows} == {""}, name
    assert all(math.isfinite(float(row["complexity"])) for row in rows)
    assert sorted(int(row["rank"]) for row in rows) == list(range(1, 8))
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "no percentiles" in line and "train" in line and "no such path" in line]
    assert not (place / "uniform" / HELD_OUT_FILE).exists()


def test_bad_files_keep_their_lines_and_change_no_other(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in (2, 3, 6):
        (place / "photos" / f"{index:02}.png").write_bytes(b"" if index == 3 else b"no image")
    rows = score(place, "uniform", place / "photos", "--batch-size", "2")  # one batch has no good image
    assert [row["file"] for row in rows] == [f"{i:02}.png" for i in range(7)]
    assert [row["error"] for row in rows] == [
        *("", "", "not an image, or in a format that is not read", "empty file", "", ""),
        "not an image, or in a format that is not read",
    ]
    for index in (2, 3, 6):
        assert [rows[index][c] for c in ("log_likelihood", "bits_per_dim", "rank", "percentile")] == [""] * 4
    good = [row for row in rows if not row["error"]]
    assert sorted(int(row["rank"]) for row in good) == [1, 2, 3, 4]
    flow, draws = alone(place, "uniform", place / "photos" / "05.png", 5)
    with torch.no_grad():
        expected = sum(float(flow.log_prob(x)) for x in draws) / 4
    assert float(rows[5]["log_likelihood"]) == pytest.approx(expected, rel=1e-5)
    assert "7 images, 3 of them not scored" in capsys.readouterr().err


def test_a_score_that_is_no_number_says_so_and_is_last(place: Path) -> None:
    opened = checkpoint.open_run(place / "uniform")
    with torch.no_grad():
        opened.flow.blocks[0].proj_in.bias.fill_(3e38)  # which the first norm turns into NaN: a density of 0
    opened.flow.save_weights(place / "uniform" / "model.safetensors")
    rows = score(place, "uniform", place / "photos")
    assert {row["error"] for row in rows} == {"its log-likelihood is -inf"}
    assert {row["rank"] for row in rows} == {"1"}, "all alike"


def test_names_are_written_as_they_are(place: Path) -> None:
    for name in (b"a,b.png", b'say "x".png', b"two\nlines.png", b"latin-\xe4.png"):
        os.rename(place / "photos" / "00.png", os.path.join(os.fsencode(place / "photos"), name))
        write_images(place / "again", 1)
        os.rename(place / "again" / "00.png", place / "photos" / "00.png")
        (place / "again").rmdir()
    assert [row["file"] for row in score(place, "uniform", place / "photos", "--raw-names")] == sorted(
        os.listdir(place / "photos")
    )


def test_maps_are_pictures_of_each_image(place: Path) -> None:
    (place / "photos" / "01.png").write_bytes(b"no image")
    rows = score(place, "run", place / "photos", "--maps", str(place / "new" / "maps"), "--draws", "1")
    assert [row["map"] for row in rows] == ["0.png", "", *(f"{i}.png" for i in range(2, 7))]
    assert sorted(path.name for path in (place / "new" / "maps").iterdir()) == [f"{i}.png" for i in (0, 2, 3, 4, 5, 6)]
    with Image.open(place / "new" / "maps" / "4.png") as picture:
        assert picture.mode == "RGB" and picture.height >= 128 and picture.width > 2 * 128
        colours = {pixel for _, pixel in picture.getcolors(1 << 16) or []}
    assert any(r > b + 30 for r, _, b in colours) and any(b > r + 30 for r, _, b in colours), "red and blue"


def test_complexity_and_typicality_by_hand(place: Path) -> None:
    rows = score(place, "uniform", place / "photos")
    held = load(str(place / "train")).held_out.images
    reference = json.loads((place / "uniform" / HELD_OUT_FILE).read_text())["scored"][0]["log_prob"]
    theirs = [-v / (16 * math.log(2)) + 7 for v in reference]
    saved = [float(code) / 16 - bits for code, bits in zip(code_bits(held), theirs, strict=True)]
    usual = [-abs(b - (sum(theirs) - b) / 3) for b in theirs]
    for row in rows:
        with Image.open(place / "photos" / row["file"]) as image:
            code = float(code_bits(torch.from_numpy(np.array(image))[None, None])) / 16
        bits = float(row["bits_per_dim"])
        for name, value, others in (
            ("complexity", code - bits, saved),
            ("typicality", -abs(bits - sum(theirs) / 4), usual),
        ):
            assert float(row[name]) == pytest.approx(value, rel=1e-6), name
            below = sum(other < value for other in others) + sum(other == value for other in others) / 2
            assert float(row[f"{name}_percentile"]) == pytest.approx(25 * below, abs=1e-3), name
        assert row["ranked_by"] == "likelihood"


@pytest.mark.parametrize("by", ["likelihood", "complexity", "typicality"])
def test_images_are_ranked_by_what_was_asked_for(by: str, place: Path) -> None:
    rows = score(place, "uniform", place / "photos", "--by", by)
    values = [float(row["log_likelihood" if by == "likelihood" else by]) for row in rows]
    assert [int(row["rank"]) for row in rows] == [1 + sum(other > value for other in values) for value in values]
    assert {row["ranked_by"] for row in rows} == {by}


def test_what_was_found_best_against_others_is_the_default_and_is_said(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Flat images have so short a code that complexity tells them from noise, and likelihood does not."""
    (place / "flat").mkdir()
    for i in range(6):
        Image.new("L", (4, 4), 100 + i).save(place / "flat" / f"{i}.png")
    command = ["evaluate", str(place / "uniform"), "--against", str(place / "flat"), "--device", "cpu"]
    plain = score(place, "uniform", place / "photos")
    assert main([*command, "--no-save"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)["against"][str(place / "flat")]
    assert found["auroc_complexity"] == 1 > found["auroc_likelihood"]
    assert found["auroc_complexity_standard_error"] is None
    assert "complexity, the best of 3" in said.err and "not kept" in said.err
    assert score(place, "uniform", place / "photos") == plain
    assert main(command) == 0
    assert "detector.json: `tarflow score` ranks by it from now on" in capsys.readouterr().err
    rows = score(place, "uniform", place / "photos")
    assert {row["ranked_by"] for row in rows} == {"complexity"}
    assert "ranked by complexity, the best of 3 against" in capsys.readouterr().err
    assert {row["ranked_by"] for row in score(place, "uniform", place / "photos", "--by", "likelihood")} == {
        "likelihood"
    }
    assert "detector.json" not in capsys.readouterr().err
    build("unconditional", torch.float32, seed=1).save_weights(place / "uniform" / "model.safetensors")
    assert {row["ranked_by"] for row in score(place, "uniform", place / "photos")} == {"likelihood"}
    assert "detector.json: not used, found for other weights" in capsys.readouterr().err


def test_a_detector_of_others_images_is_not_the_runs(place: Path) -> None:
    write_images(place / "flat", 6)
    options = ["--against", "inverted", "--device", "cpu"]
    assert main(["evaluate", str(place / "uniform"), "--data", str(place / "flat"), *options]) == 0
    assert main(["evaluate", str(place / "uniform"), "--split", "train", *options]) == 0
    assert not (place / "uniform" / DETECTOR_FILE).exists()


def test_many_classes_say_what_they_cost_and_how_long_it_takes(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = build("conditional", torch.float32, num_classes=100)
    flow.save_pretrained(place / "many")
    names = tuple(map(str, range(100)))
    training = TrainingConfig(steps=1, noise="uniform")
    write_config(place / "many", RunConfig(flow.config, DataConfig(str(place / "train"), class_names=names), training))
    seconds = itertools.count(step=0.75)
    monkeypatch.setattr("tarflow.cli.progress.time.monotonic", lambda: next(seconds))
    monkeypatch.setattr(scores, "CPU_TOKENS", 4 * 25)  # 28 passes of 25 images under their classes
    score(place, "many", place / "photos", "--draws", "1")
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(
        "without a label, an image goes through the flow once a class, 100 times: --class null is"
    )
    assert re.fullmatch(r"scoring [25]\d/700 passes  \d+ s left", said[1]), said
    assert [line for line in said if line.startswith("scoring held-out images")]
    score(place, "many", place / "photos", "--draws", "1", "--class", "null")
    assert "100 times" not in capsys.readouterr().err
    score(place, "run", place / "photos", "--draws", "1")
    assert "times" not in capsys.readouterr().err, "3 classes are few"


def test_an_interruption_leaves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = table.class_scores, []

    def interrupted(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(table, "class_scores", interrupted)
    score(place, "run", place / "photos", "--batch-size", "2", "--maps", str(place / "new" / "maps"), code=130)
    assert not list((place / "new").iterdir())
    assert not (place / "run" / HELD_OUT_FILE).exists()


ERRORS = {
    "no such run": ("{p}/nowhere {p}/photos --out {p}/new/s.csv", ["nowhere"]),
    "no such path": ("{p}/run {p}/nowhere --out {p}/new/s.csv", ["nowhere"]),
    "a folder without images": ("{p}/run {p}/new --out {p}/new/s.csv", ["new", "holds no images"]),
    "a file of another kind": ("{p}/run {p}/run/config.json --out {p}/new/s.csv", ["config.json", ".parquet"]),
    "no image that can be read": ("{p}/run {p}/broken --out {p}/new/s.csv", ["none of 2", "0.png", "empty file"]),
    "not a CSV file": ("{p}/run {p}/photos --out {p}/new/s.json", ["--out", "s.json", ".csv"]),
    "out is a directory": ("{p}/run {p}/photos --out {p}/folder.csv", ["--out", "folder.csv"]),
    "an unknown class": ("{p}/run {p}/photos --out {p}/new/s.csv --class zebra", ["zebra", "a, b, c", "null"]),
    "a class of no class": ("{p}/uniform {p}/photos --out {p}/new/s.csv --class a", ["--class", "has no classes"]),
    "no draws": ("{p}/run {p}/photos --out {p}/new/s.csv --draws 0", ["--draws", "0"]),
    "batch size of zero": ("{p}/run {p}/photos --out {p}/new/s.csv --batch-size 0", ["--batch-size", "0"]),
    "maps over files": ("{p}/run {p}/photos --out {p}/new/s.csv --maps {p}/photos", ["--maps", "photos", "empty"]),
    "maps in no directory": ("{p}/run {p}/photos --out {p}/new/s.csv --maps {p}/new/a/b", ["--maps", "new/a"]),
    "only a model": ("{p}/bare {p}/photos --out {p}/new/s.csv", ["bare", "training"]),
    "no such device": ("{p}/run {p}/photos --out {p}/new/s.csv --device cuda", ["cuda"]),
}


@pytest.mark.parametrize("name", ERRORS)
def test_one_line_that_names_it(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "broken").mkdir()
    for i in range(2):
        (place / "broken" / f"{i}.png").touch()
    (place / "folder.csv").mkdir()
    build("unconditional", torch.float32).save_pretrained(place / "bare")
    command, words = ERRORS[name]
    before = {path: path.is_file() and path.read_bytes() for path in place.rglob("*")}
    assert main(["score", *command.format(p=place).split()]) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("tarflow: error: ")]
    assert len(lines) == 1 and captured.err.splitlines()[-1] == lines[0] and captured.out == ""
    assert "not expected" not in lines[0] and "Traceback" not in captured.err
    for word in words:
        assert word in lines[0], f"{word!r} is not in {lines[0]!r}"
    assert {path: path.is_file() and path.read_bytes() for path in place.rglob("*")} == before


NAMES = (
    *(
        "a b.png",
        "a\rb.png",
        "a\nb.png",
        "a\r\nb.png",
        'a"b.png',
        "a,b.png",
        "50%.png",
        "%0D.png",
        "ä.png",
        "a\u0301.png",
    ),
    *(
        "=1+1.png",
        "+1.png",
        "-1.png",
        "@a.png",
        "＝1.png",
        " a.png",
        "\ta.png",
        "\x7f\x1b[31m.png",
        "a\u2028b\x85c.png",
    ),
    *(os.fsdecode(b"\xff\xfe.png"), os.fsdecode(b"caf\xe9.png"), "'=1.png", "=cmd|' C calc'!A0.png", "日本.png"),
)


@pytest.fixture
def odd(place: Path) -> Path:
    """A folder with all of `NAMES`, half of which cannot be read."""
    (place / "odd").mkdir()
    for k, name in enumerate(NAMES):
        with open(place / "odd" / name, "wb") as file:
            file.write((place / "photos" / "00.png").read_bytes() if k % 2 else b"garbage")
    return place / "odd"


def test_any_name_comes_back_exactly_and_none_breaks_a_line(place: Path, odd: Path) -> None:
    rows = score(place, "run", odd, "--draws", "1")
    assert sorted(os.fsdecode(unquote_to_bytes(row["file"])) for row in rows) == sorted(NAMES)
    assert all(list(row) == list(rows[0]) and None not in row for row in rows)
    text = (place / "new" / "scores.csv").read_bytes().decode("utf-8")
    assert len(text.splitlines()) == 1 + len(NAMES)
    assert not any(line.lstrip('"').startswith(tuple("=+-@＝")) for line in text.splitlines())
    plain = {"a b.png", "a,b.png", 'a"b.png', "ä.png", "日本.png", "'=1.png"}
    assert plain <= {row["file"] for row in rows}, "most names stay as they are"


@pytest.mark.extra
def test_pandas_reads_the_names_as_they_are_written(place: Path, odd: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas, which the extra `hub` brings, is not installed")
    rows = score(place, "run", odd, "--draws", "1")
    assert pandas.read_csv(place / "new" / "scores.csv")["file"].tolist() == [row["file"] for row in rows]


def test_raw_names_are_bytes_in_quotes(place: Path, odd: Path) -> None:
    rows = score(place, "run", odd, "--draws", "1", "--raw-names")
    assert sorted(row["file"] for row in rows) == sorted(NAMES)
    assert b'"caf\xe9.png"' in (place / "new" / "scores.csv").read_bytes()


def test_a_class_that_would_break_a_line_does_not(place: Path) -> None:
    file = place / "run" / "config.json"
    config = json.loads(file.read_text())
    config["data"]["class_names"] = ["a\rb", "b", "\udc80"]
    file.write_text(json.dumps(config))
    for label, shown in (("0", "class=a%0Db"), ("2", "class=%80")):
        assert {row["labels"] for row in score(place, "run", place / "photos", "--class", label)} == {shown}


def test_a_name_that_no_file_may_have_is_refused_before_the_work(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    longest = "s" * 251 + ".csv"
    assert main(["score", f"{place}/run", f"{place}/photos", "--out", f"{place}/new/{longest}", "--draws", "1"]) == 0
    assert [path.name for path in (place / "new").iterdir()] == [longest]
    monkeypatch.setattr(table, "class_scores", lambda *_, **__: pytest.fail("the work was done"))
    assert main(["score", f"{place}/run", f"{place}/photos", "--out", f"{place}/new/s{longest}"]) == 2
    assert f"tarflow: error: {place}/new/s{longest}: File name too long" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["rows", "end"])
def test_a_full_disk_names_the_file(
    where: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = csv.writer

    class Full:
        def __init__(self, file: Any, **options: Any) -> None:
            self.writerow = full if bool(options) is (where == "end") else writer(file, **options).writerow

    monkeypatch.setattr("tarflow.evaluation.likelihood.table.csv.writer", Full)
    assert main(["score", f"{place}/run", f"{place}/photos", "--out", f"{place}/new/s.csv", "--draws", "1"]) == 2
    assert f"tarflow: error: {place}/new/s.csv: No space left on device" in capsys.readouterr().err
    assert not list((place / "new").iterdir())


@pytest.mark.parametrize("spoilt", [10**400, "low", True, [1.0], 3])
@pytest.mark.parametrize("right_digest", [False, True])
def test_kept_scores_that_are_no_numbers_are_computed_again(place: Path, spoilt: object, right_digest: bool) -> None:
    before = score(place, "uniform", place / "photos", "--draws", "1")
    file = place / "uniform" / HELD_OUT_FILE
    table = json.loads(file.read_text())
    table["scored"][0]["log_prob"][1] = spoilt
    table.pop("blake2b")
    file.write_text(json.dumps(digests.sealed(table) if right_digest else table))
    assert score(place, "uniform", place / "photos", "--draws", "1") == before


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How far the peak is above the start, for 64 images, more than are read ahead, and for 336 more, of 26 MB."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the system does not let a process forget its highest memory")
    monkeypatch.setattr("tarflow.data.assemble._CHUNK", 2)  # 32 images ahead, not 256
    monkeypatch.chdir(tmp_path)
    side = 160
    config = tarflow.TarFlowConfig(**BASE | {"image_size": side, "channels": 3, "patch_size": side // 2})
    randomise(tarflow.TarFlow(config)).save_pretrained(tmp_path / "run")
    training = TrainingConfig(steps=1, noise="uniform")
    write_config(tmp_path / "run", RunConfig(config, DataConfig(source="nowhere"), training))
    Image.new("RGB", (side, side), "teal").save(tmp_path / "one.png")
    for name, count in (("few", 64), ("many", 400)):
        (tmp_path / name).mkdir()
        for i in range(count):
            os.link(tmp_path / "one.png", tmp_path / name / f"{i}.png")

    def growth(name: str) -> float:
        before = reset_peak()
        assert main(["score", "run", name, "--out", f"{name}.csv", "--draws", "1", "--batch-size", "8"]) == 0
        return (peak() - before) / 2**20  # MiB

    growth("few")  # what is imported and kept for good
    few, many = growth("few"), growth("many")
    assert many - few < 10, f"{few:.0f} MiB for 64 images, {many:.0f} MiB for 400"
    assert len(read(tmp_path / "many.csv")) == 400


def test_the_map_of_an_image_does_not_depend_on_the_batch_that_it_is_in(place: Path) -> None:
    """Its noise goes by its number in PATH, as that of its score does."""
    pictures = []
    for size in (7, 3, 1):
        maps = place / f"maps of {size}"
        score(place, "run", place / "photos", "--batch-size", str(size), "--maps", str(maps))
        pictures.append(np.stack([np.array(Image.open(path)) for path in sorted(maps.iterdir())]).astype(int))
    assert len(pictures[0]) == 7
    for others in pictures[1:]:
        assert np.abs(others - pictures[0]).max() <= 1


@pytest.mark.parametrize("command", ["score", "evaluate"])
def test_products_on_a_gpu_are_tf32_unless_asked_otherwise(
    command: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scoring without was at a seventh of the rate of training."""
    asked: list[bool] = []

    @contextlib.contextmanager
    def products(device: torch.device, *, tf32: bool) -> Iterator[None]:
        asked.append(tf32)
        yield
        asked.append(tf32)

    monkeypatch.setattr("tarflow.devices.float32_products", products)
    photos = str(place / "photos")
    rest = [photos, "--out", str(place / "s.csv")] if command == "score" else ["--data", photos]
    for more in ([], ["--precision", "float32"]):
        assert main([command, str(place / "uniform"), *rest, *more]) == 0
    assert asked == [True, True, False, False]

"""`tarflow train`, `score`, `sample` on the columns of a table: from file to file, and one line for what is wrong."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tarflow
from tarflow import checkpoint
from tarflow.cli import main
from tarflow.data.tables import Table, read_table, write_table
from tarflow.tables import TableRun, open_table_run

SMALL = "--layers 1 1 --width 16 --head-dim 8 --steps 40 --lr 1e-2 --batch-size 64"


def rows(count: int = 300) -> dict[str, Any]:
    """a ~ N(d + 2 [kind is up], 0.5²), b ~ N(a, 0.3²)."""
    generator = np.random.default_rng(0)
    d, kind = generator.normal(size=count), np.where(np.arange(count) % 3 == 0, "up", "down").astype(object)
    a = d + 2 * (kind == "up") + 0.5 * generator.normal(size=count)
    return {"a": a, "b": a + 0.3 * generator.normal(size=count), "d": d, "kind": kind}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table in three formats, and runs with conditions and without."""
    place = tmp_path_factory.mktemp("tables")
    for suffix in ("csv", "parquet", "npz"):
        write_table(place / f"t.{suffix}", rows())
    np.save(place / "ab.npy", np.stack([rows()["a"], rows()["b"]], axis=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert call(f"train --data t.parquet --events a,b --conditions kind,d --out given {SMALL}") == 0
        assert call(f"train --data ab.npy --out plain {SMALL}") == 0
    return place


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def call(words: str) -> int:
    return main(shlex.split(words))


def test_a_run_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    sections = json.loads(Path("given/config.json").read_text())
    assert sections["model"]["condition"] == "classes:2+vector:1" and sections["model"]["width"] == 16
    assert sections["table"] == {
        "source": "t.parquet",
        "events": ["a", "b"],
        "conditions": ["kind", "d"],
        "classes": [["down", "up"], []],
    }
    told = sections["training"]
    assert (told["steps"], told["rows"], told["held_out_rows"], told["lr"]) == (40, 270, 30, 0.01)
    metrics = checkpoint.read_metrics("given")
    assert [entry["step"] for entry in metrics] == list(range(1, 41))
    assert max(entry["held_out"] for entry in metrics) == told["held_out_log_prob"]
    assert isinstance(tarflow.from_pretrained("given"), tarflow.VectorFlow)


@pytest.mark.parametrize("suffix", ["csv", "parquet", "npz"])
def test_scores_are_those_of_the_flow(suffix: str) -> None:
    assert call(f"score given t.{suffix} --out scores.{suffix}") == 0
    found = read_table(f"scores.{suffix}")
    run, columns = open_table_run("given"), rows()
    x = torch.from_numpy(np.stack([columns["a"], columns["b"]], axis=1))
    c = torch.tensor([word == "up" for word in columns["kind"]]).long(), torch.from_numpy(columns["d"]).float()[:, None]
    with torch.no_grad():
        expected = run.flow.log_prob(x, c)
    np.testing.assert_allclose(found.columns["log_likelihood"], expected.double(), atol=1e-5)
    assert found.columns["row"].tolist() == list(range(300))


def test_the_condition_is_learned(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = rows() | {"d": rows()["d"] + 3}
    write_table("wrong.csv", wrong)
    means = []
    for name in ("t", "wrong"):
        assert call(f"score given {name}.csv --out {name}-scores.csv") == 0
        means.append(read_table(f"{name}-scores.csv").columns["log_likelihood"].mean())
    assert means[0] > means[1] + 1


@pytest.mark.parametrize("suffix", ["csv", "parquet", "npz"])
def test_draws_given_values(suffix: str) -> None:
    assert call(f"sample given -n 40 --given d=0.5,kind=up --out draws.{suffix}") == 0
    found = read_table(f"draws.{suffix}")
    assert list(found.columns) == ["kind", "d", "a", "b"] and len(found) == 40
    assert set(found.words("kind")) == {"up"} and set(found.columns["d"]) == {0.5}
    assert abs(found.columns["a"].mean() - 2.5) < 1


def test_draws_for_each_row_of_a_table_and_the_same_ones_for_a_seed() -> None:
    write_table("observed.csv", {"kind": np.array(["up", "down"], object), "d": np.array([-1.0, 1.0]), "e": np.ones(2)})
    for out in ("one", "two"):
        assert call(f"sample given -n 3 --conditions-from observed.csv --out {out}.csv --seed 4") == 0
    found = read_table("one.csv")
    assert list(found.columns) == ["row", "kind", "d", "a", "b"]
    assert found.columns["row"].tolist() == [0, 0, 0, 1, 1, 1]
    assert found.words("kind") == ["up"] * 3 + ["down"] * 3
    assert Path("one.csv").read_bytes() == Path("two.csv").read_bytes()
    assert call("sample given -n 3 --conditions-from observed.csv --out three.csv --seed 5") == 0
    assert Path("one.csv").read_bytes() != Path("three.csv").read_bytes()


def test_without_conditions() -> None:
    assert call("sample plain -n 5 --out plain.csv --seed 1") == 0
    found = read_table("plain.csv")
    assert list(found.columns) == ["x_0", "x_1"]
    expected = tarflow.sample(open_table_run("plain").flow, 5, seed=1)
    np.testing.assert_allclose(found.numbers(["x_0", "x_1"], ""), expected.double(), atol=1e-6)
    assert call("score plain ab.npy --out plain-scores.parquet") == 0


def test_all_numbers_are_events_where_none_are_named() -> None:
    assert call(f"train --data t.csv --conditions d --out runs/default {SMALL} --steps 2") == 0
    assert json.loads(Path("runs/default/config.json").read_text())["table"]["events"] == ["a", "b"]


def test_the_same_command_gives_the_same_run() -> None:
    assert call(f"train --data t.parquet --events a,b --conditions kind,d --out again {SMALL}") == 0
    for name in ("config.json", "metrics.jsonl"):
        assert Path("again", name).read_bytes() == Path("given", name).read_bytes()
    a, b = (open_table_run(name).flow.state_dict() for name in ("given", "again"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_columns_far_from_zero_keep_their_digits() -> None:
    shifted = {"time": 1.7e9 + rows()["a"], "b": rows()["b"]}
    write_table("shifted.csv", shifted)
    assert call(f"train --data shifted.csv --out shifted {SMALL}") == 0
    assert call("score shifted shifted.csv --out s.csv") == 0
    assert len(np.unique(read_table("s.csv").columns["log_likelihood"])) > 290  # not a few steps of 128


def test_numbers_that_repeat_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    write_table("ages.csv", {"age": np.arange(300) % 20, "a": rows()["a"]})
    assert call(f"train --data ages.csv --out ages {SMALL} --steps 2") == 0
    assert "tarflow: warning: ages.csv: age: few different numbers in 300 rows" in capsys.readouterr().err


WRONG = {
    "train --data t.csv --events a,nope --out x": "--events: t.csv: no column 'nope'",
    "train --data t.csv --events a,kind --out x": "column 'kind' holds words; only a condition may",
    "train --data t.csv --events a --conditions a --out x": "--conditions: column 'a' is an event already",
    "train --data t.csv --conditions a,b,d --out x": "no column of numbers is left for events",
    "train --data nope.csv --events a --out x": "nope.csv: no such file",
    "train --data t.csv --out given": "holds 3 entries already",
    "train --data t.csv --out x --recipe digits": "--recipe: an option for images",
    "train --out given --resume": "--resume: given is a run on a table",
    "train --data t.csv --out x --steps 0": "--steps: expected a positive number",
    "train --data t.csv --out x --held-out-fraction 1": "held_out: expected a share",
    "train --data t.csv --out x --width 10": "width: expected a multiple of head_dim",
    "train --data constant.csv --out x": "in all of 270 rows: what does not vary has no density",
    "train --data missing.csv --events a --out x": "missing.csv: column 'a', row 2: missing",
    "train --data missing.csv --events b --conditions kind --out x": "column 'kind', row 1: missing",
    "train --data few.csv --out x": "expected at least 10 rows to learn from, got 4",
    "score given t.csv --out scores.txt": "--out scores.txt: expected the name of a .csv, .parquet or .npz file",
    "score given t.csv --out t.csv": "--out t.csv: the table itself",
    "score given ab.npy --out s.csv": "ab.npy: no column 'a'",
    "score given other.csv --out s.csv": "column 'kind', row 1: expected one of down, up, got 'left'",
    "score given t.csv --out s.csv --maps m": "--maps: an option for images",
    "sample given --out d.csv": "--given or --conditions-from: expected one; given is conditioned on kind, d",
    "sample given --out d.csv --given d=1": "--given: kind is missing",
    "sample given --out d.csv --given d=1,kind=left": "expected one of down, up, got 'left'",
    "sample given --out d.csv --given d=x,kind=up": "--given: d: expected a finite number, got 'x'",
    "sample given --out d.csv --given d=nan,kind=up": "--given: d: expected a finite number, got 'nan'",
    "sample given --out d.csv --given d=1,e=2": "--given: kind is missing: expected kind=…, d=…, each once",
    "sample given --out d.csv --given null": "given was trained with --label-drop 0, and has learned nothing for when",
    "sample given --out d.csv --given d=1,kind=up --conditions-from t.csv": "expected one of them",
    "sample given --out d.png --given d=1,kind=up": "expected the name of a .csv, .parquet or .npz file",
    "sample given --out d.csv -n 0 --given d=1,kind=up": "--n: expected a positive number",
    "sample plain --out d.csv --given d=1": "plain has no conditions",
    "evaluate given": "given: a flow on the columns of a table; expected one on images",
    "denoise given photos --out d": "given: a flow on the columns of a table; expected one on images",
    "play given": "given: a flow on the columns of a table, of which there is no picture; `tarflow sample` draws rows",
    "quality given": "given: a flow on the columns of a table; expected one on images",
}


@pytest.mark.parametrize("words", WRONG)
def test_what_makes_no_sense_is_one_line_and_leaves_nothing(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_table("constant.csv", {"a": rows()["a"], "b": np.ones(300)})
    Path("missing.csv").write_text("a,b,kind\n1,2,up\n2,3,\n,4,down\n")
    write_table("few.csv", {name: column[:5] for name, column in rows().items()})
    write_table("other.csv", rows(3) | {"kind": np.array(["up", "left", "up"], object)})
    before = sorted(Path().rglob("*"))
    assert call(words) == 2
    captured = capsys.readouterr().err.strip().splitlines()
    assert WRONG[words] in captured[-1] and captured[-1].startswith("tarflow: error: ")
    assert sorted(Path().rglob("*")) == before


def test_a_run_that_is_damaged_is_one_line(tmp_path: Path) -> None:
    sections = json.loads(Path("given/config.json").read_text())
    for change, message in (({"events": ["a"]}, "a flow on 2 numbers"), ({"nope": 1}, "table.nope: no such field")):
        (tmp_path / "config.json").write_text(json.dumps(sections | {"table": sections["table"] | change}))
        (tmp_path / "model.safetensors").write_bytes(Path("given/model.safetensors").read_bytes())
        with pytest.raises(ValueError, match=message):
            tarflow.open_run(tmp_path)


def test_one_function_opens_runs_of_tables_and_of_images() -> None:
    run = tarflow.open_run("given")
    assert isinstance(run, TableRun) and run.columns == open_table_run("given").columns
    assert isinstance(tarflow.open_run("digits"), tarflow.Run)
    with pytest.raises(FileNotFoundError, match="nowhere: no such directory; expected a run"):
        tarflow.open_run("nowhere")


def test_help_is_that_of_tables(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ("train --data t.csv --help", "score given --help", "sample given --help"):
        with pytest.raises(SystemExit):
            call(words)
        said = capsys.readouterr().out
        assert "table" in said and "--recipe" not in said and "--guidance" not in said


def test_a_table_of_ones_own_needs_no_file() -> None:
    run = open_table_run("given")
    given = Table(Path("here"), {"kind": np.array(["up"], object), "d": np.array([0.0])}, {}, {})
    assert list(run.sample(2, given)) == ["kind", "d", "a", "b"]
    with pytest.raises(ValueError, match="given: conditioned on kind, d; expected values of them"):
        run.sample(2)


def test_a_report_says_whether_held_out_rows_lie_among_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(f"report given --out {tmp_path}") == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "There are 30 held-out rows; it takes 50" in page and "a given kind, d" not in page
    write_table(tmp_path / "new.csv", rows(320))
    assert call(f"report given --out {tmp_path} --data {tmp_path / 'new.csv'} --limit 60") == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "60 held-out rows, and 99 rows drawn under the conditions of each" in page
    for title in (
        "a: ranks of the truth",
        "b: ranks of the truth",
        "TARP: held less claimed",
        "Log-likelihood of a row",
    ):
        assert title in page
    assert "replaced by this report" in capsys.readouterr().err


def test_a_report_on_a_table_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report.html").write_text("mine")
    for words, named in (
        ("report given --images 3", "--images: an option for images"),
        (f"report given --out {tmp_path}", "not written by `tarflow report`"),
        ("report given --data none.csv", "none.csv"),
        ("report given --limit 0", "--limit"),
    ):
        assert call(words) == 2
        assert named in capsys.readouterr().err
    assert (tmp_path / "report.html").read_text() == "mine" and not Path("given/report").exists()


def test_held_out_rows_of_a_run_are_those_that_its_fit_held_out() -> None:
    run, table = open_table_run("given"), read_table("t.parquet")
    held_out = run.held_out(table)
    assert len(held_out) == 30
    score = float(held_out.log_prob().mean())
    assert score == pytest.approx(run.training["held_out_log_prob"], abs=1e-4)

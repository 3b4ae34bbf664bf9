"""`tarflow report` from its arguments to its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from report_cases import Page, make_run
from tarflow.cli import main


def test_report_writes_a_page_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", classes=True, noise="gaussian")
    assert main(["report", str(run), "--images", "2", "--limit", "8", "--seed", "3"]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == str(run / "report" / "report.html")
    assert "held-out likelihood" in captured.err  # progress
    page = Page((run / "report" / "report.html").read_text())
    assert "8 held-out images" in page.section("likelihood") and "seed 3" in page.section("samples")


def test_report_on_several_runs(tmp_path: Path) -> None:
    runs = [str(make_run(tmp_path / name, classes=False, noise="uniform")) for name in ("a", "b")]
    assert main(["report", *runs, "--out", str(tmp_path / "out"), "--images", "2", "--limit", "8"]) == 0
    assert "a, 8×8" in Page((tmp_path / "out" / "report.html").read_text()).section("resolutions")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such directory"),
        (["RUN", "--images", "0"], "images: expected a positive number"),
        (["RUN", "--limit", "-1"], "limit: expected a positive number"),
        ([], "RUN"),
    ],
)
def test_bad_arguments_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    run = make_run(tmp_path / "run", classes=False, noise="uniform")
    assert main(["report", *(str(run) if a == "RUN" else a for a in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not (run / "report").exists()

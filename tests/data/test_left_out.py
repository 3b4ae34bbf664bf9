"""What is in a folder and is not read is said; what the program itself writes there becomes no image."""

from __future__ import annotations

from pathlib import Path

import pytest

from small_runs import evaluate, resume, train, write_images
from tarflow.cli import main
from tarflow.data.errors import DataError, DataWarning
from tarflow.data.load import load_all, open_scan


def test_files_that_are_not_read_are_counted_by_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = write_images(tmp_path / "photos", 12)
    for number in range(30):
        (photos / f"IMG_{number}.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    for name in ("film.MOV", "more.zip", "DSC0001"):
        (photos / name).write_bytes(b"?")
    for name in ("notes.txt", "labels.csv", "README", "._000.png", ".DS_Store", "Thumbs.db"):
        (photos / name).write_bytes(b"?")
    message = r"photos: left out: 33 files not read \(30 .heic, 1 without a suffix, 1 .mov, 1 .zip\)"
    with pytest.warns(DataWarning, match=message):
        assert len(load_all(str(photos))[0]) == 12
    with pytest.warns(DataWarning, match="30 .heic"):
        assert open_scan(str(photos), image_size=(4, 4), channels=1, levels=256).total == 12
    assert train(photos, tmp_path / "run") == 0
    commands = [
        ["prepare", str(photos), "--out", str(tmp_path / "prepared")],
        ["score", str(tmp_path / "run"), str(photos), "--draws", "1", "--out", str(tmp_path / "s.csv")],
        ["evaluate", str(tmp_path / "run"), "--draws", "1"],
    ]
    assert capsys.readouterr().err.count("30 .heic") == 1
    for command in commands:
        assert main(command) == 0
        assert capsys.readouterr().err.count("30 .heic") == 1, "once a command"
    for path in photos.glob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"holds no images \(38 other files, 30 .heic, .*; known suffixes"):
        load_all(str(photos))


def test_images_beside_files_of_another_format_are_said(tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\3" + b"\0\0\0\2" * 3 + bytes(8))
    with pytest.warns(DataWarning, match="read as IDX files; 3 images beside them are left out"):
        load_all(str(tmp_path))


def test_a_run_inside_of_its_data_is_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_images(tmp_path / "photos", 40)
    monkeypatch.chdir(photos)
    assert train(".", Path("run"), "--sample-every", "4") == 0
    assert list((photos / "run" / "samples").iterdir())
    values = evaluate(capsys, Path("run"))
    assert values["split"] == "held-out" and resume(Path("run")) == 0
    assert main(["score", "run", ".", "--draws", "1", "--out", "s.csv"]) == 0
    assert "s.csv: 40 images" in capsys.readouterr().err
    assert len(load_all(".")[0]) == 40


def test_images_are_not_written_among_those_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes = tmp_path / "classes"
    for name in ("cat", "dog"):
        write_images(classes / name, 12)
    new = write_images(tmp_path / "new", 3)
    run = classes / "run"
    assert train(classes, run) == 0
    (tmp_path / "link").symlink_to(classes)
    for command in (
        ["sample", str(run), "-n", "2", "--out", str(classes / "samples")],
        ["sample", str(run), "-n", "2", "--out", str(tmp_path / "link" / "cat" / "sheet.png")],
        ["denoise", str(run), str(new), "--out", str(classes / "denoised"), "--noise-std", "0.1"],
        ["denoise", str(run), str(new), "--out", str(new / "denoised"), "--noise-std", "0.1"],
        ["report", str(run), "--out", str(classes / "report")],
        ["score", str(run), str(new), "--out", str(tmp_path / "s.csv"), "--maps", str(new / "maps")],
    ):
        capsys.readouterr()
        assert main(command) == 2, command
        said = capsys.readouterr().err
        assert "whose images it would be taken for: expected another place" in said and len(said.splitlines()) == 1
    assert sorted(path.name for path in classes.iterdir()) == ["cat", "dog", "run"]
    assert main(["sample", str(run), "-n", "2", "--out", str(run / "more")]) == 0, "in the run it is none of them"
    assert main(["sample", str(run), "-n", "2", "--out", str(classes / "some.npz")]) == 0
    (classes / "some.npz").unlink()
    assert load_all(str(classes))[0].class_names == ("cat", "dog")


def test_a_run_does_not_begin_in_a_folder_of_its_own_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cat", "dog"):
        write_images(tmp_path / "classes" / name, 12)
    for out in (tmp_path / "classes", tmp_path / "classes" / "cat"):
        assert train(tmp_path / "classes", out) == 2
        said = capsys.readouterr().err
        assert f"--out {out}: holds images of {tmp_path / 'classes'}: expected a directory of its own" in said
    assert sorted(path.name for path in (tmp_path / "classes").iterdir()) == ["cat", "dog"]
    (tmp_path / "classes" / "run").mkdir()
    assert train(tmp_path / "classes", tmp_path / "classes" / "run") == 0

"""A file or a directory is written whole or not at all, whatever happens to the writer."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tarflow import digests, storage


def contents(directory: Path) -> dict[str, str]:
    """Every file below `directory`, hidden ones too."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_text() for path in files}


def killed_while(script: str, *arguments: Path) -> None:
    """Run `script` in a process of its own, which must die by os._exit(9): no exception, no clean-up."""
    code = f"import os, sys\nfrom pathlib import Path\nfrom tarflow import storage\npath = Path(sys.argv[1])\n{script}"
    ended = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], timeout=60)
    assert ended.returncode == 9, "the script was to be killed in the middle"


def test_a_file_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for text in ("first", "second"):
        with storage.replacing_file(path) as temporary:
            temporary.write_text(text)
            assert contents(tmp_path).get("a.txt") != text, "not visible under its name before the end"
        assert contents(tmp_path) == {"a.txt": text}


def test_an_exception_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="half-way"), storage.replacing_file(path) as temporary:
        temporary.write_text("ne")
        raise RuntimeError("half-way")
    assert contents(tmp_path) == {"a.txt": "old"}


def test_ctrl_c_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), storage.replacing_file(path) as temporary:
        temporary.write_text("ne")
        raise KeyboardInterrupt
    assert contents(tmp_path) == {"a.txt": "old"}


def test_a_killed_writer_leaves_the_old_file_and_a_leftover_that_is_cleared(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    bystander = tmp_path / ".hidden"
    bystander.write_text("not ours")
    killed_while(
        "with storage.replacing_file(path) as temporary:\n    temporary.write_text('ne')\n    os._exit(9)", path
    )
    left = contents(tmp_path)
    assert left["a.txt"] == "old"
    assert len(left) == 3, "the half-written sibling"
    storage.remove_leftovers(tmp_path)
    assert contents(tmp_path) == {"a.txt": "old", ".hidden": "not ours"}


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_writer_killed_at_either_system_call_leaves_the_old_file(tmp_path: Path, call: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    killed_while(f"os.{call} = lambda *_: os._exit(9)\nstorage.write_text(path, 'new')", path)
    storage.remove_leftovers(tmp_path)
    assert contents(tmp_path) == {"a.txt": "old"}


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    storage.write_text(tmp_path / "a.txt", "new")
    assert calls == ["fsync", "replace", "fsync"]  # the contents, the name, and the directory that holds the name


def test_a_directory_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "step-1"
    for text in ("first", "second"):
        with storage.replacing_directory(path) as temporary:
            (temporary / "inner").mkdir()
            (temporary / "inner" / f"{text}.txt").write_text(text)
            assert not (path / "inner" / f"{text}.txt").exists()
        assert contents(tmp_path) == {f"step-1/inner/{text}.txt": text}


def test_a_directory_is_on_the_disk_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    opened, rename = os.open, os.rename
    monkeypatch.setattr(os, "open", lambda path, *rest: (calls.append(Path(path).name), opened(path, *rest))[1])
    monkeypatch.setattr(os, "rename", lambda a, b: (calls.append("rename"), rename(a, b)))
    with storage.replacing_directory(tmp_path / "step-1") as temporary:
        (temporary / "inner").mkdir()
        with (temporary / "inner" / "a.txt").open("w") as file:  # not by os.open
            file.write("new")
    before, after = calls[: calls.index("rename")], calls[calls.index("rename") + 1 :]
    assert set(before) == {"a.txt", "inner", temporary.name}
    assert after == [tmp_path.name]


def test_an_exception_leaves_the_old_directory(tmp_path: Path) -> None:
    path = tmp_path / "step-1"
    path.mkdir()
    (path / "a.txt").write_text("old")
    with pytest.raises(RuntimeError, match="half-way"), storage.replacing_directory(path) as temporary:
        (temporary / "a.txt").write_text("ne")
        raise RuntimeError("half-way")
    assert contents(tmp_path) == {"step-1/a.txt": "old"}


def test_a_killed_writer_leaves_no_half_directory(tmp_path: Path) -> None:
    path = tmp_path / "step-1"
    script = "with storage.replacing_directory(path) as t:\n    (t / 'a.txt').write_text('ne')\n    os._exit(9)"
    killed_while(script, path)
    assert not path.exists()
    assert len(list(tmp_path.iterdir())) == 1
    storage.remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_removal_that_is_killed_leaves_no_half_directory(tmp_path: Path) -> None:
    path = tmp_path / "step-1"
    path.mkdir()
    (path / "a.txt").write_text("old")
    killed_while("import shutil\nshutil.rmtree = lambda *_: os._exit(9)\nstorage.remove_directory(path)", path)
    assert not path.exists()
    storage.remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(tmp_path: Path, mask: int) -> None:
    old = os.umask(mask)
    try:
        with storage.replacing_file(tmp_path / "a") as temporary:
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))  # as the writer of safetensors does
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~mask
        now = os.umask(mask)
        assert now == mask, "the process's own umask is left as it was"
    finally:
        os.umask(old)


def test_json_is_written_whole_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    storage.write_json(path, {"σ": 0.1, "layers": (1, 2)})
    assert json.loads(path.read_text(encoding="utf-8")) == {"σ": 0.1, "layers": [1, 2]}
    with pytest.raises(TypeError):
        storage.write_json(path, {"a": object()})
    assert json.loads(path.read_text(encoding="utf-8"))["σ"] == 0.1


def test_clearing_leftovers_where_there_are_none_does_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("kept")
    storage.remove_leftovers(tmp_path)
    storage.remove_leftovers(tmp_path / "nowhere")
    assert contents(tmp_path) == {"a.txt": "kept"}


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),  # as safetensors says
    ],
)
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(OSError, match="No space left") as raised, storage.replacing_file(tmp_path / "a.txt"):
        raise error
    assert raised.value.errno == errno.ENOSPC
    assert raised.value.filename == str(tmp_path / "a.txt")
    assert list(tmp_path.iterdir()) == []


def test_other_errors_are_left_as_they_are(tmp_path: Path) -> None:
    error = FileNotFoundError(errno.ENOENT, "No such file or directory", "input.png")
    with pytest.raises(FileNotFoundError) as raised, storage.replacing_directory(tmp_path / "a"):
        raise error
    assert raised.value is error


def test_text_is_added_at_the_end(tmp_path: Path) -> None:
    storage.append_text(tmp_path / "a.txt", "one\n")
    storage.append_text(tmp_path / "a.txt", "two\n")
    assert contents(tmp_path) == {"a.txt": "one\ntwo\n"}


def test_a_file_is_digested_while_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "a"
    with open(file, "wb") as opened:
        digesting = digests.Digesting(opened)
        assert digesting.write(b"abc") == 3
        assert digesting.write(np.arange(6, dtype=np.int64).reshape(2, 3)) == 48
    pieces: list[int] = []
    assert digests.file_facts(file, pieces.append) == digesting.facts
    assert file.stat().st_size == sum(pieces) == digesting.facts["bytes"] == 51
    assert digesting.facts["blake2b"] == hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()
    assert digests.difference(file, digesting.facts) is None
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    assert digests.difference(file, digesting.facts) == "damaged, its digest is not that of what was written"
    file.write_bytes(b"abc")
    assert digests.difference(file, digesting.facts) == "damaged, 3 bytes of 51"
    file.unlink()
    assert digests.difference(file, digesting.facts) == "missing"
    with pytest.raises(KeyError):
        digests.difference(file, {})


def test_a_directory_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    with storage.exclusive(tmp_path):
        for ask in (lambda: storage.exclusive(tmp_path).__enter__(), lambda: storage.check_not_in_use(tmp_path)):
            with pytest.raises(storage.InUse, match=rf"process {os.getpid()} on .* is writing to it"):
                ask()
    assert list(tmp_path.iterdir()) == []
    storage.check_not_in_use(tmp_path)
    (tmp_path / ".lock").write_text("process 1 on a machine that is gone")
    storage.check_not_in_use(tmp_path)
    with storage.exclusive(tmp_path):
        pass


def test_a_name_is_held_by_one_at_a_time_beside_what_has_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with storage.exclusive_name(out):
        with storage.replacing_directory(out) as new:
            (new / "a").touch()
        with pytest.raises(storage.InUse, match=rf"out: process {os.getpid()} on .* is writing to it"):
            storage.exclusive_name(out).__enter__()
        with storage.exclusive(out), storage.exclusive_name(tmp_path / "other"):
            pass  # neither what happens in it, nor another name
        storage.remove_leftovers(tmp_path, "out")
        assert (tmp_path / ".out.lock").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_lock_that_cannot_be_made_names_what_it_is_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(FileNotFoundError) as raised, storage.exclusive_name(tmp_path / "no" / "out"):
        pass
    assert raised.value.filename == str(tmp_path / "no" / "out")
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left") as full_disk, storage.exclusive(tmp_path):
        pass
    assert full_disk.value.filename == str(tmp_path)


def test_a_lock_that_was_removed_while_it_was_asked_for_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder removes it between our opening and locking it: another process would make a new one, and hold that."""
    import fcntl

    real, calls = fcntl.flock, []

    def flock(descriptor: int, operation: int) -> None:
        if not calls:
            (tmp_path / ".lock").unlink()
        calls.append(descriptor)
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with storage.exclusive(tmp_path):
        assert len(calls) == 2
        with pytest.raises(storage.InUse):
            storage.check_not_in_use(tmp_path)


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with storage.exclusive(tmp_path):
        storage.check_not_in_use(tmp_path)


# --- what a file system may refuse ---------------------------------------------------------------------------------

REFUSED = [errno.EINVAL, errno.EPERM, errno.EACCES, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS]


def written(place: Path) -> None:
    storage.write_text(place / "a.txt", "text")
    with storage.replacing_directory(place / "folder") as folder:
        (folder / "b.txt").write_text("text")
    storage.flush(place / "a.txt")
    assert contents(place) == {"a.txt": "text", "folder/b.txt": "text"}


@pytest.mark.parametrize("number", REFUSED)
def test_what_cannot_be_flushed_is_written_all_the_same(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    written(tmp_path)


@pytest.mark.parametrize("number", REFUSED)
def test_a_directory_that_cannot_be_opened_is_written_all_the_same(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is open for reading alone is not flushed, as on Windows."""
    opened, fsync = os.open, os.fsync
    flushed: list[int] = []

    def refusing_open(path: Path, *rest: int) -> int:
        if os.path.isdir(path):
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, *rest)

    def refusing_fsync(descriptor: int) -> None:
        import fcntl

        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flushed.append(descriptor)
        fsync(descriptor)

    monkeypatch.setattr(os, "open", refusing_open)
    monkeypatch.setattr(os, "fsync", refusing_fsync)
    written(tmp_path)
    assert len(flushed) == 3, "each file is flushed"


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_cannot_keep_it_is_an_error(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        storage.write_text(tmp_path / "a.txt", "text")
    assert caught.value.filename == str(tmp_path / "a.txt") and not list(tmp_path.iterdir())


def test_modes_that_cannot_be_set_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chmod(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "chmod", chmod)
    with storage.replacing_file(tmp_path / "a") as temporary:
        os.chmod = chmod
        temporary.unlink()
        os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
    assert (tmp_path / "a").exists()


# --- names and links -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a" * 255, "é" * 127, "x" * 251 + ".csv", "a\nb", "-", os.fsdecode(b"\xff\xfe")])
def test_any_name_that_a_file_may_have_can_be_written(name: str, tmp_path: Path) -> None:
    storage.write_text(tmp_path / name, "text")
    assert contents(tmp_path) == {name: "text"}
    (tmp_path / name).unlink()
    with storage.exclusive_name(tmp_path / name), storage.replacing_directory(tmp_path / name) as folder:
        (folder / "a").write_text("text")
    assert contents(tmp_path) == {f"{name}/a": "text"}


@pytest.mark.parametrize("write", [storage.replacing_file, storage.replacing_directory, storage.check_writable])
def test_a_name_that_no_file_may_have_is_refused_before_the_work(write: object, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too long") as caught:
        write(tmp_path / ("a" * 256)).__enter__()  # type: ignore[operator]
    assert caught.value.filename == str(tmp_path / ("a" * 256)) and not list(tmp_path.iterdir())


def test_whether_a_file_can_be_written_is_known_before(tmp_path: Path) -> None:
    storage.check_writable(tmp_path / "a")
    with pytest.raises(FileNotFoundError) as caught:
        storage.check_writable(tmp_path / "no" / "a")
    assert caught.value.filename == str(tmp_path / "no" / "a") and not list(tmp_path.iterdir())


@pytest.mark.parametrize("dangling", [False, True])
def test_a_directory_behind_a_link_is_replaced_where_it_lies(dangling: bool, tmp_path: Path) -> None:
    there, link = tmp_path / "there", tmp_path / "here" / "link"
    link.parent.mkdir()
    link.symlink_to(there)
    if not dangling:
        there.mkdir()
        (there / "old").write_text("old")
    with storage.exclusive_name(link), storage.replacing_directory(link) as folder:
        (folder / "new").write_text("new")
    assert link.is_symlink() and contents(there) == {"new": "new"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "there"] and list(link.parent.iterdir()) == [
        link
    ]


def test_of_a_link_to_a_directory_the_link_is_removed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "there")
    storage.remove_directory(tmp_path / "link")
    assert contents(tmp_path) == {"there/a": "kept"} and len(list(tmp_path.iterdir())) == 1


def test_a_mounted_directory_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    with pytest.raises(ValueError, match="a mounted file system"), storage.replacing_directory(tmp_path / "a"):
        pytest.fail("the work was done")


def test_new_data_that_cannot_take_the_name_leave_the_old_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.mkdir()
    (path / "old").write_text("old")
    rename = os.rename

    def refuse(a: Path, b: Path) -> None:
        if (Path(a) / "new").exists():
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(a))
        rename(a, b)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OSError, match="busy"), storage.replacing_directory(path) as folder:
        (folder / "new").write_text("new")
    assert contents(tmp_path) == {"a/old": "old"}


def test_a_text_with_bytes_that_are_no_text_is_written_readably(tmp_path: Path) -> None:
    """Such as the name of a class folder in latin-1, in a report that was all the work."""
    storage.write_text(tmp_path / "a.html", os.fsdecode(b"caf\xe9 \xcf\x83"))
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == "caf\\udce9 σ"


def test_leftovers_of_one_name_are_those_of_that_name_alone(tmp_path: Path) -> None:
    """Names may hold what patterns are made of, and begin with one another."""
    names = ["a", "a[b]", "ab", "a*", "axx", "a?", "?"]
    for name in names:
        (tmp_path / f".{name}.partial-0123abcd").write_text("half")
    left = set(names)
    for name in ("a", "a[b]", "a*", "?"):
        storage.remove_leftovers(tmp_path, name)
        left.remove(name)
        assert {path.name for path in tmp_path.iterdir()} == {f".{other}.partial-0123abcd" for other in left}
    storage.remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o600, 0o444, 0o777])
def test_a_file_has_the_mode_of_the_umask_whatever_its_writer_gave_it(mode: int, tmp_path: Path) -> None:
    """safetensors makes files that only their owner may read."""
    (tmp_path / "plain").touch()
    with storage.replacing_file(tmp_path / "written") as temporary:
        temporary.unlink()
        os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY))
        os.chmod(temporary, mode)
    assert stat.S_IMODE((tmp_path / "written").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)

"""Compiled C: kept once, loaded only where it is what this user compiled, and machines without a compiler."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import tarflow
from flow_cases import assert_close, build, latents
from tarflow import digests
from tarflow.native import compile
from tarflow.sampling.cpu.native import library
from tarflow.sampling.cpu.step import HostStep

needs_compiler = pytest.mark.skipif(library() is None, reason="needs GCC and a PyTorch with libgomp")


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A process that has compiled nothing yet, and whose cache is empty; the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("TARFLOW_NATIVE", "TARFLOW_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for remembered in (compile.compiled, compile._folder):
        remembered.cache_clear()
    yield tmp_path / "cache"
    for remembered in (compile.compiled, compile._folder):
        remembered.cache_clear()


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled without much ado: what it computes is not asked."""
    monkeypatch.setattr(compile, "FLAGS", tuple(flag.replace("-O2", "-O0") for flag in compile.FLAGS))


@needs_compiler
def test_it_is_compiled_once(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert library() is not None
    (made,) = (fresh / "tarflow").iterdir()
    compile.compiled.cache_clear()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("it was compiled again"))
    assert library() is not None
    assert list((fresh / "tarflow").iterdir()) == [made]


@needs_compiler
@pytest.mark.usefixtures("quickly")
def test_another_header_makes_another_library(fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compile, "FOLDER", tmp_path)
    (tmp_path / "answer.c").write_text('#include "answer.h"\nint answer(void) { return ANSWER; }\n')
    for number in (6, 7):
        (tmp_path / "answer.h").write_text(f"#define ANSWER {number}\n")
        compile.compiled.cache_clear()
        made = compile.compiled("answer", (compile.Function("answer", (), ctypes.c_int),))
        assert made is not None and made.answer() == number


def planted(place: Path) -> bytes:
    """A library that leaves a file where it is loaded."""
    code = place / "planted.c"
    code.write_text(
        f'#include <stdio.h>\n__attribute__((constructor)) void run(void) {{ fclose(fopen("{place}/ran", "w")); }}\n'
    )
    subprocess.run(["gcc", "-shared", "-fPIC", str(code), "-o", str(place / "planted.so")], check=True)
    return (place / "planted.so").read_bytes()


def change_owner(path: Path) -> None:
    try:
        os.chown(path, 12345, 12345)
    except OSError:
        pytest.skip("only root can give a file away")


SPOILT: dict[str, Callable[[Path], object]] = {
    "cut off": lambda file: file.write_bytes(file.read_bytes()[:-1000]),
    "empty": lambda file: file.write_bytes(b""),
    "a bit": lambda file: file.write_bytes(bytes([*(data := file.read_bytes())[:3000], data[3000] ^ 1, *data[3001:]])),
    "replaced": lambda file: file.write_bytes(planted(file.parent.parent)),
    "replaced, and sealed": lambda file: (
        file.write_bytes((code := planted(file.parent.parent)) + digests.seal(code)),
        file.chmod(0o666),
    ),
    "a link": lambda file: (file.rename(file.with_name("x")), file.symlink_to(file.with_name("x"))),
    "of another user": lambda file: (
        file.write_bytes((code := planted(file.parent.parent)) + digests.seal(code)),
        change_owner(file),
    ),
}


@needs_compiler
@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("name", SPOILT)
def test_what_is_not_what_this_user_compiled_is_compiled_again(
    name: str, fresh: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert library() is not None
    (file,) = (fresh / "tarflow" / f"native-{os.geteuid()}").glob("step-*.so")
    good = file.read_bytes()
    SPOILT[name](file)
    compile.compiled.cache_clear()
    with caplog.at_level("WARNING"):
        assert library() is not None
    (line,) = caplog.messages
    assert line.startswith(str(file)) and line.endswith("; compiled again")
    assert not (file.parent.parent / "ran").exists()
    assert digests.opened(file.read_bytes()) is not None and len(file.read_bytes()) == len(good)
    compile.compiled.cache_clear()
    caplog.clear()
    assert library() is not None and not caplog.messages


@needs_compiler
@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("how", ["writable", "of another user", "a link", "a file"])
def test_a_folder_that_others_may_write_to_is_not_used(how: str, fresh: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = fresh / "tarflow" / f"native-{os.geteuid()}"
    if how == "a file":
        folder.parent.mkdir(parents=True)
        folder.write_text("")
    else:
        folder.mkdir(parents=True)
    if how == "writable":
        folder.chmod(0o777)
    elif how == "of another user":
        change_owner(folder)
    elif how == "a link":
        folder.rename(fresh / "elsewhere")
        folder.symlink_to(fresh / "elsewhere")
    with caplog.at_level("INFO"):
        assert library() is not None
    assert str(folder) in caplog.text
    assert not list(fresh.rglob("*.so"))


@needs_compiler
@pytest.mark.usefixtures("quickly")
def test_it_does_without_a_home(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert library() is not None


@needs_compiler
def test_it_does_without_a_cache(fresh: Path) -> None:
    fresh.write_text("a file where the folder would be")
    loaded = library()
    assert loaded is not None and Path(loaded._name).exists()


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("compiler", ["none", "one that fails", "one that does nothing"])
def test_without_a_compiler_samples_are_the_same(
    compiler: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    if compiler != "none":
        (tools / "cc").write_text(f"#!{sys.executable}\nraise SystemExit({int(compiler == 'one that fails')})\n")
        (tools / "cc").chmod(0o755)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tools))
    assert library() is None
    flow = build("bounded_conditional", torch.float32)
    noise = latents(flow, 2, dtype=torch.float32)
    got = tarflow.sample(flow, 2, noise=noise, solver="sequential")
    assert_close(got, flow.decode(noise), 1e-4)


@pytest.mark.usefixtures("fresh")
def test_it_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TARFLOW_NATIVE", "0")
    assert library() is None
    block = build("conditional", torch.float32).requires_grad_(False).blocks[0]
    with torch.no_grad():
        assert HostStep(block, None, block.new_cache(1)).native is None

"""The compiled step: shapes that fill no vector, numbers that are not finite, threads, and machines without a compiler.

That it is the conditioner for every flow of the table, in any windows, is shown in `test_step.py`.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import tarflow
from flow_cases import assert_close, build, latents, randomise
from tarflow import SequenceFlow, TarFlow, TarFlowConfig, digests
from tarflow.model.block import Block
from tarflow.sampling.cpu import native
from tarflow.sampling.cpu.step import HostStep

needs_compiler = pytest.mark.skipif(native.library() is None, reason="needs GCC and a PyTorch with libgomp")


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A process that has compiled nothing yet, and whose cache is empty; the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("TARFLOW_NATIVE", "TARFLOW_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for remembered in (native.library, native._folder):
        remembered.cache_clear()
    yield tmp_path / "cache"
    for remembered in (native.library, native._folder):
        remembered.cache_clear()


def block_of(width: int, head_dim: int, patch: int = 2, expansion: int = 4) -> Block:
    config = TarFlowConfig(
        6 * patch,
        channels=1,
        patch_size=patch,
        width=width,
        layers=(2,),
        head_dim=head_dim,
        num_classes=3,
        expansion=expansion,
    )
    return randomise(TarFlow(config)).blocks[0]


@needs_compiler
@pytest.mark.parametrize(
    ("width", "head_dim", "patch", "expansion"),
    [(3, 1, 1, 1), (12, 4, 1, 3), (20, 10, 3, 2), (36, 36, 2, 1), (64, 64, 2, 4), (128, 64, 5, 1), (160, 80, 2, 2)],
)
def test_shapes_that_fill_no_vector(width: int, head_dim: int, patch: int, expansion: int) -> None:
    block = block_of(width, head_dim, patch, expansion)
    for rows in (1, 2, 5, 7, 12):
        x, context = torch.randn(rows, 35, patch**2), block.context(torch.arange(rows) % 3)
        caches = [block.new_cache(rows) for _ in range(2)]
        step = HostStep(block, context, caches[0])
        assert step.native is not None
        for start, end in itertools.pairwise([0, 1, 2, 5, 21, 35]):
            want = block.conditioner(x[:, start:end], context, start, caches[1])
            assert_close(step(x[:, start:end], start), want, 2e-5)
        assert_close(caches[0].store, caches[1].store, 2e-5)


@needs_compiler
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 3e38])
def test_what_is_not_finite_stays_so_and_stays_in_its_row(bad: float) -> None:
    block = block_of(16, 8)
    x = torch.randn(3, 35, 4)
    clean, dirty = (HostStep(block, None, block.new_cache(3)) for _ in range(2))
    spoilt = x.clone()
    spoilt[1, 2, 1] = bad
    for i in range(35):
        want, got = clean(x[:, i : i + 1], i), dirty(spoilt[:, i : i + 1], i)
        assert torch.equal(got[::2], want[::2])
        assert torch.isfinite(got[1]).all() == (i < 2)


@needs_compiler
def test_large_numbers_are_as_exact_as_pytorch_has_them() -> None:
    """Attention logits of hundreds, and GELUs far out on both sides."""
    block = block_of(64, 16)
    for layer in block.layers:
        layer.attention.qkv.weight *= 8
        layer.mlp[1].weight *= 4
    x = torch.randn(4, 35, 4) * 5
    step = HostStep(block, None, block.new_cache(4))
    wide = randomise(SequenceFlow(block.config)).double().blocks[0]
    wide.load_state_dict(block.state_dict())
    exact, theirs = wide.conditioner(x.double(), None), block.conditioner(x, None)
    for ours, b, c in zip(step(x, 0).chunk(2, -1), theirs.chunk(2, -1), exact.chunk(2, -1), strict=True):
        limit = 4 * (b - c).abs().max() + 1e-6
        assert (ours - c).abs().max() <= limit


@needs_compiler
@pytest.mark.parametrize("rows", [1, 7])
def test_the_number_of_threads_changes_no_bit(rows: int) -> None:
    block = block_of(80, 20)
    x, results = torch.randn(rows, 35, 4), []
    for threads in (1, 2, 3, 5):
        step = HostStep(block, None, block.new_cache(rows))
        assert step.native is not None
        step.native.threads = threads
        results.append(torch.cat([step(x[:, i : i + 1], i) for i in range(35)], dim=1))
    assert all(torch.equal(result, results[0]) for result in results)


@needs_compiler
def test_it_is_compiled_once(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.library() is not None
    (made,) = (fresh / "tarflow").iterdir()
    native.library.cache_clear()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("it was compiled again"))
    assert native.library() is not None
    assert list((fresh / "tarflow").iterdir()) == [made]


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


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled without much ado: what it computes is not asked."""
    monkeypatch.setattr(native, "FLAGS", tuple(flag.replace("-O2", "-O0") for flag in native.FLAGS))


@needs_compiler
@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("name", SPOILT)
def test_what_is_not_what_this_user_compiled_is_compiled_again(
    name: str, fresh: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert native.library() is not None
    (file,) = (fresh / "tarflow" / f"native-{os.geteuid()}").glob("step-*.so")
    good = file.read_bytes()
    SPOILT[name](file)
    native.library.cache_clear()
    with caplog.at_level("WARNING"):
        assert native.library() is not None
    (line,) = caplog.messages
    assert line.startswith(str(file)) and line.endswith("; compiled again")
    assert not (file.parent.parent / "ran").exists()
    assert digests.opened(file.read_bytes()) is not None and len(file.read_bytes()) == len(good)
    native.library.cache_clear()
    caplog.clear()
    assert native.library() is not None and not caplog.messages


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
        assert native.library() is not None
    assert str(folder) in caplog.text
    assert not list(fresh.rglob("*.so"))


@needs_compiler
@pytest.mark.usefixtures("quickly")
def test_it_does_without_a_home(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert native.library() is not None


@needs_compiler
def test_it_does_without_a_cache(fresh: Path) -> None:
    fresh.write_text("a file where the folder would be")
    loaded = native.library()
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
    assert native.library() is None
    flow = build("bounded_conditional", torch.float32)
    noise = latents(flow, 2, dtype=torch.float32)
    got = tarflow.sample(flow, 2, noise=noise, solver="sequential")
    assert_close(got, flow.decode(noise), 1e-4)


@pytest.mark.usefixtures("fresh")
def test_it_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TARFLOW_NATIVE", "0")
    assert native.library() is None
    block = block_of(16, 8)
    assert HostStep(block, None, block.new_cache(1)).native is None


def test_only_float32_is_native() -> None:
    block = block_of(16, 8).double()
    assert isinstance(block.proj_in, nn.Linear)
    assert HostStep(block, None, block.new_cache(1)).native is None

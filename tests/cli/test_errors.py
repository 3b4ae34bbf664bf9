"""Bad input is one clear line on stderr that names it, exit code 2, no traceback, and nothing left behind.

`GROUPS` is the one source of docs/errors.md: each case is a row there, and its test compares the row with what the
command prints. After a change, `TARFLOW_WRITE_DOCS=1 pytest tests/cli/test_errors.py` writes the rows again.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load
from safetensors.torch import save as save_tensors

import tarflow
from flow_cases import build
from tarflow import recipes
from tarflow.checkpoint import write_config
from tarflow.cli import main
from tarflow.config import DataConfig, RunConfig, TrainingConfig
from tarflow.data.options import LoadOptions
from tarflow.data.store.write import prepare
from tarflow.interop import to_official
from tarflow.training.setup import open_data, resolve
from training_cases import digest_again

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "errors.md"
MARK = "<!-- The rest is written by tests/cli/test_errors.py. -->\n"
SMALL = "[model]\npatch_size = 4\nwidth = 64\nlayers = [1]\n"
ONE_STEP = "[training]\nsteps = 1\nbatch_size = 4\nsample_every = 0\nevaluate_images = 4\n"


class Code:
    """What a pickle must not be able to do: make a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def no_module(patch: pytest.MonkeyPatch, name: str) -> None:
    """A package that is not installed."""
    patch.setitem(sys.modules, name, None)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs and files, good ones and bad ones."""
    root = tmp_path_factory.mktemp("place")
    for name, case, training in (
        ("run", "conditional", TrainingConfig(steps=1)),
        ("unconditional", "unconditional", TrainingConfig(steps=1)),
        ("uniform", "unconditional", TrainingConfig(steps=1, noise="uniform")),
    ):
        flow = build(case, torch.float32)
        flow.save_pretrained(root / name)
        names = tuple("abc"[: flow.config.num_classes])
        write_config(root / name, RunConfig(flow.config, DataConfig(source="digits", class_names=names), training))
    build("unconditional", torch.float32).save_pretrained(root / "model-only")

    def a_run_but(name: str, **files: bytes) -> None:
        (root / name).mkdir()
        for file in ("config.json", "model.safetensors"):
            content = files.get(file.partition(".")[0], (root / "run" / file).read_bytes())
            if content:
                (root / name / file).write_bytes(content)

    a_run_but("no-weights", model=b"")
    a_run_but("bad-json", config=b"{")
    a_run_but("bad-weights", model=b"not safetensors")
    a_run_but("other-weights", model=(root / "unconditional" / "model.safetensors").read_bytes())
    config = json.loads((root / "run" / "config.json").read_text())
    config["model"]["depth"] = 3
    a_run_but("bad-defaults")
    stored = {
        "weights": "",
        "setting": {"guidance": {"scal": 1}},
        "figure": "",
        "value": 0,
        "samples": 1,
        "compared": 1,
    }
    (root / "bad-defaults" / "sampling.json").write_text(json.dumps(stored))
    best = {"weights": "", "labels": "none", "detector": "beauty", "auroc": 0.9, "against": ["inverted"]}
    (root / "bad-defaults" / "detector.json").write_text(json.dumps(best))
    a_run_but("other-version", config=json.dumps(config).encode())

    weights = load((root / "run" / "model.safetensors").read_bytes())
    a_run_but("extra-weights", model=save_tensors(weights | {"extra": torch.zeros(3)}))
    whole = (root / "run" / "model.safetensors").read_bytes()
    a_run_but("flipped-weights", model=whole[:-1] + bytes([whole[-1] ^ 1]))
    a_run_but("bad-metrics")
    (root / "bad-metrics" / "metrics.jsonl").write_text('{"step": 1, "loss": "low"}\n{"step": 2}\n')
    config = json.loads((root / "run" / "config.json").read_text())
    config["data"]["source"] = "hub:owner/name"
    a_run_but("downloaded", config=json.dumps(config).encode())
    name = min(weights)
    a_run_but("nan-weights", model=save_tensors(weights | {name: torch.full_like(weights[name], torch.nan)}))

    (root / "garbage.pth").write_bytes(b"not a checkpoint")
    torch.save({"layer.weight": torch.zeros(3, 3)}, root / "foreign.pth")
    torch.save({"layer.weight": Code(root / "ran")}, root / "pickle.pth")
    state = to_official(
        tarflow.TarFlow(tarflow.TarFlowConfig(8, channels=1, patch_size=4, width=64, layers=(1,), log_scale_bound=None))
    )
    torch.save(state, root / "official.pth")
    torch.save({name: torch.full_like(tensor, torch.nan) for name, tensor in state.items()}, root / "nan.pth")
    torch.save(dict(list(state.items())[:-1]), root / "cut.pth")
    for name, text in (
        ("bad", "[model\n"),
        ("deep", f"[training]\nlr = {'[' * 50_000}\n"),
        ("field", "[model]\nwidht = 64\n"),
        ("section", "[modell]\nwidth = 64\n"),
        ("type", '[model]\nwidth = "wide"\n'),
        ("contradiction", f'{SMALL}transform = "additive"\nlog_scale_bound = 4.0\n{ONE_STEP}'),
        ("small", SMALL + ONE_STEP),
        ("expects", f"{SMALL}{ONE_STEP}[expects]\nimage = 100\n"),
        ("expects-none", f"{SMALL}{ONE_STEP}[expects]\nimages = 0\n"),
    ):
        (root / f"{name}.toml").write_text(text)

    sections = recipes.load(root / "small.toml") | {"data": {"source": "digits"}}
    (root / "begun").mkdir()
    write_config(root / "begun", resolve(sections, open_data(sections)))
    config = json.loads((root / "begun" / "config.json").read_text())
    config["data"]["source"] = str(root / "gone")
    (root / "moved").mkdir()
    (root / "moved" / "config.json").write_text(json.dumps(config))
    for name in ("stopped", "infected"):
        step = root / name / "checkpoints" / "step-1"
        step.mkdir(parents=True)
        for folder in (root / name, step):
            shutil.copy(root / "begun" / "config.json", folder)
    shutil.copy(root / "run" / "model.safetensors", step)
    torch.save({"step": Code(root / "ran")}, step / "state.pt")
    digest_again(step)

    def image(path: str, *shape: int) -> Path:
        file = root / path
        file.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(np.zeros(shape, np.uint8)).save(file)
        return file

    few = build("unconditional", torch.float32)
    for k in range(30):
        image(f"unlabelled/{k}.png", 4, 4)
    for name, share in (("few", 0.5), ("fewer", 0.1)):
        few.save_pretrained(root / name)
        source = DataConfig(source=str(root / "unlabelled"), held_out_fraction=share)
        write_config(root / name, RunConfig(few.config, source, TrainingConfig(steps=1)))

    shutil.copytree(root / "begun", root / "changed")
    config["data"] |= {"source": str(root / "unlabelled"), "place": str(root / "unlabelled")}
    config["data"] |= {"train_digest": "those", "held_out_digest": "of others"}
    (root / "changed" / "config.json").write_text(json.dumps(config))
    flow = tarflow.TarFlow(tarflow.TarFlowConfig(**config["model"]))
    flow.save_weights(root / "changed" / "model.safetensors")

    (root / "empty").mkdir()
    (root / "documents").mkdir()
    (root / "documents" / "notes.txt").write_text("no image")
    image("mixed/0.png", 4, 4), image("mixed/1.png", 6, 4)
    for name in ("broken", "truncated", "zero"):
        image(f"{name}/good.png", 4, 4)
    (root / "broken" / "bad.png").write_bytes(b"no image")
    Image.effect_noise((64, 64), 50).save(root / "whole.png")
    (root / "truncated" / "half.png").write_bytes((root / "whole.png").read_bytes()[:500])
    (root / "zero" / "nothing.jpg").write_bytes(b"")
    image("bomb/good.png", 4, 4), image("loop/good.png", 4, 4)
    bomb = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + bomb + struct.pack(">I", zlib.crc32(bomb))
    (root / "bomb" / "huge.png").write_bytes(head + (root / "bomb" / "good.png").read_bytes()[33:])
    (root / "loop" / "loop.png").symlink_to("loop.png")
    (root / "unreadable").mkdir()
    (root / "unreadable" / "bad.png").write_bytes(b"no image")
    image("one/only.png", 4, 4)
    image("loose/cat/0.png", 4, 4), image("loose/1.png", 4, 4)
    image("unseen/train/cat/0.png", 4, 4), image("unseen/val/dog/0.png", 4, 4)
    (root / "garbage.npz").write_bytes(b"no archive")
    np.savez(root / "keys.npz", pictures=np.zeros((2, 4, 4), np.uint8))
    np.savez(root / "channels.npz", images=np.zeros((2, 4, 4, 4), np.uint8))
    np.savez(root / "labels.npz", images=np.zeros((2, 4, 4), np.uint8), labels=np.array([0, 2**40]))
    np.savez(root / "floats.npz", images=np.zeros((2, 4, 4)))
    (root / "garbage.parquet").write_bytes(b"no table")
    pq.write_table(pa.table({"image": pa.array([b""] * 200_000)}), root / "rows.parquet")
    two = {"image": [b""], "fine_label": [0], "coarse_label": [0]}
    pq.write_table(pa.table(two), root / "labels.parquet")
    for split in ("train", "test"):
        image(f"bottle/bottle/{split}/0.png", 4, 4), image(f"twice/{split}A/0.png", 4, 4)
        image(f"twice/{split}B/0.png", 4, 4)
        image(f"either/{split}{'-images' if split == 'test' else ''}/0.png", 4, 4)
    image("wide/0.png", 4, 4)
    Image.fromarray(np.zeros((4, 4), np.float32)).save(root / "wide" / "1.tif")
    prepare("digits", root / "prepared", LoadOptions())
    prepare("digits", root / "damaged", LoadOptions())
    (root / "pickled").mkdir()
    (root / "pickled" / "train_data_batch_1").write_bytes(b"\x80\x03}q\x00.")
    for k in range(20):
        image(f"stream/{k}.png", 4, 4)
    (root / "stream" / "1.png").write_bytes(b"no image")
    (root / "damaged" / "pixels.bin").write_bytes(b"no array")
    prepare("digits", root / "flipped", LoadOptions())
    pixels = (root / "flipped" / "pixels.bin").read_bytes()
    (root / "flipped" / "pixels.bin").write_bytes(pixels[:-1] + bytes([pixels[-1] ^ 1]))
    prepare("digits", root / "undigested", LoadOptions())
    (root / "undigested" / "digests.json").unlink()
    return root


# --- what goes wrong outside of the command ---------------------------------------------------------------------------


def full_disk(patch: pytest.MonkeyPatch, out: Path) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr(os, "fsync", fsync)


def full_disk_for_weights(patch: pytest.MonkeyPatch, out: Path) -> None:
    from safetensors import SafetensorError

    def save_file(*arguments: object, **named: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    patch.setattr("safetensors.torch.save_file", save_file)


def full_disk_for_state(patch: pytest.MonkeyPatch, out: Path) -> None:
    def save(*arguments: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 654784 vs 654736")

    patch.setattr(torch, "save", save)


def read_only(patch: pytest.MonkeyPatch, out: Path) -> None:
    """As for a user who may not write there; root may write anywhere, so the system's answer is given here."""

    def refuse(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **named: Any) -> Any:
            if Path(path).is_relative_to(out.parent) and not Path(path).is_dir():
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
            return original(path, *arguments, **named)

        return call

    patch.setattr(os, "mkdir", refuse(os.mkdir))
    patch.setattr(os, "open", refuse(os.open))


def unreadable(patch: pytest.MonkeyPatch, out: Path) -> None:
    def read_bytes(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    patch.setattr(Path, "read_bytes", read_bytes)


def no_gpu(patch: pytest.MonkeyPatch, out: Path) -> None:
    patch.setattr(torch.cuda, "is_available", lambda: False)
    patch.setattr(torch.backends.mps, "is_available", lambda: False)


def no_extra(patch: pytest.MonkeyPatch, out: Path) -> None:
    patch.setitem(sys.modules, "efficientnet_lite_pytorch", None)


def full_gpu(patch: pytest.MonkeyPatch, out: Path) -> None:
    def fail(*arguments: object, **named: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    patch.setattr(torch.nn.functional, "scaled_dot_product_attention", fail)


def full_memory(patch: pytest.MonkeyPatch, out: Path) -> None:
    def fail(*arguments: object, **named: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory")

    patch.setattr(torch.nn.functional, "scaled_dot_product_attention", fail)


def full_memory_for_data(patch: pytest.MonkeyPatch, out: Path) -> None:
    def empty(*arguments: object) -> None:
        raise MemoryError

    patch.setattr(np, "empty", empty)


def two_processes(patch: pytest.MonkeyPatch, out: Path) -> None:
    """As rank 0 of a job of two."""
    for name, value in (("RANK", 0), ("WORLD_SIZE", 2), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 2)):
        patch.setenv(name, str(value))


def half_a_job(patch: pytest.MonkeyPatch, out: Path) -> None:
    """Somebody set the number of processes, and not which of them this is."""
    patch.delenv("RANK", raising=False)
    patch.setenv("WORLD_SIZE", "2")


def two_processes_and_one_gpu(patch: pytest.MonkeyPatch, out: Path) -> None:
    two_processes(patch, out)
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "device_count", lambda: 1)
    patch.setattr("tarflow.devices.numbered", torch.device)


def while_it_runs(patch: pytest.MonkeyPatch, out: Path) -> None:
    """The machine is sound; the run has begun, and its directory stays."""


def in_use(patch: pytest.MonkeyPatch, out: Path) -> None:
    """As when another process trains there; tests/training/test_faults.py has a real one."""
    import fcntl

    def refuse(descriptor: int, operation: int) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    out.mkdir()
    (out / ".lock").write_text("process 123 on gpu-7")
    patch.setattr(fcntl, "flock", refuse)


def a_link_for_a_lock(patch: pytest.MonkeyPatch, out: Path) -> None:
    out.mkdir()
    (out / ".lock").symlink_to(Path(__file__))


def being_prepared(patch: pytest.MonkeyPatch, out: Path) -> None:
    """As when another process makes it; tests/data/test_prepared.py has a real one."""
    in_use(patch, out)
    (out / ".lock").rename(out.with_name(f".{out.name}.lock"))


def no_datasets(patch: pytest.MonkeyPatch, out: Path) -> None:
    patch.setitem(sys.modules, "datasets", None)


@dataclass(frozen=True)
class Case:
    """A command, words that its message must hold, and what the page advises.

    `fault` breaks the machine first; `leaves` are the whole files that may be there afterwards.
    """

    command: str
    words: list[str]
    do: str
    fault: Callable[[pytest.MonkeyPatch, Path], None] | None = None
    leaves: tuple[str, ...] = ()


def without(package: str) -> Callable[[pytest.MonkeyPatch, Path], None]:
    """As if a package were not installed."""
    return lambda patch, out: patch.setitem(sys.modules, package, None)


GROUPS: dict[str, dict[str, Case]] = {
    "The command line": {
        "no such command": Case("smaple", ["smaple", "sample"], "`tarflow --help` lists the commands."),
        "missing arguments": Case("sample", ["--out"], "Give what the message names."),
        "unknown option": Case(
            "sample {p}/run --out {o}.png --guidence 2", ["--guidence"], "Options stand in `tarflow COMMAND --help`."
        ),
        "nearly an option": Case("train --stepss 5", ["--stepss", "--steps"], "Take the name it proposes."),
        "a misspelt negative": Case(
            "evaluate {p}/run --no-clasify", ["--no-clasify", "--no-classify"], "Take the name it proposes."
        ),
        "an option without its value": Case("train --recipe --out {o}", ["--recipe"], "Give the value."),
        "a command alone": Case("train", ["--out"], "Give what the message names."),
        "not a number": Case("sample {p}/run --out {o}.png -n five", ["five", "-n"], "Give a whole number."),
        "no samples": Case("sample {p}/run --out {o}.png -n 0", ["-n", "0"], "Ask for one or more."),
        "no batch": Case(
            "sample {p}/run --out {o}.png --batch-size 0", ["batch_size"], "Leave it out, or give one or more."
        ),
    },
    "Runs and models": {
        "no such run": Case("sample {p}/nowhere --out {o}.png", ["nowhere"], "Give the directory that `--out` named."),
        "a directory that is no run": Case(
            "sample {p}/empty --out {o}.png", ["empty", "config.json"], "Give a run, a `step-N` of it, or a model."
        ),
        "a config that is not JSON": Case(
            "sample {p}/bad-json --out {o}.png", ["bad-json/config.json", "JSON"], "Restore it from a `step-N`."
        ),
        "a config of another version": Case(
            "sample {p}/other-version --out {o}.png", ["config.json", "depth"], "Use the version that wrote it."
        ),
        "no weights": Case(
            "sample {p}/no-weights --out {o}.png", ["no-weights/model.safetensors"], "Copy both files, not one."
        ),
        "weights that are garbage": Case(
            "sample {p}/bad-weights --out {o}.png", ["bad-weights/model.safetensors"], "Copy or download it again."
        ),
        "weights with a tensor too many": Case(
            "sample {p}/extra-weights --out {o}.png",
            ["extra-weights/model.safetensors", "extra"],
            "Put together the two files of one run.",
        ),
        "weights of which a bit has changed": Case(
            "sample {p}/flipped-weights --out {o}.png",
            ["flipped-weights/model.safetensors", "digest"],
            "Copy or download it again, or take a `step-N`.",
        ),
        "weights that are not finite numbers": Case(
            "sample {p}/nan-weights --out {o}.png",
            ["nan-weights/model.safetensors", "not finite"],
            "Take a `step-N` from before.",
        ),
        "weights of another model": Case(
            "sample {p}/other-weights --out {o}.png",
            ["other-weights/model.safetensors", "tensor"],
            "Put together the two files of one run.",
        ),
    },
    "The hub": {
        "a model of the hub without its library": Case(
            "sample alice/flowers --out {o}.png",
            ["alice/flowers", "huggingface_hub", "tarflow[hub]"],
            "Install it; or check the path.",
            without("huggingface_hub"),
        ),
        "no id of the hub": Case(
            "sample hub:flowers --out {o}.png", ["hub:flowers", "hub:OWNER/NAME"], "Name the owner, too."
        ),
        "a push without its library": Case(
            "push {p}/run alice/flowers --licence mit",
            ["alice/flowers", "tarflow[hub]"],
            "Install it; `--dry-run` does without.",
            without("huggingface_hub"),
        ),
        "a push without a licence": Case(
            "push {p}/run alice/flowers", ["--licence"], "Say under which others may use it."
        ),
        "a licence in words": Case(
            "push {p}/run alice/flowers --licence (c)_me --dry-run {o}",
            ["licence", "mit", "(c)_me"],
            "Take the hub's name for it, or `other`.",
        ),
        "a push to no name": Case(
            "push {p}/run flowers --licence mit --dry-run {o}", ["flowers", "OWNER/NAME"], "Name the owner, too."
        ),
        "a push into a folder of something else": Case(
            "push {p}/run alice/flowers --licence mit --dry-run {p}/documents",
            ["documents", "notes.txt", "empty"],
            "Give a new or empty directory.",
        ),
    },
    "Sampling": {
        "unknown class": Case(
            "sample {p}/run --out {o}.png --classes zebra", ["zebra", "a, b, c"], "Give one of the names, or `null`."
        ),
        "class of an unconditional model": Case(
            "sample {p}/unconditional --out {o}.png --classes 1", ["--classes"], "Leave `--classes` out."
        ),
        "guidance without classes": Case(
            "sample {p}/unconditional --out {o}.png --guidance 2",
            ["guidance", "temperature"],
            "Add `--temperature 0.3`, with a scale of 0.2 or so.",
        ),
        "negative guidance": Case(
            "sample {p}/run --out {o}.png --guidance -1", ["guidance", "-1"], "0 is none; 1 to 3 are usual."
        ),
        "temperature without guidance": Case(
            "sample {p}/run --out {o}.png --temperature 0.5", ["--guidance"], "Add `--guidance`."
        ),
        "temperature of zero": Case(
            "sample {p}/run --out {o}.png --guidance 1 --temperature 0", ["temperature"], "0.3 is usual; 1 is none."
        ),
        "sigma and no denoising": Case(
            "sample {p}/run --out {o}.png --no-denoise --noise-std 0.1", ["--noise-std"], "Leave one of them out."
        ),
        "no stored noise": Case(
            "sample {p}/model-only --out {o}.png", ["--noise-std", "--no-denoise"], "Give one of the two options."
        ),
        "unknown solver": Case(
            "sample {p}/run --out {o}.png --solver newton", ["newton", "jacobi"], "Take one of the list."
        ),
        "window without its solver": Case(
            "sample {p}/run --out {o}.png --window 8", ["window", "jacobi"], "Add `--solver jacobi`."
        ),
        "unknown kind of output": Case(
            "sample {p}/run --out {o}.jpg", [".jpg"], "A sheet is `.png`, an archive `.npz`; else a directory."
        ),
        "samples among other files": Case(
            "sample {p}/run --out {p}/documents", ["documents", "notes.txt", "empty"], "Give a new or empty directory."
        ),
    },
    "Quality and sweeps": {
        "quality without its extra": Case(
            "quality {p}/run -n 20", ["efficientnet", "tarflow[metrics]", "--extractor"], "Install it.", no_extra
        ),
        "FID without weights": Case(
            "quality {p}/run --extractor inception", ["inception", "--weights"], "Name the file of weights."
        ),
        "FID with other weights": Case(
            "quality {p}/run --extractor inception --weights {p}/foreign.pth",
            ["foreign.pth", "missing", "Inception"],
            "Take the file that it names.",
        ),
        "FID with weights that hold code": Case(
            "sweep {p}/run --extractor inception --weights {p}/pickle.pth",
            ["pickle.pth", "Inception"],
            "Take the file that it names.",
        ),
        "FID with a file that is not there": Case(
            "quality {p}/run --extractor inception --weights {p}/no.pth", ["no.pth"], "Check the path."
        ),
        "weights for another extractor": Case(
            "quality {p}/run --weights {p}/foreign.pth", ["weights", "inception"], "Add `--extractor inception`."
        ),
        "features of classes that are not there": Case(
            "quality {p}/few --extractor classifier", ["classifier", "labelled"], "Take another extractor."
        ),
        "quality of too few samples": Case("quality {p}/run -n 5", ["-n", "12", "5"], "Ask for more, thousands."),
        "too few to compare with": Case(
            "quality {p}/run --reference 5 --extractor classifier", ["--reference", "12"], "Leave it out."
        ),
        "too few images to compare with": Case(
            "quality {p}/fewer --extractor classifier", ["fewer", "12", "held-out", "3"], "Hold out more in training."
        ),
        "quality of a model alone": Case(
            "quality {p}/model-only --no-denoise", ["model-only", "data"], "Give a run that was trained here."
        ),
        "a sweep of guidance that does nothing": Case(
            "sweep {p}/unconditional --temperature 1", ["guidance", "temperature"], "Leave `--temperature` out."
        ),
        "a sweep of negative guidance": Case("sweep {p}/run --guidance 0 -1", ["guidance", "-1"], "Take 0 or more."),
        "a sweep of denoising without noise": Case(
            "sweep {p}/uniform --strength 1", ["denoising strength", "Gaussian"], "Leave `--strength` out."
        ),
        "a sweep of negative denoising": Case(
            "sweep {p}/run --strength -0.5", ["denoising strength", "-0.5"], "0 is none, 1 is σ."
        ),
        "defaults that are damaged": Case(
            "sample {p}/bad-defaults --out {o}.png",
            ["bad-defaults/sampling.json", "scal", "scale"],
            "`tarflow sweep` again, `--no-defaults`, or remove the file.",
        ),
    },
    "Training and recipes": {
        "an unknown log": Case(
            "train --data digits --out {o} --log mlflow", ["--log", "tensorboard", "mlflow"], "Take one of the list."
        ),
        "neither recipe nor data": Case("train --out {o}", ["--recipe", "--data"], "Give one of them."),
        "unknown recipe": Case("train --recipe digit --out {o}", ["digit", "digits"], "Take one of the list."),
        "no such recipe file": Case("train --recipe {p}/no.toml --out {o}", ["no.toml"], "Check the path."),
        "recipe that is not TOML": Case(
            "train --recipe {p}/bad.toml --out {o}", ["bad.toml"], "Mend the line that it names."
        ),
        "recipe nested without end": Case("train --recipe {p}/deep.toml --out {o}", ["deep.toml"], "Do not trust it."),
        "recipe with an unknown field": Case(
            "train --recipe {p}/field.toml --data digits --out {o}", ["widht", "width"], "Take the name it proposes."
        ),
        "recipe with an unknown section": Case(
            "train --recipe {p}/section.toml --data digits --out {o}", ["modell"], "Take one of the three."
        ),
        "recipe with a value of another type": Case(
            "train --recipe {p}/type.toml --data digits --out {o}", ["width", "wide"], "Give what was expected."
        ),
        "recipe that contradicts itself": Case(
            "train --recipe {p}/contradiction.toml --data digits --out {o}",
            ["log_scale_bound", "additive"],
            "Drop one of the two fields.",
        ),
        "impossible width": Case(
            "train --recipe digits --out {o} --width 65", ["width", "65"], "Give a multiple of 64."
        ),
        "impossible patch": Case(
            "train --recipe digits --out {o} --patch-size 3", ["patch_size", "3"], "Give a divisor of the image size."
        ),
        "a single patch": Case(
            "train --recipe digits --out {o} --patch-size 8", ["model.patch_size", "two patches", "8"], "A smaller one."
        ),
        "steps and epochs": Case(
            "train --recipe digits --out {o} --steps 5 --epochs 1", ["steps", "epochs"], "Give one of them."
        ),
        "negative rate": Case(
            "train --recipe digits --out {o} --lr -1", ["lr", "-1"], "Leave it out, or 1e-4 to 3e-3."
        ),
        "unknown noise": Case(
            "train --recipe digits --out {o} --noise pink", ["pink", "gaussian"], "`gaussian` or `uniform`."
        ),
        "everything held out": Case(
            "train --recipe digits --out {o} --held-out-fraction 2", ["held_out_fraction", "2"], "0.1 is usual."
        ),
        "micro-batches that do not fit": Case(
            "train --recipe digits --out {o} --batch-size 32 --accumulate 5",
            ["training.accumulate", "32", "5"],
            "Give a number that divides the batch.",
        ),
        "a run that is there already": Case(
            "train --recipe digits --out {p}/run", ["run", "--resume"], "`--resume`, or another `--out`."
        ),
        "out is a file": Case("train --recipe digits --out {p}/bad.toml", ["bad.toml"], "Give another `--out`."),
        "recipe on resuming": Case(
            "train --recipe digits --resume --out {p}/run", ["--recipe", "--resume"], "Leave `--recipe` out."
        ),
        "another rate on resuming": Case(
            "train --resume --out {p}/begun --lr 1", ["training.lr", "1"], "Leave it out, or start a run with `--init`."
        ),
        "a run that another process is training": Case(
            "train --recipe digits --out {o}",
            ["out", "process 123 on gpu-7"],
            "Wait for it, or give another `--out`.",
            in_use,
            ("out/.lock",),
        ),
        "a lock that is a link": Case(
            "train --recipe digits --out {o}",
            ["out/.lock", "link", "remove it"],
            "Remove it; somebody has put it there.",
            a_link_for_a_lock,
            ("out/.lock",),
        ),
        "no sound checkpoint": Case(
            "train --resume --out {p}/stopped",
            ["stopped", "step-1/model.safetensors: missing"],
            "Put one back, or start anew.",
        ),
        "a checkpoint with code in it": Case(
            "train --resume --out {p}/infected", ["step-1/state.pt", "never run"], "Do not trust it."
        ),
        "data that have moved": Case(
            "train --resume --out {p}/moved", ["gone", "--data"], "Name their new place; they are known by a digest."
        ),
        "other data in their place": Case(
            "train --resume --out {p}/changed",
            ["data.source", "unlabelled", "changed", "--data"],
            "Put them back, or name their new place.",
        ),
        "a run among its own images": Case(
            "train --data {p}/unlabelled --out {p}/unlabelled", ["--out", "unlabelled"], "Give another `--out`."
        ),
        "start from garbage": Case(
            "train --data digits --init {p}/garbage.pth --out {o}", ["garbage.pth"], "Give a run or a checkpoint."
        ),
        "another width than the weights to start from": Case(
            "train --data {p}/nowhere --init {p}/run --width 64 --out {o}",
            ["model.width", "64"],
            "Leave `--width` out.",
        ),
        "start from nothing": Case("train --data digits --init {p}/nowhere --out {o}", ["nowhere"], "Check the path."),
    },
    "Images": {
        "no such data": Case("train --data {p}/nowhere --out {o}", ["nowhere"], "Check the path."),
        "a set of the hub without the library": Case(
            "train --data hub:owner/name --out {o}", ["hub:owner/name", "tarflow[hub]"], "Install it.", no_datasets
        ),
        "misspelt data": Case("train --data digit --out {o}", ["digit", "digits"], "Take the name it proposes."),
        "empty folder": Case("train --data {p}/empty --out {o}", ["empty"], "Give the folder that holds the images."),
        "folder without images": Case("train --data {p}/documents --out {o}", ["documents"], "The same."),
        "no image can be read": Case(
            "train --data {p}/unreadable --skip-bad --out {o}", ["unreadable", "bad.png"], "The same."
        ),
        "a single image": Case("train --data {p}/one --out {o}", ["one", "2"], "One is trained on, one held out."),
        "images of several sizes": Case(
            "train --recipe digits --data {p}/mixed --out {o}", ["0.png", "1.png"], "Add `--image-size`."
        ),
        "a file that is no image": Case(
            "train --recipe digits --data {p}/broken --out {o}", ["bad.png"], "Remove it, or add `--skip-bad`."
        ),
        "a truncated image": Case("train --data {p}/truncated --out {o}", ["half.png"], "The same."),
        "an empty image file": Case("train --data {p}/zero --out {o}", ["nothing.jpg", "empty"], "The same."),
        "an image of an absurd size": Case(
            "train --data {p}/bomb --out {o}", ["huge.png", "too many pixels"], "Remove it, or add `--skip-bad`."
        ),
        "a link in circles": Case("train --data {p}/loop --out {o}", ["loop.png", "symbolic links"], "The same."),
        "images beside class folders": Case(
            "train --data {p}/loose --out {o}", ["loose", "cat"], "Move all into class folders, or none."
        ),
        "a class that training lacks": Case(
            "train --data {p}/unseen --out {o}", ["dog", "train"], "Add it to the training folder, or remove it."
        ),
        "splits inside of a class": Case(
            "train --data {p}/bottle --out {o}", ["bottle", "train/ and test/"], "Give the folder that holds them."
        ),
        "splits or classes": Case(
            "train --data {p}/either --out {o}", ["test-images/", "train/"], "Name them alike, or otherwise."
        ),
        "two folders for one split": Case(
            "train --data {p}/twice --out {o}", ["testA/", "testB/", "test split"], "Give one of them at a time."
        ),
        "several columns of labels": Case(
            "train --data {p}/labels.parquet --out {o}",
            ["fine_label", "coarse_label", "--label-column"],
            "Choose one, or `none`.",
        ),
        "a column that is not there": Case(
            "train --data {p}/labels.parquet --label-column species --out {o}", ["species", "fine_label"], "The same."
        ),
        "a column of a folder": Case(
            "train --data {p}/unlabelled --label-column species --out {o}", ["unlabelled", "species"], "Leave it out."
        ),
        "pixels without a range": Case(
            "train --data {p}/wide --out {o}", ["1.tif", "--value-range"], "Give the range that they have."
        ),
        "a range that is none": Case(
            "train --data {p}/wide --value-range 9 5 --out {o}", ["value_range", "9", "5"], "The lower one first."
        ),
        "an archive that is none": Case("train --data {p}/garbage.npz --out {o}", ["garbage.npz"], "Write it again."),
        "an archive without images": Case(
            "train --data {p}/keys.npz --out {o}", ["keys.npz", "images", "pictures"], "Name the array `images`."
        ),
        "wrong number of channels": Case(
            "train --data {p}/channels.npz --out {o}", ["channels.npz", "C 1 or 3"], "Save grey or RGB."
        ),
        "a label that is no class": Case(
            "train --data {p}/labels.npz --out {o}", ["labels.npz", "1099511627776"], "Number the classes from 0."
        ),
        "wrong type of pixels": Case(
            "train --data {p}/floats.npz --out {o}", ["floats.npz", "uint8", "float64"], "Save whole numbers, 0 to 255."
        ),
        "a table that is none": Case(
            "train --data {p}/garbage.parquet --out {o}", ["garbage.parquet"], "Download it again."
        ),
        "a table that claims too many rows": Case(
            "train --data {p}/rows.parquet --out {o}", ["rows.parquet", "200000 rows"], "Do not trust it."
        ),
        "wrong file": Case("train --data {p}/bad.toml --out {o}", ["bad.toml", ".parquet"], "Give one of these kinds."),
    },
    "Preparing data": {
        "prepare nothing": Case("prepare {p}/nowhere --out {o}", ["nowhere"], "Check the path."),
        "prepare without a directory": Case("prepare digits", ["--out"], "Name the directory to make."),
        "prepare a folder with a file that is no image": Case(
            "prepare {p}/broken --out {o}", ["bad.png", "skip_bad"], "Remove it, or add `--skip-bad`."
        ),
        "prepare images of several sizes": Case(
            "prepare {p}/mixed --out {o}", ["0.png", "1.png", "image size"], "Add `--image-size`."
        ),
        "prepare into a folder of something else": Case(
            "prepare digits --out {p}/mixed", ["mixed", "new directory"], "Give another `--out`."
        ),
        "prepared otherwise before": Case(
            "prepare digits --out {p}/prepared --image-size 4",
            ["image size None", "image size 4", "--force"],
            "Give another `--out`, or add `--force`.",
        ),
        "prepared from other images before": Case(
            "prepare {p}/one --out {p}/prepared",
            ["prepared from digits", "--force"],
            "Give another `--out`, or add `--force`.",
        ),
        "prepare what is prepared": Case(
            "prepare {p}/prepared --out {o}", ["prepared already"], "Give the images that it was made of."
        ),
        "prepare half of the images held out twice": Case(
            "prepare digits --out {o} --held-out-fraction 2", ["held_out_fraction", "2"], "0.1 is usual."
        ),
        "a pickled batch of ImageNet": Case(
            "prepare {p}/pickled --out {o}", ["train_data_batch_1", "pickle", ".npz"], "Take the `.npz` form."
        ),
        "a directory that another process is preparing": Case(
            "prepare digits --out {o}",
            ["out", "process 123 on gpu-7"],
            "Wait for it, or give another `--out`.",
            being_prepared,
            (".out.lock",),
        ),
        "prepare with a disk that is full": Case(
            "prepare digits --out {o}", ["out", "No space left"], "Make room; nothing was left.", full_disk
        ),
        "train at another size than prepared": Case(
            "train --data {p}/prepared --image-size 4 --patch-size 2 --out {o}",
            ["8x8", "4x4", "prepare"],
            "Give the size that it has, or prepare it at the other.",
        ),
        "a prepared directory that is damaged": Case(
            "train --recipe digits --data {p}/damaged --out {o}",
            ["damaged/pixels.bin"],
            "Prepare it again, with `--force`.",
        ),
        "check one of which a bit has flipped": Case(
            "prepare --check {p}/flipped", ["flipped/pixels.bin", "digest", "--force"], "The same."
        ),
        "check one without its digests": Case(
            "prepare --check {p}/undigested", ["undigested/digests.json", "missing", "--force"], "The same."
        ),
        "check what was not prepared": Case(
            "prepare --check {p}/mixed", ["mixed", "prepare"], "Give the directory that `--out` named."
        ),
        "check nothing": Case("prepare --check {p}/nowhere", ["nowhere", "prepare"], "Check the path."),
        "check and prepare at once": Case(
            "prepare digits --out {o} --check {p}/prepared", ["digits", "--out"], "Give `--check DIR` alone."
        ),
    },
    "Planning": {
        "plan of an unknown recipe": Case("plan imagenet --device h100", ["imagenet64"], "Take one of the list."),
        "plan for an unknown device": Case("plan cifar10 --device h10", ["h10", "h100"], "Take one of the list."),
        "plan for a GPU that is not there": Case(
            "plan cifar10 --device cuda", ["cuda", "h100"], "Name the device that you will have.", no_gpu
        ),
        "plan for devices that cannot share a batch": Case(
            "plan cifar10 --device h100 --devices 3",
            ["batch_size", "3", "256"],
            "Give a batch that they divide, or other devices.",
        ),
        "plan without the size of the images": Case(
            "plan {p}/small.toml --device h100", ["image_size", "--data"], "Give one of the two."
        ),
        "plan without the number of images": Case(
            "plan default --device h100 --epochs 2", ["images", "epochs"], "Add `--images`, or `--data`."
        ),
        "plan with fewer than no images": Case(
            "plan digits --device h100 --images -5", ["images", "-5"], "Leave it out, or give one or more."
        ),
        "plan with more than all of a device": Case(
            "plan cifar10 --device h100 --share 2", ["share", "2"], "0.4 is assumed."
        ),
        "recipe that expects what is no field": Case(
            "plan {p}/expects.toml --device h100", ["expects.toml", "expects.image", "images"], "Take one of the list."
        ),
        "recipe that expects no images": Case(
            "plan {p}/expects-none.toml --device h100", ["expects-none.toml", "expects.images", "0"], "Give a number."
        ),
    },
    "Evaluating and denoising": {
        "labels that are not there": Case(
            "evaluate {p}/run --data {p}/mixed --labels given", ["label"], "`--labels marginal` or `null`."
        ),
        "classes that the model lacks": Case(
            "evaluate {p}/run", ["unknown class '0'", "a, b, c"], "Name the folders as the model's classes."
        ),
        "nothing to evaluate": Case("evaluate {p}/run --data {p}/empty", ["empty"], "Give a folder with images."),
        "no draws": Case(
            "evaluate {p}/unconditional --data {p}/mixed --draws 0", ["draws", "0"], "Give one or more; 4 is usual."
        ),
        "anomalies that are not there": Case(
            "evaluate {p}/unconditional --data {p}/mixed --against {p}/nowhere", ["nowhere"], "Check the path."
        ),
        "a negative number in float64": Case(
            "evaluate {p}/unconditional --data {p}/mixed --float64 -1", ["--float64", "-1"], "0 scores none."
        ),
        "a run that names a set of the hub": Case(
            "evaluate {p}/downloaded",
            ["downloaded", "--data hub:owner/name"],
            "Ask for it, where it may be downloaded.",
        ),
        "data that have changed": Case(
            "evaluate {p}/changed", ["unlabelled", "changed", "--data"], "Put them back, or name their new place."
        ),
        "no data stored": Case("evaluate {p}/model-only", ["model-only", "data"], "Give a run that was trained here."),
        "denoise with a model of exact images": Case(
            "denoise {p}/uniform digits --out {o}", ["uniform", "--noise-std"], "Use a run of Gaussian noise."
        ),
        "denoise nothing": Case("denoise {p}/run {p}/nowhere --out {o}", ["nowhere"], "Check the path."),
        "denoise none": Case(
            "denoise {p}/unconditional {p}/mixed --out {o} --limit 0", ["--limit"], "Leave it out, or give one or more."
        ),
        "denoise with an unknown class": Case(
            "denoise {p}/run {p}/mixed --class zebra --out {o}",
            ["zebra", "a, b, c"],
            "Give one of the names, or `null`.",
        ),
        "denoise with no noise": Case(
            "denoise {p}/run {p}/mixed --noise-std 0 --class null --out {o}.png",
            ["sigma", "0"],
            "Give the σ of the noise.",
        ),
    },
    "Scoring and reporting": {
        "nothing to score": Case("score {p}/run {p}/empty --out {o}.csv", ["empty"], "Give a folder with images."),
        "no such images": Case("score {p}/run {p}/nowhere --out {o}.csv", ["nowhere"], "Check the path."),
        "score without a file": Case("score {p}/run {p}/mixed", ["--out"], "Name the CSV file to write."),
        "score under an unknown class": Case(
            "score {p}/run {p}/mixed --class zebra --out {o}.csv",
            ["zebra", "a, b, c"],
            "Give one of the names, or `null`.",
        ),
        "score under a class that is not there": Case(
            "score {p}/unconditional {p}/mixed --class 1 --out {o}.csv", ["unconditional"], "Leave `--class` out."
        ),
        "score by a default that is damaged": Case(
            "score {p}/bad-defaults {p}/mixed --out {o}.csv",
            ["bad-defaults/detector.json", "beauty", "typicality"],
            "Remove the file, or `tarflow evaluate --against` again.",
        ),
        "score with no draws": Case(
            "score {p}/run {p}/mixed --draws 0 --out {o}.csv", ["draws", "0"], "Give one or more; 4 is usual."
        ),
        "maps among the images": Case(
            "score {p}/run {p}/mixed --maps {p}/mixed/maps --out {o}.csv", ["--maps", "mixed"], "Give another place."
        ),
        "maps into a file": Case(
            "score {p}/run {p}/mixed --maps {p}/bad.toml --out {o}.csv", ["bad.toml"], "Give a new directory."
        ),
        "report on nothing": Case(
            "report {p}/nowhere --out {o}", ["nowhere"], "Give the directory that `--out` named."
        ),
        "report on metrics that are no numbers": Case(
            "report {p}/bad-metrics --out {o}", ["metrics.jsonl:1", "numbers"], "Remove the line."
        ),
        "report without a run": Case("report", ["RUN"], "Give one run or more."),
        "a page at a port that is none": Case("play {p}/run --port 99999", ["--port", "99999"], "Give 0 to 65535."),
        "a page without gradio": Case(
            "play {p}/run", ["gradio", "tarflow[ui]"], "Install the extra.", lambda patch, _: no_module(patch, "gradio")
        ),
        "report without images": Case("report {p}/run --images 0 --out {o}", ["images", "0"], "Give one or more."),
    },
    "Official checkpoints": {
        "garbage": Case(
            "convert {p}/garbage.pth {o} --noise-std 0.1", ["garbage.pth"], "Download it again; Git LFS leaves a stub."
        ),
        "a checkpoint of something else": Case(
            "convert {p}/foreign.pth {o} --noise-std 0.1", ["foreign.pth"], "Only apple/ml-tarflow's are read."
        ),
        "a pickle with code in it": Case(
            "convert {p}/pickle.pth {o} --noise-std 0.1", ["pickle.pth", "never run"], "Do not trust it."
        ),
        "a tensor is missing": Case(
            "convert {p}/cut.pth {o} --noise-std 0.1", ["cut.pth", "missing"], "Save it whole."
        ),
        "weights that are not finite": Case(
            "convert {p}/nan.pth {o} --noise-std 0.1",
            ["nan.pth", "finite"],
            "Take a checkpoint from before it diverged.",
        ),
        "the noise is not known": Case(
            "convert {p}/garbage.pth {o}", ["garbage.pth", "--noise-std"], "0 is uniform noise."
        ),
        "no such checkpoint": Case("convert {p}/nowhere_0.05.pth {o} --noise-std 0.1", ["nowhere"], "Check the path."),
        "wrong number of class names": Case(
            "convert {p}/official.pth {o} --noise-std 0.1 --class-names cat dog",
            ["--class-names", "2"],
            "One name a class.",
        ),
        "wrong image size": Case(
            "convert {p}/official.pth {o} --noise-std 0.1 --image-size 12",
            ["12"],
            "Leave it out where images are square.",
        ),
        "there is a model already": Case(
            "convert {p}/official.pth {p}/run --noise-std 0.1", ["run"], "Give another directory."
        ),
    },
    "Several processes": {
        "a command for one process": Case(
            "sample {p}/run --out {o}.png",
            ["rank 0 of 2", "tarflow train", "without it"],
            "Start it without `torchrun`.",
            two_processes,
        ),
        "half an environment": Case(
            "train --recipe {p}/small.toml --data digits --out {o}",
            ["RANK", "torchrun"],
            "Start the job with `torchrun`, which sets all of them.",
            half_a_job,
        ),
        "more processes than GPUs": Case(
            "train --recipe {p}/small.toml --data digits --out {o} --device cuda",
            ["2 processes", "1 GPU"],
            "As many processes a node (`--nproc_per_node`) as it has GPUs.",
            two_processes_and_one_gpu,
        ),
    },
    "The machine": {
        "no such device": Case(
            "sample {p}/run --out {o}.png --device cuda", ["cuda", "cpu"], "`--device cpu`.", no_gpu
        ),
        "GPU out of memory": Case(
            "sample {p}/run --out {o}.png", ["out of memory", "--batch-size"], "Lower `--batch-size`.", full_gpu
        ),
        "out of memory": Case(
            "sample {p}/run --out {o}.png", ["out of memory", "--batch-size"], "Lower `--batch-size`.", full_memory
        ),
        "GPU out of memory in training": Case(
            "train --recipe {p}/small.toml --data digits --out {o}",
            ["activations", "--accumulate", "--batch-size"],
            "Raise `--accumulate`, and `--resume`; it is the same run up to rounding.",
            full_gpu,
            ("out/config.json", "out/metrics.jsonl", "out/split.json.gz"),
        ),
        "more images than memory": Case(
            "train --data {p}/mixed --out {o}",
            ["memory", "image size"],
            "Lower `--image-size`, or give fewer images.",
            full_memory_for_data,
        ),
        "disk full, a sheet": Case(
            "sample {p}/run -n 2 --out {o}.png", ["out.png", "No space left"], "Make room; nothing was left.", full_disk
        ),
        "disk full, a folder": Case(
            "sample {p}/run -n 2 --out {o}", ["out/0-a.png", "No space left"], "Make room.", full_disk
        ),
        "disk full, a model": Case(
            "convert {p}/official.pth {o} --noise-std 0.1",
            ["out/model.safetensors", "No space left"],
            "Make room.",
            full_disk_for_weights,
        ),
        "disk full, a checkpoint": Case(
            "train --recipe {p}/small.toml --data digits --out {o}",
            ["out/checkpoints/step-1", "room on the disk"],
            "Make room, then `--resume`.",
            full_disk_for_state,
            ("out/config.json", "out/metrics.jsonl", "out/model.safetensors", "out/split.json.gz"),
        ),
        "a directory that is read-only": Case(
            "sample {p}/run -n 2 --out {o}.png", ["out.png", "Permission denied"], "Give another `--out`.", read_only
        ),
        "a run in a read-only directory": Case(
            "train --recipe digits --out {o}", ["out", "Permission denied"], "Give another `--out`.", read_only
        ),
        "a file that may not be read": Case(
            "train --data {p}/one --out {o}", ["only.png", "Permission denied"], "Change its mode.", unreadable
        ),
    },
}
CASES = {name: case for group in GROUPS.values() for name, case in group.items()}

# What differs from one version of Python or PyTorch to the next.
VARIES = [
    (r"TOML file: .*", "TOML file: …"),
    (r"not JSON \(.*\)", "not JSON (…)"),
    (r"safetensors file \(.*?\)", "safetensors file (…)"),
    (r"rows in \d+ bytes", "rows in … bytes"),
]


def row(name: str, place: Path, out: Path, printed: str) -> str:
    """The row of the page for a case of which this was printed."""

    def shown(text: str) -> str:
        text = text.replace(f"{place}/", "").replace(str(out), "OUT").replace("|", "\\|")
        return f"`` {text} ``" if "`" in text else f"`{text}`"

    for pattern, replacement in VARIES:
        printed = re.sub(pattern, replacement, printed)
    case = CASES[name]
    command = case.command.format(p=place, o=out)
    return f"| {name} | {shown('tarflow ' + command)} | {shown(printed)} | {case.do} |\n"


@pytest.fixture(scope="module")
def written() -> Iterator[dict[str, str]]:
    """Rows by the name of their case; with TARFLOW_WRITE_DOCS they become the page."""
    rows: dict[str, str] = {}
    yield rows
    if os.environ.get("TARFLOW_WRITE_DOCS") and rows.keys() == CASES.keys():
        text = PAGE.read_text().partition(MARK)[0] + MARK
        for title, group in GROUPS.items():
            text += f"\n## {title}\n\n| what | command | printed | what to do |\n| --- | --- | --- | --- |\n"
            text += "".join(rows[name] for name in group)
        PAGE.write_text(text)


@pytest.mark.parametrize("name", CASES)
def test_one_line_that_names_it(
    name: str,
    place: Path,
    written: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = CASES[name]
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        if case.fault is not None:
            case.fault(patch, out)
        code = main(case.command.format(p=place, o=out).split())
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("tarflow: error: ")]
    assert code == 2
    assert len(lines) == 1 and captured.err.splitlines()[-1] == lines[0]
    assert "not expected" not in lines[0] and "Traceback" not in captured.err
    for word in case.words:
        assert word in lines[0], f"{word!r} is not in {lines[0]!r}"
    assert captured.out == ""
    left = [path for path in tmp_path.rglob("*") if path.is_file() or case.fault is None]
    assert sorted(str(path.relative_to(tmp_path)) for path in left) == sorted(case.leaves), "something was left behind"
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
    written[name] = row(name, place, out, lines[0].removeprefix("tarflow: error: "))
    if not os.environ.get("TARFLOW_WRITE_DOCS"):
        assert written[name] in PAGE.read_text(), "docs/errors.md says something else; see this file's first lines"


@pytest.mark.skipif("TARFLOW_WRITE_DOCS" in os.environ, reason="the page is being written")
def test_the_page_has_a_row_for_each_case_and_no_other() -> None:
    rows = re.findall(r"^\| (?!what \||---)([^|]+) \|", PAGE.read_text().partition(MARK)[2], re.MULTILINE)
    assert rows == list(CASES)
    assert len(rows) >= 40

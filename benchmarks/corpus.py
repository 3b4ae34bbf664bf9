"""Good files of every kind that the commands read, made small, for `benchmarks.fuzz` to spoil; and the commands."""

from __future__ import annotations

import dataclasses
import gzip
import io
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, features

import tarflow
from benchmarks import hostile, hostile_data, hostile_images, hostile_torch
from benchmarks.killing import write_images
from benchmarks.mutations import BYTES, JSON, JSON_LINES, STRANGE, TEXT, Mutation, places
from tarflow import checkpoint, kept
from tarflow.data.options import LoadOptions
from tarflow.data.store.write import prepare
from tarflow.evaluation.likelihood.held_out import held_out_scores, run_scoring
from tarflow.evaluation.quality.extractors import open_extractor
from tarflow.evaluation.quality.reference import open_reference
from tarflow.interop import to_official
from tarflow.run_data import open_splits
from tarflow.sampling.setting import Setting, StoredSetting
from tarflow.training.setup import open_data, resolve
from tarflow.training.trainer import train

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
RECIPE = """[model]
patch_size = 2
width = 64
layers = [1, 1]

[data]
source = "digits"
flip = false
held_out_fraction = 0.1

[training]
noise = "gaussian"
noise_std = 0.05
steps = 3
batch_size = 8
lr = 1e-3
betas = [0.9, 0.95]
evaluate_every = 2
"""


@dataclass(frozen=True)
class Subject:
    """A kind of file: which one of the directory `root` is spoilt, how, and the command that reads it.

    In the command, or one of several, `{r}` is a copy of that directory and `{o}` what it may write to. `writes` are
    files that it may change where it succeeds. `bare` are files that are taken away in half of the cases: with digests
    beside it hardly a state would get as far as being read. `change` spoils the whole directory instead of the file.
    """

    root: str
    file: str
    ways: tuple[Mutation, ...]
    command: str | tuple[str, ...]
    writes: bool = False
    bare: tuple[str, ...] = field(default=())
    change: Callable[[Path, random.Random], None] | None = None


SAMPLE = "sample {r} -n 2 --batch-size 2 --out {o}.png --device cpu"
RESUME = "train --resume --out {r} --device cpu"
EVALUATE = "evaluate {run} --data {r} --draws 1 --device cpu"
PREPARE = "prepare {r} --out {o} --image-size 4"


def subjects() -> dict[str, Subject]:
    """Every kind of file, by its name."""
    torch_ways = (*BYTES, *[strange_torch] * len(BYTES))
    step = "checkpoints/step-4"
    result = {
        "config.json": Subject("run", "config.json", JSON, SAMPLE + " --solver sequential"),
        "model.safetensors": Subject("run", "model.safetensors", (*BYTES, *WEIGHTS), SAMPLE + " --solver sequential"),
        "solvers.json": Subject("run", "solvers.json", JSON, SAMPLE, writes=True),
        "held_out_scores.json": Subject(
            "run", "held_out_scores.json", JSON, "score {r} {images} --draws 1 --out {o}.csv --device cpu", writes=True
        ),
        "state.pt": Subject("run", f"{step}/state.pt", torch_ways, RESUME, writes=True, bare=(f"{step}/digests.json",)),
        "checkpoint weights": Subject(
            "run", f"{step}/model.safetensors", (*BYTES, *WEIGHTS), RESUME, writes=True, bare=(f"{step}/digests.json",)
        ),
        "digests.json": Subject("run", f"{step}/digests.json", JSON, RESUME, writes=True),
        "metrics.jsonl": Subject("run", "metrics.jsonl", JSON_LINES, RESUME, writes=True),
        "recipe": Subject("recipe", "recipe.toml", TEXT, "train --recipe {r}/recipe.toml --out {o} --device cpu"),
        "npz": Subject("npz", "images.npz", (*BYTES, strange_npz), "prepare {r}/images.npz --out {o}"),
        "parquet": Subject("images", "train-00000.parquet", BYTES, "prepare {r} --out {o}"),
        "idx": Subject("idx", "train-images-idx3-ubyte", BYTES, "prepare {r} --out {o}"),
        "idx.gz": Subject("idx.gz", "train-images-idx3-ubyte.gz", BYTES, "prepare {r} --out {o}"),
        "official": Subject("official", "model.pth", torch_ways, "convert {r}/model.pth {o} --noise-std 0.1"),
        "prepared.json": Subject("prepared", "prepared.json", JSON, EVALUATE),
        "prepared digests.json": Subject("prepared", "digests.json", JSON, "prepare --check {r}"),
    }
    for name in ("pixels.bin", "labels.bin", "names.bin"):
        result[name] = Subject("prepared", name, BYTES, EVALUATE)
    for name in FORMATS:
        if name != "WEBP" or features.check("webp"):
            result[name.lower()] = Subject(name.lower(), f"1.{name.lower()}", BYTES, PREPARE)
    return result


# Those that are seconds in the making, as gigabytes are.
SLOW = {f"hostile {name}" for name in ("npz", "idx.gz", "idx.gz labels", "image", "images", "parquet", "features")}


def hostile_subjects() -> dict[str, Subject]:
    """Every kind of file once more, spoilt by those who know what is in it (`hostile`, `hostile_data`)."""
    step, tables = (
        "checkpoints/step-4",
        (hostile.table_value, hostile.table_value, hostile.table_value, hostile.whole_table),
    )
    sample, score = SAMPLE + " --solver sequential", "score {r} {images} --draws 1 --out {o}.csv --device cpu"
    evaluate = "evaluate {r} --draws 1 --limit 4 --device cpu"
    report = "report {r} --images 2 --limit 4 --out {o} --device cpu"
    plan = "plan {r}/recipe.toml --data digits"
    quality = "quality {run} -n 12 --extractor classifier --cache {r} --device cpu"
    scored = "score {run} {r} --draws 1 --out {o}.csv --device cpu"
    prepared = ("prepare {r} --out {o}", "prepare {r} --out {o} --image-size 8", scored, EVALUATE)
    torch_ways = (hostile_torch.torch_content, hostile_torch.torch_content, hostile_torch.torch_archive)
    found = {
        "config.json": Subject("run", "config.json", tables, (sample, score, evaluate, report), writes=True),
        "local.json": Subject("run", "local.json", tables, (score, evaluate, report), writes=True),
        "sampling.json": Subject("run", "sampling.json", tables, (sample, report), writes=True),
        "solvers.json": Subject("run", "solvers.json", tables, SAMPLE, writes=True),
        "held_out_scores.json": Subject("run", "held_out_scores.json", tables, score, writes=True),
        "metrics.jsonl": Subject("run", "metrics.jsonl", (hostile.line_value,), (report, report, RESUME), writes=True),
        "digests.json": Subject("run", f"{step}/digests.json", tables, RESUME, writes=True),
        "recipe": Subject(
            "recipe",
            "recipe.toml",
            (hostile.toml_value,),
            ("train --recipe {r}/recipe.toml --out {o} --device cpu", plan),
        ),
        "model.safetensors": Subject(
            "run", "model.safetensors", (hostile.weights_header,), (sample, evaluate), writes=True
        ),
        "state.pt": Subject("run", f"{step}/state.pt", torch_ways, RESUME, writes=True, bare=(f"{step}/digests.json",)),
        "official": Subject(
            "official",
            "model.pth",
            (*torch_ways, hostile_torch.many_blocks),
            (
                "convert {r}/model.pth {o} --noise-std 0.1",
                "train --recipe {recipe} --data digits --init {r}/model.pth --out {o} --device cpu",
            ),
        ),
        "extractor": Subject(
            "official",
            "model.pth",
            torch_ways,
            "quality {run} -n 12 --extractor inception --weights {r}/model.pth --device cpu",
        ),
        "npz": Subject(
            "npz",
            "images.npz",
            (hostile_data.npz_archive,),
            tuple(c.replace("{r}", "{r}/images.npz") for c in prepared),
        ),
        "idx": Subject("idx", "train-images-idx3-ubyte", (hostile_data.idx_array,), prepared),
        "idx labels": Subject("idx", "train-labels-idx1-ubyte", (hostile_data.idx_array,), prepared),
        "idx.gz": Subject("idx.gz", "train-images-idx3-ubyte.gz", (hostile_data.idx_bomb,), prepared),
        "idx.gz labels": Subject("idx.gz", "train-labels-idx1-ubyte.gz", (hostile_data.idx_bomb,), prepared),
        "image": Subject("png", "1.png", (hostile_images.image_bomb,), (PREPARE, scored)),
        "images": Subject("png", "1.png", (), scored, change=hostile_images.many_large_images),
        "parquet": Subject("images", "train-00000.parquet", (hostile_images.parquet_table,), (*prepared, PREPARE)),
        "prepared.json": Subject("prepared", "prepared.json", tables, (EVALUATE, scored)),
        "prepared digests.json": Subject("prepared", "digests.json", tables, "prepare --check {r}"),
        "features": Subject("features", "", (), quality, writes=True, change=hostile_data.spoil_features),
    }
    return {
        f"hostile {name}": dataclasses.replace(subject, ways=tuple(map(hostile.tolerant, subject.ways)))
        for name, subject in found.items()
    }


def build(place: Path) -> None:
    """Make the good directories in `place`."""
    write_images(place / "images")
    prepare(str(place / "images"), place / "prepared", LoadOptions())
    sections: dict[str, dict[str, Any]] = {
        "model": {"patch_size": 2, "width": 16, "head_dim": 8, "layers": [1, 1]},
        "data": {"source": str(place / "images")},
        "training": {"batch_size": 8, "warmup_steps": 1, "evaluate_every": 2, "save_every": 2, "sample_every": 0},
    }
    sections["training"] |= {"steps": 4, "lr": 1e-3, "keep_last": 2, "log_every": 1}
    splits = open_data(sections)
    train(resolve(sections, splits), splits, place / "run")
    run = checkpoint.open_run(place / "run")
    calibration = tarflow.Calibration()
    tarflow.sample(run.flow, 2, batch_size=2, solver=tarflow.Auto(calibration))
    kept.save_calibration(run, calibration)
    held_out_scores(run, run_scoring(run, draws=1))  # which leaves a file
    setting = Setting(denoise=0.05)
    kept.save_setting(run, StoredSetting(checkpoint.weights_digest(run.path), setting, "FD-X", 1.0, 100, 3))
    splits_of = open_splits(run)
    extractor = open_extractor("classifier", images=splits_of.train, cache=place / "features")
    open_reference(splits_of, extractor, place / "features")
    (place / "recipe").mkdir()
    (place / "recipe" / "recipe.toml").write_text(RECIPE)
    (place / "official").mkdir()
    flow = tarflow.TarFlow(
        tarflow.TarFlowConfig(8, channels=1, patch_size=4, width=64, layers=(1,), num_classes=2, log_scale_bound=None)
    )
    torch.save(to_official(flow), place / "official" / "model.pth")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
    (place / "npz").mkdir()
    np.savez_compressed(place / "npz" / "images.npz", images=pixels, labels=np.arange(12) % 3)
    for name, pack in (("idx", bytes), ("idx.gz", gzip.compress)):
        (place / name).mkdir()
        end = name.removeprefix("idx")
        images = b"\x00\x00\x08\x03" + struct.pack(">3I", *pixels.shape) + pixels.tobytes()
        (place / name / f"train-images-idx3-ubyte{end}").write_bytes(pack(images))
        numbers = b"\x00\x00\x08\x01" + struct.pack(">I", 12) + bytes(k % 3 for k in range(12))
        (place / name / f"train-labels-idx1-ubyte{end}").write_bytes(pack(numbers))
    for name in FORMATS:
        folder = place / name.lower()
        folder.mkdir()
        Image.fromarray(pixels[0]).save(folder / "0.png")
        Image.effect_noise((32, 24), 60).convert("RGB").save(folder / f"1.{name.lower()}", name)


# --- mutations that need to know what is in the file ---------------------------------------------------------------


def strange_torch(data: bytes, rng: random.Random) -> bytes:
    """What `torch.load` reads, with something strange in it."""
    try:
        content = torch.load(io.BytesIO(data), weights_only=True)
    except Exception:  # it is spoilt already
        return data + b"x"
    holder, key = rng.choice(places(content))
    value = holder[key]
    others: list[Any] = [rng.choice(STRANGE), torch.zeros(3), torch.tensor(float("nan"))]
    if isinstance(value, torch.Tensor):
        others = [value[None], value.flatten()[:-1], value * float("nan"), value.long(), value.to(torch.complex64)]
        others += [rng.choice(STRANGE), value.to_sparse() if value.ndim else value[None]]
    what = rng.randrange(8)
    if what == 0:
        del holder[key]
    elif what == 1 and isinstance(holder, dict):
        holder[rng.choice(("extra", 7, ""))] = value
    else:
        holder[key] = rng.choice(others)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _weights(change: Callable[[dict[str, Any], str], None]) -> Mutation:
    def mutation(data: bytes, rng: random.Random) -> bytes:
        from safetensors import SafetensorError
        from safetensors.torch import load, save

        try:
            tensors = load(data)
        except SafetensorError:
            return data + b"x"
        if not tensors:
            return data
        change(tensors, rng.choice(sorted(tensors)))
        return save({name: tensor.contiguous() for name, tensor in tensors.items()})

    return mutation


WEIGHTS: tuple[Mutation, ...] = (
    _weights(lambda tensors, name: tensors.__delitem__(name)),
    _weights(lambda tensors, name: tensors.update(extra=torch.zeros(3))),
    _weights(lambda tensors, name: tensors.update({name: tensors[name][None]})),
    _weights(lambda tensors, name: tensors.update({name: tensors[name] * float("nan")})),
    _weights(lambda tensors, name: tensors.update({name: tensors[name] * 1e30})),
    _weights(lambda tensors, name: tensors.update({name: tensors[name].to(torch.int32)})),
)


def strange_npz(data: bytes, rng: random.Random) -> bytes:
    """An archive with other arrays in it."""
    images, labels = np.zeros((12, 8, 8), np.uint8), np.arange(12)
    arrays: dict[str, Any] = rng.choice(
        (
            {"images": images.astype(np.float32)},
            {"images": images[:0]},
            {"images": images[:, :0]},
            {"images": images, "labels": labels[:5]},
            {"images": images, "labels": labels - 3},
            {"images": images, "labels": labels * 1.5},
            {"images": images, "labels": labels + 2**40},
            {"images": np.array([{"a": 1}], dtype=object)},
            {"pictures": images},
            {"images": images[0, 0]},
            {},
        )
    )
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()

"""From a finished run to a model that comes with the package: weights, config, card, all of its figures measured here.

    python -m benchmarks.ship runs/digits digits --trained-by 'tarflow train --recipe digits --out runs/digits'

The run's best averaged weights go to `src/tarflow/pretrained/NAME`, in bf16 unless `--dtype` says otherwise, with the
default setting of its samples, if `tarflow sweep` left one, and how its held-out images score. What is measured are
these files, by the commands that the card names. An older model of the name is replaced, whole or not at all. A new
name is an entry of `MODELS` here, and new data one of `DATA`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tarflow import __version__, digests, kept, storage
from tarflow.checkpoint import Places, read_metrics, weights_digest, write_config
from tarflow.cli import main as tarflow
from tarflow.evaluation.likelihood.anomalies import code_bits
from tarflow.evaluation.likelihood.held_out import HELD_OUT_FILE, chosen_images, origin, run_scoring, write_scores
from tarflow.evaluation.likelihood.scores import Progress, class_scores
from tarflow.model.condition import NULL_CLASS
from tarflow.pretrained import CARD_FILE, CONFIG_FILE, MOST_BYTES, ROOT, WEIGHTS_FILE, card_text
from tarflow.run_data import stored_data
from tarflow.runs import Run, open_run
from tarflow.tensor_files import read_tensors, save_tensors

DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}
FILES = (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, kept.SETTING_FILE, HELD_OUT_FILE)


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set: what people call it, who may use it for what, and who says so."""

    title: str
    licence: str
    source: str


DATA = {
    "digits": Data(
        "Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak, 1998), the 1,797 images that scikit-learn "
        "carries",
        "CC BY 4.0",
        "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
    ),
    "fashion-mnist": Data(
        "Fashion-MNIST (H. Xiao, K. Rasul, R. Vollgraf, Zalando SE, 2017)",
        "MIT",
        "https://github.com/zalandoresearch/fashion-mnist",
    ),
}


@dataclasses.dataclass(frozen=True)
class Model:
    """What is said of a model beside its figures: what it draws, why it is there, and how its samples are judged."""

    draws: str
    about: str
    quality: str = ""  # options of `tarflow quality`; samples are not judged where it is empty
    evaluate: str = ""  # options of `tarflow evaluate`


MODELS = {
    "digits": Model(
        "handwritten digits",
        "It draws digits of a wanted class, and removes noise. It learned images with Gaussian noise, which is what "
        "makes samples good and denoising possible; so its density is that of noisy images, and says nothing in bits "
        "of the pixels. For that there is `digits-likelihood`: one model cannot be trained with both kinds of noise, "
        "and either is small.",
        "-n 1000 --extractor classifier",
    ),
    "digits-likelihood": Model(
        "handwritten digits",
        "It scores digits: how likely an image is, in bits/dim of its pixels, and which images do not belong. It "
        "learned images with uniform noise (dequantisation), without classes. Samples to look at are those of "
        "`digits`, whose noise can be removed again; one model cannot be trained with both kinds of noise, and either "
        "is small.",
    ),
    "fashion-mnist": Model(
        "clothes",
        "It draws clothes of a wanted class, and scores them. It learned images with uniform noise (dequantisation), "
        "so that its density is one of pixels, in bits. A spline next to the pixels follows how they pile up at black, "
        "and samples need no noise that would be removed again.",
        "-n 1000 --extractor classifier",
        "--no-classify",  # a pass for each class over 10,000 images
    ),
}

CARD = """
# {name}

{parameters:,} parameters, {images} images, {classes}. {about}

    tarflow sample {name} -n 50 --out {name}.png
    tarflow score {name} PATH --out scores.csv

    flow = tarflow.TarFlow.from_pretrained("{name}")

## Data

{data[title]}: {data[source]}, {data[licence]}. The model was trained on {data[training_images]:,} images;
{held_out[images]:,} are held out, and had a part only in the choice of the best step. The weights have the licence of
tarflow, MIT.

## Training

{commands}

{steps:,} steps in {minutes:.1f} minutes, tarflow {version}. The weights are the averaged ones of the best held-out
score, kept in {dtype}, and float32 where they are loaded. `{weights_file}` has {weights[bytes]:,} bytes and the digest
{weights[blake2b]} (BLAKE2b, 16 bytes). {default}

## Figures

Of the weights in this directory, by the commands beside them.

| figure | value | command |
| --- | --- | --- |
{figures}

## Limits

The model knows nothing but images like those that it was trained on, of that size. It was chosen to be small, for
trying tarflow, for tests and for teaching: it is no benchmark of what a flow can do with these data, and its likelihood
is no judge of whether an image is right, or safe.
"""


def write_model(run: Run, out: Path, data: str, dtype: torch.dtype) -> None:
    """The files of a model but for its card: `data` is the name by which its data are known everywhere."""
    assert run.config.data is not None
    named = dataclasses.replace(run.config.data, source=data, place="")
    write_config(out, Places.of(config := dataclasses.replace(run.config, data=named)).portable().put_into(config))
    save_tensors(out / WEIGHTS_FILE, {name: tensor.to(dtype) for name, tensor in run.flow.state_dict().items()})
    stored = kept.open_setting(run)
    if stored is not None and stored.weights == weights_digest(run.path):
        kept.save_setting(open_run(out), dataclasses.replace(stored, weights=weights_digest(out)))


def write_held_out(out: Path, progress: Progress | None = None) -> None:
    """Keep how the held-out images score by the model in `out`, so that nobody waits for it: under every label policy.

    One pass over the images under each class and under none gives all of them. They are rounded to 0.01 nats.
    """
    run = open_run(out)
    images, flow = chosen_images(run).images, run.flow
    scoring = run_scoring(run, NULL_CLASS if flow.conditions else None)
    found = class_scores(flow, images, scoring=scoring, all_classes=bool(flow.conditions), progress=progress)
    scores = {scoring: found.mean}
    if (marginal := found.under(None, flow)) is not None:
        scores[marginal.scoring] = marginal.mean
    for label in range(found.conditions.classes):
        scores[dataclasses.replace(scoring, labels=label)] = found.log_prob[..., label].mean(dim=0)
    scored = [
        {"scoring": dataclasses.asdict(each), "log_prob": [round(value, 2) for value in log_prob.tolist()]}
        for each, log_prob in scores.items()
    ]
    source = stored_data(run).source  # a set that is known everywhere by this name
    write_scores(out / HELD_OUT_FILE, origin(run), source, code_bits(images).tolist(), scored)


def measured(command: str, out: Path, options: str = "") -> dict[str, Any]:
    """What a command of ours prints of a model. Raises SystemExit where it fails, after its own line on that."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = tarflow([command, str(out), *options.split()])
    if code:
        raise SystemExit(code)
    values: dict[str, Any] = json.loads(printed.getvalue())
    return values


def facts_of(out: Path, name: str, trained_by: Sequence[str]) -> dict[str, Any]:
    """What the card of the model in `out` says to programs, measured."""
    run, options, judging = open_run(out), MODELS[name].evaluate, MODELS[name].quality
    assert run.config.data is not None
    scores = measured("evaluate", out, options)
    figure = "noisy_bits_per_dim" if scores["bits_per_dim"] is None else "bits_per_dim"
    facts = {
        "license": "mit",
        "library_name": "tarflow",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["normalizing-flow", "density-estimation"],
        "draws": MODELS[name].draws,
        "parameters": sum(p.numel() for p in run.flow.parameters()),
        "weights": digests.file_facts(out / WEIGHTS_FILE),
        "data": dataclasses.asdict(DATA[run.config.data.source]) | {"training_images": len(run.images().train)},
        "trained_by": list(trained_by),
        "held_out": {
            "figure": figure,
            "value": scores[figure],
            "standard_error": scores["standard_error"],
            "images": scores["images"],
            "gaussian": scores["gaussian_yardstick"],
            "command": f"tarflow evaluate {name} {options}".rstrip(),
        },
    }
    if judging:
        samples = measured("quality", out, judging)
        part = {key: samples[key] for key in ("setting", "figures", "agreement")}
        facts["samples"] = part | {"command": f"tarflow quality {name} {judging}"}
    return facts


def figure_rows(facts: dict[str, Any]) -> str:
    """The table of a card: each figure beside the command that measures it."""
    scores, samples = facts["held_out"], facts.get("samples")
    unit = scores["figure"].replace("_per_", "/").replace("_", " ")
    error = f"± {scores['standard_error']:.3f}"
    rows = [
        f"| held out, {unit} | {scores['value']:.3f} {error} | `{scores['command']}` |",
        f"| a Gaussian with full covariance, the same | {scores['gaussian']:.3f} | the same |",
    ]
    if samples is not None:
        name, best = next(iter(samples["figures"].items()))
        fewer = best["floor_samples"]
        rows += [
            f"| {name}, {best['samples']} samples | {best['value']:.3f} | `{samples['command']}` |",
            f"| {name}, {fewer} samples | {best['value_at_floor_samples']:.3f} | the same |",
            f"| {name}, {fewer} held-out images | {best['floor']:.3f} | the same |",
        ]
        rows = rows if fewer < best["samples"] else [*rows[:-2], rows[-1]]  # as many: it is the row before
        if samples["agreement"] is not None:
            rows.append(f"| samples that show the wanted class | {100 * samples['agreement']:.1f} % | the same |")
    return "\n".join(rows)


def wrapped(text: str) -> str:
    """Markdown with its paragraphs in lines that fit, and all else as it is."""
    blocks = text.strip().split("\n\n")
    return "\n\n".join(b if b.startswith(("#", "|", " ")) else textwrap.fill(b, 120) for b in blocks)


def write_card(out: Path, name: str, trained: Run, trained_by: Sequence[str]) -> None:
    """Measure the model in `out`, which a run left, and write its card."""
    facts = facts_of(out, name, trained_by)
    model = open_run(out).config.model
    last = [entry for entry in read_metrics(trained.path) if "seconds" in entry][-1]
    stored = kept.open_setting(open_run(out))
    text = CARD.format(
        **facts,
        name=name,
        about=MODELS[name].about,
        images="x".join(map(str, (model.channels, *model.image_shape))),
        classes=f"{model.num_classes} classes" if model.num_classes else "no classes",
        steps=last["step"],
        minutes=last["seconds"] / 60,
        version=__version__,
        dtype=str(next(iter(read_tensors(out / WEIGHTS_FILE).values())).dtype).removeprefix("torch."),
        weights_file=WEIGHTS_FILE,
        commands="\n".join(f"    {command}" for command in trained_by),
        default="" if stored is None else f"`sampling.json` is how samples are drawn where nothing is said: {stored}.",
        figures=figure_rows(facts),
    )
    storage.write_text(out / CARD_FILE, card_text(facts, wrapped(text)))


def ship(
    path: str, name: str, trained_by: Sequence[str], *, data: str = "", dtype: str = "bf16", root: Path = ROOT
) -> Path:
    """Make `root/name` of a finished run; gives it. Raises ValueError where an entry is missing, or it is too large."""
    run = open_run(path)
    source = data or (run.config.data.source if run.config.data else "")
    for what, given, known in (("NAME", name, MODELS), ("--data", source, DATA)):
        if given not in known:
            raise ValueError(f"{what} {given}: expected one of {', '.join(known)}; another is an entry of {__file__}")
    with tempfile.TemporaryDirectory() as place:
        made = Path(place) / name
        made.mkdir()
        write_model(run, made, source, DTYPES[dtype])
        write_card(made, name, run, trained_by)
        write_held_out(made)
        files = [made / file for file in FILES if (made / file).exists()]  # and not what the commands kept there
        others = (file for file in root.glob("*/*") if file.is_file() and file.parent.name not in (name, "__pycache__"))
        size = sum(file.stat().st_size for file in (*files, *others))
        if size > MOST_BYTES:
            raise ValueError(f"{name}: expected at most {MOST_BYTES} bytes of all models, got {size}")
        with storage.replacing_directory(root / name) as directory:
            for file in files:
                shutil.copyfile(file, directory / file.name)
    return root / name


def main(argv: Sequence[str] | None = None) -> int:
    """Ship one model; the exit code is 2 after bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="a finished run, with the weights and the metrics of its training")
    parser.add_argument("name", metavar="NAME", help=f"what it will be called: {', '.join(MODELS)}")
    parser.add_argument("--trained-by", required=True, nargs="+", help="the exact commands that made it, for the card")
    parser.add_argument("--data", default="", help="the known name of its data, where the run had them from a path")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="of the weights in the file")
    args = parser.parse_args(argv)
    try:
        print(ship(args.run, args.name, args.trained_by, data=args.data, dtype=args.dtype))
    except (OSError, ValueError) as error:
        print(f"ship: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`tarflow demo`."""

from __future__ import annotations

import dataclasses
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from tarflow.cli.arguments import Device

if TYPE_CHECKING:
    import torch

    from tarflow.checkpoint import Run
    from tarflow.data.load import Splits

SAMPLES = 500  # that are judged, guided and unguided
SHOWN = 10  # of each class on a sheet
CAME_ALONG = "came-along"  # where the models of the package are drawn
DRAWN = 50  # images of each of them
ZOOM = 6  # screen pixels a pixel: 8x8 would be too small to see


@dataclasses.dataclass
class Demo:
    """Train two small flows on scikit-learn's 8x8 digits, one for samples and one for likelihoods; then score, sample
    and denoise, and check the samples by a classifier that saw only real digits. Takes a few minutes on two cores.

    Leaves report.html with its pictures, samples.png, denoising.png, figures.json and both runs in --out, a new
    directory; and in came-along/ what the models that come with the package draw (`tarflow models`). Interrupted, it
    goes on where it was; done already, it makes all but the runs again.

    Examples:
      tarflow demo
      tarflow demo --out somewhere --guidance 2
    """

    out: Annotated[Path, arg(help="the directory to write")] = Path("demo")
    guidance: Annotated[float, arg(help="scale of the guided samples")] = 1.0
    seed: Annotated[int, arg(help="seed of the samples")] = 0
    device: Device = "auto"


def run(args: Demo) -> None:
    import torch

    import tarflow
    from tarflow import storage
    from tarflow.devices import pick_device
    from tarflow.report.build import write_report
    from tarflow.report.subject import Settings
    from tarflow.sampling.guidance import Guidance
    from tarflow.storage import check_vacant

    if not (args.out / "digits").is_dir():  # else an earlier demo began there
        check_vacant(args.out, "--out")
    device = pick_device(args.device)
    torch.set_num_threads(1)  # for tensors this small a second one gains nothing, and on a busy machine loses 20 times
    guidance = Guidance(args.guidance)
    args.out.mkdir(parents=True, exist_ok=True)

    sampler, splits, sampler_seconds = _train("digits", args.out, device)
    scorer, scorer_splits, scorer_seconds = _train("digits-likelihood", args.out, device)
    figures: dict[str, Any] = {
        "command": "tarflow " + " ".join(sys.argv[1:]),
        "versions": {"tarflow": tarflow.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "device": str(device),
        "threads": torch.get_num_threads(),
        "training_seconds": {"digits": sampler_seconds, "digits-likelihood": scorer_seconds},
        "likelihood": _likelihood(scorer, scorer_splits),
        "noisy_likelihood": _likelihood(sampler, splits),
        "samples": _samples(sampler, splits, guidance, args),
        "denoising": _denoising(sampler, splits, args),
    }
    storage.write_json(args.out / "figures.json", figures)
    settings = Settings(seed=args.seed)
    page = write_report(
        [args.out / name for name in figures["training_seconds"]], args.out, settings=settings, device=device
    )
    print(_summary(figures, args.out, page))
    print(f"came along   {', '.join(_came_along(args, device))}, drawn in {args.out / CAME_ALONG}: tarflow models")


def _train(recipe: str, out: Path, device: torch.device) -> tuple[Run, Splits, float]:
    """Train a recipe into `out/recipe`, or go on with what is there; the trained run, its data and its seconds."""
    from tarflow import recipes
    from tarflow.checkpoint import open_run
    from tarflow.cli.progress import Progress
    from tarflow.data.load import Splits
    from tarflow.training.setup import open_data, resolve
    from tarflow.training.trainer import train

    sections = recipes.load(recipe)
    splits = open_data(sections)
    assert isinstance(splits, Splits)  # the embedded digits fit into memory
    config = resolve(sections, splits)
    with Progress() as progress:
        progress.begin(config, splits, out / recipe)
        result = train(config, splits, out / recipe, resume=True, device=device, report=progress.report)
    return open_run(out / recipe, device), splits, result.seconds


def _likelihood(run: Run, splits: Splits) -> dict[str, Any]:
    from tarflow.evaluation.likelihood.evaluate import evaluate_likelihood
    from tarflow.evaluation.likelihood.gaussian import fit_yardstick
    from tarflow.evaluation.likelihood.scoring import Scoring

    result = evaluate_likelihood(
        run.flow,
        splits.held_out.images,  # the yardstick has no labels, so the model gets none either
        scoring=Scoring(run.measure, draws=8),
        yardstick=fit_yardstick(splits.train.images, run.measure),
    )
    return result.to_dict()


def _samples(run: Run, splits: Splits, guidance: Any, args: Demo) -> dict[str, Any]:
    """Judge guided and unguided samples, and draw the sheet of the guided ones."""
    import torch

    from tarflow.evaluation.quality.extractors.small_network import trained_network
    from tarflow.evaluation.quality.ratios import sample_quality
    from tarflow.measure import to_8bit
    from tarflow.pictures import save_sheet
    from tarflow.sampling.sample import sample

    network = trained_network(splits.train)
    classes = len(splits.train.class_names)
    y = torch.arange(SAMPLES, device="cpu", dtype=torch.int64) % classes
    figures = {}
    for name, guide, sigma in (
        ("unguided", None, None),
        ("unguided, denoised", None, run.sigma),
        ("guided, denoised", guidance, run.sigma),
    ):
        x = sample(run.flow, SAMPLES, y, guide, args.seed, denoise=sigma)
        pixels = run.measure.pixels(x.cpu())
        quality = sample_quality(pixels, y, splits, network=network)
        figures[name] = quality.to_dict() | {"guidance": guide.scale if guide else 0.0, "sigma": sigma}
    by_class = y[: SHOWN * classes].argsort(stable=True)  # the sheet shows a class a row
    save_sheet(args.out / "samples.png", to_8bit(pixels, run.levels)[by_class], columns=SHOWN, zoom=ZOOM)
    return figures


def _denoising(run: Run, splits: Splits, args: Demo) -> dict[str, Any]:
    """Add the noise of the training to held-out digits and remove it; draw clean, noisy and denoised in rows."""
    import torch

    from tarflow.evaluation.quality.psnr import psnr
    from tarflow.measure import Measure
    from tarflow.pictures import save_sheet
    from tarflow.sampling.denoise import denoise
    from tarflow.seeding import seeded_generator

    held_out, sigma = splits.held_out, run.sigma
    assert sigma is not None
    clean = run.measure.clean(held_out.images)
    noisy = run.measure.noisy(held_out.images, seeded_generator(args.seed, "demo"))
    cleaned = denoise(run.flow, noisy.to(run.flow.device), sigma, held_out.labels).cpu()
    rows = torch.cat([x[: 2 * SHOWN] for x in (clean, noisy, cleaned)])
    save_sheet(args.out / "denoising.png", Measure(256, "gaussian", sigma).pixels(rows), columns=2 * SHOWN, zoom=ZOOM)
    return {
        "sigma": sigma,
        "images": len(held_out),
        "psnr_noisy_db": psnr(noisy, clean),
        "psnr_denoised_db": psnr(cleaned, clean),
    }


def _came_along(args: Demo, device: torch.device) -> list[str]:
    """Draw a sheet of each model that comes with the package; their names."""
    from tarflow import pretrained
    from tarflow.runs import open_run

    for name in pretrained.names():
        sheet = args.out / CAME_ALONG / f"{name}.png"
        open_run(name, device=device).write_samples(sheet, n=DRAWN, seed=args.seed, solver="sequential")
    return pretrained.names()


def _summary(figures: dict[str, Any], out: Path, page: Path) -> str:
    """What the demo found, for a reader."""
    exact, noisy = figures["likelihood"], figures["noisy_likelihood"]
    lines = [
        f"likelihood   {exact['bits_per_dim']:.3f} ± {exact['standard_error']:.3f} bits/dim on "
        f"{exact['images']} held-out digits; a full-covariance Gaussian has {exact['gaussian_yardstick']:.3f}",
        f"noisy        {noisy['noisy_bits_per_dim']:.3f} ± {noisy['standard_error']:.3f} bits/dim "
        f"({noisy['measure']}); the Gaussian has {noisy['gaussian_yardstick']:.3f}",
    ]
    for name, q in figures["samples"].items():
        lines.append(
            f"samples      {name}: {100 * q['agreement']:.1f} % of {q['samples']} are of the intended class, "
            f"diversity {q['diversity']:.2f}, novelty {q['novelty']:.2f}"
        )
    judge = next(iter(figures["samples"].values()))
    lines.append(
        f"             (judged by a classifier that gets {100 * judge['classifier_accuracy']:.1f} % of held-out real "
        "digits right)"
    )
    d = figures["denoising"]
    lines.append(
        f"denoising    PSNR {d['psnr_noisy_db']:.1f} dB noisy, {d['psnr_denoised_db']:.1f} dB denoised (σ={d['sigma']})"
    )
    lines.append(f"look at      {page}, {out}/samples.png, {out}/denoising.png, {out}/figures.json")
    return "\n".join(lines)

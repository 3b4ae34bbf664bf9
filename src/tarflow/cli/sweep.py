"""`tarflow sweep`."""

from __future__ import annotations

import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from tarflow.cli.arguments import Device, Flag, RunPath
from tarflow.cli.drawing import Judging, Solving, check_samples, opened_judge
from tarflow.jsontext import to_json

if TYPE_CHECKING:
    from torch import Tensor

    from tarflow.checkpoint import Run
    from tarflow.sampling.setting import Setting


@dataclasses.dataclass
class Sweep:
    """Measure samples under every combination of guidance and denoising, and keep the best as the default of the run.

    Examples:
      tarflow sweep runs/photos -n 2000
      tarflow sweep runs/digits --guidance 0 0.5 1 2 --schedule linear constant --extractor classifier
      tarflow sweep runs/photos --guidance 0 0.1 0.2 0.4 --temperature 0.3 0.6 --strength 0 1 --by KD

    Every setting starts from the same noise and is judged as by `tarflow quality`. Leaves a table and a plot in
    RUN/sweep, prints one JSON object, and writes the best setting to RUN/sampling.json, which `tarflow sample RUN` uses
    from then on. The best of many is flattered by the choice: it is measured again with other noise, as `again`.

    Interrupted, it keeps what it has measured, and goes on from there when it is called again. An older sweep of other
    settings is replaced, which a line on stderr says.
    """

    run: RunPath
    n: Annotated[int, arg(aliases=["-n"], help="how many samples of each setting")] = 1000
    guidance: Annotated[
        tuple[float, ...], arg(help="scales; 0 0.5 1 2 3 when not given, 0 0.1 0.2 0.5 without classes")
    ] = ()
    schedule: Annotated[tuple[Literal["linear", "constant"], ...], arg(help="how guidance grows along the patches")] = (
        "linear",
    )
    temperature: Annotated[
        tuple[float, ...],
        arg(help="attention temperatures of the unguided branch; 1 when not given, 0.3 without classes"),
    ] = ()
    rule: Annotated[tuple[Literal["paper", "stable"], ...], arg(help="how the branches are combined")] = ("paper",)
    strength: Annotated[
        tuple[float, ...], arg(help="of denoising, as multiples of the σ of training; 0 is none; 1 when not given")
    ] = ()
    by: Annotated[
        Literal["FD", "KD", "precision", "recall", "density", "coverage"],
        arg(help="the figure that decides which setting is the best"),
    ] = "FD"
    judging: Annotated[Judging, arg(name="")] = dataclasses.field(default_factory=Judging)
    no_save: Annotated[
        Flag, arg(help="leave RUN/sampling.json as it is, instead of keeping the best setting there")
    ] = False
    out: Annotated[Path | None, arg(help="directory for table and plot; RUN/sweep when not given")] = None
    seed: Annotated[int, arg(help="seed of the samples")] = 0
    solving: Annotated[Solving, arg(name="")] = dataclasses.field(default_factory=Solving)
    device: Device = "auto"


def _check_places(args: Sweep, run: Run, out: Path) -> None:
    """Raise OSError before hours of measuring where nothing can be written to `out`; say where no default can be."""
    from tarflow import storage
    from tarflow.kept import SETTING_FILE, place_to_keep

    place = out / "sweep.json"
    while not place.parent.exists():  # nothing is made before it is filled
        place = place.parent
    try:
        storage.check_writable(place)
    except OSError as error:
        hint = "" if args.out else "; give another directory by --out"
        raise OSError(f"{out}: {error.strerror}{hint}") from None
    if not args.no_save:
        try:
            storage.check_writable(place_to_keep(run) / SETTING_FILE)
        except OSError as error:
            why = error.strerror or error
            print(f"{run.path}: {why}; the best setting will not be kept as its default", file=sys.stderr)


def run(args: Sweep) -> None:
    from tarflow import storage
    from tarflow.checkpoint import open_run, weights_digest
    from tarflow.cli.progress import Progress
    from tarflow.devices import pick_device
    from tarflow.drawing import values_like
    from tarflow.evaluation.quality.sweep import SWEEP, SWEEP_FILES, grid, sweep_run
    from tarflow.kept import place_to_keep, save_setting
    from tarflow.report.sweep import sweep_chart, sweep_table
    from tarflow.sampling.setting import StoredSetting
    from tarflow.storage import check_vacant

    check_samples(args.n)
    run = open_run(args.run, pick_device(args.device))
    settings = grid(
        run.config.model,
        run.sigma,
        scales=args.guidance,
        schedules=args.schedule,
        temperatures=args.temperature,
        rules=args.rule,
        strengths=args.strength,
    )
    out = args.out or place_to_keep(run) / SWEEP
    check_vacant(out, "--out", ours=SWEEP_FILES)
    _check_places(args, run, out)
    with Progress() as progress:
        judge, splits = opened_judge(run, args.judging, progress)
        sampler = args.solving.sampler(run)
        y = values_like(run, splits.train, args.n)

        def draw(setting: Setting, seed: int) -> Tensor:
            return sampler.pixels(args.n, y, setting, seed, progress.sampling)

        found = sweep_run(
            run,
            settings,
            draw,
            judge,
            out,
            samples=args.n,
            by=args.by,
            seed=args.seed,
            say=progress.say,
            progress=partial(progress.preparing, "features of samples"),
        )
    table = sweep_table(found.rows, found.best)
    storage.write_text(out / "sweep.md", table)
    storage.write_text(out / "sweep.svg", sweep_chart(found.rows, found.by))
    value = found.best.figures[found.by].value
    stored = StoredSetting(weights_digest(run.path), found.best.setting, found.by, value, args.n, len(found.rows))
    said = [
        f"{table}best: {stored}; with other noise {found.again[found.by].value:.4g}",
        *found.at_edge,
        f"samples are judged as they are written, clipped: of the best, {100 * sampler.clipped_pixels:.3g} % of the "
        f"numbers, in {100 * sampler.clipped_images:.3g} % of the images",
    ]
    kept = "not kept"
    if not args.no_save:
        try:
            kept = f"kept in {save_setting(run, stored)}"
        except OSError as error:  # what was measured is in the table all the same
            kept = f"not kept: {f'{error.filename}: {error.strerror}' if error.strerror else error}"
    print(*said, f"table and plot in {out}; default {kept}", sep="\n", file=sys.stderr)
    values = {
        "run": args.run,
        "rows": [row.to_dict() for row in found.rows],
        **found.summary(judge),
        "clipped_pixels": sampler.clipped_pixels,
        "clipped_images": sampler.clipped_images,
    }
    print(to_json(values, indent=2))

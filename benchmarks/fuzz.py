"""Spoils files of every kind that the commands read, by a seed, and runs the commands on them.

    python -m benchmarks.fuzz --count 40 --out benchmarks/results/fuzz.json
    python -m benchmarks.fuzz --hostile --count 40 --out benchmarks/results/hostile.json

Whatever is in a file, a command ends with success, where the damage is harmless or can be mended, or with one line on
stderr that says what is wrong, and exit code 2: no traceback, no "not expected", nothing on stdout, the files as they
were, within `SECONDS` and `MEMORY`. Commands run in a forked process, which is killed when it takes too long, and whose
address space is limited, so that neither limit is a matter of good will. Recipes are read and resolved, not trained.
Exits with 1 where a file broke that; `--only KIND --seed S` runs one case again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.corpus import SLOW, Subject, build, hostile_subjects, subjects
from benchmarks.killing import machine
from benchmarks.mutations import mutate
from tarflow import cli
from tarflow.training import trainer as trainer_module

SECONDS = 60.0  # a case takes a hundredth of it, and some are seconds in the making
MEMORY = 3 << 29  # bytes that a case may need beyond what the process has; a WebP of 81 million pixels takes most
_SPACE = 4 << 30  # of addresses, which libraries reserve more of than they use


def run_cases(place: Path, wanted: Sequence[tuple[str, int | None]]) -> Iterator[dict[str, Any]]:
    """Run (kind, seed) one after the other on what `build` made in `place`; what each came to.

    With the seed None the file is left as it is, and the command must succeed. `problem` is None where all was well. A
    case that hangs, or kills its process, is one with a problem, too.
    """
    context = get_context("fork")
    pending = list(wanted)
    while pending:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(place, pending, theirs), daemon=True)
        with warnings.catch_warnings(action="ignore"):  # newer versions of Python warn of forks beside threads
            process.start()
        theirs.close()
        while pending:
            try:
                if not ours.poll(SECONDS):
                    problem = f"no end after {SECONDS:.0f} seconds"
                    break
                yield ours.recv()
                del pending[0]
            except EOFError:
                problem = "the process died"
                break
        process.kill()
        process.join()
        ours.close()
        if pending:
            kind, seed = pending.pop(0)
            yield {"kind": kind, "seed": seed, "code": None, "line": "", "problem": f"{problem} ({process.exitcode})"}


def _serve(place: Path, wanted: Sequence[tuple[str, int | None]], pipe: Any) -> None:
    torch.set_num_threads(1)  # who computes with one misses none of the threads that a fork leaves behind
    known, real = subjects() | hostile_subjects(), trainer_module.train
    size = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if os.path.exists("/proc") else 0
    )
    if size:
        resource.setrlimit(resource.RLIMIT_AS, (size + _SPACE, size + _SPACE))
    for kind, seed in wanted:
        with tempfile.TemporaryDirectory(dir=place) as folder:
            trainer_module.train = _accept if kind.endswith("recipe") else real
            pipe.send(_case(place, Path(folder), kind, known[kind], seed))
    os._exit(0)


def _accept(*arguments: Any, **named: Any) -> trainer_module.TrainingResult:
    """In place of a training: a recipe that got as far as this has been read, resolved and found good."""
    return trainer_module.TrainingResult(0, 0, 0, 0.0, 0.0)


def _case(place: Path, folder: Path, kind: str, subject: Subject, seed: int | None) -> dict[str, Any]:
    rng = random.Random(f"{kind} {seed}")
    root = folder / "in"
    shutil.copytree(place / subject.root, root)
    file = root / subject.file
    if seed is not None and subject.change is not None:
        subject.change(root, rng)
    elif seed is not None:
        file.write_bytes(mutate(file.read_bytes(), rng, subject.ways))
    if seed is not None:
        for name in subject.bare if rng.random() < 0.5 else ():
            (root / name).unlink()
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    ways = (subject.command,) if isinstance(subject.command, str) else subject.command
    places = {"run": place / "run", "images": place / "images", "recipe": place / "recipe" / "recipe.toml"}
    command = (ways[0] if seed is None else rng.choice(ways)).format(r=root, o=folder / "out", **places).split()
    _reset_peak()
    had = _memory("VmRSS")
    out, err = io.StringIO(), io.StringIO()
    code: Any = None
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(command)
    except BaseException:
        err.write(traceback.format_exc())
    printed = err.getvalue()
    after = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    growth = _memory("VmHWM") - had
    problem = _problem(code, out.getvalue(), printed, growth)
    if seed is None and code != 0:
        problem = "a good file is refused"
    if problem is None and before != after and not (code == 0 and subject.writes):
        changed = sorted(
            str(p.relative_to(root)) for p in before.keys() | after.keys() if before.get(p) != after.get(p)
        )
        problem = f"files changed: {', '.join(changed)}"
    line = printed.strip().splitlines()[-1:] or [""]
    shown = line[0].replace(str(root), "IN").replace(str(place), "GOOD").replace(str(folder), "")
    return {
        "kind": kind,
        "seed": seed,
        "code": code,
        "line": shown,
        "problem": problem and f"{problem}: {printed[-1500:]}",
    }


def _problem(code: Any, out: str, err: str, growth: int) -> str | None:
    """What is wrong with how a command ended."""
    errors = [line for line in err.splitlines() if line.startswith("tarflow: error: ")]
    if code not in (0, 2):
        return f"exit code {code}"
    if "Traceback" in err or "not expected" in err:
        return "not one line that explains it"
    if "out of memory" in err:  # the limit below, or that of the addresses
        return "no end to its memory"
    if code == 2 and (len(errors) != 1 or err.splitlines()[-1] != errors[0] or len(errors[0]) < 25 or out):
        return "not one line on stderr alone"
    if any(len(line) > 1200 for line in errors):
        return "a line that nobody reads"
    return f"{growth >> 20} MiB of memory" if growth > MEMORY else None


def _memory(name: str) -> int:
    """Bytes of memory: now (VmRSS) or at the most (VmHWM). 0 where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
    return 0


def _reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def main() -> int:
    """Run `--count` cases of each kind, and say what broke."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=40, help="of each kind of file; of slow ones a quarter")
    parser.add_argument("--seed", type=int, default=0, help="of the first; the others follow")
    parser.add_argument("--only", help="one kind of file; with --out it is replaced there")
    parser.add_argument("--hostile", action="store_true", help="files that are well formed and mean harm")
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    args = parser.parse_args()
    known = hostile_subjects() if args.hostile else subjects()
    kinds = [args.only] if args.only else list(known)
    if not set(kinds) <= (subjects() | hostile_subjects()).keys():
        parser.error(f"--only: expected one of {', '.join(subjects() | hostile_subjects())}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        build(Path(temporary))
        counts = {kind: -(-args.count // 4) if kind in SLOW else args.count for kind in kinds}
        wanted = [(kind, args.seed + k) for kind in kinds for k in range(counts[kind])]
        found = []
        for case in run_cases(Path(temporary), wanted):
            found.append(case)
            if case["problem"]:
                print(f"--only {case['kind']!r} --seed {case['seed']}: {case['problem']}\n", flush=True)
    broken = [case for case in found if case["problem"]]
    table = {
        kind: dict(
            Counter("broken" if case["problem"] else f"exit {case['code']}" for case in found if case["kind"] == kind)
        )
        for kind in kinds
    }
    before: dict[str, Any] = {"kinds": {}, "examples": {}}
    if args.only and args.out and args.out.is_file():  # the other kinds stay as they were
        before = json.loads(args.out.read_text())
        table = before["kinds"] | table
    report = {
        "what": __doc__.splitlines()[0],
        "command": f"python -m benchmarks.fuzz{' --hostile' * args.hostile} --count {args.count} --seed {args.seed}",
        **machine(),
        "limits": {"seconds": SECONDS, "memory_mib": MEMORY >> 20},
        "files": sum(sum(counts.values()) for counts in table.values()),
        "broken": sum(counts.get("broken", 0) for counts in table.values()),
        "kinds": table,
        "examples": before["examples"]
        | {kind: next((c["line"] for c in found if c["kind"] == kind and c["code"] == 2), None) for kind in kinds},
    }
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n")
    for kind, counts in table.items():
        print(f"{kind:24}{counts}")
    print(f"{len(found)} files, {len(broken)} broke the promise")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

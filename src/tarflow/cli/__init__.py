"""The command line: a module a command, imported when it is called, and one line for whatever goes wrong.

A command's module has `run`, and the dataclass of its options, by its name, or a function `options` of the words.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from tarflow.cli.streams import standard_streams
from tarflow.data.errors import DataWarning
from tarflow.digests import CacheWarning
from tarflow.storage import DamageWarning
from tarflow.training.interrupt import Interrupted, leave_when_interrupted

ERROR_CHARACTERS = 1000  # characters of an error that are printed
COMMANDS = {  # name: (module, what --help says of it)
    "demo": "Train, score, sample and denoise the embedded digits, and check the result.",
    "prepare": "Decode a set of images once, into files that are mapped into memory.",
    "plan": "Say what a run will cost: memory, hours, and whether it fits.",
    "train": "Train a flow on images.",
    "sample": "Draw images from a trained flow.",
    "evaluate": "Score a flow on held-out images; prints one JSON object.",
    "score": "Write the log-likelihood of every image to a CSV file.",
    "quality": "Measure how good samples are: distances with names, beside their floors; prints one JSON object.",
    "sweep": "Find the best guidance and denoising of a flow, and keep it as its default.",
    "denoise": "Remove the noise that a flow was trained with from images.",
    "inpaint": "Draw a region of an image anew, given the rest of it.",
    "report": "Write one HTML page that shows a flow: scores, samples, maps, architecture.",
    "play": "Open a page to play with a flow: draw, score, walk, edit, look inside.",
    "export": "Write a flow as a file that other programs run: torch.export or ONNX.",
    "models": "List the models that come with the package; any RUN may be one of their names.",
    "push": "Push a run to the Hugging Face hub, with a card made from the run.",
    "space": "Write a Space of the hub: the page of `tarflow play` as a folder that starts by itself.",
    "convert": "Turn a checkpoint of apple/ml-tarflow into a directory of ours.",
}

DESCRIPTION = """Normalizing flows on images (TarFlow, arXiv 2412.06329): exact likelihoods, samples, denoising.

Start with `tarflow demo`, `tarflow sample digits --out digits.png`, or `tarflow train --data PATH --out RUN`. Every RUN
is a training run, a directory with config.json and model.safetensors, one RUN/checkpoints/step-N, the name of a model
that came along (`tarflow models`), or OWNER/NAME on the hub. TARFLOW_DEBUG=1 shows the traceback of an error.
`tarflow --print-completion bash|zsh` prints a script by which a shell completes commands and options."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, 2 after bad input, or 128 + the signal that stopped it.

    It is 1 where another process of the same job (`torchrun`) is gone.
    """
    if argv is None:  # this is the program itself: no caller goes on after an interrupt
        leave_when_interrupted()
    with standard_streams():
        words = list(sys.argv[1:] if argv is None else argv)
        try:
            return _answer(words)
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        except BrokenPipeError:  # such as `tarflow evaluate … | head`
            return 128 + signal.SIGPIPE
        except Exception as error:
            if os.environ.get("TARFLOW_DEBUG"):
                raise
            return _explain(error, next(iter(words), ""))


def _answer(argv: list[str]) -> int:
    """Run one command and flush what it printed; errors are raised."""
    try:
        code = _run(argv)
    except SystemExit:  # of --help
        sys.stdout.flush()
        raise
    sys.stdout.flush()  # now, while an error of a full disk can still be reported
    return code


def _run(argv: list[str]) -> int:
    if argv == ["--version"]:
        from tarflow import __version__

        print(f"tarflow {__version__}")
        return 0
    if argv[:1] == ["--print-completion"]:
        from tarflow.cli.completion import script

        print(script(" ".join(argv[1:])), end="")
        return 0
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if argv[0] not in COMMANDS:
        return _fail(f"no command {argv[0]!r}; known: {', '.join(COMMANDS)}")
    if os.environ.get("WORLD_SIZE", "1") != "1" and argv[0] != "train":
        return _fail(f"torchrun: only `tarflow train` is for several processes; start `tarflow {argv[0]}` without it")
    from tarflow.cli.arguments import parse  # here, because tyro takes a third of a second

    command = importlib.import_module(f"tarflow.cli.{argv[0]}")
    with _warnings_in_one_line():
        follow = getattr(command, "options", None)  # of a command whose options depend on the words
        options = follow(argv[1:]) if follow else getattr(command, argv[0].capitalize())
        command.run(parse(options, argv[1:], f"tarflow {argv[0]}"))
    return 0


@contextlib.contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Print warnings of ours, on damaged files, caches, data and loggers, as one line each, without their place."""
    usual = warnings.showwarning
    said: set[str] = set()  # a command may open the same data several times

    def show(message: Any, category: type[Warning], *where: Any, **named: Any) -> None:
        of_another_rank = os.environ.get("RANK", "0") != "0"  # every rank opens the data and warns of the same
        if issubclass(category, DataWarning) and (str(message) in said or of_another_rank):
            return
        said.add(str(message))
        if category.__module__.partition(".")[0] == __package__.partition(".")[0]:
            print(f"tarflow: warning: {message}", file=sys.stderr)
        else:
            usual(message, category, *where, **named)

    with warnings.catch_warnings():
        warnings.simplefilter("always", DamageWarning)
        warnings.simplefilter("always", DataWarning)
        warnings.simplefilter("default", CacheWarning)
        warnings.showwarning = show
        yield


def _overview() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return f"usage: tarflow COMMAND [OPTIONS]   (tarflow COMMAND --help; tarflow --version)\n\n{DESCRIPTION}\n\n{rows}"


def _explain(error: Exception, command: str = "") -> int:
    """One line for an error that a user can do something about; anything else is a defect of ours and says so."""
    from tarflow.cli.memory import advice, is_out_of_memory
    from tarflow.ranks import FirstRankFailed, RankLost
    from tarflow.sampling.sample import SamplingError
    from tarflow.training.trainer import Diverged

    first = os.environ.get("RANK", "0") == "0"
    if isinstance(error, Interrupted):
        if first:
            print(f"tarflow: {error}", file=sys.stderr)
        return 128 + error.signum
    if isinstance(error, FirstRankFailed) or (isinstance(error, Diverged) and not first):  # rank 0 says the same
        return 2
    if isinstance(error, RankLost):
        if first:
            _fail(f"{error}; the launcher's report says which; go on from the last checkpoint with --resume")
        return 1
    if is_out_of_memory(error):
        return _fail(f"out of memory {advice(error, command)}")
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return _fail(f"{os.fsdecode(error.filename)}: {error.strerror}")
    if isinstance(error, ValueError | OSError | SamplingError | Diverged):
        return _fail(str(error) or type(error).__name__)
    return _fail(f"{type(error).__name__}: {error} (not expected: please report it; TARFLOW_DEBUG=1 shows where)")


def _fail(message: str) -> int:
    line = " ".join(message.split())
    if len(line) > ERROR_CHARACTERS:  # it quotes a value from a damaged file
        line = f"{line[: ERROR_CHARACTERS // 2]} … {line[-ERROR_CHARACTERS // 2 :]}"
    size = os.environ.get("WORLD_SIZE", "1")
    who = "" if size == "1" else f"rank {os.environ.get('RANK', '?')} of {size}: "
    print(f"tarflow: error: {who}{line}", file=sys.stderr)
    return 2

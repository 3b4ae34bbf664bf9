"""Many people at the page of `tarflow play` at once: is a request lost, how long do they wait, how large does it grow?

    python -m benchmarks.play_load --users 32 --seconds 120 --out benchmarks/results/play-load.json

Starts the page on this machine (which takes the extra `ui`), and lets every user ask for one thing after the other, of
all that the tabs do, as a browser does: an event into the queue, then its stream until the end.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

SAMPLED_EVERY = 0.5  # seconds between two looks at the memory
PATIENCE = 300  # seconds that a user waits for an answer
ASKED: dict[str, tuple[list[Any], str]] = {  # by the button: the values of the controls, and what ends a good answer
    "draw-start": ([8, 0, "all", 1, "stable", 1, True], "8 images in"),
    "follow-start": ([2, 8, 0, "all", 0, "paper", 1, True], "in 8 stages"),
    "score-start": (["[]", 0, "all"], "1 scored"),
    "walk-start": (["[]", 0, "[]", 1, 9, "1", "null"], "9 images"),
    "edit-start": (["[]", 0, "[8, 9, 10, 11, 12, 13, 14, 15]", 4, 0, 2, "null"], "4 drawings in"),
    "inside-start": ([], "Measured just now"),
}


@dataclass
class Page:
    """The page, served by a process of its own.

    Attributes:
        memory: megabytes that were resident, every `SAMPLED_EVERY` seconds.
        events: the number of each event, by the button that asks for it.
    """

    host: str
    process: subprocess.Popen[bytes]
    errors: Path
    memory: list[float] = field(default_factory=list)
    events: dict[str, int] = field(default_factory=dict)

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """The status and the body of an answer."""
        connection = http.client.HTTPConnection(self.host, timeout=PATIENCE)
        try:
            headers = {} if body is None else {"Content-Type": "application/json"}
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def answer(self, event: int, values: list[Any], session: str) -> tuple[bool, str]:
        """Whether an event came to its end, and all that was streamed of it."""
        asked = {"data": values, "fn_index": event, "session_hash": session, "event_data": None, "trigger_id": None}
        status, text = self.ask("POST", "/gradio_api/queue/join", json.dumps(asked).encode())
        if status != 200:
            return False, text.decode(errors="replace")
        return self.stream(session)

    def stream(self, session: str) -> tuple[bool, str]:
        """The stream of a session until its event is completed: whether it was, with success, and the stream itself."""
        status, text = self.ask("GET", f"/gradio_api/queue/data?session_hash={session}")
        streamed = text.decode(errors="replace")
        good = status == 200 and '"msg":"process_completed"' in streamed and '"success":true' in streamed
        return good, streamed

    def watch(self) -> None:
        """Look at the memory until the process has ended."""
        status = Path(f"/proc/{self.process.pid}/status")
        while self.process.poll() is None:
            try:
                found = re.search(r"VmRSS:\s+(\d+) kB", status.read_text())
            except OSError:
                return
            if found:
                self.memory.append(int(found.group(1)) / 1000)
            time.sleep(SAMPLED_EVERY)


@contextmanager
def served(run: str) -> Iterator[Page]:
    """The page of a run, until the end of the block; what it wrote to its standard error is kept as long."""
    with tempfile.TemporaryDirectory() as place:
        errors = Path(place) / "errors"
        with errors.open("wb") as file:
            command = [sys.executable, "-m", "tarflow", "play", run, "--port", "0", "--device", "cpu"]
            process = subprocess.Popen(command, stderr=file, env=os.environ | {"OMP_NUM_THREADS": "1"})
        try:
            while not (found := re.search(r"http://\S+/", errors.read_text())):
                if process.poll() is not None:
                    raise RuntimeError(f"tarflow play ended: {errors.read_text().strip()}")
                time.sleep(0.2)
            page = Page(urlsplit(found.group()).netloc, process, errors)
            threading.Thread(target=page.watch, daemon=True).start()
            config = json.loads(page.ask("GET", "/config")[1])
            names = {c["id"]: c["props"].get("elem_id") for c in config["components"]}
            for event in config["dependencies"]:
                for target, _ in event["targets"]:
                    if target is not None:  # as of what follows on another event
                        page.events[names[target]] = event["id"]
            yield page
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)


def main() -> int:
    """Print and write what was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.play_load", description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="digits")
    parser.add_argument("--users", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with served(options.run) as page:
        for name, (values, _) in ASKED.items():  # what is measured or read once, before the clock
            page.answer(page.events[name], values, "first")
        idle = page.memory[-1]
        results: list[dict[str, Any]] = []
        end = time.monotonic() + options.seconds
        users = [threading.Thread(target=use, args=(page, k, options.seed, end, results)) for k in range(options.users)]
        for user in users:
            user.start()
        for user in users:
            user.join()
        printed = page.errors.read_text()
    summary = summarised(results, idle, page.memory, printed, vars(options))
    text = json.dumps(summary, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    return 0 if not summary["lost"] and not summary["tracebacks"] else 1


def use(page: Page, number: int, seed: int, end: float, results: list[dict[str, Any]]) -> None:
    """What one user does until the end, one thing after the other; an answer that is under way is waited for."""
    rng, count = random.Random(f"{seed} {number}"), 0
    while time.monotonic() < end:
        name = rng.choice(list(ASKED))
        values, last = ASKED[name]
        began, count = time.monotonic(), count + 1
        try:
            good, streamed = page.answer(page.events[name], values, f"user{number}x{count}")
        except OSError as error:
            good, streamed = False, repr(error)
        found = good and last in streamed and "alert" not in streamed
        seconds = time.monotonic() - began
        results.append({"asked": name, "seconds": seconds, "good": found, "end": "" if found else streamed[-300:]})


def summarised(
    results: list[dict[str, Any]], idle: float, memory: list[float], printed: str, options: dict[str, Any]
) -> dict[str, Any]:
    """What there is to say of all answers."""
    seconds = sorted(result["seconds"] for result in results)
    lost = [result for result in results if not result["good"]]
    return {
        "command": f"python -m benchmarks.play_load --users {options['users']} --seconds {options['seconds']:g}",
        "run": options["run"],
        "machine": f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}",
        "users": options["users"],
        "requests": len(results),
        "lost": len(lost),
        "first_lost": lost[0] if lost else None,
        "tracebacks": printed.count("Traceback"),
        "seconds_median": round(seconds[len(seconds) // 2], 2),
        "seconds_longest": round(seconds[-1], 2),
        "megabytes_idle": round(idle),
        "megabytes_half_way": round(max(memory[: len(memory) // 2], default=idle)),
        "megabytes_most": round(max(memory)),
        "by_kind": {name: sum(r["asked"] == name for r in results) for name in ASKED},
    }


if __name__ == "__main__":
    raise SystemExit(main())

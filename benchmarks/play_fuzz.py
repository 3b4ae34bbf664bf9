"""What nobody should send to the page of `tarflow play`: does each of it get one clear line, and does the page go on?

    python -m benchmarks.play_fuzz --uploads 200 --calls 500 --out benchmarks/results/play-fuzz.json

Spoiled and hostile pictures go where pictures go; spoiled events, other addresses and other methods go to the server.
An answer is good where it is one line that says what is wrong, or the thing itself, as what was changed may have done
no harm. Anything else is kept in the result with its seed, and `--seed` sends it again.
"""

from __future__ import annotations

import argparse
import base64
import collections
import io
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.hostile_images import image_bomb
from benchmarks.mutations import BYTES, JSON, mutate
from benchmarks.play_load import Page, served

KINDS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")
MOST_SENT = 20_000_000  # bytes of a hostile picture: more than is taken, and less than is read before an answer
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        65,
        1e300,
        float("nan"),
        10**30,
        "",
        "all",
        "null",
        "3",
        "paper",
        "../../etc/passwd",
        "<script>",
    ),
    *("x" * 10_000, [], {}, {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, "\ud800", "[[[["),
)
PATHS = (
    *("/gradio_api/file=/etc/passwd", "/gradio_api/upload", "/gradio_api/run/predict", "/gradio_api/call/draw"),
    *(
        "/gradio_api/proxy=http://localhost/",
        "/static/..%2f..%2fetc/passwd",
        "/monitoring",
        "/login",
        "/gradio_api/cancel",
    ),
    *("/gradio_api/component_server", "/gradio_api/reset", "/gradio_api/stream/a", "/gradio_api/queue/join/", "/%00"),
)


def picture(rng: random.Random) -> bytes:
    """A picture, spoiled at random or made to do harm."""
    if rng.random() < 0.25:
        while len(data := image_bomb(b"", rng)) > MOST_SENT:
            continue
        return data
    pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (16, 12, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, rng.choice(KINDS))
    return mutate(file.getvalue(), rng, BYTES)


def upload(page: Page, rng: random.Random, session: str) -> tuple[str, str]:
    """Send a picture to be scored: the kind of the outcome, and what is wrong with it, if anything."""
    data = picture(rng)
    files = json.dumps([{"name": "picture.png", "data": base64.b64encode(data).decode()}])
    values = [files, 0, "null"]
    asked = {"data": values, "fn_index": page.events["score-start"], "session_hash": session}
    status, text = page.ask("POST", "/gradio_api/queue/join", json.dumps(asked).encode())
    if status != 200:
        return refusal(status, text)
    good, streamed = page.stream(session)
    lines = set(re.findall(r"picture\.png: ([^<\\]+)\.</p>", streamed))  # the last result is streamed twice
    if good and len(lines) == 1 and "could not be read" in streamed:
        return "one line", ""
    if good and not lines and "1 scored" in streamed:
        return "scored", ""
    return "bad", streamed[-500:]


def call(page: Page, rng: random.Random, session: str) -> tuple[str, str]:
    """Send an event that is spoiled somehow, or something else: the kind of the outcome, and what is wrong with it."""
    event = page.events["draw-start"]
    asked: dict[str, Any] = {"data": [2, 0, "all", 1, "stable", 1, True], "fn_index": event, "session_hash": session}
    asked |= {"event_data": None, "trigger_id": None}
    method, path, body = "POST", "/gradio_api/queue/join", b""
    what = rng.randrange(6)
    if what == 0:  # a value
        asked["data"][rng.randrange(7)] = rng.choice(VALUES)
    elif what == 1:  # a field
        asked[rng.choice([*asked, "batched", "api_name", "simple_format"])] = rng.choice(VALUES)
    elif what == 2:  # too few, too many
        asked["data"] = [rng.choice(VALUES) for _ in range(rng.randrange(12))]
        asked["fn_index"] = rng.choice([*page.events.values(), 99, -1])
    elif what == 3:  # another address
        method, path = rng.choice(["GET", "POST", "PUT", "DELETE", "OPTIONS"]), rng.choice(PATHS)
    body = json.dumps(asked).encode()
    if what == 4:
        body = mutate(body, rng, BYTES)
    elif what == 5:
        body = mutate(body, rng, JSON)
    status, text = page.ask(method, path, body)
    if status != 200:
        return refusal(status, text)
    try:
        session = str(json.loads(body)["session_hash"])
    except (ValueError, KeyError, TypeError):
        return "bad", f"{path}: 200 for {body[:200]!r}"
    good, streamed = page.stream(session)
    alerts = set(re.findall(r'role=\\"alert\\">([^<]+)</p>', streamed))
    if good and len(alerts) == 1:
        return "one line", ""
    return ("done", "") if good and not alerts else ("bad", f"{body[:200]!r}: {streamed[-500:]}")


def refusal(status: int, text: bytes) -> tuple[str, str]:
    """An answer that is no success: good where it is one line of JSON, and of a status that blames the sender."""
    try:
        detail = json.loads(text)["detail"]
    except (ValueError, KeyError, TypeError):
        detail = None
    good = 400 <= status < 500 and isinstance(detail, str) and detail and "\n" not in detail and len(detail) < 300
    return (f"refused, {status}", "") if good else ("bad", f"{status}: {text[:300]!r}")


def main() -> int:
    """Print and write what came of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.play_fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="digits")
    parser.add_argument("--uploads", type=int, default=200)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    kinds: list[tuple[str, int, Callable[[Page, random.Random, str], tuple[str, str]]]]
    kinds = [("uploads", options.uploads, upload), ("calls", options.calls, call)]
    found: dict[str, Any] = {
        "command": f"python -m benchmarks.play_fuzz --uploads {options.uploads} --calls {options.calls}"
    }
    with served(options.run) as page:
        page.answer(page.events["score-start"], ["[]", 0, "null"], "first")  # reads what is read once
        idle = page.memory[-1]
        bad: list[dict[str, str]] = []
        for name, count, send in kinds:
            outcomes: collections.Counter[str] = collections.Counter()
            for k in range(count):
                seed = f"{options.seed} {name} {k}"
                outcome, problem = send(page, random.Random(seed), f"{name}{k}")
                outcomes[outcome] += 1
                bad += [{"seed": seed, "problem": problem}] if problem else []
            found[name] = {"sent": count, **dict(sorted(outcomes.items()))}
        after = page.answer(page.events["draw-start"], [2, 0, "all", 0, "paper", 1, True], "last")
        printed = page.errors.read_text()
        found |= {"bad": bad[:20], "goes_on": after[0] and "2 images in" in after[1]}
        found |= {"tracebacks": printed.count("Traceback"), "unexpected": printed.count("tarflow: play:")}
        found |= {"megabytes_idle": round(idle), "megabytes_most": round(max(page.memory))}
    text = json.dumps(found, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    return 0 if not bad and found["goes_on"] and not found["tracebacks"] and not found["unexpected"] else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""The measurements of the page: what they call lost and what they call good."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from benchmarks import play_fuzz, play_load


class Stub:
    """A page that answers as it is told."""

    def __init__(self, joined: tuple[int, bytes], streamed: str) -> None:
        self.joined, self.streamed = joined, streamed
        self.events = dict.fromkeys(play_load.ASKED, 0)
        self.asked: list[tuple[str, str]] = []

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        self.asked.append((method, path))
        return self.joined

    def stream(self, session: str) -> tuple[bool, str]:
        return "completed" in self.streamed, self.streamed


def test_what_did_not_end_well_is_lost() -> None:
    results = [
        {"asked": "draw-start", "seconds": 1.0, "good": True, "end": ""},
        {"asked": "walk-start", "seconds": 9.0, "good": False, "end": "…"},
    ]
    options = {"users": 2, "seconds": 3.0, "run": "digits"}
    found = play_load.summarised(results, 100.0, [100.0, 120.0, 110.0], "Traceback (most", options)
    assert (found["requests"], found["lost"], found["tracebacks"]) == (2, 1, 1)
    assert found["first_lost"]["asked"] == "walk-start"
    assert (found["megabytes_idle"], found["megabytes_most"], found["seconds_longest"]) == (100, 120, 9.0)


@pytest.mark.parametrize(
    ("status", "text", "good"),
    [
        (422, b'{"detail": "data: expected a list of 7"}', True),
        (500, b'{"detail": "broken"}', False),
        (422, b'{"detail": "two\\nlines"}', False),
        (404, b"Not Found", False),
        (422, b'{"detail": [{"loc": ["body"]}]}', False),
        (422, b'{"detail": ""}', False),
    ],
)
def test_a_refusal_is_one_line_that_blames_the_sender(status: int, text: bytes, good: bool) -> None:
    assert (play_fuzz.refusal(status, text)[1] == "") == good


@pytest.mark.parametrize(
    ("streamed", "outcome"),
    [
        ("picture.png: not an image.</p> … could not be read … completed", "one line"),
        ("1 scored. completed", "scored"),
        ("picture.png: not an image.</p> picture.png: again.</p> could not be read completed", "bad"),
        ("could not be read", "bad"),
        ("completed", "bad"),
    ],
)
def test_a_picture_has_one_outcome(streamed: str, outcome: str) -> None:
    page: Any = Stub((200, b"{}"), streamed)
    assert play_fuzz.upload(page, random.Random(0), "s")[0] == outcome


def test_spoiled_calls_are_of_many_kinds_and_the_same_for_a_seed() -> None:
    page: Any = Stub((422, json.dumps({"detail": "no"}).encode()), "")
    for k in range(60):
        assert play_fuzz.call(page, random.Random(k), "s") == ("refused, 422", "")
    asked = page.asked
    assert len(set(asked)) > 8 and asked.count(("POST", "/gradio_api/queue/join")) > 30
    again: Any = Stub((422, b'{"detail": "no"}'), "")
    play_fuzz.call(again, random.Random(3), "s")
    assert again.asked == asked[3:4]

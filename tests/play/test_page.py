"""The page in a browser: every tab by clicks and keys, at two widths and in both themes; and the server behind it.

It needs gradio, selenium and a Chromium, and says which of them is missing.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import tarflow
from browser import chromium, complaints, faint, nameless, requested, resize
from play_cases import conditioned, picture
from report_cases import make_run

pytestmark = pytest.mark.extra
ROOT = Path(__file__).resolve().parent.parent.parent
TABS = {"Draw": "draw", "Score": "score", "Walk": "walk", "Edit": "edit", "Look inside": "inside"}
SECONDS = 60  # that anything may take on a busy machine


@dataclass
class Server:
    """`tarflow play` in a process of its own."""

    address: str
    process: subprocess.Popen[str]
    errors: Path


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], Server]]:
    """Starts the page of a run."""
    pytest.importorskip("gradio", reason="gradio, of the extra `ui`, is not installed")
    started: list[Server] = []

    def start(run: Path) -> Server:
        place = tmp_path_factory.mktemp("server")
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "TMPDIR": str(place)}
        environment |= {"TARFLOW_CACHE": str(place / "cache"), "TARFLOW_NATIVE": "0"}
        errors = place / "errors"
        command = [sys.executable, "-m", "tarflow", "play", str(run), "--port", "0"]
        with errors.open("w") as file:
            process = subprocess.Popen(command, cwd=place, env=environment, stderr=file, text=True)
        found = until(lambda: re.search(r"http://127\.0\.0\.1:\d+/", errors.read_text()), "an address")
        started.append(Server(found.group(), process, errors))
        return started[-1]

    yield start
    for server in started:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(SECONDS) in (0, 130)
        assert "Traceback" not in server.errors.read_text() and "rror" not in server.errors.read_text()


@pytest.fixture(scope="module")
def server(serve: Callable[[Path], Server], tmp_path_factory: pytest.TempPathFactory) -> Server:
    return serve(make_run(tmp_path_factory.mktemp("play") / "run", classes=True, noise="gaussian"))


def until(ask: Callable[[], Any], what: str) -> Any:
    """What `ask` gives as soon as it gives something."""
    end = time.monotonic() + SECONDS
    while not (found := ask()):
        assert time.monotonic() < end, f"{what} did not come in {SECONDS} s"
        time.sleep(0.1)
    return found


def fill(field: Any, text: str) -> None:
    field.clear()
    field.send_keys(text)


class Person:
    """Somebody at the page."""

    def __init__(self, browser: Any, address: str) -> None:
        from selenium.webdriver.common.by import By

        self.browser, self.by = browser, By
        browser.get(address)
        until(lambda: browser.find_elements(By.ID, "draw-start"), "the page")

    def all(self, selector: str) -> list[Any]:
        return self.browser.find_elements(self.by.CSS_SELECTOR, selector)

    def seen(self, selector: str) -> Any:
        return until(lambda: next((e for e in self.all(selector) if e.is_displayed()), None), selector)

    def tab(self, name: str) -> None:
        until(
            lambda: next((e for e in self.all("[role=tab]") if e.is_displayed() and e.text == name), None), name
        ).click()

    def press(self, name: str) -> str:
        """Press the button of a tab and wait for its last word."""
        script = "document.querySelector(arguments[0])?.setAttribute('data-old', '')"
        self.browser.execute_script(script, f"#{name}-word p")
        self.seen(f"#{name}-start").click()
        return self.word(name)

    def word(self, name: str) -> str:
        def last() -> str | None:
            script = (
                "const e = document.querySelector(arguments[0]), p = e.querySelector('p:not([data-old])');"
                "return p && !e.querySelector('progress') ? p.innerText : ''"
            )
            found = self.browser.execute_script(script, f"#{name}-word")
            return str(found) if found else None

        return str(until(last, f"the last word of {name}"))

    def source(self, name: str) -> Any:
        return self.seen(f"[data-source={name}]")


@pytest.fixture
def person(server: Server, tmp_path: Path) -> Iterator[Person]:
    with chromium(tmp_path / "profile") as browser:
        yield Person(browser, server.address)
        assert {re.match(r"https?://[^/]+/", a).group() for a in requested(browser)} == {server.address}  # type: ignore[union-attr]
        assert complaints(browser) == []


def test_every_tab_does_what_it_says(person: Person, tmp_path: Path) -> None:
    keys = pytest.importorskip("selenium.webdriver.common.keys", reason="selenium is not installed").Keys
    assert re.match(r"16 images in .* s; no guidance, denoised with σ=0.1; seed 0\.", person.press("draw"))
    assert len(person.all("#draw-result img")) == 16 and person.all("#draw-result figcaption")[9].text == "9"

    assert person.press("follow") == "Image 1 in 4 stages."
    slider, main = person.seen("#film-trace"), person.seen("#follow-result .film > img")
    finished = main.get_attribute("src")
    slider.send_keys(keys.ARROW_LEFT)
    assert main.get_attribute("src") != finished and slider.get_attribute("aria-valuetext") == "after block 0"

    person.tab("Score")
    good, bad = tmp_path / "good.png", tmp_path / "bad.txt"
    good.write_bytes(picture())
    bad.write_text("no picture")
    person.source("score").find_element(person.by.CSS_SELECTOR, "input[type=file]").send_keys(f"{good}\n{bad}")
    until(lambda: len(person.all("[data-source=score] .chosen li")) == 2, "the chosen files")
    assert person.press("score") == "1 scored, 1 could not be read."
    text = person.seen("#score-result").text
    assert "bad.txt: not an image" in text and "log-likelihood" in text and "Most likely classes" in text
    assert len(person.all("#score-result svg .mark")) == 1 and len(person.all("#score-result .pair img")) == 2

    box = person.source("score")
    box.find_element(person.by.CSS_SELECTOR, "[data-do=forget]").click()
    box.find_element(person.by.CSS_SELECTOR, "summary").send_keys(keys.ENTER)
    board = person.seen("[data-source=score] canvas")
    board.send_keys(" ", keys.ARROW_DOWN, keys.ARROW_DOWN, keys.ARROW_RIGHT)  # the pen down, and a stroke
    box.find_element(person.by.CSS_SELECTOR, "[data-do=use]").click()
    until(lambda: len(person.all("[data-source=score] .chosen li")) == 1, "the drawing")
    assert person.press("score") == "1 scored." and "drawing" in person.seen("#score-result h3").text

    person.tab("Walk")
    assert person.press("walk") == "13 images, both ends included."
    assert len(person.all("#walk-result .reel img")) == 13

    person.tab("Edit")
    cells = person.all("[data-region=edit] input")
    assert [cell.is_selected() for cell in cells] == [False, False, True, True], "the lower half, at first"
    grounds = [cell.value_of_css_property("background-image") for cell in cells]
    assert [ground.startswith("repeating-linear-gradient") for ground in grounds] == [False, False, True, True]
    cells[2].click()
    cells[0].send_keys(keys.ARROW_RIGHT)
    person.browser.switch_to.active_element.send_keys(" ")
    assert [cell.is_selected() for cell in cells] == [False, True, False, True]
    person.seen("[data-choose='upper half']").click()
    assert [cell.is_selected() for cell in cells] == [True, True, False, False]
    limit = person.seen("input[aria-label='number input for Seconds at most']")
    fill(limit, "2\t")
    assert re.match(r"6 drawings in .* s, seed 0\.", person.press("edit"))
    assert len(person.all("#edit-result img")) == 7 and "R-hat" in person.seen("#edit-result").text
    person.browser.execute_script(
        "document.querySelectorAll('[data-region=edit] input').forEach((e) => e.checked = false)"
    )
    assert "nothing is chosen" in person.press("edit")
    assert len(person.all("#edit-result img")) == 7, "what is there stays"

    person.tab("Look inside")
    assert person.press("inside") == "Measured just now."
    assert len(person.all("#inside-result tbody tr")) == 3 and len(person.all("#inside-result svg")) == 2


def test_what_is_wrong_is_said_in_the_line_of_the_tab(person: Person) -> None:
    person.tab("Walk")
    field = person.source("first").find_element(person.by.CSS_SELECTOR, ".seed input")
    fill(field, "-3")
    assert person.press("walk") == "seed of the first picture: expected a whole number from 0 to 4294967295, got -3"
    assert person.seen("#walk-word p").get_attribute("role") == "alert"
    fill(field, "3")
    assert person.press("walk") == "13 images, both ends included."


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_can_be_read_and_used_at_400_pixels(server: Server, tmp_path: Path, dark: bool) -> None:
    with chromium(tmp_path / "profile", width=400, dark=dark) as browser:
        person = Person(browser, server.address)
        assert browser.execute_script("return document.body.classList.contains('dark')") == dark
        for name, start in TABS.items():
            person.tab(name)
            person.press(start)
            for width in (400, 1400):
                resize(browser, width, 900)
                until(lambda w=width: browser.execute_script("return innerWidth") == w, "the width")
                assert browser.execute_script("return document.documentElement.scrollWidth") <= width, name
                assert faint(browser) == nameless(browser) == [], (name, width)
            resize(browser, 400, 900)
        assert {re.match(r"https?://[^/]+/", a).group() for a in requested(browser)} == {server.address}  # type: ignore[union-attr]


def test_a_bare_model_has_no_controls_for_what_it_has_not_and_its_drawing_can_be_stopped(
    serve: Callable[[Path], Server], tmp_path: Path
) -> None:
    """Without classes, and without a noise that is known; of so many patches that a drawing takes a while."""
    config = tarflow.TarFlowConfig(16, channels=1, patch_size=1, width=64, layers=(2, 2))
    tarflow.TarFlow(config).save_pretrained(tmp_path / "bare")
    server = serve(tmp_path / "bare")
    with chromium(tmp_path / "profile") as browser:
        person = Person(browser, server.address)
        text = browser.find_element(person.by.TAG_NAME, "body").get_attribute("textContent")
        assert "Guidance" in text and "Temperature" in text and "Class" not in text and "Denoise" not in text
        number = person.seen("input[aria-label='number input for Images']")
        fill(number, "64\t")
        person.seen("#draw-start").click()
        until(lambda: "of 64" in person.seen("#draw-word").text, "progress")
        person.seen("#draw-stop").click()
        assert person.word("draw") == "Stopped."
        time.sleep(1)  # what is on its way would come now
        assert person.word("draw") == "Stopped." and len(person.all("#draw-result img")) < 64
        fill(number, "1\t")
        assert person.press("draw").startswith("1 image in"), "the next one does not wait for what was stopped"
        assert complaints(browser) == []


def test_numbers_and_a_picture_can_be_given(serve: Callable[[Path], Server], tmp_path: Path) -> None:
    """A model that is conditioned on them has a field for each, in every tab that has a use for it."""
    run = conditioned(tmp_path / "run", "vector:2+tokens:2:3+image:1:8:8:4").studio.run
    server, given = serve(run.path), tmp_path / "given.png"
    given.write_bytes(picture((8, 8)))
    with chromium(tmp_path / "profile", width=400) as browser:
        person = Person(browser, server.address)
        fields = [e for e in person.all("textarea, input[type=text]") if e.is_displayed()]
        assert [e.get_property("value") for e in fields] == ["0.5, -100", "1, 2, 3\n1, 2, 3"]
        person.source("draw-2").find_element(person.by.CSS_SELECTOR, "input[type=file]").send_keys(str(given))
        until(lambda: len(person.all("[data-source=draw-2] .chosen li")) == 1, "the chosen file")
        assert person.press("draw").startswith("16 images in")
        first = person.all("#draw-result img")[0].get_attribute("src")
        fill(fields[0], "1 2 3")
        assert person.press("draw") == "2 numbers: expected 2 numbers, or nothing, got 3"
        fill(fields[0], "900, 900")
        assert person.press("draw").startswith("16 images in")
        assert person.all("#draw-result img")[0].get_attribute("src") != first
        for name, start in TABS.items():
            person.tab(name)
            word = person.press(start)
            assert person.seen(f"#{start}-word p").get_attribute("role") == "status", word
            assert browser.execute_script("return document.documentElement.scrollWidth") <= 400, name
            assert faint(browser) == nameless(browser) == [], name
        assert complaints(browser) == []


UNREADABLE = """
    gradio_api/file=/etc/passwd gradio_api/file=config.json file=/etc/passwd gradio_api/proxy=http://x/ gradio_api/info
    static/..%2f..%2f..%2f..%2fetc%2fpasswd assets/..%2f..%2f__init__.py monitoring static//etc/passwd
    assets//etc/passwd custom_component/a/b/c/d svelte/x.js docs openapi.json
"""


@pytest.mark.parametrize("path", UNREADABLE.split())
def test_no_path_of_the_server_is_readable(server: Server, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(server.address + path, timeout=SECONDS)
    assert caught.value.code in (403, 404)
    assert b"root:" not in caught.value.read() and b"/" not in caught.value.read()


def test_what_the_browser_does_alone_is_nothing_to_ask_for(server: Server) -> None:
    """As stopping: gradio would answer it with a traceback."""
    events = json.loads(urllib.request.urlopen(server.address + "config", timeout=SECONDS).read())["dependencies"]
    alone = next(event["id"] for event in events if not event["backend_fn"])
    asked = json.dumps({"data": [], "fn_index": alone, "session_hash": "alone"}).encode()
    with pytest.raises(urllib.error.HTTPError, match="422"):
        urllib.request.urlopen(server.address + "gradio_api/queue/join", asked, timeout=SECONDS)


def test_what_the_page_says_of_itself_names_no_place(server: Server) -> None:
    for path in ("", "config"):
        text = urllib.request.urlopen(server.address + path, timeout=SECONDS).read().decode()
        assert str(server.errors.parent) not in text and str(ROOT) not in text and "googleapis" not in text


def test_the_server_talks_to_nobody_and_keeps_no_file(server: Server) -> None:
    """What it has open is what it listens at and who asks; and its directory for temporary files stays as it was."""
    listed = Path(f"/proc/{server.process.pid}/net/tcp")
    if not listed.exists():
        pytest.skip("there is no /proc to look at sockets by")
    inodes = {os.readlink(e) for e in Path(f"/proc/{server.process.pid}/fd").iterdir() if e.is_symlink()}
    rows = [line.split() for line in listed.read_text().splitlines()[1:]]
    ours = [row for row in rows if f"socket:[{row[9]}]" in inodes]
    assert ours and {row[1].split(":")[0] for row in ours} == {"0100007F"}, "of this machine alone"
    assert {row[2].split(":")[0] for row in ours} <= {"0100007F", "00000000"}
    assert {path.name for path in server.errors.parent.iterdir()} <= {"cache", "errors", "gradio"}
    assert not [path for path in server.errors.parent.joinpath("gradio").rglob("*") if path.is_file()]

"""A headless Chromium for tests of the page: driven by selenium, its requests watched."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)


@contextlib.contextmanager
def chromium(profile: Path, *, width: int = 1400, height: int = 1000, dark: bool = False) -> Iterator[Any]:
    """A browser with a window of this size; skips the test where there is no Chromium, or no selenium."""
    pytest.importorskip("selenium", reason="selenium, of the extra `browser`, is not installed")
    from selenium import webdriver

    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("there is no chromium with its chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        resize(opened, width, height)
        theme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": theme})
        yield opened
    finally:
        opened.quit()


def resize(browser: Any, width: int, height: int) -> None:
    """A window whose inside is this wide: a headless window is no narrower than 500 pixels otherwise."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def requested(browser: Any) -> list[str]:
    """The addresses on any network that were asked for since this was last called."""
    found = []
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
            parameters = message["params"]
            found.append(parameters["url"] if "url" in parameters else parameters["request"]["url"])
    return [address for address in found if address.startswith(("http:", "https:", "ws:", "wss:"))]


def complaints(browser: Any) -> list[str]:
    """What the page wrote to the console as errors."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


READABLE = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")


def faint(browser: Any) -> list[str]:
    """Texts on the page whose contrast with what is behind them is below 4.5, or 3 where they are large (WCAG AA)."""
    return list(browser.execute_script(f"{READABLE}; return faint()"))


def nameless(browser: Any) -> list[str]:
    """Controls on the page that have no name for somebody who does not see them."""
    return list(browser.execute_script(f"{READABLE}; return nameless()"))


def save_page(browser: Any, path: Path, most: int = 2400) -> None:
    """The whole page as a picture, as high as it is, up to `most` pixels."""
    width = browser.execute_script("return window.innerWidth")
    height = min(most, browser.execute_script("return document.documentElement.scrollHeight"))
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    options = {"format": "png", "captureBeyondViewport": True, "clip": clip}
    found = browser.execute_cdp_cmd("Page.captureScreenshot", options)
    path.write_bytes(base64.b64decode(found["data"]))

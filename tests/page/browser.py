"""A page in a real browser, without a network: what it shows, and what it complains about."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


def find_browser() -> tuple[str, str] | None:
    """Paths of the browser and of its driver, if both are installed."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextmanager
def open_browser(profile: Path) -> Iterator[Any]:
    """A selenium driver; skips the test where there is no browser."""
    selenium = pytest.importorskip("selenium.webdriver")
    found = find_browser()
    if found is None:
        pytest.skip("no chromium with a chromedriver")
    options = selenium.ChromeOptions()
    options.binary_location = found[0]
    switches = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    switches += f" disable-component-update disable-sync disable-dev-shm-usage user-data-dir={profile}"
    for switch in switches.split():
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # With its path given, selenium does not go looking for a driver to download.
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(executable_path=found[1]))
    try:
        yield driver
    finally:
        driver.quit()


def show(driver: Any, page: Path, width: int, height: int, dark: bool = False, media: str = "") -> None:
    """Load a file at a width in CSS pixels."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": [scheme]})
    driver.get(page.as_uri())


def requests(driver: Any) -> list[str]:
    """URLs that were asked for since the last call, data URIs left out."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [url for url in sent if not url.startswith("data:")]


def complaints(driver: Any) -> list[str]:
    """What the console says since the last call: errors, and what the content policy blocked."""
    return [entry["message"] for entry in driver.get_log("browser")]


def check_fits(driver: Any, text: str, folder: Path, width: int, dark: bool) -> None:
    """A page with all that is folded open is no wider than the screen, asks for nothing, and is as light or dark."""
    file = folder / "page.html"
    file.write_text(text, encoding="utf-8")
    requests(driver)
    show(driver, file, width, 844, dark)
    driver.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    outside = """return [...document.querySelectorAll('main *')]
        .filter(e => !e.closest('.scroll > *, svg') && e.getBoundingClientRect().right > innerWidth + 1)
        .map(e => e.outerHTML.slice(0, 200))"""
    assert driver.execute_script(outside) == []
    assert [url for url in requests(driver) if not url.startswith("chrome://")] == [file.as_uri()]
    assert complaints(driver) == []
    background = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) is dark

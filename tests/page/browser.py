"""A page in a real browser, without a network: what it shows, and what it complains about."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from testing import browser
from testing.browser import show


@contextmanager
def open_browser(profile: Path) -> Iterator[Any]:
    """A selenium driver; skips the test where there is no browser."""
    if browser.find_browser() is None:
        pytest.skip("no chromium with a chromedriver")
    with browser.open_browser(profile) as driver:
        yield driver


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

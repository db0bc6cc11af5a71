from __future__ import annotations

import copy
import io
import json
import re
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.evaluate.report.page import render_report
from testing.browser import show
from tests.evaluate.report.sample_metrics import THREE, sample_gallery, sample_metrics
from tests.page.browser import check_fits, open_browser
from tests.page.parsed import Page, check_self_contained

NASTY = "<script>alert('x')</script>\" onload=\"alert(1)"
SECTIONS = {
    "results": "Results",
    "evaluated": "What was evaluated",
    "classes": "Classes",
    "curves": "Precision and recall",
    "confusion": "Confusion",
    "errors": "Errors",
    "calibration": "Calibration",
    "thresholds": "Thresholds",
    "gallery": "Gallery",
}


@pytest.fixture(scope="module")
def full() -> str:
    return render_report(sample_metrics(), sample_gallery(THREE, 1))


def with_nasty_text(value: Any) -> Any:
    """All text that is not a key replaced."""
    if isinstance(value, dict):
        keep = ("iou_types", "names", "iou_type")
        return {key: inner if key in keep else with_nasty_text(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [with_nasty_text(inner) for inner in value]
    return NASTY if isinstance(value, str) else value


def test_all_sections_are_there_and_linked(full: str) -> None:
    page = Page(full)
    assert page.open == []
    assert page.sections() == list(SECTIONS)
    assert [a["href"] for tag, a in page.tags if tag == "a"] == [f"#{name}" for name in SECTIONS]
    for title in SECTIONS.values():
        assert title in page.text


def test_numbers_are_there(full: str) -> None:
    text = re.sub(r"\s+", " ", Page(full).text)
    for expected in (
        "0.437",
        "0.497",
        "17 images of the ground truth have no result",
        "3f3f3f",
        "+0.068",
        "0.930 to 0.971",
    ):
        assert expected in text
    assert "annotated 4,952 (99.0 %)" in text
    assert "Shown are the 30 most confused of 80 classes." in text
    assert "-1.000" not in text
    assert "None" not in text


def test_nothing_is_loaded_and_nothing_runs(full: str) -> None:
    check_self_contained(full)


def test_whatever_is_in_the_names_stays_text() -> None:
    metrics = with_nasty_text(sample_metrics(THREE))
    metrics["failures"] = {NASTY: 3}
    metrics["mmdet"] = {NASTY: 0.5}
    metrics["sources"]["model"] = {NASTY: NASTY}
    categories = tuple(type(c)(c.id, NASTY) for c in THREE)
    gallery = islice(sample_gallery(categories, 1), 2)
    page = Page(render_report(metrics, gallery, title=NASTY))
    assert page.open == []
    assert "script" not in {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count(NASTY) > 20


@pytest.mark.parametrize("section", sorted(set(sample_metrics(THREE)) - {"format"}))
def test_each_part_can_be_missing(section: str) -> None:
    metrics = sample_metrics(THREE)
    for curves in metrics["curves"].values():
        curves["per_class"] = []  # plots take time
    del metrics[section]
    shown = Page(render_report(metrics)).sections()
    gone = {"per_class": "classes"}.get(section, section)
    assert gone not in shown
    assert set(SECTIONS) - set(shown) <= {gone, "gallery"}


def test_nothing_at_all() -> None:
    page = Page(render_report({}))
    assert page.sections() == ["evaluated"]
    assert "Evaluation" in page.text


def test_undefined_numbers_are_dashes() -> None:
    def undefined(value: Any) -> Any:
        if isinstance(value, dict):
            keep = ("bin_edges", "recall", "score_threshold", "iou_threshold", "background_threshold")
            return {key: inner if key in keep else undefined(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [undefined(inner) for inner in value]
        return None if isinstance(value, float) else value

    text = Page(render_report(undefined(sample_metrics(THREE)))).text
    assert "\N{EN DASH}" in text
    assert "None" not in text
    assert "nan" not in text


def test_the_metrics_are_not_changed_and_the_page_is_the_same_again() -> None:
    metrics = sample_metrics(THREE)
    before = copy.deepcopy(metrics)
    gallery = list(sample_gallery(THREE, 1))[:2]
    first = render_report(metrics, gallery)
    assert metrics == before
    assert render_report(json.loads(json.dumps(metrics)), gallery) == first


def test_names_that_are_no_text_can_still_be_written() -> None:
    metrics = {"title": json.loads('"half a \\ud83d"'), "decisions": ["\0\x1b"]}
    assert "half a ?" in render_report(metrics).encode().decode()


def test_when_it_was() -> None:
    text = Page(render_report({"run": {"run_id": "20260102T030405-0123abcd"}})).text
    assert "Evaluated2026-01-02 03:04 UTC" in text


def test_secrets_in_sources_are_not_shown() -> None:
    metrics = {"sources": {"predictions": "https://host/r?X-Amz-Signature=secret", "ground_truth": None, "model": None}}
    assert "secret" not in render_report(metrics)


def test_size_of_a_large_gallery(full: str) -> None:
    """80 classes with three of the worst and three of the best: at most 15 MB."""
    cards = [len(src) for _, attributes in Page(full).tags if (src := attributes.get("src"))]
    without = len(full) - sum(cards)
    assert without < 1_000_000
    assert without + 80 * 6 * 2 * max(cards) < 15e6


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with open_browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


def edge(driver: Any, element: Any, script: str, inwards: int = 2) -> np.ndarray:
    """The pixels of a column near the right edge of an element after a script: (H, 3)."""
    driver.execute_script(script, element)
    picture = np.asarray(Image.open(io.BytesIO(element.screenshot_as_png)).convert("RGB")).astype(int)
    return picture[:, -1 - inwards]


class TestInABrowser:
    @pytest.mark.parametrize("width", [1280, 390])
    @pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
    def test_fits_its_width_in_silence(self, full: str, browser: Any, tmp_path: Path, width: int, dark: bool) -> None:
        check_fits(browser, full, tmp_path, width, dark)

    @pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
    def test_a_shadow_says_where_there_is_more(self, full: str, browser: Any, tmp_path: Path, dark: bool) -> None:
        file = tmp_path / "report.html"
        file.write_text(full, encoding="utf-8")
        show(browser, file, 390, 844, dark)
        table = browser.find_element("css selector", "#thresholds .scroll")
        scrolled, at_the_end = (edge(browser, table, f"arguments[0].scrollLeft = {left}") for left in (0, 100_000))
        surface = np.median(at_the_end, axis=0)  # lines and letters are few
        assert np.abs(np.median(scrolled, axis=0) - surface).max() > 8
        assert np.abs(surface - edge(browser, table, "arguments[0].scrollLeft = 100000", inwards=60)).min() < 2

    def test_long_names_do_not_widen_it(self, browser: Any, tmp_path: Path) -> None:
        metrics = with_nasty_text(sample_metrics(THREE))
        text = json.dumps(metrics).replace(json.dumps(NASTY)[1:-1], "x" * 400)
        file = tmp_path / "report.html"
        file.write_text(render_report(json.loads(text), sample_gallery(THREE, 1)), encoding="utf-8")
        show(browser, file, 390, 844)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390

    def test_pictures_can_be_shown(self, full: str, browser: Any, tmp_path: Path) -> None:
        file = tmp_path / "report.html"
        file.write_text(full.replace('loading="lazy"', ""), encoding="utf-8")
        show(browser, file, 1280, 844)
        loaded = "return [...document.images].map(i => i.complete && i.naturalWidth > 0)"
        assert set(browser.execute_script(loaded)) == {True}

    def test_printed_with_what_is_folded(self, full: str, browser: Any, tmp_path: Path) -> None:
        file = tmp_path / "report.html"
        file.write_text(full, encoding="utf-8")
        show(browser, file, 1280, 844, media="print")
        folded = "return document.querySelector('details:not([open]) table').getBoundingClientRect().height"
        assert browser.execute_script(folded) > 100

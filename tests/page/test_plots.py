from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from functools import cache

import matplotlib as mpl
import pytest

from pipeline.page.plots import histogram, recall_precision, reliability

RECALL = [i / 100 for i in range(101)]
EDGES = [i / 20 for i in range(21)]


def falling(reach: float) -> list[float | None]:
    return [1 - r / reach if r < reach else None for r in RECALL]


@cache
def plots() -> list[str]:
    counts = [0, *range(10_000, 9_981, -1)]
    return [
        recall_precision(RECALL, {"0.50": falling(0.9), "<b>&": falling(0.5), "$x$": falling(0.3)}),
        recall_precision(RECALL, {"0.50": [-1.0] * 101}, small=True),
        reliability(EDGES, counts, [None, *RECALL[5:100:5]], [None, *RECALL[5:100:5]]),
        reliability(EDGES, [0] * 20, [None] * 20, [None] * 20),
        reliability(EDGES, [1] * 19 + [10**6], [0.5] * 20, [0.5] * 20),
        histogram(EDGES, counts, over="score", of="detections"),
        histogram([4, 8, 16, 32, 64], [0, 3, 2, 1], over="side", of="detections", doubling=True, borders=[32]),
        histogram([2, 4], [0], over="side", of="detections", doubling=True),
    ]


@pytest.mark.parametrize("number", range(8))
def test_fit_for_a_page(number: int) -> None:
    text = plots()[number]
    ElementTree.fromstring(text.replace("xlink:href", "href"))
    assert not re.search(r"#[0-9a-f]{6}\b(?!\))", re.sub(r'(href|id)="[^"]*"', "", text)), "a colour of its own"
    assert "http" not in text
    assert not re.search(r"<style|<metadata|<script|<image", text)
    assert re.match(r'<svg viewBox="0 0 [\d.]+ [\d.]+" role="img" aria-label="[^"]+">', text)


def test_the_same_every_time_whatever_the_settings() -> None:
    first = plots()
    with mpl.rc_context({"axes.facecolor": "red", "font.size": 30, "svg.fonttype": "path"}):
        assert plots.__wrapped__() == first


def test_names_are_escaped_and_no_formulas() -> None:
    text = plots()[0]
    assert "&lt;b&gt;&amp;" in text
    assert "$x$" in text


def test_lines_have_the_points_that_are_defined() -> None:
    (line,) = re.findall(
        r'd="([^"]*)"[^>]*stroke: var\(--c1\)', recall_precision(RECALL, {"a": falling(0.5)}, small=True)
    )
    xs = [float(x) for x in re.findall(r"[ML] ([\d.]+)", line)]
    full = recall_precision(RECALL, {"a": [1.0] * 101}, small=True)
    ends = [float(x) for x in re.findall(r"[ML] ([\d.]+)", re.findall(r'd="([^"]*)"[^>]*stroke: var\(--c1\)', full)[0])]
    share = (max(xs) - min(xs)) / (max(ends) - min(ends))
    assert share == pytest.approx(0.49, abs=1e-3)


def test_undefined_everywhere_draws_no_line() -> None:
    text = recall_precision(RECALL, {"0.50": [-1.0] * 101}, small=True)
    assert not re.search(r'd="[^"]+"[^>]*stroke: var\(--c1\)', text)


def test_histogram_of_very_different_counts_is_logarithmic() -> None:
    assert "10,000" in re.sub(r"<[^>]*>", " ", plots()[2])
    assert "10,000" not in re.sub(r"<[^>]*>", " ", plots()[4])


def test_bars_are_as_high_as_their_counts() -> None:
    paths = re.findall(r'<path d="([^"]*)" clip-path[^>]*style="fill: var\(--c1\)', plots()[6])
    heights = []
    for path in paths:
        ys = [float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", path)]
        heights.append(max(ys) - min(ys))
    assert len(heights) == 4
    assert [height / heights[3] for height in heights] == pytest.approx([0, 3, 2, 1], abs=0.01)

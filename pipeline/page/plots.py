"""Plots as SVG that goes into a page: its colours are the page's own, its text stays text.

matplotlib knows fixed colours only. It is given ones that nothing else uses, which then give way to CSS variables,
so that one plot serves a light and a dark page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Values = Sequence[float | None]

_CSS = {
    "#010101": "var(--ink)",
    "#020202": "var(--muted)",
    "#030303": "var(--line)",
    "#040404": "var(--c1)",
    "#050505": "var(--c2)",
    "#060606": "var(--c3)",
}
_INK, _MUTED, _LINE, *_SERIES = _CSS
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "maskfleet",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.parse_math": False,
    "text.color": _INK,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.7,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


def recall_precision(recall: Sequence[float], curves: Mapping[str, Values], *, small: bool = False) -> Markup:
    """Precision over recall, a line for each IoU threshold.

    Args:
        recall: R thresholds of recall, 0 to 1.
        curves: by the line's name, at most three: R precisions, 0 to 1. None or a negative number: undefined.
        small: for one of many.
    """
    with _figure((2.1, 1.75) if small else (4.4, 3.4)) as figure:
        axes = _unit_axes(figure, small)
        for (name, values), colour in zip(curves.items(), _SERIES, strict=False):
            heights = [float("nan") if value is None or value < 0 else value for value in values]
            axes.plot(recall, heights, color=colour, label=name)
        if not small:
            axes.set_xlabel("recall")
            axes.set_ylabel("precision")
            axes.legend(title="IoU", loc="upper center", bbox_to_anchor=(0.5, 1.22), ncols=3)
        return _svg(figure, "precision over recall")


def reliability(edges: Sequence[float], counts: Sequence[int], scores: Values, precisions: Values) -> Markup:
    """How often detections of a score are right, over that score; below, how many there are.

    Args:
        edges: B + 1 borders of the bins of scores.
        counts: B numbers of detections.
        scores: B mean scores; None for empty bins.
        precisions: B shares of correct detections; None for empty bins.
    """
    points = [(s, p) for s, p in zip(scores, precisions, strict=True) if s is not None and p is not None]
    with _figure((4.4, 4.4)) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        above.plot([0, 1], [0, 1], color=_MUTED, linestyle=(0, (4, 3)), linewidth=1.2, label="perfect calibration")
        above.plot(
            *zip(*points, strict=True) if points else ((), ()), color=_SERIES[0], marker="o", ms=4, label="found"
        )
        above.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share that is right")
        above.legend(loc="upper left")
        widths = [right - left for left, right in pairwise(edges)]
        below.bar(edges[:-1], counts, widths, align="edge", color=_SERIES[0], edgecolor=_LINE, linewidth=0.6)
        below.set(xlabel="score", ylabel="detections")
        if sum(count > 0 for count in counts) > 1 and max(counts) > 100 * min(c for c in counts if c):
            below.set_yscale("log")
        else:
            below.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        return _svg(figure, "reliability of the scores, and their histogram")


def histogram(
    edges: Sequence[float],
    counts: Sequence[int],
    *,
    over: str,
    of: str,
    doubling: bool = False,
    borders: Sequence[float] = (),
) -> Markup:
    """Bars.

    Args:
        edges: B + 1 borders of the bins, ascending.
        counts: B numbers.
        over: what the bins are of.
        of: what is counted.
        doubling: each step of the axis is twice the one before; the edges are above 0.
        borders: where vertical lines part the bars.
    """
    with _figure((4.4, 2.6)) as figure:
        axes = figure.subplots()
        widths = [right - left for left, right in pairwise(edges)]
        axes.bar(edges[:-1], counts, widths, align="edge", color=_SERIES[0], edgecolor=_LINE, linewidth=0.6)
        for border in borders:
            axes.axvline(border, color=_MUTED, linestyle=(0, (4, 3)), linewidth=1.2)
        if doubling:
            axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set(xlim=(edges[0], edges[-1]), xlabel=over, ylabel=of)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
        return _svg(figure, f"{of} by {over}")


def _unit_axes(figure: Figure, small: bool) -> Axes:
    axes = figure.subplots()
    ticks = [0, 0.5, 1] if small else [0, 0.2, 0.4, 0.6, 0.8, 1]
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xticks=ticks, yticks=ticks)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    return axes


@contextmanager
def _figure(size_inches: tuple[float, float]) -> Iterator[Figure]:
    """Without pyplot, which would keep the figure, and with no style but ours."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield Figure(figsize=size_inches, layout="constrained")


def _svg(figure: Figure, label: str) -> Markup:
    """Made for the inside of a page: no prolog, no metadata, no style for all of the page, no fixed size."""
    buffer = io.StringIO()
    no_metadata: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # the same in every plot; what is referred to is not a group
    for colour, variable in _CSS.items():
        text = text.replace(colour, variable)
    tag = rf'<svg viewBox="\1" role="img" aria-label="{label}">'
    text = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', tag, text, count=1)
    return Markup(re.sub(r"\n\s*", "\n", text))

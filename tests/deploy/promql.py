"""As much of PromQL as the alert rules need, over made-up series: what they would say of a run, without Prometheus."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import promql_parser as parser

SCRAPE_S = 15
Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]
# Value of a series at a time in seconds; None while it is not there.
Series = Mapping[tuple[str, Labels], Callable[[float], "float | None"]]

_AGGREGATES: dict[str, Callable[[list[float]], float]] = {"sum": sum, "max": max, "min": min}
_OPERATORS: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": lambda a, b: a / b if b else math.nan,
}
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {">": operator.gt, "<": operator.lt, "==": operator.eq}


def selectors(query: Any) -> Iterator[tuple[Any, str | None]]:
    """The selectors of a parsed query, and the name of the function that takes their range, if one does."""
    yield from _selectors(query, None)


def _selectors(node: Any, function: str | None) -> Iterator[tuple[Any, str | None]]:
    if isinstance(node, parser.VectorSelector):
        yield node, function
    elif isinstance(node, parser.MatrixSelector):
        yield node.vector_selector, function
    elif isinstance(node, parser.Call):
        for argument in node.args:
            yield from _selectors(argument, node.func.name)
    elif isinstance(node, parser.BinaryExpr):
        yield from _selectors(node.lhs, None)
        yield from _selectors(node.rhs, None)
    elif not isinstance(node, parser.NumberLiteral):
        yield from _selectors(node.expr, None)


def grouped_by(query: Any) -> Iterator[tuple[set[str], set[str]]]:
    """For each aggregation of a parsed query the labels that it keeps, and the metrics below it."""
    if isinstance(query, parser.AggregateExpr):
        yield set(query.modifier.labels), {selector.name for selector, _ in selectors(query)}
    for name in ("lhs", "rhs", "expr", "args"):
        below = getattr(query, name, ())
        for node in below if isinstance(below, list) else [below] if below else []:
            yield from grouped_by(node)


def evaluate(query: Any, series: Series, now: float) -> Any:
    """The value of a parsed query, a number or a vector, at a time."""
    if isinstance(query, parser.NumberLiteral):
        return query.val
    if isinstance(query, parser.ParenExpr):
        return evaluate(query.expr, series, now)
    if isinstance(query, parser.VectorSelector):
        found = {labels: _latest(at, now) for labels, at in _matching(query, series)}
        return {labels: value for labels, value in found.items() if value is not None}
    if isinstance(query, parser.AggregateExpr):
        groups: dict[Labels, list[float]] = {}
        for labels, value in evaluate(query.expr, series, now).items():
            kept = frozenset(pair for pair in labels if pair[0] in query.modifier.labels)
            groups.setdefault(kept, []).append(value)
        return {labels: _AGGREGATES[str(query.op)](values) for labels, values in groups.items()}
    if isinstance(query, parser.Call):
        return _call(query, series, now)
    assert isinstance(query, parser.BinaryExpr)
    return _binary(str(query.op), evaluate(query.lhs, series, now), evaluate(query.rhs, series, now))


def _matching(selector: Any, series: Series) -> Iterator[tuple[Labels, Callable[[float], float | None]]]:
    for (name, labels), at in series.items():
        wanted = {(m.name, m.value) for m in selector.matchers.matchers}
        if name == selector.name and wanted <= labels:
            yield labels, at


def _latest(at: Callable[[float], float | None], now: float) -> float | None:
    """A series that is gone from its endpoint is gone at the next scrape."""
    return at(now - now % SCRAPE_S)


def _call(query: Any, series: Series, now: float) -> Any:
    name = query.func.name
    if name == "time":
        return now
    (argument,) = query.args
    length = argument.range.total_seconds()
    found: Vector = {}
    for labels, at in _matching(argument.vector_selector, series):
        times = range(math.ceil((now - length) / SCRAPE_S), math.floor(now / SCRAPE_S) + 1)
        samples = [value for i in times if i >= 0 and (value := at(i * SCRAPE_S)) is not None]
        if name == "last_over_time":
            found |= {labels: samples[-1]} if samples else {}
        elif len(samples) > 1:
            assert name in ("rate", "increase")
            increase = (samples[-1] - samples[0]) * length / ((len(samples) - 1) * SCRAPE_S)
            found[labels] = increase if name == "increase" else increase / length
    return found


def _binary(op: str, left: Any, right: Any) -> Any:
    if op in ("and", "unless"):
        return {labels: value for labels, value in left.items() if (labels in right) == (op == "and")}
    pairs: list[tuple[Labels | None, float, float]] = []
    if isinstance(left, dict) and isinstance(right, dict):
        pairs = [(labels, value, right[labels]) for labels, value in left.items() if labels in right]
    elif isinstance(left, dict):
        pairs = [(labels, value, right) for labels, value in left.items()]
    elif isinstance(right, dict):
        pairs = [(labels, left, value) for labels, value in right.items()]
    else:
        return _OPERATORS[op](left, right)
    if op in _COMPARISONS:
        return {labels: a for labels, a, b in pairs if _COMPARISONS[op](a, b)}
    return {labels: _OPERATORS[op](a, b) for labels, a, b in pairs}

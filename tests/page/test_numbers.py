from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from pipeline.page import numbers

NAN = float("nan")
DASH = "\N{EN DASH}"


@pytest.mark.parametrize(
    ("value", "expected"), [(0.4374, "0.437"), (0, "0.000"), (1.0, "1.000"), (-1.0, DASH), (None, DASH), (NAN, DASH)]
)
def test_ratio(value: float | None, expected: str) -> None:
    assert numbers.ratio(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0123, "+0.012"), (-0.001, "-0.001"), (0.0, "+0.000"), (None, DASH), (NAN, DASH)]
)
def test_signed(value: float | None, expected: str) -> None:
    assert numbers.signed(value) == expected


@pytest.mark.parametrize(("value", "expected"), [(1234567, "1,234,567"), (0, "0"), (None, DASH), (NAN, DASH)])
def test_count(value: float | None, expected: str) -> None:
    assert numbers.count(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0419, "4.2 %"), (0.0, "0.0 %"), (0.0004, "< 0.1 %"), (1, "100.0 %"), (None, DASH)]
)
def test_percent(value: float | None, expected: str) -> None:
    assert numbers.percent(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(0.25, "25%"), (-1, "0%"), (7, "100%"), (None, "0%"), (NAN, "0%"), (1e-9, "1e-07%")]
)
def test_css_percent_never_leaves_its_box(value: float | None, expected: str) -> None:
    assert numbers.css_percent(value) == expected


def test_moment() -> None:
    berlin = timezone(timedelta(hours=2))
    assert numbers.moment(datetime(2026, 7, 1, 1, 5, 59, tzinfo=berlin)) == "2026-06-30 23:05 UTC"

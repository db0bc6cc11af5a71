from __future__ import annotations

import time

import pytest

from pipeline.messages.timing import NowAndThen, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (8.14, "8.1 s"),
        (59.9, "59.9 s"),
        (60, "1 min 00 s"),
        (750, "12 min 30 s"),
        (3599.9, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (11_100, "3 h 05 min"),
        (100 * 3600, "100 h 00 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("at_once", "expected"), [(True, [True, False, True, False]), (False, [False, False, True, False])]
)
def test_now_and_then(monkeypatch: pytest.MonkeyPatch, at_once: bool, expected: list[bool]) -> None:
    moments = iter([100.0] * (not at_once) + [101.0, 109.0, 111.5, 121.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(moments))
    line = NowAndThen(10.0, at_once)
    assert [line.is_due() for _ in expected] == expected

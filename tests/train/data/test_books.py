from __future__ import annotations

from dataclasses import fields, replace

import pytest

from pipeline.train.data.books import DataReport

REPORT = DataReport(images=5, usable=3, failed=1, left_out=1, annotations=1_200, objects=1_190, ignored=6, outside=4)


def test_reports_add_up() -> None:
    total = REPORT + REPORT
    assert total.balanced
    assert (total.images, total.objects, total.outside, total.tiny) == (10, 2_380, 8, 0)


def test_says_what_there_is() -> None:
    expected = "5 images, 3 usable, 1 failed, 1 left out, 1,200 annotations, 1,190 objects, 6 ignored, 4 outside"
    assert str(REPORT) == expected
    assert str(DataReport()) == "no images"


@pytest.mark.parametrize("name", [f.name for f in fields(DataReport) if f.name not in ("negatives", "clipped")])
def test_books_that_do_not_balance_are_told(name: str) -> None:
    assert not replace(REPORT, **{name: getattr(REPORT, name) + 1}).balanced

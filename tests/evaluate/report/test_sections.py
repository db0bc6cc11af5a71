from __future__ import annotations

import pytest

from pipeline.evaluate.report import sections
from tests.evaluate.report.sample_metrics import NAMES, sample_metrics


def test_books_are_shares_of_the_ground_truth() -> None:
    parts = sections.books({"ground_truth": 200, "annotated": 150, "failed": 0, "without_result": 50})
    assert [(p.kind, p.number, p.share) for p in parts] == [("annotated", 150, 0.75), ("without_result", 50, 0.25)]
    assert sections.books({}) == []


def test_stat_rows_put_masks_before_boxes() -> None:
    summary = {"bbox": {"names": NAMES, "stats": range(12)}, "segm": {"names": NAMES, "stats": range(12, 24)}}
    rows = sections.stat_rows(summary, (1, 10, 100))
    assert [row.name for row in rows] == list(NAMES)
    assert rows[3].values == [15, 3]
    assert "small" in rows[3].meaning
    assert [row.meaning for row in rows[6:8]] == [
        "at most 1 detection a class and image",
        "at most 10 detections a class and image",
    ]
    assert sections.stat_rows({}, (1, 10, 100)) == []


def test_stat_rows_need_twelve() -> None:
    with pytest.raises(ValueError, match="argument"):
        sections.stat_rows({"segm": {"names": NAMES, "stats": range(11)}}, (1, 10, 100))


def test_headline_names_the_limits_that_were_used() -> None:
    (headline,) = sections.headlines({"bbox": {"names": NAMES, "stats": range(12)}}, (100, 300, 1000))
    assert headline.ap == 0
    assert headline.tiles == [
        *(("AP50", 1), ("AP75", 2), ("AP small", 3), ("AP medium", 4), ("AP large", 5)),
        *(("AR@100", 6), ("AR@300", 7), ("AR@1000", 8)),
    ]


def test_worst_first_and_undefined_last() -> None:
    rows = [{"AP": 0.5}, {"AP": None}, {"AP": 0.0}, {"AP": -1.0}, {"AP": 0.2}]
    assert [row["AP"] for row in sections.worst_first(rows)][:3] == [0.0, 0.2, 0.5]


def test_curves_of_the_worst_classes_only() -> None:
    metrics = sample_metrics()
    aps = sorted(row["AP"] for row in metrics["per_class"]["segm"] if row["AP"] is not None)
    curves = sections.curves(metrics, "segm")
    assert [curve.ap for curve in curves.worst] == aps[: sections.WORST_CURVES]
    del metrics["per_class"]
    assert sections.curves(metrics, "bbox").worst == []


def test_error_bars_are_relative_to_the_longest() -> None:
    kinds = list(sections.ERROR_TYPES)
    gains = dict(zip(kinds, (0.1, 0.05, 0.0, -0.01, None, 0.02), strict=True))
    bars = sections.error_bars({"dAP": gains, "counts": dict.fromkeys(kinds, 3)})
    assert [bar.length for bar in bars] == pytest.approx([1, 0.5, 0, 0, 0, 0.2])
    assert [bar.gain for bar in bars] == list(gains.values())
    nothing = sections.error_bars({"dAP": dict.fromkeys(kinds, 0.0), "counts": dict.fromkeys(kinds, 0)})
    assert [bar.length for bar in nothing] == [0] * 6


def test_error_rows_most_first() -> None:
    rows = [{"name": "a", "counts": {"both": 1, "missed": 2}}, {"name": "b", "counts": {"both": 9, "missed": 0}}]
    assert [row["name"] for row in sections.error_rows({"per_class": rows})] == ["b", "a"]


def test_calibration_rows_worst_first_and_undefined_last() -> None:
    rows = [{"ece": 0.1}, {"ece": None}, {"ece": 0.3}, {"ece": 0.0}]
    assert [row["ece"] for row in sections.calibration_rows({"per_class": rows})] == [0.3, 0.1, 0.0, None]

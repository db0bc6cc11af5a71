"""Against tidecv 1.0.1, whose numbers on small sets are in ``tide_golden.json`` (made as ``tide_golden`` says)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.metrics.analysis.outcomes import ERRORS
from pipeline.metrics.analysis.tide import (
    AS_IS,
    NO_FALSE_NEGATIVES,
    NO_FALSE_POSITIVES,
    NUM_VARIANTS,
    CategoryErrors,
    ErrorSummary,
    ErrorTracker,
    error_records,
    error_summary,
)
from pipeline.metrics.ap.records import BlockRecords, sort_order
from pipeline.metrics.ious import block_overlaps
from pipeline.metrics.metric import ComparedBlock
from tests.evaluate.coco_cases import blocks_of
from tests.metrics.analysis import tide_golden
from tests.metrics.block_cases import NUM_CATEGORIES, Image, compared, random_images

TIDECV_NAMES = dict(zip((error.label for error in ERRORS), ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"), strict=True))
GOLDEN = json.loads(tide_golden.GOLDEN.read_text(encoding="utf-8"))


def _totals(parts: Sequence[BlockRecords]) -> list[CategoryErrors]:
    num_objects = np.sum([part.num_objects for part in parts], axis=0)
    categories = np.concatenate([part.categories for part in parts])
    records = np.concatenate([part.records for part in parts])
    totals = []
    for category, asked in enumerate(num_objects):
        tracker = ErrorTracker(asked)
        own = records[categories == category]
        tracker.update(own[sort_order(own)])
        totals.append(tracker.result())
    return totals


def _summary(parts: Sequence[BlockRecords]) -> ErrorSummary:
    return error_summary(_totals(parts))


def _of_images(*images: Image) -> ErrorSummary:
    return _summary([error_records(compared(*images))])


def _column(totals: Sequence[CategoryErrors], name: str) -> np.ndarray:
    """[K, ...]."""
    return np.stack([getattr(each, name) for each in totals])


def _values(summary: ErrorSummary) -> list[float | None]:
    return [summary.ap, *summary.gains.values(), summary.gain_false_positives, summary.gain_false_negatives]


def _wanted(golden: dict[str, Any]) -> list[float]:
    gains = [golden["main"][name] for name in TIDECV_NAMES.values()]
    return [value / 100 for value in (golden["ap"], *gains, *golden["special"].values())]


@pytest.mark.parametrize("images_per_block", [1, 7, 2000])
@pytest.mark.parametrize("name", tide_golden.CASES)
def test_tidecv(name: str, images_per_block: int) -> None:
    """Equal with COCO's recalls; as released a recall of exactly n / 100 may read the curve one detection earlier."""
    dataset, results = tide_golden.draw(tide_golden.CASES[name])
    parts = [
        error_records(
            ComparedBlock(truth, found, block_overlaps(truth, found, "bbox", False), len(dataset["categories"]))
        )
        for truth, found in blocks_of(dataset, results, "bbox", images_per_block)
    ]
    summary = _summary(parts)
    exact, released = GOLDEN[name]["coco_recalls"], GOLDEN[name]["as_released"]
    assert _values(summary) == pytest.approx(_wanted(exact), abs=1e-12)
    assert _values(summary) == pytest.approx(_wanted(released), abs=2e-3)
    assert {TIDECV_NAMES[label]: count for label, count in summary.counts.items()} == exact["counts"]


# One image of one object of category 0 and these detections; AP as it is and what mending each error wins.
# A second wrong detection ahead of the right one makes the precision 1/2 all along.
SINGLE_ERRORS = {
    "classification": (Image([0], [(1, 0.9)], [(0.8,)]), 0.0),
    "localisation": (Image([0], [(0, 0.9)], [(0.4,)]), 0.0),
    "both": (Image([0, 1], [(0, 0.9), (0, 0.8), (1, 0.7)], [(0, 0.3), (0.9, 0), (0, 0.9)]), 0.75),
    "duplicate": (
        Image([0, 0], [(0, 0.9), (0, 0.8), (0, 0.7)], [(0.9, 0), (0.7, 0), (0, 0.7)]),
        (51 + 50 * 2 / 3) / 101,
    ),
    "background": (Image([0], [(0, 0.9), (0, 0.8)], [(0,), (0.9,)]), 0.5),
    "missed": (Image([0, 0], [(0, 0.9)], [(0.9, 0)]), 51 / 101),
}


@pytest.mark.parametrize("label", SINGLE_ERRORS)
def test_mending_the_only_error_makes_it_perfect(label: str) -> None:
    """And mending anything else wins nothing."""
    image, ap = SINGLE_ERRORS[label]
    summary = _of_images(image)
    assert summary.counts == {name: int(name == label) for name in summary.counts}
    assert summary.ap == pytest.approx(ap, abs=1e-12)
    for name, gain in summary.gains.items():
        assert gain == pytest.approx(1 - ap if name == label else 0, abs=1e-12), name


def test_special_gains_by_hand() -> None:
    """Two of three objects found, a false one between: recall 2/3 is 67 of the 101 points."""
    summary = _of_images(Image([0, 0, 0], [(0, 0.9), (0, 0.8), (0, 0.7)], [(0.9, 0, 0), (0, 0, 0), (0, 0.9, 0)]))
    assert summary.ap == pytest.approx((34 + 33 * 2 / 3) / 101)
    assert summary.gain_false_positives == pytest.approx((67 - 34 - 33 * 2 / 3) / 101)
    assert summary.gain_false_negatives == pytest.approx((51 + 50 * 2 / 3 - 34 - 33 * 2 / 3) / 101)


def test_a_mended_category_counts_there_and_only_then() -> None:
    errors = error_records(compared(Image([0], [(2, 0.9)], [(0.8,)])))
    assert errors.categories.tolist() == [2, 0]
    own, moved = errors.records
    assert moved["tp"].tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0]
    assert not moved["fp"].any()
    assert not own["tp"].any()
    assert own["fp"].tolist() == [1, 0, 1, 1, 1, 1, 1, 0, 1]
    assert (own["score"], own["rank"]) == (moved["score"], moved["rank"]) == (0.9, 0)
    assert _column(_totals([errors]), "num_detections")[:, [AS_IS, 1]].tolist() == [[0, 1], [0, 0], [1, 0]]


def test_an_ignored_detection_counts_only_where_it_mends_an_object() -> None:
    image = Image([0, 0], [(0, 0.9), (0, 0.3)], [(0.2, 0.9), (0.0, 0.9)], crowd=[1])
    errors = error_records(compared(image))
    assert errors.records["tp"].tolist() == [[0, 0, 1, 0, 0, 0, 0, 0, 0]]
    assert not errors.records["fp"].any()
    assert not _column(_totals([errors]), "counts").any()


def test_objects_asked_for() -> None:
    errors = error_records(compared(Image([0, 0, 1, 1], [(0, 0.9)], [(0.9, 0, 0, 0)], crowd=[3])))
    missed, never = 1 + ERRORS.index(ERRORS[-1]), NO_FALSE_NEGATIVES
    assert errors.num_objects[:, [AS_IS, missed, never, NO_FALSE_POSITIVES]].tolist() == [
        [2, 1, 1, 2],
        [1, 0, 0, 1],
        [0, 0, 0, 0],
    ]
    num_detections = _column(_totals([errors]), "num_detections")
    assert errors.num_objects.shape == num_detections.shape == (NUM_CATEGORIES, NUM_VARIANTS)


def test_without_anything_there_is_no_ap() -> None:
    summary = _of_images(Image())
    assert _values(summary) == [None] * 9
    assert not any(summary.counts.values())


@settings(max_examples=50, deadline=None)
@given(random_images(), st.data())
def test_splitting_and_shuffling_blocks_changes_nothing(images: list[Image], data: st.DataObject) -> None:
    whole = error_records(compared(*images))
    order = data.draw(st.permutations(range(len(images))))
    parts = [error_records(compared(images[n], first_order=n)) for n in order]
    assert _summary(parts) == _summary([whole])
    total, wanted = _totals(parts), _totals([whole])
    for name in ("num_objects", "num_detections", "counts"):
        np.testing.assert_array_equal(_column(total, name), _column(wanted, name))


@settings(max_examples=50, deadline=None)
@given(random_images())
def test_gains_are_within_reach(images: list[Image]) -> None:
    """Mending wins something between nothing and all, and no record is true and false at once."""
    errors = error_records(compared(*images))
    assert not (errors.records["tp"] & errors.records["fp"]).any()
    summary = _summary([errors])
    if summary.ap is not None:
        assert all(gain is None or 0 <= gain <= 1 - summary.ap + 1e-12 for gain in summary.gains.values())

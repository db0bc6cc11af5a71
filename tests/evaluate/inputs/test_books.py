from __future__ import annotations

import re

import pytest

from pipeline.evaluate.inputs.books import InputReport
from pipeline.messages.examples import Examples

CLEAN = InputReport(images=3, objects=4, rows=3, common=3, detections=5)


def test_parts_add_up() -> None:
    one = InputReport(images=2, missing=Examples.of("abcd"), foreign={"cat": 1, "dog": 2})
    two = InputReport(images=3, missing=Examples.of("efg"), failed=Examples.of("h"), foreign={"ant": 1, "cat": 4})
    assert one + two == InputReport(
        images=5,
        missing=Examples(7, ("a", "b", "c", "d", "e")),
        failed=Examples(1, ("h",)),
        foreign={"ant": 1, "cat": 5, "dog": 2},
    )
    assert one + InputReport() == one
    assert str((one + two).missing) == "a, b, c, d, e and 2 more"
    assert str(one.missing) == "a, b, c, d"


def test_nothing_to_say() -> None:
    assert CLEAN.problems() == []
    assert CLEAN.decisions("all") == []


NONE_IN_COMMON = InputReport(
    images=1, objects=1, rows=1, detections=1, missing=Examples.of("7"), unknown=Examples.of("8")
)


@pytest.mark.parametrize(
    ("report", "problem"),
    [
        (
            InputReport(repeated_images=Examples.of("7")),
            "1 images of the ground truth have an id .*: 7; give each its own",
        ),
        (InputReport(repeated_objects=Examples.of("7")), "1 annotations .*: 7; number them anew"),
        (InputReport(orphans=Examples.of(["7 (of image 8)"])), r"1 annotations belong to images .*: 7 \(of image 8\)"),
        (
            InputReport(repeated_rows=Examples(2000, ("7",))),
            "2,000 images have more than one row .*: 7 and 1,999 more; annotate",
        ),
        (InputReport(other_size=Examples.of(["7 (4 x 3, not 3 x 4)"])), r"7 \(4 x 3, not 3 x 4\).*EXIF"),
        (InputReport(renamed=Examples.of(["1 is 'cat'"])), "two names: 1 is 'cat'"),
        (NONE_IN_COMMON, "no image is in both: the predictions have 8, the ground truth 7;"),
    ],
)
def test_problems(report: InputReport, problem: str) -> None:
    (text,) = report.problems()
    assert re.search(problem, text)


@pytest.mark.parametrize(
    ("report", "decision"),
    [
        (InputReport(rows=1, detections=1), "the ground truth has no images: every figure is -1"),
        (InputReport(images=1, detections=1), "the ground truth has no annotations: every figure is -1"),
        (InputReport(images=1, objects=1), "there are no detections"),
        (
            CLEAN + InputReport(missing=Examples.of("7")),
            r"images .* without predictions count as .* detections: 1 \(7\)",
        ),
        (CLEAN + InputReport(failed=Examples.of("7")), r"images that could not be annotated count as .*: 1 \(7\)"),
        (CLEAN + InputReport(unknown=Examples.of("7")), r"images .* without ground truth .* left out: 1 \(7\)"),
        (CLEAN + InputReport(foreign={"cat": 2, "dog": 3000}), r"detections .*: 3,002: cat \(2\), dog \(3,000\)"),
        (CLEAN + InputReport(without_box=2), "results without a box .*: 2$"),
    ],
)
def test_decisions(report: InputReport, decision: str) -> None:
    (text,) = report.decisions("all")
    assert re.search(decision, text)
    assert report.problems() == []


def test_images_that_do_not_count() -> None:
    report = CLEAN + InputReport(missing=Examples.of("7"), failed=Examples.of("8"))
    assert [text.count("are left out") for text in report.decisions("annotated")] == [1, 1]

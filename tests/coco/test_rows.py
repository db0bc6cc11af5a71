from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.coco.json_stream import Element
from pipeline.coco.rows import (
    BadRow,
    IdKind,
    ImageRow,
    ObjectRow,
    ResultRow,
    category_row,
    image_row,
    object_row,
    place,
    result_row,
)
from pipeline.storage.uris import Uri

IMAGE = {"id": 1, "height": 4, "width": 5, "file_name": "a.jpg"}
OBJECT = {
    "id": 7,
    "image_id": 1,
    "category_id": 2,
    "bbox": [0, 1.5, 2, 3],
    "area": 6,
    "iscrowd": 1,
    "segmentation": [[0, 0, 2, 0, 2, 2]],
}
RESULT = {"image_id": "a", "category_id": 2, "bbox": [0, 1, 2, 3], "score": 1, "segmentation": {"counts": "x"}}
CATEGORY = {"id": 2, "name": "cat"}


def test_good_rows() -> None:
    assert image_row(IMAGE, True) == ImageRow(1, 4, 5, IMAGE.get("file_name"))
    assert image_row({"id": "a"}, False) == ImageRow("a", 0, 0, None)
    common = (1, 7, 2, [0.0, 1.5, 2.0, 3.0], 6.0)
    assert object_row(OBJECT, True) == ObjectRow(*common, True, OBJECT["segmentation"], None)
    crowd = {**OBJECT, "segmentation": {"size": [4, 5], "counts": [20]}}
    assert object_row(crowd, True) == ObjectRow(*common, True, None, '{"size":[4,5],"counts":[20]}')
    without = {key: value for key, value in OBJECT.items() if key not in ("iscrowd", "segmentation")}
    assert object_row(without, False) == ObjectRow(*common, False, None, None)
    assert result_row(RESULT, True) == ResultRow("a", 2, 1.0, [0.0, 1.0, 2.0, 3.0], '{"counts":"x"}')
    assert result_row(RESULT, False).mask is None
    # Without a box, it comes from the mask.
    assert result_row({**RESULT, "bbox": []}, False) == ResultRow("a", 2, 1.0, None, '{"counts":"x"}')
    assert category_row(CATEGORY) == (2, "cat")


def images(value: Any) -> Any:
    return image_row(value, True)


def objects(value: Any) -> Any:
    return object_row(value, True)


def results(value: Any) -> Any:
    return result_row(value, True)


MISSING = object()


def nested(depth: int) -> list[Any]:
    return [nested(depth - 1)] if depth else []


@pytest.mark.parametrize(
    ("check", "good", "key", "value", "message"),
    [
        (images, IMAGE, "id", MISSING, "no key 'id'; it has: height, width, file_name"),
        (images, IMAGE, "id", 1.0, "id must be an integer .* not 1.0"),
        (images, IMAGE, "id", True, "id must be an integer .* not True"),
        (images, IMAGE, "id", "", "id must be an integer"),
        (images, IMAGE, "id", 1 << 63, "at most 64 bits"),
        (images, IMAGE, "id", "\ud800", "not valid Unicode"),
        (images, IMAGE, "height", MISSING, "not None and 5"),
        (images, IMAGE, "width", 0, "above 0, not 4 and 0"),
        (images, IMAGE, "width", "5", "not 4 and '5'"),
        (objects, OBJECT, "id", MISSING, "no key 'id'"),
        (objects, OBJECT, "id", "7", "id must be an integer"),
        (objects, OBJECT, "image_id", None, "image_id must be"),
        (objects, OBJECT, "category_id", MISSING, "no key 'category_id'"),
        (objects, OBJECT, "area", MISSING, "no key 'area'"),
        (objects, OBJECT, "area", float("nan"), "area must be a finite number, not nan"),
        (objects, OBJECT, "bbox", [1, 2, 3], r"four finite numbers \(x, y, width, height\), not \[1, 2, 3\]"),
        (objects, OBJECT, "bbox", [1, 2, 3, float("inf")], "four finite"),
        (objects, OBJECT, "bbox", [1, 2, 3, 10**400], "four finite"),
        (objects, OBJECT, "bbox", ["1", 2, 3, 4], "four finite"),
        (objects, OBJECT, "bbox", [1, 2, 3, False], "four finite"),
        (objects, OBJECT, "iscrowd", 2, "iscrowd must be 0 or 1, not 2"),
        (objects, OBJECT, "segmentation", [], "no segmentation; evaluate boxes only, or add it"),
        (objects, OBJECT, "segmentation", {"counts": "\ud800"}, "segmentation is none: .*ud800"),
        (objects, OBJECT, "segmentation", {"counts": nested(220)}, "segmentation is none"),
        (results, RESULT, "segmentation", nested(300), "segmentation is none"),
        (results, RESULT, "segmentation", "\ud800", "segmentation is none: .*ud800"),
        (results, RESULT, "score", MISSING, "no key 'score'"),
        (results, RESULT, "score", float("nan"), "score must be a finite number"),
        (results, RESULT, "score", "0.5", "score must be a finite number"),
        (results, RESULT, "segmentation", MISSING, "no segmentation; evaluate boxes only"),
        (results, RESULT, "bbox", [1], "four finite"),
        (category_row, CATEGORY, "name", MISSING, "no key 'name'"),
        (category_row, CATEGORY, "name", 3, "name must be a string, not 3"),
    ],
)
def test_faults(check: Callable[[Any], Any], good: dict[str, Any], key: str, value: Any, message: str) -> None:
    bad = {k: v for k, v in {**good, key: value}.items() if v is not MISSING}
    with pytest.raises(BadRow, match=message):
        check(bad)


@pytest.mark.parametrize("value", [None, 3, "text", [1]])
def test_a_row_that_is_no_object(value: Any) -> None:
    for check in (images, objects, results, category_row):
        with pytest.raises(BadRow, match="not an object"):
            check(value)


def test_neither_box_nor_segmentation() -> None:
    with pytest.raises(BadRow, match="neither bbox nor segmentation"):
        result_row({"image_id": 1, "category_id": 1, "score": 0.5}, False)


def test_ids_of_both_types() -> None:
    kind = IdKind(Uri("a.json"))
    kind.check(1)
    with pytest.raises(BadRow, match="all integers or all strings: 'b' here, 1 before"):
        kind.check("b")


def test_places_have_no_credentials() -> None:
    uri = Uri("https://host/a.json?sig=secret")
    assert "secret" not in place(uri, Element("images", 3, {"id": 9}))
    assert place(Uri("a.json"), Element("images", 3, {"id": 9})) == "a.json, images[3] (id 9)"
    assert place(Uri("a.json"), Element(None, 3, {"image_id": 9})) == "a.json, result[3]"

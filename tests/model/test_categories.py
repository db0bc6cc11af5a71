from __future__ import annotations

from pipeline.model.categories import COCO_CATEGORIES, Category


def test_coco_categories() -> None:
    assert len(COCO_CATEGORIES) == 80
    assert COCO_CATEGORIES[0] == Category(1, "person")
    assert COCO_CATEGORIES[11] == Category(13, "stop sign")
    assert COCO_CATEGORIES[-1] == Category(90, "toothbrush")
    ids = [category.id for category in COCO_CATEGORIES]
    assert ids == sorted(set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
    assert len({category.name for category in COCO_CATEGORIES}) == 80

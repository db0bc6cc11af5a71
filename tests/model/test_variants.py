"""Sizes and settings refuse what makes no model, and survive JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from pipeline.model.categories import COCO_CATEGORIES, Category
from pipeline.model.variants import SWIN_B, SWIN_T, VARIANTS, TestSettings, Variant
from testing.small_model import SMALL, SMALL_SETTINGS


def test_published_sizes() -> None:
    assert (SWIN_T.embed_dim, SWIN_T.depths, SWIN_T.num_heads) == (96, (2, 2, 6, 2), (3, 6, 12, 24))
    assert (SWIN_B.embed_dim, SWIN_B.depths, SWIN_B.num_heads) == (128, (2, 2, 18, 2), (4, 8, 16, 32))
    for variant in VARIANTS.values():
        assert (variant.window_size, variant.num_classes, variant.fpn_channels) == (7, 80, 256)
        assert (variant.box_convs, variant.box_channels, variant.box_fc) == (4, 256, 1024)
        assert (variant.mask_convs, variant.mask_channels) == (4, 256)


def test_published_settings() -> None:
    assert asdict(TestSettings()) == {
        "short_side": 800,
        "long_side": 1333,
        "proposals_per_level": 1000,
        "proposals": 1000,
        "rpn_nms_iou": 0.7,
        "score_threshold": 0.05,
        "nms_iou": 0.5,
        "max_detections": 100,
    }


# name: (changes, part of the message)
NO_VARIANTS: dict[str, tuple[dict[str, Any], str]] = {
    "zero channels": ({"embed_dim": 0}, "embed_dim=0 must be positive"),
    "fraction": ({"box_fc": 1.5}, "box_fc=1.5 must be positive integers"),
    "empty stage": ({"depths": (2, 0, 2, 1)}, r"depths=\(2, 0, 2, 1\) must be positive"),
    "three stages": ({"depths": (2, 1, 2)}, "one value for each of 4 stages"),
    "heads do not divide": ({"num_heads": (1, 2, 5, 8)}, "stage 2 has 64 channels, which do not split over 5 heads"),
    "fewer than no convolutions": ({"mask_convs": -1}, "mask_convs=-1"),
}


@pytest.mark.parametrize(("changes", "message"), NO_VARIANTS.values(), ids=NO_VARIANTS.keys())
def test_no_variants(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


# name: (changes, part of the message)
NO_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "no pixels": ({"short_side": 0}, "short_side=0 must be a positive integer"),
    "half a proposal": ({"proposals": 0.5}, "proposals=0.5 must be a positive integer"),
    "IoU above one": ({"nms_iou": 1.5}, r"nms_iou=1.5 must lie in \[0, 1\]"),
    "negative score": ({"score_threshold": -0.1}, r"score_threshold=-0.1 must lie in \[0, 1\]"),
    "no number": ({"rpn_nms_iou": float("nan")}, r"rpn_nms_iou=nan must lie in \[0, 1\]"),
}


@pytest.mark.parametrize(("changes", "message"), NO_SETTINGS.values(), ids=NO_SETTINGS.keys())
def test_no_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TestSettings(), **changes)


@pytest.mark.parametrize("value", [SMALL, SWIN_T, SMALL_SETTINGS], ids=["small", "swin_t", "settings"])
def test_json_round_trip(value: Variant | TestSettings) -> None:
    assert type(value).from_dict(json.loads(json.dumps(asdict(value)))) == value


@pytest.mark.parametrize("cls", [Variant, TestSettings])
def test_unknown_keys_are_named(cls: type[Variant] | type[TestSettings]) -> None:
    with pytest.raises(ValueError, match=f"unknown {cls.__name__} keys: depth, width"):
        cls.from_dict({"width": 1, "depth": 2})


def test_coco_categories() -> None:
    assert len(COCO_CATEGORIES) == 80
    assert COCO_CATEGORIES[0] == Category(1, "person")
    assert COCO_CATEGORIES[11] == Category(13, "stop sign")
    assert COCO_CATEGORIES[-1] == Category(90, "toothbrush")
    ids = [category.id for category in COCO_CATEGORIES]
    assert ids == sorted(set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
    assert len({category.name for category in COCO_CATEGORIES}) == 80

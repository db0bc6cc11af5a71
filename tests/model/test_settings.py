"""Settings refuse what makes no sense, and survive JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from pipeline.model.settings import TestSettings
from testing.small_model import SMALL_SETTINGS


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
NO_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "no pixels": ({"short_side": 0}, "short_side must be a whole number from 1 to .*, not 0"),
    "half a proposal": ({"proposals": 0.5}, "proposals must be a whole number .*, not 0.5"),
    "IoU above one": ({"nms_iou": 1.5}, r"nms_iou must lie in \[0, 1\], not 1.5"),
    "negative score": ({"score_threshold": -0.1}, r"score_threshold must lie in \[0, 1\], not -0.1"),
    "no number": ({"rpn_nms_iou": float("nan")}, r"rpn_nms_iou must lie in \[0, 1\], not nan"),
    "a text": ({"nms_iou": "0.5"}, "nms_iou must lie in"),
    "absurd": ({"long_side": 10**12}, "long_side must be a whole number from 1 to 1,048,576"),
}


@pytest.mark.parametrize(("changes", "message"), NO_SETTINGS.values(), ids=NO_SETTINGS.keys())
def test_no_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TestSettings(), **changes)


def test_json_round_trip() -> None:
    assert TestSettings.from_dict(json.loads(json.dumps(asdict(SMALL_SETTINGS)))) == SMALL_SETTINGS


def test_unknown_keys_are_named() -> None:
    with pytest.raises(ValueError, match="unknown TestSettings keys: depth, width"):
        TestSettings.from_dict({"width": 1, "depth": 2})

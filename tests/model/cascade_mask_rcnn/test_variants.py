"""Sizes and settings refuse what makes no model, and survive JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from pipeline.model.architectures import VARIANTS
from pipeline.model.cascade_mask_rcnn.variants import SWIN_B, SWIN_T, CascadeVariant
from testing.small_model import SMALL


def test_published_sizes() -> None:
    assert (SWIN_T.embed_dim, SWIN_T.depths, SWIN_T.num_heads) == (96, (2, 2, 6, 2), (3, 6, 12, 24))
    assert (SWIN_B.embed_dim, SWIN_B.depths, SWIN_B.num_heads) == (128, (2, 2, 18, 2), (4, 8, 16, 32))
    for variant in VARIANTS.values():
        assert (variant.window_size, variant.num_classes, variant.fpn_channels) == (7, 80, 256)
        assert (variant.box_convs, variant.box_channels, variant.box_fc) == (4, 256, 1024)
        assert (variant.mask_convs, variant.mask_channels) == (4, 256)


# name: (changes, part of the message)
NO_VARIANTS: dict[str, tuple[dict[str, Any], str]] = {
    "zero channels": ({"embed_dim": 0}, "embed_dim must be whole numbers from 1 to 65,536, not 0"),
    "fraction": ({"box_fc": 1.5}, "box_fc must be whole numbers .*, not 1.5"),
    "empty stage": ({"depths": (2, 0, 2, 1)}, r"depths must be whole numbers .*, not \(2, 0, 2, 1\)"),
    "three stages": ({"depths": (2, 1, 2)}, "one value for each of 4 stages"),
    "heads do not divide": ({"num_heads": (1, 2, 5, 8)}, "stage 2 has 64 channels, which do not split over 5 heads"),
    "fewer than no convolutions": ({"mask_convs": -1}, "mask_convs must be whole numbers from 0 to 64, not -1"),
    "a list for a number": ({"window_size": ()}, "window_size must be whole numbers from 1 to 32"),
    "absurd": ({"depths": (2, 2, 1_000_000, 2)}, "depths must be whole numbers from 1 to 128"),
    "true": ({"box_fc": True}, "not True"),
}


@pytest.mark.parametrize(("changes", "message"), NO_VARIANTS.values(), ids=NO_VARIANTS.keys())
def test_no_variants(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


@pytest.mark.parametrize("variant", [SMALL, SWIN_T], ids=["small", "swin_t"])
def test_json_round_trip(variant: CascadeVariant) -> None:
    assert CascadeVariant.from_dict(json.loads(json.dumps(asdict(variant)))) == variant


def test_unknown_keys_are_named() -> None:
    with pytest.raises(ValueError, match="unknown CascadeVariant keys: depth, width"):
        CascadeVariant.from_dict({"width": 1, "depth": 2})

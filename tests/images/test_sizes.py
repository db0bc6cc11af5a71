"""Sizes worked out by hand."""

from __future__ import annotations

import math

import pytest

from pipeline.images.sizes import padded_size, scaled_size

# name: ((H, W), (short, long), expected); each side is int(side * scale + 0.5)
SCALED = {
    "short side decides": ((480, 640), (800, 1333), (800, 1067)),  # x 1.6667: 1066.67
    "long side decides": ((400, 1000), (800, 1333), (533, 1333)),  # x 1.333: 533.2
    "portrait": ((640, 480), (800, 1333), (1067, 800)),
    "square": ((500, 500), (800, 1333), (800, 800)),
    "made smaller": ((3000, 4000), (800, 1333), (800, 1067)),
    "already there": ((800, 1333), (800, 1333), (800, 1333)),
    "half is rounded up": ((100, 125), (50, 1000), (50, 63)),  # x 0.5: 62.5
    "to the nearest": ((427, 640), (400, 667), (400, 600)),  # x 0.93677: 599.53
    "enlarged": ((59, 77), (200, 333), (200, 261)),  # x 3.38983: 261.02
    "tall": ((427, 170), (200, 333), (333, 133)),  # x 0.77986: 132.58
    "one pixel": ((1, 1), (800, 1333), (800, 800)),
    "never less than a pixel": ((1, 5000), (800, 1333), (1, 1333)),  # x 0.2666: 0.27
    "sliver": ((7, 3000), (800, 1333), (3, 1333)),  # x 0.44433: 3.11
}


@pytest.mark.parametrize(("image", "sides", "expected"), SCALED.values(), ids=SCALED.keys())
def test_scaled_size(image: tuple[int, int], sides: tuple[int, int], expected: tuple[int, int]) -> None:
    assert scaled_size(image, *sides) == expected


# name: ((H, W), expected)
PADDED = {
    "multiple": ((800, 1088), (800, 1088)),
    "one more": ((801, 1089), (832, 1120)),
    "one less": ((799, 1087), (800, 1088)),
    "published landscape": ((800, 1333), (800, 1344)),
    "one pixel": ((1, 1), (32, 32)),
}


@pytest.mark.parametrize(("size", "expected"), PADDED.values(), ids=PADDED.keys())
def test_padded_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert padded_size(size) == expected
    assert padded_size(size, 1) == size
    assert padded_size(size, 7) == tuple(math.ceil(side / 7) * 7 for side in size)

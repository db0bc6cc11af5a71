"""Oracles: arithmetic by hand, and NMS as two nested loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import nms

from pipeline.model.cascade_mask_rcnn.boxes import (
    MAX_LOG_RATIO,
    apply_deltas,
    decode_deltas,
    encode_deltas,
    moved_apart,
    pyramid_level,
)
from pipeline.model.kernels.nms import nms_groups
from tests.model.cascade_mask_rcnn.losses.loss_cases import boxes_of

UNIT = (1.0, 1.0)
IMAGE = (1000.0, 2000.0)  # H, W: nothing is clipped unless a case wants it
BOX = (100.0, 200.0, 140.0, 280.0)  # 40 wide, 80 high, centred at (120, 240)
WIDEST = 40 * 1000 / 16

# name: (box, deltas, stds, (H, W), expected)
DECODED = {
    "nothing changes": (BOX, (0, 0, 0, 0), UNIT, IMAGE, BOX),
    "shift in box sides": (BOX, (0.5, -0.25, 0, 0), UNIT, IMAGE, (120, 180, 160, 260)),
    "grow about the centre": (BOX, (0, 0, math.log(2), math.log(0.5)), UNIT, IMAGE, (80, 220, 160, 260)),
    "deltas times stds": (BOX, (5, -5, 0, 0), (0.1, 1), IMAGE, (120, 160, 160, 240)),
    "growth stops at 1000/16": (BOX, (25, 0, 9, 0), UNIT, (1000, 9000), (0, 200, 1120 + WIDEST / 2, 280)),
    "shrinking stops at 16/1000": (BOX, (0, 0, 0, -9), UNIT, IMAGE, (100, 239.36, 140, 240.64)),
    "shifts have no limit": (BOX, (40, 9, 0, 0), UNIT, IMAGE, (1700, 920, 1740, 1000)),
    "stds before the limit": (
        BOX,
        (0, 0, 9, 0),
        (1, 0.1),
        IMAGE,
        (120 - 20 * math.exp(0.9), 200, 169.19206, 280),
    ),
    "clipped to width and height": (BOX, (0, 0, 0, 0), UNIT, (250, 130), (100, 200, 130, 250)),
    "clipped at zero": (BOX, (-2.75, -2.75, 0, 0), UNIT, IMAGE, (0, 0, 30, 60)),
    "beyond the right edge": (BOX, (0, 0, 0, 0), UNIT, (1000, 50), (50, 200, 50, 280)),
    "beyond the left edge": (BOX, (-10, 0, 0, 0), UNIT, IMAGE, (0, 200, 0, 280)),
    "no width": ((7, 7, 7, 9), (3, 0.5, 2, 0), UNIT, IMAGE, (7, 8, 7, 10)),
}


@pytest.mark.parametrize(("box", "deltas", "stds", "size", "expected"), DECODED.values(), ids=DECODED.keys())
def test_decode_deltas(box: tuple, deltas: tuple, stds: tuple, size: tuple, expected: tuple) -> None:
    decoded = decode_deltas(torch.tensor([box]), torch.tensor([deltas]).float(), stds, torch.tensor([size]).float())
    torch.testing.assert_close(decoded, torch.tensor([expected]).float(), rtol=1e-6, atol=1e-3)


def test_largest_log_ratio() -> None:
    assert pytest.approx(4.1351665) == MAX_LOG_RATIO


def test_each_box_is_clipped_to_its_own_image() -> None:
    boxes = torch.tensor([[[0.0, 0, 90, 90]], [[0, 0, 90, 90]]])
    sizes = torch.tensor([[50.0, 60], [70, 80]])
    decoded = decode_deltas(boxes, torch.zeros(2, 1, 4), UNIT, sizes[:, None])
    assert decoded[:, 0].tolist() == [[0, 0, 60, 50], [0, 0, 80, 70]]


# ---------------------------------------------------------------------------------------------------------------- NMS
def nms_by_loops(boxes: np.ndarray, scores: np.ndarray, groups: np.ndarray, threshold: float) -> list[int]:
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        if all(groups[i] != groups[j] or not overlap(boxes[i], boxes[j]) > threshold for j in kept):
            kept.append(int(i))
    return kept


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """IoU in float32 as the kernel computes it; nan for two boxes without area, which is above nothing."""
    common = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    return float(np.float32(common) / np.float32(union)) if union else math.nan


@st.composite
def grouped_boxes(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes on a coarse grid, so that many overlap, touch, coincide or have no area."""
    number = st.integers(0, 12)
    rows = draw(st.lists(st.tuples(number, number, number, number, st.integers(0, 3)), min_size=1, max_size=25))
    values = np.array(rows, np.float32)
    boxes = np.concatenate([values[:, :2], values[:, :2] + values[:, 2:4]], axis=1)
    scores = draw(st.permutations(range(1, len(rows) + 1)))
    return boxes, np.array(scores, np.float32) / 32, values[:, 4].astype(np.int64)


def nms_of(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> list[int]:
    """Indices of the boxes of one image that are kept, best first, each group in a row of its own."""
    order = scores.argsort(descending=True)
    valid = groups[order] == groups.unique()[:, None]
    rows = boxes[order].expand(1, len(valid), -1, -1)
    moved = moved_apart(rows, groups.unique()[:, None], boxes.max()[None])
    keep = nms_groups(moved[0], valid, iou_threshold)
    assert not (keep & ~valid).any()
    return order[keep.any(dim=0)].tolist()


@given(case=grouped_boxes(), threshold=st.sampled_from([0.0, 0.25, 0.5, 0.7, 1.0]))
@settings(max_examples=150, deadline=None)
def test_nms_equals_loops(case: tuple[np.ndarray, ...], threshold: float) -> None:
    assert nms_of(*map(torch.from_numpy, case), threshold) == nms_by_loops(*case, threshold)


@given(case=grouped_boxes())
@settings(max_examples=50, deadline=None)
def test_groups_that_are_moved_apart_never_overlap(case: tuple[np.ndarray, ...]) -> None:
    """One NMS over all of them is that of each group."""
    boxes, scores, groups = map(torch.from_numpy, case)
    moved = moved_apart(boxes[None, None], groups, boxes.max()[None])[0, 0]
    assert nms(moved, scores, 0.4).tolist() == nms_by_loops(*case, 0.4)


def test_iou_at_the_threshold_is_kept() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5]])  # IoU 0.5
    scores, groups = torch.tensor([0.9, 0.8]), torch.zeros(2, dtype=torch.int64)
    assert nms_of(boxes, scores, groups, 0.5) == [0, 1]
    assert nms_of(boxes, scores, groups, 0.49) == [0]


# -------------------------------------------------------------------------------------------------------------- levels
# name: (width, height, level)
LEVELS = {
    "no area": (0, 50, 0),
    "one pixel": (1, 1, 0),
    "56 square": (56, 56, 0),
    "just under 112": (111.9, 111.9, 0),
    "112 square": (112, 112, 1),
    "112 by area, not by side": (28, 448, 1),
    "just under 224": (223.9, 223.9, 1),
    "224 square": (224, 224, 2),
    "just under 448": (447.9, 447.9, 2),
    "448 square": (448, 448, 3),
    "larger than any": (1333, 1333, 3),
}


@pytest.mark.parametrize("place", range(4))
def test_nan_has_the_finest_level(place: int) -> None:
    boxes = torch.tensor([[0.0, 0, 500, 500]] * 2)
    boxes[0, place] = math.nan
    assert pyramid_level(boxes, 4).tolist() == [0, 3]


@pytest.mark.parametrize(("width", "height", "level"), LEVELS.values(), ids=LEVELS.keys())
def test_pyramid_level(width: float, height: float, level: int) -> None:
    levels = pyramid_level(torch.tensor([[10.0, 20, 10 + width, 20 + height]]), 4)
    assert levels.tolist() == [level]
    assert levels.dtype == torch.int64


def test_deltas_by_hand() -> None:
    deltas = encode_deltas(boxes_of((0, 0, 10, 20)), boxes_of((5, 10, 25, 20)))
    # Centre (5, 10) to (15, 15), sides (10, 20) to (20, 10).
    assert deltas[0].tolist() == pytest.approx([1.0, 0.25, math.log(2), -math.log(2)])


def test_deltas_lead_to_the_target() -> None:
    generator = torch.Generator().manual_seed(0)
    low, side = torch.rand(2, 50, 2, generator=generator) * 90, torch.rand(2, 50, 2, generator=generator) * 80 + 1
    boxes, targets = torch.cat([low, low + side], dim=2)
    moved = apply_deltas(boxes, encode_deltas(boxes, targets), UNIT)
    torch.testing.assert_close(moved, targets, rtol=0, atol=1e-3)


def test_deltas_of_boxes_without_sides_are_finite() -> None:
    point, box = boxes_of((3, 3, 3, 3)), boxes_of((0, 0, 9, 9))
    assert encode_deltas(box, point).isfinite().all()
    assert encode_deltas(point, box).isfinite().all()

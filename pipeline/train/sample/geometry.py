"""Geometric steps on a sample: pixels, masks and boxes move together.

After every step the boxes are those of the masks, and objects of which next to nothing is left are gone. Legend:
G objects of a sample, H W pixels; sizes are ``(H, W)``, boxes xyxy in pixels, with edges at whole numbers.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.model.settings import PIXEL_MEAN
from pipeline.train.sample.sample import Sample

# Of less than this one can tell neither what it is nor where it ends.
MIN_PIXELS = 4
# Becomes 0 by normalising, to within 0.01: what collating and the model's own preprocessing pad with.
PADDING_COLOUR = np.array(PIXEL_MEAN).round().astype(np.uint8)


def mask_boxes(masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    """float32 ``(G, 4)``: the smallest boxes about masks ``(G, H, W)``; zeros for an empty one."""
    num_masks, height, width = masks.shape
    if num_masks == 0:
        return np.zeros((0, 4), np.float32)
    rows: NDArray[np.bool_] = np.logical_or.reduce(masks, axis=2)
    columns: NDArray[np.bool_] = np.logical_or.reduce(masks, axis=1)
    left, top = columns.argmax(axis=1), rows.argmax(axis=1)
    right, bottom = width - columns[:, ::-1].argmax(axis=1), height - rows[:, ::-1].argmax(axis=1)
    has_pixels = np.logical_or.reduce(rows, axis=1, keepdims=True)
    return (np.stack([left, top, right, bottom], axis=1) * has_pixels).astype(np.float32)


def with_masks(sample: Sample, pixels: NDArray[np.uint8], masks: NDArray[np.bool_]) -> Sample:
    """The sample with other pixels and masks, its boxes those of the masks; objects below `MIN_PIXELS` are dropped.

    Args:
        sample: gives labels and the like.
        pixels: uint8 ``(H, W, 3)``.
        masks: bool ``(G, H, W)``, in the order of the sample's objects.
    """
    kept = np.array([np.count_nonzero(mask) >= MIN_PIXELS for mask in masks], np.bool_)
    masks = masks[kept]
    return replace(
        sample,
        pixels=pixels,
        boxes=mask_boxes(masks),
        labels=sample.labels[kept],
        masks=masks,
        ignored=sample.ignored[kept],
    )


def resize(sample: Sample, size: tuple[int, int]) -> Sample:
    """Pixels as the model itself resizes, masks by the nearest pixel: masks that are disjoint stay so."""
    # Here, so that a config that names the steps does not load torch.
    import torch

    from pipeline.images.resize import resize_bilinear_uint8

    height, width = sample.pixels.shape[:2]
    if (height, width) == size:
        return sample
    channels_first = torch.from_numpy(np.ascontiguousarray(sample.pixels.transpose(2, 0, 1)))
    pixels = resize_bilinear_uint8(channels_first, size).permute(1, 2, 0).contiguous().numpy()
    rows, columns = _nearest(height, size[0]), _nearest(width, size[1])
    return with_masks(sample, pixels, sample.masks[:, rows[:, None], columns])


def window(sample: Sample, top: int, left: int, size: tuple[int, int]) -> Sample:
    """A window of the image; what lies right of and below the image is of `PADDING_COLOUR`.

    Args:
        sample: what is cut, of any size.
        top, left: the window's corner, inside the image.
        size: (H, W) of the window, which may reach beyond the image.
    """
    height, width = size
    pixels = sample.pixels[top : top + height, left : left + width]
    masks = sample.masks[:, top : top + height, left : left + width]
    filled = np.broadcast_to(PADDING_COLOUR, (height, width, 3)).copy()
    filled[: pixels.shape[0], : pixels.shape[1]] = pixels
    below, right = height - pixels.shape[0], width - pixels.shape[1]
    return with_masks(sample, filled, np.pad(masks, ((0, 0), (0, below), (0, right))))


def flip(sample: Sample) -> Sample:
    """Left and right swapped."""
    width = sample.pixels.shape[1]
    boxes = sample.boxes.copy()
    boxes[:, [0, 2]] = width - sample.boxes[:, [2, 0]]
    pixels, masks = sample.pixels[:, ::-1], sample.masks[:, :, ::-1]
    return replace(sample, pixels=np.ascontiguousarray(pixels), boxes=boxes, masks=np.ascontiguousarray(masks))


def _nearest(num_source: int, num_wanted: int) -> NDArray[np.int64]:
    """For each wanted pixel the source pixel that its centre falls in."""
    return (2 * np.arange(num_wanted) + 1) * num_source // (2 * num_wanted)

"""COCO's three forms of a segmentation -> compressed RLE, as ``pycocotools`` makes them."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from pipeline.masks.rle import Rle

# Far outside of any image; the rasteriser allocates by the length of a polygon's edges, without a limit.
_FARTHEST = 1e6


def as_rle(segmentation: Any, height: int, width: int) -> Rle:
    """Polygons, uncompressed or compressed RLE -> compressed RLE.

    Equal to ``COCO.annToRLE``: the polygons of one object are united.

    Args:
        segmentation: an annotation's, parsed; anything that JSON can hold.
        height, width: of the image, in pixels.

    Raises:
        ValueError: none of the three, or an RLE of another size than the image.
    """
    try:
        if isinstance(segmentation, list):
            return _from_polygons(segmentation, height, width)
        size, counts = segmentation["size"], segmentation["counts"]
    except (TypeError, KeyError, IndexError):
        raise ValueError("the segmentation is neither a list of polygons nor an RLE with size and counts") from None
    if size != [height, width]:
        raise ValueError(f"the mask's size (height x width) is {_by(size)}, the image's {height} x {width}")
    if isinstance(counts, str):
        return Rle(size=[height, width], counts=counts.encode())
    runs = np.asarray(counts)
    if runs.dtype.kind != "i" or runs.ndim != 1 or (runs < 0).any() or runs.sum() != height * width:
        raise ValueError("the run lengths of the mask are not whole numbers that add up to the image's pixels")
    return coco_mask.frPyObjects({"size": [height, width], "counts": list(counts)}, height, width)


def mask_area(rle: Rle) -> float:
    """Pixels of a mask. One at a time: pycocotools 2.0.11 takes at most 255 in a call with numpy 2."""
    return float(coco_mask.area(rle))


def _from_polygons(polygons: list[Any], height: int, width: int) -> Rle:
    if not polygons:
        raise ValueError("the segmentation has no polygons")
    for polygon in polygons:
        numbers = np.asarray(polygon, np.float64) if isinstance(polygon, list) else np.empty(0)
        if numbers.ndim != 1 or len(numbers) < 6 or not (np.abs(numbers) <= _FARTHEST).all():
            raise ValueError(
                f"a polygon must be a list of coordinates, at least three points, none beyond {_FARTHEST:,.0f} pixels"
            )
    return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))


def _by(size: Any) -> str:
    return " x ".join(map(str, size)) if isinstance(size, list) else repr(size)

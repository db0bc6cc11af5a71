"""COCO's three forms of a segmentation -> compressed RLE, as ``pycocotools`` makes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from pipeline.masks.rle import DamagedRle, Rle, check_runs, check_strings

# Far outside of any image; the rasteriser allocates by the length of a polygon's edges, without a limit.
_FARTHEST = 1e6
# pycocotools counts pixels in 32 bits, in places with a sign.
_MOST_PIXELS = (1 << 31) - 1


class BadSegmentation(ValueError):
    """A segmentation that is no mask of its image.

    Attributes:
        index: which of those that were given.
    """

    def __init__(self, reason: str, index: int = 0) -> None:
        super().__init__(reason)
        self.index = index


def as_rles(segmentations: Sequence[Any], sizes: Sequence[tuple[int, int]]) -> list[Rle]:
    """Polygons, uncompressed or compressed RLE -> compressed RLE.

    Equal to ``COCO.annToRLE``: the polygons of one object are united.

    Args:
        segmentations: of N annotations, parsed; anything that JSON can hold.
        sizes: (H, W) of their images, in pixels.

    Raises:
        BadSegmentation: one is none of the three, an RLE of another size than the image, or run lengths that do not
            fill it.
    """
    rles: list[Rle] = []
    compressed: list[int] = []
    for index, (segmentation, size) in enumerate(zip(segmentations, sizes, strict=True)):
        try:
            rle, is_checked = _as_rle(segmentation, *size)
        except ValueError as error:
            raise BadSegmentation(str(error), index) from None
        rles.append(rle)
        if not is_checked:
            compressed.append(index)
    try:
        check_strings([rles[i]["counts"] for i in compressed], np.array([sizes[i] for i in compressed], np.int64))
    except DamagedRle as error:
        raise BadSegmentation(str(error), compressed[error.index]) from None
    return rles


def _as_rle(segmentation: Any, height: int, width: int) -> tuple[Rle, bool]:
    """The RLE, and whether its runs are known to fill the image."""
    if not all(type(side) is int and side > 0 for side in (height, width)) or height * width > _MOST_PIXELS:
        raise ValueError(f"an image of {height!r} x {width!r} pixels (height x width) cannot have a mask")
    try:
        if isinstance(segmentation, list):
            return _from_polygons(segmentation, height, width), True
        size, counts = segmentation["size"], segmentation["counts"]
    except (TypeError, KeyError, IndexError):
        raise ValueError("the segmentation is neither a list of polygons nor an RLE with size and counts") from None
    if size != [height, width]:
        raise ValueError(f"the mask's size (height x width) is {_by(size)}, the image's {height} x {width}")
    if isinstance(counts, str):
        # "surrogatepass": what is no text at all is no compressed string either, and is found with the others.
        return Rle(size=[height, width], counts=counts.encode(errors="surrogatepass")), False
    runs = np.asarray(counts)
    if runs.dtype.kind != "i" or runs.ndim != 1:
        raise ValueError("the run lengths of the mask are no list of whole numbers")
    check_runs(runs, np.array([len(runs)]), np.array([height, width]))
    return coco_mask.frPyObjects({"size": [height, width], "counts": list(counts)}, height, width), True


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

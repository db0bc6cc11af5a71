"""COCO's three forms of a segmentation -> compressed RLE, as ``pycocotools`` makes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from pipeline.masks.rle import DamagedRle, RleColumn, check_runs, joined_texts
from pipeline.tables.arrays import Float64s

# Far outside of any image; the rasteriser allocates by the length of a polygon's edges, without a limit.
_FARTHEST = 1e6
# pycocotools counts pixels in 32 bits, in places with a sign.
_MOST_PIXELS = (1 << 31) - 1
_OUTLINES_AT_ONCE = 256  # so many that calls cost little, so few that what they return is soon let go
NO_POLYGON = f"a polygon must be a list of coordinates, at least three points, none beyond {_FARTHEST:,.0f} pixels"


class BadSegmentation(ValueError):
    """A segmentation that is no mask of its image.

    Attributes:
        index: which of those that were given.
    """

    def __init__(self, reason: str, index: int = 0) -> None:
        super().__init__(reason)
        self.index = index


def as_rles(segmentations: Iterable[Any], sizes: Sequence[tuple[int, int]]) -> RleColumn:
    """Polygons, uncompressed or compressed RLE -> compressed RLE.

    Equal to ``COCO.annToRLE``: the polygons of one object are united.

    Args:
        segmentations: of N annotations, parsed; anything that JSON can hold, and polygons as arrays. Each is let go
            before the next is asked for: what is made of them are few things, and millions of lists keep the garbage
            collector busy.
        sizes: (H, W) of their images, in pixels.

    Raises:
        BadSegmentation: one is none of the three, an RLE of another size than the image, or run lengths that do not
            fill it.
    """
    counts = [b""] * len(sizes)
    polygons: dict[tuple[int, int], dict[int, list[Float64s]]] = {}
    for index, (segmentation, (height, width)) in enumerate(zip(segmentations, sizes, strict=True)):
        try:
            _check_size(height, width)
            if isinstance(segmentation, list):
                outlines = polygons.setdefault((height, width), {})
                outlines[index] = _corners(segmentation)
                if len(outlines) == _OUTLINES_AT_ONCE:
                    _rasterise(polygons.pop((height, width)), (height, width), counts)
                continue
            counts[index] = _from_rle(segmentation, height, width)
        except ValueError as error:
            raise BadSegmentation(str(error), index) from None
    for size, outlines in polygons.items():
        _rasterise(outlines, size, counts)
    try:
        return RleColumn.read(*joined_texts(counts), np.array(sizes))
    except DamagedRle as error:
        raise BadSegmentation(str(error), error.index) from None


def _check_size(height: Any, width: Any) -> None:
    is_size = type(height) is int and type(width) is int and height > 0 and width > 0
    if not is_size or height * width > _MOST_PIXELS:
        raise ValueError(f"an image of {height!r} x {width!r} pixels (height x width) cannot have a mask")


def _from_rle(segmentation: Any, height: int, width: int) -> bytes:
    """The compressed string, which may be anything where it was given as one."""
    try:
        size, counts = segmentation["size"], segmentation["counts"]
    except (TypeError, KeyError, IndexError):
        raise ValueError("the segmentation is neither a list of polygons nor an RLE with size and counts") from None
    if size != [height, width]:
        raise ValueError(f"the mask's size (height x width) is {_by(size)}, the image's {height} x {width}")
    if isinstance(counts, str):
        # "surrogatepass": what is no text at all is no compressed string either, and is found with the others.
        return counts.encode(errors="surrogatepass")
    runs = np.asarray(counts)
    if runs.dtype.kind != "i" or runs.ndim != 1:
        raise ValueError("the run lengths of the mask are no list of whole numbers")
    check_runs(runs, (height, width))
    return coco_mask.frPyObjects({"size": [height, width], "counts": list(counts)}, height, width)["counts"]


def _corners(polygons: list[Any]) -> list[Float64s]:
    """The coordinates of each."""
    if not polygons:
        raise ValueError("the segmentation has no polygons")
    try:
        corners = [np.asarray(each if isinstance(each, list | np.ndarray) else (), np.float64) for each in polygons]
    except (TypeError, ValueError):
        raise ValueError(NO_POLYGON) from None
    if any(each.ndim != 1 or len(each) < 6 for each in corners):
        raise ValueError(NO_POLYGON)
    return corners


def _rasterise(outlines: dict[int, list[Float64s]], size: tuple[int, int], counts: list[bytes]) -> None:
    """Put the masks of one size in their places; in one call, for most have one polygon and are soon drawn."""
    every = [polygon for each in outlines.values() for polygon in each]
    near = np.abs(np.concatenate(every)) <= _FARTHEST
    if not near.all():
        sizes = [sum(map(len, each)) for each in outlines.values()]
        raise BadSegmentation(NO_POLYGON, int(np.repeat(list(outlines), sizes)[near.argmin()]))
    drawn = iter(coco_mask.frPyObjects(every, *size))
    for index, each in outlines.items():
        parts = list(islice(drawn, len(each)))
        counts[index] = (parts[0] if len(parts) == 1 else coco_mask.merge(parts))["counts"]


def _by(size: Any) -> str:
    return " x ".join(map(str, size)) if isinstance(size, list) else repr(size)

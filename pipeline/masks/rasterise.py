"""Soft instance masks and their boxes -> COCO RLE, without touching the pixels in between.

The result equals, byte for byte, that of pasting each mask into the image and encoding it: bilinear sampling at
the pixel centres (``torch.nn.functional.grid_sample``, ``align_corners=False``, zeros outside), a pixel is set
where the sample is >= 0.5, ``pycocotools.mask.encode``.

How: sampled down one pixel column, a mask is a chain of straight lines between the mask's rows. Cells of the mask
(squares between four neighbouring values, with a border of zeros around the mask) whose corners lie clearly on one
side of 0.5 set all of their pixels or none. In the other cells each pixel column crosses 0.5 at most once, and one
division gives the row. Only where rounding could decide, the pixels themselves are sampled, in the reference's own
arithmetic (``sampling``).

Legend: N masks; M mask side; L = M + 2 mask lines, -1 .. M, the outer two being the border; K cells;
P (cell, pixel column) pairs; Q pixels. Boxes are xyxy in pixels of the image.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.masks.rle import Rle, encode_toggles, toggle_stride
from pipeline.masks.sampling import bilinear_samples, sample_positions

BoolArray = NDArray[np.bool_]
Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

HALF = np.float32(0.5)
MAX_CROSSINGS = 1 << 22  # at a time: some 100 bytes each; 100 masks across a picture of 1333 pixels are one slice
CHUNK = 1 << 16  # pairs or pixels at a time: bounds the memory and keeps the working set in the cache

# How far from 0.5 rounding can decide. The reference's sample positions are off by up to 2.1e-7 * M lines on each
# axis (four roundings of numbers up to 1, scaled by M / 2, and one of a number up to M), and a sample changes by up
# to the difference of two neighbouring values a line. This is twice that, and a line more for the values' rounding.
EPS_PER_LINE = 1e-6


def rasterise(masks: NDArray[Any], boxes: NDArray[Any], image_size: tuple[int, int]) -> list[Rle]:
    """Paste soft masks into their boxes and encode what is >= 0.5.

    Boxes may cross the border or lie outside. A deliberate deviation: a box without a positive, finite width and
    height gives an empty mask, where the reference either fails or smears the mask over whole rows. So does one
    too small for the reference's division (1e-36 pixels or so).

    Args:
        masks: [N, M, M] probabilities of any float dtype, computed in float32; finite.
        boxes: [N, 4] xyxy in pixels of the image.
        image_size: (H, W) of the image, in pixels.

    Returns:
        N RLEs of the image's size, in the order given.

    Raises:
        ValueError: for other shapes or dtypes, masks that are not finite, or an image without pixels.
    """
    masks, boxes = _checked(masks, boxes, image_size)
    if len(masks) == 0:
        return []
    height, width = image_size
    rles: list[Rle] = []
    for some in _slices(masks, boxes, width):
        paste = _Paste.build(masks[some], boxes[some], height, width)
        toggles = np.concatenate([np.empty(0, np.int64), *_toggles(paste, _boundary_cells(paste))])
        rles += encode_toggles(toggles, some.stop - some.start, height, width)
    return rles


def _slices(masks: Float32Array, boxes: Float32Array, width: int) -> Iterator[slice]:
    """Masks that are rasterised together: as many as can at worst, with noise for masks, have `MAX_CROSSINGS`."""
    with np.errstate(over="ignore", invalid="ignore"):
        columns = np.clip(boxes[:, 2], 0, width) - np.clip(boxes[:, 0], 0, width)
    # Every pixel column crosses 0.5 once at most in each cell, and a cell is work even without a pixel.
    lines = masks.shape[1] + 1
    crossings = lines * (np.nan_to_num(np.maximum(columns, 0)).astype(np.int64) + lines)
    filled = np.cumsum(crossings)
    start = 0
    while start < len(masks):
        before = filled[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(filled, before + MAX_CROSSINGS, side="right")))
        yield slice(start, stop)
        start = stop


def _checked(
    masks: NDArray[Any], boxes: NDArray[Any], image_size: tuple[int, int]
) -> tuple[Float32Array, Float32Array]:
    """Both as float32, or ValueError."""
    if masks.ndim != 3 or masks.shape[1] != masks.shape[2] or masks.shape[1] == 0:
        raise ValueError(f"masks must have the shape (N, M, M), got {masks.shape}")
    if boxes.shape != (len(masks), 4):
        raise ValueError(f"boxes must have the shape ({len(masks)}, 4), one per mask, got {boxes.shape}")
    if not np.issubdtype(masks.dtype, np.floating):
        raise ValueError(f"masks must be floating-point probabilities, got {masks.dtype}")
    if len(image_size) != 2 or min(image_size) < 1:
        raise ValueError(f"image_size must be (height, width), both positive, got {image_size}")
    if not np.isfinite(masks).all():
        raise ValueError("masks must be finite")
    return masks.astype(np.float32, copy=False), boxes.astype(np.float32, copy=False)


class _Axis(NamedTuple):
    """Mask lines and image pixels along x or y."""

    low: Float32Array  # [N] start of the box
    size: Float32Array  # [N] its size as the reference rounds it
    pitch: Float64Array  # [N] pixels from one mask line to the next
    line: Float64Array  # [N, L] pixel index of each mask line
    first: Int64Array  # [N, L] first pixel of the image at or after the line

    @classmethod
    def build(cls, low: Float32Array, high: Float32Array, side: int, length: int) -> _Axis:
        size = high - low
        pitch = size.astype(np.float64) / side
        line = (low.astype(np.float64) - 0.5)[:, None] + (np.arange(side + 2) - 0.5) * pitch[:, None]
        return cls(low, size, pitch, line, np.ceil(np.clip(line, 0, length)).astype(np.int64))

    def positions(self, mask: Int64Array, pixel: Int64Array) -> Float32Array:
        """Where the reference samples these pixels, in mask lines [Q]."""
        return sample_positions(pixel, self.low[mask], self.size[mask], self.line.shape[1] - 2)


class _Paste(NamedTuple):
    """The masks of one image and where their lines fall."""

    values: Float32Array  # [N, L, L] masks inside a border of zeros
    valid: BoolArray  # [N] boxes that have an inside
    x: _Axis
    y: _Axis
    height: int
    width: int
    largest: float  # no value is further from zero
    eps: float  # samples nearer than this to 0.5 are left to the reference's arithmetic

    @classmethod
    def build(cls, masks: Float32Array, boxes: Float32Array, height: int, width: int) -> _Paste:
        num_masks, side, _ = masks.shape
        values = np.zeros((num_masks, side + 2, side + 2), np.float32)
        values[:, 1:-1, 1:-1] = masks
        with np.errstate(over="ignore", invalid="ignore"):
            size = boxes[:, 2:] - boxes[:, :2]
        valid = ((size > 0) & np.isfinite(size)).all(axis=1)
        boxes = np.where(valid[:, None], boxes, np.array([0, 0, 1, 1], np.float32))
        x = _Axis.build(boxes[:, 0], boxes[:, 2], side, width)
        y = _Axis.build(boxes[:, 1], boxes[:, 3], side, height)
        largest = max(1.0, float(np.abs(masks).max()))
        return cls(values, valid, x, y, height, width, largest, EPS_PER_LINE * (side + 1) * largest)


class _Cells(NamedTuple):
    """Mask cells that 0.5 may pass through, all arrays [K].

    At the cell's k-th pixel column the samples on its upper and lower line are ``top + top_step * k`` and
    ``bottom + bottom_step * k``, less 0.5. Rows count from ``row``, so that float32 does for all of them.
    """

    mask: Int64Array
    column: Int64Array  # its first pixel column
    row: Int64Array  # its first pixel row
    num_columns: Int64Array
    num_rows: Float32Array
    top: Float32Array
    top_step: Float32Array
    bottom: Float32Array
    bottom_step: Float32Array
    line: Float32Array  # row of the upper line
    pitch: Float32Array  # rows from the upper line to the lower


def _boundary_cells(paste: _Paste) -> _Cells:
    """The cells in view with corners on both sides of 0.5, or near it."""
    values, x, y = paste.values.reshape(-1), paste.x, paste.y
    lines = paste.values.shape[1]
    num_columns = np.diff(x.first, append=x.first[:, -1:])
    in_view = (num_columns > 0) & (paste.valid & (y.first[:, 0] < y.first[:, -1]))[:, None]
    corner = np.flatnonzero(_mixed(paste) & in_view[:, None, :])
    line_y, column = np.divmod(corner, lines)  # line_y and line_x count on from mask to mask
    mask = line_y // lines
    line_x = mask * lines + column

    start = ((x.first - x.line) / x.pitch[:, None]).reshape(-1)[line_x].astype(np.float32)
    step = (1 / x.pitch)[mask].astype(np.float32)
    with np.errstate(over="ignore"):  # the far lines of a box at the limit of float32
        line = (y.line - y.first).astype(np.float32).reshape(-1)[line_y]
    top, bottom = values[corner], values[corner + lines]
    top_slope, bottom_slope = values[corner + 1] - top, values[corner + lines + 1] - bottom
    num_rows = np.diff(y.first, append=y.first[:, -1:]).astype(np.float32)
    return _Cells(
        mask=mask,
        column=x.first.reshape(-1)[line_x],
        row=y.first.reshape(-1)[line_y],
        num_columns=num_columns.reshape(-1)[line_x],
        num_rows=num_rows.reshape(-1)[line_y],
        top=top - HALF + top_slope * start,
        top_step=top_slope * step,
        bottom=bottom - HALF + bottom_slope * start,
        bottom_step=bottom_slope * step,
        line=line,
        pitch=y.pitch.astype(np.float32)[mask],
    )


def _mixed(paste: _Paste) -> BoolArray:
    """[N, L, L]: is the cell to the right of and below this value not clearly on one side of 0.5?"""
    values, lines = paste.values.reshape(-1), paste.values.shape[1]
    mixed = np.zeros(values.size, np.bool_)
    # Over the flat array, cells at the end of a line wrap around; all of their corners are border, so none is mixed.
    inner = mixed[: -lines - 1]
    for clear in (values > 0.5 + paste.eps, values < 0.5 - paste.eps):
        pair = clear[:-1] & clear[1:]
        inner |= pair[:-lines] & pair[lines:]
    np.logical_not(inner, out=inner)
    return mixed.reshape(paste.values.shape)


def _toggles(paste: _Paste, cells: _Cells) -> Iterator[Int64Array]:
    """Toggles of all masks, as ``encode_toggles`` takes them.

    Every cell reports on its own, also when the image shows none of its rows: what two cells report at one
    position cancels.
    """
    stride = toggle_stride(paste.height, paste.width)
    origin = cells.mask * stride + cells.column * paste.height + cells.row
    # Two ends with a product above this have one sign and are both further than eps from 0.5.
    clear = np.float32(paste.eps * (paste.largest + 0.5))
    for some, times, k in _ragged(cells.num_columns):
        offset = k.astype(np.float32)
        top = np.repeat(cells.top_step[some], times) * offset + np.repeat(cells.top[some], times)
        bottom = np.repeat(cells.bottom_step[some], times) * offset + np.repeat(cells.bottom[some], times)
        near = np.flatnonzero(top * bottom < clear)
        cell = np.repeat(np.arange(some.start, some.stop), times)[near]
        k, top, bottom = k[near], top[near], bottom[near]
        first, last = _crossing_rows(cells, cell, top, bottom, paste.eps)
        key = origin[cell] + k * paste.height + first.astype(np.int64)
        above = bottom >= 0
        yield key[(top >= 0) != above]
        unsure = np.flatnonzero(first < last)
        if unsure.size:
            num_rows = (last - first)[unsure].astype(np.int64)
            yield from _corrections(paste, key[unsure], num_rows, above[unsure])


def _crossing_rows(
    cells: _Cells, cell: Int64Array, top: Float32Array, bottom: Float32Array, eps: float
) -> tuple[Float32Array, Float32Array]:
    """Between which rows of their cell columns cross 0.5 [P]: unsure from the first up to, not with, the last.

    Rows before count with the upper line, rows after with the lower.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        rows_per_unit = cells.pitch[cell] / (top - bottom)
        crossing = cells.line[cell] + top * rows_per_unit
        reach = np.abs(rows_per_unit) * np.float32(eps)
        first, last = np.ceil(crossing - reach), np.ceil(crossing + reach)
    # Where both ends are equal these are infinite or NaN, and fmin and fmax leave the whole cell unsure.
    num_rows = cells.num_rows[cell]
    first = np.fmin(np.fmax(first, np.float32(0)), num_rows)
    last = np.fmax(np.fmin(last, num_rows), np.float32(0))
    return first, last


def _corrections(paste: _Paste, key: Int64Array, num_rows: Int64Array, above: BoolArray) -> Iterator[Int64Array]:
    """Toggles that flip single pixels whose sample is on the other side of 0.5 than ``above`` says.

    The pixels are ``num_rows`` successive ones of a column, from ``key`` on.
    """
    for some, times, k in _ragged(num_rows):
        pixel = np.repeat(key[some], times) + k
        mask, index = np.divmod(pixel, toggle_stride(paste.height, paste.width))
        column, row = np.divmod(index, paste.height)
        sample = bilinear_samples(paste.values, mask, paste.x.positions(mask, column), paste.y.positions(mask, row))
        wrong = pixel[(sample >= HALF) != np.repeat(above[some], times)]
        yield wrong
        yield wrong + 1


def _ragged(counts: Int64Array) -> Iterator[tuple[slice, Int64Array, Int64Array]]:
    """Walk over k in range(counts[item]) of every item, CHUNK pairs (item, k) at a time.

    Yields:
        The items of the chunk, how many pairs each has in it, and k of every pair.
    """
    bounds = np.concatenate([[0], np.cumsum(counts)])
    for start in range(0, int(bounds[-1]), CHUNK):
        stop = min(start + CHUNK, int(bounds[-1]))
        begin = int(np.searchsorted(bounds, start, side="right")) - 1
        end = int(np.searchsorted(bounds, stop, side="left"))
        times = np.diff(np.clip(bounds[begin : end + 1], start, stop))
        yield slice(begin, end), times, np.arange(start, stop) - np.repeat(bounds[begin:end], times)

"""In which order images go to the model, so that its batches are full.

Only images of one padded shape share a batch, and only those of one block. So a read task orders a window of rows, as
far as the manifest knows sizes, and a fetch task orders its rows again, by the headers of the pictures that it has
fetched. An image's row does not depend on any of that. No Ray, no torch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotate.manifest.open import Manifest
from pipeline.annotate.manifest.rules import HEIGHT, WIDTH, ReadUnit
from pipeline.images.sizes import input_size
from pipeline.storage.uris import Uri
from pipeline.tables.packed import cut, packed

# The more rows are ordered together, the less is left over that fills no batch: about one batch for each of some
# forty shapes. What a read task orders are numbers; what a fetch task orders are encoded pictures in memory.
ROWS_PER_WINDOW = 4096
ROWS_PER_FETCH = 768

Sizes = NDArray[np.int64]


@dataclass(frozen=True)
class BatchOrder:
    """Orders images for a model.

    Sizes are int64 ``(N, 2)``: height and width of the upright pictures, 0 where they are not known. Such images come
    last, and no call of the model is counted for them: to a fetch task they are those that cannot be read.

    Attributes:
        short_side, long_side: the model's input size.
        batch_size: images in a call of the model.
        images_per_block: images that come to a replica together; best a multiple of the batch.
    """

    short_side: int
    long_side: int
    batch_size: int
    images_per_block: int

    def permutation(self, sizes: Sizes, start: int = 0) -> NDArray[np.int64]:
        """Which image comes first, second, ...: the order given, or a better one, the same for the same sizes.

        Args:
            sizes: of the images.
            start: how many images come before them, counted from the beginning of a block.
        """
        return order_by_shape(self._shapes(sizes), self.batch_size, self.images_per_block, start)

    def num_calls(self, sizes: Sizes, start: int = 0) -> int:
        """Calls of the model that images in this order take; the arguments are those of `permutation`."""
        return count_calls(self._shapes(sizes), self.batch_size, self.images_per_block, start)

    def expected_calls(
        self,
        known: Sizes,
        actual: Sizes,
        rows_per_window: int = ROWS_PER_WINDOW,
        rows_per_fetch: int = ROWS_PER_FETCH,
    ) -> int:
        """Calls of the model that a manifest takes, whose rows go the way of the job.

        Args:
            known: what the manifest says of each row.
            actual: what the pictures are.
            rows_per_window, rows_per_fetch: that are ordered together when they are read, and when they are fetched.
        """
        read: list[Sizes] = []
        for first in range(0, len(actual), rows_per_window):
            window = slice(first, first + rows_per_window)
            read.append(actual[window][self.permutation(known[window])])
        calls, rows = 0, np.concatenate([actual[:0], *read])
        for start in range(0, len(rows), rows_per_fetch):
            fetched = rows[start : start + rows_per_fetch]
            calls += self.num_calls(fetched[self.permutation(fetched)])
        return calls

    def _shapes(self, sizes: Sizes) -> NDArray[np.int64]:
        """A number for each padded shape; 0 where the size is not known."""
        shapes = [_shape(height, width, self.short_side, self.long_side) for height, width in sizes.tolist()]
        return np.array(shapes, np.int64)


@lru_cache(maxsize=1 << 14)
def _shape(height: int, width: int, short_side: int, long_side: int) -> int:
    if height <= 0 or width <= 0:
        return 0
    padded = input_size((height, width), short_side, long_side)
    return padded[0] << 32 | padded[1]


def order_by_shape(
    shapes: NDArray[np.int64], batch_size: int, images_per_block: int, start: int = 0
) -> NDArray[np.int64]:
    """Full batches of one shape first; then what is left over of each shape, within one block where that is possible.

    Args:
        shapes: ``(N,)``, equal numbers for equal shapes; 0, for none, comes last.
        batch_size, images_per_block, start: as `BatchOrder` has them.

    Returns:
        ``(N,)``: which image comes first, second, ... The given order, unless another takes fewer calls of the model.
    """
    full: deque[list[int]] = deque()
    left: list[list[int]] = []
    for shape in np.unique(shapes[shapes != 0]).tolist():
        members = np.flatnonzero(shapes == shape).tolist()
        end = len(members) - len(members) % batch_size
        full.extend(members[i : i + batch_size] for i in range(0, end, batch_size))
        if end < len(members):
            left.append(members[end:])
    order = _packed(full, left, batch_size, images_per_block, start)
    order += np.flatnonzero(shapes == 0).tolist()
    better = np.array(order, np.int64)
    if count_calls(shapes[better], batch_size, images_per_block, start) < count_calls(
        shapes, batch_size, images_per_block, start
    ):
        return better
    return np.arange(len(shapes))


def count_calls(shapes: NDArray[np.int64], batch_size: int, images_per_block: int, start: int = 0) -> int:
    """Calls of the model for images in this order, as `pipeline.model.predictor.Predictor` makes them of blocks.

    The arguments are those of `order_by_shape`; images without a shape are none to the model.
    """
    values, codes = np.unique(shapes, return_inverse=True)
    blocks = (start % images_per_block + np.arange(len(shapes))) // images_per_block
    together, counts = np.unique(blocks * max(1, len(values)) + codes, return_counts=True)
    is_shape = values[together % max(1, len(values))] != 0
    return int((-(-counts // batch_size))[is_shape].sum())


def _packed(full: deque[list[int]], left: list[list[int]], batch_size: int, block: int, start: int) -> list[int]:
    """Groups of images one after the other, and as few as possible of them cut by the end of a block."""
    order: list[int] = []
    room = block - start % block
    while full or left:
        if full and room >= batch_size:
            chosen = [full.popleft()]
        elif fitting := _fitting([len(group) for group in left], room):
            chosen = [left[i] for i in fitting]
            left = [group for i, group in enumerate(left) if i not in fitting]
        else:  # each is longer than the room that is left: the longest is cut
            longest = max(left, key=len) if left else full.popleft()
            left = [group for group in left if group is not longest] + [longest[room:]]
            chosen = [longest[:room]]
        for group in chosen:
            order += group
            room -= len(group)
        room = room or block
    return order


def _fitting(lengths: list[int], room: int) -> set[int]:
    """Which of some groups fill the room best together."""
    sums = [1]  # of the first so many groups: bit n for a choice of them that is n long
    for length in lengths:
        sums.append((sums[-1] | sums[-1] << length) & ((2 << room) - 1))
    length = sums[-1].bit_length() - 1
    chosen = set()
    for i in range(len(lengths) - 1, -1, -1):
        if not sums[i] >> length & 1:
            chosen.add(i)
            length -= lengths[i]
    return chosen


def read_in_order(
    units: pa.Table, manifest: Manifest, order: BatchOrder, window_rows: int, rows_per_task: int
) -> Iterator[pa.Table]:
    """What tasks are to fetch, packed, and ordered by the sizes that the manifest has; the same each time.

    Args:
        units: row groups, with a bit a row (``wanted``) for those that are to be read.
        manifest: of the units.
        order: of the model's batches.
        window_rows: that are ordered together.
        rows_per_task: of each table, but the last.
    """

    def tables() -> Iterator[pa.Table]:
        for unit in units.to_pylist():
            bits = np.frombuffer(unit.pop("wanted"), np.uint8)
            rows = np.unpackbits(bits, count=unit["num_rows"]).astype(np.bool_)
            part = ReadUnit(Uri(unit.pop("file")), **unit)
            yield from manifest.read_rows(part, rows, window_rows, with_sizes=True)

    def ordered(window: pa.Table) -> pa.Table:
        sizes = np.stack([window[name].to_numpy() for name in (HEIGHT, WIDTH)], axis=1).astype(np.int64)
        return window.drop_columns([HEIGHT, WIDTH]).take(pa.array(order.permutation(sizes)))

    yield from map(packed, cut(map(ordered, cut(tables(), window_rows)), rows_per_task))

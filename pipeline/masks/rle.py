"""COCO run-length encoding: made from the positions where masks change value, and read and checked; many at once.

pycocotools decodes any string: runs that do not fill the image leave pixels as the memory was, and negative ones let it
count for hours. So what others wrote is checked here, by all who read it.

Legend: N masks; T toggles; S runs; U = S // 2 + 1. A *toggle* is a position in the column-major pixel stream of one
mask (0 .. H * W) from which on every pixel is flipped. A mask is the sum modulo 2 of its toggles, so they may come in
any order, and two at one position cancel: the end of a full-height column and the start of the next one, say.

*Dealt* runs ``[2, U]``: that at place s of all lies at ``[s % 2, s // 2]``, and zeros fill what is left. So a mask's
runs of zeros and its runs of ones lie in two rows, each beside the next, which is how they are coded and added up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import TypedDict, overload

import numpy as np
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]
Runs = NDArray[np.int32] | NDArray[np.int64]

_MOST_GROUPS = 12  # 60 bits: whatever a number stands for, int64 holds it
_NARROW_GROUPS = 6  # 30 bits, which int32 holds, with their sums up to the first that is no run
_NARROW_PIXELS = 1 << 31  # of the largest mask; its runs are below
_MASKS_AT_ONCE = 2048  # so many that calls of numpy cost little, so few that arrays fit into a core's cache


class Rle(TypedDict):
    """COCO's compressed run-length encoding, as ``pycocotools.mask`` reads and writes it."""

    size: list[int]  # [H, W]
    counts: bytes


class DamagedRle(ValueError):
    """Run lengths that are not those of a mask.

    Attributes:
        index: which of the masks that were given.
    """

    def __init__(self, reason: str, index: int = 0) -> None:
        super().__init__(reason)
        self.index = index


@dataclass(frozen=True, eq=False)
class RleColumn(Sequence[Rle]):
    """N masks that fill their images, as columns: most are never looked at one by one.

    Attributes:
        sizes: [N, 2] H and W of the images, in pixels.
        text: compressed strings, among others those of the masks.
        bounds: [N, 2] where in the text the string of each mask begins and ends.
        areas: [N] in pixels.
        spans: [N, 2] columns of the image: all of the mask lies from the first of them on and before the second.
        is_plain: no run is empty but, here and there, the first of a mask, as pycocotools makes them.
    """

    sizes: Int64Array
    text: bytes
    bounds: Int64Array
    areas: Int64Array
    spans: Int64Array
    is_plain: bool

    @classmethod
    def read(cls, text: bytes, offsets: NDArray[np.integer], sizes: NDArray[np.integer]) -> RleColumn:
        """Check that compressed strings are masks of their images, and measure them.

        Args:
            text: N strings, one after the other.
            offsets: [N + 1] where each begins in the text, and the end of the last.
            sizes: [N, 2] H and W of the images, in pixels.

        Raises:
            DamagedRle: of the first that is none, see `decode_runs`.
        """
        sizes, cuts = np.asarray(sizes, np.int64).reshape(-1, 2), np.asarray(offsets, np.int64)
        areas, spans, num_empty = np.zeros(len(sizes), np.int64), np.zeros((len(sizes), 2), np.int64), 0
        for start in range(0, len(sizes), _MASKS_AT_ONCE):
            part = slice(start, start + _MASKS_AT_ONCE)
            try:
                some = cuts[start : start + _MASKS_AT_ONCE + 1]
                dealt, runs_per_mask, areas[part] = _decode_checked(text, some, sizes[part])
            except DamagedRle as error:
                raise DamagedRle(str(error), start + error.index) from None
            stops = np.cumsum(runs_per_mask)
            firsts = dealt[_place(stops - runs_per_mask)]
            heights = np.maximum(sizes[part, 0], 1)
            behind = np.where(runs_per_mask % 2, dealt[_place(stops - 1)], 0)  # zeros, after the last run of ones
            spans[part, 0] = firsts // heights
            spans[part, 1] = sizes[part, 1] - behind // heights
            num_empty += int(stops[-1] - np.count_nonzero(dealt) - np.count_nonzero(firsts == 0))
        return cls(sizes, text, np.stack([cuts[:-1], cuts[1:]], 1), areas, spans, num_empty == 0)

    @classmethod
    def of(cls, rles: Sequence[Rle]) -> RleColumn:
        """The same masks.

        Raises:
            DamagedRle: of the first that is none.
        """
        return cls.read(*joined_texts([rle["counts"] for rle in rles]), np.array([rle["size"] for rle in rles]))

    @property
    def counts(self) -> list[bytes]:
        """N compressed strings, made anew each time."""
        return [self.text[start:stop] for start, stop in self.bounds.tolist()]

    def take(self, chosen: Int64Array) -> RleColumn:
        """Those at these indices."""
        sizes, bounds, areas, spans = (each[chosen] for each in (self.sizes, self.bounds, self.areas, self.spans))
        return RleColumn(sizes, self.text, bounds, areas, spans, self.is_plain)

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, index: int) -> Rle: ...

    @overload
    def __getitem__(self, index: slice) -> list[Rle]: ...

    def __getitem__(self, index: int | slice) -> Rle | list[Rle]:
        if not isinstance(index, slice):
            start, stop = self.bounds[index].tolist()
            return {"size": self.sizes[index].tolist(), "counts": self.text[start:stop]}
        # As few lists as may be: masks of one image share that of its size.
        sizes, (starts, stops) = self.sizes[index], self.bounds[index].T.tolist()
        first = np.flatnonzero((np.diff(sizes, axis=0, prepend=-1) != 0).any(axis=1))
        repeated = map(repeat, sizes[first].tolist(), np.diff(first, append=len(sizes)).tolist())
        places = zip(chain.from_iterable(repeated), starts, stops, strict=True)
        return [{"size": size, "counts": self.text[start:stop]} for size, start, stop in places]


def toggle_stride(height: int, width: int) -> int:
    """Distance between the toggles of two successive masks: H * W is a position of its own."""
    return height * width + 1


def encode_toggles(toggles: Int64Array, num_masks: int, height: int, width: int) -> list[Rle]:
    """Encode masks given by their toggles.

    Args:
        toggles: [T] int64 in any order: ``mask * toggle_stride(H, W) + column * H + row``.
        num_masks: N, how many masks; one without toggles is empty.
        height, width: H and W of the image, in pixels.

    Returns:
        One RLE per mask, equal byte for byte to what ``pycocotools.mask.encode`` gives for its pixels.
    """
    if num_masks == 0:
        return []
    counts, runs_per_mask = _run_lengths(toggles, num_masks, toggle_stride(height, width))
    return [Rle(size=[height, width], counts=text) for text in _strings(counts, runs_per_mask)]


def _run_lengths(toggles: Int64Array, num_masks: int, stride: int) -> tuple[Int64Array, Int64Array]:
    """Lengths of the alternating runs of zeros and ones [S], mask after mask, and how many each mask has [N]."""
    ends = np.arange(1, num_masks + 1, dtype=np.int64) * stride - 1
    keys = np.concatenate([toggles, ends])
    keys.sort(kind="stable")  # they come as long ascending chains, which a merge sort takes as they are
    last = np.flatnonzero(np.append(keys[1:] != keys[:-1], True))
    multiplicity = np.diff(last, prepend=-1)
    keys = keys[last]
    # The end of a mask closes its last run whatever the parity there; a toggle on it adds no empty run.
    is_end = np.zeros(keys.size, np.bool_)
    is_end[np.searchsorted(keys, ends)] = True
    keep = np.flatnonzero((multiplicity & 1).astype(np.bool_) | is_end)
    keys = keys[keep]
    lengths = np.diff(keys, prepend=-1)
    stops = np.flatnonzero(is_end[keep]) + 1
    runs_per_mask = np.diff(stops, prepend=0)
    lengths[stops - runs_per_mask] -= 1  # a mask starts one position after the end of the previous one
    return lengths, runs_per_mask


def _strings(lengths: Int64Array, runs_per_mask: Int64Array) -> list[bytes]:
    """COCO's text form: from the fourth run on the difference to the run before last, in 5-bit groups.

    A group is one character from 48 on, lowest group first, with bit 32 set while more follow. A value takes the
    fewest groups k with -2**(5k - 1) <= value < 2**(5k - 1) (``rleToString`` of the COCO API).
    """
    firsts = np.cumsum(runs_per_mask) - runs_per_mask
    values = lengths.copy()
    values[2:] -= lengths[:-2]
    for position in range(3):
        starts = firsts[runs_per_mask > position] + position
        values[starts] = lengths[starts]
    magnitude = values ^ (values >> 63)
    num_groups = np.ones(values.size, np.int64)
    limit = int(magnitude.max())
    for bit in range(4, limit.bit_length(), 5):
        num_groups += magnitude >= 1 << bit
    stops = np.cumsum(num_groups)
    text = np.empty(int(stops[-1]), np.uint8)
    where = stops - num_groups
    while values.size:
        more = num_groups > 1
        text[where] = (values.astype(np.uint8) & 31) + 48 + (more.view(np.uint8) << 5)
        rest = np.flatnonzero(more)
        values, num_groups, where = values[rest] >> 5, num_groups[rest] - 1, where[rest] + 1
    cuts = stops[firsts + runs_per_mask - 1].tolist()
    raw = text.tobytes()
    return [raw[start:stop] for start, stop in zip([0, *cuts[:-1]], cuts, strict=True)]


def joined_texts(texts: Sequence[bytes]) -> tuple[bytes, Int64Array]:
    """N strings one after the other, and where each begins [N + 1], the end of the last included."""
    return b"".join(texts), np.cumsum([0, *map(len, texts)], dtype=np.int64)


def decode_runs(texts: Sequence[bytes], sizes: NDArray[np.integer]) -> tuple[Int64Array, Int64Array]:
    """The runs that compressed strings stand for (``rleFrString`` of the COCO API), which fill their images.

    Args:
        texts: N strings.
        sizes: [N, 2] H and W of the images, in pixels.

    Returns:
        Lengths of the alternating runs of zeros and ones [S], mask after mask, and how many each mask has [N].

    Raises:
        DamagedRle: of the first mask that is none of its image; characters that do not belong there, a number that is
            cut off, runs below zero or that do not add up to the image's pixels.
    """
    dealt, runs_per_mask, _ = _decode_checked(*joined_texts(texts), np.asarray(sizes).reshape(-1, 2))
    return _in_order(dealt, int(runs_per_mask.sum())).astype(np.int64), runs_per_mask


def check_runs(runs: Int64Array, size: tuple[int, int]) -> None:
    """Check that the runs [S] of one mask fill its image of ``(H, W)`` pixels.

    Raises:
        DamagedRle: they do not.
    """
    _areas(_dealt(runs, np.int64), np.array([len(runs)]), np.array([size]))


def _decode_checked(
    text: bytes, offsets: Int64Array, sizes: NDArray[np.integer]
) -> tuple[Runs, Int64Array, Int64Array]:
    """Runs, dealt [2, U], how many each mask has [N], and the masks' areas [N]; otherwise as `decode_runs`."""
    try:
        # One alone is asked for its message, in which all numbers are whole.
        narrow = len(sizes) > 1 and int(sizes.astype(np.int64).prod(axis=1).max()) < _NARROW_PIXELS
        dealt, runs_per_mask = _decoded(text, offsets, narrow)
        return dealt, runs_per_mask, _areas(dealt, runs_per_mask, sizes)
    except DamagedRle as error:
        if len(sizes) == 1:
            raise
        for index in range(len(sizes)):
            try:
                _decode_checked(text, offsets[index : index + 2], sizes[index : index + 1])
            except DamagedRle as first:
                raise DamagedRle(str(first), index) from None
        raise error


def _areas(dealt: Runs, runs_per_mask: Int64Array, sizes: NDArray[np.integer]) -> Int64Array:
    """The area of each mask [N], in pixels.

    Args:
        dealt: [2, U] runs, mask after mask.
        runs_per_mask: [N] how many each has.
        sizes: [N, 2] H and W of the images, in pixels.

    Raises:
        DamagedRle: of the first mask whose runs do not fill its image.
    """
    sizes = np.asarray(sizes, np.int64).reshape(-1, 2)
    pixels = sizes[:, 0] * sizes[:, 1]
    ends = np.cumsum(runs_per_mask)
    by_row = []
    for row, (starts, stops) in zip(dealt, _bounds(runs_per_mask), strict=True):
        by_row.append(np.where(starts < stops, np.add.reduceat(row, starts, dtype=np.int64), 0))
    sums = by_row[0] + by_row[1]
    wrong = sums != pixels
    # No run is longer than an image, so that no sum of them has wrapped around; and of those that are not below zero
    # and add up to the image none is longer than that.
    if not wrong.any() and dealt.min() >= 0 and dealt.max() <= pixels.max(initial=0):
        return np.where((ends - runs_per_mask) % 2, *by_row)
    runs = _in_order(dealt, int(runs_per_mask.sum()))
    outside = (runs < 0) | (runs > np.repeat(pixels, runs_per_mask))
    if outside.any():
        at = int(outside.argmax())
        index = int(np.searchsorted(ends, at, side="right"))
        raise DamagedRle(f"a run of {runs[at]:,} pixels in a mask of {_by(sizes[index])}", index)
    index = int(wrong.argmax())
    raise DamagedRle(f"run lengths of {sums[index]:,} pixels in all for a mask of {_by(sizes[index])}", index)


def _decoded(text: bytes, offsets: Int64Array, narrow: bool) -> tuple[Runs, Int64Array]:
    """The inverse of `_strings`: dealt runs [2, U], which may be any numbers, and how many each mask has [N].

    Half the bytes are half the time. In int32 a sum may wrap around, and still nothing passes for a mask that is none:
    a number changes a run by less than 2**30, so the first that is below zero or above 2**31 - 1 is seen below zero.

    Args:
        text: strings, one after the other.
        offsets: [N + 1] where each of N begins, and the end of the last.
        narrow: masks of less than 2**31 pixels: runs may be int32, exact up to the first that is none.
    """
    ends = offsets[1:] - offsets[0]
    if (np.diff(offsets) == 0).any():
        raise DamagedRle("the run lengths are not a compressed string")
    characters = np.frombuffer(text, np.uint8, int(offsets[-1] - offsets[0]), int(offsets[0])) - np.uint8(48)
    if characters.max(initial=0) > 63:
        raise DamagedRle("the run lengths are not a compressed string")
    is_last = characters < 32
    if not is_last[ends - 1].all():
        raise DamagedRle("the last run length is cut off")
    # The highest group has the sign; nine numbers in ten have no other.
    highest = (characters[is_last] ^ np.uint8(16)).view(np.int8) - np.int8(16)
    dealt = _dealt(highest, np.int32 if narrow else np.int64)
    lower = np.flatnonzero(~is_last)
    owners = lower - np.arange(lower.size)  # so many numbers have ended before
    has_lower = np.zeros(lower.size + 1, np.bool_)  # the group before is of the same number
    np.equal(owners[1:], owners[:-1], out=has_lower[1:-1])
    at = np.flatnonzero(~has_lower[1:])  # the highest of each number's lower groups, then the next
    values, lower_digits = dealt.reshape(-1), characters[lower] & np.uint8(31)
    row, place = _place(owners)
    places = row * dealt.shape[1] + place
    for _ in range((_NARROW_GROUPS if narrow else _MOST_GROUPS) - 1):
        if not at.size:
            break
        several = places[at]
        values[several] = (values[several] << 5) + lower_digits[at]
        at = at[has_lower[at]] - 1
    if at.size and narrow:
        return _decoded(text, offsets, narrow=False)
    if at.size:
        raise DamagedRle("a run length has too many digits")
    runs_per_mask = np.diff(ends - np.searchsorted(lower, ends), prepend=0)
    _undo_differences(dealt, runs_per_mask)
    return dealt, runs_per_mask


def _undo_differences(dealt: Runs, runs_per_mask: Int64Array) -> None:
    """In place: from the fourth run of a mask on the difference to the run before last is given.

    Runs before last are neighbours where they are dealt, so two sums do for all masks, once they begin anew with each.
    """
    thirds = (np.cumsum(runs_per_mask) - runs_per_mask + 2)[runs_per_mask > 2]
    dealt[_place(thirds)] -= dealt[_place(thirds - 2)]
    for row, (starts, stops) in zip(dealt, _bounds(runs_per_mask), strict=True):
        used, begins = row[: stops.max(initial=0)], starts[starts < stops]
        used[begins[1:]] -= np.add.reduceat(used, begins, dtype=used.dtype)[:-1]
        np.cumsum(used, dtype=used.dtype, out=used)


def _dealt(values: NDArray[np.integer], dtype: type[np.integer]) -> Runs:
    """[2, U] of S."""
    dealt = np.zeros((2, values.size // 2 + 1), dtype)
    for parity in range(2):
        own = values[parity::2]
        dealt[parity, : own.size] = own
    return dealt


def _place(at: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Where those at these places of S are dealt."""
    return at & 1, at >> 1


def _in_order(dealt: Runs, num_runs: int) -> Runs:
    """[S] of [2, U]."""
    return dealt.T.reshape(-1)[:num_runs]


def _bounds(runs_per_mask: Int64Array) -> list[tuple[Int64Array, Int64Array]]:
    """Of both rows of dealt runs: where those of each mask begin [N] and end [N]."""
    ends = np.cumsum(runs_per_mask)
    return [((ends - runs_per_mask + 1 - parity) >> 1, (ends + 1 - parity) >> 1) for parity in range(2)]


def _by(size: NDArray[np.int64]) -> str:
    return f"{size[0]} x {size[1]} (height x width)"

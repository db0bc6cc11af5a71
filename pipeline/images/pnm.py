"""PBM, PGM and PPM -> RGB uint8, with numpy: Pillow decodes those that are text, or of an odd maximum, in Python.

The pixels are Pillow's all the same. http://netpbm.sourceforge.net/doc/pnm.html is the specification.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_BITMAP = re.compile(rb"P[14]\s+(\d{1,10})\s+(\d{1,10})(?:\s|\Z)")
_MAP = re.compile(rb"P[2356]\s+(\d{1,10})\s+(\d{1,10})\s+(\d{1,10})(?:\s|\Z)")
_COMMENT = re.compile(rb"#[^\r\n]*")
_LONGEST_HEADER = 1 << 16  # bytes, comments included
_WHITESPACE = b" \t\n\r\v\f"
_LONGEST_NUMBER = 10  # digits, leading zeros included
_AT_ONCE = 1 << 20  # bytes of text, or samples


class PnmHeader(NamedTuple):
    """What a file says of itself before its samples.

    Attributes:
        kind: ``1`` to ``6``, as in its first bytes ``P1`` to ``P6``.
        size: (H, W).
        max_value: of a sample; 1 for bitmaps.
        start: where the samples begin.
    """

    kind: int
    size: tuple[int, int]
    max_value: int
    start: int


def pnm_header(data: bytes) -> PnmHeader:
    """The header of a file that begins with ``P1`` to ``P6``.

    Raises:
        ValueError: it is cut or damaged.
    """
    kind = data[1] - ord("0")
    # As long as before, so that what is found is where it was.
    head = _COMMENT.sub(lambda comment: b" " * len(comment[0]), data[:_LONGEST_HEADER])
    found = (_BITMAP if kind in (1, 4) else _MAP).match(head)
    if found is None:
        raise ValueError("the header of a PNM is cut or damaged")
    width, height, *rest = (int(group) for group in found.groups())
    max_value = rest[0] if rest else 1
    if height * width == 0 or not 0 < max_value < 1 << 16:
        raise ValueError(f"a PNM of {height} x {width} pixels with samples up to {max_value}")
    return PnmHeader(kind, (height, width), max_value, found.end())


def pnm_pixels(data: bytes, header: PnmHeader) -> np.ndarray:
    """uint8 ``(H, W, 3)``; of grey samples above 8 bits the high byte, when they are stretched to 16 bits.

    Raises:
        ValueError: samples are missing, or are none.
    """
    height, width = header.size
    if header.kind in (1, 4):
        grey = np.where(_bits(data, header), np.uint8(0), np.uint8(255))
    else:
        shape = (height, width, 3) if header.kind in (3, 6) else (height, width)
        samples = np.empty(shape, np.uint8)
        flat, filled = samples.reshape(-1), 0
        is_text = header.kind in (2, 3)
        as_8_bit = _table(header)
        for values in _numbers(data, header, flat.size) if is_text else _binary(data, header, flat.size):
            flat[filled : filled + len(values)] = as_8_bit[values]
            filled += len(values)
        if filled < flat.size:
            raise ValueError(f"a PNM with {filled} of {flat.size} samples")
        if samples.ndim == 3:
            return samples
        grey = samples
    return np.repeat(grey[:, :, None], 3, axis=2)


def _table(header: PnmHeader) -> np.ndarray:
    """8 bits of each value that a sample of such a file can have."""
    highest = (1 << 8 if header.max_value < 1 << 8 else 1 << 16) - 1
    is_deep_grey = header.max_value >= 1 << 8 and header.kind in (2, 5)
    out_max = 65535 if is_deep_grey else 255
    stretched = np.minimum(out_max, np.rint(np.arange(highest + 1) / header.max_value * out_max)).astype(np.uint16)
    return (stretched >> 8 if is_deep_grey else stretched).astype(np.uint8)


def _bits(data: bytes, header: PnmHeader) -> np.ndarray:
    """bool ``(H, W)``, true where it is black."""
    height, width = header.size
    if header.kind == 4:
        row = -(-width // 8)
        packed = np.frombuffer(data, np.uint8, offset=header.start)[: height * row]
        if packed.size < height * row:
            raise ValueError(f"a PBM with {packed.size} of {height * row} bytes")
        return np.unpackbits(packed.reshape(height, row), axis=1, count=width).view(np.bool_)
    # Digits need no space between them.
    digits = np.frombuffer(_COMMENT.sub(b"", data[header.start :]).translate(None, _WHITESPACE), np.uint8)
    bits = digits[: height * width] - np.uint8(ord("0"))
    if bits.size < height * width or bits.max() > 1:
        raise ValueError(f"a plain PBM of {height} x {width} pixels needs as many digits 0 or 1")
    return bits.reshape(height, width).view(np.bool_)


def _binary(data: bytes, header: PnmHeader, count: int) -> Iterator[np.ndarray]:
    samples = np.dtype(np.uint8 if header.max_value < 1 << 8 else ">u2")
    there = min(count, (len(data) - header.start) // samples.itemsize)
    values = np.frombuffer(data, samples, there, header.start)
    for start in range(0, there, _AT_ONCE):
        yield values[start : start + _AT_ONCE]


def _numbers(data: bytes, header: PnmHeader, count: int) -> Iterator[np.ndarray]:
    """The first so many numbers of a text, a part at a time."""
    text = data[header.start :]
    if b"#" in text:
        text = _COMMENT.sub(b"", text)
    codes = np.frombuffer(text, np.uint8)
    start = 0
    while start < len(codes) and count > 0:
        stop = min(start + _AT_ONCE, len(codes))
        # Parts end between numbers, or where nothing is left.
        spaces = np.flatnonzero(_is_space(codes[stop : stop + _LONGEST_NUMBER + 1]))
        if spaces.size:
            stop += int(spaces[0])
        elif len(codes) - stop <= _LONGEST_NUMBER:
            stop = len(codes)
        values = _parsed(codes[start:stop], count, header.max_value)
        yield values
        count -= len(values)
        start = stop


def _is_space(codes: np.ndarray) -> np.ndarray:
    return (codes == ord(" ")) | ((codes >= ord("\t")) & (codes <= ord("\r")))


def _parsed(codes: np.ndarray, count: int, max_value: int) -> np.ndarray:
    """The first numbers of a text, at most so many."""
    edges = np.flatnonzero(np.diff(~_is_space(codes), prepend=False, append=False))
    starts, stops = edges[0::2][:count], edges[1::2][:count]
    values = np.zeros(len(starts), np.int64)
    lengths = stops - starts
    longest = int(lengths.max(initial=0))
    if longest > _LONGEST_NUMBER:
        raise ValueError(f"a plain PNM with a number of {longest} characters")
    for place in range(longest):
        has_digit = lengths > place
        digits = codes[np.where(has_digit, stops - 1 - place, 0)] - np.uint8(ord("0"))
        digits[~has_digit] = 0
        if digits.max(initial=0) > 9:
            raise ValueError("a plain PNM with something else than numbers")
        values += digits.astype(np.int64) * 10**place
    if values.max(initial=0) > max_value:
        raise ValueError(f"a plain PNM with samples above its maximum of {max_value}")
    return values

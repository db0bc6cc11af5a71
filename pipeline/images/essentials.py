"""What a decoder needs of a file, and what the file would cost it: found by walking the file's parts.

Readers stumble over parts that have nothing to do with the pixels: a text that inflates to gigabytes, a colour profile
cut short, a checksum of a comment. They are left out before the decoder sees the file. Parts that the pixels depend on
stay as they are, damage included, and so does everything from where the walk loses its way: that is the decoder's to
judge. Netpbm's formats (PBM, PGM, PPM) are plain enough that their samples are read here as well.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_AT_ONCE = 1 << 20  # bytes, or samples
# No file has as many; a walk ends there, within a second or two.
_MOST_PARTS = 1_000_000

_PNG_SIGNATURE_BYTES = 8
_PNG_CHUNK_BYTES = 12  # length, name and checksum around a chunk's body
_PNG_EXIF = b"eXIf"

_SOI_BYTES = 2
_COMMENT = 0xFE
_SOS, _EOI = 0xDA, 0xD9
# Pictures begin and end, and markers of what is within one.
_ENDS_THE_WALK = frozenset({_SOS, *range(0xD0, _SOS)})
# What begins the description of a frame; the others between are tables.
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_SEQUENTIAL = frozenset({0xC0, 0xC1, 0xC9})
EXIF_START = b"Exif\0\0"  # of an APP1 segment
_APP1 = 0xE1
# Of each application segment that counts for pixels or orientation: how it begins, and the bytes that libjpeg wants of
# it; a shorter one is none to libjpeg either.
_NEEDED_SEGMENTS = {0xE0: (b"JFIF\0", 14), _APP1: (EXIF_START, 6), 0xEE: (b"Adobe", 12)}
# What is no marker between segments is passed over by every decoder, as is the marker 0x01, which stands for nothing.
_MARKER = re.compile(rb"\xff+([^\x00\x01\xff])", re.DOTALL)
# A marker behind entropy-coded data, in which 0xFF is followed by zero or by a restart marker.
_NEXT_MARKER = re.compile(rb"\xff+([^\x00\x01\xff\xd0-\xd7])", re.DOTALL)


def png_essentials(data: bytes) -> bytes:
    """A PNG without ancillary chunks, but for a sound ``eXIf``; the same object where there is nothing to leave out.

    The alpha channel is of no use here, so ``tRNS`` goes too. Image data ends at the first chunk of another kind, as
    the specification says: of an animation its still picture is left.
    """
    spans: list[list[int]] = [[0, _PNG_SIGNATURE_BYTES]]  # of what is kept, joined where they meet: chunks can be many
    stop, previous, data_is_over = _PNG_SIGNATURE_BYTES, b"", False
    for name, start, stop in _png_chunks(data):
        data_is_over |= previous == b"IDAT" and name != b"IDAT"
        previous = name
        is_critical = name[:1].isupper()
        if (name == _PNG_EXIF and _is_sound(data, start, stop)) or (
            is_critical and not (name == b"IDAT" and data_is_over)
        ):
            _keep(spans, start, stop)
    _keep(spans, stop, len(data))
    return _joined(data, spans)


def _keep(spans: list[list[int]], start: int, stop: int) -> None:
    if spans[-1][1] == start:
        spans[-1][1] = stop
    else:
        spans.append([start, stop])


def _joined(data: bytes, spans: list[list[int]]) -> bytes:
    return data if spans == [[0, len(data)]] else b"".join([memoryview(data)[start:stop] for start, stop in spans])


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and stop of chunk after chunk, up to the end, or to one that is cut or has no name."""
    start = _PNG_SIGNATURE_BYTES
    for _ in range(_MOST_PARTS):
        if start + _PNG_CHUNK_BYTES > len(data):
            return
        name = data[start + 4 : start + 8]
        stop = start + _PNG_CHUNK_BYTES + int.from_bytes(data[start : start + 4], "big")
        if stop > len(data) or not (name.isascii() and name.isalpha()):
            return
        yield name, start, stop
        if name == b"IEND":
            return
        start = stop


def _is_sound(data: bytes, start: int, stop: int) -> bool:
    return zlib.crc32(data[start + 4 : stop - 4]) == int.from_bytes(data[stop - 4 : stop], "big")


class JpegEssentials(NamedTuple):
    """A JPEG without needless segments.

    Attributes:
        data: the file; the same object where there was nothing to leave out.
        first_scan: where in it the first scan's marker stands, or the end of what could be walked.
        size: (H, W) of the frame; ``None`` where none was found.
        exif: the EXIF segments, without what they begin with.
        in_one_scan: whether the first scan is the whole picture. A second one is none to decoders then.
    """

    data: bytes
    first_scan: int
    size: tuple[int, int] | None
    exif: tuple[bytes, ...]
    in_one_scan: bool


def jpeg_essentials(data: bytes) -> JpegEssentials:
    """A JPEG without comments and application segments, but for those that say how colours and orientation are meant.

    All EXIF segments stay: a broken one may stand before the one that is meant.
    """
    spans, position = [[0, _SOI_BYTES]], _SOI_BYTES  # of what is kept, joined where they meet
    frame, kind, exif = b"", 0, []
    for _ in range(_MOST_PARTS):
        found = _MARKER.search(data, position)
        if found is None or found[1][0] in _ENDS_THE_WALK:
            break
        code, length_at = found[1][0], found.end()
        stop = length_at + int.from_bytes(data[length_at : length_at + 2], "big")
        if not length_at + 2 <= stop <= len(data):
            break
        start = data[length_at + 2 : min(stop, length_at + 16)]
        if _is_needed(code, start):
            _keep(spans, length_at - 2, stop)
        if code in _FRAMES:
            frame, kind = start, code
        elif code == _APP1 and start.startswith(EXIF_START):
            exif.append(data[length_at + 2 + len(EXIF_START) : stop])
        position = stop
    rest = found.end() - 2 if found else len(data)  # without a marker, nothing comes of it
    before = sum(end - start for start, end in spans)
    _keep(spans, rest, len(data))
    # A frame is a precision, height, width and a number of components; a scan begins with the number of its own.
    size = (int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")) if len(frame) >= 6 else None
    first_scan = data[rest + 4 : rest + 5] if data[rest + 1 : rest + 2] == bytes([_SOS]) else b""
    in_one_scan = kind in _SEQUENTIAL and first_scan != b"" and first_scan == frame[5:6]
    return JpegEssentials(_joined(data, spans), before, size, tuple(exif), in_one_scan)


def _is_needed(code: int, body: bytes) -> bool:
    """``body``: at least the first 14 bytes of it, where there are as many."""
    if code != _COMMENT and not 0xE0 <= code <= 0xEF:
        return True
    start, num_bytes = _NEEDED_SEGMENTS.get(code, (b"", len(body) + 1))
    return body.startswith(start) and len(body) >= num_bytes


def has_more_scans(jpeg: JpegEssentials, limit: int) -> bool:
    """Whether a JPEG's picture comes in more than so many scans, each of which passes over all of its pixels."""
    # Nearly always enough: the bytes of a marker are none of entropy-coded data. They may lie by chance in tables
    # between the scans and in what follows the picture, as the films behind some phones' photographs.
    if jpeg.in_one_scan or _count_pairs(jpeg.data, b"\xff\xda", jpeg.first_scan) <= limit:
        return False
    scans, position = 0, jpeg.first_scan
    for _ in range(_MOST_PARTS):
        found = _NEXT_MARKER.search(jpeg.data, position)
        if found is None or found[1][0] == _EOI:
            return False
        scans += found[1][0] == _SOS
        if scans > limit:
            return True
        position = found.end() + int.from_bytes(jpeg.data[found.end() : found.end() + 2], "big")
    return True  # nobody counts that far


def _count_pairs(data: bytes, pair: bytes, start: int) -> int:
    """``data.count(pair, start)`` of two bytes that differ, in an eighth of the time."""
    values, (first, second) = np.frombuffer(data, np.uint8), pair
    found = 0
    for at in range(start, len(data) - 1, _AT_ONCE):
        some = values[at : at + _AT_ONCE + 1]
        found += int(np.count_nonzero((some[:-1] == first) & (some[1:] == second)))
    return found


def webp_size(data: bytes) -> tuple[int, int] | None:
    """(H, W) of a WebP's canvas as its first chunk says; ``None`` where it says nothing of the kind."""
    kind, body = data[12:16], data[20:30]
    if len(body) < 10:
        return None
    if kind == b"VP8X":
        return int.from_bytes(body[7:10], "little") + 1, int.from_bytes(body[4:7], "little") + 1
    if kind == b"VP8 ":
        return int.from_bytes(body[8:10], "little") & 0x3FFF, int.from_bytes(body[6:8], "little") & 0x3FFF
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    return None


_BITMAP = re.compile(rb"P[14]\s+(\d{1,10})\s+(\d{1,10})(?:\s|\Z)")
_MAP = re.compile(rb"P[2356]\s+(\d{1,10})\s+(\d{1,10})\s+(\d{1,10})(?:\s|\Z)")
_PNM_COMMENT = re.compile(rb"#[^\r\n]*")
_LONGEST_HEADER = 1 << 16  # bytes, comments included
_WHITESPACE = b" \t\n\r\v\f"
_LONGEST_NUMBER = 10  # digits, leading zeros included


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
    head = _PNM_COMMENT.sub(lambda comment: b" " * len(comment[0]), data[:_LONGEST_HEADER])
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
    digits = np.frombuffer(_without_comments(data[header.start :]).translate(None, _WHITESPACE), np.uint8)
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


def _without_comments(data: bytes) -> bytes:
    """A plain PBM, PGM or PPM, which is text, without comments, up to the ends of their lines.

    In slices, and without an object for each comment: a file may hold nothing but comments of two bytes.
    """
    if b"#" not in data:
        return data
    kept: list[bytes] = []
    in_comment = False
    for start in range(0, len(data), _AT_ONCE):
        text = np.frombuffer(data, np.uint8, min(_AT_ONCE, len(data) - start), start)
        places = np.arange(1, len(text) + 1, dtype=np.int32)
        is_end = (text == ord("\n")) | (text == ord("\r"))
        last_hash = np.maximum.accumulate(np.where(text == ord("#"), places, 0 if in_comment else -1))
        last_end = np.maximum.accumulate(np.where(is_end, places, -1))
        is_comment = last_hash > last_end
        kept.append(text[~is_comment].tobytes())
        in_comment = bool(is_comment[-1])
    return b"".join(kept)


def _numbers(data: bytes, header: PnmHeader, count: int) -> Iterator[np.ndarray]:
    """The first so many numbers of a text, a part at a time."""
    codes = np.frombuffer(_without_comments(data[header.start :]), np.uint8)
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

"""What a decoder needs of a file, and what the file would cost it: found by walking the file's parts, without decoding.

Readers stumble over parts that have nothing to do with the pixels: a text that inflates to gigabytes, a colour profile
cut short, a checksum of a comment. They are left out before the decoder sees the file. Parts that the pixels depend on
stay as they are, damage included, and so does everything from where the walk loses its way: that is the decoder's to
judge.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

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
# Of each application segment that counts for pixels or orientation: how it begins, and the bytes that libjpeg wants of
# it; a shorter one is none to libjpeg either.
_NEEDED_SEGMENTS = {0xE0: (b"JFIF\0", 14), 0xE1: (b"Exif\0\0", 6), 0xEE: (b"Adobe", 12)}
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
    """

    data: bytes
    first_scan: int


def jpeg_essentials(data: bytes) -> JpegEssentials:
    """A JPEG without comments and application segments, but for those that say how colours and orientation are meant.

    Several EXIF segments stay, as one block may be spread over them.
    """
    spans, position = [[0, _SOI_BYTES]], _SOI_BYTES  # of what is kept, joined where they meet
    for _ in range(_MOST_PARTS):
        found = _MARKER.search(data, position)
        if found is None or found[1][0] in _ENDS_THE_WALK:
            break
        code, length_at = found[1][0], found.end()
        stop = length_at + int.from_bytes(data[length_at : length_at + 2], "big")
        if not length_at + 2 <= stop <= len(data):
            break
        if _is_needed(code, data[length_at + 2 : min(stop, length_at + 16)]):
            _keep(spans, length_at - 2, stop)
        position = stop
    rest = found.end() - 2 if found else len(data)  # without a marker, nothing comes of it
    before = sum(end - start for start, end in spans)
    _keep(spans, rest, len(data))
    return JpegEssentials(_joined(data, spans), before)


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
    if jpeg.data.count(b"\xff\xda", jpeg.first_scan) <= limit:
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

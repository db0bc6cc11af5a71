"""Files whose pixels are sound and the rest is not, and files that cost more than they look. Oracle: OpenCV."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.images import essentials
from pipeline.images.decode import MAX_SCANS, ImageError, decode_image
from pipeline.images.essentials import jpeg_essentials, png_essentials, webp_size

HEIGHT, WIDTH = 37, 54
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
RGB = Image.fromarray(PIXELS)


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def assert_equal_to_opencv(data: bytes) -> None:
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert bgr is not None, "OpenCV refuses it"
    np.testing.assert_array_equal(decode_image(data).pixels, bgr[:, :, ::-1])


def code_of(data: bytes, max_pixels: int = 100_000_000) -> str:
    with pytest.raises(ImageError) as caught:
        decode_image(data, max_pixels=max_pixels)
    return caught.value.code


PNG = encode(RGB, "PNG")
IDAT = PNG.index(b"IDAT") - 4
IEND = len(PNG) - 12
IDAT_BODY = PNG[IDAT + 8 : IEND - 4]
INFLATES_TO_100_MB = zlib.compress(bytes(100_000_000))
# All that the specification and its extensions name, and one that nobody has heard of.
ANCILLARY = b"tEXt zTXt iTXt iCCP pHYs gAMA cHRM sRGB eXIf tIME tRNS sBIT hIST sPLT cICP mDCV cLLI vpAg fdAT".split()
BODIES = {"nothing": b"", "one byte": b"\1", "noise": b"\x9e" * 23, "a method unknown": b"k\0\7\7\7\7"}


def chunk(name: bytes, body: bytes, crc: int | None = None) -> bytes:
    checksum = zlib.crc32(name + body) if crc is None else crc
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum)


def before_pixels(*chunks: bytes) -> bytes:
    return PNG[:IDAT] + b"".join(chunks) + PNG[IDAT:]


def behind_pixels(*chunks: bytes) -> bytes:
    return PNG[:IEND] + b"".join(chunks) + PNG[IEND:]


def exif_block(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


class TestPng:
    @pytest.mark.parametrize("name", ANCILLARY)
    def test_an_ancillary_chunk_costs_no_picture(self, name: bytes) -> None:
        for body in BODIES.values():
            for crc in (None, 7):
                assert_equal_to_opencv(before_pixels(chunk(name, body, crc)))
                assert_equal_to_opencv(behind_pixels(chunk(name, body, crc)))

    @pytest.mark.parametrize(
        "big",
        [
            chunk(b"zTXt", b"k\0\0" + INFLATES_TO_100_MB),
            chunk(b"iTXt", b"k\0\1\0\0\0" + INFLATES_TO_100_MB),
            chunk(b"iCCP", b"n\0\0" + INFLATES_TO_100_MB),
            chunk(b"tEXt", b"k\0" + bytes(900_000)) * 90,
        ],
        ids=["zTXt", "iTXt", "iCCP", "90 tEXt"],
    )
    def test_large_texts_and_profiles_are_passed_over(self, big: bytes) -> None:
        started = time.process_time()
        assert decode_image(before_pixels(big)).pixels.shape == PIXELS.shape
        assert time.process_time() - started < 0.5  # inflating one takes longer
        assert_equal_to_opencv(before_pixels(big))

    def test_orientation_counts_where_its_checksum_holds(self) -> None:
        block = exif_block(6)[6:]
        for data in (before_pixels(chunk(b"eXIf", block)), behind_pixels(chunk(b"eXIf", block))):
            assert decode_image(data).exif_orientation == 6
            assert_equal_to_opencv(data)
        data = before_pixels(chunk(b"eXIf", block, crc=1))
        assert decode_image(data).exif_orientation == 1
        assert_equal_to_opencv(data)

    @pytest.mark.parametrize(
        "damaged",
        [
            PNG[:29] + b"abcd" + PNG[33:],
            PNG[:IDAT] + chunk(b"IDAT", IDAT_BODY[:-4] + b"abcd") + PNG[IEND:],
            PNG[:IDAT] + chunk(b"IDAT", IDAT_BODY[:100]) + chunk(b"tEXt", b"k\0v") + chunk(b"IDAT", IDAT_BODY[100:]),
            before_pixels(chunk(b"ABCD", b"unknown and critical", crc=8)),
            before_pixels(chunk(b"a\0\1d", b"no name")),
            PNG[:IDAT] + struct.pack(">I", 2**31 - 1) + b"tEXt" + PNG[IDAT:],
            PNG[:IEND] + chunk(b"tEXt", b"k\0" + bytes(100))[:-30],
        ],
        ids=["header", "pixels", "pixels in two runs", "critical", "name", "length", "cut behind the pixels"],
    )
    def test_damage_to_what_counts_stays_an_error(self, damaged: bytes) -> None:
        assert cv2.imdecode(np.frombuffer(damaged, np.uint8), cv2.IMREAD_COLOR) is None
        assert code_of(damaged) == "corrupt_image"

    def test_an_animation_shows_its_still_picture(self) -> None:
        frames = [RGB.rotate(90), RGB.rotate(180)]
        assert_equal_to_opencv(encode(RGB, "PNG", save_all=True, append_images=frames))

    def test_what_needs_nothing_left_out_is_not_copied(self) -> None:
        assert png_essentials(PNG) is PNG
        assert png_essentials(before_pixels(chunk(b"tEXt", b"k\0v"))) == PNG

    @given(cut=st.integers(0, 200), flips=st.lists(st.tuples(st.integers(0, 199), st.integers(0, 255)), max_size=4))
    @settings(deadline=None, max_examples=200)
    def test_whatever_the_bytes_something_comes_back(self, cut: int, flips: list[tuple[int, int]]) -> None:
        data = bytearray(before_pixels(chunk(b"tEXt", b"k\0v"), chunk(b"gAMA", bytes(4)))[: 200 - cut])
        for position, value in flips:
            data[position % max(1, len(data)) : position % max(1, len(data)) + 1] = bytes([value])
        assert len(png_essentials(bytes(data))) <= max(8, len(data))


JPEG = encode(RGB, "JPEG")
BEHIND_JFIF = 20  # the start marker and the JFIF segment
FULL_SEGMENTS = {
    0xE0: (b"JFIF\0\1\1\0\0\1\0\1\0\0", b"JFXX\0\x10"),
    0xE1: (exif_block(6), b"http://ns.adobe.com/xap/1.0/\0<x/>"),
    0xE2: (b"ICC_PROFILE\0\1\1abc", b"MPF\0II*\0\x08\0\0\0\0\0", b"FPXR\0"),
    0xEC: (b"Ducky\0\1",),
    0xED: (b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\x10" + bytes(16),),
    0xEE: (b"Adobe\0\x64\0\0\0\0\1", b"Adobe\0\x64\0\0\0\0\0"),
    0xFE: (b"a comment",),
}


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def cut_segments(marker: int) -> Iterator[bytes]:
    """A JPEG with such a segment of every length from nothing to all of its fields, beside JFIF's and without."""
    for body in FULL_SEGMENTS[marker]:
        for length in range(len(body) + 1):
            for begin in (JPEG[:2], JPEG[:BEHIND_JFIF]):
                yield begin + segment(marker, body[:length]) + JPEG[BEHIND_JFIF:]


class TestJpeg:
    @pytest.mark.parametrize("marker", FULL_SEGMENTS)
    def test_a_segment_cut_short_costs_no_picture(self, marker: int) -> None:
        for data in cut_segments(marker):
            assert_equal_to_opencv(data)

    @pytest.mark.parametrize("junk", [b"\xff\xff\xff", b"abc", b"\xff\0", b"\xff\x01"])
    def test_junk_between_segments(self, junk: bytes) -> None:
        comment = segment(0xFE, b"a comment")
        assert_equal_to_opencv(JPEG[:BEHIND_JFIF] + comment + junk + comment + JPEG[BEHIND_JFIF:])

    def test_what_needs_nothing_left_out_is_not_copied(self) -> None:
        assert jpeg_essentials(JPEG).data is JPEG
        assert jpeg_essentials(JPEG[:20] + segment(0xFE, b"\xff\xda") + JPEG[20:]).data == JPEG

    @given(st.binary(max_size=60))
    @settings(deadline=None, max_examples=300)
    def test_whatever_the_bytes_something_comes_back(self, tail: bytes) -> None:
        essentials = jpeg_essentials(b"\xff\xd8" + tail)
        assert len(essentials.data) <= len(tail) + 2
        assert essentials.first_scan >= 0


def jpeg_of_scans(scans: int, side: int = 64) -> bytes:
    """A progressive JPEG that refines the same coefficients again and again."""
    data = encode(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    markers = [i for i in range(len(data)) if data[i : i + 2] in (b"\xff\xda", b"\xff\xd9")]
    *_, last, end = markers
    tables = data.rindex(b"\xff\xc4", 0, last)
    own = len(markers) - 1
    return data[:end] + data[tables:end] * (scans - own) + data[end:]


class TestScans:
    def test_as_many_as_are_allowed(self) -> None:
        data = jpeg_of_scans(MAX_SCANS)
        assert data.count(b"\xff\xda") == MAX_SCANS
        assert_equal_to_opencv(data)

    def test_one_more(self) -> None:
        assert code_of(jpeg_of_scans(MAX_SCANS + 1)) == "too_many_scans"

    def test_a_bomb_is_refused_at_once(self) -> None:
        bomb = jpeg_of_scans(20_000, side=5000)
        started = time.process_time()
        assert code_of(bomb) == "too_many_scans"
        assert time.process_time() - started < 0.5

    def test_a_component_a_scan(self) -> None:
        data = encode(Image.new("RGB", (48, 32), (90, 20, 200)), "JPEG")
        frame = data.index(b"\xff\xc0")
        scan = data.index(b"\xff\xda")
        assert jpeg_essentials(data).in_one_scan
        assert jpeg_essentials(data).size == (32, 48)
        one_of_three = b"\xff\xda\0\x08\x01\x01\0\0\x3f\0"
        again = data[:scan] + one_of_three * (MAX_SCANS + 1) + data[scan:]
        assert not jpeg_essentials(again).in_one_scan
        assert code_of(again) == "too_many_scans"
        # What libjpeg passes over, and the walk does not, is no scan, whatever stands in it.
        lost = data[:scan] + b"\xff\xdc\0\0\x03" + again[scan:]
        assert not jpeg_essentials(lost).in_one_scan
        assert code_of(lost) == "too_many_scans"
        assert jpeg_essentials(data[:frame] + data[scan:]).size is None

    def test_what_follows_the_picture_does_not_count(self) -> None:
        film = b"\xff\xda\0\x08" * 1000
        np.testing.assert_array_equal(decode_image(JPEG + film).pixels, decode_image(JPEG).pixels)

    def test_tables_between_the_scans_do_not_count(self) -> None:
        data = jpeg_of_scans(12)
        end = data.rindex(b"\xff\xd9")
        noted = data[:end] + segment(0xFE, b"\xff\xda" * 5000) + data[end:]
        np.testing.assert_array_equal(decode_image(noted).pixels, decode_image(data).pixels)

    @given(st.lists(st.sampled_from([b"\xff", b"\xda", b"\0"]), max_size=40).map(b"".join), st.integers(0, 50))
    def test_pairs_are_counted_as_bytes_count_them(self, data: bytes, start: int) -> None:
        with mock.patch.object(essentials, "_AT_ONCE", 7):
            assert essentials._count_pairs(data, b"\xff\xda", start) == data.count(b"\xff\xda", start)


class TestParts:
    """What Pillow passes over in Python, a byte or a part at a time."""

    def test_junk_before_a_marker_that_never_comes(self) -> None:
        started = time.process_time()
        assert code_of(JPEG[:BEHIND_JFIF] + bytes(50_000_000)) == "corrupt_image"
        assert time.process_time() - started < 2  # Pillow: 5 s and more

    @pytest.mark.parametrize("junk", [b"x" * 3000, b"!\xfe\x01a\0" * 1000], ids=["junk", "extensions"])
    def test_more_parts_than_are_read(self, junk: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        gif = encode(RGB, "GIF")
        picture = gif.index(b",", 13 + 768)
        many = gif[:picture] + junk + gif[picture:]
        assert decode_image(many).pixels.shape == PIXELS.shape
        monkeypatch.setattr("pipeline.images.decode._MAX_READS", 1000)
        assert decode_image(gif).pixels.shape == PIXELS.shape
        assert code_of(many) == "corrupt_image"

    @pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
    def test_comments_that_go_over_the_ends_of_slices(self, monkeypatch: pytest.MonkeyPatch, end: bytes) -> None:
        data = end.join([b"P2 #a#", b"3 2", b"#", b"#bb", b"255# 1", b"1 2 3", b"4 5#6", b"6 #"])
        for size in range(1, 20):
            monkeypatch.setattr(essentials, "_AT_ONCE", size)
            without = essentials._without_comments(data)
            assert without.split() == [b"P2", b"3", b"2", b"255", b"1", b"2", b"3", b"4", b"5", b"6"]

    def test_a_file_of_comments_takes_no_memory_for_each(self) -> None:
        data = b"P2\n2 1\n255\n" + b"#\n" * 2_000_000 + b"1 2\n"
        tracemalloc.start()
        essentials._without_comments(data)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * len(data) + 32 * (1 << 20)


class TestMemory:
    @pytest.mark.parametrize("options", [{}, {"lossless": True}, {"lossless": True, "exif": exif_block(1)}])
    def test_the_size_of_a_webp_is_known_before_it_is_opened(self, options: dict[str, Any]) -> None:
        assert webp_size(encode(RGB, "WEBP", **options)) == (HEIGHT, WIDTH)

    def test_a_webp_canvas_above_the_limit_is_never_opened(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = encode(RGB, "WEBP")
        monkeypatch.setattr("PIL.WebPImagePlugin._webp", None)
        assert code_of(data, max_pixels=HEIGHT * WIDTH - 1) == "too_many_pixels"

    def test_tiles_of_a_tiff_count_as_pixels(self) -> None:
        def tiled(side: int) -> bytes:
            tile = zlib.compress(bytes(side * side))
            tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 0, 325: len(tile)}
            tags[324] = 8 + 2 + 12 * len(tags) + 4
            entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
            return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + tile

        assert decode_image(tiled(256), max_pixels=256 * 256).pixels.shape == (16, 16, 3)
        assert code_of(tiled(272), max_pixels=256 * 256) == "too_many_pixels"


DAMAGED_TIFFS = """
import io, sys, logging
import numpy as np
from PIL import Image
from pipeline.images.decode import ImageError, decode_image
rng = np.random.default_rng(0)
picture, failed = Image.fromarray(rng.integers(0, 256, (40, 50), np.uint8)), 0
for mode, compression in (("L", "tiff_lzw"), ("1", "group4"), ("1", "group3"), ("L", "tiff_adobe_deflate")):
    buffer = io.BytesIO()
    picture.convert(mode).save(buffer, "TIFF", compression=compression)
    for _ in range(100):
        data = bytearray(buffer.getvalue())
        for position in rng.integers(0, len(data), 8):
            data[position] = rng.integers(256)
        try:
            decode_image(bytes(data), max_pixels=100_000)
        except ImageError:
            failed += 1
print(failed)
logging.getLogger("pipeline").error("ours")
"""


def test_decoders_say_nothing_on_stderr() -> None:
    """In a process of its own: libtiff writes to the descriptor itself, and the tests have filters of their own."""
    run = subprocess.run([sys.executable, "-c", DAMAGED_TIFFS], capture_output=True, check=True, text=True)
    assert int(run.stdout) > 50
    assert run.stderr == "ours\n"

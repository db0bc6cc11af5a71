"""PBM, PGM and PPM of every kind and maximum. Oracle: Pillow, whose own decoders are slow and right."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL.PpmImagePlugin import PpmImageFile

import pipeline.images.essentials as pnm_module
from pipeline.images.decode import ImageError, decode_image

GAPS = st.sampled_from([b" ", b"\n", b"\t", b"   ", b"\r\n", b" # a comment\n", b"\n#\r# 7 7\n"])
MAX_VALUES = st.sampled_from([1, 2, 7, 100, 254, 255, 256, 300, 4095, 65534, 65535]) | st.integers(1, 65535)


def by_pillow(data: bytes) -> np.ndarray | None:
    try:
        image = PpmImageFile(io.BytesIO(data), "")
        image.load()
    except Exception:
        return None
    grey_or_rgb = np.asarray(image) >> 8 if image.mode == "I" else np.asarray(image.convert("RGB"))
    return np.broadcast_to(grey_or_rgb.reshape(*grey_or_rgb.shape[:2], -1), (*grey_or_rgb.shape[:2], 3))


def assert_as_pillow(data: bytes) -> None:
    expected = by_pillow(data)
    if expected is None:
        assert code_of(data) == "corrupt_image"
    else:
        np.testing.assert_array_equal(decode_image(data).pixels, expected)


def code_of(data: bytes, max_pixels: int = 100_000_000) -> str:
    with pytest.raises(ImageError) as caught:
        decode_image(data, max_pixels=max_pixels)
    return caught.value.code


@st.composite
def files(draw: st.DrawFn) -> bytes:
    kind, width, height, max_value = (
        draw(st.integers(1, 6)),
        draw(st.integers(1, 9)),
        draw(st.integers(1, 5)),
        draw(MAX_VALUES),
    )
    head = b"P%d\n%d" % (kind, width) + draw(GAPS) + b"%d" % height
    head += b"" if kind in (1, 4) else draw(GAPS) + b"%d" % max_value
    count = width * height * (3 if kind in (3, 6) else 1)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    if kind == 1:
        return head + b"\n" + draw(st.sampled_from([b"", b" "])).join(b"%d" % bit for bit in rng.integers(0, 2, count))
    if kind in (2, 3):
        digits, gap = draw(st.integers(1, 6)), draw(GAPS)
        return head + b"\n" + b"".join(b"%0*d" % (digits, v) + gap for v in rng.integers(0, max_value + 1, count))
    return head + b"\n" + rng.bytes(count * 2)  # above the maximum, too: it counts as the maximum


@given(files())
@settings(deadline=None, max_examples=300)
def test_as_pillow(data: bytes) -> None:
    assert by_pillow(data) is not None
    assert_as_pillow(data)


@given(files(), st.data())
@settings(deadline=None, max_examples=200)
def test_cut_anywhere(data: bytes, draw: st.DataObject) -> None:
    assert_as_pillow(data[: draw.draw(st.integers(3, len(data)))])


@given(files(), st.integers(11, 40))
@settings(deadline=None, max_examples=100)
def test_parts_change_nothing(data: bytes, part: int) -> None:
    whole = decode_image(data).pixels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pnm_module, "_AT_ONCE", part)
        np.testing.assert_array_equal(decode_image(data).pixels, whole)


@pytest.mark.parametrize(
    "data",
    [
        b"P2 2 1 255\n1 256",
        b"P2 2 1 255\n1 -1",
        b"P2 2 1 255\n1 x",
        b"P2 2 1 255\n1 00000000001",
        b"P2 2 1 255\n" + b"1" * 5_000_000,
        b"P2 2 1 255\n1",
        b"P1 2 1\n12",
        b"P1 2 1\n1",
        b"P4 9 1\n1",
        b"P5 2 1 256\n123",
        b"P6 1 1 0\n123",
        b"P6 1 1 65536\n123",
        b"P6 0 1 255\n",
        b"P6 1\n",
        b"P3",
    ],
)
def test_what_is_none(data: bytes) -> None:
    assert by_pillow(data) is None
    assert code_of(data) == "corrupt_image"


def test_the_size_is_judged_before_the_samples() -> None:
    assert code_of(b"P2 1001 1000 255\n", max_pixels=1_000_000) == "too_many_pixels"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"P2\n2 1\n255\n" + b"#\n" * 1_000_000 + b"1 2\n", None),
        (b"P5\n" + b"#\n" * 1_000_000 + b"2 1\n255\n12", "corrupt_image"),
        (b"P6\n" + b" " * 20_000_000 + b"2 1\n255\n123456", "corrupt_image"),
        (b"P2 2000 2000 65535\n" + b"65535 " * 2000**2, None),
        (b"P6 2000 2000 254\n" + bytes(2000**2 * 3), None),
    ],
    ids=["comments", "comments in the header", "blanks in the header", "plain", "odd maximum"],
)
def test_takes_no_more_than_its_length(data: bytes, code: str | None) -> None:
    started = time.process_time()
    if code is None:
        decode_image(data)
    else:
        assert code_of(data) == code
    assert time.process_time() - started < 1.5  # Pillow: 2 s and more

"""Oracle: OpenCV (the reader behind the published numbers). Damaged bytes: nothing but ImageError."""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps, PngImagePlugin

from pipeline.images.decode import IMAGE_SUFFIXES, ImageError, decode_image, picture_size, pillow_pixels

HEIGHT, WIDTH = 37, 54


def photo(height: int = HEIGHT, width: int = WIDTH, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth shapes plus noise: lossy codecs are exercised without turning everything to mush."""
    y, x = np.mgrid[0:height, 0:width]
    phases = np.arange(channels) * 1.7
    waves = 110 + 90 * np.sin(x[..., None] / 7 + phases) * np.cos(y[..., None] / 5 - phases)
    noise = np.random.default_rng(seed).normal(0, 12, waves.shape)
    return np.clip(waves + noise, 0, 255).astype(np.uint8)


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def cv2_rgb(data: bytes) -> np.ndarray:
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert bgr is not None
    return bgr[:, :, ::-1]


def cv2_encoded(extension: str, array: np.ndarray) -> bytes:
    return cv2.imencode(extension, array)[1].tobytes()


def exif_block(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


RGB = Image.fromarray(photo())
RGBA = Image.fromarray(np.dstack([photo(), photo(channels=1, seed=1)[..., 0] // 128 * 255]))
PALETTE = RGB.quantize(64)
GREY16 = (photo(channels=1).astype(np.uint16)[..., 0] << 8) + photo(channels=1, seed=3)[..., 0]
RGB16 = (photo().astype(np.uint16) << 8) + photo(seed=4)

EQUAL_TO_CV2 = {
    "jpeg": encode(RGB, "JPEG", quality=85),
    "jpeg 4:4:4": encode(RGB, "JPEG", quality=95, subsampling=0),
    "jpeg progressive": encode(RGB, "JPEG", progressive=True),
    "jpeg grey": encode(RGB.convert("L"), "JPEG"),
    "jpeg one pixel": encode(RGB.crop((0, 0, 1, 1)), "JPEG"),
    "jpeg multi-picture (MPO)": encode(RGB, "MPO", save_all=True, append_images=[RGB.rotate(90)]),
    "png": encode(RGB, "PNG"),
    "png grey": encode(RGB.convert("L"), "PNG"),
    "png 1 bit": encode(RGB.convert("1"), "PNG"),
    "png palette": encode(PALETTE, "PNG"),
    "png palette 4 bit": encode(RGB.quantize(16), "PNG", bits=4),
    "png palette, one transparent": encode(PALETTE, "PNG", transparency=3),
    "png palette, alpha each": encode(PALETTE, "PNG", transparency=bytes(range(64))),
    "png grey, one transparent": encode(RGB.convert("L"), "PNG", transparency=100),
    "png rgb, one transparent": encode(RGB, "PNG", transparency=tuple(photo()[0, 0].tolist())),
    "png rgba": encode(RGBA, "PNG"),
    "png grey alpha": encode(RGBA.convert("LA"), "PNG"),
    "png grey 16 bit": cv2_encoded(".png", GREY16),
    "png rgb 16 bit": cv2_encoded(".png", RGB16),
    "png rgba 16 bit": cv2_encoded(".png", np.dstack([RGB16, GREY16])),
    "webp": encode(RGB, "WEBP"),
    "webp lossless": encode(RGB, "WEBP", lossless=True),
    "webp rgba": encode(RGBA, "WEBP"),
    "webp rgba, colour under alpha": encode(RGBA, "WEBP", lossless=True, exact=True),
    "webp animated": encode(RGB, "WEBP", save_all=True, append_images=[RGB.rotate(90)], lossless=True),
    "bmp": encode(RGB, "BMP"),
    "bmp palette": encode(PALETTE, "BMP"),
    "bmp grey": encode(RGB.convert("L"), "BMP"),
    "bmp rgba": encode(RGBA, "BMP"),
    "tiff": encode(RGB, "TIFF"),
    "tiff lzw": encode(RGB, "TIFF", compression="tiff_lzw"),
    "tiff grey": encode(RGB.convert("L"), "TIFF"),
    "tiff 1 bit": encode(RGB.convert("1"), "TIFF", compression="group4"),
    "tiff palette": encode(PALETTE, "TIFF"),
    "tiff cmyk": encode(RGB.convert("CMYK"), "TIFF"),
    "tiff grey 16 bit": cv2_encoded(".tiff", GREY16),
    "tiff grey 16 bit, white is zero": encode(Image.fromarray(GREY16), "TIFF", tiffinfo={262: 0}),
    "tiff two pages": encode(RGB, "TIFF", save_all=True, append_images=[RGB.rotate(90)]),
    "gif": encode(PALETTE, "GIF"),
    "gif animated": encode(PALETTE, "GIF", save_all=True, append_images=[PALETTE.rotate(90)]),
    "gif grey": encode(RGB.convert("L"), "GIF"),
    "ppm": encode(RGB, "PPM"),
    "pgm": encode(RGB.convert("L"), "PPM"),
    "pbm": encode(RGB.convert("1"), "PPM"),
    "pgm 16 bit": cv2_encoded(".pgm", GREY16),
}
WITHIN_ONE_OF_CV2 = {
    "jpeg cmyk": encode(RGB.convert("CMYK"), "JPEG", quality=95),
    "tiff rgb 16 bit": cv2_encoded(".tiff", RGB16),
    "ppm rgb 16 bit": cv2_encoded(".ppm", RGB16),
}


# Formats of which no decoder is here; their files are listed, so that they are failed rows and not left out.
WITHOUT_DECODER = {".heic", ".heif", ".avif", ".jp2", ".jxl"}
# Of those Pillow does not know .jif, and writes a .dib as Windows has it in memory; files of that name are BMP.
WRITTEN_AS = {".jif": "JPEG", ".dib": "BMP"}


@pytest.mark.parametrize("suffix", sorted({*IMAGE_SUFFIXES} - WITHOUT_DECODER))
def test_files_of_every_suffix_are_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture{suffix}"
    RGB.save(path, WRITTEN_AS.get(suffix))
    assert decode_image(path.read_bytes()).stored_size == (RGB.height, RGB.width)


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000"])
def test_formats_without_decoder_are_named(kind: str) -> None:
    with pytest.raises(ImageError, match="is not among the formats that are read") as refused:
        decode_image(encode(RGB, kind))
    assert refused.value.code == "unsupported_image"


@pytest.mark.parametrize("data", EQUAL_TO_CV2.values(), ids=EQUAL_TO_CV2.keys())
def test_pixels_equal_opencv(data: bytes) -> None:
    decoded = decode_image(data)
    np.testing.assert_array_equal(decoded.pixels, cv2_rgb(data))
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.flags.c_contiguous
    assert decoded.pixels.flags.writeable
    assert decoded.exif_orientation == 1
    assert decoded.stored_size == decoded.pixels.shape[:2]


@pytest.mark.parametrize("data", WITHIN_ONE_OF_CV2.values(), ids=WITHIN_ONE_OF_CV2.keys())
def test_pixels_within_one_of_opencv(data: bytes) -> None:
    difference = decode_image(data).pixels.astype(int) - cv2_rgb(data)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("data", [*EQUAL_TO_CV2.values(), *WITHIN_ONE_OF_CV2.values()])
def test_the_header_tells_the_size(data: bytes) -> None:
    assert picture_size(data) == decode_image(data).pixels.shape[:2]
    assert picture_size(data, apply_exif=False) == decode_image(data, apply_exif=False).pixels.shape[:2]
    assert picture_size(data, max_pixels=0) in (None, decode_image(data).pixels.shape[:2])


class TestOpenInPillow:
    @pytest.mark.parametrize("name", sorted({*EQUAL_TO_CV2} - {"pgm 16 bit"}))
    def test_pixels_are_those_of_the_file_and_the_picture_stays_as_it_is(self, name: str) -> None:
        image = Image.open(io.BytesIO(EQUAL_TO_CV2[name]))
        image.load()
        mode, info, before = image.mode, dict(image.info), image.tobytes()
        np.testing.assert_array_equal(pillow_pixels(image), cv2_rgb(EQUAL_TO_CV2[name]))
        assert (image.mode, image.info, image.tobytes()) == (mode, info, before)

    def test_pictures_made_in_memory(self) -> None:
        for image in (RGB, RGBA, RGB.convert("L")):
            np.testing.assert_array_equal(pillow_pixels(image), np.asarray(image.convert("RGB")))
        np.testing.assert_array_equal(pillow_pixels(Image.fromarray(GREY16))[..., 1], GREY16 >> 8)

    @pytest.mark.parametrize(
        ("image", "code"),
        [
            pytest.param(Image.new("F", (4, 4)), "unsupported_image", id="floats"),
            pytest.param(Image.open(io.BytesIO(EQUAL_TO_CV2["pgm 16 bit"])), "unsupported_image", id="32 bits"),
            pytest.param(Image.new("RGB", (0, 4)), "not_an_image", id="no pixels"),
            pytest.param(Image.new("1", (101, 100)), "too_many_pixels", id="large"),
            pytest.param(Image.open(io.BytesIO(EQUAL_TO_CV2["jpeg"][:900])), "corrupt_image", id="cut off"),
        ],
    )
    def test_what_gives_no_pixels(self, image: Image.Image, code: str) -> None:
        with pytest.raises(ImageError) as refused:
            pillow_pixels(image, max_pixels=10_000)
        assert refused.value.code == code


def test_ycck_jpeg() -> None:
    # Pillow writes CMYK as it is; the Adobe marker's transform flag 2 declares the same numbers to be YCCK.
    data = bytearray(WITHIN_ONE_OF_CV2["jpeg cmyk"])
    data[data.index(b"Adobe") + 11] = 2
    difference = decode_image(bytes(data)).pixels.astype(int) - cv2_rgb(bytes(data))
    assert np.abs(difference).max() <= 1


def test_transparent_colour_is_kept_as_stored() -> None:
    # OpenCV paints it with the background in GIF and premultiplies in TIFF; dropping alpha means neither.
    gif = encode(PALETTE, "GIF", transparency=3)
    np.testing.assert_array_equal(decode_image(gif).pixels, np.asarray(PALETTE.convert("RGB")))
    tiff = encode(RGBA, "TIFF")
    np.testing.assert_array_equal(decode_image(tiff).pixels, photo())


def test_twelve_bit_tiff_grey() -> None:
    samples = np.array([[0, 0xFFF, 0x800, 0x123]], dtype=np.uint16)
    packed = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in samples.reshape(-1, 2).tolist())
    tags = [
        (256, 4),
        (257, 1),
        (258, 12),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, 1),
        (279, len(packed)),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    data = b"II*\0" + struct.pack("<I", 8 + len(packed))
    data += packed + struct.pack("<H", len(tags)) + entries + bytes(4)
    np.testing.assert_array_equal(decode_image(data).pixels[..., 0], [[0, 0xFF, 0x80, 0x12]])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "TIFF lzw"])
class TestOrientation:
    def data(self, format: str, orientation: int) -> bytes:
        if format.startswith("TIFF"):
            compression = {"compression": "tiff_lzw"} if "lzw" in format else {}
            return encode(RGB, "TIFF", tiffinfo={0x0112: orientation}, **compression)
        return encode(RGB, format, exif=exif_block(orientation))

    def test_applied_as_opencv_does(self, format: str, orientation: int) -> None:
        data = self.data(format, orientation)
        decoded = decode_image(data)
        np.testing.assert_array_equal(decoded.pixels, cv2_rgb(data))
        assert decoded.exif_orientation == orientation
        assert decoded.stored_size == (HEIGHT, WIDTH)
        assert decoded.pixels.shape[:2] == ((WIDTH, HEIGHT) if orientation >= 5 else (HEIGHT, WIDTH))
        assert decoded.pixels.flags.c_contiguous

    @pytest.mark.parametrize("apply_exif", [True, False])
    def test_told_by_the_header(self, format: str, orientation: int, apply_exif: bool) -> None:
        data = self.data(format, orientation)
        expected = decode_image(data, apply_exif=apply_exif).pixels.shape[:2]
        assert picture_size(data, apply_exif=apply_exif) == expected

    def test_applied_to_pictures_open_in_pillow(self, format: str, orientation: int) -> None:
        data = self.data(format, orientation)
        image = Image.open(io.BytesIO(data))
        for _ in range(2):  # not loaded yet, and loaded
            np.testing.assert_array_equal(pillow_pixels(image), cv2_rgb(data))
        np.testing.assert_array_equal(pillow_pixels(ImageOps.exif_transpose(image)), cv2_rgb(data))

    def test_switched_off(self, format: str, orientation: int) -> None:
        decoded = decode_image(self.data(format, orientation), apply_exif=False)
        upright = decode_image(self.data(format, 1))
        np.testing.assert_array_equal(decoded.pixels, upright.pixels)
        assert decoded.exif_orientation == orientation
        assert decoded.stored_size == (HEIGHT, WIDTH)


def test_sixteen_bit_tiff_is_turned() -> None:
    data = encode(Image.fromarray(GREY16), "TIFF", tiffinfo={0x0112: 6})
    np.testing.assert_array_equal(decode_image(data).pixels, cv2_rgb(data))
    stored = decode_image(data, apply_exif=False).pixels[..., 0]
    np.testing.assert_array_equal(stored, GREY16 >> 8)


def test_xmp_orientation_is_ignored() -> None:
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    for data in (encode(RGB, "TIFF", tiffinfo={700: xmp}), encode(RGB, "JPEG", xmp=xmp)):
        decoded = decode_image(data)
        assert decoded.exif_orientation == 1
        np.testing.assert_array_equal(decoded.pixels, cv2_rgb(data))


@pytest.mark.parametrize("orientation", [0, 9, 77, 65535])
def test_orientation_out_of_range_counts_as_upright(orientation: int) -> None:
    decoded = decode_image(encode(RGB, "JPEG", exif=exif_block(orientation)))
    assert decoded.exif_orientation == 1
    assert decoded.pixels.shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_costs_no_picture(format: str) -> None:
    rng = np.random.default_rng(5)
    good = exif_block(6)
    blocks = [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", bytes(200), good[:11], good + good]
    for _ in range(150):
        block = bytearray(good)
        for position in rng.integers(6, len(block), 3):
            block[position] = rng.integers(256)
        blocks.append(bytes(block))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for block in blocks:
            decoded = decode_image(encode(RGB, format, exif=block))
            assert decoded.exif_orientation in range(1, 9)
            assert decoded.stored_size == (HEIGHT, WIDTH)


def tiff_block(*entries: tuple[int, int, int], order: str = ">", magic: int = 42) -> bytes:
    """An EXIF block, as of entries with tag, type and value."""
    packed = b"".join(struct.pack(f"{order}HHIHH", tag, kind, 1, value, 0) for tag, kind, value in entries)
    header = {">": b"MM", "<": b"II"}[order] + struct.pack(f"{order}HI", magic, 8)
    return b"Exif\0\0" + header + struct.pack(f"{order}H", len(entries)) + packed + bytes(4)


TURNED, UPRIGHT = tiff_block((0x0112, 3, 8)), tiff_block((0x0112, 3, 1))
XMP = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta tiff:Orientation="6"/>'


@pytest.mark.parametrize(
    "segments",
    [
        pytest.param([b"Exif\0\0l\xc2", TURNED], id="behind one that is broken"),
        pytest.param([b"Exif\0\0", TURNED], id="behind an empty one"),
        pytest.param([b"Exif\0\0MM\0*\0\0\xff\xff", TURNED], id="behind one that points nowhere"),
        pytest.param([tiff_block(), TURNED], id="behind one without it"),
        pytest.param([XMP, TURNED], id="behind XMP"),
        pytest.param([TURNED, b"Exif\0\0l\xc2"], id="before one that is broken"),
        pytest.param([TURNED, UPRIGHT], id="the first counts"),
        pytest.param([UPRIGHT, TURNED], id="the first counts, upright"),
        pytest.param([tiff_block((0x0112, 3, 9)), TURNED], id="the first counts, out of range"),
        pytest.param([TURNED[:20], b"Exif\0\0" + TURNED[20:]], id="spread over two"),
        pytest.param([TURNED[:-6]], id="cut behind its value"),
        pytest.param([TURNED[:-7]], id="cut in its value"),
        pytest.param([tiff_block((0x0112, 3, 8), magic=43)], id="no TIFF"),
        pytest.param([tiff_block((0x0112, 3, 1), (0x0112, 3, 8))], id="twice"),
        *(
            pytest.param([tiff_block((0x0112, kind, 8), order=order)], id=f"type {kind}{order}")
            for kind in (0, 1, 3, 4)
            for order in "<>"
        ),
    ],
)
def test_exif_segments_of_a_jpeg_count_as_for_opencv(segments: list[bytes]) -> None:
    jpeg = encode(RGB, "JPEG")
    packed = b"".join(b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body for body in segments)
    data = jpeg[:2] + packed + jpeg[2:]
    np.testing.assert_array_equal(decode_image(data).pixels, cv2_rgb(data))


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


CORRUPT = "corrupt_image"
BAD_BYTES = {
    "no bytes": (b"", "empty_object"),
    "html": (b"<html><body>404</body></html>", "not_an_image"),
    "zeros": (bytes(1000), "not_an_image"),
    "riff that is sound": (b"RIFF\x24\0\0\0WAVEfmt ", "not_an_image"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported_image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unsupported_image"),
    "avif": (b"\0\0\0\x20ftypavif" + bytes(20), "unsupported_image"),
    "ico": (encode(RGB, "ICO"), "unsupported_image"),
    "float tiff": (encode(Image.fromarray(photo()[..., 0].astype(np.float32)), "TIFF"), "unsupported_image"),
    "32-bit tiff": (encode(Image.fromarray(photo()[..., 0].astype(np.int32)), "TIFF"), "unsupported_image"),
    "lab tiff": (encode(Image.frombytes("LAB", (4, 4), bytes(48)), "TIFF"), "unsupported_image"),
    "jpeg, 2 bytes missing": (EQUAL_TO_CV2["jpeg"][:-2], CORRUPT),
    "jpeg, half": (EQUAL_TO_CV2["jpeg"][: len(EQUAL_TO_CV2["jpeg"]) // 2], CORRUPT),
    "jpeg, magic only": (b"\xff\xd8\xff", CORRUPT),
    "png, half": (EQUAL_TO_CV2["png"][: len(EQUAL_TO_CV2["png"]) // 2], CORRUPT),
    "png, pixels missing": (png_header(100, 100), CORRUPT),
    "webp, half": (EQUAL_TO_CV2["webp"][: len(EQUAL_TO_CV2["webp"]) // 2], CORRUPT),
    "tiff, half": (EQUAL_TO_CV2["tiff"][: len(EQUAL_TO_CV2["tiff"]) // 2], CORRUPT),
    "gif, magic only": (b"GIF89a", CORRUPT),
    "bmp, half": (EQUAL_TO_CV2["bmp"][: len(EQUAL_TO_CV2["bmp"]) // 2], CORRUPT),
    "ppm, half": (EQUAL_TO_CV2["ppm"][: len(EQUAL_TO_CV2["ppm"]) // 2], CORRUPT),
    "png of 3.6 gigapixels": (png_header(60_000, 60_000), "too_many_pixels"),
    "webp canvas of 200 megapixels": (
        b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + (19_999).to_bytes(3, "little") + (9_999).to_bytes(3, "little"),
        "too_many_pixels",
    ),
}


@pytest.mark.parametrize(("data", "code"), BAD_BYTES.values(), ids=BAD_BYTES.keys())
def test_bad_bytes_have_a_code(data: bytes, code: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(data)
    assert caught.value.code == code
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert (again.code, str(again)) == (code, str(caught.value))


class TestPixelLimit:
    def test_exact_bound(self) -> None:
        for name in ("jpeg", "png", "webp", "bmp", "tiff", "gif", "ppm"):
            assert decode_image(EQUAL_TO_CV2[name], max_pixels=HEIGHT * WIDTH).pixels.size
            with pytest.raises(ImageError) as caught:
                decode_image(EQUAL_TO_CV2[name], max_pixels=HEIGHT * WIDTH - 1)
            assert caught.value.code == "too_many_pixels"

    def test_bomb_is_refused_before_its_pixels_are_read(self) -> None:
        # In a process of its own, with less memory than the pixels need.
        script = (
            "import resource, sys; from pipeline.images.decode import decode_image, ImageError\n"
            "data = sys.stdin.buffer.read()\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "try: decode_image(data)\n"
            "except ImageError as error: print(error.code)\n"
            "assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000\n"
        )
        bomb = encode(Image.new("L", (12_000, 12_000)), "PNG")
        run = subprocess.run([sys.executable, "-c", script], input=bomb, capture_output=True, check=True)
        assert run.stdout.strip() == b"too_many_pixels"

    def test_pillows_own_limit_neither_acts_nor_changes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for limit in (None, HEIGHT * WIDTH - 1, 100, 10_000_000_000):
                monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
                for name in ("jpeg", "png", "bmp", "ppm"):
                    np.testing.assert_array_equal(decode_image(EQUAL_TO_CV2[name]).pixels, cv2_rgb(EQUAL_TO_CV2[name]))
                assert limit == Image.MAX_IMAGE_PIXELS

    def test_pillows_limit_inside_a_plugin_has_our_code(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(ImageError) as caught:
            decode_image(EQUAL_TO_CV2["webp"])
        assert caught.value.code == "too_many_pixels"


def test_exotic_plugins_never_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object) -> None:
        raise AssertionError("Pillow looked through its plugins")

    monkeypatch.setattr(Image, "open", explode)
    monkeypatch.setattr(Image, "init", explode)
    monkeypatch.setattr(Image, "preinit", explode)
    assert decode_image(EQUAL_TO_CV2["jpeg multi-picture (MPO)"]).pixels.shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("error", [MemoryError(), RecursionError(), KeyError("x"), zlib.error("x")])
def test_any_exception_becomes_an_image_error(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(_: ImageFile.ImageFile) -> None:
        raise error

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(ImageError) as caught:
        decode_image(EQUAL_TO_CV2["png"])
    assert caught.value.code == "corrupt_image"


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip some bytes, cut the end, drop or double a stretch, or overwrite with noise."""
    out = bytearray(data)
    kind = rng.integers(5)
    start, stop = sorted(rng.integers(0, len(data), 2).tolist())
    if kind == 0:
        for position in rng.integers(0, len(out), rng.integers(1, 12)):
            out[position] = rng.integers(256)
    elif kind == 1:  # headers are where the parsers live
        for position in rng.integers(0, min(len(out), 80), rng.integers(1, 6)):
            out[position] = rng.integers(256)
    elif kind == 2:
        del out[start:]
    elif kind == 3:
        out[start:stop] = b"" if rng.integers(2) else bytes(out[start:stop]) * 2
    else:
        out[start:stop] = rng.bytes(stop - start)
    return bytes(out)


CODES = {"", "empty_object", "not_an_image", CORRUPT, "too_many_pixels", "unsupported_image"}
FUZZED = (
    "jpeg",
    "jpeg progressive",
    "png",
    "png palette, alpha each",
    "png grey 16 bit",
    "webp",
    "webp lossless",
    "webp animated",
    "bmp",
    "bmp palette",
    "tiff",
    "tiff lzw",
    "tiff 1 bit",
    "tiff grey 16 bit",
    "gif",
    "gif animated",
    "ppm",
    "pgm 16 bit",
)


@pytest.mark.parametrize("name", FUZZED)
@pytest.mark.filterwarnings("ignore")
def test_damage_raises_only_image_error(name: str) -> None:
    rng = np.random.default_rng(sum(name.encode()))
    for _ in range(400):
        data = damaged(EQUAL_TO_CV2[name], rng)
        code, pixels = "", np.zeros((1, 1, 3), np.uint8)
        try:
            pixels = decode_image(data, max_pixels=1_000_000).pixels
        except ImageError as error:
            code = error.code
        assert code in CODES
        assert (pixels.dtype, pixels.ndim) == (np.uint8, 3)
        size = picture_size(data, max_pixels=1_000_000)  # and no error, whatever it says
        assert size is None or min(size) > 0


@pytest.mark.filterwarnings("ignore")
def test_damaged_jpeg_that_decodes_equals_opencv() -> None:
    rng = np.random.default_rng(9)
    compared = 0
    for _ in range(60):
        data = bytearray(EQUAL_TO_CV2["jpeg"])
        data[rng.integers(700, len(data) - 2)] = 0x55
        try:
            pixels = decode_image(bytes(data)).pixels
        except ImageError:
            continue
        np.testing.assert_array_equal(pixels, cv2_rgb(bytes(data)))
        compared += 1
    assert compared > 30

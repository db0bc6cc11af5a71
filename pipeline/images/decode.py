"""Encoded image bytes of unknown origin -> RGB uint8 pixels, or an :class:`ImageError` with a stable code.

The pixels are those of ``cv2.imdecode(..., IMREAD_COLOR)`` (the reader the model was trained with), in RGB
order. Pillow decodes all but Netpbm's formats, which it reads in Python (`pipeline.images.essentials`): it is the
one decoder here that reports damage as exceptions instead of dying, printing or guessing.

Formats (chosen by the first bytes, never by a name): JPEG, PNG, WebP, BMP, TIFF, GIF, PBM/PGM/PPM. Pillow's
other plugins are not even asked: some start programs (EPS starts Ghostscript), most have few users and
little fuzzing.

Pillow's decompression-bomb guard is a process-wide setting (``Image.MAX_IMAGE_PIXELS``) that belongs to the
application. It is neither changed nor, as far as possible, read: plugins are opened directly instead of by
``Image.open``, which is where the guard sits, and the header's size is compared with ``max_pixels`` before
any pixel is decoded. WebP canvases, GIF frames and TIFF tiles consult the guard inside their plugins: there,
pictures of more than twice ``MAX_IMAGE_PIXELS`` (179 million pixels by default) are refused as
``too_many_pixels`` even when ``max_pixels`` is larger.

What a picture costs follows from its pixels: `pipeline.images.essentials` leaves out what has no say in them, and a
JPEG of more than `MAX_SCANS` scans, each of which passes over all pixels for as little as 163 bytes, is refused. What
Pillow parses in Python, byte by byte at worst, is bounded by the reads that it takes (`_Reads`).
"""

from __future__ import annotations

import ctypes
import io
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    _imaging,
)

from pipeline.errors import UserError
from pipeline.images.essentials import (
    EXIF_START,
    has_more_scans,
    jpeg_essentials,
    png_essentials,
    pnm_header,
    pnm_pixels,
    webp_size,
)

# Names of pictures: they pick files out of folders; whatever is named itself is judged by its content. The last line's
# are photographs in formats that are left closed: each is a failed row that says so, and not a file passed over.
_SUFFIXES = """
jpg jpeg jpe jif jfif mpo png apng webp bmp dib tif tiff gif ppm pgm pbm pnm
heic heif avif jp2 jxl
"""
IMAGE_SUFFIXES = tuple(f".{suffix}" for suffix in _SUFFIXES.split())

# What libtiff allows a JPEG inside a TIFF. Encoders write about ten, and libjpeg's scan scripts have no use for more.
MAX_SCANS = 100

_PNM = (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6")
_PLUGINS: tuple[tuple[tuple[bytes, ...], type[ImageFile.ImageFile]], ...] = (
    # JpegImageFile and not Pillow's factory: of a multi-picture JPEG (MPO) it reads the primary image only.
    ((b"\xff\xd8\xff",), JpegImagePlugin.JpegImageFile),
    ((b"\x89PNG\r\n\x1a\n",), PngImagePlugin.PngImageFile),
    ((b"RIFF",), WebPImagePlugin.WebPImageFile),
    ((b"GIF87a", b"GIF89a"), GifImagePlugin.GifImageFile),
    ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImagePlugin.TiffImageFile),
    ((b"BM",), BmpImagePlugin.BmpImageFile),
)
# Pictures, but in formats that are left closed: worth another message than "not an image".
_CLOSED_FORMATS: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ftypavif", "AVIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftypmif1", "HEIF"),
    (4, b"jP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL ", "JPEG XL"),
    (0, b"8BPS", "Photoshop"),
    (0, b"%!PS", "PostScript"),
    (0, b"%PDF", "PDF"),
    (0, b"<svg", "SVG"),
    (0, b"DDS ", "DDS"),
    (0, b"\0\0\1\0", "ICO"),
)
# Modes whose conversion to RGB is exact or defined. Others (LAB, F, 32-bit I) have no agreed picture.
_CONVERTIBLE = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})
_BYTE_ORDERS: dict[bytes, Literal["little", "big"]] = {b"II*\0": "little", b"MM\0*": "big"}
_ORIENTATION_TAG = 0x0112
_BITS_PER_SAMPLE_TAG = 258
_PHOTOMETRIC_TAG = 262
_TILE_WIDTH_TAG, _TILE_LENGTH_TAG = 322, 323
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Of a file: its parts take a few each, and the pairs of a BMP's run lengths one or two. Some seconds' worth.
_MAX_READS = 10_000_000
_MAX_TIMES_READ = 4  # of each byte, on average: tags of a TIFF may all point to the same ones
_INVERSE_ORIENTATION = {6: 8, 8: 6}
_PIXELS_AT_ONCE = 1 << 20  # converted together


def _silence_decoders() -> None:
    """What a damaged picture is reported as is an `ImageError`, and nothing on stderr beside it.

    For the whole process: libtiff's handlers and Python's filters are its own, and threads decode side by side.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    try:
        libtiff = ctypes.CDLL(_imaging.__file__)  # finds what Pillow's own module is linked with
        libtiff.TIFFSetErrorHandler(None)
        libtiff.TIFFSetWarningHandler(None)
    except (AttributeError, OSError):  # linked otherwise, or without TIFF
        return


_silence_decoders()


class ImageError(UserError):
    """Bytes that give no picture.

    Attributes:
        code: ``empty_object`` (no bytes), ``not_an_image`` (no known format), ``corrupt_image`` (truncated or
            damaged), ``too_many_pixels`` (header above the limit), ``too_many_scans`` (of a JPEG) or
            ``unsupported_image`` (a format or pixel type that is not decoded).
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        return type(self), (self.code, str(self))


class _Reads(io.BytesIO):
    """A file that can be read so often and no more."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._reads_left = _MAX_READS
        self._bytes_left = _MAX_TIMES_READ * len(data) + (1 << 16)

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self._reads_left -= 1
        self._bytes_left -= len(data)
        if self._reads_left < 0 or self._bytes_left < 0:
            raise ImageError("corrupt_image", "too many parts, or parts that lie over one another")
        return data


@dataclass(frozen=True)
class DecodedImage:
    """A decoded picture.

    Attributes:
        pixels: uint8 ``(H, W, 3)``, RGB, C-contiguous, writable; upright if the orientation was applied.
        exif_orientation: 1..8 as stored in the file; 1 where the tag is missing, broken or out of range.
        stored_size: ``(H, W)`` in the header, before any rotation. It differs from ``pixels.shape[:2]`` for
            an applied orientation of 5..8.
    """

    pixels: np.ndarray
    exif_orientation: int
    stored_size: tuple[int, int]


def decode_image(data: bytes, *, max_pixels: int = 100_000_000, apply_exif: bool = True) -> DecodedImage:
    """Decode the first frame of an encoded picture.

    Alpha is dropped, not composited. 16-bit samples give their high byte. 32-bit and float samples are
    refused: what is white in them is a convention of whoever wrote the file.

    Args:
        data: the picture's whole file.
        max_pixels: the largest H * W that is decoded; the header is checked before pixels are read.
        apply_exif: turn the picture upright (as cv2, mmdet and detectron2 do). Without it the pixels stay
            as stored, TIFF included.

    Raises:
        ImageError: and nothing else, whatever the bytes are.
    """
    if len(data) == 0:
        raise ImageError("empty_object", "the object has no bytes")
    with _only_image_errors():
        if data.startswith(_PNM):
            return _decode_pnm(data, max_pixels)
        plugin = _plugin_for(data)
        return _decode(plugin, _essentials(plugin, data), max_pixels, apply_exif)


def picture_size(data: bytes, *, max_pixels: int = 100_000_000, apply_exif: bool = True) -> tuple[int, int] | None:
    """``(H, W)`` that the pixels of `decode_image` should have, going by what a file says before them.

    A fiftieth of what decoding costs. The arguments are those of `decode_image`.

    Returns:
        None where the file says nothing of the kind, or is refused already for what it says.
    """
    try:
        with _only_image_errors():
            if data.startswith(_PNM):
                return pnm_header(data).size
            plugin = _plugin_for(data)
            if plugin is JpegImagePlugin.JpegImageFile:  # four times as fast as opening it
                jpeg = jpeg_essentials(data)
                if jpeg.size is None or 0 in jpeg.size:
                    return None
                size, orientation = jpeg.size, _first_orientation(jpeg.exif)
                _check_size(size, max_pixels)
            else:
                with _opened(plugin, _essentials(plugin, data), max_pixels) as image:
                    size, orientation = _stored_size(image), _tiff_orientation(image) or _exif_orientation(image)
            return size[::-1] if apply_exif and orientation >= 5 else size
    except ImageError:
        return None


def pillow_pixels(image: Image.Image, *, max_pixels: int = 100_000_000) -> NDArray[np.uint8]:
    """The pixels of a picture that is open in Pillow: those that `decode_image` gives of its file, upright.

    The orientation is that of ``image.info``: what was turned by ``ImageOps.exif_transpose`` is not turned again. Of a
    TIFF, which Pillow turns itself, it may come from XMP too. Of several frames it is the one that the picture is at.

    Args:
        image: is loaded, and not changed otherwise.
        max_pixels: the largest H * W; the size is checked before pixels are loaded.

    Returns:
        RGB ``(H, W, 3)``, C-contiguous, writable.

    Raises:
        ImageError: and nothing else.
    """
    with _only_image_errors():
        if 0 in image.size:
            raise ImageError("not_an_image", f"a picture of {image.height} x {image.width} pixels")
        _check_size((image.height, image.width), max_pixels)
        _check_mode(image)
        was_tiff = isinstance(image, TiffImagePlugin.TiffImageFile)
        high_byte = _high_byte(image)
        image.load()
        orientation = 1 if was_tiff else _exif_orientation(image)
        upright = image if orientation == 1 else image.transpose(_TRANSPOSE[orientation])
        return _rgb_pixels(upright, high_byte)


@contextmanager
def _only_image_errors() -> Iterator[None]:
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("too_many_pixels", f"refused by Pillow's own limit: {error}") from None
    except MemoryError:
        raise ImageError("corrupt_image", "the decoder ran out of memory") from None
    except Exception as error:
        # Plugins let whatever their parsing runs into escape: OSError, SyntaxError, ValueError, EOFError,
        # struct.error, zlib.error, KeyError, IndexError, OverflowError, AssertionError, ...
        raise ImageError("corrupt_image", f"{type(error).__name__}: {str(error)[:200]}") from error


def _plugin_for(data: bytes) -> type[ImageFile.ImageFile]:
    for magics, plugin in _PLUGINS:
        if data.startswith(magics) and (magics[0] != b"RIFF" or data[8:12] == b"WEBP"):
            return plugin
    for offset, magic, name in _CLOSED_FORMATS:
        if data[offset : offset + len(magic)] == magic:
            raise ImageError("unsupported_image", f"{name} is not among the formats that are read")
    raise ImageError("not_an_image", f"no known image format starts with {bytes(data[:8])!r}")


def _essentials(plugin: type[ImageFile.ImageFile], data: bytes) -> bytes:
    if plugin is PngImagePlugin.PngImageFile:
        return png_essentials(data)
    if plugin is JpegImagePlugin.JpegImageFile:
        jpeg = jpeg_essentials(data)
        if has_more_scans(jpeg, MAX_SCANS):
            raise ImageError("too_many_scans", f"a JPEG of more than {MAX_SCANS} scans")
        return jpeg.data
    return data


@contextmanager
def _opened(plugin: Callable[..., ImageFile.ImageFile], data: bytes, max_pixels: int) -> Iterator[ImageFile.ImageFile]:
    """What stands before the pixels has been read, and the size is allowed."""
    if plugin is WebPImagePlugin.WebPImageFile and (canvas := webp_size(data)):
        _check_size(canvas, max_pixels)  # here, because opening it takes half of the memory already
    with plugin(_Reads(data), "") as image:
        _check_size(_stored_size(image), max_pixels)
        yield image


def _decode(plugin: Callable[..., ImageFile.ImageFile], data: bytes, max_pixels: int, apply_exif: bool) -> DecodedImage:
    with _opened(plugin, data, max_pixels) as image:
        stored_size = _stored_size(image)
        _check_size(_tile_size(image), max_pixels, "tiles of ")
        _check_mode(image)
        turned_by_pillow = _tiff_orientation(image)
        image.info.pop("xmp", None)  # Pillow would turn a TIFF by its XMP too, which no other reader does
        image.load()
        orientation = turned_by_pillow or _exif_orientation(image)
        turn = 1
        if apply_exif and not turned_by_pillow:
            turn = orientation
        elif turned_by_pillow and not apply_exif:
            turn = _INVERSE_ORIENTATION.get(orientation, orientation)
        high_byte = _high_byte(image)
        upright: Image.Image = image
        if turn != 1:
            upright = image.transpose(_TRANSPOSE[turn])
            image.close()  # pictures may be as large as memory allows
        return DecodedImage(_rgb_pixels(upright, high_byte), orientation, stored_size)


def _decode_pnm(data: bytes, max_pixels: int) -> DecodedImage:
    header = pnm_header(data)
    _check_size(header.size, max_pixels)
    return DecodedImage(pnm_pixels(data, header), 1, header.size)


def _check_size(size: tuple[int, int], max_pixels: int, what: str = "") -> None:
    height, width = size
    if height * width > max_pixels:
        raise ImageError("too_many_pixels", f"{what}{height} x {width} pixels, limit {max_pixels}")


def _tile_size(image: ImageFile.ImageFile) -> tuple[int, int]:
    """(H, W) of a TIFF's tiles, each of which is decoded whole, however small the picture is; else nothing."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 0, 0
    height, width = (image.tag_v2.get(tag, 0) for tag in (_TILE_LENGTH_TAG, _TILE_WIDTH_TAG))
    return (height, width) if isinstance(height, int) and isinstance(width, int) else (0, 0)


def _stored_size(image: ImageFile.ImageFile) -> tuple[int, int]:
    width, height = image.size
    # Pillow reports a TIFF's size as it will be after rotation.
    if _tiff_orientation(image) >= 5:
        width, height = height, width
    return height, width


def _check_mode(image: Image.Image) -> None:
    if image.mode not in _CONVERTIBLE and not image.mode.startswith("I;16"):
        raise ImageError("unsupported_image", f"{image.format or 'a picture'} with pixels of type {image.mode}")


def _rgb_pixels(image: Image.Image, high_byte: Callable[[np.ndarray], np.ndarray] | None) -> NDArray[np.uint8]:
    """Converted strip by strip, so that no second copy of a large picture is needed."""
    if image.mode == "RGB" and image.height * image.width <= _PIXELS_AT_ONCE:
        return np.array(image)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, _PIXELS_AT_ONCE // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        # convert() maps a transparent colour into RGB and can stumble over a broken one; alpha is dropped anyway.
        strip.info.pop("transparency", None)
        if high_byte is not None:
            pixels[top : top + rows] = high_byte(np.asarray(strip))[..., None]
        else:
            pixels[top : top + rows] = np.asarray(strip if strip.mode == "RGB" else strip.convert("RGB"))
    return pixels


def _high_byte(image: Image.Image) -> Callable[[np.ndarray], np.ndarray] | None:
    """16-bit grey to 8-bit: Pillow's own conversion clips at 255 instead. None for other pixels."""
    if not image.mode.startswith("I"):
        return None
    shift, white_is_zero = 8, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        if image.tag_v2.get(_BITS_PER_SAMPLE_TAG) == (12,):
            shift = 4
        white_is_zero = image.tag_v2.get(_PHOTOMETRIC_TAG) == 0  # Pillow honours that for 8 bits only

    def convert(samples: np.ndarray) -> np.ndarray:
        if white_is_zero:
            samples = (256 << shift) - 1 - samples.astype(np.int32)
        return (samples >> shift).astype(np.uint8)

    return convert


def _tiff_orientation(image: Image.Image) -> int:
    """1..8 for a TIFF, which Pillow turns upright by itself while loading; 0 for other formats."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 0
    return _valid_orientation(image.tag_v2.get(_ORIENTATION_TAG))


def _exif_orientation(image: Image.Image) -> int:
    """As cv2 finds it: of the first EXIF block that has one, and never from XMP.

    Every segment of a JPEG is a block of its own. Pillow joins them, and what follows a broken one is lost.
    """
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        blocks = [body for name, body in image.applist if name == "APP1" and body.startswith(EXIF_START)]
    else:
        blocks = [image.info.get("exif") or b""]
    return _first_orientation(block.removeprefix(EXIF_START) for block in blocks)


def _first_orientation(exif: Iterable[bytes]) -> int:
    """Of EXIF blocks, each without what it begins with; 1 where none has one."""
    found = map(_orientation_in, exif)
    return _valid_orientation(next((value for value in found if value is not None), 1))


def _orientation_in(block: bytes) -> int | None:
    """The orientation in a TIFF header with its first directory, whatever else in it is broken or cut."""
    order = _BYTE_ORDERS.get(block[:4])
    if order is None:
        return None
    start = int.from_bytes(block[4:8], order)
    num_entries = int.from_bytes(block[start : start + 2], order)
    for at in range(start + 2, min(start + 2 + 12 * num_entries, len(block) - 9), 12):
        if int.from_bytes(block[at : at + 2], order) == _ORIENTATION_TAG:
            return int.from_bytes(block[at + 8 : at + 10], order)
    return None


def _valid_orientation(value: object) -> int:
    # By equality, as Pillow compares: 6.0 counts as 6.
    return next((valid for valid in range(1, 9) if valid == value), 1)

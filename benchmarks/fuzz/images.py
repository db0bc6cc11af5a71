"""Pictures: small ones in every format that Pillow writes, whole and broken, and some that are made to be expensive.

What is whole must give the pixels that it was made of (of lossy formats those that Pillow reads); so must what has
damage only where no pixel depends on it, if OpenCV, the reader that models are trained with, thinks so too.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from benchmarks.fuzz.case import Limits, Refused, Wrong
from benchmarks.fuzz.mutate import break_bytes
from pipeline.annotations.failure import MAX_MESSAGE_LENGTH, ImageFailure
from pipeline.annotations.pictures import DECODE, PictureSource

Pixels = NDArray[np.uint8]

# Small enough that a picture which is larger in memory than its pixels allow is seen.
MAX_PIXELS = 4_000_000
FILE = "picture.bin"

_ORIENTATION_TAG = 0x0112
_PNG_START = 8
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGBA = 0, 2, 3, 4, 6  # PNG's colour types
_CHANNELS = {_GREY: 1, _RGB: 3, _PALETTE: 1, _GREY_ALPHA: 2, _RGBA: 4}
_PNG_KINDS = (
    *((_GREY, depth) for depth in (1, 2, 4, 8, 16)),
    *((_PALETTE, depth) for depth in (1, 2, 4, 8)),
    *((colour, depth) for colour in (_RGB, _GREY_ALPHA, _RGBA) for depth in (8, 16)),
)
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # of JPEG: where the size stands
_SIZES = ((2000, 2000), (2001, 2000), (65535, 61), (30000, 30000), (65535, 65535), (1, 4_000_000))


class Picture(NamedTuple):
    """An encoded picture.

    Attributes:
        data: its file.
        story: how it was made.
        pixels: RGB ``(H, W, 3)`` that any reader must find; ``None`` where there is no agreement.
    """

    data: bytes
    story: str
    pixels: Pixels | None


@dataclass(frozen=True)
class ImageCase:
    """A picture to be decoded.

    Attributes:
        pixels: that must come out; ``None`` for whatever is a picture, or refused.
    """

    story: str
    data: bytes
    pixels: Pixels | None
    names: Sequence[str] = ()

    def check(self) -> None:
        """See `Case`."""
        found = PictureSource(max_pixels=MAX_PIXELS).decode(self.data)
        if isinstance(found, ImageFailure):
            if found.stage != DECODE or not found.code or len(found.message) > MAX_MESSAGE_LENGTH:
                raise Wrong("a failure without stage and code, or with a long message", repr(found))
            if self.pixels is not None:
                raise Wrong(f"a good picture is refused: {self.story.split(':')[0]}", f"{found.code}: {found.message}")
            raise Refused(f"{found.code}: {found.message}")
        pixels, (height, width) = found.pixels, found.stored_size
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.flags.c_contiguous:
            raise Wrong("not RGB uint8", f"{pixels.dtype} {pixels.shape}")
        turned = (width, height) if found.exif_orientation >= 5 else (height, width)
        if pixels.shape[:2] != turned or height * width > MAX_PIXELS:
            raise Wrong("the size is not the header's", f"{pixels.shape}, {found.stored_size}")
        if self.pixels is not None and not np.array_equal(pixels, self.pixels):
            raise Wrong(f"other pixels: {self.story.split(':')[0]}", f"{pixels.shape} for {self.pixels.shape}")


class Images:
    """See `Kind`."""

    name: ClassVar[str] = "images"
    # Decoding takes up to 16 bytes a pixel (docs/benchmarks.md); the rest is for the encoded file and the checks.
    limits: ClassVar[Limits] = Limits(seconds=5.0, memory_bytes=10 * 3 * MAX_PIXELS)

    def __init__(self, folder: Path) -> None:
        Image.init()

    def make(self, rng: random.Random, folder: Path) -> ImageCase:
        """See `Kind`."""
        kind = rng.random()
        if kind < 0.01:
            story, data = rng.choice(EXPENSIVE)(rng)
            case = ImageCase(story, data, None)
        elif kind < 0.15:
            picture = random_picture(rng)
            case = ImageCase(f"{picture.story}: whole", picture.data, picture.pixels)
        elif kind < 0.25:
            case = _harmless(rng)
        else:
            picture = random_picture(rng)
            story, data = rng.choice(_breakers(picture.data))(picture.data, rng)
            case = ImageCase(f"{picture.story}: {story}", data, None)
        (folder / FILE).write_bytes(case.data)
        return case


def random_picture(rng: random.Random) -> Picture:
    """A small whole picture of any format."""
    return rng.choice(WRITERS)(rng)


def _pixels(rng: random.Random, channels: int = 3, top: int = 256, dtype: Any = np.uint8) -> NDArray[Any]:
    """Noise, stripes or one colour, ``(H, W, channels)``, or ``(H, W)`` for one channel."""
    height, width = rng.choice((1, 2, 7, 8, 9, 16, 17, 33)), rng.choice((1, 2, 7, 8, 9, 16, 17, 40))
    noise = np.random.default_rng(rng.getrandbits(32)).integers(0, top, (height, width, channels))
    if rng.random() < 0.5:
        noise[:] = noise[:1]
    return (noise if channels > 1 else noise[..., 0]).astype(dtype)


def _saved(image: Image.Image, format: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format, **options)
    return sink.getvalue()


def _rgb(pixels: NDArray[Any]) -> Pixels:
    """Grey or RGBA as RGB."""
    return np.repeat(pixels[..., None], 3, 2) if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., :3])


def _as_pillow_reads(data: bytes) -> Pixels:
    with Image.open(io.BytesIO(data)) as image:
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def _jpeg(rng: random.Random) -> Picture:
    mode = rng.choice(("RGB", "RGB", "RGB", "L", "CMYK"))
    pixels = _pixels(rng, len(mode))
    options: dict[str, Any] = {"quality": rng.choice((1, 50, 95)), "progressive": rng.random() < 0.4}
    if rng.random() < 0.3:
        options["restart_marker_rows"] = 1
    if mode == "RGB":
        options["subsampling"] = rng.randrange(3)
    story = f"JPEG {mode} {'progressive' if options['progressive'] else 'baseline'}"
    if rng.random() < 0.4:
        exif = Image.Exif()
        exif[_ORIENTATION_TAG] = rng.choice((1, 2, 3, 4, 5, 6, 7, 8, 0, 9))
        options["exif"] = exif
        story += f" orientation {exif[_ORIENTATION_TAG]}"
    if rng.random() < 0.2:
        options["comment"] = rng.randbytes(20)
    if rng.random() < 0.2:
        options["icc_profile"] = rng.randbytes(200)
    if rng.random() < 0.2:
        options["dpi"] = (72, 72)
    data = _saved(Image.fromarray(pixels, mode if mode == "CMYK" else None), "JPEG", **options)
    return Picture(data, story, _as_pillow_reads(data))


def _png(rng: random.Random) -> Picture:
    colour, depth = rng.choice(_PNG_KINDS)
    channels = _CHANNELS[colour]
    samples = _pixels(rng, channels, 1 << depth, np.uint16)
    palette = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (1 << min(depth, 8), 3), np.uint8)
    if colour == _PALETTE:
        pixels = palette[samples]
    else:
        grey = samples if channels == 1 else samples[..., 0] if channels == 2 else samples
        # Few bits are spread over the bytes' range, of 16 the high byte counts.
        scaled = grey >> 8 if depth == 16 else grey * (255 // ((1 << depth) - 1))
        pixels = _rgb(scaled.astype(np.uint8))
    interlaced = rng.random() < 0.3
    chunks = _random_ancillary(rng)
    if colour == _PALETTE:
        chunks.append((b"PLTE", palette.tobytes()))
        if rng.random() < 0.3:
            chunks.append((b"tRNS", rng.randbytes(len(palette))))
    data = _png_file(samples.reshape(*samples.shape[:2], channels), colour, depth, interlaced, chunks, rng)
    return Picture(data, f"PNG colour type {colour}, {depth} bits{', interlaced' if interlaced else ''}", pixels)


def _png_file(
    samples: NDArray[Any],
    colour: int,
    depth: int,
    interlaced: bool,
    chunks: Sequence[tuple[bytes, bytes]],
    rng: random.Random,
) -> bytes:
    """After the specification, because Pillow writes few of its kinds. ``samples`` are ``(H, W, channels)``."""
    height, width = samples.shape[:2]
    steps = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    passes = [samples[y::dy, x::dx] for y, x, dy, dx in steps] if interlaced else [samples]
    lines = b"".join(b"\0" + _packed(row, depth) for part in passes if part.size for row in part)
    body = zlib.compress(lines, rng.choice((0, 1, 9)))
    cut = rng.randrange(len(body) + 1)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", body[:cut]), (b"IDAT", body[cut:]), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in parts)


def _packed(row: NDArray[Any], depth: int) -> bytes:
    if depth == 16:
        return row.astype(">u2").tobytes()
    if depth == 8:
        return row.astype(np.uint8).tobytes()
    bits = (row.reshape(-1, 1) >> np.arange(depth)[::-1]) & 1
    return np.packbits(bits.astype(np.uint8).reshape(-1)).tobytes()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _random_ancillary(rng: random.Random) -> list[tuple[bytes, bytes]]:
    known = [
        (b"gAMA", struct.pack(">I", 45455)),
        (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)),
        (b"sRGB", b"\0"),
        (b"pHYs", struct.pack(">IIB", 2835, 2835, 1)),
        (b"tEXt", b"Comment\0" + b"x" * rng.choice((3, 500))),
        (b"zTXt", b"Comment\0\0" + zlib.compress(b"y" * 300)),
        (b"iTXt", b"Comment\0\1\0en\0\0" + zlib.compress(b"z" * 300)),
        (b"iCCP", b"profile\0\0" + zlib.compress(rng.randbytes(200))),
        (b"tIME", b"\x07\xea\1\1\1\1\1"),
        (b"eXIf", b"MM\0*\0\0\0\x08\0\0\0\0\0\0"),
    ]
    return rng.sample(known, rng.choice((0, 0, 1, 3)))


def _gif(rng: random.Random) -> Picture:
    image = Image.fromarray(_pixels(rng)).quantize(rng.choice((2, 16, 256)))
    frames = [image.rotate(90 * n) for n in range(1, rng.choice((1, 1, 3)))]
    options = {"save_all": True, "append_images": frames} if frames else {}
    data = _saved(image, "GIF", interlace=rng.randrange(2), **options)
    return Picture(data, f"GIF of {1 + len(frames)}", np.array(image.convert("RGB")))


def _webp(rng: random.Random) -> Picture:
    pixels = _pixels(rng, rng.choice((3, 4)))
    if rng.random() < 0.5:
        data = _saved(Image.fromarray(pixels), "WEBP", lossless=True, exact=True)
        return Picture(data, "WebP lossless", _rgb(pixels))
    data = _saved(Image.fromarray(pixels), "WEBP", quality=rng.choice((1, 80)))
    return Picture(data, "WebP lossy", _as_pillow_reads(data))


def _tiff(rng: random.Random) -> Picture:
    compressions = [None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "tiff_deflate"]
    pixels = _pixels(rng, rng.choice((1, 3)))
    compression = rng.choice(compressions)
    options: dict[str, Any] = {"compression": compression}
    if compression == "tiff_lzw" and rng.random() < 0.5:
        options["tiffinfo"] = {317: 2}
    if rng.random() < 0.15:
        options = {"compression": "jpeg"}
    if rng.random() < 0.15:
        bits = pixels if pixels.ndim == 2 else pixels[..., 0]
        data = _saved(Image.fromarray(bits > 127), "TIFF", compression=rng.choice(("group3", "group4", None)))
        return Picture(data, "TIFF of bits", _rgb(np.where(bits > 127, 255, 0).astype(np.uint8)))
    data = _saved(Image.fromarray(pixels), "TIFF", **options)
    lossy = options["compression"] == "jpeg"
    return Picture(data, f"TIFF {options['compression']}", _as_pillow_reads(data) if lossy else _rgb(pixels))


def _bmp(rng: random.Random) -> Picture:
    pixels = _pixels(rng, rng.choice((1, 3)))
    return Picture(_saved(Image.fromarray(pixels), "BMP"), "BMP", _rgb(pixels))


def _netpbm(rng: random.Random) -> Picture:
    """P1 to P6, after the specification."""
    kind = rng.randrange(1, 7)
    top = 1 if kind in (1, 4) else rng.choice((255, 255, 65535))
    samples = _pixels(rng, 3 if kind in (3, 6) else 1, top + 1, np.uint16)
    height, width = samples.shape[:2]
    comment = "# a comment\n" if rng.random() < 0.3 else ""
    header = f"P{kind}\n{comment}{width} {height}\n" + ("" if top == 1 else f"{top}\n")
    if kind <= 3:
        body = " ".join(map(str, samples.reshape(-1).tolist())).encode() + b"\n"
    elif kind == 4:
        body = np.packbits(samples.astype(np.uint8), axis=1).tobytes()
    else:
        body = samples.astype(">u2" if top > 255 else np.uint8).tobytes()
    shown = (1 - samples) * 255 if top == 1 else samples >> 8 if top > 255 else samples
    known = top <= 255 or kind == 5  # Pillow rounds 16 bits of the other kinds, OpenCV cuts them off
    return Picture(header.encode() + body, f"P{kind} up to {top}", _rgb(shown.astype(np.uint8)) if known else None)


def _mpo(rng: random.Random) -> Picture:
    first, second = (Image.fromarray(_pixels(rng)) for _ in range(2))
    data = _saved(first, "MPO", save_all=True, append_images=[second], quality=90)
    return Picture(data, "MPO", _as_pillow_reads(data))


def _closed(rng: random.Random) -> Picture:
    """Formats that need not be read, but must not harm either."""
    format = rng.choice(("ICO", "DIB", "JPEG2000", "TGA", "PCX", "SGI", "ICNS", "EPS", "AVIF"))
    data = _saved(Image.fromarray(_pixels(rng)).resize((16, 16)), format)
    return Picture(data, format, None)


WRITERS: tuple[Callable[[random.Random], Picture], ...] = (
    *(_jpeg,) * 5,
    *(_png,) * 4,
    *(_webp,) * 2,
    *(_tiff,) * 2,
    *(_netpbm,) * 2,
    _gif,
    _bmp,
    _mpo,
    _closed,
)

Breaker = Callable[[bytes, random.Random], tuple[str, bytes]]


def _breakers(data: bytes) -> Sequence[Breaker]:
    """The ones that fit the format."""
    if data.startswith(b"\xff\xd8"):
        return (_broken, _broken, _segments_changed, _size_changed)
    if data.startswith(b"\x89PNG"):
        return (_broken, _chunks_changed, _chunks_changed, _size_changed)
    return (_broken, _broken, _broken, _size_changed)


def _broken(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    other = random_picture(rng).data if rng.random() < 0.2 else b""
    broken, story = break_bytes(data, rng, other)
    return story, broken


def _size_changed(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Another width and height in the header: nearly what may be decoded, more, and absurdly much."""
    width, height = rng.choice(_SIZES)
    if data.startswith(b"\xff\xd8"):
        place = next((at for at, kind, _ in jpeg_segments(data) if kind in _FRAME_MARKERS), 0)
        changed = data[: place + 5] + struct.pack(">HH", height % 65536, width % 65536) + data[place + 9 :]
    elif data.startswith(b"\x89PNG"):
        header = struct.pack(">II", width, height) + data[24:29]
        changed = data[:_PNG_START] + _chunk(b"IHDR", header) + data[33:]
    elif data.startswith(b"GIF"):
        at = rng.choice((6, max(6, data.find(b",") + 5)))  # of the screen, or of the first frame
        changed = data[:at] + struct.pack("<HH", width % 65536, height % 65536) + data[at + 4 :]
    elif data.startswith(b"BM"):
        changed = data[:18] + struct.pack("<ii", width, rng.choice((height, -height))) + data[26:]
    elif data[8:12] == b"WEBP" and data[12:16] == b"VP8X":
        changed = data[:24] + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little") + data[30:]
    elif data[8:12] == b"WEBP" and data[12:16] == b"VP8 ":
        changed = data[:26] + struct.pack("<HH", width & 0x3FFF, height & 0x3FFF) + data[30:]
    elif data[:1] == b"P":
        parts = data.split(b"\n", 3)
        parts[1] = f"{width} {height}".encode()
        changed = b"\n".join(parts)
    else:
        changed = data
        for tag, value in ((256, width), (257, height)):
            for kind, form in ((3, "<HHIH2x"), (4, "<HHII")):
                old = struct.pack("<HHI", tag, kind, 1)
                at = changed.find(old)
                if at >= 0:
                    new = struct.pack(form, tag, kind, 1, value % 65536 if kind == 3 else value)
                    changed = changed[:at] + new + changed[at + 12 :]
    return f"the header says {width} x {height}", changed


def jpeg_segments(data: bytes) -> list[tuple[int, int, int]]:
    """Place, marker and length with the marker of all segments before the first scan's data."""
    found, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        length = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        found.append((at, data[at + 1], length))
        if data[at + 1] == 0xDA:
            break
        at += length
    return found


def _segments_changed(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    at, kind, length = rng.choice(jpeg_segments(data))
    segment, name = data[at : at + length], f"segment {kind:#x}"
    change = rng.randrange(5)
    if change == 0:
        return f"{name} removed", data[:at] + data[at + length :]
    if change == 1:
        times = rng.choice((1, 50))
        return f"{name} repeated {times} times", data[:at] + segment * times + data[at:]
    if change == 2:
        said = rng.choice((0, 1, 2, 3, length - 3, length + 100, 65535))
        return f"{name} says it has {said} bytes", data[: at + 2] + struct.pack(">H", said) + data[at + 4 :]
    if change == 3:
        moved = rng.choice(jpeg_segments(data))[0]
        return f"{name} again at {moved}", data[:moved] + segment + data[moved:]
    content, story = break_bytes(segment[4:], rng) if length > 4 else (b"", "left as it is")
    return f"content of {name}: {story}", data[: at + 4] + content + data[at + length :]


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Name and content of each chunk of a whole file."""
    found, at = [], _PNG_START
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def _chunks_changed(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    chunks = png_chunks(data)
    index = rng.randrange(len(chunks))
    kind, content = chunks[index]
    name = kind.decode("latin-1")
    change = rng.randrange(5)
    if change == 0:
        del chunks[index]
        story = f"{name} removed"
    elif change == 1:
        times = rng.choice((1, 50))
        chunks[index:index] = [chunks[index]] * times
        story = f"{name} repeated {times} times"
    elif change == 2:
        other = rng.randrange(len(chunks))
        chunks[index], chunks[other] = chunks[other], chunks[index]
        story = f"{name} and chunk {other} change places"
    elif content:
        changed, story = break_bytes(content, rng)
        chunks[index] = kind, changed
        story = f"content of {name}: {story}"
    else:
        story = "left as it is"
    return story, data[:_PNG_START] + b"".join(_chunk(*chunk) for chunk in chunks)


def _harmless(rng: random.Random) -> ImageCase:
    """Damage that no pixel depends on; where OpenCV does not read it as before, nothing is asked."""
    if rng.random() < 0.4:
        picture = _jpeg(rng)
        story, data = _harmless_jpeg(picture.data, rng)
    else:
        picture = _png(rng)
        story, data = _harmless_png(picture.data, rng)
    before, after = (cv2.imdecode(np.frombuffer(one, np.uint8), cv2.IMREAD_COLOR) for one in (picture.data, data))
    agreed = before is not None and after is not None and np.array_equal(before, after)
    return ImageCase(f"{story}: {picture.story}", data, picture.pixels if agreed else None)


def _harmless_png(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    kinds = ("tEXt", "zTXt", "iTXt", "iCCP", "pHYs", "gAMA", "cHRM", "sRGB", "tIME", "eXIf", "sPLT", "hIST", "abCd")
    name = rng.choice(kinds)
    content = rng.choice(
        (
            b"",
            b"\0",
            rng.randbytes(3),
            rng.randbytes(40),
            b"Comment\0\0" + rng.randbytes(20),
            b"Comment\0\0" + zlib.compress(b"a" * rng.choice((10, 3_000_000))),
            b"Comment\0" + b"a" * 2_000_000,
        )
    )
    chunk = _chunk(name.encode(), content)
    story = f"PNG with a damaged {name}"
    if rng.random() < 0.4:
        chunk = chunk[:-4] + rng.randbytes(4)
        story = f"PNG with a wrong checksum of {name}"
    place = _PNG_START + 25  # behind the header
    if rng.random() < 0.2:
        place = len(data) - 12
    return story, data[:place] + chunk + data[place:]


def _harmless_jpeg(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    marker = rng.choice((0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xEF, 0xFE))
    starts = (
        b"",
        b"JFIF\0",
        b"Exif\0\0",
        b"ICC_PROFILE\0",
        b"Adobe\0",
        b"Photoshop 3.0\0",
        b"http://ns.adobe.com/xap/1.0/\0",
    )
    content = rng.choice(starts) + rng.randbytes(rng.choice((0, 0, 1, 2, 5, 30)))
    segment = bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content
    place = rng.choice([at for at, _, _ in jpeg_segments(data)])
    return f"JPEG with a short or odd segment {marker:#x}", data[:place] + segment + data[place:]


def _many_scans(rng: random.Random) -> tuple[str, bytes]:
    side, repeats = 1900, rng.choice((30, 3000))
    grey = Image.new("L", (side, side), 128)
    data = _saved(grey, "JPEG", progressive=True)
    at = data.rfind(b"\xff\xda")
    scan = data[at:-2]
    return f"progressive JPEG with {repeats} scans", data[:at] + scan * repeats + b"\xff\xd9"


def _comments(rng: random.Random) -> tuple[str, bytes]:
    number = rng.choice((1_000, 3_000_000))
    place = rng.randrange(3)
    parts = [b"P2\n", b"8 8\n", b"255\n" + b"1 " * 64]
    parts[place] += b"#\n" * number
    return f"P2 with {number} comments", b"".join(parts)


def _large_canvas(rng: random.Random) -> tuple[str, bytes]:
    """As large as may be, of one colour: a few bytes."""
    format = rng.choice(("WEBP", "PNG", "GIF", "TIFF", "JPEG"))
    width, height = rng.choice(((2000, 2000), (2000, 1999), (1000, 4000), (16000, 250)))
    image = Image.new(rng.choice(("RGB", "RGBA")) if format in ("WEBP", "PNG") else "RGB", (width, height))
    options = {"compression": "tiff_lzw"} if format == "TIFF" else {"lossless": True} if format == "WEBP" else {}
    return f"{format} of {width} x {height}", _saved(image, format, **options)


def _text_bomb(rng: random.Random) -> tuple[str, bytes]:
    mebibytes = rng.choice((1, 300))
    packed, kind = _packed_zeros(mebibytes), rng.choice((b"zTXt", b"iCCP", b"IDAT"))
    content = packed if kind == b"IDAT" else b"Comment\0\0" + packed
    start = _png_file(np.zeros((4, 4, 1), np.uint8), 0, 8, False, [], rng)
    return f"PNG with {mebibytes} MiB in its {kind.decode()}", start[:33] + _chunk(kind, content) + start[33:]


@cache
def _packed_zeros(mebibytes: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(mebibytes)) + packer.flush()


def _many_frames(rng: random.Random) -> tuple[str, bytes]:
    format = rng.choice(("WEBP", "GIF", "TIFF"))
    return f"{format} of 40 frames", _frames(format)


@cache
def _frames(format: str) -> bytes:
    frames = [Image.new("RGB", (1000, 1000), (n, 0, 0)) for n in range(40)]
    return _saved(frames[0], format, save_all=True, append_images=frames[1:])


EXPENSIVE: tuple[Callable[[random.Random], tuple[str, bytes]], ...] = (
    _many_scans,
    _comments,
    _large_canvas,
    _large_canvas,
    _text_bomb,
    _many_frames,
)

"""What decoding takes at its peak, in bytes for each pixel, of every format: what `images.max_pixels` costs in memory.

Each format is decoded in a process of its own. Linux only: the peak is the kernel's count.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.images.decode import decode_image

# Name, Pillow's format, mode and options.
FORMATS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("JPEG", "JPEG", "RGB", {}),
    ("JPEG, turned", "JPEG", "RGB", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"}),
    ("JPEG, progressive", "JPEG", "RGB", {"progressive": True, "subsampling": 0}),
    ("PNG", "PNG", "RGB", {}),
    ("PNG with alpha", "PNG", "RGBA", {}),
    ("WebP", "WEBP", "RGB", {}),
    ("GIF", "GIF", "P", {}),
    ("BMP", "BMP", "RGB", {}),
    ("TIFF", "TIFF", "RGB", {"compression": "tiff_lzw"}),
    ("PPM", "PPM", "RGB", {}),
)


def _status_kib(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def _encoded(kind: str, mode: str, options: dict[str, Any], side: int) -> bytes:
    y, x = np.mgrid[0:side, 0:side].astype(np.uint32)
    pixels = np.dstack([((x * k + y) // 7 % 256).astype(np.uint8) for k in (1, 2, 3)])
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def _decode(data: bytes) -> None:
    """Prints the peak in bytes for each pixel."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _status_kib("VmRSS")
    height, width = decode_image(data, max_pixels=10**9).stored_size
    print((_status_kib("VmHWM") - before) * 1024 / (height * width))


def main() -> None:
    """Print a line for each format."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=4000, help="of the square pictures, in pixels")
    parser.add_argument("--decode", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.decode:
        _decode(sys.stdin.buffer.read())
        return
    for name, kind, mode, options in FORMATS:
        data = _encoded(kind, mode, options, args.side)
        # In a process that has no freed memory to decode into.
        run = subprocess.run(
            [sys.executable, "-m", "benchmarks.bench_decode_memory", "--decode"],
            input=data,
            capture_output=True,
            check=True,
        )
        print(f"{name:20} {float(run.stdout):5.1f} bytes/pixel", flush=True)


if __name__ == "__main__":
    main()

"""Fetch an image, decode it, and shrink it where it is much larger than the model's input."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from pipeline.annotate.stages.guard import Guard, run_guarded
from pipeline.annotate.stages.rows import DECODED, RowError, binary_array, error_arrays
from pipeline.images.decode import ImageError, decode_image
from pipeline.images.resize import resize_bilinear_uint8
from pipeline.images.sizes import scaled_size
from pipeline.storage.fetch.fetcher import Fetcher, FetchError
from pipeline.storage.uris import redact

FETCH, DECODE = "fetch", "decode"

# Shrinking here costs CPU time that the model's device has in plenty, and saves traffic: worth it from
# pictures of twice the input's pixels on.
SHRINK_ABOVE = 2.0


@dataclass(frozen=True)
class DecodedImage:
    """Pixels to hand on, and what is known of the original."""

    pixels: np.ndarray
    image_size: tuple[int, int]
    exif_orientation: int


@dataclass(frozen=True)
class FetchDecode:
    """The stage. Picklable; clients are opened in the process that calls it.

    Attributes:
        fetcher: gets the bytes.
        max_pixels: images of more are refused before they are decoded.
        apply_exif: turn images as their EXIF orientation says.
        short_side, long_side: the model's input size, for shrinking.
    """

    fetcher: Fetcher
    max_pixels: int
    apply_exif: bool
    short_side: int
    long_side: int

    def __call__(self, rows: pa.Table, guard: Guard, report: Callable[[dict[str, float]], None]) -> pa.Table:
        """Rows with ``image_id``, ``image_uri`` and ``image_bytes`` become rows of the `DECODED` columns.

        ``image_bytes`` is dropped, ``image_uri`` loses credentials and query; other columns pass unchanged.
        """
        started = time.perf_counter()
        blobs = self._fetch(rows)
        fetched = time.perf_counter()
        results = run_guarded(
            guard, DECODE, rows["image_id"].to_pylist(), lambda members: [self._decode(blobs[i]) for i in members]
        )
        report({"fetch_s": fetched - started, "decode_s": time.perf_counter() - fetched, "decoded": len(rows)})
        return _decoded_rows(rows, results)

    def _fetch(self, rows: pa.Table) -> list[bytes | memoryview | FetchError]:
        blobs: list[bytes | memoryview | FetchError] = [b""] * len(rows)
        by_uri: dict[int, str] = {}
        given, uris = rows["image_bytes"], rows["image_uri"]
        for i in range(len(rows)):
            if given[i].is_valid:
                blobs[i] = given[i].as_py()
            else:
                by_uri[i] = uris[i].as_py()
        for i, blob in zip(by_uri, self.fetcher.fetch_many(list(by_uri.values())), strict=True):
            blobs[i] = blob
        return blobs

    def _decode(self, blob: bytes | memoryview | FetchError) -> DecodedImage | RowError:
        if isinstance(blob, FetchError):
            return RowError(FETCH, blob.code, str(blob))
        try:
            image = decode_image(bytes(blob), max_pixels=self.max_pixels, apply_exif=self.apply_exif)
        except ImageError as error:
            return RowError(DECODE, error.code, str(error))
        return DecodedImage(self._shrink(image.pixels), image.pixels.shape[:2], image.exif_orientation)

    def _shrink(self, pixels: np.ndarray) -> np.ndarray:
        height, width = pixels.shape[:2]
        size = scaled_size((height, width), self.short_side, self.long_side)
        if height * width < SHRINK_ABOVE * size[0] * size[1]:
            return pixels
        channels_first = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
        return resize_bilinear_uint8(channels_first, size).permute(1, 2, 0).contiguous().numpy()


def _decoded_rows(rows: pa.Table, results: list[DecodedImage | RowError]) -> pa.Table:
    images = [r if isinstance(r, DecodedImage) else None for r in results]
    errors = [r if isinstance(r, RowError) else None for r in results]

    def column(get: Callable[[DecodedImage], int], name: str) -> pa.Array:
        return pa.array([None if image is None else get(image) for image in images], DECODED.field(name).type)

    uris = [None if uri is None else redact(uri) for uri in rows["image_uri"].to_pylist()]
    rows = rows.drop_columns(["image_bytes"])
    rows = rows.set_column(rows.column_names.index("image_uri"), "image_uri", pa.array(uris, pa.string()))
    added = [
        binary_array([None if image is None else image.pixels for image in images]),
        column(lambda image: image.pixels.shape[0], "pixels_height"),
        column(lambda image: image.pixels.shape[1], "pixels_width"),
        column(lambda image: image.image_size[0], "height"),
        column(lambda image: image.image_size[1], "width"),
        column(lambda image: image.exif_orientation, "exif_orientation"),
        *error_arrays(errors),
    ]
    for field, values in zip(DECODED, added, strict=True):
        rows = rows.append_column(field, values)
    return rows

"""Fetch an image, decode it, and shrink it where it is much larger than the model's input."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from pipeline.annotate.stages.guard import Guard, run_guarded
from pipeline.annotate.stages.rows import DECODED, error_arrays
from pipeline.annotate.stages.stage import Report, StageCounts
from pipeline.annotations.failure import ImageFailure
from pipeline.annotations.pictures import DECODE, PictureSource
from pipeline.images.resize import resize_bilinear_uint8
from pipeline.images.sizes import scaled_size
from pipeline.storage.uris import UriText, hide_column
from pipeline.tables.binary import binary_array

# Shrinking here costs CPU time that the model's device has in plenty, and saves traffic: worth it from
# pictures of twice the input's pixels on.
SHRINK_ABOVE = 2.0


@dataclass(frozen=True)
class FetchedImage:
    """Pixels to hand on, and what is known of the original."""

    pixels: np.ndarray
    image_size: tuple[int, int]
    exif_orientation: int


@dataclass(frozen=True)
class FetchDecode:
    """The stage: URIs or bytes in, pixels out, or why there are none.

    Attributes:
        pictures: fetches and decodes an image, or says why not.
        short_side, long_side: the model's input size, for shrinking.
        guard: counts the deaths of processes over an image that is decoded.
        report: takes what was done.
    """

    pictures: PictureSource
    short_side: int
    long_side: int
    guard: Guard
    report: Report

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Rows with ``image_id``, ``image_uri`` and ``image_bytes`` become rows of the `DECODED` columns.

        ``image_bytes`` is dropped, ``image_uri`` loses credentials and query; other columns pass unchanged.
        """
        started = time.perf_counter()
        blobs = self._fetch(rows)
        fetched = time.perf_counter()
        results = run_guarded(
            self.guard, DECODE, rows["image_id"].to_pylist(), lambda members: [self._decode(blobs[i]) for i in members]
        )
        decode_s = time.perf_counter() - fetched
        self.report(StageCounts(fetch_s=fetched - started, decode_s=decode_s, decoded=len(rows)))
        return _decoded_rows(rows, results)

    def _fetch(self, rows: pa.Table) -> list[bytes | ImageFailure]:
        blobs: list[bytes | None] = rows["image_bytes"].to_pylist()
        uris = rows["image_uri"].filter(rows["image_bytes"].is_null()).to_pylist()
        fetched = iter(self.pictures.fetch_many([None if uri is None else UriText(uri) for uri in uris]))
        return [next(fetched) if blob is None else blob for blob in blobs]

    def _decode(self, blob: bytes | ImageFailure) -> FetchedImage | ImageFailure:
        image = self.pictures.decode(blob)
        if isinstance(image, ImageFailure):
            return image
        return FetchedImage(self._shrink(image.pixels), image.pixels.shape[:2], image.exif_orientation)

    def _shrink(self, pixels: np.ndarray) -> np.ndarray:
        height, width = pixels.shape[:2]
        size = scaled_size((height, width), self.short_side, self.long_side)
        if height * width < SHRINK_ABOVE * size[0] * size[1]:
            return pixels
        channels_first = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
        return resize_bilinear_uint8(channels_first, size).permute(1, 2, 0).contiguous().numpy()


def _decoded_rows(rows: pa.Table, results: list[FetchedImage | ImageFailure]) -> pa.Table:
    images = [r if isinstance(r, FetchedImage) else None for r in results]
    errors = [r if isinstance(r, ImageFailure) else None for r in results]

    def column(get: Callable[[FetchedImage], int], name: str) -> pa.Array:
        return pa.array([None if image is None else get(image) for image in images], DECODED.field(name).type)

    uris = hide_column(rows["image_uri"])
    rows = rows.drop_columns(["image_bytes"])
    rows = rows.set_column(rows.column_names.index("image_uri"), "image_uri", uris)
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

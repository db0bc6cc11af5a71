"""Fetch an image, decode it, and shrink it where it is much larger than the model's input."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from pipeline.annotate.stages.guard import Deadline, Guard, run_guarded
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
        guard: counts the deaths of processes over an image that is fetched or decoded.
        report: takes what was done.
        decode_timeout_s: of one image; ``None`` for no limit.
    """

    pictures: PictureSource
    short_side: int
    long_side: int
    guard: Guard
    report: Report
    decode_timeout_s: float | None = None

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Rows with ``image_id``, ``image_uri`` and ``image_bytes`` become rows of the `DECODED` columns.

        ``image_bytes`` is dropped, ``image_uri`` loses credentials and query; other columns pass unchanged.
        """
        started = time.perf_counter()
        decode_s = 0.0
        blobs, uris = rows["image_bytes"], rows["image_uri"].to_pylist()
        with_uri = blobs.is_null().to_pylist()
        deadline = Deadline(self.decode_timeout_s, "images.decode_timeout_s")

        def encoded(members: list[int]) -> Iterator[tuple[int, bytes | ImageFailure]]:
            yield from ((m, blobs[m].as_py()) for m in members if not with_uri[m])
            named = [m for m in members if with_uri[m]]
            fetched = self.pictures.fetch_in_turn([None if uris[m] is None else UriText(uris[m]) for m in named])
            yield from ((named[i], blob) for i, blob in fetched)

        def work(members: list[int]) -> list[FetchedImage | ImageFailure]:
            nonlocal decode_s
            done: dict[int, FetchedImage | ImageFailure] = {}
            for m, blob in encoded(members):
                began = time.perf_counter()
                with deadline.step([m]):
                    done[m] = self._decode(blob)
                decode_s += time.perf_counter() - began
            return [done[m] for m in members]

        # The guard is there before the first byte: fetching takes memory too.
        results = run_guarded(self.guard, DECODE, rows["image_id"].to_pylist(), work, deadline)
        fetch_s = time.perf_counter() - started - decode_s
        self.report(StageCounts(fetch_s=fetch_s, decode_s=decode_s, decoded=len(rows)))
        return _decoded_rows(rows, results)

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

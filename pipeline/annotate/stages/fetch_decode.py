"""Fetch an image, decode it, and shrink it where it is much larger than the model's input."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from pipeline.annotate.stages.guard import Deadline, Guard, all_in_flight, run_guarded
from pipeline.annotate.stages.ordering import BatchOrder
from pipeline.annotate.stages.rows import DECODED, error_arrays
from pipeline.annotate.stages.stage import Report, StageCounts
from pipeline.annotations.failure import ImageFailure
from pipeline.annotations.pictures import DECODE, PictureSource
from pipeline.annotations.schema import OBJECT_COLUMNS
from pipeline.images.resize import resize_bilinear_uint8
from pipeline.images.sizes import scaled_size
from pipeline.storage.fetch.rules import Fetched
from pipeline.storage.uris import UriText, hide_column
from pipeline.storage.versions import ObjectVersion, version_of_bytes
from pipeline.tables.binary import binary_array

# Shrinking here costs CPU time that the model's device has in plenty, and saves traffic: worth it from
# pictures of twice the input's pixels on.
SHRINK_ABOVE = 2.0

_UNKNOWN = ObjectVersion()

# An encoded picture, or why there is none; ``None`` for one that came with its row, where it is still.
_Blob = Fetched | ImageFailure | None


@dataclass(frozen=True)
class FetchedImage:
    """Pixels to hand on, and what is known of the original."""

    pixels: np.ndarray
    image_size: tuple[int, int]
    exif_orientation: int


@dataclass(frozen=True)
class FetchDecode:
    """URIs or bytes in, pixels out, or why there are none: a row for each, in the order in which batches are full.

    Encoded pictures are held in windows of half of ``images.max_bytes_at_once``, two of them: one is decoded while the
    next is fetched. The headers of a window say in which order. Beside them are the decoded pictures of one block.

    Attributes:
        pictures: fetches and decodes an image, or says why not.
        order: of the model's batches, with its input size.
        guard: counts the deaths of processes over an image that is fetched or decoded, and settles the order.
        report: takes what was done, for each table.
        decode_timeout_s: of one image; ``None`` for no limit.
    """

    pictures: PictureSource
    order: BatchOrder
    guard: Guard
    report: Report
    decode_timeout_s: float | None = None

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        """Rows with ``image_id``, ``image_uri`` and ``image_bytes`` become rows of the `DECODED` columns.

        ``image_bytes`` is dropped, ``image_uri`` loses credentials and query; other columns pass unchanged.

        Yields:
            Tables of ``order.images_per_block`` rows, the last one of fewer. The same rows give the same tables in any
            process, however often it is tried: whoever does it again goes by the order that was settled at first.
        """
        yield from _Task(self, rows).tables()

    def decode(self, blob: bytes | ImageFailure) -> FetchedImage | ImageFailure:
        """An encoded picture, or why there is none."""
        image = self.pictures.decode(blob)
        if isinstance(image, ImageFailure):
            return image
        return FetchedImage(self._shrink(image.pixels), image.pixels.shape[:2], image.exif_orientation)

    def _shrink(self, pixels: np.ndarray) -> np.ndarray:
        height, width = pixels.shape[:2]
        size = scaled_size((height, width), self.order.short_side, self.order.long_side)
        if height * width < SHRINK_ABOVE * size[0] * size[1]:
            return pixels
        channels_first = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
        return resize_bilinear_uint8(channels_first, size).permute(1, 2, 0).contiguous().numpy()


class _Task:
    """One call of the stage: rows by their positions, those that wait, and those that wait for their table."""

    def __init__(self, stage: FetchDecode, rows: pa.Table) -> None:
        self._stage = stage
        self._ids = rows["image_id"].to_pylist()
        self._blobs, self._uris = rows["image_bytes"], rows["image_uri"].to_pylist()
        self._has_bytes = self._blobs.is_valid().to_pylist()
        self._rows = rows.drop_columns(["image_bytes"])
        self._waiting = dict.fromkeys(range(len(rows)))
        self._done: dict[int, FetchedImage | ImageFailure] = {}
        self._versions: dict[int, ObjectVersion] = {}  # of those that were read
        # Whatever else a run does under the name of some of these rows is another piece of work.
        self._key = hashlib.blake2b(json.dumps(self._ids).encode(), digest_size=16).hexdigest()
        self._num_windows = 0
        self._fetch_s = self._decode_s = 0.0

    def tables(self) -> Iterator[pa.Table]:
        """All rows, once."""
        stage = self._stage
        deadline = Deadline(stage.decode_timeout_s, "images.decode_timeout_s")
        # The guard is there before the first byte: fetching takes memory too.
        with all_in_flight(stage.guard, DECODE, self._ids, deadline) as survived:
            if survived is not None:
                yield from self._in_windows(deadline, survived)
        yield from self._in_blocks(deadline)
        if self._done or not self._ids:
            yield self._table()

    def _in_windows(self, deadline: Deadline, survived: Callable[[Sequence[int]], None]) -> Iterator[pa.Table]:
        """Whatever is fetched together is ordered by its headers, up to where an earlier attempt had other windows."""
        turns = self._turns(list(self._waiting))
        while (window := self._next(turns)) is not None:
            settled = self._settle(self._by_shape(window, deadline))
            if settled.keys() != window.keys():
                self._waiting = dict.fromkeys(sorted([*settled, *self._waiting]))
                self._num_windows -= 1
                break
            for member in settled:
                self._done[member] = self._decoded(member, window.pop(member), member, deadline)
                if len(self._done) == self._stage.order.images_per_block:
                    survived(list(self._done))
                    yield self._table()
        survived([*self._done, *self._waiting])

    def _in_blocks(self, deadline: Deadline) -> Iterator[pa.Table]:
        """What is still to do, a block at a time: a process died of it, or began it in other windows."""
        while self._waiting:
            settled = list(self._settle(list(self._waiting)))
            while settled:
                room = self._stage.order.images_per_block - len(self._done)
                members, settled = settled[:room], settled[room:]

                def work(chosen: list[int], members: list[int] = members) -> list[FetchedImage | ImageFailure]:
                    found: dict[int, FetchedImage | ImageFailure] = {}
                    places = {members[i]: i for i in chosen}
                    turns = self._turns(list(places))
                    while (turn := self._next(turns)) is not None:
                        while turn:
                            member, blob = turn.popitem()
                            found[member] = self._decoded(member, blob, places[member], deadline)
                    return [found[member] for member in places]

                ids = [self._ids[member] for member in members]
                results = run_guarded(self._stage.guard, DECODE, ids, work, deadline)
                self._done.update(zip(members, results, strict=True))
                if len(self._done) == self._stage.order.images_per_block:
                    yield self._table()

    def _turns(self, members: Sequence[int]) -> Iterator[dict[int, _Blob]]:
        """Encoded pictures, those that came with their rows first."""
        own: dict[int, _Blob] = {member: None for member in members if self._has_bytes[member]}
        named = [member for member in members if not self._has_bytes[member]]
        uris = [self._uris[member] for member in named]
        for turn in self._stage.pictures.fetch_turns([None if uri is None else UriText(uri) for uri in uris]):
            yield {**own, **{named[i]: turn.pop(i) for i in list(turn)}}
            own = {}
        if own:
            yield own

    def _next(self, turns: Iterator[dict[int, _Blob]]) -> dict[int, _Blob] | None:
        started = time.perf_counter()
        turn = next(turns, None)
        self._fetch_s += time.perf_counter() - started
        return turn

    def _by_shape(self, window: Mapping[int, _Blob], deadline: Deadline) -> list[int]:
        """The positions of a window's pictures in the order in which batches are full."""
        started = time.perf_counter()
        members = sorted(window)
        sizes = np.zeros((len(members), 2), np.int64)
        for i, member in enumerate(members):
            with deadline.step([member]):
                sizes[i] = self._stage.pictures.size(self._bytes(member, window[member])) or (0, 0)
        so_far = len(self._ids) - len(self._waiting)
        order = [members[i] for i in self._stage.order.permutation(sizes, so_far)]
        self._decode_s += time.perf_counter() - started
        return order

    def _settle(self, order: Sequence[int]) -> dict[int, None]:
        """The next window as all attempts have it; its rows wait no more."""
        kind = np.min_scalar_type(len(self._ids))
        proposed = np.array(order, kind).tobytes()
        settled = np.frombuffer(self._stage.guard.settle(f"{self._key}/{self._num_windows}", proposed), kind).tolist()
        self._num_windows += 1
        for member in settled:
            del self._waiting[member]
        return dict.fromkeys(settled)

    def _decoded(self, member: int, blob: _Blob, place: int, deadline: Deadline) -> FetchedImage | ImageFailure:
        """A picture; ``place`` is what the deadline knows it by."""
        started = time.perf_counter()
        with deadline.step([place]):
            data = self._bytes(member, blob)
            if isinstance(data, bytes):
                self._versions[member] = blob.version if isinstance(blob, Fetched) else version_of_bytes(data)
            found = self._stage.decode(data)
        self._decode_s += time.perf_counter() - started
        return found

    def _bytes(self, member: int, blob: _Blob) -> bytes | ImageFailure:
        if isinstance(blob, Fetched):
            return blob.data
        found: bytes | ImageFailure = self._blobs[member].as_py() if blob is None else blob
        return found

    def _table(self) -> pa.Table:
        """The rows that are done, and a report of what was done for them."""
        rows = self._rows.take(pa.array(list(self._done), pa.int64()))
        versions = [self._versions.pop(member, _UNKNOWN) for member in self._done]
        table = _decoded_rows(rows, list(self._done.values()), versions)
        counts = StageCounts(fetch_s=self._fetch_s, decode_s=self._decode_s, decoded=len(rows))
        self._stage.report(counts)
        self._done, self._fetch_s, self._decode_s = {}, 0.0, 0.0
        return table


def _decoded_rows(
    rows: pa.Table, results: list[FetchedImage | ImageFailure], versions: Sequence[ObjectVersion]
) -> pa.Table:
    images = [r if isinstance(r, FetchedImage) else None for r in results]
    errors = [r if isinstance(r, ImageFailure) else None for r in results]

    def column(get: Callable[[FetchedImage], int], name: str) -> pa.Array:
        return pa.array([None if image is None else get(image) for image in images], DECODED.field(name).type)

    uris = hide_column(rows["image_uri"])
    rows = rows.set_column(rows.column_names.index("image_uri"), "image_uri", uris)
    added = [
        binary_array([None if image is None else image.pixels for image in images]),
        column(lambda image: image.pixels.shape[0], "pixels_height"),
        column(lambda image: image.pixels.shape[1], "pixels_width"),
        column(lambda image: image.image_size[0], "height"),
        column(lambda image: image.image_size[1], "width"),
        column(lambda image: image.exif_orientation, "exif_orientation"),
        *(pa.array([v[i] for v in versions], field.type) for i, field in enumerate(OBJECT_COLUMNS)),
        *error_arrays(errors),
    ]
    for field, values in zip(DECODED, added, strict=True):
        rows = rows.append_column(field, values)
    return rows

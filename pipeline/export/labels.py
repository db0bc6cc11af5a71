"""Rows of an output -> the labels of one image after the other."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.annotations.class_thresholds import Selection
from pipeline.annotations.data_file import OutputError
from pipeline.annotations.image_uris import image_path
from pipeline.annotations.reader import Source
from pipeline.annotations.schema import ANNOTATED, mask_column
from pipeline.export.errors import ExportError
from pipeline.export.outlines.crops import Crop, crop_of
from pipeline.masks.rle import DamagedRle
from pipeline.messages.timing import NowAndThen
from pipeline.provenance import code_version
from pipeline.storage.uris import TarMember

_IMAGE_COLUMNS = ("image_id", "image_uri", "height", "width", "exif_orientation", "status")
_PROGRESS_EVERY_S = 30.0

logger = logging.getLogger(__name__)


class ImageInfo(NamedTuple):
    """An annotated image.

    Attributes:
        id: as the output has it.
        uri: where it came from; ``None`` for images that came as bytes.
        path: what formats know images by: relative to the source's root, or a whole URI (see `image_path`).
        size: (H, W) in pixels.
        exif_orientation: 1 to 8 as the file says; 1 where it says nothing.
    """

    id: int | str
    uri: str | None
    path: str
    size: tuple[int, int]
    exif_orientation: int = 1

    @property
    def file_name(self) -> str:
        """Its path; of a picture in a tar shard, which has none, the id: what unpacking the shard calls it."""
        return str(self.id) if TarMember.of(self.path) is not None else self.path


@dataclass(frozen=True)
class ImageLabels:
    """The N labels of one image, best score first.

    Attributes:
        image: the image that they are on.
        boxes: [N, 4] float64, x, y, width, height in pixels; the values are exactly those of the output's float32.
        scores: [N] float64, 0 to 1; likewise.
        categories: [N] positions in the source's list of categories.
        areas: [N] float64, pixels of the mask.
        counts: N masks as COCO's compressed run lengths.
    """

    image: ImageInfo
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    categories: NDArray[np.int64]
    areas: NDArray[np.float64]
    counts: list[str]

    def __len__(self) -> int:
        """Number of labels."""
        return len(self.counts)

    def crop(self, index: int) -> Crop:
        """The pixels of one label's mask, which must have some.

        Raises:
            OutputError: its run lengths are damaged, or there are no pixels although its area says so.
        """
        try:
            crop = crop_of(self.counts[index], self.image.size)
        except ValueError as error:
            raise OutputError(f"image {self.image.id!r}: {error}") from None
        if crop is None:
            raise OutputError(f"image {self.image.id!r}: a mask of area {self.areas[index]:g} has no pixels")
        return crop


@dataclass
class ExportCounts:
    """What became of rows and detections: those exported, and those left out, by reason."""

    images: int = 0
    failed_images: int = 0
    labels: int = 0
    below_threshold: int = 0
    empty_masks: int = 0
    unread_pictures: int = 0


class Labels:
    """What is to be exported.

    Args:
        source: the output to export.
        selection: which detections become labels.
        keep_empty: whether detections whose mask has no pixel do.

    Raises:
        ExportError: a threshold for a class that the model does not have.

    Attributes:
        tally: what the last pass over `images` kept and left out; complete when that pass is.
    """

    def __init__(self, source: Source, selection: Selection, keep_empty: bool) -> None:
        unknown = selection.unknown_names(source.categories)
        if unknown and source.all_categories:
            raise ExportError(f"thresholds for classes that the model does not have: {', '.join(unknown)}")
        if unknown:
            logger.warning("thresholds for classes of which nothing was found: %s", ", ".join(unknown))
        self.source = source
        self.selection = selection
        self.tally = ExportCounts()
        self._keep_empty = keep_empty
        self._thresholds = selection.thresholds(source.categories)
        ids = np.array([category.id for category in source.categories], np.int64)
        self._order = np.argsort(ids)
        self._sorted_ids = ids[self._order]

    def report(self) -> dict[str, Any]:
        """Where the labels come from and which they are, for the export's own records; nothing that changes by time."""
        return {
            **self.source.provenance,
            "min_score": self.selection.min_score,
            "class_thresholds": dict(sorted(self.selection.class_thresholds.items())),
            "exported_by": f"maskfleet {code_version()}",
        }

    def image_infos(self) -> Iterator[ImageInfo]:
        """The annotated images alone, in the same order as `images`."""
        for batch in self.source.batches(_IMAGE_COLUMNS):
            yield from self._infos(_annotated(batch))

    def images(self) -> Iterator[ImageLabels]:
        """All annotated images, those without labels too; failed ones are counted and left out."""
        self.tally = ExportCounts()
        line = NowAndThen(_PROGRESS_EVERY_S, at_once=False)
        for batch in self.source.batches((*_IMAGE_COLUMNS, "detections")):
            rows = _annotated(batch)
            self.tally.failed_images += len(batch) - len(rows)
            self.tally.images += len(rows)
            yield from self._labels(rows)
            if line.is_due():
                logger.info("%s of %s images", f"{self.tally.images:,}", f"{self.source.counts.annotated:,}")

    def leave_out(self, image: ImageLabels) -> None:
        """Count an image that `images` gave and a format cannot write, for want of its picture."""
        self.tally.images -= 1
        self.tally.labels -= len(image)
        self.tally.unread_pictures += 1

    def _infos(self, rows: pa.RecordBatch) -> Iterator[ImageInfo]:
        columns = (rows.column(name).to_pylist() for name in _IMAGE_COLUMNS[:5])
        for image_id, uri, height, width, orientation in zip(*columns, strict=True):
            path = image_path(image_id, uri, self.source.image_root)
            yield ImageInfo(image_id, uri, path, (height, width), orientation or 1)

    def _labels(self, rows: pa.RecordBatch) -> Iterator[ImageLabels]:
        infos = list(self._infos(rows))
        column = rows.column("detections")
        found = column.flatten()
        owners = np.repeat(np.arange(len(rows)), pc.list_value_length(column).to_numpy())
        boxes = found.field("bbox").flatten().to_numpy().reshape(-1, 4)
        scores, areas = found.field("score").to_numpy(), found.field("area").to_numpy()
        self._check_finite(infos, owners, boxes, scores)
        categories = self._positions(found.field("category_id").to_numpy())
        good = scores >= self._thresholds[categories]
        kept = np.flatnonzero(good & ((areas > 0) | self._keep_empty))
        self.tally.below_threshold += int((~good).sum())
        self.tally.empty_masks += int((good & (areas == 0)).sum())
        self.tally.labels += kept.size
        counts = self._masks(infos, owners[kept], found.field("segmentation").take(pa.array(kept)))
        boxes, scores, areas = (values[kept].astype(np.float64) for values in (boxes, scores, areas))
        categories = categories[kept]
        stops = np.searchsorted(owners[kept], np.arange(len(rows) + 1)).tolist()
        for info, start, stop in zip(infos, stops, stops[1:], strict=False):
            part = slice(start, stop)
            yield ImageLabels(info, boxes[part], scores[part], categories[part], areas[part], counts[part])

    def _positions(self, ids: NDArray[np.int32]) -> NDArray[np.int64]:
        places = np.searchsorted(self._sorted_ids, ids)
        known = places < len(self._sorted_ids)
        known[known] = self._sorted_ids[places[known]] == ids[known]
        if not known.all():
            raise OutputError(
                f"{self.source.uri} holds detections of category {ids[~known][0]}, which its run.json does "
                "not list: they do not belong together"
            )
        return self._order[places]

    def _check_finite(
        self, infos: list[ImageInfo], owners: NDArray[np.int64], boxes: NDArray[np.float32], scores: NDArray[np.float32]
    ) -> None:
        bad = ~(np.isfinite(boxes).all(axis=1) & np.isfinite(scores))
        if bad.any():
            image = infos[owners[bad.argmax()]]
            raise OutputError(f"image {image.id!r} in {self.source.uri} has a box or score that is not finite")

    def _masks(self, infos: list[ImageInfo], owners: NDArray[np.int64], segmentations: pa.StructArray) -> list[str]:
        sizes = np.array([info.size for info in infos], np.int64).reshape(-1, 2)
        try:
            return [text.decode() for text in mask_column(segmentations, sizes[owners]).counts]
        except DamagedRle as error:
            name = repr(infos[owners[error.index]].id)
            raise OutputError(
                f"image {name} in {self.source.uri} has a damaged mask: {error}; annotate it anew"
            ) from None


def _annotated(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.filter(pc.equal(batch.column("status"), ANNOTATED))

"""The annotate job's output as training data: sure detections are objects, uncertain ones are ignored.

A detection between both thresholds may be right: as an object it would teach the student the teacher's mistakes,
as background that a true object is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.annotations.class_thresholds import Selection
from pipeline.annotations.image_uris import picture_uri
from pipeline.annotations.reader import Source, open_source
from pipeline.annotations.schema import ANNOTATED, mask_column
from pipeline.masks.rle import DamagedRle
from pipeline.model.categories import Category
from pipeline.storage.uris import Uri, UriError, UriText
from pipeline.train.data.books import DataReport
from pipeline.train.data.labelled import DataError, LabelledImage
from pipeline.train.sample.geometry import MIN_PIXELS

_ELEMENT = "detections.list.element."
_ROW_COLUMNS = ("image_id", "image_uri", "height", "width", "status")
_FOUND_COLUMNS = tuple(_ELEMENT + name for name in ("score", "category_id", "area", "segmentation"))


@dataclass(frozen=True)
class ScoreBands:
    """What a score makes of a detection. Scores are compared as float32, as the other jobs do.

    Attributes:
        objects: from these on, of each class, detections are objects to be found.
        ignored: from these on, below those of ``objects``, they are ignored; below these they are dropped.
    """

    objects: Selection
    ignored: Selection

    def limits(
        self, categories: Sequence[Category], others: Sequence[Category] = ()
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The lower and the upper threshold of each category.

        Args:
            categories: those that are trained, in the order of the result.
            others: further ones, whose thresholds do no harm.

        Raises:
            DataError: a threshold of a class that is in neither; a lower one above the upper one.
        """
        known = (*categories, *others)
        unknown = sorted({*self.objects.unknown_names(known), *self.ignored.unknown_names(known)})
        if unknown:
            raise DataError(f"thresholds for classes that nobody knows: {', '.join(unknown)}")
        low, high = self.ignored.thresholds(categories), self.objects.thresholds(categories)
        for at in np.flatnonzero(low > high)[:1]:
            raise DataError(
                f"class {categories[at].name!r}: detections are ignored from {low[at]:g} on, above the threshold of "
                f"objects, {high[at]:g}; lower the first"
            )
        return low, high


def read_pseudo_labels(
    uri: Uri, bands: ScoreBands, classes: Sequence[Category], image_root: Uri | None = None, keep_empty: bool = True
) -> tuple[list[LabelledImage], DataReport]:
    """Read an output of the annotate job.

    Args:
        uri: of the output folder.
        bands: which detections are objects, which are ignored.
        classes: what labels are positions in, matched by name; detections of other classes are dropped.
        image_root: what relative URIs are relative to. The annotate job writes absolute ones.
        keep_empty: images on which nothing was found are background to learn from; without it they are left out.

    Raises:
        DataError: thresholds that cannot be; none of the classes is the annotating model's; no images.
        OutputError: there are no data, or files that do not belong together.
    """
    source = open_source(uri)
    reader = _Reader(source, bands, classes, image_root)
    images: list[LabelledImage] = []
    report = DataReport()
    for image, counted in reader.rows():
        if image is not None and not image.counts and not keep_empty:
            counted = replace(counted, usable=0, negatives=0, left_out=1)
        elif image is not None:
            images.append(image)
        report += counted
    if not images:
        raise DataError(f"{uri} has no images to train on: {report}")
    return images, report


class _Reader:
    def __init__(self, source: Source, bands: ScoreBands, classes: Sequence[Category], image_root: Uri | None) -> None:
        names = [category.name for category in classes]
        known = {category.id: names.index(category.name) for category in source.categories if category.name in names}
        if source.categories and not known:
            found = ", ".join(category.name for category in source.categories)
            raise DataError(
                f"{source.uri} has none of the trained classes. Its classes: {found}. "
                f"Trained classes: {', '.join(names)}"
            )
        self._source = source
        self._image_root = image_root
        self._low, self._high = bands.limits(classes, source.categories)
        self._ids = np.array(sorted(known), np.int64)
        self._labels = np.array([known[id_] for id_ in sorted(known)], np.int64)

    def rows(self) -> Iterator[tuple[LabelledImage | None, DataReport]]:
        """Each row of the output: its image, if it can be trained on, and its line in the books."""
        for batch in self._source.batches((*_ROW_COLUMNS, *_FOUND_COLUMNS)):
            lists = batch.column("detections")
            stops = np.cumsum(pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False))
            found = _Found.of(lists.flatten(), self._low, self._high, self._ids, self._labels)
            info = batch.drop_columns(["detections"]).to_pylist()
            masks = self._masks(info, stops, found)
            for row, start, stop in zip(info, np.append(0, stops[:-1]).tolist(), stops.tolist(), strict=True):
                yield self._row(row, found, masks, slice(start, stop))

    def _masks(self, info: list[dict[str, Any]], stops: NDArray[np.int64], found: _Found) -> dict[int, bytes]:
        """The masks of the detections that are kept, by their positions."""
        kept = np.flatnonzero(found.kept)
        owners = np.searchsorted(stops, kept, side="right")
        sizes = np.array([(row["height"] or 0, row["width"] or 0) for row in info], np.int64).reshape(-1, 2)
        try:
            masks = mask_column(found.segmentations.take(pa.array(kept)), sizes[owners])
        except DamagedRle as error:
            image_id = info[owners[error.index]]["image_id"]
            raise DataError(
                f"{self._source.uri}, image {image_id!r}: the mask of a detection is damaged: {error}; annotate it anew"
            ) from None
        return dict(zip(kept.tolist(), masks.counts, strict=True))

    def _row(
        self, row: dict[str, Any], found: _Found, masks: dict[int, bytes], part: slice
    ) -> tuple[LabelledImage | None, DataReport]:
        if row["status"] != ANNOTATED:
            return None, DataReport(images=1, failed=1)
        if row["image_uri"] is None:
            return None, DataReport(images=1, without_uri=1)
        kept = part.start + np.flatnonzero(found.kept[part])
        image = LabelledImage(
            image_id=row["image_id"],
            uri=self._place(row["image_uri"]),
            size=(row["height"], row["width"]),
            labels=tuple(found.labels[kept].tolist()),
            ignored=tuple(found.ignored[kept].tolist()),
            counts=tuple(masks[at] for at in kept.tolist()),
        )
        counted = replace(found.report(part), images=1, usable=1, negatives=int(not kept.size))
        return image, counted

    def _place(self, uri: str) -> UriText:
        try:
            return picture_uri(UriText(uri), self._image_root)
        except UriError as error:
            raise DataError(f"{self._source.uri}: {error}") from None


@dataclass(frozen=True)
class _Found:
    """D detections and what becomes of each; exactly one of the five masks is set for each.

    Attributes:
        labels: [D] positions among the trained classes; 0 for foreign ones.
        objects, ignored, tiny, below, foreign: [D] which detections became this; `DataReport` says what is meant.
        segmentations: [D] masks, as the output has them.
    """

    labels: NDArray[np.int64]
    objects: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    tiny: NDArray[np.bool_]
    below: NDArray[np.bool_]
    foreign: NDArray[np.bool_]
    segmentations: pa.StructArray

    @classmethod
    def of(
        cls,
        flat: pa.StructArray,
        low: NDArray[np.float32],
        high: NDArray[np.float32],
        ids: NDArray[np.int64],
        labels_of_ids: NDArray[np.int64],
    ) -> _Found:
        category_ids = flat.field("category_id").to_numpy()
        foreign = ~np.isin(category_ids, ids)
        labels = np.zeros(len(flat), np.int64)
        labels[~foreign] = labels_of_ids[np.searchsorted(ids, category_ids[~foreign])]
        scores = flat.field("score").to_numpy()
        tiny = flat.field("area").to_numpy() < MIN_PIXELS
        # A score that is no number is below every threshold.
        reaches_low, reaches_high = (scores >= limits[labels] for limits in (low, high))
        below = ~foreign & ~reaches_low
        tiny &= ~foreign & ~below
        left = ~(foreign | below | tiny)
        return cls(
            labels=labels,
            objects=left & reaches_high,
            ignored=left & ~reaches_high,
            tiny=tiny,
            below=below,
            foreign=foreign,
            segmentations=flat.field("segmentation"),
        )

    @property
    def kept(self) -> NDArray[np.bool_]:
        """[D] objects and ignored ones."""
        return self.objects | self.ignored

    def report(self, part: slice) -> DataReport:
        """The books of some detections, of one image."""
        fates = {"objects": self.objects, "ignored": self.ignored, "tiny": self.tiny, "foreign": self.foreign}
        fates["below_threshold"] = self.below
        counts = {name: int(np.count_nonzero(fate[part])) for name, fate in fates.items()}
        return DataReport(annotations=part.stop - part.start, **counts)

"""The worst and best images of each class of an evaluation, with their pictures, for its report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np

from pipeline.annotations.failure import ImageFailure
from pipeline.annotations.pictures import PictureSource
from pipeline.annotations.rows import OutputRows
from pipeline.evaluate.config import GalleryConfig
from pipeline.evaluate.examples import Example, ExampleObjects
from pipeline.evaluate.inputs.annotations import AnnotatedOutput
from pipeline.evaluate.inputs.predictions import Predictions
from pipeline.evaluate.measure import Measured
from pipeline.evaluate.report.cards import GalleryImage
from pipeline.evaluate.shuffle.chunks import Chunk
from pipeline.metrics.analysis.top_images import CategoryImages
from pipeline.page.thumbnails import Overlay
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri, UriText
from pipeline.tables.arrays import Uint8s

_PICTURES_AT_ONCE = 8  # fetched concurrently, and in memory together


class _Pick(NamedTuple):
    category: int
    kind: Literal["worst", "best"]
    row: Mapping[str, Any]


def gallery_images(config: GalleryConfig, measured: Measured) -> Iterator[GalleryImage]:
    """Image after image, class by class, worst first; one that cannot be read comes without pixels.

    Args:
        config: where the pictures are. The output of an annotate job knows itself where its images came from;
            otherwise the ground truth's file names count.
        measured: with the images that were picked, while its scratch folder is there.
    """
    if measured.analysis is None:
        return
    picks = list(_picks(measured.analysis.examples.categories))
    examples = _Examples(measured.scratch_uri, measured.analysis.examples.chunks)
    source, uris = _source(config, measured.predictions, [pick.row["image_id"] for pick in picks])
    waiting = iter(picks)
    while some := list(islice(waiting, _PICTURES_AT_ONCE)):
        shown = [examples.read(int(pick.row["image_order"])) for pick in some]
        wanted = [uris.get(example.image_id, example.place) for example in shown]
        for pick, example, picture in zip(some, shown, source.read_many(wanted), strict=True):
            yield _gallery_image(measured.categories.names[pick.category], pick, example, picture)


def _picks(categories: Sequence[CategoryImages]) -> Iterator[_Pick]:
    for category, images in enumerate(categories):
        for row in images.worst:
            yield _Pick(category, "worst", row)
        for row in images.best:
            yield _Pick(category, "best", row)


class _Examples:
    """The images' objects on scratch storage."""

    def __init__(self, uri: Uri, chunks: Mapping[int, Chunk]) -> None:
        self._objects, self._chunks = open_objects(uri), chunks

    def read(self, order: int) -> Example:
        where = self._chunks[order]
        return Example.decode(self._objects.read_range(where.name, where.start, where.stop))


def _source(
    config: GalleryConfig, predictions: Predictions, image_ids: Sequence[int | str]
) -> tuple[PictureSource, dict[int | str, UriText]]:
    """How pictures are read, and the URIs that the predictions know."""
    source = PictureSource.of_config(config.images, config.image_root)
    if not isinstance(predictions, AnnotatedOutput):
        return source, {}
    run = predictions.run
    if run is not None and run.apply_exif is not None:
        source = replace(source, apply_exif=run.apply_exif)
    if run is not None and source.image_root is None:
        # Of use to images that have no row with a URI, of which the ground truth has a file name.
        source = replace(source, image_root=run.image_root)
    return source, OutputRows(predictions.uri).image_uris(image_ids)


def _gallery_image(category_name: str, pick: _Pick, example: Example, picture: Uint8s | ImageFailure) -> GalleryImage:
    pixels, reason = (
        (None, f"{picture.code}: {picture.message}") if isinstance(picture, ImageFailure) else (picture, "")
    )
    if pixels is not None and pixels.shape[:2] != example.image_size:
        there, here = (" x ".join(map(str, size)) for size in (pixels.shape[:2], example.image_size))
        pixels, reason = None, f"the picture is {there} (height x width), the ground truth says {here}"
    return GalleryImage(
        category_name=category_name,
        kind=pick.kind,
        image_id=example.image_id,
        quality=float(pick.row["quality"]),
        pixels=pixels,
        truth=_overlay(example.truth),
        detections=_overlay(example.detections),
        true_positives=int(pick.row["num_true"]),
        false_positives=int(pick.row["num_false"]),
        missed=int(pick.row["num_missed"]),
        reason=reason,
    )


def _overlay(objects: ExampleObjects) -> Overlay:
    boxes = np.array(objects.boxes, np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    scores = None if objects.scores is None else np.array(objects.scores, np.float64)
    return Overlay(boxes, np.array(objects.categories, np.int64), scores, objects.rles)

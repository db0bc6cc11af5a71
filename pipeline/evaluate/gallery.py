"""The worst and best images of each class of an evaluation, with their pictures, for its report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.failure import ImageFailure
from pipeline.annotations.pictures import PictureSource
from pipeline.annotations.rows import OutputRows
from pipeline.annotations.run_json import RunJson
from pipeline.evaluate.config import GalleryConfig
from pipeline.evaluate.examples import Scene, SceneObjects
from pipeline.evaluate.inputs.annotations import AnnotatedOutput
from pipeline.evaluate.inputs.predictions import Predictions
from pipeline.evaluate.measure import Measured
from pipeline.evaluate.report.cards import GalleryImage, Overlay
from pipeline.evaluate.shuffle.slices import Slice
from pipeline.metrics.analysis.top_images import TopImages
from pipeline.storage.objects.open import open_objects

_PICTURES_AT_ONCE = 8  # fetched concurrently, and in memory together


class _Example(NamedTuple):
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
    examples = list(_examples(measured.analysis.top, len(measured.categories.ids)))
    scenes = _Scenes(measured.scratch_uri, measured.analysis.scenes)
    source, uris = _source(config, measured.predictions, [example.row["image_id"] for example in examples])
    waiting = iter(examples)
    while some := list(islice(waiting, _PICTURES_AT_ONCE)):
        shown = [scenes.read(int(example.row["image_order"])) for example in some]
        wanted = [uris.get(scene.image_id, scene.file_name) for scene in shown]
        for example, scene, picture in zip(some, shown, source.read_many(wanted), strict=True):
            yield _gallery_image(measured.categories.names[example.category], example, scene, picture)


def _examples(top: TopImages, num_categories: int) -> Iterator[_Example]:
    for category, images in enumerate(top.result(num_categories)):
        for row in images.worst:
            yield _Example(category, "worst", row)
        for row in images.best:
            yield _Example(category, "best", row)


class _Scenes:
    """The images' objects on scratch storage."""

    def __init__(self, uri: str, slices: Mapping[int, Slice]) -> None:
        self._objects, self._slices = open_objects(uri), slices

    def read(self, order: int) -> Scene:
        where = self._slices[order]
        return Scene.decode(self._objects.read_range(where.name, where.start, where.stop))


def _source(
    config: GalleryConfig, predictions: Predictions, image_ids: Sequence[int | str]
) -> tuple[PictureSource, dict[int | str, str]]:
    """How pictures are read, and the URIs that the predictions know."""
    source = PictureSource.of_config(config.images, config.image_root or "")
    if not isinstance(predictions, AnnotatedOutput):
        return source, {}
    run = RunJson.read(predictions.uri)
    if run is not None and run.apply_exif is not None:
        source = replace(source, apply_exif=run.apply_exif)
    return source, OutputRows(predictions.uri).image_uris(image_ids)


def _gallery_image(
    category_name: str, example: _Example, scene: Scene, picture: NDArray[np.uint8] | ImageFailure
) -> GalleryImage:
    pixels, reason = (
        (None, f"{picture.code}: {picture.message}") if isinstance(picture, ImageFailure) else (picture, "")
    )
    if pixels is not None and pixels.shape[:2] != scene.image_size:
        there, here = (" x ".join(map(str, size)) for size in (pixels.shape[:2], scene.image_size))
        pixels, reason = None, f"the picture is {there} (height x width), the ground truth says {here}"
    return GalleryImage(
        category_name=category_name,
        kind=example.kind,
        image_id=scene.image_id,
        quality=float(example.row["quality"]),
        pixels=pixels,
        truth=_overlay(scene.truth),
        found=_overlay(scene.found),
        true_positives=int(example.row["num_true"]),
        false_positives=int(example.row["num_false"]),
        missed=int(example.row["num_missed"]),
        reason=reason,
    )


def _overlay(objects: SceneObjects) -> Overlay:
    boxes = np.array(objects.boxes, np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    scores = None if objects.scores is None else np.array(objects.scores, np.float64)
    return Overlay(boxes, np.array(objects.categories, np.int64), scores, objects.rles)

"""The worst and best images of each category, whole and as text: what the report's gallery draws."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from pipeline.evaluate.shuffle.chunks import Chunk
from pipeline.masks.rle import Rle
from pipeline.metrics.analysis.image_quality import block_qualities
from pipeline.metrics.analysis.top_images import CategoryImages, TopImages
from pipeline.metrics.blocks import DetectionBlock, TruthBlock
from pipeline.metrics.metric import ComparedBlock
from pipeline.storage.objects.base import ObjectFolder
from pipeline.storage.uris import UriText


@dataclass(frozen=True)
class ExampleObjects:
    """Objects or detections of one image.

    Attributes:
        boxes: [n] x, y, width, height in pixels.
        categories: [n] positions among the categories.
        scores: [n]; ``None`` for ground truth.
        rles: [n]; ``None`` where only boxes are compared.
    """

    boxes: list[list[float]]
    categories: list[int]
    scores: list[float] | None
    rles: list[Rle] | None


@dataclass(frozen=True)
class Example:
    """One image.

    Attributes:
        image_id: as in the ground truth.
        file_name: as in the ground truth; ``None`` if that has none.
        image_size: height, width in pixels.
        truth: all objects, crowd regions included.
        detections: detections from a score on.
    """

    image_id: int | str
    file_name: str | None
    image_size: tuple[int, int]
    truth: ExampleObjects
    detections: ExampleObjects

    @property
    def place(self) -> UriText | None:
        """Where the ground truth says that the picture is."""
        return None if self.file_name is None else UriText(self.file_name)

    def encode(self) -> bytes:
        """As JSON."""

        def text(value: bytes) -> str:
            return value.decode("ascii")

        values = {**vars(self), "truth": vars(self.truth), "detections": vars(self.detections)}
        return json.dumps(values, default=text).encode()

    @classmethod
    def decode(cls, content: bytes) -> Example:
        """The inverse of `encode`."""
        values: dict[str, Any] = json.loads(content)
        for key in ("truth", "detections"):
            objects = values[key]
            if objects["rles"] is not None:
                objects["rles"] = [Rle(size=rle["size"], counts=rle["counts"].encode()) for rle in objects["rles"]]
            values[key] = ExampleObjects(**objects)
        return cls(**{**values, "image_size": tuple(values["image_size"])})


def example_of(truth: TruthBlock, detections: DetectionBlock, image: int, score_threshold: float) -> Example:
    """Image number ``image`` of a block, with the detections of at least this score."""
    first, last = truth.offsets[image : image + 2].tolist()
    start, stop = detections.offsets[image : image + 2].tolist()
    kept = [i for i in range(start, stop) if detections.scores[i] >= score_threshold]
    height, width = truth.image_sizes[image].tolist()
    return Example(
        image_id=truth.image_ids[image],
        file_name=truth.file_names[image] if truth.file_names else None,
        image_size=(height, width),
        truth=ExampleObjects(
            boxes=truth.boxes[first:last].tolist(),
            categories=truth.categories[first:last].tolist(),
            scores=None,
            rles=None if truth.rles is None else list(truth.rles[first:last]),
        ),
        detections=ExampleObjects(
            boxes=detections.boxes[kept].tolist(),
            categories=detections.categories[kept].tolist(),
            scores=detections.scores[kept].tolist(),
            rles=None if detections.rles is None else [detections.rles[i] for i in kept],
        ),
    )


@dataclass(frozen=True)
class PickedExamples:
    """The images that are shown.

    Attributes:
        categories: [K] the worst and best of each.
        chunks: by the image's order, where its `Example` lies on scratch storage.
    """

    categories: Sequence[CategoryImages]
    chunks: Mapping[int, Chunk]


class ExamplePicker:
    """Picks the worst and best images of each category, and keeps what is on them.

    Used like a `Metric`, but for `write`: what is on the images is sent home by way of scratch storage.
    """

    def __init__(self, num_categories: int, per_category: int, score_threshold: float) -> None:
        """Begin with no images.

        Args:
            num_categories: K, of the ground truth.
            per_category: how many of the worst and of the best.
            score_threshold: lower scores neither count nor are shown.
        """
        self._num_categories, self._score_threshold = num_categories, score_threshold
        self._top = TopImages(per_category)
        self._images: dict[int, bytes] = {}
        self._chunks: dict[int, Chunk] = {}

    def update(self, block: ComparedBlock) -> None:
        """Take in a block. Only the images that are among the worst or best so far stay in memory."""
        self._top.update(
            block_qualities(block.truth, block.detections, block.judgement, self._num_categories, self._score_threshold)
        )
        wanted = self._top.image_orders()
        self._images = {order: text for order, text in self._images.items() if order in wanted}
        for image, order in enumerate(block.truth.orders.tolist()):
            if order in wanted:
                example = example_of(block.truth, block.detections, image, self._score_threshold)
                self._images[order] = example.encode()

    def write(self, objects: ObjectFolder, name: str) -> None:
        """Write the images in memory as one file, if there are any, and let them go."""
        if self._images:
            objects.put(name, b"".join(self._images.values()))
        stops = accumulate(map(len, self._images.values()))
        for (order, text), stop in zip(self._images.items(), stops, strict=True):
            self._chunks[order] = Chunk(name, stop - len(text), stop)
        self._images = {}

    def merge(self, other: ExamplePicker) -> None:
        """Take in what another has written of other images."""
        self._top.merge(other._top)
        wanted = self._top.image_orders()
        chunks = {**self._chunks, **other._chunks}
        self._chunks = {order: chunk for order, chunk in chunks.items() if order in wanted}

    def result(self) -> PickedExamples:
        """Of all images."""
        return PickedExamples(self._top.result(self._num_categories), self._chunks)

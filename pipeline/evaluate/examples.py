"""Single images of a block, whole and as text: what the report's gallery draws."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.masks.rle import Rle
from pipeline.metrics.blocks import DetectionBlock, TruthBlock


@dataclass(frozen=True)
class ExampleObjects:
    """Objects or detections of one image.

    Attributes:
        boxes: [n] x, y, width, height in pixels.
        categories: [n] positions.
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
        truth: all objects.
        detections: detections from a score on.
    """

    image_id: int | str
    file_name: str | None
    image_size: tuple[int, int]
    truth: ExampleObjects
    detections: ExampleObjects

    def encode(self) -> bytes:
        """As JSON."""

        def text(value: bytes) -> str:
            return value.decode("ascii")

        return json.dumps(asdict(self), default=text).encode()

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

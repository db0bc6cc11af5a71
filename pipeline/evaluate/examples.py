"""Single images of a block, whole and as text: what the report's gallery draws."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.masks.rle import Rle
from pipeline.metrics.blocks import FoundBlock, TruthBlock


@dataclass(frozen=True)
class SceneObjects:
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
class Scene:
    """One image.

    Attributes:
        image_id: as in the ground truth.
        file_name: as in the ground truth; ``None`` if that has none.
        image_size: height, width in pixels.
        truth: all objects.
        found: detections from a score on.
    """

    image_id: int | str
    file_name: str | None
    image_size: tuple[int, int]
    truth: SceneObjects
    found: SceneObjects

    def encode(self) -> bytes:
        """As JSON."""

        def text(value: bytes) -> str:
            return value.decode("ascii")

        return json.dumps(asdict(self), default=text).encode()

    @classmethod
    def decode(cls, content: bytes) -> Scene:
        """The inverse of `encode`."""
        values: dict[str, Any] = json.loads(content)
        for key in ("truth", "found"):
            objects = values[key]
            if objects["rles"] is not None:
                objects["rles"] = [Rle(size=rle["size"], counts=rle["counts"].encode()) for rle in objects["rles"]]
            values[key] = SceneObjects(**objects)
        return cls(**{**values, "image_size": tuple(values["image_size"])})


def scene_of(truth: TruthBlock, found: FoundBlock, image: int, score_threshold: float) -> Scene:
    """Image number ``image`` of a block, with the detections of at least this score."""
    first, last = truth.offsets[image : image + 2].tolist()
    start, stop = found.offsets[image : image + 2].tolist()
    kept = [i for i in range(start, stop) if found.scores[i] >= score_threshold]
    height, width = truth.image_sizes[image].tolist()
    return Scene(
        image_id=truth.image_ids[image],
        file_name=truth.file_names[image] if truth.file_names else None,
        image_size=(height, width),
        truth=SceneObjects(
            boxes=truth.boxes[first:last].tolist(),
            categories=truth.categories[first:last].tolist(),
            scores=None,
            rles=None if truth.rles is None else list(truth.rles[first:last]),
        ),
        found=SceneObjects(
            boxes=found.boxes[kept].tolist(),
            categories=found.categories[kept].tolist(),
            scores=found.scores[kept].tolist(),
            rles=None if found.rles is None else [found.rles[i] for i in kept],
        ),
    )

"""Rendered scenes with exact masks: textured, rotated objects that hide each other, over all kinds of backgrounds.

What an object is, its shape alone decides: colours, textures, sizes and light are drawn from the same
distributions for every class. The same seed gives the same scene.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import UserError
from pipeline.model.categories import Category
from pipeline.storage.whole_file import named, write_whole
from pipeline.synthetic.shapes import CLASSES, Placed, shape_at
from pipeline.synthetic.surfaces import background, paint, photograph

CATEGORIES = tuple(Category(number, name) for number, name in enumerate(CLASSES, start=1))

# Of the shorter side of the scene.
SMALLEST_RADIUS, LARGEST_RADIUS = 0.08, 0.22
MOST_OBJECTS = 8
SMALLEST_SIDE = 64  # pixels
# Less than this share of an object, or fewer pixels, must not be left to see: it would be a riddle, not a label.
VISIBLE_SHARE, VISIBLE_PIXELS = 0.3, 24
_TRIES = 4
JPEG_QUALITY = 92
_TRUTH = "instances.json"


@dataclass(frozen=True)
class Scene:
    """A picture and all of its objects, G of them, from the back to the front.

    Attributes:
        pixels: RGB uint8 ``(H, W, 3)``.
        masks: bool ``(G, H, W)``, what is visible of each; no two overlap.
        labels: int64 ``(G,)``, positions in `CATEGORIES`.
    """

    pixels: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    labels: NDArray[np.int64]


def render_scene(seed: int | Sequence[int], size: tuple[int, int] = (160, 160)) -> Scene:
    """One scene.

    Args:
        seed: equal ones give equal scenes, whatever was rendered before.
        size: ``(H, W)`` in pixels, at least `SMALLEST_SIDE` each.
    """
    if min(size) < SMALLEST_SIDE:
        raise ValueError(f"a scene needs at least {SMALLEST_SIDE} pixels a side, not {size[0]} x {size[1]}")
    rng = np.random.default_rng(seed)
    canvas = background(rng, size)
    masks: list[NDArray[np.bool_]] = []
    full_areas: list[int] = []
    labels: list[int] = []
    shadow = rng.uniform(-0.04, 0.04, 2) * min(size)
    num_objects = int(rng.integers(1, MOST_OBJECTS + 1))
    # As even as can be in a scene, so that no class is rare.
    for label in rng.permutation(np.resize(rng.permutation(len(CLASSES)), num_objects)).tolist():
        placed = _place(rng, size, label, masks, full_areas)
        if placed is None:
            continue
        front = placed.mask(size)
        masks = [mask & ~front for mask in masks] + [front]
        full_areas.append(int(np.count_nonzero(front)))
        labels.append(label)
        paint(placed, canvas, rng, shadow)
    pixels = photograph(canvas, rng)
    return Scene(pixels, np.array(masks, np.bool_).reshape(-1, *size), np.array(labels, np.int64))


def write_scenes(folder: str | Path, count: int, seed: int, size: tuple[int, int] = (160, 160)) -> Path:
    """Write ``images/000000.jpg`` and so on, and ``instances.json`` in COCO's format, with masks as RLE.

    Args:
        folder: made if need be; empty, or with scenes of an earlier call, which are replaced.
        count: of scenes, with the seeds ``(seed, 0)``, ``(seed, 1)`` and so on.
        seed: sets of different seeds have no scene in common.
        size: ``(H, W)`` of each.

    Returns:
        The path of ``instances.json``; file names in it are relative to the folder.

    Raises:
        UserError: the folder holds something else; nothing was written.
        OSError: it cannot be written.
    """
    folder = Path(folder)
    if not holds_scenes(folder) and is_taken(folder):
        raise UserError(f"{folder} is not empty, and holds no rendered scenes: give a folder of its own")
    path = folder / _TRUTH
    _write_truth(path, [], [])  # first: it says whose the folder is, should this be cut short
    (folder / "images").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        scene = render_scene((seed, number), size)
        name = f"images/{number:06d}.jpg"
        with named(folder / name):
            Image.fromarray(scene.pixels).save(folder / name, quality=JPEG_QUALITY)
        images.append({"id": number + 1, "file_name": name, "height": size[0], "width": size[1]})
        for found in _annotations(scene):
            annotations.append({"id": len(annotations) + 1, "image_id": number + 1, **found})
    _write_truth(path, images, annotations)
    return path


def _write_truth(path: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> None:
    with write_whole(path) as temporary:
        temporary.write_text(json.dumps({"images": images, "annotations": annotations, "categories": _categories()}))


def _categories() -> list[dict[str, Any]]:
    return [{"id": category.id, "name": category.name} for category in CATEGORIES]


def is_taken(folder: Path) -> bool:
    """Whether anything visible is in a folder."""
    return folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())


def holds_scenes(folder: Path) -> bool:
    """Whether a folder's ``instances.json`` is of `write_scenes`, as its categories say."""
    try:
        categories = json.loads((folder / _TRUTH).read_text())["categories"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False
    return bool(categories == _categories())


def _annotations(scene: Scene) -> list[dict[str, Any]]:
    # Here, so that scenes can be rendered where it is lacking.
    from pycocotools import mask as coco_mask

    rles = coco_mask.encode(np.asfortranarray(scene.masks.transpose(1, 2, 0).astype(np.uint8)))
    return [
        {
            "category_id": CATEGORIES[label].id,
            "bbox": coco_mask.toBbox(rle).tolist(),
            "area": int(coco_mask.area(rle)),
            "iscrowd": 0,
            "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
        }
        for label, rle in zip(scene.labels.tolist(), rles, strict=True)
    ]


def _place(
    rng: np.random.Generator,
    size: tuple[int, int],
    label: int,
    masks: Sequence[NDArray[np.bool_]],
    full_areas: Sequence[int],
) -> Placed | None:
    """An object where it and all those behind it stay recognisable; ``None`` if there is no such place soon found."""
    for _ in range(_TRIES):
        radius = float(min(size) * rng.uniform(SMALLEST_RADIUS, LARGEST_RADIUS))
        centre = rng.uniform(0, 1, 2) * size
        placed = shape_at(label, centre, radius, float(rng.uniform(0, 2 * np.pi)), size)
        front = placed.field < 0
        if np.count_nonzero(front) < max(VISIBLE_PIXELS, 0.4 * radius**2):  # most of it lies beyond the edge
            continue
        left = [np.count_nonzero(mask) - np.count_nonzero(mask[placed.window] & front) for mask in masks]
        if all(n >= max(VISIBLE_PIXELS, VISIBLE_SHARE * full) for n, full in zip(left, full_areas, strict=True)):
            return placed
    return None

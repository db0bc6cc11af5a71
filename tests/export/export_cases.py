"""Outputs of an annotate job with masks of every awkward kind, to be exported."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from pipeline.annotations.class_thresholds import Selection
from pipeline.annotations.data_file import Identity
from pipeline.annotations.ledger import OutputStore
from pipeline.annotations.reader import open_source
from pipeline.annotations.run_json import RunJson, RunState
from pipeline.annotations.schema import ANNOTATED, FAILED, ImageDetections, detections_array
from pipeline.export.labels import Labels
from pipeline.model.categories import Category
from pipeline.storage.uris import Uri
from testing.output_rows import output_rows

Mask = NDArray[np.bool_]

CATEGORIES = (Category(7, 'a "quoted" <b> & ünï'), Category(3, "cat"), Category(12, "never found"))
IDENTITY = Identity("tiny (a.safetensors)", "a" * 64, "c" * 64, "{}", "0.1", "20260101T000000-run1")
IMAGE_ROOT = "s3://pictures"


def _ring() -> Mask:
    mask = np.ones((7, 9), bool)
    mask[2:5, 3:6] = False
    mask[3, 4] = True  # a part inside the hole
    return mask


# Name, mask.
MASKS: dict[str, Mask] = {
    "full": np.ones((5, 4), bool),
    "one pixel": np.eye(1, 12, 5, dtype=bool).reshape(3, 4),
    "first pixel": np.eye(1, 12, 0, dtype=bool).reshape(3, 4),
    "last pixel": np.eye(1, 12, 11, dtype=bool).reshape(3, 4),
    "a whole column": np.tile(np.arange(6) == 2, (5, 1)),
    "a whole row": np.tile(np.arange(5) == 4, (6, 1)).T,
    "a hole with a part in it": _ring(),
    "parts": np.array([[1, 1, 0, 0, 1], [1, 0, 0, 0, 1], [0, 0, 1, 0, 0]], bool),
    "touching corners": np.eye(5, dtype=bool),
    "touching corners, other way": np.eye(5, dtype=bool)[::-1],
    "checkerboard": np.indices((6, 7)).sum(0) % 2 == 0,
    "1 x 1": np.ones((1, 1), bool),
    "1 x N": np.array([[1, 0, 1, 1, 0, 1]], bool),
    "N x 1": np.array([[0], [1], [1], [0]], bool),
}
EMPTY: Mask = np.zeros((5, 4), bool)

any_mask = st_numpy.arrays(
    bool, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.booleans(), fill=st.booleans()
)


# The first example of a test takes long where imports and caches are cold.
unhurried = settings(deadline=None)


def counts_of(mask: Mask) -> str:
    """COCO's run-length string, by pycocotools."""
    return coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()


def mask_of(counts: str, image_size: Sequence[int]) -> Mask:
    return coco_mask.decode({"size": list(image_size), "counts": counts.encode()}).astype(bool)


@dataclass(frozen=True)
class Picture:
    """An image of the output; without masks if it failed."""

    id: int | str
    masks: Sequence[Mask] | None
    scores: Sequence[float] = ()
    labels: Sequence[int] = ()
    uri: str | None = ""
    exif_orientation: int | None = None

    def detections(self) -> ImageDetections | None:
        if self.masks is None:
            return None
        encoded = [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in self.masks]
        return ImageDetections(
            # Numbers that need all digits of a float32.
            boxes=np.array([coco_mask.toBbox(rle) for rle in encoded]).reshape(-1, 4) + np.float32(1 / 3),
            scores=np.array(self.scores or [0.9 / (i + 1) for i in range(len(encoded))], np.float32),
            labels=np.array(self.labels or [i % 2 for i in range(len(encoded))], np.int64),
            areas=np.array([coco_mask.area(rle) for rle in encoded], np.float32),
            image_size=self.masks[0].shape if len(self.masks) else (8, 9),
            counts=[rle["counts"] for rle in encoded],
        )

    def where(self) -> str | None:
        return f"{IMAGE_ROOT}/{self.id}.jpg" if self.uri == "" else self.uri


def table_of(pictures: Sequence[Picture]) -> pa.Table:
    found = [picture.detections() for picture in pictures]
    failed = [one is None for one in found]
    sizes = [(None, None) if one is None else one.image_size for one in found]
    ids = pa.array([picture.id for picture in pictures])
    columns = [
        ids,
        pa.array([picture.where() for picture in pictures], pa.string()),
        pa.array([height for height, _ in sizes], pa.int32()),
        pa.array([width for _, width in sizes], pa.int32()),
        pa.array([picture.exif_orientation for picture in pictures], pa.int8()),
        pa.array([FAILED if bad else ANNOTATED for bad in failed]),
        detections_array(found, [c.id for c in CATEGORIES], [c.name for c in CATEGORIES]),
        *(pa.array([text if bad else None for bad in failed], pa.string()) for text in ("fetch", "not_found", "gone")),
    ]
    return output_rows(columns)


def write_output(
    folder: Path | str,
    *files: Sequence[Picture],
    list_categories: bool = True,
    state: RunState = RunState.FINISHED,
    image_root: str = IMAGE_ROOT,
    images: Mapping[str, Any] | None = None,
) -> Uri:
    """An output with these data files; its URI. ``images``: that section of the run's config, if it is to be known."""
    store = OutputStore(Uri(str(folder)))
    for number, pictures in enumerate(files):
        store.write_rows(table_of(pictures), replace(IDENTITY, run_id=f"20260101T00000{number}-run"))
    RunJson(
        state=state,
        image_root=Uri(image_root) if image_root else None,
        categories=CATEGORIES if list_categories else (),
        config={} if images is None else {"images": dict(images)},
    ).write(store.uri)
    return store.uri


def jpeg(width: int, height: int, orientation: int = 1) -> bytes:
    """A picture of another shade at every place, stored as ``width`` x ``height``."""
    pixels = np.indices((height, width)).sum(0).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = io.BytesIO()
    Image.fromarray(pixels).convert("RGB").save(content, "JPEG", exif=exif)
    return content.getvalue()


def blobs(height: int, width: int, num: int = 2) -> list[Mask]:
    """Discs beside each other, the first with a hole and a part in that."""
    y, x = np.mgrid[:height, :width]
    radius = min(height, width / num) / 2 - 1
    away = [np.hypot(x - width * (i + 0.5) / num, y - height / 2) for i in range(num)]
    masks = [distance < radius for distance in away]
    masks[0] &= (away[0] > radius / 2) | (away[0] < radius / 4)
    return masks


def output_with_files(folder: Path, num: int = 6, **options: Any) -> Uri:
    """An output of ``num`` pictures of 40 x 64 pixels, files in ``folder / "pictures"``, two labels on all but one."""
    root = folder / "pictures"
    root.mkdir()
    pictures = []
    for number in range(num):
        (root / f"{number}.jpg").write_bytes(jpeg(64, 40))
        pictures.append(Picture(number, blobs(40, 64) if number else [], uri=str(root / f"{number}.jpg")))
    return write_output(folder / "annotations", pictures, image_root=str(root), images={}, **options)


def labels_of(uri: Uri, selection: Selection | None = None, keep_empty: bool = False) -> Labels:
    return Labels(open_source(uri), selection or Selection(), keep_empty)


def awkward_pictures() -> list[Picture]:
    """One for each kind of mask, one with several masks, one without, and one that failed."""
    pictures = [Picture(number, [mask]) for number, mask in enumerate(MASKS.values(), 100)]
    several = [np.roll(MASKS["checkerboard"], n, axis=0) & (np.indices((6, 7))[1] > n) for n in range(4)]
    return [*pictures, Picture(1, several), Picture(2, []), Picture(3, None)]


def masks_by_image(pictures: Sequence[Picture]) -> dict[int | str, list[Mask]]:
    return {picture.id: list(picture.masks) for picture in pictures if picture.masks is not None}

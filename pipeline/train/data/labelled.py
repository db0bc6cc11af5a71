"""Images with their objects before any picture is read: small, picklable, and rows of a table.

All sources of training data end here, each mask checked and in one form, so that what is wrong with a data set is
known before the first step and not in the fifth hour.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pipeline.annotations.failure import ImageFailure
from pipeline.annotations.pictures import PictureSource
from pipeline.errors import UserError
from pipeline.storage.uris import UriText
from pipeline.train.sample.geometry import MIN_PIXELS, mask_boxes
from pipeline.train.sample.sample import Sample


class DataError(UserError):
    """Training data that cannot be used. The message says where, why and what to do, and holds no credentials."""


@dataclass(frozen=True)
class LabelledImage:
    """An image and its G objects.

    Attributes:
        image_id: of the data set.
        uri: of the picture; absolute, or relative to the root that the pictures are read with.
        size: (H, W) in pixels.
        labels: G positions in the list of classes.
        ignored: G, whether an object is neither to be found nor background.
        counts: G run-length strings of the masks.
    """

    image_id: int | str
    uri: UriText
    size: tuple[int, int]
    labels: tuple[int, ...]
    ignored: tuple[bool, ...]
    counts: tuple[bytes, ...]

    def sample(self, pixels: NDArray[np.uint8]) -> Sample:
        """With its picture, RGB ``(H, W, 3)``. Boxes are those of the masks.

        Raises:
            DataError: the picture has another size than the masks.
        """
        if pixels.shape[:2] != self.size:
            found, known = (" x ".join(map(str, size)) for size in (pixels.shape[:2], self.size))
            raise DataError(
                f"image {self.image_id!r}: the picture is {found} (height x width), its annotations are for {known}; "
                "where the sides are swapped, one of them ignores the orientation that EXIF gives"
            )
        masks = np.zeros((len(self.counts), *self.size), np.bool_)
        for mask, counts in zip(masks, self.counts, strict=True):
            mask[:] = self._decode(counts)
        return Sample(
            image_id=self.image_id,
            pixels=pixels,
            boxes=mask_boxes(masks),
            labels=np.array(self.labels, np.int64),
            masks=masks,
            ignored=np.array(self.ignored, np.bool_),
        )

    def _decode(self, counts: bytes) -> NDArray[np.uint8]:
        try:
            return coco_mask.decode({"size": list(self.size), "counts": counts})
        except ValueError as error:
            raise DataError(f"image {self.image_id!r}: the run lengths of a mask are damaged: {error}") from None


@dataclass(frozen=True)
class LabelledTable(Sequence[LabelledImage]):
    """Images as columns: in Ray's object store all processes of a node share one copy.

    Attributes:
        rows: image_id, image_uri, height, width, and the lists labels, ignored and counts.
    """

    rows: pa.Table

    @classmethod
    def of(cls, images: Iterable[LabelledImage]) -> LabelledTable:
        """Of images whose ids are all numbers or all texts."""
        images = list(images)
        columns = {
            "image_id": pa.array([image.image_id for image in images]),
            "image_uri": pa.array([image.uri.secret_text for image in images], pa.large_string()),
            "height": pa.array([image.size[0] for image in images], pa.int32()),
            "width": pa.array([image.size[1] for image in images], pa.int32()),
            "labels": pa.array([image.labels for image in images], pa.large_list(pa.int32())),
            "ignored": pa.array([image.ignored for image in images], pa.large_list(pa.bool_())),
            "counts": pa.array([image.counts for image in images], pa.large_list(pa.large_binary())),
        }
        return cls(pa.table(columns))

    def __len__(self) -> int:
        return self.rows.num_rows

    def objects_of_classes(self, num_classes: int) -> list[int]:
        """How many objects there are to be found of each label; ignored ones are not counted."""
        labels, ignored = (pc.list_flatten(self.rows[name]).to_numpy() for name in ("labels", "ignored"))
        counts: list[int] = np.bincount(labels[~ignored], minlength=num_classes).tolist()
        return counts

    @overload
    def __getitem__(self, index: int) -> LabelledImage: ...

    @overload
    def __getitem__(self, index: slice) -> LabelledTable: ...

    def __getitem__(self, index: int | slice) -> LabelledImage | LabelledTable:
        if isinstance(index, slice):
            return LabelledTable(self.rows.take(pa.array(range(*index.indices(len(self))), pa.int64())))
        if not -len(self) <= index < len(self):
            raise IndexError(f"no image {index} of {len(self)}")
        (row,) = self.rows.slice(index % len(self), 1).to_pylist()
        return LabelledImage(
            row["image_id"],
            UriText(row["image_uri"]),
            (row["height"], row["width"]),
            tuple(row["labels"]),
            tuple(row["ignored"]),
            tuple(row["counts"]),
        )


def is_visible(counts: bytes, size: tuple[int, int]) -> bool:
    """Whether a mask has enough pixels to be learnt from."""
    return bool(coco_mask.area({"size": list(size), "counts": counts}) >= MIN_PIXELS)


def load_sample(image: LabelledImage, pictures: PictureSource) -> Sample | ImageFailure:
    """Fetch and decode the picture of an image; why there is none, as a value.

    Raises:
        DataError: the picture has another size than the annotations.
    """
    (picture,) = pictures.read_many([image.uri])
    return picture if isinstance(picture, ImageFailure) else image.sample(picture)

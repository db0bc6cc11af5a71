"""What evaluation needs of predictions, whichever form they have: groups of images that fit into memory.

Groups are numbered from 0. A stage lists the images of all groups, so that ground truth can be dealt to them
(``pairing``); a later one reads each group's detections, some images at a time (``groups``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import pyarrow as pa

from pipeline.coco.rows import ImageId
from pipeline.evaluate.shuffle.chunks import ChunkFile, ChunkStore, parts_of
from pipeline.metrics.blocks import Categories, DetectionBlock
from pipeline.storage.uris import Uri
from pipeline.tables.arrays import Int64s

# So few that the memory of one block does for the next: new pages cost more than the calls that larger ones save.
BLOCK_IMAGES = 256

CategoryKey = tuple[int, str | None]  # id, and name where the predictions give one


class DetectionBatch(Protocol):
    """The detections on some images."""

    @property
    def image_ids(self) -> pa.Array:
        """Of the images, each once: ``int64`` or ``large_string``."""

    def block(self, rows: Int64s, image_sizes: Int64s, categories: Categories, masks: bool) -> DetectionBlock:
        """The detections on chosen images; those of categories that the ground truth lacks are left out.

        Args:
            rows: [N] of the images, in the order of the block.
            image_sizes: [N, 2] their height, width in pixels, as the ground truth says.
            categories: of the ground truth.
            masks: whether masks are needed.

        Raises:
            InputError: a detection that cannot be evaluated.
        """


class Predictions(Protocol):
    """Predictions in groups of images. Small and picklable."""

    @property
    def uri(self) -> Uri: ...

    @property
    def id_type(self) -> pa.DataType:
        """Of the images' ids: ``int64`` or ``large_string``."""

    @property
    def lists_empty_images(self) -> bool:
        """Whether images without detections have a row, too, so that one without a row was left out."""

    @property
    def num_without_box(self) -> int:
        """Detections whose box is the smallest one about their mask, for want of another."""

    @property
    def num_groups(self) -> int:
        """At least 1."""

    def list_group(self, group: int) -> tuple[pa.Table, Counter[CategoryKey]]:
        """The images of a group, see `listed_schema`, and its detections by category."""

    def read_group(self, group: int, masks: bool) -> Iterator[DetectionBatch]:
        """The detections of a group, up to `BLOCK_IMAGES` images at a time; an image's are all in one batch."""


@dataclass(frozen=True)
class ListedImages:
    """The images of some groups, dealt by their ids on scratch storage.

    Attributes:
        file: `listed_schema`, as many parts as the ground truth has.
        num_images: rows of the file.
        first_id: of an image, for messages.
        detections: how many there are of each category.
    """

    file: ChunkFile
    num_images: int
    first_id: ImageId | None
    detections: Mapping[CategoryKey, int]


def listed_schema(id_type: pa.DataType) -> pa.Schema:
    """Of the rows that say where an image's detections are: sizes in pixels, 0 where they are not known."""
    columns = [("failed", pa.bool_()), ("height", pa.int32()), ("width", pa.int32())]
    return pa.schema([("image_id", id_type), ("group", pa.int64()), *columns])


def group_ranges(predictions: Predictions, most: int = 256) -> list[range]:
    """All groups in at most so many ranges of about equal length: as many files as a join has to read."""
    bounds = np.linspace(0, predictions.num_groups, min(most, predictions.num_groups) + 1).astype(int).tolist()
    return [range(start, stop) for start, stop in pairwise(bounds)]


def list_images(predictions: Predictions, groups: Sequence[int], store: ChunkStore, num_parts: int) -> ListedImages:
    """Deal the images of some groups by their ids.

    Args:
        predictions: whose images are listed.
        groups: numbers of the groups, one range of `group_ranges`.
        store: where the file goes; the same groups overwrite it.
        num_parts: parts of the ground truth.
    """
    detections: Counter[CategoryKey] = Counter()
    tables = []
    for group in groups:
        table, counts = predictions.list_group(group)
        tables.append(table)
        detections.update(counts)
    table = pa.concat_tables(tables)
    file = store.write(f"listed-{groups[0]:05d}.arrows", table, parts_of(table["image_id"], num_parts), num_parts)
    first_id = table["image_id"][0].as_py() if table.num_rows else None
    return ListedImages(file, table.num_rows, first_id, dict(detections))

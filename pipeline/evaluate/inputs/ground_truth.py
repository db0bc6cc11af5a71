"""COCO ground truth of any size -> its images and annotations dealt by image id, in one pass and bounded memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from pipeline.coco.errors import InputError
from pipeline.coco.json_stream import Element, JsonLists
from pipeline.coco.rows import (
    IMAGE_ID,
    POLYGONS,
    BadRow,
    IdKind,
    ImageId,
    ObjectRow,
    at_place,
    category_row,
    image_row,
    image_schema,
    object_row,
    object_schema,
    string_id,
)
from pipeline.coco.segmentations import NO_POLYGON
from pipeline.evaluate.shuffle.chunks import ChunkFile, ChunkStore, Dealer, chunks_of
from pipeline.evaluate.shuffle.id_order import ORDER_SCHEMA, IdOrder
from pipeline.messages.examples import NUM_EXAMPLES, Examples
from pipeline.metrics.blocks import Categories
from pipeline.storage.filesystems import open_filesystem
from pipeline.storage.uris import Uri

PART_BYTES = 64 << 20  # of JSON
# The number of range reads grows with its square; beyond 64 GB of JSON the parts grow.
MAX_PARTS = 1024
_COMPRESSED_SUFFIXES = (".gz", ".bz2", ".zst")
_COMPRESSION = 5  # of polygons as text, about
_ROWS_AT_ONCE = 256  # so few that the garbage collector does not go through many polygons
_NAMES = pa.schema([("number", pa.int64()), ("name", pa.large_string())])


@dataclass(frozen=True)
class DealtTruth:
    """Ground truth on scratch storage. Small and picklable: tasks on other machines read their part of it.

    Attributes:
        uri: of the JSON file.
        id_type: of the images' ids: ``int64`` or ``large_string``.
        first_id: of an image, for messages; ``None`` if there is none.
        categories: all that the file lists.
        masks: whether the annotations' segmentations are there.
        num_images: images in all parts.
        num_objects: annotations in all parts.
        num_parts: P, that images and annotations are dealt into.
        images: ``coco_rows.image_schema`` by image id.
        objects: ``coco_rows.object_schema`` by image id, those of an image in the order of the file.
        object_ids: ids of the annotations, by themselves: two that are equal are in the same part.
        orders: ``id_order.ORDER_SCHEMA`` by image id, where ids are strings.
    """

    uri: Uri
    id_type: pa.DataType
    first_id: ImageId | None
    categories: Categories
    masks: bool
    num_images: int
    num_objects: int
    num_parts: int
    images: tuple[ChunkFile, ...]
    objects: tuple[ChunkFile, ...]
    object_ids: tuple[ChunkFile, ...]
    orders: tuple[ChunkFile, ...]


def deal_truth(uri: Uri, store: ChunkStore, masks: bool, string_ids: bool = False) -> DealtTruth:
    """Read ground truth once and deal it.

    Args:
        uri: a COCO JSON file, perhaps compressed; ``images``, ``annotations`` and ``categories`` in any order.
        store: where the parts go: about half the size of the file with masks.
        masks: keep the segmentations; without them, only boxes can be compared.
        string_ids: whether the predictions' ids are strings: then images that were numbered by the export go by the
            string beside the number, and annotations go with their images.

    Raises:
        InputError: not COCO ground truth, or a row of it is wrong. What only shows when rows are compared (ids
            that occur twice, annotations of unknown images) is for ``pairing`` to find.
        StorageError: the file cannot be read.
    """
    reader = _TruthReader(uri, store, count_parts(uri), masks, string_ids)
    elements = JsonLists(uri)
    for element in elements:
        if element.key is None:
            break
        reader.take(element)
    if None in elements.keys:
        raise InputError(
            f"{uri} is a list, as results are; ground truth is an object with the lists images, annotations "
            "and categories"
        )
    for key in ("images", "annotations"):
        if key not in elements.keys:
            raise InputError(f"{uri} is no COCO ground truth: it has no list {key!r}")
    return reader.close()


def count_parts(uri: Uri) -> int:
    """How many parts a JSON file is dealt into: by its size, and as many as there may be where that is not known.

    Raises:
        InputError: there is no such file.
    """
    filesystem, path = open_filesystem(uri)
    info = filesystem.get_file_info(path)
    if info.type == pafs.FileType.NotFound:
        raise InputError(f"{uri} does not exist")
    if info.type != pafs.FileType.File:
        raise InputError(f"{uri} is a folder: give the file in it")
    if info.size is None:
        return MAX_PARTS
    size = info.size * (_COMPRESSION if path.endswith(_COMPRESSED_SUFFIXES) else 1)
    return min(MAX_PARTS, max(1, -(-size // PART_BYTES)))


class RowBuffer:
    """Rows, one at a time -> tables of a schema, which goes to a dealer.

    Attributes:
        num_rows: how many there were.
        rows: those that wait to be dealt.
    """

    def __init__(self, dealer: Dealer) -> None:
        self.num_rows = 0
        self.rows: list[tuple[Any, ...]] = []
        self._dealer = dealer

    def add(self, row: tuple[Any, ...]) -> bool:
        """Whether there are now enough rows for a table."""
        self.rows.append(row)
        self.num_rows += 1
        return len(self.rows) >= _ROWS_AT_ONCE

    def deal(self, schema: pa.Schema) -> pa.Table:
        """Deal what is there by the first column."""
        columns = list(zip(*self.rows, strict=True)) or [()] * len(schema)
        table = pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
        self.rows = []
        if table.num_rows:
            self._dealer.deal(table, schema.names[0])
        return table


class _TruthReader:
    """Takes the elements of a ground truth file in the order of the file."""

    def __init__(self, uri: Uri, store: ChunkStore, num_parts: int, masks: bool, string_ids: bool) -> None:
        self._uri, self._store, self._num_parts, self._masks = uri, store, num_parts, masks
        self._string_ids = string_ids
        self._id_kind = IdKind(uri)
        self._dealers = [Dealer(store, name, num_parts) for name in ("images", "objects", "object-ids")]
        self._images, self._objects = (RowBuffer(dealer) for dealer in self._dealers[:2])
        self._name_dealer = Dealer(store, "names", num_parts)
        self._names = RowBuffer(self._name_dealer)
        self._first_name: str | None = None
        self._order = IdOrder(store)
        self._categories: dict[int, str] = {}
        self._first_use: dict[int, int] = {}  # category id -> annotation id

    def take(self, element: Element) -> None:
        """Check a row and put it where it belongs; lists with other keys are passed over."""
        try:
            if element.key == "annotations":
                self._take_object(element)
            elif element.key == "images":
                self._take_image(element)
            elif element.key == "categories":
                self._take_category(element)
        except BadRow as error:
            raise at_place(self._uri, element, error) from None

    def close(self) -> DealtTruth:
        """Deal the last rows."""
        categories = self._checked_categories()
        self._deal_images()
        self._deal_objects()
        images, objects, object_ids = (dealer.close() for dealer in self._dealers)
        id_type, first_id = self._id_kind.arrow_type, self._id_kind.first
        if self._first_name is not None:
            self._names.deal(_NAMES)
            images, objects, orders = self._by_names(images, objects)
            id_type, first_id = pa.large_string(), self._first_name
        else:
            orders = self._order.deal(self._num_parts) if pa.types.is_large_string(id_type) else ()
        return DealtTruth(
            uri=self._uri,
            id_type=id_type,
            first_id=first_id,
            categories=categories,
            masks=self._masks,
            num_images=self._images.num_rows,
            num_objects=self._objects.num_rows,
            num_parts=self._num_parts,
            images=images,
            objects=objects,
            object_ids=object_ids,
            orders=orders,
        )

    def _take_image(self, element: Element) -> None:
        row = image_row(element.value, needs_size=self._masks)
        self._id_kind.check(row.image_id)
        if self._string_ids and isinstance(row.image_id, int):
            self._take_name(row.image_id, string_id(element.value))
        if self._images.add(row):
            self._deal_images()

    def _take_name(self, number: int, name: str | None) -> None:
        if self._images.num_rows == 0:
            self._first_name = name
        if (name is None) != (self._first_name is None):
            lacks = "it" if name is None else "the first image"
            raise BadRow(f"{lacks} has no {IMAGE_ID}, which others have: the file mixes images of two outputs")
        if name is not None and self._names.add((number, name)):
            self._names.deal(_NAMES)

    def _take_object(self, element: Element) -> None:
        row = object_row(element.value, self._masks)
        self._id_kind.check(row.image_id)
        self._first_use.setdefault(row.category_id, row.id)
        if self._objects.add(row):
            self._deal_objects()

    def _take_category(self, element: Element) -> None:
        category_id, name = category_row(element.value)
        if category_id in self._categories:
            raise BadRow(f"the id stands for {self._categories[category_id]!r}, too; give each category its own")
        self._categories[category_id] = name

    def _deal_images(self) -> None:
        table = self._images.deal(image_schema(self._id_kind.arrow_type))
        if table.num_rows and pa.types.is_large_string(self._id_kind.arrow_type):
            self._order.add(table["image_id"])

    def _deal_objects(self) -> None:
        try:
            table = self._objects.deal(object_schema(self._id_kind.arrow_type))
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            self._refuse_polygons()
            raise
        if table.num_rows:
            self._dealers[2].deal(table.select(["id"]), "id")

    def _refuse_polygons(self) -> None:
        """Name the first waiting object whose polygons are no lists of numbers."""
        for row in map(ObjectRow._make, self._objects.rows):
            try:
                pa.array([row.polygons], POLYGONS)
            except (pa.ArrowInvalid, pa.ArrowTypeError):
                raise InputError(f"{self._uri}, annotation {row.id}: {NO_POLYGON}") from None

    def _by_names(self, *dealt: tuple[ChunkFile, ...]) -> list[tuple[ChunkFile, ...]]:
        """Images and objects, dealt by numbers, dealt anew by the strings beside these; and the numbers as orders."""
        kinds = {"named-images": image_schema, "named-objects": object_schema}
        *dealers, orders = (Dealer(self._store, kind, self._num_parts) for kind in (*kinds, "order"))
        files = self._name_dealer.close()
        for part in range(self._num_parts):
            names = self._store.read(chunks_of(files, part), _NAMES)
            numbers = names["number"].combine_chunks()
            if pc.count_distinct(numbers).as_py() < len(numbers):
                pairs = pc.value_counts(numbers).to_pylist()
                twice = Examples.of(str(pair["values"]) for pair in pairs if pair["counts"] > 1)
                raise InputError(
                    f"{self._uri}: images have an id that another one has, too: {twice}; give each its own"
                )
            if names.num_rows:
                orders.deal(pa.table([names["name"], names["number"]], schema=ORDER_SCHEMA), "image_id")
            for dealer, chunks, schema in zip(dealers, dealt, kinds.values(), strict=True):
                table = self._store.read(chunks_of(chunks, part), schema(pa.int64()))
                ids = names["name"].take(pc.index_in(table["image_id"], value_set=numbers))
                if ids.null_count:
                    self._refuse_orphans(table.filter(ids.is_null()))
                if table.num_rows:
                    dealer.deal(table.set_column(0, schema(pa.large_string()).field(0), ids), "image_id")
        return [dealer.close() for dealer in (*dealers, orders)]

    def _refuse_orphans(self, objects: pa.Table) -> None:
        first = objects.slice(0, NUM_EXAMPLES).to_pylist()
        orphans = Examples.of((f"{row['id']} (of image {row['image_id']})" for row in first), objects.num_rows)
        raise InputError(
            f"{self._uri}: annotations belong to images that the file lacks: {orphans}; remove them or add these"
        )

    def _checked_categories(self) -> Categories:
        if not self._categories:
            raise InputError(f"{self._uri} is ground truth without categories; add the list 'categories'")
        unknown = sorted(self._first_use.keys() - self._categories.keys())
        if unknown:
            examples = Examples.of(f"{id_} (of annotation {self._first_use[id_]})" for id_ in unknown)
            raise InputError(
                f"{self._uri}: annotations have {len(unknown):,} categories that the list 'categories' lacks: "
                f"{examples}"
            )
        ids = sorted(self._categories)
        return Categories(tuple(ids), tuple(self._categories[id_] for id_ in ids))

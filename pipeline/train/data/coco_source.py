"""COCO JSON as training data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from pipeline.coco.errors import InputError
from pipeline.coco.json_stream import Element, JsonLists
from pipeline.coco.rows import (
    BadRow,
    IdKind,
    ImageId,
    ImageRow,
    ObjectRow,
    at_place,
    category_row,
    image_row,
    object_row,
)
from pipeline.coco.segmentations import BadSegmentation, as_rles
from pipeline.masks.rle import Rle
from pipeline.messages.examples import Examples
from pipeline.model.categories import Category
from pipeline.storage.uris import Uri, UriError, resolve
from pipeline.train.data.books import DataReport
from pipeline.train.data.labelled import DataError, LabelledImage, is_visible

# A polygon that ends on the image's edge may go beyond it by rounding; that is no defect to count.
_CLIP_TOLERANCE = 1.0


def read_coco(
    uri: Uri, image_root: Uri | None, classes: Sequence[Category] | None = None, keep_empty: bool = True
) -> tuple[list[LabelledImage], tuple[Category, ...], DataReport]:
    """Read and check a data set; masks become run lengths, pictures are not touched.

    Annotations outside of the image are clipped to it, or dropped where nothing is left; those without area are
    dropped; crowds are ignored objects. The report has the counts.

    Args:
        uri: a COCO JSON file, perhaps compressed; local or in object storage.
        image_root: what ``file_name`` is relative to.
        classes: what labels are positions in, matched by name: those that are trained. ``None``: the file's own
            categories in the order of their ids.
        keep_empty: images without objects are background to learn from; without it they are left out.

    Returns:
        The images in the order of the file, the classes, and the report.

    Raises:
        DataError: a category in use that ``classes`` lacks; a segmentation that is none; no images.
        InputError: the file is not COCO ground truth, or a row of it is wrong.
    """
    reader = _Reader(uri)
    elements = JsonLists(uri)
    for element in elements:
        reader.take(element)
    if None in elements.keys or not {"images", "annotations", "categories"} <= {*elements.keys}:
        raise InputError(f"{uri} is no COCO data set: it needs the lists images, annotations and categories")
    known = tuple(classes) if classes is not None else reader.own_classes()
    labels = reader.labels(known)
    images: list[LabelledImage] = []
    report = DataReport()
    for row in reader.images.values():
        image, counted = _labelled(row, reader.objects.get(row.image_id, ()), labels, uri, image_root)
        if not image.counts and not keep_empty:
            counted = replace(counted, usable=0, negatives=0, left_out=1)
        else:
            images.append(image)
        report += counted
    if not images:
        raise DataError(f"{uri} has no images to train on: {report}")
    return images, known, report


class _Reader:
    """The rows of a file, checked one by one and as a whole."""

    def __init__(self, uri: Uri) -> None:
        self.images: dict[ImageId, ImageRow] = {}
        self.objects: dict[ImageId, list[tuple[ObjectRow, object]]] = defaultdict(list)
        self._uri = uri
        self._categories: dict[int, str] = {}
        self._used: set[int] = set()
        self._id_kind = IdKind(uri)

    def take(self, element: Element) -> None:
        """Take in an element of one of the three lists; others are not looked at.

        Raises:
            InputError: it is wrong; saying where and how.
        """
        try:
            if element.key == "images":
                self._take_image(element)
            elif element.key == "annotations":
                self._take_object(element)
            elif element.key == "categories":
                self._take_category(element)
        except BadRow as error:
            raise at_place(self._uri, element, error) from None

    def own_classes(self) -> tuple[Category, ...]:
        """The file's categories in the order of their ids."""
        return tuple(Category(id_, name) for id_, name in sorted(self._categories.items()))

    def labels(self, classes: Sequence[Category]) -> dict[int, int]:
        """The label of each category by its id, after a look at the file as a whole."""
        orphans = self.objects.keys() - self.images.keys()
        if orphans:
            raise DataError(
                f"{self._uri}: annotations of {len(orphans):,} images that the file does not list: "
                f"{_examples(orphans)}; remove them, or add the images"
            )
        unnamed = self._used - self._categories.keys()
        if unnamed:
            raise DataError(f"{self._uri}: the list 'categories' lacks {_examples(unnamed)}, which are in use")
        names = [category.name for category in classes]
        if foreign := {self._categories[id_] for id_ in self._used} - set(names):
            raise DataError(
                f"{self._uri} has objects of classes that are not trained: {_examples(foreign)}. "
                f"Its classes: {', '.join(self._categories.values())}. Trained classes: {', '.join(names)}"
            )
        return {id_: names.index(name) for id_, name in self._categories.items() if name in names}

    def _take_image(self, element: Element) -> None:
        row = image_row(element.value, needs_size=True)
        self._id_kind.check(row.image_id)
        if row.image_id in self.images:
            raise BadRow("another image has this id, too; give each its own")
        if not row.file_name:
            raise BadRow("it has no file_name, so there is no picture to train on")
        self.images[row.image_id] = row

    def _take_object(self, element: Element) -> None:
        if isinstance(element.value, Mapping) and not element.value.get("segmentation"):
            raise BadRow("it has no segmentation, and masks are learnt here: add its outline, or leave it out")
        row = object_row(element.value, masks=True)
        self._id_kind.check(row.image_id)
        self._used.add(row.category_id)
        # The parsed segmentation is at hand, whatever its form.
        self.objects[row.image_id].append((row._replace(polygons=None, mask=None), element.value["segmentation"]))

    def _take_category(self, element: Element) -> None:
        category_id, name = category_row(element.value)
        if category_id in self._categories or name in self._categories.values():
            raise BadRow("another category has this id or name, too; give each its own")
        self._categories[category_id] = name


def _labelled(
    row: ImageRow,
    objects: Iterable[tuple[ObjectRow, object]],
    labels: Mapping[int, int],
    uri: Uri,
    image_root: Uri | None,
) -> tuple[LabelledImage, DataReport]:
    size = (row.height, row.width)
    report = DataReport(images=1, usable=1)
    kept: list[tuple[int, bool, bytes]] = []
    for fate, found, rle in _judged(objects, size, uri):
        report += fate
        if rle is not None:
            kept.append((labels[found.category_id], found.crowd, rle["counts"]))
    if not kept:
        report = replace(report, negatives=1)
    try:
        place = resolve(str(row.file_name), image_root)
    except UriError as error:
        raise DataError(f"{uri}, image {row.image_id!r}: {error}") from None
    labels_, crowds, counts = zip(*kept, strict=True) if kept else ((), (), ())
    return LabelledImage(row.image_id, place, size, labels_, crowds, counts), report


def _judged(
    objects: Iterable[tuple[ObjectRow, object]], size: tuple[int, int], uri: Uri
) -> Iterator[tuple[DataReport, ObjectRow, Rle | None]]:
    """What becomes of each annotation: its line in the books, and its mask if it is kept."""
    height, width = size
    inside: list[tuple[ObjectRow, object]] = []
    for found, segmentation in objects:
        x, y, w, h = found.box
        if w <= 0 or h <= 0:
            yield DataReport(annotations=1, no_area=1), found, None
        elif x >= width or y >= height or x + w <= 0 or y + h <= 0:
            yield DataReport(annotations=1, outside=1), found, None
        else:
            inside.append((found, segmentation))
    try:
        rles = as_rles([segmentation for _, segmentation in inside], [size] * len(inside))
    except BadSegmentation as error:
        bad = inside[error.index][0]
        raise DataError(f"{uri}, annotation {bad.id} of image {bad.image_id!r}: {error}") from None
    for (found, _), rle in zip(inside, rles, strict=True):
        if not is_visible(rle["counts"], size):
            yield DataReport(annotations=1, tiny=1), found, None
            continue
        x, y, w, h = found.box
        overhang = max(-x, -y, x + w - width, y + h - height)
        clipped = int(overhang > _CLIP_TOLERANCE)
        yield DataReport(annotations=1, **{_kind(found): 1}, clipped=clipped), found, rle


def _kind(found: ObjectRow) -> str:
    return "ignored" if found.crowd else "objects"


def _examples(values: Iterable[object]) -> Examples:
    return Examples.of(sorted(values, key=str))

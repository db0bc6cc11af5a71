"""Checked rows of COCO files: what an image, an annotation and a result must have, and nothing else of them.

The rules are those that pycocotools needs but does not check; where it would stop with a ``KeyError`` or compute
nonsense, the message here says which value is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any, NamedTuple

import pyarrow as pa
from pydantic_core import from_json, to_json

from pipeline.coco.errors import InputError
from pipeline.coco.json_stream import Element
from pipeline.errors import UserError
from pipeline.storage.uris import Uri

# A key of our own, in images and results: the image's id where that is a string, which COCO's tools do not take.
IMAGE_ID = "maskfleet_image_id"

BOX = pa.list_(pa.float64(), 4)
POLYGONS = pa.large_list(pa.large_list(pa.float64()))
_INT64 = range(-(1 << 63), 1 << 63)
_NUMBERS = {int, float}

ImageId = int | str


class BadRow(UserError):
    """What is wrong with a row, without its place."""


class ImageRow(NamedTuple):
    """An image of the ground truth; height and width in pixels, 0 where they are not known."""

    image_id: ImageId
    height: int
    width: int
    file_name: str | None


class ObjectRow(NamedTuple):
    """An annotation of the ground truth.

    Box: x, y, width, height in pixels; ``polygons``: as they were parsed, unchecked; ``mask``: the segmentation in
    JSON, where it is anything else.
    """

    image_id: ImageId
    id: int
    category_id: int
    box: list[float]
    area: float
    crowd: bool
    polygons: list[Any] | None
    mask: str | None


class ResultRow(NamedTuple):
    """A detection of a results file. Box: x, y, width, height in pixels; ``mask``: the segmentation in JSON."""

    image_id: ImageId
    category_id: int
    score: float
    box: list[float] | None
    mask: str | None


def image_schema(id_type: pa.DataType) -> pa.Schema:
    """Of tables of `ImageRow`."""
    return pa.schema([("image_id", id_type), ("height", pa.int32()), ("width", pa.int32()), ("file_name", pa.string())])


def object_schema(id_type: pa.DataType) -> pa.Schema:
    """Of tables of `ObjectRow`."""
    columns = [("id", pa.int64()), ("category_id", pa.int64()), ("box", BOX), ("area", pa.float64())]
    masks = [("polygons", POLYGONS), ("mask", pa.large_string())]
    return pa.schema([("image_id", id_type), *columns, ("crowd", pa.bool_()), *masks])


def result_schema(id_type: pa.DataType) -> pa.Schema:
    """Of tables of `ResultRow`."""
    columns = [("category_id", pa.int64()), ("score", pa.float64()), ("box", BOX), ("mask", pa.large_string())]
    return pa.schema([("image_id", id_type), *columns])


def image_row(value: Any, needs_size: bool) -> ImageRow:
    """Check an element of ``images``.

    Args:
        value: the element, parsed; anything that JSON can hold.
        needs_size: for masks, without which polygons have no meaning.

    Raises:
        BadRow: an id, or a size where it is needed, is missing or not what it must be.
    """
    image_id = _image_id(value, "id")
    height, width = value.get("height"), value.get("width")
    file_name = value.get("file_name")
    if not isinstance(file_name, str):  # nothing but the pictures of the report needs it
        file_name = None
    if height is None and width is None and not needs_size:
        return ImageRow(image_id, 0, 0, file_name)
    if type(height) is not int or type(width) is not int or not (0 < height < 1 << 31 and 0 < width < 1 << 31):
        raise BadRow(
            f"height and width must be whole numbers of pixels above 0, not {_brief(height)} and {_brief(width)}"
        )
    return ImageRow(image_id, height, width, file_name)


def string_id(value: dict[str, Any]) -> str | None:
    """The id of an image that has a string (`IMAGE_ID`) beside its number; ``None`` for an image without it.

    Args:
        value: an element of ``images`` that `image_row` took.

    Raises:
        BadRow: it is no string.
    """
    if IMAGE_ID not in value:
        return None
    found = _image_id(value, IMAGE_ID)
    if not isinstance(found, str):
        raise BadRow(f"{IMAGE_ID} must be a string, not {_brief(found)}")
    return found


def object_row(value: Any, masks: bool) -> ObjectRow:
    """Check an element of ``annotations``; without ``iscrowd`` it is no crowd.

    Args:
        value: the element, parsed; anything that JSON can hold.
        masks: whether the segmentation is needed.

    Raises:
        BadRow: a key is missing or its value not what it must be.
    """
    image_id = _image_id(value, "image_id")
    crowd = value.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise BadRow(f"iscrowd must be 0 or 1, not {_brief(crowd)}")
    segmentation = value.get("segmentation")
    if masks and not segmentation:
        raise BadRow("it has no segmentation; evaluate boxes only, or add it")
    return ObjectRow(
        image_id,
        _int(value, "id"),
        _int(value, "category_id"),
        _box(_get(value, "bbox")),
        _number(value, "area"),
        bool(crowd),
        segmentation if masks and isinstance(segmentation, list) else None,
        _in_json(segmentation) if masks and not isinstance(segmentation, list) else None,
    )


def result_row(value: Any, masks: bool, string_ids: bool = False) -> ResultRow:
    """Check an element of a results file; without a box, or with an empty one, it must have a segmentation.

    Args:
        value: the element, parsed; anything that JSON can hold.
        masks: whether the segmentation is needed.
        string_ids: of its two ids, a result that was numbered (`IMAGE_ID`) goes by the string.

    Raises:
        BadRow: a key is missing or its value not what it must be.
    """
    is_numbered = string_ids and isinstance(value, dict) and IMAGE_ID in value
    image_id = _image_id(value, IMAGE_ID if is_numbered else "image_id")
    box, segmentation = value.get("bbox"), value.get("segmentation")
    if masks and not segmentation:
        raise BadRow("it has no segmentation; evaluate boxes only")
    if not box and not segmentation:
        raise BadRow("it has neither bbox nor segmentation")
    return ResultRow(
        image_id,
        _int(value, "category_id"),
        _number(value, "score"),
        _box(box) if box else None,
        _in_json(segmentation) if masks or not box else None,
    )


def category_row(value: Any) -> tuple[int, str]:
    """Id and name of an element of ``categories``.

    Raises:
        BadRow: one of them is missing or not what it must be.
    """
    name = _get(value, "name")
    if not isinstance(name, str):
        raise BadRow(f"name must be a string, not {_brief(name)}")
    return _int(value, "id"), name


def place(uri: Uri, element: Element) -> str:
    """How messages call an element: ``instances.json, annotations[6] (id 7)``."""
    has_id = isinstance(element.value, Mapping) and "id" in element.value
    known = f" (id {_brief(element.value['id'])})" if has_id else ""
    return f"{uri}, {element.key or 'result'}[{element.position}]{known}"


class IdKind:
    """Whether image ids are integers or strings: what the first one is, all must be.

    Args:
        uri: of the file, for messages.
    """

    def __init__(self, uri: Uri) -> None:
        self._uri = uri
        self.first: ImageId | None = None

    @property
    def arrow_type(self) -> pa.DataType:
        """``int64`` or ``large_string``; the former as long as there is no id."""
        return pa.large_string() if isinstance(self.first, str) else pa.int64()

    def check(self, image_id: ImageId) -> None:
        """Raise unless this id is of the type of those before.

        Raises:
            BadRow: it is not.
        """
        if self.first is None:
            self.first = image_id
        if type(image_id) is not type(self.first):
            raise BadRow(
                f"image ids must be all integers or all strings: {image_id!r} here, {self.first!r} before; the file "
                "mixes both"
            )


def at_place(uri: Uri, element: Element, error: BadRow) -> InputError:
    """The same error with its place."""
    return InputError(f"{place(uri, element)}: {error}")


def _get(value: Any, key: str) -> Any:
    try:
        return value[key]
    except KeyError:
        raise BadRow(f"it has no key {key!r}; it has: {', '.join(value) or 'none'}") from None
    except TypeError:  # of JSON's kinds, only an object takes strings
        raise BadRow(f"it is {_brief(value)}, not an object") from None


def _int(value: Any, key: str) -> int:
    found = _get(value, key)
    if type(found) is not int or found not in _INT64:
        raise BadRow(f"{key} must be an integer of at most 64 bits, not {_brief(found)}")
    return found


def _image_id(value: Any, key: str) -> ImageId:
    found = _get(value, key)
    if type(found) is str and found:
        if not found.isascii() and found.encode(errors="replace").decode() != found:
            raise BadRow(f"{key} is not valid Unicode: {_brief(found)}")
        return found
    if type(found) is not int or found not in _INT64:
        raise BadRow(f"{key} must be an integer of at most 64 bits or a string, not {_brief(found)}")
    return found


def _number(value: Any, key: str) -> float:
    found = _get(value, key)
    if type(found) not in _NUMBERS or not _are_finite((found,)):
        raise BadRow(f"{key} must be a finite number, not {_brief(found)}")
    return float(found)


def _box(found: Any) -> list[float]:
    if type(found) is not list or len(found) != 4 or not {*map(type, found)} <= _NUMBERS or not _are_finite(found):
        raise BadRow(f"bbox must be four finite numbers (x, y, width, height), not {_brief(found)}")
    return [*map(float, found)]


def _in_json(segmentation: Any) -> str:
    try:
        text = to_json(segmentation)
        from_json(text)  # as it is read again: fewer lists in lists than can be written
        return text.decode()
    except ValueError:  # text that is no Unicode, or too many lists in lists
        raise BadRow(f"the segmentation is none: {_brief(segmentation)}") from None


def _are_finite(numbers: Iterable[float]) -> bool:
    try:
        return all(map(isfinite, numbers))
    except OverflowError:  # an integer that no float holds
        return False


def _brief(value: Any) -> str:
    text = repr(value).encode("ascii", "backslashreplace").decode()
    return text if len(text) <= 60 else f"{text[:57]}..."

"""Segmentation in Python: `load_model` gives a `Model`, which turns pictures as people have them into `Detections`.

``maskfleet.load_model`` is this one. Jobs use `pipeline.model.predictor`, which takes decoded pictures only.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex, TypeAlias, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from pipeline.coco.results import CocoResult, CocoRle, coco_results, coco_rle
from pipeline.drawing.draw import DrawOptions, draw
from pipeline.errors import UserError
from pipeline.images.decode import ImageError, decode_image, pillow_pixels
from pipeline.masks.rle import Rle
from pipeline.model.categories import Category
from pipeline.model.files.checkpoints import load_checkpoint
from pipeline.model.files.class_names import read_categories
from pipeline.model.files.resolve import resolve_checkpoint
from pipeline.model.predictor import Predictor, check_precision
from pipeline.model.predictor import load_model as load_predictor
from pipeline.storage.uris import UriText

ImageLike: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray

_SINGLE = (str, bytes, os.PathLike, Image.Image, np.ndarray)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_CLASSES_SHOWN = 5


def load_model(
    model: str | os.PathLike[str],
    device: str | torch.device | None = None,
    precision: str = "fp32",
    *,
    classes: str | os.PathLike[str] | Sequence[str] | None = None,
    short_side: int | None = None,
    long_side: int | None = None,
    score_threshold: float | None = None,
    max_detections: int | None = None,
) -> Model:
    """A model ready to predict.

    Args:
        model: a checkpoint file, or the name of a published model, which is downloaded once. The message about an
            unknown name lists them.
        device: ``cpu``, ``cuda``, ``cuda:1``, ...; the first GPU if there is one, else the CPU.
        precision: ``fp32`` gives the published results; ``bf16`` is faster on GPUs.
        classes: what the model's labels stand for, where the checkpoint does not say: the names in order, or a file of
            them, one a line or as a COCO JSON file.
        short_side: the shorter image side is scaled to this, in pixels. This and what follows: the checkpoint's own
            if it is not given.
        long_side: unless the longer one would exceed this, in pixels.
        score_threshold: detections need a score above this, 0 to 1.
        max_detections: detections kept per image, best scores first.

    Raises:
        UserError: no such file or model (the nearest name is said), a checkpoint that cannot be used, a device or
            precision that is not there, or a setting that cannot be.
        DownloadError: the model could not be fetched.

    Example:
        >>> model = maskfleet.load_model("model.safetensors", score_threshold=0.1)
        >>> [category.name for category in model.categories]
        ['person', 'dog', 'kite', 'cat', 'car']
    """
    check_precision(precision)  # now: a published model is some hundred MB to download
    checkpoint = load_checkpoint(resolve_checkpoint(UriText(os.fspath(model))), _categories(classes))
    wanted = {
        "short_side": short_side,
        "long_side": long_side,
        "score_threshold": score_threshold,
        "max_detections": max_detections,
    }
    settings = checkpoint.settings.changed({name: value for name, value in wanted.items() if value is not None})
    return Model(load_predictor(checkpoint, device, precision, settings))


class Model:
    """A detector with all that stands around it, on one device.

    Attributes:
        predictor: what the jobs use: it takes decoded pictures and gives arrays.
        categories: label ``i`` of a detection stands for ``categories[i]``.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.categories = predictor.categories

    def __repr__(self) -> str:
        names = ", ".join(category.name for category in self.categories[:_CLASSES_SHOWN])
        more = ", ..." if len(self.categories) > _CLASSES_SHOWN else ""
        predictor = self.predictor
        return f"Model({len(self.categories)} classes: {names}{more}; {predictor.precision} on {predictor.device})"

    @overload
    def predict(self, images: ImageLike, batch_size: int = 8) -> Detections: ...  # type: ignore[overload-overlap]

    @overload
    def predict(self, images: Iterable[ImageLike], batch_size: int = 8) -> list[Detections]: ...

    def predict(self, images: ImageLike | Iterable[ImageLike], batch_size: int = 8) -> Detections | list[Detections]:
        """Segment one picture, or several.

        A picture is

        - a path: read and decoded as the annotate job does, upright as its EXIF orientation says. URIs are not
          followed;
        - a PIL image: its pixels are those of its file, so EXIF orientation counts here too, alpha is dropped, and 16
          bits become 8;
        - a uint8 array ``(H, W, 3)`` in the order R, G, B, or ``(H, W)`` grey; alpha, as a fourth channel or a second
          behind grey, is dropped. OpenCV's arrays are B, G, R: give ``array[..., ::-1]``.

        Args:
            images: one picture, or any iterable of them.
            batch_size: so many are read and segmented at a time. Of paths no more are in memory; PIL images stay
                loaded.

        Returns:
            Of one picture its `Detections`, of several a list in their order, as long as what was given. A
            result does not depend on the other pictures.

        Raises:
            ImageError: what was read is no picture; as every error here, it names the picture.
            UserError: a URI.
            OSError: a file that cannot be read.
            TypeError, ValueError: neither path, PIL image nor such an array.

        Example:
            >>> model = maskfleet.load_model("model.safetensors")
            >>> model.predict("photo.jpg")
            Detections(... object...; 640x480)
            >>> len(model.predict(["photo.jpg", Image.open("photo.jpg")]))
            2
        """
        if isinstance(images, _SINGLE) or not isinstance(images, Iterable):
            return self._predict([_pixels(images, "the image")])[0]
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected at least 1")
        found: list[Detections] = []
        waiting = iter(images)
        while block := list(islice(waiting, batch_size)):
            found += self._predict([_pixels(image, f"image {i}") for i, image in enumerate(block, len(found))])
        return found

    def _predict(self, pictures: list[np.ndarray]) -> list[Detections]:
        return [
            Detections(found.boxes, found.scores, found.labels, found.rle(), self.categories, found.image_size)
            for found in self.predictor.predict(pictures, batch_size=len(pictures))
        ]


class Detection(NamedTuple):
    """One object.

    Attributes:
        name: of its category.
        category_id: of its category, as annotate writes it: the id in the data set.
        score: in ``(0, 1]``.
        box: x1, y1, x2, y2 in pixels of the image.
        rle: the mask, as COCO's files hold it; ``pycocotools.mask.decode`` makes pixels of it.
    """

    name: str
    category_id: int
    score: float
    box: tuple[float, float, float, float]
    rle: CocoRle

    def __repr__(self) -> str:
        """Without the mask, which may be a page of text."""
        corners = ", ".join(f"{corner:.1f}" for corner in self.box)
        return f"Detection({self.name} {self.score:.2f}, box {corners})"


class Detections:
    """The objects found in one image, best score first.

    ``len(found)`` counts them, iteration and ``found[0]`` give them as `Detection`; ``found[2:5]`` and a mask as in
    ``found[found.scores > 0.5]`` give those `Detections` alone.

    Attributes:
        boxes: float32 ``(N, 4)``, x1, y1, x2, y2 in pixels of the image, clipped to it.
        scores: float32 ``(N,)`` in ``(0, 1]``.
        labels: int64 ``(N,)``, index into ``categories``: what a model calls its classes, counted from 0.
        categories: of the model.
        image_size: ``(H, W)`` of the image in pixels, upright.

    Example:
        >>> found = model.predict("photo.jpg")
        >>> people = found[(found.names == "person") & (found.scores > 0.5)]
        >>> people
        Detections(... object...; 640x480)
        >>> crops = [Image.open("photo.jpg").crop(one.box) for one in people]
    """

    def __init__(
        self,
        boxes: NDArray[np.float32],
        scores: NDArray[np.float32],
        labels: NDArray[np.int64],
        rles: Sequence[Rle],
        categories: tuple[Category, ...],
        image_size: tuple[int, int],
    ) -> None:
        self.boxes = boxes
        self.scores = scores
        self.labels = labels
        self._rles = rles
        self.categories = categories
        self.image_size = image_size

    @property
    def names(self) -> NDArray[np.object_]:
        """The name of each one's category, ``(N,)`` strings."""
        return np.array([self.categories[label].name for label in self.labels], np.object_)

    @property
    def category_ids(self) -> NDArray[np.int64]:
        """The id of each one's category as annotate writes it, ``(N,)``: for COCO's classes 1 to 90."""
        return np.array([self.categories[label].id for label in self.labels], np.int64)

    @property
    def masks(self) -> NDArray[np.bool_]:
        """The masks as pixels, bool ``(N, H, W)``. Made anew each time, one byte a pixel: `rle` is far smaller."""
        masks = np.zeros((len(self), *self.image_size), np.bool_)
        for mask, rle in zip(masks, self._rles, strict=True):
            mask[:] = coco_mask.decode(rle)
        return masks

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, key: int) -> Detection: ...

    @overload
    def __getitem__(self, key: slice | Sequence[int] | NDArray[Any]) -> Detections: ...

    def __getitem__(self, key: int | slice | Sequence[int] | NDArray[Any]) -> Detection | Detections:
        chosen = np.arange(len(self))[key]
        if np.ndim(chosen) == 0:
            return self._one(int(chosen))
        if chosen.ndim != 1:
            raise IndexError("detections have one dimension: give an index, a slice, indices, or a mask")
        arrays = self.boxes[chosen], self.scores[chosen], self.labels[chosen]
        return Detections(*arrays, [self._rles[i] for i in chosen], self.categories, self.image_size)

    def _one(self, i: int) -> Detection:
        category = self.categories[self.labels[i]]
        x1, y1, x2, y2 = self.boxes[i].tolist()
        return Detection(category.name, category.id, float(self.scores[i]), (x1, y1, x2, y2), coco_rle(self._rles[i]))

    def __repr__(self) -> str:
        height, width = self.image_size
        counts = Counter(self.names).most_common()
        names = ", ".join(f"{name} {count}" for name, count in counts[:_CLASSES_SHOWN])
        more = ", ..." if len(counts) > _CLASSES_SHOWN else ""
        objects = "1 object" if len(self) == 1 else f"{len(self)} objects"
        return f"Detections({objects}{': ' if counts else ''}{names}{more}; {width}x{height})"

    def rle(self) -> list[CocoRle]:
        """The masks as COCO's files hold them: ``json.dumps`` and ``pycocotools.mask`` take them as they are.

        Example:
            >>> from pycocotools import mask
            >>> mask.decode(found.rle()[0]).shape
            (480, 640)
        """
        return [coco_rle(rle) for rle in self._rles]

    def to_coco(self, image_id: SupportsIndex) -> list[CocoResult]:
        """Rows of a COCO results file, which ``json.dumps`` and ``COCO.loadRes`` take as they are.

        Args:
            image_id: of the image in the data set.

        Raises:
            TypeError: the id is no whole number, which COCO's tools need.

        Example:
            >>> text = json.dumps(found.to_coco(image_id=42))
            >>> sorted(json.loads(text)[0])
            ['bbox', 'category_id', 'image_id', 'score', 'segmentation']
        """
        return coco_results(self.boxes, self.scores, self.labels, self._rles, image_id, self.categories)

    def draw(
        self, image: ImageLike, *, boxes: bool = True, labels: bool = True, scores: bool = True, masks: bool = True
    ) -> Image.Image:
        """The picture with all these objects drawn into it; a copy, in RGB.

        Args:
            image: the picture that they were found in, as `Model.predict` takes it.
            boxes, labels, scores, masks: what is drawn: outlines, names, percents, coloured veils.

        Raises:
            ValueError: the picture is of another size; and what `Model.predict` raises.

        Example:
            >>> found[found.scores > 0.3].draw("photo.jpg").save("drawn.png")
        """
        pixels = _pixels(image, "the image")
        if pixels.shape[:2] != self.image_size:
            sizes = [f"{height} x {width}" for height, width in (pixels.shape[:2], self.image_size)]
            raise ValueError(f"the image is {sizes[0]} (height x width), these objects were found in one of {sizes[1]}")
        options = DrawOptions(boxes, labels, scores, masks)
        drawn = draw(pixels, self.boxes, self.labels, self.scores, self._rles, self.categories, options=options)
        return Image.fromarray(drawn)


def _categories(classes: str | os.PathLike[str] | Sequence[str] | None) -> tuple[Category, ...] | None:
    if classes is None:
        return None
    if isinstance(classes, str | os.PathLike):
        return read_categories(Path(classes))
    return tuple(Category(i + 1, name) for i, name in enumerate(classes))


def _pixels(image: Any, name: str) -> NDArray[np.uint8]:
    """RGB ``(H, W, 3)`` of whatever stands for a picture; `name` is what messages call one that has no path."""
    if isinstance(image, str | os.PathLike):
        name = os.fspath(image)
    try:
        if isinstance(image, str | os.PathLike):
            return decode_image(_read(name)).pixels
        if isinstance(image, Image.Image):
            return pillow_pixels(image)
    except ImageError as error:
        raise ImageError(error.code, f"{name}: {error}") from error
    if isinstance(image, np.ndarray):
        return _rgb(image, name)
    raise TypeError(
        f"{name} is of type {type(image).__name__}: expected a path, a PIL image or a uint8 array (H, W, 3); "
        "encoded bytes are opened by PIL.Image.open(io.BytesIO(data)), tensors become arrays by .cpu().numpy()"
    )


def _read(path: str) -> bytes:
    if _SCHEME.match(path):
        raise UserError(
            f"{UriText(path)}: URIs are not followed here: fetch the file and give its path, or let the annotate job "
            "read it"
        )
    return Path(path).read_bytes()


def _rgb(array: np.ndarray, name: str) -> NDArray[np.uint8]:
    if array.dtype != np.uint8:
        raise TypeError(f"{name} is an array of {array.dtype}: expected uint8, RGB in 0..255")
    channels = array[..., None] if array.ndim == 2 else array
    if channels.ndim != 3 or channels.shape[2] not in (1, 2, 3, 4) or 0 in channels.shape:
        hint = ""
        if array.ndim == 4:
            hint = "; give several pictures as a list"
        elif array.ndim == 3 and array.shape[0] in (1, 3, 4):
            hint = "; channels come last: array.transpose(1, 2, 0)"
        raise ValueError(f"{name} is an array of shape {array.shape}: expected (H, W, 3), or (H, W) for grey{hint}")
    return channels[..., :3] if channels.shape[2] > 2 else channels[..., :1].repeat(3, axis=2)

"""YOLO segmentation labels: a text file per image, a line per object: class index and one polygon, 0 to 1.

Always lossy: see `LOSSY`. The pictures can be put beside their labels, as links or copies, never as anything but their
own bytes: see `_Export`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import lru_cache, partial
from itertools import islice
from typing import BinaryIO, NamedTuple

import numpy as np
import yaml

from pipeline.annotations.failure import ImageFailure
from pipeline.annotations.pictures import PictureSource
from pipeline.annotations.run_json import RunJson
from pipeline.export.errors import ExportError
from pipeline.export.formats.base import NO_OPTIONS, Options, flag
from pipeline.export.labels import ImageInfo, ImageLabels, Labels
from pipeline.export.outlines.contours import PolygonLoss, outline
from pipeline.export.outlines.crops import Crop
from pipeline.export.target import Folder
from pipeline.storage.file_names import TakenPaths, alternatives, safe_path, split_suffix
from pipeline.storage.map_ahead import map_ahead
from pipeline.storage.uris import UriText
from pipeline.tables.csv_text import csv_line

LOSSY = (
    "LOSSY: a YOLO label is one polygon, its coordinates rounded to 6 decimals, without a score. Parts and holes of a "
    "mask are joined to that polygon by bridges of zero width; readers that draw outlines (cv2.fillPoly does) make "
    "masks up to a pixel larger and draw the bridges. Export to coco for exact masks."
)
_DECIMALS = 6
_PUTS_AT_ONCE = 16
_IMAGES_AT_ONCE = 128  # whose pictures are fetched side by side
_LARGE_BYTES = 8 << 20  # pictures of more wait for nobody: of others some dozens are on their way at once
# Ultralytics looks for files with these suffixes, and for no others; whatever they hold is read by its content.
_SUFFIXES = frozenset({".bmp", ".dng", ".heic", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"})
_ADDED_SUFFIX = ".jpg"
# Images of the formats that are annotated and which it does not read, by their first bytes.
_PASSED_OVER = (b"GIF8", b"P1", b"P2", b"P3", b"P4", b"P5", b"P6")
_JPEG, _END_OF_JPEG = b"\xff\xd8\xff", b"\xff\xd9"

Write = Callable[[], None]


def write_yolo(labels: Labels, folder: Folder, options: Options = NO_OPTIONS) -> Sequence[str]:
    """The labels, ``data.yaml``, ``images.csv`` (which image belongs where), ``README.txt``; pictures where asked for.

    An image without labels has an empty file: it is a negative. One whose picture cannot be read is left out with its
    label, counted, and named in ``left_out.csv``.

    Returns:
        What is lossy, what else people should know of names, split and pictures, and the loss measured on a sample.

    Raises:
        ExportError: a link to a picture that is not in a local file, or no picture at all can be read.
        OutputError: ``run.json`` does not say how pictures may be read.
    """
    with ExitStack() as files:
        table = files.enter_context(folder.open("images.csv"))
        left_out = files.enter_context(folder.open("left_out.csv")) if options.images != "none" else None
        export = _Export(labels, folder, options, table, left_out)
        for _ in map_ahead(lambda write: write(), export.writes(), _PUTS_AT_ONCE, 2 * _PUTS_AT_ONCE):
            pass
    folder.put("data.yaml", _data_yaml(labels, export.loss, options).encode())
    folder.put("README.txt", _readme(export.loss, options).encode())
    return LOSSY, *export.remarks(), str(export.loss)


def is_for_validation(image_id: int | str, fraction: float) -> bool:
    """Whether an image is in the validation part: the same for an id in every export, whatever other images there are.

    The first 8 bytes of the SHA-256 of the id's text (an integer's decimal digits) in UTF-8, as a big-endian number,
    are below the fraction of 2**64. So a larger fraction adds images to the part, and takes none away.
    """
    digest = hashlib.sha256(str(image_id).encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


class _Place(NamedTuple):
    """Where an image and its label belong in the folder."""

    picture: str
    label: str


class _Export:
    """All files of pictures and labels; meanwhile the tables, and what is to be said at the end.

    A link leads to the file itself, past the links to it. A JPEG with bytes behind its end is copied instead:
    ultralytics mends it in its place, and some versions do that to what a link leads to, which is the user's.
    """

    def __init__(
        self, labels: Labels, folder: Folder, options: Options, table: BinaryIO, left_out: BinaryIO | None
    ) -> None:
        self.loss = PolygonLoss()
        self._labels = labels
        self._folder = folder
        self._options = options
        self._table = table
        self._left_out = left_out
        run = RunJson.read(labels.source.uri)
        self._turns = run is None or run.apply_exif is not False
        self._source = _picture_source(labels, run) if left_out is not None else None
        self._renamed = self._unturned = self._copied = self._passed_over = self._lost_labels = 0
        self._parts: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()

    def writes(self) -> Iterator[Write]:
        """What writes the files, each of which may be called by a thread of its own.

        Raises:
            ExportError: see `write_yolo`.
        """
        self._table.write(csv_line("label", "image", "image_id", "image_uri"))
        if self._left_out is not None:
            self._left_out.write(csv_line("image_id", "image_uri", "error_code", "error_message"))
        images = self._labels.images()
        with closing(TakenPaths()) as taken:
            while some := list(islice(images, _IMAGES_AT_ONCE)):
                places = [_places(image.image, self._part(image.image), taken) for image in some]
                failures: dict[int, ImageFailure] = {}
                for i, picture in self._pictures([image.image for image in some]):
                    if isinstance(picture, ImageFailure):
                        failures[i] = picture
                    else:
                        yield from self._write_picture(places[i].picture, picture)
                for i, (image, place) in enumerate(zip(some, places, strict=True)):
                    if i in failures:
                        self._leave_out(image, failures[i])
                    else:
                        yield self._write_label(image, place)
        if self._failures and not self._labels.tally.images:
            raise ExportError(f"not one picture can be read ({self._reasons()}): nothing is exported")

    def remarks(self) -> list[str]:
        said = []
        if self._options.val_fraction is not None:
            train, val = (self._parts[part] for part in ("train/", "val/"))
            said.append(f"split by the hash of the image's id: {train:,} images for training, {val:,} for validation")
            if not train or not val:
                said.append("one part of the split is empty, which ultralytics refuses: give another --val-fraction")
        if self._failures:
            said.append(
                f"images left out with their {self._lost_labels:,} labels, because their pictures cannot be read: "
                f"{self._failures.total():,} ({self._reasons()}; left_out.csv)"
            )
        if self._renamed:
            said.append(
                f"images that belong under another name than their own: {self._renamed:,} (images.csv, column image)"
            )
        if self._copied:
            said.append(f"JPEGs copied and not linked, because ultralytics may write over them: {self._copied:,}")
        if self._passed_over:
            said.append(f"GIF and PPM pictures, which ultralytics does not read (convert them): {self._passed_over:,}")
        if self._unturned:
            said.append(
                f"pictures with an EXIF orientation, which the run left as stored (images.apply_exif: false) and "
                f"ultralytics turns, so that their labels do not fit: {self._unturned:,}"
            )
        return said

    def _part(self, image: ImageInfo) -> str:
        if self._options.val_fraction is None:
            return ""
        return "val/" if is_for_validation(image.id, self._options.val_fraction) else "train/"

    def _pictures(self, images: Sequence[ImageInfo]) -> Iterator[tuple[int, bytes | str | ImageFailure]]:
        """What is to be at the places of images: bytes, or a link to a path."""
        if self._source is None:
            return
        uris = [None if image.uri is None else UriText(image.uri) for image in images]
        if self._options.images == "copy":
            yield from self._source.fetch_in_turn(uris)
            return
        for i, uri in enumerate(uris):
            path = self._source.find_local(uri)
            if path is None:
                raise ExportError(f"{uri} is no local file, and cannot be linked: {flag('images')} copy copies it")
            if isinstance(path, str) and _is_to_be_mended(path):
                self._copied += 1
                yield from ((i, copy) for _, copy in self._source.fetch_in_turn([uri]))
            else:
                yield i, path

    def _write_picture(self, name: str, picture: bytes | str) -> Iterator[Write]:
        if isinstance(picture, str):
            self._passed_over += _first_bytes(picture).startswith(_PASSED_OVER)
            yield partial(self._folder.link, name, picture)
            return
        self._passed_over += picture.startswith(_PASSED_OVER)
        if len(picture) > _LARGE_BYTES:
            self._folder.put(name, picture)
        else:
            yield partial(self._folder.put, name, picture)

    def _write_label(self, image: ImageLabels, place: _Place) -> Write:
        info = image.image
        self._parts[part := self._part(info)] += 1
        self._renamed += place.picture != f"images/{part}{info.file_name}"
        self._unturned += not self._turns and info.exif_orientation != 1
        self._table.write(csv_line(place.label, place.picture, info.id, info.uri or ""))
        return partial(self._folder.put, place.label, _label_file(image, self.loss))

    def _leave_out(self, image: ImageLabels, failure: ImageFailure) -> None:
        assert self._left_out is not None
        self._labels.leave_out(image)
        self._failures[failure.code] += 1
        self._lost_labels += len(image)
        self._left_out.write(csv_line(image.image.id, image.image.uri or "", failure.code, failure.message))

    def _reasons(self) -> str:
        return ", ".join(f"{code} {number:,}" for code, number in self._failures.most_common())


def _picture_source(labels: Labels, run: RunJson | None) -> PictureSource:
    if run is None:
        raise ExportError(
            f"{labels.source.uri} has no run.json, which says how pictures may be read: {flag('images')} none exports "
            "the labels alone"
        )
    return PictureSource.of_run(run)


def _first_bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(8)


def _is_to_be_mended(path: str) -> bool:
    """Whether ultralytics takes a file for a JPEG that is cut off, and writes it anew: by its last two bytes."""
    with open(path, "rb") as file:
        if file.read(len(_JPEG)) != _JPEG:
            return False
        file.seek(-len(_END_OF_JPEG), 2)
        return file.read() != _END_OF_JPEG


def _places(image: ImageInfo, part: str, taken: TakenPaths) -> _Place:
    """Where an image and its label file belong in the folder, or in a part of it; nothing else is there."""
    for path in alternatives(safe_path(image.file_name.partition("://")[2] or image.file_name), image.id):
        place = f"images/{part}{path}"
        if split_suffix(place)[1].lower() not in _SUFFIXES:
            place += _ADDED_SUFFIX
        if taken.take(place, label := label_path(place)):
            return _Place(place, label)
    raise AssertionError("there are always further paths")


def label_path(image: str) -> str:
    """Where ultralytics looks for the label of an image: ``labels`` for the last folder ``images``, ``.txt`` for the
    suffix.

    Args:
        image: a relative path, ``images/`` before it and with a suffix.
    """
    head, _, tail = f"/{image}".rpartition("/images/")
    return f"{head}/labels/{split_suffix(tail)[0]}.txt".removeprefix("/")


def _label_file(image: ImageLabels, loss: PolygonLoss) -> bytes:
    lines = []
    for index, category in enumerate(image.categories.tolist()):
        polygon = polygon_text(image.crop(index), image.image.size)
        if loss.wants_more:
            loss.add([pixels_of(polygon, image.image.size)], image.counts[index], image.image.size)
        lines.append(f"{category} {polygon}\n")
    return "".join(lines).encode()


def polygon_text(crop: Crop, image_size: tuple[int, int]) -> str:
    """x y x y ... of a mask's outline, as fractions of the image's width and height (``image_size`` is H, W)."""
    height, width = image_size
    across, down = _fractions(width), _fractions(height)
    return " ".join(f"{across[crop.left + x]} {down[crop.top + y]}" for x, y in outline(crop.pixels).tolist())


def pixels_of(polygon: str, image_size: tuple[int, int]) -> list[float]:
    """The numbers of a `polygon_text`, in pixels."""
    height, width = image_size
    return (np.array(polygon.split(), np.float64).reshape(-1, 2) * (width, height)).reshape(-1).tolist()


@lru_cache(maxsize=64)
def _fractions(length: int) -> list[str]:
    """0, 1, ... ``length`` over ``length``, as text: corners lie on pixel edges, so there are no others."""
    return [repr(round(position / length, _DECIMALS)) for position in range(length + 1)]


def _data_yaml(labels: Labels, loss: PolygonLoss, options: Options) -> str:
    is_split = options.val_fraction is not None
    content = {  # without "path": relative to this file
        "train": "images/train" if is_split else "images",
        "val": "images/val" if is_split else "images",
        "names": {index: category.name for index, category in enumerate(labels.source.categories)},
        "maskfleet": labels.report(),
    }
    split = (
        f"Split by the hash of the image's id, {options.val_fraction} for validation. Both parts are pseudo-labelled."
        if is_split
        else "No split was made: train and val are the same pseudo-labelled images."
    )
    return f"# {LOSSY}\n# {loss}\n# {split}\n" + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


_PICTURES = {
    "none": """\
The images are not here: images.csv says for each label file where its image belongs (column image, below
this folder) and where it came from (image_uri).""",
    "link": """\
The images are links to the files that were annotated. images.csv says for each label file which image is its own
(column image) and where it came from (image_uri), left_out.csv which images are not here, because they cannot be read.
JPEGs with bytes behind their end are copies: ultralytics writes such files anew.""",
    "copy": """\
The images are copies, byte by byte. images.csv says for each label file which image is its own (column image) and
where it came from (image_uri), left_out.csv which images are not here, because they cannot be read.""",
}


def _readme(loss: PolygonLoss, options: Options) -> str:
    split = ""
    if options.val_fraction is not None:
        split = (
            "Images for training and for validation lie in train and val: an image is for validation if the first 8\n"
            "bytes of the SHA-256 of its id's text, as a big-endian number, are below "
            f"{options.val_fraction} * 2**64. So an\n"
            "image stays where it is when others come.\n\n"
        )
    return (
        "YOLO segmentation labels\n\n"
        f"{_PICTURES[options.images]}\n"
        "An empty label file is an image without objects.\n\n"
        f"{split}"
        'Labels lie where ultralytics looks: in the image\'s path, with "labels" for the last folder "images".\n'
        "A name that some file system does not take, or that is taken, was changed. An image whose suffix ultralytics\n"
        "does not look for has .jpg behind it; that is enough unless it is in a format that ultralytics does not read\n"
        "(GIF, PPM): convert those. In images.csv a cell that a spreadsheet would take for a formula begins with '.\n\n"
        "Labels lie on the images as EXIF turns them, which is how ultralytics, OpenCV and supervision read them\n"
        "(Pillow alone does not turn); unless the run left images as stored (images.apply_exif: false).\n\n"
        f"{LOSSY}\n{loss}\n"
    )

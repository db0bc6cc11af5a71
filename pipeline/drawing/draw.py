"""Detections drawn into pictures, and contact sheets of pictures. Pillow and numpy only."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask

from pipeline.drawing.colours import INK, PAPER, Colour, category_colour, readable_on
from pipeline.masks.rle import Rle
from pipeline.model.categories import Category

Picture = NDArray[np.uint8]  # (H, W, 3), RGB
Corners = tuple[int, int, int, int]  # x1, y1, x2, y2 of the outermost pixels, inclusive


@dataclass(frozen=True)
class DrawOptions:
    """What is drawn.

    Attributes:
        boxes: the outline of each object's box.
        labels: the category's name at each object.
        scores: the score in percent, behind the name or alone.
        masks: the masks, as a coloured veil with an outline.
        min_score: detections below this score are left out.
        mask_opacity: of the veil, 0 (clear) to 1 (opaque).
    """

    boxes: bool = True
    labels: bool = True
    scores: bool = True
    masks: bool = True
    min_score: float = 0.0
    mask_opacity: float = 0.45

    def __post_init__(self) -> None:
        if not 0 <= self.mask_opacity <= 1:
            raise ValueError(f"mask_opacity={self.mask_opacity}: expected a number from 0 to 1")


def draw(
    image: NDArray[Any],
    boxes: NDArray[Any],
    labels: NDArray[Any],
    scores: NDArray[Any] | None,
    rles: Sequence[Rle] | None,
    categories: Sequence[Category],
    *,
    options: DrawOptions | None = None,
) -> Picture:
    """A copy of the picture with objects drawn into it, the lowest score first: the best lie on top.

    The masks are decoded one at a time, so the memory needed does not grow with their number.

    Args:
        image: RGB uint8 ``(H, W, 3)``; it is not changed.
        boxes: ``(N, 4)`` xyxy in pixels of the image, finite; they may cross its border.
        labels: ``(N,)`` index into ``categories``.
        scores: ``(N,)``, or None for ground truth.
        rles: N masks of the image's size, or None.
        categories: what the labels stand for; the colours follow their ids.
        options: what is drawn; everything by default.

    Raises:
        ValueError: shapes, types or counts that do not fit.
    """
    options = options or DrawOptions()
    height, width = _checked_size(image)
    for name, values in (("labels", labels), ("scores", scores), ("rles", rles)):
        if values is not None and len(values) != len(boxes):
            raise ValueError(f"{len(boxes)} boxes, but {len(values)} {name}")
    order = _drawing_order(len(boxes), scores, options.min_score)
    colours = {i: category_colour(categories[int(labels[i])].id) for i in order}

    pixels = np.array(image, dtype=np.uint8)
    if options.masks and rles is not None:
        for i in order:
            _blend(pixels, rles[i], colours[i], options.mask_opacity)
    canvas = Image.fromarray(pixels)
    pen = ImageDraw.Draw(canvas)
    line = _line_width(height, width)
    if options.boxes:
        for i in order:
            corners = _pixel_corners(boxes[i], height, width)
            pen.rectangle(corners, outline=colours[i], width=min(line, _inner_width(corners)))
    captions = [(i, _caption(categories[int(labels[i])].name, scores, i, options)) for i in reversed(order)]
    objects = [(_pixel_corners(boxes[i], height, width), text, colours[i]) for i, text in captions if text]
    for tag in reversed(_place_tags(objects, canvas)):
        tag.draw(pen)
    return np.array(canvas)


def label_cover(
    size: tuple[int, int],
    labels: NDArray[Any],
    scores: NDArray[Any] | None,
    categories: Sequence[Category],
    *,
    options: DrawOptions | None = None,
) -> float:
    """The share of a picture of this size (height, width) that its labels would cover if none overlapped; may exceed 1.

    The other arguments are those of `draw`.
    """
    options = options or DrawOptions()
    font, height, padding = _tag_measures(*size)
    order = _drawing_order(len(labels), scores, options.min_score)
    texts = [_caption(categories[int(labels[i])].name, scores, i, options) for i in order]
    widths = (min(size[1], math.ceil(font.getlength(text)) + 2 * padding) for text in texts if text)
    return height * sum(widths) / (size[0] * size[1])


def grid(
    images: Sequence[NDArray[Any]],
    columns: int,
    cell: tuple[int, int],
    captions: Sequence[str] | None = None,
) -> Picture:
    """A contact sheet: pictures fitted into equal cells, row after row, on white.

    Args:
        images: RGB uint8 pictures of any sizes.
        columns: cells in a row.
        cell: ``(height, width)`` of a cell, its caption not counted.
        captions: a line of text below each picture.

    Raises:
        ValueError: no pictures, no columns, or another number of captions.
    """
    if not images or columns < 1:
        raise ValueError(f"{len(images)} pictures in {columns} columns make no sheet")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"{len(images)} pictures, but {len(captions)} captions")
    height, width = cell
    font = _font(max(10, round(0.05 * height)))
    line = math.ceil(1.6 * font.size) if captions is not None else 0
    gap = max(4, round(0.03 * height))
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (gap + columns * (width + gap), gap + rows * (height + line + gap)), PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        _checked_size(image)
        left, top = gap + i % columns * (width + gap), gap + i // columns * (height + line + gap)
        picture = Image.fromarray(np.asarray(image))
        scale = min(width / picture.width, height / picture.height)
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        corner = left + (width - size[0]) // 2, top + (height - size[1]) // 2
        sheet.paste(picture.resize(size, Image.Resampling.LANCZOS), corner)
        if captions is not None and (text := _fitted(_printable(captions[i]), font, width)):
            pen.text((left + width / 2, top + height + line / 2), text, INK, font, anchor="mm")
    return np.array(sheet)


def _checked_size(image: NDArray[Any]) -> tuple[int, int]:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"an image of {image.dtype} {image.shape}: expected uint8 (H, W, 3)")
    return image.shape[0], image.shape[1]


def _drawing_order(count: int, scores: NDArray[Any] | None, min_score: float) -> list[int]:
    """Indices of what is drawn, the best last; of equal scores, the first given is the better one."""
    if scores is None:
        return list(range(count))[::-1]
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")[::-1]
    return [int(i) for i in order if scores[i] >= min_score]


def _blend(pixels: Picture, rle: Rle, colour: Colour, opacity: float) -> None:
    """Lay a veil over a mask's pixels, in place, and a darker line along its inner edge."""
    x, y, w, h = (int(v) for v in coco_mask.toBbox(rle))
    if w < 1 or h < 1:
        return
    if tuple(rle["size"]) != pixels.shape[:2]:
        raise ValueError(f"a mask of size {tuple(rle['size'])} for an image of {pixels.shape[:2]}")
    mask = coco_mask.decode(rle)[y : y + h, x : x + w].astype(bool)
    part = pixels[y : y + h, x : x + w]
    veil = np.array(colour, np.float32) * opacity
    part[mask] = (part[mask] * np.float32(1 - opacity) + veil + 0.5).astype(np.uint8)
    edge = mask & ~_eroded(mask, max(1, _line_width(*pixels.shape[:2]) // 2))
    part[edge] = [round(0.5 * channel) for channel in colour]


def _eroded(mask: NDArray[np.bool_], steps: int) -> NDArray[np.bool_]:
    """Without the pixels within ``steps`` of its outside; what lies beyond the array counts as outside."""
    for _ in range(steps):
        padded = np.pad(mask, 1)
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask


def _line_width(height: int, width: int) -> int:
    return max(1, round(0.003 * math.sqrt(height * width)))


def _pixel_corners(box: NDArray[Any], height: int, width: int) -> Corners:
    """The pixels that a box's outline lies on, moved into the image."""
    x1, y1, x2, y2 = (float(v) for v in box)
    left, top = min(max(math.floor(x1), 0), width - 1), min(max(math.floor(y1), 0), height - 1)
    right, bottom = min(max(math.ceil(x2) - 1, left), width - 1), min(max(math.ceil(y2) - 1, top), height - 1)
    return left, top, right, bottom


def _inner_width(corners: Corners) -> int:
    """The widest outline that leaves a small box its inside."""
    left, top, right, bottom = corners
    return max(1, min(right - left, bottom - top) // 4)


def _caption(name: str, scores: NDArray[Any] | None, index: int, options: DrawOptions) -> str:
    parts = [_printable(name)] if options.labels else []
    if options.scores and scores is not None:
        parts.append(f"{100 * float(scores[index]):.0f}%")
    return " ".join(parts)


def _printable(text: str) -> str:
    """On one line, and without what no font can draw (lone surrogates, control characters)."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, cut to the width; empty if not even one letter fits."""
    if font.getlength(text) <= width:
        return text
    fits, too_long = 0, len(text)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if font.getlength(text[:middle] + "…") <= width:
            fits = middle
        else:
            too_long = middle
    return text[:fits].rstrip() + "…" if fits else ""


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


class _Tag(NamedTuple):
    """A label where it will be drawn."""

    left: int
    top: int
    width: int
    height: int
    text: str
    colour: Colour
    font: ImageFont.FreeTypeFont

    def overlap(self, other: _Tag) -> int:
        """Common pixels."""
        across = min(self.left + self.width, other.left + other.width) - max(self.left, other.left)
        down = min(self.top + self.height, other.top + other.height) - max(self.top, other.top)
        return max(0, across) * max(0, down)

    def draw(self, pen: ImageDraw.ImageDraw) -> None:
        frame = (self.left, self.top, self.left + self.width - 1, self.top + self.height - 1)
        pen.rectangle(frame, fill=self.colour)
        middle = self.left + self.width / 2, self.top + self.height / 2
        pen.text(middle, self.text, readable_on(self.colour), self.font, anchor="mm")


def _place_tags(objects: Sequence[tuple[Corners, str, Colour]], canvas: Image.Image) -> list[_Tag]:
    """A place for each object's label, the first objects choosing first: free of other labels if there is one."""
    font, height, padding = _tag_measures(canvas.height, canvas.width)
    placed: list[_Tag] = []
    for corners, text, colour in objects:
        text = _fitted(text, font, canvas.width - 2 * padding)
        if not text or height > canvas.height:
            continue
        width = min(canvas.width, math.ceil(font.getlength(text)) + 2 * padding)
        best, least = None, math.inf
        for left, top in _candidates(corners, width, height):
            inside = min(max(left, 0), canvas.width - width), min(max(top, 0), canvas.height - height)
            tag = _Tag(*inside, width, height, text, colour, font)
            covered = sum(tag.overlap(other) for other in placed)
            if covered < least:
                best, least = tag, covered
            if covered == 0:
                break
        assert best is not None
        placed.append(best)
    return placed


def _tag_measures(height: int, width: int) -> tuple[ImageFont.FreeTypeFont, int, int]:
    """The font of the labels in a picture of this size, their height, and the space beside their text."""
    font = _font(round(min(max(0.016 * math.sqrt(width * height), 11), 36)))
    return font, math.ceil(1.3 * font.size), math.ceil(0.25 * font.size)


def _candidates(corners: Corners, width: int, height: int) -> Iterator[tuple[int, int]]:
    """Where a label may go, the most usual first: on the box, in it, under it, a line further off."""
    x1, y1, x2, y2 = corners
    for top in (y1 - height, y1, y2 + 1, y2 + 1 - height, y1 - 2 * height, y2 + 1 + height):
        for left in (x1, x2 + 1 - width, (x1 + x2 + 1 - width) // 2):
            yield left, top

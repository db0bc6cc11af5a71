from __future__ import annotations

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from pipeline.drawing.colours import category_colour
from pipeline.evaluate.report.cards import Card, GalleryImage, gallery_cards
from pipeline.model.categories import Category
from pipeline.page.thumbnails import MOST_BYTES, Overlay, Thumbnail
from tests.evaluate.report.sample_metrics import photograph, sample_gallery

CATEGORIES = (Category(4, "cat"), Category(9, "dog"))
NOTHING = Overlay(np.zeros((0, 4)), np.zeros(0, int))


def image(pixels: np.ndarray | None, truth: Overlay = NOTHING, detections: Overlay = NOTHING) -> GalleryImage:
    return GalleryImage("cat", "worst", 7, 0.25, pixels, truth, detections, 1, 2, 3)


def card(shown: GalleryImage) -> Card:
    ((kinds,),) = [list(gallery_cards([shown], CATEGORIES).values())]
    return kinds[shown.kind][0]


def decoded(thumbnail: Thumbnail) -> np.ndarray:
    head, data = thumbnail.uri.split(",")
    assert head == "data:image/webp;base64"
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
    assert pixels.shape[:2] == (thumbnail.height, thumbnail.width)
    return pixels.astype(int)


def square(size: tuple[int, int]) -> Overlay:
    """A dog on the middle half of each side."""
    height, width = size
    mask = np.zeros(size, np.uint8, order="F")
    mask[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = 1
    box = np.array([[width // 4, height // 4, 3 * width // 4, 3 * height // 4]], float)
    return Overlay(box, np.array([1]), None, [coco_mask.encode(mask)])


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 640), (240, 320)), ((640, 480), (400, 300)), ((20, 30), (40, 60)), ((3, 9000), (1, 320))],
)
def test_thumbnails_fit_their_frame_and_small_ones_are_doubled(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert decoded(card(image(np.full((*size, 3), 90, np.uint8))).truth).shape[:2] == expected


def test_boxes_and_masks_are_where_they_are_in_the_picture() -> None:
    overlay = square((480, 640))
    thumbnail = decoded(card(image(np.full((480, 640, 3), 200, np.uint8), truth=overlay)).truth)
    veil = 200 * 0.55 + 0.45 * np.array(category_colour(9))
    np.testing.assert_allclose(thumbnail[150, 160], veil, atol=12)
    assert np.abs(thumbnail[30, 40] - 200).max() < 12
    outline = thumbnail[100:140, 78:84] - np.array(category_colour(9))
    assert np.abs(outline).max(axis=2).min(axis=1).max() < 60  # in every row of the left edge


def test_each_side_shows_its_own_objects() -> None:
    shown = card(
        image(np.full((240, 320, 3), 200, np.uint8), detections=replace(square((240, 320)), scores=np.array([0.9])))
    )
    assert np.abs(decoded(shown.truth) - 200).max() < 12
    assert np.abs(decoded(shown.detections) - 200).max() > 60
    assert shown.notes == ()


def test_a_picture_that_could_not_be_read_is_grey_and_says_why() -> None:
    lost = replace(image(None, truth=square((120, 160))), reason="not_found: no such object")
    shown = card(lost)
    assert decoded(shown.truth).shape == (240, 320, 3)
    assert shown.notes == ("The picture could not be read: not_found: no such object.",)
    boxes = Overlay(np.array([[10, 10, 99.5, 49.5]]), np.array([0]))
    assert decoded(card(image(None, detections=boxes)).detections).shape == (100, 200, 3)
    assert decoded(card(image(None)).detections).shape == (2, 2, 3)


def test_masks_of_another_size_are_named_and_left_out() -> None:
    shown = card(image(np.full((240, 320, 3), 200, np.uint8), truth=square((320, 240))))
    assert shown.notes == ("1 annotated masks are of another size than the picture and are not drawn.",)
    assert np.abs(decoded(shown.truth)[100, 120] - 200).max() < 12


def test_pixels_are_not_kept() -> None:
    assert card(image(np.zeros((50, 50, 3), np.uint8))).image.pixels is None


@pytest.mark.parametrize("size", [(480, 640), (640, 427)])
def test_a_photograph_keeps_the_limit(size: tuple[int, int]) -> None:
    shown = card(image(photograph(np.random.default_rng(3), *size)))
    assert len(base64.b64decode(shown.truth.uri.split(",")[1])) <= MOST_BYTES


def test_classes_and_kinds_in_the_order_they_come() -> None:
    images = sample_gallery(CATEGORIES, per_kind=2)
    cards = gallery_cards((replace(image, pixels=None) for image in images), CATEGORIES)
    order = {
        name: {kind: [c.image.quality for c in shown] for kind, shown in kinds.items()} for name, kinds in cards.items()
    }
    expected = {"worst": [0.0, 0.12], "best": [0.97, 0.95]}
    assert order == {"cat": expected, "dog": expected}
    assert list(order["cat"]) == ["worst", "best"]


def objects(count: int) -> Overlay:
    """Small boxes in rows of four, all of the second class."""
    corners = np.array([[10 + 38 * (i % 4), 10 + 30 * (i // 4)] for i in range(count)], float)
    return Overlay(np.concatenate([corners, corners + 20], axis=1), np.ones(count, int))


@pytest.mark.parametrize(("count", "name", "labelled"), [(8, "brick", True), (16, "a class of a long name", False)])
def test_labels_do_not_hide_a_small_picture(count: int, name: str, labelled: bool) -> None:
    shown = image(np.full((160, 160, 3), 200, np.uint8), objects(count))
    cards = gallery_cards([shown], (CATEGORIES[0], Category(9, name)))
    pixels = decoded(cards["cat"]["worst"][0].truth)
    covered = (np.abs(pixels - 200).max(axis=2) > 60).mean()
    outlines = count * 4 * 40 / pixels[..., 0].size
    assert covered < outlines + 0.2
    assert bool(covered > outlines + 0.02) is labelled

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from pipeline.drawing import draw as visualize
from pipeline.drawing.colours import category_colour
from pipeline.drawing.draw import DrawOptions, draw, grid
from pipeline.masks.rle import Rle
from pipeline.model.categories import COCO_CATEGORIES, Category

CATEGORIES = (Category(1, "cat"), Category(2, "dog"))
ONLY = {"boxes": False, "labels": False, "scores": False, "masks": False}


def rle(height: int, width: int, box: tuple[int, int, int, int]) -> Rle:
    mask = np.zeros((height, width), np.uint8, order="F")
    x1, y1, x2, y2 = box
    mask[y1:y2, x1:x2] = 1
    return coco_mask.encode(mask)


def grey(height: int = 100, width: int = 120) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


class TestMasks:
    options = DrawOptions(**ONLY | {"masks": True})

    def draw(self, image: np.ndarray, labels: list[int], scores: list[float], rles: list[Rle]) -> np.ndarray:
        boxes = np.zeros((len(rles), 4), np.float32)
        return draw(image, boxes, np.array(labels), np.array(scores), rles, CATEGORIES, options=self.options)

    def test_veil_inside_line_at_the_edge_nothing_outside(self) -> None:
        out = self.draw(grey(), [0], [0.9], [rle(100, 120, (20, 30, 60, 80))])
        changed = (out != 128).any(axis=2)
        assert changed[30:80, 20:60].all()
        assert changed.sum() == 40 * 50
        inside = 128 * 0.55 + np.array(category_colour(1)) * 0.45
        np.testing.assert_allclose(out[32:78, 22:58], np.broadcast_to(inside, (46, 36, 3)), atol=1)
        assert (out[30, 20:60] < inside - 20).all()

    def test_the_best_lies_on_top(self) -> None:
        box = (20, 30, 60, 80)
        for scores, top in ([0.9, 0.5], 0), ([0.5, 0.9], 1), ([0.5, 0.5], 0):
            out = self.draw(grey(), [0, 1], scores, [rle(100, 120, box)] * 2)
            edge = [round(0.5 * c) for c in category_colour(CATEGORIES[top].id)]
            np.testing.assert_array_equal(out[30, 40], edge)

    def test_empty_mask(self) -> None:
        np.testing.assert_array_equal(self.draw(grey(), [0], [0.9], [rle(100, 120, (0, 0, 0, 0))]), grey())

    def test_mask_of_another_size(self) -> None:
        with pytest.raises(ValueError, match="mask of size"):
            self.draw(grey(), [0], [0.9], [rle(120, 100, (20, 30, 60, 80))])

    def test_memory_does_not_grow_with_their_number(self) -> None:
        height, width = 1080, 1920
        rles = [rle(height, width, (i, i, 1900, 1070)) for i in range(20)]
        peaks = []
        for count in (1, 20):
            tracemalloc.start()
            self.draw(grey(height, width), [0] * count, [0.5] * count, rles[:count])
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert peaks[1] < peaks[0] * 1.1


class TestBoxes:
    def test_outline_on_the_box_s_outermost_pixels(self) -> None:
        box = np.array([[20, 30, 60, 80]], np.float32)
        out = draw(grey(), box, np.array([1]), None, None, CATEGORIES, options=DrawOptions(**ONLY | {"boxes": True}))
        rows, columns = np.nonzero((out != 128).any(axis=2))
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (30, 79, 20, 59)
        np.testing.assert_array_equal(out[30, 40], category_colour(2))
        assert (out[35:75, 25:55] == 128).all()

    @pytest.mark.parametrize(("size", "width"), [((100, 120), 1), ((480, 640), 2), ((1080, 1920), 4)])
    def test_width_follows_the_image(self, size: tuple[int, int], width: int) -> None:
        box = np.array([[10, 10, 90, 90]], np.float32)
        options = DrawOptions(**ONLY | {"boxes": True})
        out = draw(grey(*size), box, np.array([0]), None, None, CATEGORIES, options=options)
        assert (out[50] != 128).any(axis=1).sum() == 2 * width

    @pytest.mark.parametrize(
        "box",
        [
            pytest.param([-50, -50, 500, 500], id="larger than the image"),
            pytest.param([10, 10, 10, 10], id="without area"),
            pytest.param([60, 60, 20, 20], id="inside out"),
            pytest.param([119.9, 99.9, 120, 100], id="in the corner"),
            pytest.param([300, 300, 400, 400], id="outside"),
            pytest.param([-20, -20, -10, -10], id="outside, before the origin"),
        ],
    )
    def test_odd_boxes_are_drawn_somehow(self, box: list[float]) -> None:
        out = draw(grey(), np.array([box], np.float32), np.array([0]), np.array([0.5]), None, CATEGORIES)
        assert out.shape == (100, 120, 3)


class TestLabels:
    def tags(self, image: np.ndarray, boxes: list[list[int]], texts: list[str]) -> list[visualize._Tag]:
        objects = [((x1, y1, x2, y2), text, (0, 0, 0)) for (x1, y1, x2, y2), text in zip(boxes, texts, strict=True)]
        return visualize._place_tags(objects, Image.fromarray(image))

    def test_inside_the_image_at_every_border(self) -> None:
        boxes = [[0, 0, 20, 20], [280, 0, 299, 20], [0, 180, 20, 199], [280, 180, 299, 199], [140, 90, 160, 110]]
        tags = self.tags(grey(200, 300), boxes, ["a longer label"] * 5)
        assert len(tags) == 5
        for tag in tags:
            assert 0 <= tag.left <= tag.left + tag.width <= 300
            assert 0 <= tag.top <= tag.top + tag.height <= 200

    def test_of_one_box_do_not_cover_each_other(self) -> None:
        tags = self.tags(grey(300, 300), [[100, 100, 200, 200]] * 6, ["person 99%"] * 6)
        assert all(a.overlap(b) == 0 for i, a in enumerate(tags) for b in tags[:i])

    def test_the_best_stands_on_its_box(self) -> None:
        first, second = self.tags(grey(300, 300), [[100, 100, 200, 200]] * 2, ["best", "other"])
        assert (first.left, first.top + first.height) == (100, 100)
        assert first.overlap(second) == 0

    def test_cut_to_the_image(self) -> None:
        (tag,) = self.tags(grey(100, 60), [[0, 50, 50, 90]], ["a very long name of a category"])
        assert tag.width <= 60
        assert tag.text.endswith("…")

    @pytest.mark.parametrize("size", [(1, 1), (5, 200), (200, 3), (12, 12)])
    def test_image_too_small_for_text(self, size: tuple[int, int]) -> None:
        box = np.array([[0, 0, size[1], size[0]]], np.float32)
        out = draw(grey(*size), box, np.array([0]), np.array([0.5]), [rle(*size, (0, 0, 1, 1))], CATEGORIES)
        assert out.shape == (*size, 3)

    @pytest.mark.parametrize("name", ["Äpfel", "猫", "قطة", "🐈", "two\nlines\t", "\ud800", "\0", "", "x" * 5000])
    def test_any_name_can_be_drawn(self, name: str) -> None:
        box = np.array([[20, 30, 60, 80]], np.float32)
        out = draw(grey(), box, np.array([0]), np.array([0.5]), None, (Category(1, name),))
        assert (out != 128).any()

    def test_names_and_scores_can_be_left_out(self) -> None:
        captions = [
            visualize._caption("cat", np.array([0.987]), 0, DrawOptions(labels=labels, scores=scores))
            for labels, scores in ((True, True), (True, False), (False, True), (False, False))
        ]
        assert captions == ["cat 99%", "cat", "99%", ""]


class TestDraw:
    def arguments(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[Rle]]:
        boxes = np.array([[20, 30, 60, 80], [5, 5, 110, 50]], np.float32)
        rles = [rle(100, 120, (20, 30, 60, 80)), rle(100, 120, (5, 5, 110, 50))]
        return boxes, np.array([0, 1]), np.array([0.9, 0.2]), rles

    def test_the_image_given_is_not_changed(self) -> None:
        image = grey()
        image.setflags(write=False)
        out = draw(image, *self.arguments(), CATEGORIES)
        assert out.dtype == np.uint8
        assert out.flags.writeable
        np.testing.assert_array_equal(image, grey())

    def test_nothing_to_draw(self) -> None:
        none = np.zeros((0, 4)), np.zeros(0, int), np.zeros(0), []
        np.testing.assert_array_equal(draw(grey(), *none, CATEGORIES), grey())
        np.testing.assert_array_equal(draw(grey(), *self.arguments(), CATEGORIES, options=DrawOptions(**ONLY)), grey())

    def test_min_score(self) -> None:
        boxes, labels, scores, rles = self.arguments()
        out = draw(grey(), boxes, labels, scores, rles, CATEGORIES, options=DrawOptions(min_score=0.5))
        best = draw(grey(), boxes[:1], labels[:1], scores[:1], rles[:1], CATEGORIES)
        np.testing.assert_array_equal(out, best)

    def test_order_given_does_not_matter(self) -> None:
        boxes, labels, scores, rles = self.arguments()
        swapped = draw(grey(), boxes[::-1], labels[::-1], scores[::-1], rles[::-1], CATEGORIES)
        np.testing.assert_array_equal(draw(grey(), boxes, labels, scores, rles, CATEGORIES), swapped)

    def test_ground_truth_without_scores(self) -> None:
        boxes, labels, _, rles = self.arguments()
        assert (draw(grey(), boxes, labels, None, rles, CATEGORIES) != 128).any()

    @pytest.mark.parametrize(
        "image", [np.zeros((10, 10), np.uint8), np.zeros((10, 10, 3), np.float32), np.zeros((0, 10, 3), np.uint8)]
    )
    def test_no_rgb_image(self, image: np.ndarray) -> None:
        with pytest.raises(ValueError, match="expected uint8"):
            draw(image, *self.arguments(), CATEGORIES)

    @pytest.mark.parametrize("missing", ["labels", "scores", "rles"])
    def test_counts_that_differ(self, missing: str) -> None:
        arguments = dict(zip(("boxes", "labels", "scores", "rles"), self.arguments(), strict=True))
        arguments[missing] = arguments[missing][:1]
        with pytest.raises(ValueError, match=f"2 boxes, but 1 {missing}"):
            draw(grey(), **arguments, categories=CATEGORIES)

    def test_opacity_out_of_range(self) -> None:
        with pytest.raises(ValueError, match="mask_opacity"):
            DrawOptions(mask_opacity=1.5)

    def test_a_hundred_in_a_large_picture(self) -> None:
        random = np.random.default_rng(0)
        corner, side = random.integers(0, 900, (100, 2)), random.integers(10, 300, (100, 2))
        boxes = np.concatenate([corner, np.minimum(corner + side, [1920, 1080])], axis=1).astype(np.float32)
        rles = [rle(1080, 1920, tuple(int(v) for v in box)) for box in boxes]
        labels, scores = random.integers(0, 80, 100), random.uniform(size=100)
        out = draw(grey(1080, 1920), boxes, labels, scores, rles, COCO_CATEGORIES)
        assert out.shape == (1080, 1920, 3)


class TestGrid:
    def test_pictures_keep_their_shape_in_equal_cells(self) -> None:
        red, blue = np.zeros((50, 100, 3), np.uint8), np.zeros((90, 30, 3), np.uint8)
        red[..., 0], blue[..., 2] = 255, 255
        sheet = grid([red, blue, red], columns=2, cell=(60, 80))
        gap = 4
        assert sheet.shape == (gap + 2 * (60 + gap), gap + 2 * (80 + gap), 3)
        np.testing.assert_array_equal(sheet[gap + 30, gap + 40], [255, 0, 0])
        np.testing.assert_array_equal(sheet[gap + 2, gap + 40], [255, 255, 255])
        np.testing.assert_array_equal(sheet[gap + 2, gap + 80 + gap + 40], [0, 0, 255])
        np.testing.assert_array_equal(sheet[-gap - 30, -gap - 40], [255, 255, 255])

    def test_captions_take_a_line_below(self) -> None:
        plain = grid([grey()], 1, (100, 120))
        captioned = grid([grey()], 1, (100, 120), ["Überschrift " * 20])
        assert captioned.shape[0] > plain.shape[0]
        assert captioned.shape[1] == plain.shape[1]
        assert (captioned[plain.shape[0] - 3 :] < 100).any()

    def test_fewer_pictures_than_columns(self) -> None:
        assert grid([grey()], 5, (50, 50)).shape == grid([grey()], 1, (50, 50)).shape

    def test_refused(self) -> None:
        with pytest.raises(ValueError, match="make no sheet"):
            grid([], 3, (50, 50))
        with pytest.raises(ValueError, match="make no sheet"):
            grid([grey()], 0, (50, 50))
        with pytest.raises(ValueError, match="captions"):
            grid([grey()], 1, (50, 50), [])

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.annotations.failure import ImageFailure
from pipeline.annotations.pictures import PictureSource
from pipeline.annotations.rows import OutputRows, Row
from pipeline.drawing.colours import category_colour
from pipeline.drawing.draw import DrawOptions
from pipeline.drawing.rows import draw_rows
from pipeline.storage.uris import Uri
from tests.drawing.drawn_cases import GREY, SIZE, write_output, write_picture

BOXES_ONLY = DrawOptions(labels=False, scores=False, masks=False)
CAT, APPLE = (5, 10), (40, 50)  # row and column of a corner of each box


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    write_picture(tmp_path / "a.png")
    Image.new("RGB", SIZE).save(tmp_path / "turned.png")  # Pillow has the width first
    ids = ["a", "gone", "failed", "turned", "bytes"]
    uris = [str(tmp_path / f"{name}.png") for name in ids[:-1]]
    write_output(tmp_path / "out", ids, [*uris, None], failed=["failed"])
    return OutputRows(Uri(str(tmp_path / "out"))).by_id(ids)


def test_every_row_is_drawn_or_has_its_reason(rows: list[Row]) -> None:
    drawn = list(draw_rows(rows, PictureSource()))
    assert [row.image_id for row in drawn] == ["a", "gone", "failed", "turned", "bytes"]
    codes = [row.picture.code if isinstance(row.picture, ImageFailure) else None for row in drawn]
    assert codes == [None, "not_found", "not_found", "another_size", "no_uri"]
    assert isinstance(drawn[3].picture, ImageFailure)
    assert "80 x 60" in drawn[3].picture.message
    assert [row.num_objects for row in drawn] == [2, 0, 0, 0, 0]


def test_boxes_stand_where_they_were_found_in_their_category_s_colour(rows: list[Row]) -> None:
    (drawn,) = draw_rows(rows[:1], PictureSource(), BOXES_ONLY)
    assert not isinstance(drawn.picture, ImageFailure)
    np.testing.assert_array_equal(drawn.picture[CAT], category_colour(3))
    np.testing.assert_array_equal(drawn.picture[34, 29], category_colour(3))  # the far corner, inclusive
    np.testing.assert_array_equal(drawn.picture[APPLE], category_colour(7))
    np.testing.assert_array_equal(drawn.picture[0, 0], [GREY] * 3)


def test_masks_are_those_of_the_row(rows: list[Row]) -> None:
    options = DrawOptions(boxes=False, labels=False, scores=False)
    (drawn,) = draw_rows(rows[:1], PictureSource(), options)
    assert not isinstance(drawn.picture, ImageFailure)
    assert (drawn.picture != GREY).any(axis=2).sum() == 600 + 100


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"counts": "53"}, "run lengths of 8 pixels in all"),
        ({"counts": "00N8"}, "a run of -2 pixels"),
        ({"counts": None}, "not a compressed string"),
        ({"size": SIZE[::-1]}, r"it is of 80 x 60 \(height x width\), the image of 60 x 80"),
        ({"size": None}, "it has no size"),
    ],
)
def test_a_damaged_mask_is_a_reason(rows: list[Row], segmentation: Row, message: str) -> None:
    rows[0]["detections"][1]["segmentation"] |= segmentation
    (drawn,) = draw_rows(rows[:1], PictureSource())
    assert isinstance(drawn.picture, ImageFailure)
    assert drawn.picture.code == "damaged_mask"
    assert re.search(message, drawn.picture.message)


@pytest.mark.parametrize(
    ("min_score", "categories", "cat", "apple"),
    [(0.0, (), True, True), (0.5, (), True, False), (0.0, ("Äpfel",), False, True), (0.5, ("Äpfel",), False, False)],
)
def test_what_is_left_out(
    rows: list[Row], min_score: float, categories: tuple[str, ...], cat: bool, apple: bool
) -> None:
    options = DrawOptions(labels=False, scores=False, masks=False, min_score=min_score)
    (drawn,) = draw_rows(rows[:1], PictureSource(), options, categories)
    assert not isinstance(drawn.picture, ImageFailure)
    assert [bool((drawn.picture[place] != GREY).any()) for place in (CAT, APPLE)] == [cat, apple]
    assert drawn.num_objects == cat + apple


def test_more_rows_than_are_read_at_once(rows: list[Row]) -> None:
    many = [{**rows[i % 2], "image_id": i} for i in range(30)]
    drawn = list(draw_rows(many, PictureSource(), BOXES_ONLY))
    assert [row.image_id for row in drawn] == list(range(30))
    assert [isinstance(row.picture, ImageFailure) for row in drawn] == [False, True] * 15

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.model.settings import PIXEL_MEAN
from pipeline.train.sample.geometry import MIN_PIXELS, PADDING_COLOUR, flip, mask_boxes, resize, window
from pipeline.train.sample.sample import Sample
from tests.train.sample_cases import assert_equal, assert_sound, num_overlapping, random_sample, samples

SIDES = st.integers(1, 90)


def test_boxes_end_after_the_last_pixel() -> None:
    masks = np.zeros((3, 5, 7), np.bool_)
    masks[0, 1:3, 2:6] = True
    masks[1, 4, 6] = True
    assert mask_boxes(masks).tolist() == [[2, 1, 6, 3], [6, 4, 7, 5], [0, 0, 0, 0]]
    assert mask_boxes(masks[:0]).shape == (0, 4)


@given(samples())
@settings(max_examples=60, deadline=None)
def test_flipping_twice_changes_nothing(sample: Sample) -> None:
    flipped = flip(sample)
    assert_sound(flipped)
    np.testing.assert_array_equal(flipped.pixels[:, 0], sample.pixels[:, -1])
    np.testing.assert_array_equal(flipped.masks[..., 0], sample.masks[..., -1])
    assert_equal(flip(flipped), sample)


@given(samples(), SIDES, SIDES)
@settings(max_examples=100, deadline=None)
def test_resized_samples_are_sound(sample: Sample, height: int, width: int) -> None:
    resized = resize(sample, (height, width))
    assert_sound(resized)
    assert resized.pixels.shape == (height, width, 3)


@given(samples(disjoint=True), SIDES, SIDES)
@settings(max_examples=60, deadline=None)
def test_resizing_makes_no_masks_overlap(sample: Sample, height: int, width: int) -> None:
    assert num_overlapping(sample) == 0
    assert num_overlapping(resize(sample, (height, width))) == 0


def test_pixels_are_resized_as_the_model_does_and_masks_follow() -> None:
    sample = random_sample(1, (40, 56))
    resized = resize(sample, (67, 90))
    np.testing.assert_array_equal(resized.pixels, cv2.resize(sample.pixels, (90, 67), interpolation=cv2.INTER_LINEAR))
    doubled = resize(sample, (80, 112))
    np.testing.assert_array_equal(doubled.masks, sample.masks.repeat(2, axis=1).repeat(2, axis=2))
    np.testing.assert_array_equal(doubled.boxes, sample.boxes * 2)


@pytest.mark.parametrize(("num_source", "num_wanted", "picked"), [(6, 2, [1, 4]), (4, 2, [1, 3]), (2, 4, [0, 0, 1, 1])])
def test_masks_take_the_pixel_below_the_centre(num_source: int, num_wanted: int, picked: list[int]) -> None:
    columns = np.zeros((num_source, 8, num_source), np.bool_)
    columns[np.arange(num_source), :, np.arange(num_source)] = True
    empty = random_sample(0, (8, num_source), 0)
    zeros = np.zeros(num_source, np.int64)
    sample = Sample(0, empty.pixels, mask_boxes(columns), zeros + np.arange(num_source), columns, zeros > 0)
    resized = resize(sample, (8, num_wanted))
    assert resized.labels[resized.masks[:, 0].argmax(axis=0)].tolist() == picked


@given(samples(), st.data())
@settings(max_examples=100, deadline=None)
def test_windows_are_sound_and_padded_with_the_mean_colour(sample: Sample, data: st.DataObject) -> None:
    height, width = sample.pixels.shape[:2]
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    size = (data.draw(SIDES), data.draw(SIDES))
    cut = window(sample, top, left, size)
    assert_sound(cut)
    part = sample.pixels[top : top + size[0], left : left + size[1]]
    np.testing.assert_array_equal(cut.pixels[: part.shape[0], : part.shape[1]], part)
    assert (cut.pixels[part.shape[0] :] == PADDING_COLOUR).all()
    assert (cut.pixels[:, part.shape[1] :] == PADDING_COLOUR).all()
    visible = sample.masks[:, top : top + size[0], left : left + size[1]].sum(axis=(1, 2))
    assert cut.labels.tolist() == sample.labels[visible >= MIN_PIXELS].tolist()
    assert cut.masks.sum() == visible[visible >= MIN_PIXELS].sum()


def test_an_object_of_too_few_pixels_is_dropped_with_all_that_belongs_to_it() -> None:
    masks = np.zeros((2, 20, 20), np.bool_)
    masks[0, 0, :MIN_PIXELS] = masks[1, 0, 8 : 8 + MIN_PIXELS] = True
    sample = Sample(
        0, np.zeros((20, 20, 3), np.uint8), mask_boxes(masks), np.array([7, 9]), masks, np.array([False, True])
    )
    cut = window(sample, 0, 1, (20, 19))
    assert (cut.labels.tolist(), cut.ignored.tolist(), cut.boxes.tolist()) == ([9], [True], [[7, 0, 11, 1]])


def test_the_padding_colour_is_next_to_nothing_after_normalising() -> None:
    assert np.abs(PADDING_COLOUR - np.array(PIXEL_MEAN)).max() < 0.5

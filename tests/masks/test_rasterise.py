from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from pycocotools import mask as coco_mask

import pipeline.masks.rasterise as rasterise_module
from pipeline.masks.rasterise import rasterise
from testing.mask_reference import reference_full_canvas, reference_per_instance
from testing.soft_masks import random_boxes, soft_masks
from tests.masks.mask_cases import Float32Array, expected_rles, needs_fma, random_case

SIDE = 28
ONES = np.ones((SIDE, SIDE), np.float32)
CHECKERBOARD = (np.indices((SIDE, SIDE)).sum(0) % 2).astype(np.float32)
BLOB = soft_masks(np.random.default_rng(0), 1)[0]
HALF = np.float32(0.5)
BELOW, ABOVE = np.nextafter(HALF, np.float32(0)), np.nextafter(HALF, np.float32(1))
TINY = float(np.finfo(np.float32).smallest_subnormal)


pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


def pixels(mask: Float32Array, box: tuple[float, ...], image_size: tuple[int, int]) -> np.ndarray:
    """The [H, W] mask that one instance becomes."""
    return coco_mask.decode(rasterise(mask[None], np.array([box], np.float32), image_size)[0])


GEOMETRY = {
    "inside": ((10.3, 5.7, 40.2, 33.9), (48, 64)),
    "on pixel edges": ((10, 5, 38, 33), (48, 64)),
    "on pixel centres": ((10.5, 5.5, 38.5, 33.5), (48, 64)),
    "touches the top left": ((0, 0, 20.5, 17.25), (48, 64)),
    "touches the bottom right": ((40.5, 30.25, 64, 48), (48, 64)),
    "the whole image": ((0, 0, 64, 48), (48, 64)),
    "crosses every border": ((-7.3, -4.1, 70.9, 55.5), (48, 64)),
    "crosses the left border": ((-12.6, 8.2, 9.9, 30), (48, 64)),
    "full height, runs merge over columns": ((3, -40, 20, 90), (16, 32)),
    "one row shown of a tall box": ((3.2, -30, 20.7, 31), (1, 32)),
    "one column shown of a wide box": ((-30, 3.2, 31, 20.7), (32, 1)),
    "1x1 image": ((-3, -3, 4, 4), (1, 1)),
    "1x1 image, box on its centre": ((0.5, 0.5, 1.5, 1.5), (1, 1)),
    "narrower than a pixel": ((10.2, 5, 10.9, 33), (48, 64)),
    "narrower than a pixel, between centres": ((10.6, 5, 11.4, 33), (48, 64)),
    "one ulp wide, on a centre": ((10.5, 5, float(np.nextafter(np.float32(10.5), np.float32(11))), 33), (48, 64)),
    "one ulp high, on a centre": ((5, 10.5, 33, float(np.nextafter(np.float32(10.5), np.float32(11)))), (48, 64)),
    "left of the image": ((-30, 5, -2, 33), (48, 64)),
    "below the image": ((5, 48, 33, 70), (48, 64)),
    "far outside": ((1e9, 1e9, 1.1e9, 1.1e9), (48, 64)),
    "1e6 px, the image in its middle": ((-5e5, -5e5, 5e5, 5e5), (48, 64)),
    "1e6 px, the image in its corner": ((-1e6 + 50, -1e6 + 40, 50, 40), (48, 64)),
    "1e30 px": ((-1e30, -1e30, 1e30, 1e30), (48, 64)),
    "1e6 px wide, a sliver high": ((-5e5, 20.4, 5e5, 20.6), (48, 64)),
}
MASKS = {
    "blob": BLOB,
    "zeros": 0 * ONES,
    "ones": ONES,
    "half": 0.5 * ONES,
    "half less an ulp": BELOW * ONES,
    "half and an ulp": ABOVE * ONES,
    "ulps about half": np.where(CHECKERBOARD > 0, ABOVE, BELOW),
    "checkerboard": CHECKERBOARD,
    "subnormal": np.where(CHECKERBOARD > 0, TINY, 1).astype(np.float32),
}


@needs_fma
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize(("box", "image_size"), GEOMETRY.values(), ids=GEOMETRY.keys())
def test_equals_the_reference(mask, box, image_size):
    boxes = np.array([box], np.float32)
    assert rasterise(mask[None], boxes, image_size) == reference_full_canvas(mask[None], boxes, image_size)


WITHOUT_INSIDE = {
    "zero width": (10, 5, 10, 33),
    "zero height": (10, 5, 38, 5),
    "a point": (64, 48, 64, 48),
    "negative width": (38, 5, 10, 33),
    "negative height": (10, 33, 38, 5),
    "too thin for the reference's division": (0, 5, TINY, 33),
    "NaN": (float("nan"), 5, 38, 33),
    "infinite": (float("-inf"), 5, float("inf"), 33),
    "infinite on one side": (10, 5, float("inf"), 33),
    "as wide as float32 cannot hold": (-3e38, 5, 3e38, 33),
}


@pytest.mark.parametrize("box", WITHOUT_INSIDE.values(), ids=WITHOUT_INSIDE.keys())
def test_boxes_without_an_inside_give_empty_masks(box):
    empty, full = rasterise(np.stack([ONES, ONES]), np.array([box, (0, 0, 64, 48)], np.float32), (48, 64))
    assert empty == coco_mask.encode(np.zeros((48, 64), np.uint8, order="F"))
    assert full == coco_mask.encode(np.ones((48, 64), np.uint8, order="F"))


def test_a_saturated_mask_counts_on_the_edge_of_its_box():
    # Centres on the edge are sampled half way between 1 and the border's 0: exactly 0.5, which counts.
    inside = np.zeros((20, 20), np.uint8)
    inside[4:12, 2:14] = 1
    inside[[4, 4, 11, 11], [2, 13, 2, 13]] = 0  # a quarter in the corners
    assert (pixels(ONES, (2.5, 4.5, 13.5, 11.5), (20, 20)) == inside).all()


def test_one_mask_value_a_pixel():
    mask = np.random.default_rng(0).random((SIDE, SIDE), np.float32)
    got = pixels(mask, (3, 2, 3 + SIDE, 2 + SIDE), (40, 50))
    assert (got[2 : 2 + SIDE, 3 : 3 + SIDE] == (mask >= 0.5)).all()
    assert got.sum() == (mask >= 0.5).sum()


@needs_fma
@pytest.mark.parametrize(
    ("side", "largest", "rounds"), [(28, 40, 300), (28, 250, 40), (14, 60, 60), (56, 80, 40), (1, 30, 20), (7, 50, 60)]
)
def test_random_cases_of_every_kind(side, largest, rounds):
    rng = np.random.default_rng(side * 1000 + largest)
    for _ in range(rounds):
        masks, boxes, image_size = random_case(rng, 30, side, largest)
        assert rasterise(masks, boxes, image_size) == expected_rles(masks, boxes, image_size)


@needs_fma
@pytest.mark.parametrize("image_size", [(480, 640), (1080, 1920)])
def test_realistic_detections(image_size):
    rng = np.random.default_rng(7)
    masks, boxes = soft_masks(rng, 100), random_boxes(rng, 100, image_size, 0.04)
    assert rasterise(masks, boxes, image_size) == reference_per_instance(masks, boxes, image_size)


probabilities = st.one_of(
    st.sampled_from([0.0, 1.0, 0.5, float(BELOW), float(ABOVE), TINY]), st.floats(0, 1, width=32, allow_subnormal=True)
)
coordinates = st.one_of(
    st.integers(-5, 60).map(lambda n: n / 2),
    st.floats(-50, 100, width=32),
    st.floats(-(2.0**20), 2.0**20, width=32),
)


@needs_fma
@settings(max_examples=500, deadline=None)
@given(data=st.data())
def test_any_masks_boxes_and_image(data):
    num_masks, side = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 6))
    masks = data.draw(st_numpy.arrays(np.float32, (num_masks, side, side), elements=probabilities))
    boxes = np.array(data.draw(st.lists(st.tuples(*[coordinates] * 4), min_size=num_masks, max_size=num_masks)))
    boxes = boxes.reshape(num_masks, 4).astype(np.float32)
    boxes = np.concatenate([np.fmin(boxes[:, :2], boxes[:, 2:]), np.fmax(boxes[:, :2], boxes[:, 2:])], axis=1)
    image_size = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    assert rasterise(masks, boxes, image_size) == expected_rles(masks, boxes, image_size)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_chunks_change_nothing(monkeypatch, chunk):
    masks, boxes, image_size = random_case(np.random.default_rng(3), 8, 7, 12)
    whole = rasterise(masks, boxes, image_size)
    monkeypatch.setattr(rasterise_module, "CHUNK", chunk)
    assert rasterise(masks, boxes, image_size) == whole


@pytest.mark.parametrize("crossings", [1, 100, 400])
def test_slices_change_nothing(monkeypatch, crossings):
    masks, boxes, image_size = random_case(np.random.default_rng(4), 8, 7, 12)
    boxes[2:4] = [[3, 3, 1, 1], [np.nan, 0, np.inf, 5]]
    whole = rasterise(masks, boxes, image_size)
    monkeypatch.setattr(rasterise_module, "MAX_CROSSINGS", crossings)
    assert rasterise(masks, boxes, image_size) == whole


def test_thousands_of_noisy_masks_stay_small_in_memory():
    """A megabyte and a half for each of them, if all were rasterised together."""
    masks = np.random.default_rng(0).random((600, 28, 28), np.float32)
    boxes = np.tile(np.array([[0, 0, 640, 480]], np.float32), (600, 1))
    tracemalloc.start()
    got = rasterise(masks, boxes, (480, 640))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300e6
    assert got[300:302] == rasterise(masks[300:302], boxes[300:302], (480, 640))


@needs_fma
@pytest.mark.parametrize("image_size", [(3, 1_000_000), (1_000_000, 3)])
@pytest.mark.parametrize("name", ["blob", "half"])
def test_an_image_of_a_million_pixels_a_side_stays_small_in_memory(image_size, name):
    masks, boxes = MASKS[name][None], np.array([(0, 0, *image_size[::-1])], np.float32)
    tracemalloc.start()
    got = rasterise(masks, boxes, image_size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert got == reference_full_canvas(masks, boxes, image_size)
    assert peak < 100e6


def test_order_is_kept_and_masks_do_not_mix():
    rng = np.random.default_rng(5)
    masks, boxes = soft_masks(rng, 50), random_boxes(rng, 50, (60, 80), 0.2)
    boxes[::7, 2] = boxes[::7, 0]
    together = rasterise(masks, boxes, (60, 80))
    assert together == [rasterise(masks[[n]], boxes[[n]], (60, 80))[0] for n in range(50)]
    assert rasterise(masks[::-1], boxes[::-1], (60, 80)) == together[::-1]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_types_count_as_their_float32_values(dtype):
    masks, boxes, image_size = random_case(np.random.default_rng(11), 30, SIDE, 60)
    masks = np.clip(masks, -100, 100).astype(dtype)
    boxes = boxes.astype(np.float64)
    as_float32 = rasterise(masks.astype(np.float32), boxes.astype(np.float32), image_size)
    assert rasterise(masks, boxes, image_size) == as_float32


def test_inputs_are_not_written_to():
    masks, boxes, image_size = random_case(np.random.default_rng(12), 10, SIDE, 60)
    before = masks.copy(), boxes.copy()
    masks.setflags(write=False)
    boxes.setflags(write=False)
    rasterise(masks, boxes, image_size)
    assert (masks == before[0]).all()
    assert (boxes == before[1]).all()


def test_no_masks():
    assert rasterise(np.zeros((0, SIDE, SIDE), np.float32), np.zeros((0, 4), np.float32), (48, 64)) == []


MASK, BOX, IMAGE = ONES[None], np.array([[0.0, 0, 5, 5]]), (48, 64)


@pytest.mark.parametrize(
    ("masks", "boxes", "image_size", "message"),
    [
        pytest.param(ONES, BOX, IMAGE, "masks must have the shape", id="one mask without N"),
        pytest.param(MASK[:, None], BOX, IMAGE, "masks must have the shape", id="channel axis"),
        pytest.param(MASK[:, :5], BOX, IMAGE, "masks must have the shape", id="masks not square"),
        pytest.param(np.zeros((1, 0, 0)), BOX, IMAGE, "masks must have the shape", id="masks without values"),
        pytest.param(MASK, BOX[0], IMAGE, "boxes must have the shape", id="one box without N"),
        pytest.param(MASK, np.zeros((2, 4)), IMAGE, "one per mask", id="more boxes than masks"),
        pytest.param(MASK, np.zeros((1, 5)), IMAGE, "boxes must have the shape", id="boxes with scores"),
        pytest.param(MASK.astype(np.uint8), BOX, IMAGE, "floating-point", id="masks of integers"),
        pytest.param(MASK * np.nan, BOX, IMAGE, "finite", id="NaN in a mask"),
        pytest.param(MASK * np.inf, BOX, IMAGE, "finite", id="infinity in a mask"),
        pytest.param(MASK, BOX, (0, 64), "image_size must be", id="image without pixels"),
        pytest.param(MASK, BOX, (48, 64, 3), "image_size must be", id="image size with channels"),
    ],
)
def test_wrong_input_is_refused(masks, boxes, image_size, message):
    with pytest.raises(ValueError, match=message):
        rasterise(masks, boxes, image_size)

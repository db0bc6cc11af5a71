"""Oracle: OpenCV's bilinear resize, and sizes worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.images.resize import resize_bilinear_uint8
from pipeline.images.sizes import scaled_size

cv2: Any = pytest.importorskip("cv2")


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Uniform noise with saturated pixels: the hardest for rounding."""
    random = np.random.default_rng(height * 10_007 + width)
    pixels = random.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return np.where(random.random((height, width, 1)) < 0.1, np.uint8(255), pixels)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return resize_bilinear_uint8(torch.from_numpy(image).permute(2, 0, 1), size).permute(1, 2, 0).numpy()


def resize_cv2(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    return resized.reshape(*size, image.shape[2])


# name: (from, to), both (H, W)
SIZES = {
    "same": ((31, 47), (31, 47)),
    "exact halving": ((64, 98), (32, 49)),
    "halving of rows only": ((64, 49), (32, 49)),
    "halving of columns only": ((32, 98), (32, 49)),
    "exact doubling": ((32, 49), (64, 98)),
    "exact third": ((90, 120), (30, 40)),
    "a pixel more": ((50, 70), (51, 71)),
    "a pixel less": ((50, 70), (49, 69)),
    "one pixel up": ((1, 1), (64, 96)),
    "down to one pixel": ((64, 96), (1, 1)),
    "two pixels down to one": ((2, 2), (1, 1)),
    "one row up": ((1, 40), (8, 320)),
    "one column down": ((900, 1), (64, 1)),
    "up one way, down the other": ((40, 300), (160, 75)),
    "huge ratio down": ((3, 5000), (3, 17)),
    "huge ratio up": ((2, 3), (700, 3)),
    "VGA to the published size": ((480, 640), (800, 1067)),
    "camera to the published size": ((1512, 2016), (800, 1067)),
}


@pytest.mark.parametrize(("source", "target"), SIZES.values(), ids=SIZES.keys())
def test_equals_opencv(source: tuple[int, int], target: tuple[int, int]) -> None:
    image = noise(*source)
    assert np.count_nonzero(resize(image, target) != resize_cv2(image, target)) == 0


SIDES = st.one_of(st.integers(1, 12), st.integers(1, 260))


@given(source=st.tuples(SIDES, SIDES), target=st.tuples(SIDES, SIDES), channels=st.sampled_from([1, 3, 4]))
@example(source=(7, 7), target=(3, 5), channels=3)
@settings(max_examples=400, deadline=None)
def test_equals_opencv_at_random_sizes(source: tuple[int, int], target: tuple[int, int], channels: int) -> None:
    image = noise(*source, channels)
    assert np.count_nonzero(resize(image, target) != resize_cv2(image, target)) == 0


@given(target=st.tuples(st.integers(1, 130), st.integers(1, 130)), step=st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_equals_opencv_at_and_near_exact_halving(target: tuple[int, int], step: int) -> None:
    image = noise(2 * target[0] + step // 2, 2 * target[1] + step % 2)
    assert np.count_nonzero(resize(image, target) != resize_cv2(image, target)) == 0


@given(st.tuples(st.integers(1, 4000), st.integers(1, 4000)))
@settings(max_examples=25, deadline=None)
def test_equals_opencv_at_the_published_scale(source: tuple[int, int]) -> None:
    """Sizes as the model sees them; one channel and a quarter of the scale keep it quick."""
    image = noise(max(1, source[0] // 4), max(1, source[1] // 4), 1)
    target = scaled_size(image.shape[:2], 200, 333)
    assert np.count_nonzero(resize(image, target) != resize_cv2(image, target)) == 0


def test_leading_axes_are_a_batch() -> None:
    images = torch.from_numpy(np.stack([noise(20, 30), noise(20, 30)[::-1]])).permute(0, 3, 1, 2)
    resized = resize_bilinear_uint8(images, (33, 44))
    assert resized.shape == (2, 3, 33, 44)
    assert resized.dtype == torch.uint8
    for one, image in zip(resized, images, strict=True):
        assert torch.equal(one, resize_bilinear_uint8(image, (33, 44)))


@pytest.mark.parametrize("size", [(20, 30), (10, 15), (25, 31)], ids=["same", "half", "other"])
def test_input_stays_as_it_is_and_shares_nothing(size: tuple[int, int]) -> None:
    image = torch.from_numpy(noise(20, 30)).permute(2, 0, 1)
    before = image.clone()
    resize_bilinear_uint8(image, size).fill_(7)
    assert torch.equal(image, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.int8, torch.bool])
def test_wrong_dtype(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"expected a uint8 image, got {dtype}"):
        resize_bilinear_uint8(torch.zeros(3, 4, 4, dtype=dtype), (8, 8))

"""Resized, normalised, then padded with zeros; the numbers are the published ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.images.sizes import scaled_size
from pipeline.model.kernels.resize import normalise
from pipeline.model.preprocess import input_shape, pack, packed_size, preprocess
from pipeline.model.settings import TestSettings
from testing.preprocessed import preprocessed
from testing.small_model import picture

SETTINGS = TestSettings(short_side=50, long_side=90)


def test_channels_are_red_green_blue() -> None:
    red = np.zeros((50, 50, 3), np.uint8)
    red[..., 0] = 255
    pixels, _ = preprocessed(red, SETTINGS)
    assert pixels[:, 0, 0].tolist() == pytest.approx([131.325 / 58.395, -116.28 / 57.12, -103.53 / 57.375], rel=1e-6)


# name: (image (H, W), size in the input, padded size)
SHAPES = {
    "no change, padded": ((50, 70), (50, 70), (64, 96)),
    "enlarged": ((25, 30), (50, 60), (64, 64)),
    "made smaller, long side decides": ((100, 900), (10, 90), (32, 96)),
    "one pixel": ((1, 1), (50, 50), (64, 64)),
    "sliver": ((1, 1000), (1, 90), (32, 96)),
}


@pytest.mark.parametrize(("image", "size", "padded"), SHAPES.values(), ids=SHAPES.keys())
def test_padding_is_zero_after_normalising(
    image: tuple[int, int], size: tuple[int, int], padded: tuple[int, int]
) -> None:
    pixels, found = preprocessed(picture(*image), SETTINGS)
    assert found == size
    assert pixels.shape == (3, *padded)
    assert input_shape(image, SETTINGS) == padded
    assert (pixels[:, size[0] :] == 0).all()
    assert (pixels[:, :, size[1] :] == 0).all()
    assert (pixels[:, : size[0], : size[1]] != 0).any()


def test_an_image_of_the_right_size_keeps_its_pixels() -> None:
    image = picture(50, 70)
    pixels, _ = preprocessed(image, SETTINGS)
    assert torch.equal(pixels[:, :50, :70], normalise(torch.from_numpy(image).permute(2, 0, 1)))


# -------------------------------------------------------------------------------------------------------------- packing
SIDES = st.integers(1, 40)


@given(sizes=st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=5), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_what_is_packed_comes_out(sizes: list[tuple[int, int]], seed: int) -> None:
    """As the table says, at aligned places that do not overlap, and with nothing written beside the buffer."""
    images = [picture(*size, seed=seed + i) for i, size in enumerate(sizes)]
    originals = [(2 * h + seed % 2, 3 * w) for h, w in sizes]
    memory = np.full(packed_size(images) + 64, 99, np.uint8)
    pack(images, originals, SETTINGS, memory[:-64])
    assert (memory[-64:] == 99).all()
    count, pixels_at = len(images), -(-56 * len(images) // 128) * 128
    table = memory[: 40 * count].view(np.int64).reshape(count, 5)
    end = 0
    for (start, h, w, *target), image, original in zip(table.tolist(), images, originals, strict=True):
        assert start >= end
        assert start % 16 == 0
        end = start + h * w * 3
        np.testing.assert_array_equal(memory[pixels_at + start : pixels_at + end].reshape(h, w, 3), image)
        assert tuple(target) == scaled_size(original, SETTINGS.short_side, SETTINGS.long_side)
    assert pixels_at + end <= len(memory) - 64


def test_sizes_and_factors() -> None:
    images, originals = [picture(25, 30), picture(50, 70), picture(25, 60)], [(25, 30), (100, 140), (25, 60)]
    buffer = np.empty(packed_size(images), np.uint8)
    pack(images, originals, SETTINGS, buffer)
    inputs = preprocess(torch.from_numpy(buffer), 3, (64, 96))
    assert inputs.images.shape == (3, 3, 64, 96)
    assert inputs.image_sizes.tolist() == [[50, 60], [50, 70], [38, 90]]
    expected = torch.tensor([[2, 2], [0.5, 0.5], [1.5, 38 / 25]])
    assert torch.equal(inputs.scale_factors, expected)


def test_a_batch_is_its_images() -> None:
    images = [picture(25, 30, seed=1), picture(48, 50, seed=2)]
    buffer = np.empty(packed_size(images), np.uint8)
    pack(images, [image.shape[:2] for image in images], SETTINGS, buffer)
    batch = preprocess(torch.from_numpy(buffer), 2, (64, 64)).images
    assert torch.equal(batch, torch.stack([preprocessed(image, SETTINGS)[0] for image in images]))

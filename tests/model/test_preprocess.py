"""Resized, normalised, then padded with zeros; the numbers are the published ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.model.kernels.resize import normalise
from pipeline.model.preprocess import input_shape, preprocess
from pipeline.model.settings import TestSettings
from testing.small_model import picture

CPU = torch.device("cpu")
SETTINGS = TestSettings(short_side=50, long_side=90)


def test_channels_are_red_green_blue() -> None:
    red = np.zeros((50, 50, 3), np.uint8)
    red[..., 0] = 255
    pixels, _ = preprocess(red, SETTINGS, CPU)
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
    pixels, found = preprocess(picture(*image), SETTINGS, CPU)
    assert found == size
    assert pixels.shape == (3, *padded)
    assert input_shape(image, SETTINGS) == padded
    assert (pixels[:, size[0] :] == 0).all()
    assert (pixels[:, :, size[1] :] == 0).all()
    assert (pixels[:, : size[0], : size[1]] != 0).any()


def test_an_image_of_the_right_size_keeps_its_pixels() -> None:
    image = picture(50, 70)
    pixels, _ = preprocess(image, SETTINGS, CPU)
    assert torch.equal(pixels[:, :50, :70], normalise(torch.from_numpy(image).permute(2, 0, 1)))

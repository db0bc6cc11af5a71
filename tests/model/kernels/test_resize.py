"""Oracle: OpenCV's resize, and the published mean and deviation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.model.kernels.resize import normalise, resize_normalise
from tests.model.kernels.cases import opencv_inputs, packed, pictures_of

pytest.importorskip("cv2")

# Of one batch: (from, to), both (H, W); enlarged, made smaller, both, unchanged, to and from one pixel.
SIZES = [((31, 47), (64, 96)), ((90, 120), (30, 40)), ((40, 100), (64, 20)), ((50, 70), (50, 70)), ((1, 1), (9, 9))]


def test_normalise_by_hand() -> None:
    pixels = torch.tensor([0, 100, 255], dtype=torch.uint8)[:, None, None]
    expected = [-123.675 / 58.395, (100 - 116.28) / 57.12, (255 - 103.53) / 57.375]
    assert normalise(pixels).flatten().tolist() == pytest.approx(expected, rel=1e-6)
    assert normalise(pixels).dtype == torch.float32


def test_a_batch_equals_opencv_image_by_image() -> None:
    images = pictures_of([source for source, _ in SIZES])
    inputs = resize_normalise(*packed(images, [target for _, target in SIZES]), 64, 96)
    assert torch.equal(inputs, opencv_inputs(images, [target for _, target in SIZES], 64, 96))


def test_bytes_that_no_row_names_are_not_read() -> None:
    images = pictures_of([(8, 9), (5, 4)])
    pixels, table = packed(images, [(16, 18), (10, 8)])
    apart = torch.cat([torch.full((7,), 255, dtype=torch.uint8), pixels])
    table[:, 0] += 7
    assert torch.equal(resize_normalise(apart, table, 32, 32), opencv_inputs(images, [(16, 18), (10, 8)], 32, 32))


def test_an_image_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(RuntimeError):
        resize_normalise(*packed(pictures_of([(8, 9)]), [(40, 45)]), 32, 32)


def test_input_is_not_changed() -> None:
    images = pictures_of([(8, 9)])
    pixels, table = packed(images, [(8, 9)])
    before = pixels.clone()
    resize_normalise(pixels, table, 32, 32)
    assert torch.equal(pixels, before)
    assert isinstance(images[0], np.ndarray)

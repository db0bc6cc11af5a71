from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from pipeline.model.settings import TestSettings
from pipeline.train.feed import collate
from testing.preprocessed import preprocessed
from tests.train.sample_cases import random_sample

CPU = torch.device("cpu")


def test_images_are_normalised_and_padded_as_the_model_does_when_it_predicts() -> None:
    samples = [random_sample(1, (40, 56), 3), random_sample(2, (64, 33), 0)]
    batch = collate(samples, CPU)
    assert batch.images.shape == (2, 3, 64, 64)
    assert batch.images.dtype == torch.float32
    assert batch.image_sizes.tolist() == [[40, 56], [64, 33]]
    assert batch.image_ids == (1, 2)
    for image, sample in zip(batch.images, samples, strict=True):
        height, width = sample.pixels.shape[:2]
        same_size = TestSettings(short_side=min(height, width), long_side=max(height, width))
        expected, _ = preprocessed(sample.pixels, same_size)
        assert torch.equal(image[:, :height, :width], expected[:, :height, :width])
        assert not image[:, height:].any()
        assert not image[:, :, width:].any()


def test_targets_are_the_objects_in_the_frame_before_padding() -> None:
    sample, empty = random_sample(1, (40, 56), 3), random_sample(2, (40, 56), 0)
    first, second = collate([sample, empty], CPU).targets
    np.testing.assert_array_equal(first.boxes.numpy(), sample.boxes)
    np.testing.assert_array_equal(first.labels.numpy(), sample.labels)
    np.testing.assert_array_equal(first.masks.numpy(), sample.masks)
    np.testing.assert_array_equal(first.ignored.numpy(), sample.ignored)
    assert [part.dtype for part in (first.boxes, first.labels, first.masks)] == [torch.float32, torch.int64, torch.bool]
    assert (second.boxes.shape, second.masks.shape, second.labels.shape) == ((0, 4), (0, 40, 56), (0,))


def test_read_only_pixels_are_taken_without_a_warning() -> None:
    sample = random_sample(1)
    pixels = sample.pixels.copy()
    pixels.flags.writeable = False
    assert torch.equal(collate([replace(sample, pixels=pixels)], CPU).images, collate([sample], CPU).images)

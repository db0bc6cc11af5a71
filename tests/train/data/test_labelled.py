from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pipeline.storage.uris import UriText
from pipeline.train.data.labelled import DataError, LabelledImage, LabelledTable, is_visible
from tests.train.sample_cases import assert_equal, random_sample


def _labelled(seed: int, num_objects: int) -> tuple[LabelledImage, np.ndarray]:
    sample = random_sample(seed, (20, 30), num_objects)
    counts = tuple(coco_mask.encode(np.asfortranarray(mask))["counts"] for mask in sample.masks)
    labels, ignored = tuple(sample.labels.tolist()), tuple(sample.ignored.tolist())
    return LabelledImage(seed, UriText(f"{seed}.png"), (20, 30), labels, ignored, counts), sample.pixels


@pytest.mark.parametrize("num_objects", [0, 1, 4])
def test_a_sample_is_what_was_encoded(num_objects: int) -> None:
    image, pixels = _labelled(3, num_objects)
    assert_equal(image.sample(pixels), random_sample(3, (20, 30), num_objects))


def test_rows_of_a_table_are_the_images_again() -> None:
    images = [_labelled(seed, seed % 4)[0] for seed in range(6)]
    table = LabelledTable.of(images)
    assert list(table) == images
    assert len(table) == 6
    assert list(table[1:5:2]) == images[1:5:2]
    assert table[-1] == images[-1]
    with pytest.raises(IndexError, match="no image 6 of 6"):
        table[6]


def test_a_picture_of_another_size_is_an_error_that_names_the_image() -> None:
    image, pixels = _labelled(3, 2)
    with pytest.raises(DataError, match=r"image 3: the picture is 30 x 20 \(height x width\).* for 20 x 30.*EXIF"):
        image.sample(pixels.transpose(1, 0, 2))


def test_damaged_run_lengths_are_an_error_that_names_the_image() -> None:
    with pytest.raises(DataError, match="image 8: the run lengths of a mask are damaged"):
        LabelledImage(8, UriText("8.png"), (4, 4), (0,), (False,), (b"0ZZZ1",)).sample(np.zeros((4, 4, 3), np.uint8))


@pytest.mark.parametrize(("num_pixels", "visible"), [(0, False), (3, False), (4, True)])
def test_masks_of_a_few_pixels_are_not_visible(num_pixels: int, visible: bool) -> None:
    mask = np.zeros((8, 8), np.uint8, order="F")
    mask[0, :num_pixels] = 1
    assert is_visible(coco_mask.encode(mask)["counts"], (8, 8)) is visible

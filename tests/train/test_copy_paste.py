from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.train.augment import copy_paste
from pipeline.train.sample.geometry import MIN_PIXELS, mask_boxes
from pipeline.train.sample.sample import Sample
from tests.train.sample_cases import assert_equal, assert_sound, num_overlapping, random_sample, rngs, samples

SIZE = (40, 56)


def _same_size(num_objects: int = 4) -> st.SearchStrategy[Sample]:
    return st.builds(random_sample, st.integers(0, 1 << 30), st.just(SIZE), st.integers(0, num_objects))


@given(_same_size(), _same_size(), rngs())
@settings(max_examples=150, deadline=None)
def test_pasted_objects_hide_what_is_behind_them(sample: Sample, source: Sample, rng: np.random.Generator) -> None:
    source = replace(source, labels=100 + np.arange(len(source.labels)))
    pasted = copy_paste(sample, source, rng)
    assert_sound(pasted)
    num_left = int((pasted.labels < 100).sum())
    chosen = pasted.labels[num_left:] - 100
    assert not source.ignored[chosen].any()
    np.testing.assert_array_equal(pasted.masks[num_left:], source.masks[chosen])
    front = source.masks[chosen].any(axis=0)
    np.testing.assert_array_equal(pasted.pixels[front], source.pixels[front])
    np.testing.assert_array_equal(pasted.pixels[~front], sample.pixels[~front])
    visible = sample.masks & ~front
    left = visible.sum(axis=(1, 2)) >= MIN_PIXELS
    np.testing.assert_array_equal(pasted.masks[:num_left], visible[left])
    assert pasted.labels[:num_left].tolist() == sample.labels[left].tolist()
    assert pasted.ignored[:num_left].tolist() == sample.ignored[left].tolist()


@given(samples(disjoint=True), samples(disjoint=True), rngs())
@settings(max_examples=80, deadline=None)
def test_masks_that_were_disjoint_stay_so(sample: Sample, source: Sample, rng: np.random.Generator) -> None:
    pasted = copy_paste(sample, source, rng)
    assert_sound(pasted)
    assert pasted.pixels.shape == sample.pixels.shape
    assert num_overlapping(pasted) == 0


def test_a_hidden_object_is_gone_and_a_half_hidden_one_has_the_box_of_what_is_left() -> None:
    base = _boxes((10, 10, 14, 14), (0, 0, 20, 4), colour=50)
    source = _boxes((10, 0, 20, 20), colour=200)
    results = [copy_paste(base, source, np.random.default_rng(seed)) for seed in range(20)]
    with_paste = [result for result in results if (result.pixels == 200).any()]
    assert 0 < len(with_paste) < 20  # none is a choice too
    for result in with_paste:
        assert result.boxes.tolist() == [[0, 0, 10, 4], [10, 0, 20, 20]]
        assert (result.pixels[:, 10:20] == 200).all()


def test_without_objects_to_paste_nothing_changes() -> None:
    sample = random_sample(1, SIZE)
    ignored = _boxes((5, 5, 20, 20), colour=9, ignored=True, size=SIZE)
    for source in (random_sample(2, SIZE, 0), ignored):
        assert_equal(copy_paste(sample, source, np.random.default_rng(0)), sample)


def test_any_number_of_objects_is_as_likely() -> None:
    sample, source = random_sample(0, (64, 64), 0), _boxes(*((8 * i, 0, 8 * i + 6, 6) for i in range(4)), size=(64, 64))
    rng = np.random.default_rng(0)
    numbers = np.bincount([len(copy_paste(sample, source, rng).labels) for _ in range(500)], minlength=5)
    assert (numbers > 60).all()


def _boxes(
    *boxes: tuple[int, int, int, int], colour: int = 0, ignored: bool = False, size: tuple[int, int] = (20, 20)
) -> Sample:
    masks = np.zeros((len(boxes), *size), np.bool_)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    pixels = np.full((*size, 3), colour, np.uint8)
    return Sample(0, pixels, mask_boxes(masks), np.arange(len(boxes)), masks, np.full(len(boxes), ignored))

"""Random samples, and what must hold for every sample whatever was done to it."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from pipeline.train.sample.geometry import MIN_PIXELS, mask_boxes
from pipeline.train.sample.sample import Sample


def random_sample(seed: int, size: tuple[int, int] = (40, 56), num_objects: int = 4, disjoint: bool = False) -> Sample:
    """Blobs of random pixels about random centres, some of them touching the border, one in four ignored.

    Every object's pixels have a colour of their own where no later object covers them.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[:height, :width]
    masks = np.zeros((num_objects, height, width), np.bool_)
    pixels = rng.integers(0, 100, (height, width, 3), np.uint8)
    for at, mask in enumerate(masks):
        cy, cx, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(3, 14)
        mask[:] = (np.hypot(y - cy, x - cx) < radius) & (rng.random(size) < 0.9)
        mask[int(min(cy, height - 1)), max(0, int(min(cx, width - 5)) - 1) :][:MIN_PIXELS] = True
        if disjoint:
            masks[:at] &= ~mask
        pixels[mask] = 100 + at
    sample = Sample(
        image_id=seed,
        pixels=pixels,
        boxes=mask_boxes(masks),
        labels=rng.integers(0, 5, num_objects),
        masks=masks,
        ignored=rng.random(num_objects) < 0.25,
    )
    kept = masks.sum(axis=(1, 2)) >= MIN_PIXELS
    return Sample(seed, pixels, sample.boxes[kept], sample.labels[kept], sample.masks[kept], sample.ignored[kept])


def samples(max_objects: int = 5, disjoint: bool = False) -> st.SearchStrategy[Sample]:
    """With sides of 5 to 60 pixels; none to a few objects."""
    sides = st.integers(5, 60)
    return st.builds(
        random_sample,
        st.integers(0, 1 << 30),
        st.tuples(sides, sides),
        st.integers(0, max_objects),
        st.just(disjoint),
    )


def rngs() -> st.SearchStrategy[np.random.Generator]:
    return st.builds(np.random.default_rng, st.integers(0, 1 << 30))


def assert_sound(sample: Sample) -> None:
    """Shapes and types fit; no object has vanished; each box is the smallest one about its mask."""
    num_objects = len(sample.labels)
    height, width = sample.pixels.shape[:2]
    assert sample.pixels.shape == (height, width, 3)
    assert sample.masks.shape == (num_objects, height, width)
    assert sample.boxes.shape == (num_objects, 4)
    assert sample.ignored.shape == (num_objects,)
    parts = (sample.pixels, sample.masks, sample.boxes, sample.labels, sample.ignored)
    assert [part.dtype for part in parts] == [np.uint8, np.bool_, np.float32, np.int64, np.bool_]
    for mask, box in zip(sample.masks, sample.boxes, strict=True):
        assert mask.sum() >= MIN_PIXELS
        rows, columns = np.nonzero(mask)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def assert_equal(first: Sample, second: Sample) -> None:
    assert first.image_id == second.image_id
    for name in ("pixels", "boxes", "labels", "masks", "ignored"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), name)


def num_overlapping(sample: Sample) -> int:
    """Pixels that more than one object has."""
    return int((sample.masks.sum(axis=0) > 1).sum())

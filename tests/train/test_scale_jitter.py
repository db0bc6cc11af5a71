from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.train.augment import AugmentConfig, ScaleJitter
from pipeline.train.sample.geometry import PADDING_COLOUR
from pipeline.train.sample.sample import Sample
from tests.train.sample_cases import assert_sound, random_sample, rngs, samples


@given(samples(), rngs(), st.integers(8, 64))
@settings(max_examples=60, deadline=None)
def test_gives_sound_squares(sample: Sample, rng: np.random.Generator, side: int) -> None:
    jittered = ScaleJitter(side, *AugmentConfig().scale_range)(sample, rng)
    assert_sound(jittered)
    assert jittered.pixels.shape == (side, side, 3)


@pytest.mark.parametrize(("scale", "content"), [(0.5, (16, 32)), (0.1, (3, 6)), (1.0, (32, 64)), (2.0, (64, 64))])
def test_the_long_side_is_the_scale_times_the_square(scale: float, content: tuple[int, int]) -> None:
    sample = random_sample(3, (40, 80), 0)
    white = Sample(0, np.full_like(sample.pixels, 255), sample.boxes, sample.labels, sample.masks, sample.ignored)
    jittered = ScaleJitter(64, scale, scale)(white, np.random.default_rng(0))
    inside = (jittered.pixels == 255).all(axis=2)
    assert inside[: content[0], : content[1]].all()
    assert inside.sum() == content[0] * content[1]
    assert (jittered.pixels[~inside] == PADDING_COLOUR).all()


def test_all_of_a_larger_image_is_reached() -> None:
    ramp = np.arange(100, dtype=np.uint8)
    pixels = np.stack(np.broadcast_arrays(ramp[:, None], ramp, 0), axis=2).astype(np.uint8)
    empty = random_sample(0, (100, 100), 0)
    sample = Sample(0, pixels, empty.boxes, empty.labels, empty.masks, empty.ignored)
    rng = np.random.default_rng(0)
    corners = np.array([ScaleJitter(95, 100 / 95, 100 / 95)(sample, rng).pixels[0, 0, :2] for _ in range(200)])
    assert (corners.min(axis=0).tolist(), corners.max(axis=0).tolist()) == ([0, 0], [5, 5])


@pytest.mark.parametrize(("side", "low", "high"), [(0, 0.1, 2), (64, 0, 1), (64, 2, 1)])
def test_nonsense_is_refused(side: int, low: float, high: float) -> None:
    with pytest.raises(ValueError, match="make no sense"):
        ScaleJitter(side, low, high)

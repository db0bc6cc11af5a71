from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from pipeline.train.augment import AugmentConfig
from pipeline.train.sample.geometry import flip
from pipeline.train.sample.sample import Sample
from tests.train.sample_cases import assert_equal, assert_sound, random_sample, samples


@given(samples(), samples())
@settings(max_examples=40, deadline=None)
def test_the_same_generator_gives_the_same_sound_sample(sample: Sample, second: Sample) -> None:
    augment = AugmentConfig(scale="large_scale_jitter", side=48, copy_paste=0.7)
    first, again = (augment(sample, lambda: second, np.random.default_rng(5)) for _ in range(2))
    assert_sound(first)
    assert_equal(first, again)


def test_the_second_image_is_asked_for_only_where_it_is_pasted() -> None:
    def never() -> Sample:
        raise AssertionError("asked for")

    sample = random_sample(0)
    assert_equal(AugmentConfig(scale="none", flip=0, copy_paste=0)(sample, never, np.random.default_rng(0)), sample)
    with pytest.raises(AssertionError, match="asked for"):
        AugmentConfig(scale="none", copy_paste=1)(sample, never, np.random.default_rng(0))


def test_flips_as_often_as_it_should() -> None:
    sample, flipped = random_sample(0), flip(random_sample(0))
    rng = np.random.default_rng(0)
    results = [AugmentConfig(scale="none", flip=0.25)(sample, lambda: sample, rng).pixels for _ in range(400)]
    num_flipped = sum(np.array_equal(pixels, flipped.pixels) for pixels in results)
    assert num_flipped == 400 - sum(np.array_equal(pixels, sample.pixels) for pixels in results)
    assert 70 < num_flipped < 130


@pytest.mark.parametrize("settings_", [{"flip": 1.5}, {"copy_paste": -0.1}])
def test_probabilities_are_checked(settings_: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"flip|copy_paste"):
        AugmentConfig.model_validate(settings_)

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from pipeline.images.sizes import scaled_size
from pipeline.train import multi_scale
from pipeline.train.multi_scale import MultiScale
from pipeline.train.sample.sample import Sample
from tests.train.sample_cases import assert_sound, random_sample, rngs, samples

SMALL = MultiScale(short_sides=(20, 24, 28), long_side=40, crop_short_sides=(16, 22), crop_range=(12, 18))


@given(samples(), rngs())
@settings(max_examples=60, deadline=None)
def test_gives_sound_samples_of_the_wanted_sizes(sample: Sample, rng: np.random.Generator) -> None:
    scaled = SMALL(sample, rng)
    assert_sound(scaled)
    height, width = scaled.pixels.shape[:2]
    assert max(height, width) <= 40
    assert min(height, width) in SMALL.short_sides or max(height, width) == 40


def test_the_published_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    windows: list[tuple[tuple[int, int], tuple[int, int]]] = []

    def resize(sample: Sample, size: tuple[int, int]) -> Sample:
        sizes.append(size)
        return replace(sample, pixels=np.broadcast_to(sample.pixels[:1, :1], (*size, 3)))

    def window(sample: Sample, top: int, left: int, size: tuple[int, int]) -> Sample:
        height, width = sample.pixels.shape[:2]
        assert 0 <= top <= height - size[0]
        assert 0 <= left <= width - size[1]
        windows.append(((height, width), size))
        return replace(sample, pixels=np.broadcast_to(sample.pixels[:1, :1], (*size, 3)))

    monkeypatch.setattr(multi_scale, "resize", resize)
    monkeypatch.setattr(multi_scale, "window", window)
    rng, image, plain, cut = np.random.default_rng(0), random_sample(0, (480, 640), 0), [], []
    for _ in range(300):
        sizes.clear()
        MultiScale()(image, rng)
        (plain if len(sizes) == 1 else cut).append(tuple(sizes))
    published = {480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800}
    assert {min(size) for ((size),) in plain} == published
    assert {first for first, _ in cut} == {scaled_size((480, 640), side, 1333) for side in (400, 500, 600)}
    assert {min(last) for _, last in cut} <= published
    assert 110 < len(cut) < 190  # both policies have equal chances
    for (height, width), size in windows:
        assert min(height, 384) <= size[0] <= min(height, 600)
        assert min(width, 384) <= size[1] <= min(width, 600)

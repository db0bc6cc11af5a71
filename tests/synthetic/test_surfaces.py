from __future__ import annotations

import numpy as np

from pipeline.synthetic.shapes import shape_at
from pipeline.synthetic.surfaces import background, paint, photograph

SIZE = (80, 100)


def test_backgrounds_are_colours_of_all_kinds() -> None:
    canvases = np.array([background(np.random.default_rng(seed), SIZE) for seed in range(40)])
    assert canvases.shape == (40, *SIZE, 3)
    assert canvases.dtype == np.float32
    assert (canvases.min() >= 0, canvases.max() <= 1) == (True, True)
    assert canvases.mean(axis=(1, 2)).std(axis=0).min() > 0.1


def test_painting_covers_the_object_and_darkens_about_it() -> None:
    canvas = np.full((*SIZE, 3), 0.5, np.float32)
    placed = shape_at(0, np.array([40.0, 50.0]), 15.0, 0.0, SIZE)
    paint(placed, canvas, np.random.default_rng(0), np.array([4.0, 0.0]))
    distance = np.hypot(np.arange(80)[:, None] + 0.5 - 40, np.arange(100) + 0.5 - 50)
    assert (canvas[distance > 24] == 0.5).all()
    outside = canvas[distance > 16]
    assert outside.max() <= 0.5
    assert (outside < 0.48).any()
    assert np.abs(canvas[distance < 14] - 0.5).max(axis=-1).min() > 0.01


def test_photographs_are_noisy_bytes_of_the_same_picture() -> None:
    canvas = np.full((*SIZE, 3), 0.5, np.float32)
    pictures = [photograph(canvas, np.random.default_rng(seed)) for seed in range(10)]
    for picture in pictures:
        assert (picture.shape, picture.dtype) == ((*SIZE, 3), np.uint8)
        assert 0.5 < picture.std() < 12
        assert 85 < picture.mean() < 160

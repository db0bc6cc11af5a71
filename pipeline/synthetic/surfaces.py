"""Colours and light of rendered scenes. Canvases are float32 ``(H, W, 3)``, 0 black and 1 white."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pipeline.synthetic.shapes import Floats, Placed


def background(rng: np.random.Generator, size: tuple[int, int]) -> Floats:
    """Colours ``(H, W, 3)``: two that a gradient, stripes or clouds mix, and often a third in patches."""
    colours = rng.uniform(0.05, 0.95, (3, 3)).astype(np.float32)
    share = _pattern(rng, size)[..., None]
    canvas = colours[0] + (colours[1] - colours[0]) * share
    if rng.random() < 0.5:
        cover = np.clip(4 * _clouds(rng, size, max(size) // int(rng.integers(2, 8))) - 2, 0, 1)[..., None]
        canvas += (colours[2] - canvas) * cover
    return canvas


def paint(placed: Placed, canvas: Floats, rng: np.random.Generator, shadow: NDArray[np.float64]) -> None:
    """Paint an object's shadow, then itself, onto a canvas of values from 0 to 1."""
    patch = canvas[placed.window]
    darkness = _soft_step(_displaced(placed.field, shadow), 0.25 * placed.radius) * np.float32(rng.uniform(0.2, 0.5))
    patch *= 1 - darkness[..., None]
    cover = np.clip(0.5 - placed.field, 0, 1)[..., None]
    patch *= 1 - cover
    patch += cover * _surface(rng, placed)


def photograph(canvas: Floats, rng: np.random.Generator) -> NDArray[np.uint8]:
    """As a camera would have it: now and then out of focus, brighter or darker, and always a little noisy."""
    exposed = np.clip(canvas * np.float32(255 * rng.uniform(0.75, 1.2)), 0, 255)
    image = Image.fromarray(exposed.astype(np.uint8))
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 0.9))))
    noise = rng.standard_normal(canvas.shape, np.float32) * np.float32(rng.uniform(1, 10))
    return np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)


def _displaced(field: Floats, by: NDArray[np.float64]) -> Floats:
    """The field moved by whole pixels; its own edge is repeated where nothing is known."""
    rows, columns = (
        np.clip(np.arange(extent) - round(float(d)), 0, extent - 1) for extent, d in zip(field.shape, by, strict=True)
    )
    return field[rows[:, None], columns]


def _soft_step(field: Floats, softness: float) -> Floats:
    """1 well inside, 0 from ``softness`` pixels outside on, smooth in between."""
    t = np.clip(0.5 - field / np.float32(2 * softness), 0, 1)
    return t * t * (3 - 2 * t)


def _surface(rng: np.random.Generator, placed: Placed) -> Floats:
    """Colours ``(h, w, 3)``: two that a texture mixes, under light from one side."""
    first, second = rng.uniform(0.1, 0.95, (2, 3)).astype(np.float32)
    share = _texture(rng, placed)[..., None]
    angle = rng.uniform(0, 2 * np.pi)
    slope = (placed.x * np.float32(np.cos(angle)) + placed.y * np.float32(np.sin(angle))) / np.float32(placed.radius)
    light = 1 + np.float32(rng.uniform(0.05, 0.3)) * slope
    rim = 1 - np.float32(rng.uniform(0, 0.35)) * np.clip(1 + placed.field / 3, 0, 1)
    return (first + (second - first) * share) * (light * rim)[..., None]


def _texture(rng: np.random.Generator, placed: Placed) -> Floats:
    """0 to 1: plain, stripes, checks or cloudy."""
    kind = int(rng.integers(4))
    period = np.float32(placed.radius * rng.uniform(0.25, 0.7))
    if kind == 0:
        return np.zeros_like(placed.x)
    if kind == 1:
        return (np.mod(placed.x, period) < period / 2).astype(np.float32)
    if kind == 2:
        return ((np.mod(placed.x, period) < period / 2) ^ (np.mod(placed.y, period) < period / 2)).astype(np.float32)
    return _clouds(rng, placed.x.shape, int(period) + 2)


def _pattern(rng: np.random.Generator, size: tuple[int, int]) -> Floats:
    height, width = size
    angle = rng.uniform(0, 2 * np.pi)
    along = np.linspace(-0.5, 0.5, width, dtype=np.float32)[None] * np.float32(np.cos(angle)) + np.linspace(
        -0.5, 0.5, height, dtype=np.float32
    )[:, None] * np.float32(np.sin(angle))
    kind = int(rng.integers(3))
    if kind == 0:
        return np.clip(along * np.float32(rng.uniform(0.8, 1.6)) + 0.5, 0, 1)
    if kind == 1:
        waves = np.sin(along * np.float32(2 * np.pi * rng.uniform(3, 16)))
        return np.clip(0.5 + waves * np.float32(rng.uniform(0.5, 3)), 0, 1) * np.float32(rng.uniform(0.3, 1))
    return _clouds(rng, size, max(size) // int(rng.integers(2, 20)))


def _clouds(rng: np.random.Generator, size: tuple[int, int], cell: int) -> Floats:
    """Smooth random values from 0 to 1 that change over ``cell`` pixels."""
    height, width = size
    coarse = rng.random((height // cell + 2, width // cell + 2), np.float32)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(image), 0, 1)

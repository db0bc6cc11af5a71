"""The colour of each category, and of text on it."""

from __future__ import annotations

import math

Colour = tuple[int, int, int]  # sRGB, 0..255

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
INK, PAPER = (17, 17, 17), (255, 255, 255)


def category_colour(category_id: int) -> Colour:
    """The colour of a category: the same in every picture and run, far from those of neighbouring ids.

    Hues step by the golden ratio around a perceptual circle (OKLCH), so that any few successive ids lie well
    apart; the lightness changes with the id too, for pictures of many categories.
    """
    hue = 2 * math.pi * ((category_id * GOLDEN_RATIO + 0.05) % 1)
    return _oklch(lightness=(0.62, 0.70, 0.79)[category_id % 3], chroma=0.17, hue=hue)


def readable_on(background: Colour) -> Colour:
    """Dark or white text, whichever has the higher contrast (WCAG's ratio)."""
    luminance = sum(w * _linear(c / 255) for w, c in zip((0.2126, 0.7152, 0.0722), background, strict=True))
    return INK if (luminance + 0.05) / 0.055 > 1.05 / (luminance + 0.05) else PAPER


def _linear(channel: float) -> float:
    """sRGB to linear light."""
    return channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4


def _oklch(lightness: float, chroma: float, hue: float) -> Colour:
    """OKLCH (Ottosson 2020) to sRGB; colours that no screen has are made paler, not of another hue."""
    for step in range(20):
        a, b = (chroma * (1 - step / 20) * side(hue) for side in (math.cos, math.sin))
        long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
        medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
        short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
        linear = (
            4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
        )
        if all(0 <= channel <= 1 for channel in linear):
            break
    red, green, blue = (_gamma(min(max(channel, 0), 1)) for channel in linear)
    return red, green, blue


def _gamma(linear: float) -> int:
    return round(255 * (12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055))

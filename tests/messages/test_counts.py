from __future__ import annotations

import pytest

from pipeline.messages.counts import counted, size


@pytest.mark.parametrize(
    ("n", "words", "text"),
    [
        (0, ("image",), "0 images"),
        (1, ("image",), "1 image"),
        (2000, ("image",), "2,000 images"),
        (1, ("class", "classes"), "1 class"),
        (80, ("class", "classes"), "80 classes"),
    ],
)
def test_counted(n: int, words: tuple[str, ...], text: str) -> None:
    assert counted(n, *words) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (1_500_000, "1.5 MB"),
        (2_000_000_000_000, "2.0 TB"),
        (5 * 10**18, "5000.0 PB"),
    ],
)
def test_size(num_bytes: int, text: str) -> None:
    assert size(num_bytes) == text

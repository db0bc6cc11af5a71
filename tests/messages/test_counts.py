from __future__ import annotations

import pytest

from pipeline.messages.counts import counted


@pytest.mark.parametrize(
    ("n", "noun", "plural", "said"),
    [
        (0, "image", None, "0 images"),
        (1, "image", None, "1 image"),
        (2, "image", None, "2 images"),
        (2000, "image", None, "2,000 images"),
        (1, "category", "categories", "1 category"),
        (80, "category", "categories", "80 categories"),
    ],
)
def test_counted(n: int, noun: str, plural: str | None, said: str) -> None:
    assert counted(n, noun, plural) == said

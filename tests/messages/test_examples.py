from __future__ import annotations

import pytest

from pipeline.messages.examples import Examples


@pytest.mark.parametrize(
    ("examples", "text"),
    [
        (Examples(), ""),
        (Examples.of([7]), "7"),
        (Examples.of("abcde"), "a, b, c, d, e"),
        (Examples.of("abcdefg"), "a, b, c, d, e and 2 more"),
        (Examples.of([7, 8], count=2002), "7, 8 and 2,000 more"),
    ],
)
def test_text(examples: Examples, text: str) -> None:
    assert str(examples) == text


def test_those_of_parts_add_up() -> None:
    assert Examples.of("abcd") + Examples.of("efg", count=9) == Examples(13, ("a", "b", "c", "d", "e"))

from __future__ import annotations

from contextlib import closing

from pipeline.export.formats.yolo import UniqueNames


def test_names_that_are_taken() -> None:
    with closing(UniqueNames()) as names:
        taken = [names.take(name, key) for key, name in enumerate(["a/b", "a", "a/b", "a/b", "c"])]
    assert len(set(taken)) == 5
    assert [taken[0], taken[1], taken[4]] == ["a/b", "a", "c"]
    assert taken[2].startswith("a/b_")

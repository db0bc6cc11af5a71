"""Which files of a folder are pictures is told by their names; what is left out by that is counted, and said."""

from __future__ import annotations

import posixpath
from collections import Counter

from pipeline.images.decode import IMAGE_SUFFIXES
from pipeline.messages.counts import counted
from pipeline.messages.examples import Examples

_MAX_KINDS = 1000  # of suffixes that are told apart, so that a folder of odd names takes no memory
_MAX_LENGTH = 16


class LeftOut:
    """The files that are no pictures by their names: how many, by suffix."""

    def __init__(self) -> None:
        self._kinds: Counter[str] = Counter()

    def takes(self, name: str) -> bool:
        """Whether a file is left out; if so it is counted. Without a suffix it is: such names are few pictures'."""
        if name.lower().endswith(IMAGE_SUFFIXES):
            return False
        suffix = posixpath.splitext(name)[1].lower()
        if len(suffix) > _MAX_LENGTH or (len(self._kinds) >= _MAX_KINDS and suffix not in self._kinds):
            suffix = "of other kinds"
        self._kinds[suffix or "without a suffix"] += 1
        return True

    def add(self, other: LeftOut) -> None:
        """Count those of another one too."""
        self._kinds += other._kinds

    @property
    def count(self) -> int:
        """Files left out so far."""
        return self._kinds.total()

    def __str__(self) -> str:
        kinds = sorted(self._kinds.items(), key=lambda kind: (-kind[1], kind[0]))
        shown = Examples.of((f"{count:,} {kind.encode('ascii', 'backslashreplace').decode()}" for kind, count in kinds))
        said = counted(
            self.count,
            "file is left out, since its name is no picture's",
            "files are left out, since their names are no pictures'",
        )
        return f"{said}: {shown}"

"""Names of files that must differ."""

from __future__ import annotations

import hashlib
import sqlite3


class UniqueNames:
    """Makes each name different from all before it; which names there were lies on disk, not in memory."""

    def __init__(self) -> None:
        self._names = sqlite3.connect("")  # an empty name: a temporary file that goes with the connection
        self._names.execute("CREATE TABLE names (name TEXT PRIMARY KEY) WITHOUT ROWID")

    def take(self, name: str, key: int | str) -> str:
        """The name itself, or with a suffix made from the key where it is taken.

        Args:
            name: wanted.
            key: different for every call.
        """
        suffix = hashlib.sha256(str(key).encode()).hexdigest()[:16]
        return name if self._add(name) else self.take(f"{name}_{suffix}", key)

    def _add(self, name: str) -> bool:
        return self._names.execute("INSERT OR IGNORE INTO names VALUES (?)", (name,)).rowcount == 1

    def close(self) -> None:
        """Remove the file."""
        self._names.close()

"""What a comparison has left in a folder, for those who only read it: quick to import."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.annotations.ledger import COMPARISON_NAME, COMPARISON_PAGE_NAME
from pipeline.messages.counts import counted
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri

_MAX_BYTES = 256 << 20  # ten times what one of 10,000 classes in 100 slices has


def read_earlier(folder: Uri) -> Mapping[str, Any] | None:
    """What is in ``comparison.json``; ``None`` if there is none of ours.

    Raises:
        OSError: it cannot be read.
    """
    try:
        content, _ = open_objects(folder).read(COMPARISON_NAME, _MAX_BYTES)
        found = json.loads(content)
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    is_ours = isinstance(found, dict) and "version" in found and isinstance(found.get("after"), dict)
    return found if is_ours else None


def drift_lines(folder: Uri) -> list[str]:
    """What is there: which limits were broken, and where the page is; no line where there is none."""
    try:
        earlier = read_earlier(folder)
    except OSError as error:
        return [f"{COMPARISON_NAME} cannot be read: {error}"]
    if earlier is None:
        return []
    limits = earlier.get("limits", [])
    broken = [each["limit"] for each in limits if each["is_broken"]]
    of = f"run {earlier['after'].get('run') or 'of all rows'}"
    if broken:
        said = f"{of}: beyond {len(broken)} of {counted(len(limits), 'limit')}: {', '.join(broken)}"
    else:
        said = f"{of}: within {counted(len(limits), 'limit')}" if limits else f"{of}: compared, without limits"
    return [said, f"what changed: {folder / COMPARISON_PAGE_NAME}"]

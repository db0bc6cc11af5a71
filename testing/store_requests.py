"""Requests that an object store would get, counted where the files are in fact on this disk."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from pipeline.storage.objects.base import Listing, ObjectFolder
from pipeline.storage.objects.local import LocalObjects

NAMES_A_LISTING = 1000  # of S3


@contextmanager
def counted_requests() -> Iterator[Counter[tuple[str, str]]]:
    """Requests in this block, by kind and name: a listing costs one for each thousand names, a file that is opened one
    for each range that is read."""
    found: Counter[tuple[str, str]] = Counter()

    def counting(kind: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(objects: LocalObjects, name: str, *args: Any, **options: Any) -> Any:
            result = method(objects, name, *args, **options)
            names = len(result.files) + len(result.folders) if isinstance(result, Listing) else 1
            found[kind, name] += max(1, math.ceil(names / NAMES_A_LISTING))
            return result

        return call

    kinds = {
        "list": "LIST",
        "read": "GET",
        "read_range": "GET",
        "modified_at": "HEAD",
        "put": "PUT",
        "delete": "DELETE",
    }
    with ExitStack() as stack:
        for method, kind in kinds.items():
            stack.enter_context(mock.patch.object(LocalObjects, method, counting(kind, getattr(LocalObjects, method))))
        stack.enter_context(mock.patch.object(LocalObjects, "open", ObjectFolder.open))
        yield found

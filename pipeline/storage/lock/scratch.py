"""Where a run that holds the lock of a folder keeps what lies between its stages: ``<uri>/_scratch/<run id>/``.

A run removes what is its own, and whoever holds the lock next sweeps what runs that were killed have left. Only a
folder that says itself that it is such a run's is removed; anything else below ``_scratch`` is the user's.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.storage.map_ahead import map_ahead
from pipeline.storage.objects.base import ObjectFolder
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri

SCRATCH_FOLDER = "_scratch"

_RUN_ID = re.compile(r"\d{8}T\d{6}-[0-9a-f]{8}")
_MARKER = "_run"
_MAX_MARKER_BYTES = 1000
_REMOVED_AT_ONCE = 16

logger = logging.getLogger(__name__)


@contextmanager
def scratch_of(uri: Uri, run_id: str, fence: Callable[[], None]) -> Iterator[Uri]:
    """A folder for a run's intermediate files, which is gone when the block ends.

    Args:
        uri: of the output folder, whose lock the run holds.
        run_id: of `pipeline.provenance.new_run_id`.
        fence: called right before what another run left is removed; raises if this run must not write any more.

    Raises:
        OSError: the storage fails.
    """
    objects = open_objects(uri)
    _sweep(objects, fence)
    objects.put(f"{SCRATCH_FOLDER}/{run_id}/{_MARKER}", _marker(run_id))
    try:
        yield uri / SCRATCH_FOLDER / run_id
    finally:
        try:
            _remove(objects, f"{SCRATCH_FOLDER}/{run_id}")
        except OSError as error:  # what ended the block counts more
            logger.warning("%s/%s/%s stays for the next run: %s", uri, SCRATCH_FOLDER, run_id, type(error).__name__)


def _marker(run_id: str) -> bytes:
    return f"intermediate files of run {run_id}; the next run here removes them\n".encode()


def _sweep(objects: ObjectFolder, fence: Callable[[], None]) -> None:
    for name in objects.list(SCRATCH_FOLDER).folders:
        if _RUN_ID.fullmatch(name) and _is_marked(objects, name):
            fence()
            _remove(objects, f"{SCRATCH_FOLDER}/{name}")


def _is_marked(objects: ObjectFolder, name: str) -> bool:
    for entry in objects.list(f"{SCRATCH_FOLDER}/{name}").files:
        if entry.name == _MARKER and entry.size_bytes <= _MAX_MARKER_BYTES:
            return objects.read(f"{SCRATCH_FOLDER}/{name}/{_MARKER}")[0] == _marker(name)
    return False


def _remove(objects: ObjectFolder, folder: str) -> None:
    """The marker last: a removal that is cut short is finished by the next sweep."""
    files, folders = objects.list(folder)
    for name in folders:
        _remove(objects, f"{folder}/{name}")
    names = [f"{folder}/{entry.name}" for entry in files if entry.name != _MARKER]
    for _ in map_ahead(objects.delete, names, _REMOVED_AT_ONCE, 2 * _REMOVED_AT_ONCE):
        pass
    objects.delete(f"{folder}/{_MARKER}")
    objects.delete_empty_folder(folder)
    if folder.count("/") == 1:
        objects.delete_empty_folder(SCRATCH_FOLDER)

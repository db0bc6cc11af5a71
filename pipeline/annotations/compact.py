"""Small files of an output joined into larger ones: whoever reads it makes a few requests for each file.

A file is small if it has less than half of the rows that one is to hold. Small files are joined in the order of their
names, as many as fit; so each file that comes of it, but for the last, has at least half, and is not joined again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.annotations.data_file import Footer, OutputError
from pipeline.annotations.ledger import OutputStore, check_output
from pipeline.messages.counts import counted, size
from pipeline.messages.examples import Examples
from pipeline.messages.timing import NowAndThen
from pipeline.provenance import new_run_id
from pipeline.storage.lock.lease import OutputLock
from pipeline.storage.objects.base import Entry
from pipeline.storage.uris import Uri

IMAGES_PER_FILE = 2048  # as annotate's
_TOLD_EVERY_S = 10.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compaction:
    """What is to be joined, or was.

    Attributes:
        files: of the output before.
        groups: of files that become one, in this order.
    """

    files: Mapping[Entry, Footer]
    groups: Sequence[Sequence[Entry]]

    def __str__(self) -> str:
        """``5,000 data files -> 52: 4,988 small ones (99,760 images, 1.2 GB) become 40``."""
        small = [entry for group in self.groups for entry in group]
        if not small:
            return f"{counted(len(self.files), 'data file')}: no small ones to join"
        images = counted(sum(self.files[entry].counts.rows for entry in small), "image")
        num_bytes = size(sum(entry.size_bytes for entry in small))
        after = len(self.files) - len(small) + len(self.groups)
        return (
            f"{counted(len(self.files), 'data file')} -> {after:,}: {len(small):,} small ones ({images}, {num_bytes}) "
            f"become {len(self.groups):,}"
        )


def plan(files: Mapping[Entry, Footer], images_per_file: int = IMAGES_PER_FILE) -> Compaction:
    """Choose what to join.

    Args:
        files: that count, in the order of their names.
        images_per_file: rows that a new file may have.
    """
    groups: list[list[Entry]] = [[]]
    num_images = 0
    for entry, footer in files.items():
        rows = footer.counts.rows
        if 2 * rows >= images_per_file:
            continue
        if num_images + rows > images_per_file:
            groups.append([])
            num_images = 0
        groups[-1].append(entry)
        num_images += rows
    return Compaction(files, [group for group in groups if len(group) > 1])


def look(uri: Uri, images_per_file: int = IMAGES_PER_FILE) -> Compaction:
    """What `compact` would do now; nothing is changed, and a run may be at work.

    Raises:
        OutputError: it is no output of an annotate job; or its files do not belong together, are damaged or not ours.
        OSError: the storage fails.
    """
    check_output(uri)
    return plan(OutputStore(uri).look().footers, images_per_file)


def compact(uri: Uri, images_per_file: int = IMAGES_PER_FILE) -> Compaction:
    """Join the small files of an output; what was done.

    A new file takes the place of a group in one step (`OutputStore.replace`), so each group is joined or left as it is,
    whenever this ends; the rows are the same to the bit. No more of them are in memory than one new file has.

    Args:
        uri: of the output folder, whose lock is taken; what a crash left there is put right first.
        images_per_file: rows that a new file may have.

    Raises:
        OutputError: see `look`; or small files hold an image twice.
        LockHeld, LockLost: another run writes there.
        OSError: the storage fails.
    """
    check_output(uri)
    store, run_id = OutputStore.as_last_run(uri), new_run_id()
    with OutputLock(uri, run_id) as lock:
        fence = lock.fence()
        recovery = store.recover(fence)
        if recovery:
            logger.info("recovered the output: %s", recovery)
        recovery.files.identity()
        compaction = plan(recovery.files.settled, images_per_file)
        line = NowAndThen(_TOLD_EVERY_S, at_once=False)
        for number, group in enumerate(compaction.groups):
            lock.check()
            _join(store, {entry: compaction.files[entry] for entry in group}, fence)
            if line.is_due():
                logger.info("%d of %s written", number + 1, counted(len(compaction.groups), "new file"))
    return compaction


def _join(store: OutputStore, group: Mapping[Entry, Footer], fence: Callable[[], None]) -> None:
    rows = pa.concat_tables(store.iter_ids(group, columns=None))
    ids = rows["image_id"]
    if pc.count_distinct(ids).as_py() != len(ids):
        names = Examples.of(entry.name for entry in group)
        raise OutputError(f"{store.uri}: images are in {names} more than once; annotate names them")
    latest = max((footer.identity for footer in group.values()), key=lambda identity: identity.run_id)
    store.replace(dict.fromkeys(group, 0), rows, latest, fence)

"""The output of an annotate job as a table: one commit brings it to what the output holds.

What the table should have is the files of the output that count at that moment, and no others. So publishing again
changes nothing, and what a kill has left undone, before, between or after files and commit, the next time mends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from pipeline.annotations.data_file import OutputError
from pipeline.annotations.ledger import DataFiles, OutputStore, check_output
from pipeline.annotations.run_json import RunJson
from pipeline.lake.base import NewFile, Overtaken, PublishedTable
from pipeline.lake.config import TableConfig
from pipeline.messages.counts import counted
from pipeline.provenance import new_run_id
from pipeline.storage.lock.lease import OutputLock
from pipeline.storage.uris import Uri

_TRIES = 5

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Published:
    """What was done.

    Attributes:
        place: the table, for people.
        version: that it has now.
        files, images: that it has.
        added, removed: files, by this commit; 0 and 0 if there was nothing to do.
    """

    place: str
    version: str
    files: int
    images: int
    added: int
    removed: int

    def __str__(self) -> str:
        """``the Delta table out, version 3: 40 files, 5,000 images (2 files added, 1 removed)``."""
        now = f"{self.place}, version {self.version}: {counted(self.files, 'file')}, {counted(self.images, 'image')}"
        if not (self.added or self.removed):
            return f"{now}; nothing is new"
        return f"{now} ({counted(self.added, 'file')} added, {self.removed:,} removed)"


def open_table(uri: Uri, config: TableConfig) -> PublishedTable:
    """The table of an output as it is now.

    Raises:
        TableError: its library is not installed.
        TableFailed: it cannot be read.
    """
    if config.kind == "delta":
        from pipeline.lake.delta import DeltaOutput

        return DeltaOutput(uri)
    from pipeline.lake.iceberg import IcebergOutput

    assert config.name is not None
    return IcebergOutput(uri, config.catalog, config.name, config.properties)


def check_table(uri: Uri, config: TableConfig, schema: pa.Schema) -> None:
    """Raise unless files with these columns could be published now.

    Raises:
        TableError: it has files of others, or cannot hold a column.
        TableFailed: it cannot be read.
    """
    table = open_table(uri, config)
    table.check(schema)
    _ = table.files


def last_table(uri: Uri) -> TableConfig:
    """The table of an output as the config of its last run has it.

    Raises:
        OutputError: it has none, or there is no such run.
    """
    check_output(uri)
    report = RunJson.read(uri)
    values = report.table if report else None
    if values is None:
        raise OutputError(f"the last run in {uri} had no output.table: name one with --table")
    try:
        return TableConfig.model_validate(values)
    except ValueError as error:
        raise OutputError(f"{uri}/run.json does not name a table: {error}; name one with --table") from None


def publish(uri: Uri, config: TableConfig, wait_s: float | None = None) -> Published:
    """Bring the table of an output to what the output holds, under the output's lock.

    Args:
        uri: of the output.
        config: which table.
        wait_s: see `OutputLock`.

    Raises:
        OutputError: it is no output of an annotate job, or damaged.
        LockHeld, LockLost: another run writes there.
        TableError, TableFailed: see `publish_files`.
    """
    check_output(uri)
    store = OutputStore(uri, keep_replaced=config.keep_replaced)
    with OutputLock(uri, new_run_id(), wait_s=wait_s) as lock:
        fence = lock.fence()
        recovery = store.recover(fence)
        if recovery:
            logger.info("recovered the output: %s", recovery)
        return publish_files(recovery.files, config, fence)


def publish_files(files: DataFiles, config: TableConfig, fence: Callable[[], None]) -> Published:
    """Bring the table of an output to its files; for whoever holds the lock.

    Args:
        files: of the output.
        config: which table.
        fence: called right before the commit; raises if this run must not write any more.

    Raises:
        TableError: the table has files of others, or cannot hold a column. Nothing was changed.
        TableFailed: it cannot be read or written, or others commit to it all the time.
    """
    uri, wanted = files.folder.uri, files.settled
    agreed = files.folder.agreed(wanted)
    schema = agreed.schema if agreed else pa.schema([])
    for left in reversed(range(_TRIES)):
        table = open_table(uri, config)
        there = table.files
        added = [
            NewFile(entry.name, entry.size_bytes, footer.counts.rows)
            for entry, footer in wanted.items()
            if there.get(entry.name) != entry.size_bytes
        ]
        removed = sorted(there.keys() - {entry.name for entry in wanted})
        version = table.version
        if added or removed:
            fence()
            try:
                version = table.commit(added, removed, schema, _properties(files))
            except Overtaken as error:
                if not left:
                    raise
                logger.warning("%s; looking again", error)
                continue
        done = Published(table.place, version, len(wanted), files.counts.rows, len(added), len(removed))
        logger.info("published: %s", done)
        return done
    raise AssertionError("the last try returns or raises")


def _properties(files: DataFiles) -> dict[str, str]:
    """Of the version, for whoever reads the table's history; the run is the one that wrote run.json last."""
    report = RunJson.read(files.folder.uri)
    # Of no row where a run died between the removal of rows that failed and their new ones.
    identities = [footer.identity for footer in (files.settled or files.footers).values()]
    latest = max(identities, key=lambda identity: identity.run_id, default=None)
    counts = files.counts
    values: dict[str, object] = {}
    if latest is not None:
        values = {
            "run_id": latest.run_id,
            "model_name": latest.model_name,
            "weights_sha256": latest.weights_sha256,
            "config_digest": latest.config_digest,
            "code_version": latest.code_version,
        }
    if report and report.run_id:
        values["run_id"] = report.run_id
    values |= {
        "images": counts.images,
        "annotated": counts.annotated,
        "failed": counts.failed,
        "deleted": counts.deleted,
        "detections": sum(counts.detections_by_category.values()),
        "files": len(files.settled),
    }
    return {f"maskfleet.{key}": str(value) for key, value in values.items()}

"""Delta and Iceberg tables as manifests: one version of each, whose log says which files and which of their rows count.

Files that hold nothing but rows of that version, with all columns that are wanted under the table's names, are read
where they lie, a row group a unit. Where rows were removed within files, columns stand in the paths of files, or older
files lack some, call them otherwise or have other types, the table's own library reads the rows, once, into a copy.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pyarrow as pa

from pipeline.annotate.config import ManifestConfig
from pipeline.annotate.manifest.from_parquet import NUM_THREADS, read_files
from pipeline.annotate.manifest.parquet_copy import UnitWriter
from pipeline.annotate.manifest.rules import HEIGHT, WIDTH, ManifestError, ManifestParts
from pipeline.annotate.manifest.units import open_file
from pipeline.lake import delta, iceberg
from pipeline.storage.errors import cannot_read, explained
from pipeline.storage.uris import Uri
from pipeline.tables.arrow_types import without_views

logger = logging.getLogger(__name__)


def read_delta(config: ManifestConfig, scratch_uri: Uri) -> ManifestParts:
    """The newest version of a Delta table."""
    table = delta.open_delta(config.uri)
    if table is None:
        raise ManifestError(f"{config.uri} is no Delta table: it has no log (_delta_log)")
    with delta.explained(f"the Delta table {config.uri}"):
        columns = _wanted(config, [field.name for field in table.schema().fields])
        is_plain = not (
            table.metadata().partition_columns
            or pa.table(table.deletion_vectors()).num_rows
            or table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none"
        )
        files = [Uri(text) for text in table.file_uris()]
        version = str(table.version())
        if is_plain and _all_have(files, columns):
            return _parts(config, files, version)
        return _copied(config, delta.batches(table, columns), scratch_uri, version)


def read_iceberg(config: ManifestConfig, scratch_uri: Uri) -> ManifestParts:
    """The current snapshot of an Iceberg table."""
    place = f"the Iceberg table {config.uri}"
    table = iceberg.open_iceberg(config.uri)
    with iceberg.explained(place):
        snapshot = table.current_snapshot()
        if snapshot is None:
            raise ManifestError(f"{config.uri} has no row: there is nothing to do")
        version = str(snapshot.snapshot_id)
        iceberg.refuse_equality_deletes(table, snapshot, place)
        columns = _wanted(config, [field.name for field in table.schema().fields])
        scan = table.scan(selected_fields=tuple(columns))  # by its number it would have its own, older, columns
        tasks = list(scan.plan_files())
        files = [Uri(task.file.file_path) for task in tasks]
        rows_removed = any(task.delete_files for task in tasks)
        if not rows_removed and _all_have(files, columns, lambda file: iceberg.is_as_in_table(file, table, columns)):
            return _parts(config, files, version)
        return _copied(config, scan.to_arrow_batch_reader(), scratch_uri, version)


def _wanted(config: ManifestConfig, names: Sequence[str]) -> list[str]:
    """The columns that a manifest may have a use for; all, if it is not clear which hold the images."""
    roles = [getattr(config, field) for field in type(config).model_fields if field.endswith("_column")]
    if not {config.uri_column, config.bytes_column} & set(names):
        return list(names)
    return [name for name in names if name in {*roles, *config.carry, HEIGHT, WIDTH}]


def _all_have(
    files: Sequence[Uri], columns: Sequence[str], is_right: Callable[[pa.Schema], bool] = lambda schema: True
) -> bool:
    """Whether files have columns under these names, all with the same types, and are right otherwise."""

    def types(file: Uri) -> list[pa.DataType] | None:
        try:
            with explained(file), open_file(file) as opened:
                schema = opened.schema_arrow
        except OSError as error:
            raise cannot_read(file, error) from None
        has_all = set(columns) <= set(schema.names) and is_right(schema)
        return [schema.field(name).type for name in columns] if has_all else None

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = list(pool.map(types, files))
    return None not in found and all(each == found[0] for each in found)


def _parts(config: ManifestConfig, files: Sequence[Uri], version: str) -> ManifestParts:
    if not files:
        raise ManifestError(f"{config.uri} has no row: there is nothing to do")
    return replace(read_files(config, files), version=version)


def _copied(config: ManifestConfig, batches: Iterable[pa.RecordBatch], scratch_uri: Uri, version: str) -> ManifestParts:
    logger.info("%s, version %s: its rows are copied, since its files alone do not tell them", config.uri, version)
    with UnitWriter(scratch_uri) as writer:
        for batch in batches:
            if batch.num_rows:
                writer.write(without_views(batch))
    return _parts(config, list(dict.fromkeys(unit.file for unit in writer.units)), version)

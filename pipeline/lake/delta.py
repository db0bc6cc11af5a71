"""Delta tables through deltalake: the output folder is the table's root, ``<output>/_delta_log`` its log."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import pyarrow as pa

from pipeline.annotations.data_folder import DATA_FOLDER
from pipeline.lake.base import (
    NewFile,
    Overtaken,
    PublishedTable,
    TableError,
    TableFailed,
    as_taken,
    library,
    own_name,
    refuse_foreign,
)
from pipeline.storage.filesystems import s3_environment
from pipeline.storage.uris import Uri, hide_secrets

_UNSUPPORTED = re.compile("unsupported|not supported|catalog-managed", re.IGNORECASE)
_TYPES = {pa.uint8(): pa.int16(), pa.uint16(): pa.int32(), pa.uint32(): pa.int64()}


def open_delta(uri: Uri) -> Any | None:
    """deltalake's object for the newest version of a table; ``None`` if there is none.

    Raises:
        TableError: deltalake is not installed, or knows nothing of what the table needs.
        TableFailed: it cannot be read.
    """
    deltalake = library("deltalake", "delta")
    with explained(f"the Delta table {uri}"):
        try:
            return deltalake.DeltaTable(_text(uri), storage_options=_storage_options(uri))
        except deltalake.exceptions.TableNotFoundError:
            return None


def batches(table: Any, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Columns of a table's rows, as deltalake reads them."""
    query = library("deltalake", "delta").QueryBuilder().register("rows", table)
    names = ", ".join('"' + name.replace('"', '""') + '"' for name in columns)
    for batch in query.execute(f"select {names} from rows"):
        yield pa.record_batch(batch)


@contextmanager
def explained(place: str) -> Iterator[None]:
    """What deltalake raises in this block, as errors of ours."""
    exceptions = library("deltalake.exceptions", "delta")
    try:
        yield
    except exceptions.DeltaProtocolError as error:
        raise TableError(f"{place} needs what deltalake cannot do: {_brief(error)}") from None
    except exceptions.CommitFailedError as error:
        raise Overtaken(f"{place}: another writer was faster: {_brief(error)}") from None
    except (exceptions.DeltaError, OSError) as error:
        if _UNSUPPORTED.search(str(error)):  # the name of the feature is in it
            raise TableError(
                f"{place} needs what deltalake cannot do: {_brief(error).rstrip('.')}. Drop the feature (in Spark "
                "ALTER TABLE ... DROP FEATURE), or use another table"
            ) from None
        raise TableFailed(f"{place}: {_brief(error)}") from None


class DeltaOutput(PublishedTable):
    """The table of an output.

    Args:
        uri: of the output folder.
    """

    def __init__(self, uri: Uri) -> None:
        self._uri = uri
        self._table = open_delta(uri)

    @property
    def place(self) -> str:
        """See `PublishedTable`."""
        return f"the Delta table {self._uri}"

    @property
    def version(self) -> str:
        """See `PublishedTable`."""
        return "" if self._table is None else str(self._table.version())

    @cached_property
    def files(self) -> Mapping[str, int]:
        """See `PublishedTable`."""
        if self._table is None:
            return {}
        with explained(self.place):
            partitions = self._table.metadata().partition_columns
            if partitions:
                raise TableError(f"{self.place} is partitioned by {', '.join(partitions)}, which its files are not")
            rewritten = pa.table(self._table.deletion_vectors())
            if rewritten.num_rows:
                raise TableError(
                    f"rows were removed from {self.place} by deletion vectors: restore the version before that, or "
                    "publish to another table"
                )
            actions = pa.table(self._table.get_add_actions(flatten=True))
        sizes = dict(zip(actions["path"].to_pylist(), actions["size_bytes"].to_pylist(), strict=True))
        names = {path: own_name(path, f"{DATA_FOLDER}/") for path in sizes}
        refuse_foreign(self.place, self._uri, [path for path, name in names.items() if name is None])
        return {name: sizes[path] for path, name in names.items() if name is not None}

    def check(self, schema: pa.Schema) -> None:
        """See `PublishedTable`."""
        self._new_columns(schema)

    def commit(
        self, added: Sequence[NewFile], removed: Sequence[str], schema: pa.Schema, properties: Mapping[str, str]
    ) -> str:
        """See `PublishedTable`. New columns are a version of their own, before that of the files."""
        deltalake, transaction = library("deltalake", "delta"), library("deltalake.transaction", "delta")
        now_ms = int(time.time() * 1000)

        def described() -> Any:
            return deltalake.CommitProperties(custom_metadata=dict(properties), max_commit_retries=0)

        def add(file: NewFile) -> Any:
            path = f"{DATA_FOLDER}/{file.name}"
            return transaction.AddAction(
                path, file.size_bytes, {}, now_ms, True, json.dumps({"numRecords": file.num_rows})
            )

        def remove(name: str) -> Any:
            return transaction.RemoveAction(f"{DATA_FOLDER}/{name}", True, now_ms, self.files[name])

        additions = [add(file) for file in added]
        with explained(self.place):
            if self._table is None:
                transaction.create_table_with_add_actions(
                    _text(self._uri),
                    self._schema(schema),
                    additions,
                    storage_options=_storage_options(self._uri),
                    commit_properties=described(),
                )
                return "0"
            columns = self._new_columns(schema)
            if columns:
                self._table.alter.add_columns(columns, commit_properties=described())
            actions = [*additions, *map(remove, removed)]
            if actions:
                self._table.create_write_transaction(
                    actions, "append", self._table.schema(), commit_properties=described()
                )
            self._table.update_incremental()
            return self.version

    def _schema(self, schema: pa.Schema) -> Any:
        columns = as_taken(schema, _TYPES, self.place)
        return library("deltalake", "delta").Schema.from_arrow(columns)

    def _new_columns(self, schema: pa.Schema) -> list[Any]:
        """Those that the table does not have; `TableError` if it has one with another type."""
        there = {} if self._table is None else {field.name: field for field in self._table.schema().fields}
        new = []
        for field in self._schema(schema).fields:
            if field.name not in there:
                new.append(field)
            elif there[field.name].type != field.type:
                raise TableError(
                    f"{self.place} has column {field.name!r} as {there[field.name].type}, the output as {field.type}: "
                    "publish to another table"
                )
        return new


def _text(uri: Uri) -> str:
    return uri.local_path or uri.secret_text


def _storage_options(uri: Uri) -> dict[str, str]:
    """Where S3 is, as all of the project finds it; keys deltalake finds by itself, in the usual places."""
    if uri.scheme != "s3":
        return {}
    environment = s3_environment(uri.host)
    options = {"AWS_REGION": environment.region or ""}
    if environment.endpoint:
        options["AWS_ENDPOINT_URL"] = environment.endpoint
        options["AWS_ALLOW_HTTP"] = str(environment.endpoint.startswith("http://")).lower()
    if environment.anonymous:
        options["AWS_SKIP_SIGNATURE"] = "true"
    return {key: value for key, value in options.items() if value}


def _brief(error: Exception) -> str:
    return hide_secrets(" ".join(str(error).split()))[:300]

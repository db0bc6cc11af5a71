"""Iceberg tables through pyiceberg: a catalog says which metadata are the table's, wherever they lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import pyarrow as pa

from pipeline.annotations.data_folder import DATA_FOLDER
from pipeline.errors import RunError, UserError
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
from pipeline.lake.config import CATALOG_SCHEME
from pipeline.storage.filesystems import s3_environment
from pipeline.storage.uris import Uri, hide_secrets

_TYPES = {pa.uint8(): pa.int32(), pa.uint16(): pa.int32(), pa.time64("us"): pa.time64("us")}
_MAPPING = "schema.name-mapping.default"
# What an entry says of a file follows from its ids alone: a file with the same ids and the same size has the same one.
_PROPERTIES = {"write.metadata.metrics.default": "none", "write.metadata.metrics.column.image_id": "full"}


def open_iceberg(uri: Uri) -> Any:
    """pyiceberg's object for a table that is read.

    Args:
        uri: ``iceberg://CATALOG/NAMESPACE.TABLE``; or of a metadata file; or of a table's folder, if it has a hint
            which of them is the current one (``metadata/version-hint.text``).

    Raises:
        TableError: pyiceberg is not installed; or there is no such table.
        TableFailed: it cannot be read.
    """
    exceptions = library("pyiceberg.exceptions", "iceberg")
    with explained(f"the Iceberg table {uri}"):
        try:
            if uri.scheme == CATALOG_SCHEME:
                return _load_catalog(uri, uri.host, {}).load_table(uri.path.strip("/"))
            static = library("pyiceberg.table", "iceberg").StaticTable
            return static.from_metadata(_location(uri), properties=_s3_properties(uri))
        except (exceptions.NoSuchTableError, exceptions.NoSuchNamespaceError, FileNotFoundError) as error:
            raise TableError(f"{uri}: there is no such Iceberg table: {_brief(error)}") from None


@contextmanager
def explained(place: str) -> Iterator[None]:
    """What pyiceberg, its catalogs and their clients raise in this block, as errors of ours."""
    exceptions = library("pyiceberg.exceptions", "iceberg")
    try:
        yield
    except (UserError, RunError):
        raise
    except exceptions.CommitFailedException as error:
        raise Overtaken(f"{place}: another writer was faster: {_brief(error)}") from None
    except Exception as error:  # whatever the client of a catalog does
        raise TableFailed(f"{place}: {type(error).__name__}: {_brief(error)}") from None


class IcebergOutput(PublishedTable):
    """A table of a catalog, for the files of an output.

    Args:
        uri: of the output folder.
        catalog: as pyiceberg's configuration calls it.
        name: of the table, with its namespace.
        properties: of the catalog, before those of pyiceberg's configuration.
    """

    def __init__(self, uri: Uri, catalog: str, name: str, properties: Mapping[str, str]) -> None:
        self._uri = uri
        self._name = name
        self._catalog_name = catalog
        with explained(self.place):
            self._catalog = _load_catalog(uri, catalog, properties)
            self._table = self._load()

    def _load(self) -> Any | None:
        try:
            return self._catalog.load_table(self._name)
        except library("pyiceberg.exceptions", "iceberg").NoSuchTableError:
            return None

    @property
    def place(self) -> str:
        """See `PublishedTable`."""
        return f"the Iceberg table {self._name} of catalog {self._catalog_name}"

    @property
    def version(self) -> str:
        """See `PublishedTable`."""
        snapshot = self._table and self._table.current_snapshot()
        return str(snapshot.snapshot_id) if snapshot else ""

    @cached_property
    def files(self) -> Mapping[str, int]:
        """See `PublishedTable`."""
        return {name: file.file_size_in_bytes for name, file in self._data_files.items()}

    @cached_property
    def _data_files(self) -> dict[str, Any]:
        """pyiceberg's, by the names in the folder of data files."""
        if self._table is None:
            return {}
        with explained(self.place):
            if not self._table.spec().is_unpartitioned():
                raise TableError(f"{self.place} is partitioned, which its files are not: publish to another table")
            found = list(data_files(self._table, self._table.current_snapshot(), self.place))
        names = {file.file_path: own_name(file.file_path, self._data_folder) for file in found}
        refuse_foreign(self.place, self._uri, [path for path, name in names.items() if name is None])
        return {name: file for file in found if (name := names[file.file_path]) is not None}

    def check(self, schema: pa.Schema) -> None:
        """See `PublishedTable`."""
        columns = as_taken(schema, _TYPES, self.place)
        if self._table is None:
            return
        with explained(self.place):
            try:
                self._table.transaction().update_schema().union_by_name(columns)
            except Exception as error:
                raise TableError(f"{self.place} cannot take the columns of {self._uri}: {_brief(error)}") from None

    def commit(
        self, added: Sequence[NewFile], removed: Sequence[str], schema: pa.Schema, properties: Mapping[str, str]
    ) -> str:
        """See `PublishedTable`."""
        from pyiceberg.io.pyarrow import parquet_file_to_data_file

        columns = as_taken(schema, _TYPES, self.place)
        old = self._data_files
        with explained(self.place):
            table = self._create(columns) if self._table is None else self._table
            with table.transaction() as transaction:
                with transaction.update_schema() as update:
                    update.union_by_name(columns)
                mapping = transaction.table_metadata.schema().name_mapping.model_dump_json()
                if transaction.table_metadata.properties.get(_MAPPING) != mapping:
                    transaction.set_properties({_MAPPING: mapping})
                if added or removed:
                    with transaction.update_snapshot(snapshot_properties=dict(properties)).overwrite() as snapshot:
                        for name in (*removed, *(file.name for file in added if file.name in old)):
                            snapshot.delete_data_file(old[name])
                        for file in added:
                            path = f"{self._data_folder}{file.name}"
                            snapshot.append_data_file(
                                parquet_file_to_data_file(table.io, transaction.table_metadata, path)
                            )
            self._table = table
            return self.version

    def _create(self, columns: pa.Schema) -> Any:
        exceptions = library("pyiceberg.exceptions", "iceberg")
        try:
            return self._catalog.create_table(self._name, schema=columns, properties=_PROPERTIES)
        except exceptions.NoSuchNamespaceError:
            self._catalog.create_namespace_if_not_exists(self._name.rpartition(".")[0])
            return self._catalog.create_table(self._name, schema=columns, properties=_PROPERTIES)

    @property
    def _data_folder(self) -> str:
        return f"{_location(self._uri)}/{DATA_FOLDER}/"


def refuse_equality_deletes(table: Any, snapshot: Any, place: str) -> None:
    """Raise `TableError` if rows were removed by what pyiceberg does not read: those like the ones in some file."""
    content = library("pyiceberg.manifest", "iceberg").DataFileContent.EQUALITY_DELETES
    for manifest in snapshot.manifests(table.io):
        for entry in manifest.fetch_manifest_entry(table.io) if manifest.content else ():  # 0: of data files
            if entry.data_file.content == content:
                raise TableError(
                    f"rows were removed from {place} by equality deletes ({entry.data_file.file_path}), which "
                    "pyiceberg does not read: have them applied (rewrite_data_files in Spark, OPTIMIZE in Trino), or "
                    "use another table"
                )


def is_as_in_table(schema: pa.Schema, table: Any, columns: Sequence[str]) -> bool:
    """Whether a file has columns, and what is in them, under the names that the table has for them now, and once."""
    index = library("pyiceberg.schema", "iceberg").index_by_name
    convert = library("pyiceberg.io.pyarrow", "iceberg").pyarrow_to_schema
    try:
        found = index(convert(schema, name_mapping=table.name_mapping()))
    except Exception:  # types that are none of Iceberg's, names that nobody mapped: the scan tells
        return False
    below = tuple(f"{name}." for name in columns)
    wanted = {name: i for name, i in index(table.schema()).items() if name in columns or name.startswith(below)}
    ids = {*wanted.values()}
    return wanted == {n: i for n, i in found.items() if i in ids or n in columns or n.startswith(below)}


def data_files(table: Any, snapshot: Any, place: str) -> Iterator[Any]:
    """pyiceberg's data files of a snapshot, or of none.

    Raises:
        TableError: rows of them were removed by delete files.
    """
    for manifest in snapshot.manifests(table.io) if snapshot else ():
        for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=True):
            if entry.data_file.content != 0:
                raise TableError(
                    f"rows were removed from {place} by delete files ({entry.data_file.file_path}): rewrite its data "
                    "files, or use another table"
                )
            yield entry.data_file


def _load_catalog(uri: Uri, name: str, properties: Mapping[str, str]) -> Any:
    """A catalog; where S3 is (that of `uri`), is told as all of the project finds it, unless its configuration does."""
    catalog = library("pyiceberg.catalog", "iceberg")
    config = library("pyiceberg.utils.config", "iceberg").Config()
    return catalog.load_catalog(
        name, **{**_s3_properties(uri), **(config.get_catalog_config(name) or {}), **properties}
    )


def _s3_properties(uri: Uri) -> dict[str, str]:
    """A catalog may have tables in S3 wherever the output is: then no bucket tells the region."""
    environment = s3_environment(uri.host if uri.scheme == "s3" else "")
    found = {
        "s3.endpoint": environment.endpoint,
        "s3.region": environment.region,
        "s3.anonymous": "true" if environment.anonymous else None,
    }
    return {key: value for key, value in found.items() if value}


def _location(uri: Uri) -> str:
    """As pyiceberg writes it into its tables."""
    path = uri.local_path
    return uri.secret_text.rstrip("/") if path is None else f"file://{path}"


def _brief(error: Exception) -> str:
    return hide_secrets(" ".join(str(error).split()))[:300]

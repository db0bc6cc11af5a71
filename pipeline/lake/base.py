"""What both kinds of tables have in common: how the publishing job sees one, and which types of columns it takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.annotations.data_folder import DATA_FOLDER, DATA_NAME
from pipeline.errors import RunError, UserError
from pipeline.messages.examples import Examples

_SIMPLE = {
    *(pa.bool_(), pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.date32()),
    *(pa.string(), pa.large_string(), pa.binary(), pa.large_binary()),
}


class TableError(UserError):
    """A table that cannot be what it is wanted for; the message says why and what to do."""


class TableFailed(RunError):
    """The table, or its catalog, did not do what it was asked for: try again."""


class Overtaken(TableFailed):
    """Somebody else committed to the table since it was read; nothing was changed."""


class NewFile(NamedTuple):
    """A data file that a table is to have, by its name in the folder of data files."""

    name: str
    size_bytes: int
    num_rows: int


class PublishedTable(ABC):
    """A table over the data files of one output, as it was when it was read."""

    @property
    @abstractmethod
    def place(self) -> str:
        """What people call it."""

    @property
    @abstractmethod
    def version(self) -> str:
        """Of the state that was read; ``""`` where there is none yet."""

    @property
    @abstractmethod
    def files(self) -> Mapping[str, int]:
        """Names of the data files that it has, with their sizes in bytes.

        Raises:
            TableError: it has others as well.
        """

    @abstractmethod
    def check(self, schema: pa.Schema) -> None:
        """Raise `TableError` unless it can take files with these columns."""

    @abstractmethod
    def commit(
        self, added: Sequence[NewFile], removed: Sequence[str], schema: pa.Schema, properties: Mapping[str, str]
    ) -> str:
        """Add and remove files in one step, all or none; the version that has them.

        Args:
            added: may have the names of files that the table has, whose content is another one now.
            removed: names of files that it has.
            schema: of all files; columns that the table does not have are added to it.
            properties: of the version.

        Raises:
            Overtaken: it is not what it was when it was read.
            TableError, TableFailed: it cannot be done.
        """


def library(name: str, extra: str) -> Any:
    """A module of a library that only these tables need.

    Raises:
        TableError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise TableError(
            f"tables of this kind need another package ({error}): pip install 'maskfleet[{extra}]'"
        ) from None


def refuse_foreign(place: str, output: object, foreign: Sequence[str]) -> None:
    """Raise if a table has files that are none of this output's."""
    if foreign:
        raise TableError(
            f"{place} has files that are none of {output}/{DATA_FOLDER}: {Examples.of(sorted(foreign))}. Nothing was "
            "changed; remove them from the table, or publish to another one"
        )


def own_name(path: str, folder: str) -> str | None:
    """The name of a data file by its path below `folder`, which ends with ``/``; ``None`` if it is none of ours."""
    name = path.removeprefix(folder)
    return name if path.startswith(folder) and DATA_NAME.fullmatch(name) else None


def as_taken(schema: pa.Schema, others: Mapping[pa.DataType, pa.DataType], place: str) -> pa.Schema:
    """The columns as a table has them; their files are read as these types.

    Args:
        others: types that one format takes and the other does not, with what it calls them: they hold all their values.

    Raises:
        TableError: a column has a type that no type of the table holds, or that other readers take for another one.
    """
    fields = []
    for field in schema:
        try:
            fields.append(pa.field(field.name, _taken(field.type, others)))
        except _NotTaken as error:
            raise TableError(
                f"{place} cannot hold column {field.name!r}: it has no type for {error}. Cast it in the manifest "
                "(nanoseconds to microseconds, unsigned to signed), or do not carry it"
            ) from None
    return pa.schema(fields)


class _NotTaken(Exception):
    """A type, as Arrow calls it."""


def _taken(kind: pa.DataType, others: Mapping[pa.DataType, pa.DataType]) -> pa.DataType:
    if kind in others:
        return others[kind]
    if pa.types.is_dictionary(kind):
        return _taken(kind.value_type, others)
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_taken(field.type, others)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_taken(kind.key_type, others), _taken(kind.item_type, others))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(_taken(kind.value_type, others)))
    if pa.types.is_timestamp(kind) and kind.unit != "ns":
        return pa.timestamp("us", kind.tz)
    if kind in _SIMPLE or pa.types.is_decimal128(kind) or pa.types.is_fixed_size_binary(kind):
        return kind
    raise _NotTaken(str(kind))

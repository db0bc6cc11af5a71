"""Manifests of plain text: CSV, the same with tabs (TSV), and lists with a path a line.

CSV has no types: every column arrives as text, verbatim. Ids become integers only if each one is written as
``str(int(id))`` would write it; a single ``0012`` or ``a7`` keeps them all text.

Two readers go through a CSV file side by side. Arrow's makes the columns, but passes over what it does not understand:
a quote that never closes takes all rows behind it into its field. Python's, in strict mode, knows the grammar of
RFC 4180 and the lines. A row is a row where both have it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator
from itertools import chain, islice

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from pipeline.annotate.config import ManifestConfig
from pipeline.annotate.manifest.parquet_copy import ROW_GROUP_ROWS, UnitWriter
from pipeline.annotate.manifest.rules import (
    HEIGHT,
    ID,
    LIST_CURE,
    NUMBER,
    URI,
    WIDTH,
    Columns,
    ManifestError,
    ManifestParts,
    check_ids,
    check_uris,
    check_uris_as_ids,
    find_columns,
    has_sizes,
    row_namer,
    side_lengths,
)
from pipeline.annotate.manifest.versions import COPIED, version_table
from pipeline.storage.errors import cannot_read
from pipeline.storage.streams import open_stream
from pipeline.storage.uris import Uri

_CSV_BLOCK_BYTES = 2 << 20  # pyarrow reads up to 32 of them ahead; no row may reach over two ends of one
_MAX_FIELD = 2 * _CSV_BLOCK_BYTES
_MAX_LINE = 1 << 16  # characters of a path or URI in a list
_BUFFER_BYTES = 1 << 18
_COMMA, _TAB = ",", "\t"
_FORMATS = {_COMMA: "csv", _TAB: "tsv"}
_NAMES = {_COMMA: "commas", _TAB: "tabs"}
_CANONICAL_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"


def read_csv(config: ManifestConfig, scratch_uri: Uri) -> ManifestParts:
    """A CSV file with a header, comma-separated, UTF-8, perhaps compressed (``.gz``, ``.zst``, ``.bz2``).

    Empty lines are skipped; whatever else is not a row with a field for each column is refused.
    """
    return _read_table(config, scratch_uri, _COMMA)


def read_tsv(config: ManifestConfig, scratch_uri: Uri) -> ManifestParts:
    """As `read_csv`, with a tab between two fields: quotes as there, as spreadsheets and pandas write them."""
    return _read_table(config, scratch_uri, _TAB)


def read_list(config: ManifestConfig, scratch_uri: Uri) -> ManifestParts:
    """A path or URI a line, which is the id too; UTF-8, perhaps compressed (``.gz``, ``.zst``, ``.bz2``).

    Blank lines are skipped. Others are taken to the letter: names may begin with ``#``, hold quotes, end in a blank.
    """
    lines = _text_lines(config)
    first = next(lines, None)
    if first is None:
        raise ManifestError(f"{config.uri} is empty")
    find_columns(config, [URI], config.uri)  # none else can be named
    lines = chain([first], lines)
    with UnitWriter(scratch_uri) as writer:
        while chunk := list(islice(lines, ROW_GROUP_ROWS)):
            numbers = [number for number, _ in chunk]
            uris = pa.array([text for _, text in chunk], pa.string())
            namer = row_namer(config.uri, "line", numbers)
            check_uris(uris, config.image_root, namer)
            check_uris_as_ids(uris, config.image_root, namer, LIST_CURE)
            writer.write(pa.table({URI: uris, NUMBER: pa.array(numbers, pa.int64())}))
    columns = Columns(None, URI, None, NUMBER)
    return ManifestParts(writer.units, columns, pa.string(), pa.schema([]), config.image_root, "line")


def _text_lines(config: ManifestConfig) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, without their ends, and their numbers.

    Raises:
        ManifestError: not UTF-8, too long, or the header of a table.
    """
    uri = config.uri
    with open_stream(uri) as stream:
        text = io.TextIOWrapper(io.BufferedReader(stream, _BUFFER_BYTES), "utf-8-sig")
        number = 0
        try:
            while line := text.readline(_MAX_LINE + 2):
                number += 1
                line = line.removesuffix("\n")
                if len(line) > _MAX_LINE:
                    raise ManifestError(f"{uri}, line {number}: more than {_MAX_LINE:,} characters are no path")
                if "\0" in line:  # as in UTF-16 without a mark
                    raise ManifestError(f"{uri}, line {number}: holds NUL, as no path does; save the file as UTF-8")
                for delimiter in (_TAB, _COMMA) if number == 1 else ():
                    if config.uri_column in line.split(delimiter):
                        kind = _FORMATS[delimiter]
                        raise ManifestError(f"{uri} is a table with a header, not a list: set manifest.format: {kind}")
                if line.strip():
                    yield number, line
        except UnicodeDecodeError:
            raise _not_utf8(uri) from None


def _read_table(config: ManifestConfig, scratch_uri: Uri, delimiter: str) -> ManifestParts:
    all_integers = True
    with UnitWriter(scratch_uri) as writer:
        rows = _rows(config.uri, delimiter)
        header = next(rows, None)
        if header is None:
            raise ManifestError(f"{config.uri} is empty")
        other = _TAB if delimiter == _COMMA else _COMMA
        if config.uri_column not in header[1] and config.uri_column in header[1][0].split(other):
            raise ManifestError(
                f"{config.uri}: {_NAMES[other]} stand between its fields, not {_NAMES[delimiter]}: "
                f"set manifest.format: {_FORMATS[other]}"
            )
        columns = find_columns(config, header[1], config.uri)
        sizes = (HEIGHT, WIDTH) if has_sizes(header[1]) else ()
        named = (columns.id, columns.uri, *config.carry, *sizes)
        versions = {name: source for name, source in columns.versions.items() if header[1].count(source) == 1}
        wanted = list(dict.fromkeys(name for name in (*named, *versions.values()) if name is not None))
        lines = _lines(rows, len(header[1]), config.uri, delimiter)
        for batch in _batches(config.uri, wanted, lines, delimiter):
            numbers = list(islice(lines, batch.num_rows))
            if len(numbers) < batch.num_rows:
                raise _not_agreed(config.uri)
            rows = pa.Table.from_batches([batch])
            table = _canonical(rows, columns, config.carry, numbers)
            for name in sizes:
                table = table.append_column(name, side_lengths(rows[name]))
            found = version_table({name: rows[source] for name, source in versions.items()}, len(rows))
            for name in versions:
                table = table.append_column(name, found[name])
            namer = row_namer(config.uri, "line", numbers)
            uris = table[URI].combine_chunks()
            check_uris(uris, config.image_root, namer)
            if columns.id is None:
                check_uris_as_ids(uris, config.image_root, namer)
            if columns.id is not None:
                check_ids(table[ID].combine_chunks(), namer)
                all_integers = all_integers and _are_canonical_integers(table[ID])
            writer.write(table)
        if next(lines, None) is not None:
            raise _not_agreed(config.uri)
    id_type = pa.int64() if all_integers and columns.id is not None else pa.string()
    carried = pa.schema([(name, pa.string()) for name in config.carry])
    written = Columns(ID if columns.id is not None else None, URI, None, NUMBER, COPIED)
    return ManifestParts(writer.units, written, id_type, carried, config.image_root, "line")


def _rows(uri: Uri, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not empty lines, the header first, with the lines on which they begin.

    Raises:
        ManifestError: not CSV, or not UTF-8.
    """
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_FIELD))  # of the process; 128 KiB by default
    line = 1
    with open_stream(uri) as stream:
        text = io.TextIOWrapper(io.BufferedReader(stream, _BUFFER_BYTES), "utf-8-sig", newline="")
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            for row in reader:
                if row:
                    yield line, row
                line = reader.line_num + 1
        except UnicodeDecodeError:
            raise _not_utf8(uri) from None
        except csv.Error as error:
            cure = 'close it, or write the quote twice ("") where it belongs to the text'
            reason = f"{error}; a quote that begins a field must end it: {cure}"
            if reader.line_num > line:
                reason = f"a field in quotes goes on to line {reader.line_num} and is not closed as it must: {cure}"
            elif "field limit" in str(error):
                reason = (
                    f"a field of more than {_MAX_FIELD:,} characters; take its column out of the file, or write Parquet"
                )
            raise ManifestError(f"{uri}, line {line}: {reason}") from None


def _lines(rows: Iterator[tuple[int, list[str]]], num_columns: int, uri: Uri, delimiter: str) -> Iterator[int]:
    for line, row in rows:
        if len(row) != num_columns:
            raise ManifestError(
                f"{uri}, line {line}: {len(row)} fields instead of {num_columns}; put fields that hold "
                f"{_NAMES[delimiter]} in quotes"
            )
        yield line


def _batches(uri: Uri, columns: list[str], lines: Iterator[int], delimiter: str) -> Iterator[pa.RecordBatch]:
    """Batches of text columns, as Arrow reads them. What it refuses, the other reader may say with its line."""
    try:
        with open_stream(uri) as stream:
            reader = pacsv.open_csv(
                stream,
                read_options=pacsv.ReadOptions(block_size=_CSV_BLOCK_BYTES),
                # RFC 4180 allows line breaks in quoted fields.
                parse_options=pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
                convert_options=pacsv.ConvertOptions(
                    include_columns=columns, column_types=dict.fromkeys(columns, pa.string())
                ),
            )
            with reader:
                yield from reader
    except pa.ArrowException as error:
        for _ in lines:
            pass
        if "straddles" in str(error):
            raise ManifestError(
                f"{uri}: a row takes more than {2 * _CSV_BLOCK_BYTES:,} bytes; take the long columns out of the file, "
                "or write Parquet"
            ) from None
        raise cannot_read(uri, error) from None


def _not_utf8(uri: Uri) -> ManifestError:
    return ManifestError(f"{uri}, line {_line_of_other_text(uri)}: not UTF-8; save the file as UTF-8")


def _line_of_other_text(uri: Uri) -> int:
    with open_stream(uri) as stream:
        for number, line in enumerate(io.BufferedReader(stream, _BUFFER_BYTES), start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    raise AssertionError("the file has changed while it was read")


def _not_agreed(uri: Uri) -> ManifestError:
    return ManifestError(
        f"{uri}: two readers of CSV find different numbers of rows in it; write it anew, with fields in quotes as "
        "RFC 4180 has them, or as Parquet"
    )


def _canonical(table: pa.Table, columns: Columns, carry: Collection[str], numbers: list[int]) -> pa.Table:
    chosen = {ID: columns.id, URI: columns.uri, **{name: name for name in carry}}
    made = {name: table[source] for name, source in chosen.items() if source is not None}
    return pa.table({**made, NUMBER: pa.array(numbers, pa.int64())})


def _are_canonical_integers(ids: pa.ChunkedArray) -> bool:
    return bool(pc.all(pc.match_substring_regex(ids, _CANONICAL_INTEGER)).as_py())

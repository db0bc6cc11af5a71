"""CSV manifests.

CSV has no types: every column arrives as text, verbatim. Ids become integers only if each one is written as
``str(int(id))`` would write it; a single ``0012`` or ``a7`` keeps them all text.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from pipeline.annotate.config import ManifestConfig
from pipeline.annotate.manifest.parquet_copy import UnitWriter
from pipeline.annotate.manifest.rules import (
    ID,
    URI,
    Columns,
    ManifestError,
    ManifestParts,
    check_ids,
    check_uris,
    check_uris_as_ids,
    find_columns,
    row_namer,
)
from pipeline.storage.errors import cannot_read
from pipeline.storage.streams import open_stream
from pipeline.storage.uris import Uri

_CSV_BLOCK_BYTES = 2 << 20  # pyarrow reads up to 32 of them ahead
_CANONICAL_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"


def read_csv(config: ManifestConfig, scratch_uri: Uri) -> ManifestParts:
    """A CSV file with a header, comma-separated, UTF-8, perhaps compressed (``.gz``, ``.zst``, ``.bz2``)."""
    with _open_csv(config.uri, []) as header:
        columns = find_columns(config, header.schema.names, config.uri)
    wanted = list(dict.fromkeys(name for name in (columns.id, columns.uri, *config.carry) if name is not None))
    num_rows, all_integers = 0, columns.id is not None
    with UnitWriter(scratch_uri) as writer, _open_csv(config.uri, wanted) as batches:
        for batch in batches:
            table = _canonical(pa.Table.from_batches([batch]), columns, config.carry)
            namer = row_namer(config.uri, "row", range(num_rows + 1, num_rows + 1 + table.num_rows))
            uris = table[URI].combine_chunks()
            check_uris(uris, config.image_root, namer)
            if columns.id is None:
                check_uris_as_ids(uris, config.image_root, namer)
            else:
                check_ids(table[ID].combine_chunks(), namer)
                all_integers = all_integers and _are_canonical_integers(table[ID])
            num_rows += table.num_rows
            writer.write(table)
    id_type = pa.int64() if all_integers else pa.string()
    carried = pa.schema([(name, pa.string()) for name in config.carry])
    written = Columns(ID if columns.id is not None else None, URI, None)
    return ManifestParts(writer.units, written, id_type, carried, config.image_root)


@contextmanager
def _open_csv(uri: Uri, columns: list[str]) -> Iterator[pacsv.CSVStreamingReader]:
    """Batches of text columns; all columns, of guessed types, if none are named."""
    bad_rows: list[pacsv.InvalidRow] = []

    def note(row: pacsv.InvalidRow) -> str:
        bad_rows.append(row)
        return "error"

    try:
        with open_stream(uri) as stream:
            reader = pacsv.open_csv(
                stream,
                # Threads would cost the row numbers in messages.
                read_options=pacsv.ReadOptions(block_size=_CSV_BLOCK_BYTES, use_threads=False),
                # RFC 4180 allows line breaks in quoted fields.
                parse_options=pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=note),
                convert_options=pacsv.ConvertOptions(
                    include_columns=columns, column_types=dict.fromkeys(columns, pa.string())
                ),
            )
            with reader:
                yield reader
    except pa.ArrowInvalid as error:
        if bad_rows:  # pyarrow's own message would repeat the row's text
            row = bad_rows[0]
            raise ManifestError(
                f"{uri}, row {row.number - 1}: {row.actual_columns} fields instead of "
                f"{row.expected_columns}; put fields that hold commas in quotes"
            ) from None
        if "Empty CSV" in str(error):
            raise ManifestError(f"{uri} is empty") from None
        raise cannot_read(uri, error) from None


def _canonical(table: pa.Table, columns: Columns, carry: Collection[str]) -> pa.Table:
    chosen = {ID: columns.id, URI: columns.uri, **{name: name for name in carry}}
    return pa.table({name: table[source] for name, source in chosen.items() if source is not None})


def _are_canonical_integers(ids: pa.ChunkedArray) -> bool:
    return bool(pc.all(pc.match_substring_regex(ids, _CANONICAL_INTEGER)).as_py())

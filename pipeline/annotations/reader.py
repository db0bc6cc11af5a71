"""The output of an annotate job as exports read it: a few rows at a time, in the order of the file names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.annotations.data_file import Counts, Footer, OutputError
from pipeline.annotations.data_folder import DataFolder, no_output
from pipeline.annotations.run_json import RunJson
from pipeline.annotations.schema import there
from pipeline.model.categories import Category
from pipeline.storage.objects.base import Entry
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri

ROWS_PER_BATCH = 256

_CONCURRENCY = 16


@dataclass(frozen=True)
class Source:
    """An output that was looked over: it has rows, and all its files belong together.

    Attributes:
        uri: of the output folder.
        entries: its data files by name.
        counts: rows of all files together, by kind.
        categories: what the model tells apart, in the order of its labels; or, in the order of the ids, what it found.
        all_categories: whether ``categories`` are all of the model's: ``run.json`` lists them.
        columns: of the rows, carried ones included.
        string_ids: whether image ids are strings, not integers.
        image_root: what the manifest's URIs were relative to, absolute, where ``run.json`` knows.
        finished: whether the last run came to its end, as far as ``run.json`` knows.
        provenance: what made the rows; strings and lists of strings.
    """

    uri: Uri
    entries: tuple[Entry, ...]
    counts: Counts
    categories: tuple[Category, ...]
    all_categories: bool
    columns: tuple[str, ...]
    string_ids: bool
    image_root: Uri | None
    finished: bool
    provenance: dict[str, Any]

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Columns of all rows, at most `ROWS_PER_BATCH` rows at a time; rows whose pictures are gone are left out.

        Raises:
            OutputError: a file is damaged.
        """
        objects, folder = open_objects(self.uri), DataFolder(self.uri, _CONCURRENCY)
        only_here = [] if "status" in columns else ["status"]
        for entry in self.entries:
            with folder.open(objects, entry) as file:
                for batch in file.iter_batches(ROWS_PER_BATCH, [*columns, *only_here]):
                    if rows := there(batch):
                        yield rows.drop_columns(only_here)


def open_source(uri: Uri) -> Source:
    """Look an output over.

    Raises:
        OutputError: there are no data, or files that do not belong together, are damaged or are not ours.
        UriError: it cannot be opened.
    """
    objects = open_objects(uri)
    folder = DataFolder(uri, _CONCURRENCY)
    try:
        footers = folder.current(objects)
    except NotADirectoryError:
        footers = {}
    if not footers:
        raise OutputError(no_output(uri, "has no data"))
    schema = next(iter(footers.values())).schema
    run = RunJson.read(uri)
    listed = run.categories if run else ()
    found = {} if listed else folder.category_names(objects, footers)
    return Source(
        uri=uri,
        entries=tuple(footers),
        counts=Counts.total(footer.counts for footer in footers.values()),
        categories=listed or tuple(Category(i, name) for i, name in sorted(found.items())),
        all_categories=bool(listed),
        columns=tuple(schema.names),
        string_ids=pa.types.is_string(schema.field("image_id").type),
        image_root=run.image_root if run else None,
        finished=run is None or run.state.closed,
        provenance=_provenance(uri, list(footers.values())),
    )


def _provenance(uri: Uri, footers: Sequence[Footer]) -> dict[str, Any]:
    identities = [footer.identity for footer in footers]
    return {
        "annotations": str(uri),
        "model": identities[0].model_name,
        "weights_sha256": identities[0].weights_sha256,
        "config_digest": identities[0].config_digest,
        "code_versions": sorted({identity.code_version for identity in identities}),
        "run_ids": sorted({run_id for footer in footers for run_id in footer.runs}),
    }

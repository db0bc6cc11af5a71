"""Any manifest -> units that tasks read independently, with ids, absolute URIs and carried columns.

Parquet is read where it lies, a row group a unit. Everything else is first copied to Parquet in a scratch folder
(:mod:`pipeline.annotate.manifest.parquet_copy`), which on a cluster must be one that all nodes reach.

Whatever can be wrong with a manifest's rows, but for ids that occur twice
(:func:`pipeline.annotate.pending.antijoin.find_pending` finds those), is found when it is opened: the URI column
is read once for that, the bytes are not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.annotate.config import IN_A_TABLE, TABLE_FORMATS, ManifestConfig
from pipeline.annotate.manifest.from_csv import read_csv, read_list, read_tsv
from pipeline.annotate.manifest.from_folder import read_folder
from pipeline.annotate.manifest.from_inventory import read_inventory
from pipeline.annotate.manifest.from_json import read_coco, read_jsonl
from pipeline.annotate.manifest.from_parquet import read_parquet
from pipeline.annotate.manifest.from_table import read_delta, read_iceberg
from pipeline.annotate.manifest.from_tar import read_shards
from pipeline.annotate.manifest.rules import (
    BYTES,
    HEIGHT,
    ID,
    URI,
    WIDTH,
    Columns,
    ManifestError,
    ManifestParts,
    ReadUnit,
    check_carry,
    has_sizes,
    is_relative,
    side_lengths,
)
from pipeline.annotate.manifest.shards import SHARD_SUFFIXES, expand_braces
from pipeline.annotate.manifest.units import open_unit, pick, read_column, read_id_column, unit_row_namer
from pipeline.annotate.manifest.versions import MTIME, listed_versions, version_table
from pipeline.images.decode import IMAGE_SUFFIXES
from pipeline.lake.config import CATALOG_SCHEME
from pipeline.storage.errors import StorageError
from pipeline.storage.fetch.fetcher import Fetcher
from pipeline.storage.listing import PARQUET_SUFFIXES, is_folder, is_parquet, is_there, list_files
from pipeline.storage.streams import COMPRESSIONS
from pipeline.storage.uris import Uri, UriError, resolve
from pipeline.storage.versions import ObjectVersion, version_of_bytes
from pipeline.tables.arrow_types import without_views

_READERS: dict[str, Callable[[ManifestConfig, Uri], ManifestParts]] = {
    "csv": read_csv,
    "tsv": read_tsv,
    "list": read_list,
    "jsonl": read_jsonl,
    "coco": read_coco,
    "inventory": read_inventory,
    "delta": read_delta,
    "iceberg": read_iceberg,
}
# They list a folder, and are told what in it is none of the manifest's. So are tar shards, which are fetched besides.
_FOLDER_READERS: dict[str, Callable[[ManifestConfig, Uri, Collection[Uri]], ManifestParts]] = {
    "parquet": read_parquet,
    "folder": read_folder,
}
_SUFFIXES = dict.fromkeys(PARQUET_SUFFIXES, "parquet") | {
    ".metadata.json": "iceberg",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "list",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "coco",
    ".tar": "webdataset",
    ".tgz": "webdataset",
}
_TOLD_IN_HEADERS = r"(?i)\A(tar\+)?(s3[an]?|https?)://"
_BYTES_AT_ONCE = 256  # pictures, whose digests are made
_ARCHIVES = (".tbz2", ".zip", ".7z", ".rar")


@dataclass(frozen=True)
class Manifest:
    """A checked manifest. Small and picklable: tasks on other machines read with it, with their own credentials.

    Attributes:
        uri: what it was opened from.
        units: all row groups that have rows, in the order of files and rows.
        columns: names in the units' files.
        id_type: of the images' ids: ``int64`` or ``string``.
        carried: schema of the carried columns: the types of the source, but plain ones for its view types.
        image_root: what relative URIs are relative to.
        row_word: what the source calls a row: ``line`` of a text file, ``image`` of a list, ``row``.
        is_live: whether it was listed when it was opened, and is not older than that.
        version: of the table that was read, Delta's number or Iceberg's snapshot; ``""`` for what has none.
    """

    uri: Uri
    units: tuple[ReadUnit, ...]
    columns: Columns
    id_type: pa.DataType
    carried: pa.Schema
    image_root: Uri | None
    row_word: str = "row"
    is_live: bool = False
    version: str = ""

    @property
    def num_rows(self) -> int:
        """Images in the manifest."""
        return sum(unit.num_rows for unit in self.units)

    @property
    def schema(self) -> pa.Schema:
        """What :meth:`read_rows` yields."""
        fixed = [(ID, self.id_type), (URI, pa.string()), (BYTES, pa.binary())]
        return pa.schema([pa.field(*column) for column in fixed] + list(self.carried))

    def read_ids(self, unit: ReadUnit) -> pa.Array:
        """The ids of a unit's rows, of :attr:`id_type`; reads one column, all of it.

        Raises:
            ManifestError: a null or empty id, or the file is not what it was.
            OSError: it cannot be read; worth another try.
        """
        column = self.columns.id or self.columns.uri
        assert column is not None  # one of them is there, or the manifest was refused
        return read_id_column(unit, column, self.id_type)

    def name_row(self, unit: ReadUnit, index: int) -> str:
        """How messages call a row of a unit: by its place in what the user named, not in a copy of it.

        Raises:
            ManifestError, OSError: as `read_ids`.
        """
        if self.columns.number is None:
            return unit_row_namer(unit)(index)
        with open_unit(unit) as file:
            number = file.read_row_group(unit.row_group, columns=[self.columns.number]).column(0)[index]
        return f"{self.uri}, {self.row_word} {number}"

    def read_rows(
        self,
        unit: ReadUnit,
        rows: NDArray[np.bool_] | NDArray[np.integer],
        batch_rows: int = 1024,
        with_sizes: bool = False,
    ) -> Iterator[pa.Table]:
        """Stream some of a unit's rows, in their order, without holding more than two batches and a page of them.

        Args:
            unit: one of this manifest's :attr:`units`.
            rows: a mask over the unit's rows, or ascending indices.
            batch_rows: rows a table; the last one may have fewer.
            with_sizes: whether `HEIGHT` and `WIDTH` follow, int32 and 0 where the manifest does not say.

        Yields:
            Tables with :attr:`schema`: ``image_uri`` is absolute, or null; ``image_bytes`` is null where the
            image is to be fetched. A row may have both: the bytes are the image then.
        """
        chosen = _as_indices(rows, unit.num_rows)
        if not len(chosen):
            return
        waiting = None
        start = 0
        with open_unit(unit, stream=True) as file:
            sizes = [HEIGHT, WIDTH] if with_sizes and has_sizes(file.schema_arrow.names) else []
            names = list(dict.fromkeys([*self._column_names, *sizes]))
            batches = file.iter_batches(batch_size=batch_rows, row_groups=[unit.row_group], columns=names)
            for batch in batches:
                first, last = np.searchsorted(chosen, [start, start + batch.num_rows])
                if last > first:
                    used = pa.record_batch({name: pick(batch, name) for name in names})
                    some = without_views(used).take(pa.array(chosen[first:last] - start))
                    made = self._finish(some)
                    for name in (HEIGHT, WIDTH) if with_sizes else ():
                        none = np.zeros(len(some), np.int32)
                        made = made.append_column(name, side_lengths(some[name]) if sizes else pa.array(none))
                    waiting = made if waiting is None else pa.concat_tables([waiting, made])
                if waiting is not None and waiting.num_rows >= batch_rows:
                    yield waiting.slice(0, batch_rows).combine_chunks()
                    waiting = waiting.slice(batch_rows)
                start += batch.num_rows
                if last == len(chosen):
                    break
            if start <= chosen[-1]:
                raise ManifestError(
                    f"{unit.file} is damaged: row group {unit.row_group} gives {start} rows instead of {unit.num_rows}"
                )
        if waiting is not None and waiting.num_rows:
            yield waiting.combine_chunks()

    def read_sizes(self, unit: ReadUnit) -> NDArray[np.int64]:
        """Height and width of each of a unit's images, int64 ``(N, 2)``; 0 where the manifest does not say.

        Raises:
            ManifestError, OSError: as `read_ids`.
        """
        sizes = np.zeros((unit.num_rows, 2), np.int64)
        with open_unit(unit) as file:
            if has_sizes(file.schema_arrow.names):
                for i, name in enumerate((HEIGHT, WIDTH)):
                    column = file.read_row_group(unit.row_group, columns=[name])[name]
                    sizes[:, i] = side_lengths(column).to_numpy()
        return sizes

    def read_versions(self, unit: ReadUnit) -> pa.Table:
        """Which version of each of a unit's pictures the manifest speaks of, in `VERSION_COLUMNS`; null: not known.

        They are as the output would have them. Of a picture whose bytes stand in the row that is their digest; and of
        one on S3 or the web the time to the second, which is all that who reads it is told, whatever a listing says.

        Raises:
            ManifestError, OSError: as `read_ids`.
        """
        with open_unit(unit) as file:
            names = file.schema_arrow.names
            sources = {name: source for name, source in self.columns.versions.items() if names.count(source) == 1}
            table = file.read_row_group(unit.row_group, columns=list(dict.fromkeys(sources.values())))
            versions = version_table({name: table[source] for name, source in sources.items()}, unit.num_rows)
            if self.columns.uri is not None:
                versions = self._as_told(versions, lambda name: read_column(file, unit, name, pa.string()))
        return versions if self.columns.bytes is None else self._with_digests(unit, versions, self.columns.bytes)

    def _as_told(self, versions: pa.Table, read: Callable[[str], pa.Array]) -> pa.Table:
        times = versions[MTIME]
        seconds = pc.floor_temporal(times, unit="second")
        if not pc.any(pc.not_equal(times, seconds)).as_py():
            return versions
        assert self.columns.uri is not None
        by_header = pc.match_substring_regex(_absolute(read(self.columns.uri), self.image_root), _TOLD_IN_HEADERS)
        place = versions.column_names.index(MTIME)
        return versions.set_column(
            place, versions.schema.field(place), pc.if_else(pc.fill_null(by_header, False), seconds, times)
        )

    def _with_digests(self, unit: ReadUnit, versions: pa.Table, column: str) -> pa.Table:
        found: list[ObjectVersion | None] = []
        with open_unit(unit, stream=True) as file:
            for batch in file.iter_batches(_BYTES_AT_ONCE, row_groups=[unit.row_group], columns=[column]):
                contents = without_views(pa.record_batch({BYTES: pick(batch, column)}))[BYTES]
                found += [None if content is None else version_of_bytes(content) for content in contents.to_pylist()]
        own = listed_versions([version or ObjectVersion() for version in found])
        has_bytes = pa.array([version is not None for version in found])
        columns = [pc.if_else(has_bytes, own[name], versions[name]) for name in versions.column_names]
        return pa.table(columns, schema=versions.schema)

    def num_rows_within(self, unit: ReadUnit, num_bytes: int) -> int:
        """How many of a unit's first rows `read_rows` gets out of about so many bytes, going by the file's footer."""
        with open_unit(unit) as file:
            group = file.metadata.row_group(unit.row_group)
            chunks = [group.column(index) for index in range(group.num_columns)]
        names = tuple(f"{name}." for name in self._column_names)
        size = sum(chunk.total_compressed_size for chunk in chunks if f"{chunk.path_in_schema}.".startswith(names))
        return unit.num_rows * num_bytes // max(1, size)

    @property
    def _column_names(self) -> list[str]:
        names = (self.columns.id, self.columns.uri, self.columns.bytes, *self.carried.names)
        return list(dict.fromkeys(name for name in names if name is not None))

    def _finish(self, table: pa.Table) -> pa.Table:
        nulls = pa.nulls(table.num_rows)
        uris = table[self.columns.uri].cast(pa.string()).combine_chunks() if self.columns.uri else nulls
        contents = table[self.columns.bytes] if self.columns.bytes else nulls
        columns = {
            ID: table[self.columns.id] if self.columns.id else uris,
            URI: _absolute(uris, self.image_root),
            BYTES: contents,
            **{name: table[name] for name in self.carried.names},
        }
        arrays = [columns[field.name].cast(field.type) for field in self.schema]
        made = pa.table(arrays, schema=self.schema)
        made.validate(full=True)  # of text that is not UTF-8 the output could not be read
        return made


def open_manifest(
    config: ManifestConfig, scratch_uri: Uri, fetcher: Fetcher | None = None, output_uri: Uri | None = None
) -> Manifest:
    """Find out what the manifest is, check it, and cut it into units.

    Args:
        config: where it is and how to read it. If the manifest has no ``image_id``, the URI as it stands there is
            the id, and URIs with a query or credentials are refused: ids are written to the output. COCO
            JSON has ``id`` and ``file_name`` by default. Image bytes are read from Parquet only; a row that has
            them needs no URI.
        scratch_uri: a folder for the Parquet copy of anything that is not Parquet, reachable by all tasks;
            files of an earlier copy are overwritten. Whoever calls this removes it when the run is over.
        fetcher: as the run reads its pictures; tar shards are indexed with it.
        output_uri: of the run. Where it lies in the folder that is the manifest, its files are no part of that.

    Raises:
        ManifestError: the manifest cannot be used; the message says where and why.
    """
    check_carry(config.carry)
    try:
        if config.image_root is not None:
            config.image_root.join("x")
        outside = () if output_uri is None else (output_uri,)
        kind = config.format if config.format != "auto" else _guess_format(config.uri, outside)
        if config.format != "auto" and not config.uri.is_http:  # which has no folders, and may answer to GET alone
            _check_place(config.uri, kind)
        if kind in TABLE_FORMATS and output_uri is not None and output_uri.is_below(config.uri):
            raise ManifestError(IN_A_TABLE)
        if kind == "webdataset":
            found = read_shards(config, scratch_uri, fetcher or Fetcher(), outside)
        elif kind in _FOLDER_READERS:
            found = _FOLDER_READERS[kind](config, scratch_uri, outside)
        else:
            found = _READERS[kind](config, scratch_uri)
    except UriError as error:
        raise ManifestError(f"manifest: {error}") from None
    except StorageError as error:
        raise ManifestError(str(error)) from None
    root = found.image_root and found.image_root.absolute()
    described = (found.units, found.columns, found.id_type, found.carried, root, found.row_word)
    manifest = Manifest(config.uri, *described, is_live=kind in ("folder", "webdataset"), version=found.version)
    if not manifest.num_rows:
        raise ManifestError(f"{config.uri} has no row: there is nothing to do")
    return manifest


def _check_place(uri: Uri, kind: str) -> None:
    """Whether a file is where one is wanted, and a folder where that is."""
    if kind in ("parquet", "inventory", "iceberg", "webdataset"):
        return
    if is_folder(uri) != (kind in ("folder", "delta")):
        found = "file" if kind in ("folder", "delta") else "folder"
        raise ManifestError(f"{uri} is a {found}, and manifest.format is {kind}: set manifest.format: auto")


def _guess_format(uri: Uri, outside: Collection[Uri]) -> str:
    if uri.scheme == CATALOG_SCHEME:
        return "iceberg"
    path = uri.path.lower()
    if path.endswith(SHARD_SUFFIXES) and len(expand_braces(uri.secret_text)) > 1:
        return "webdataset"
    for compression in COMPRESSIONS:
        path = path.removesuffix(compression)
    for suffix, kind in _SUFFIXES.items():
        if path.endswith(suffix) and not is_folder(uri):
            return kind
    if not is_folder(uri):
        raise ManifestError(f"{uri}: {_why_unknown(path)}")
    for name, kind in (("_delta_log", "delta"), ("metadata/version-hint.text", "iceberg")):
        if is_there(uri / name):
            return kind
    has_shards = False
    for name, _ in list_files(uri, outside):
        if is_parquet(name):
            return "parquet"
        if name.lower().endswith(IMAGE_SUFFIXES):
            return "folder"
        has_shards |= name.lower().endswith(SHARD_SUFFIXES)
    return "webdataset" if has_shards else "folder"


def _why_unknown(path: str) -> str:
    """Of a file with a suffix that is not known, and what there is instead; ``path`` in lower case, not compressed."""
    if path.endswith(_ARCHIVES):
        return (
            "of archives only tar shards are read: unpack it and name the folder of pictures, pack them as .tar, or "
            "write them to Parquet, with the columns image_id and image_bytes"
        )
    if path.endswith(IMAGE_SUFFIXES):
        return "a picture is no manifest: name its folder"
    kinds: dict[str, list[str]] = {}
    for suffix, kind in _SUFFIXES.items():
        kinds.setdefault(kind, []).append(suffix)
    known = ", ".join(f"{kind} ({' '.join(suffixes)})" for kind, suffixes in kinds.items())
    return f"its suffix does not tell its format: set manifest.format to one of {known}; or name a folder of pictures"


def _as_indices(rows: NDArray[np.bool_] | NDArray[np.integer], num_rows: int) -> NDArray[np.int64]:
    if rows.dtype == np.bool_:
        if len(rows) != num_rows:
            raise ValueError(f"a mask of {len(rows)} rows for a unit of {num_rows}")
        return np.flatnonzero(rows)
    indices = rows.astype(np.int64)
    if len(indices) and (indices[0] < 0 or indices[-1] >= num_rows or np.any(np.diff(indices) <= 0)):
        raise ValueError(f"row indices must ascend and lie within 0..{num_rows - 1}")
    return indices


def _absolute(uris: pa.Array, root: Uri | None) -> pa.Array:
    """Joined with the root. What cannot be joined is the label of a row with bytes, and stays as it is."""
    if not pc.any(is_relative(uris.cast(pa.string()))).as_py():
        return uris

    def join_one(uri: str | None) -> str | None:
        try:
            return resolve(uri, root).secret_text if uri else uri
        except UriError:
            return uri

    return pa.array([join_one(uri) for uri in uris.to_pylist()], pa.string())

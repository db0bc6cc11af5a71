"""An S3 Inventory as a manifest: the list of a bucket's objects that S3 writes every day or week, CSV or Parquet.

It costs no listing: of a bucket with a billion keys it is a few thousand files.
"""

from __future__ import annotations

import json
import logging
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from pipeline.annotate.config import ManifestConfig
from pipeline.annotate.manifest.from_folder import id_and_uri
from pipeline.annotate.manifest.parquet_copy import UnitWriter
from pipeline.annotate.manifest.rules import ID, URI, Columns, ManifestError, ManifestParts
from pipeline.annotate.manifest.units import open_file
from pipeline.annotate.manifest.versions import COPIED, ETAG, MTIME, SIZE, named_by_user, version_table
from pipeline.images.left_out import LeftOut
from pipeline.storage.errors import cannot_read, explained
from pipeline.storage.listing import is_folder, is_hidden
from pipeline.storage.objects.open import open_objects
from pipeline.storage.streams import open_stream
from pipeline.storage.uris import Uri

NAME = "manifest.json"

_ARN = "arn:aws:s3:::"
_DATED = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\dZ")  # a folder for each time that S3 wrote the inventory
_DATA_FOLDER = "data"
_ROWS_AT_ONCE = 1 << 16
# Columns by their names without case and underscores, which CSV and Parquet have in two ways.
_KEY, _LATEST, _MARKER, _VERSION_ID = "key", "islatest", "isdeletemarker", "versionid"
_VERSIONS = {ETAG: "etag", SIZE: "size", MTIME: "lastmodifieddate"}
_READ = {_KEY, _LATEST, _MARKER, *_VERSIONS.values()}

logger = logging.getLogger(__name__)


def read_inventory(config: ManifestConfig, scratch_uri: Uri) -> ManifestParts:
    """The pictures of a bucket as its inventory lists them; the ids are their keys, as a folder of the bucket has them.

    Latest versions only, without delete markers. Pictures are told by their suffixes, and hidden ones are skipped, as
    in a folder. With an ``image_root`` in the bucket those below it count, and the ids are relative to it.
    """
    if config.carry or named_by_user(config):
        raise ManifestError(f"{config.uri} is an S3 Inventory: its columns are known, and none can be carried")
    inventory = _open(config.uri)
    root = Uri(f"s3://{inventory.bucket}") if config.image_root is None else config.image_root
    if root.scheme != "s3" or root.host != inventory.bucket:
        raise ManifestError(f"image_root must be in the bucket of the inventory, s3://{inventory.bucket}, not {root}")
    prefix = f"{root.path.strip('/')}/" if root.path.strip("/") else ""
    left_out = LeftOut()
    with UnitWriter(scratch_uri) as writer:
        for rows in inventory.rows():
            writer.write(_pictures(rows, root, prefix, inventory.is_encoded, left_out))
    if not writer.units:
        raise ManifestError(f"{inventory.uri} lists no image{f'; {left_out}' if left_out.count else ''}")
    if left_out.count:
        logger.warning("%s: %s", inventory.uri, left_out)
    columns = Columns(ID, URI, None, versions=COPIED)
    return ManifestParts(writer.units, columns, pa.string(), pa.schema([]), root)


@dataclass(frozen=True)
class _Inventory:
    """What a ``manifest.json`` says.

    Attributes:
        uri: of that file.
        bucket: whose objects are listed.
        files: of the list, in its order.
        names: of their columns as Parquet or CSV has them, by those without case and underscores.
        is_csv: or else Parquet.
    """

    uri: Uri
    bucket: str
    files: tuple[Uri, ...]
    names: Mapping[str, str]
    is_csv: bool

    @property
    def is_encoded(self) -> bool:
        """Whether keys stand there as in a URL, with ``+`` for a space."""
        return self.is_csv

    def rows(self) -> Iterator[pa.Table]:
        """Those that are the latest of their key, and no delete markers; columns of `_READ` that there are.

        Raises:
            ManifestError, StorageError: a file cannot be read, or is not what the manifest says.
        """
        for file in self.files:
            for table in self._csv(file) if self.is_csv else self._parquet(file):
                kept = pc.and_(_flags(table, _LATEST, True), pc.invert(_flags(table, _MARKER, False)))
                yield table.filter(kept)

    def _csv(self, file: Uri) -> Iterator[pa.Table]:
        wanted = [name for name in self.names if name in _READ]
        try:
            with open_stream(file) as stream:
                reader = pacsv.open_csv(
                    stream,
                    read_options=pacsv.ReadOptions(column_names=list(self.names)),
                    convert_options=pacsv.ConvertOptions(
                        include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string())
                    ),
                )
                with reader:
                    yield from (pa.Table.from_batches([batch]) for batch in reader)
        except pa.ArrowException as error:
            if "Empty CSV" in str(error):
                return
            raise cannot_read(file, error) from None

    def _parquet(self, file: Uri) -> Iterator[pa.Table]:
        wanted = {name: stored for name, stored in self.names.items() if name in _READ}
        try:
            with explained(file), open_file(file) as parquet:
                missing = sorted(set(wanted.values()) - set(parquet.schema_arrow.names))
                if missing:
                    raise ManifestError(f"{file} has no column {missing[0]!r}, which {self.uri} says it has")
                for batch in parquet.iter_batches(_ROWS_AT_ONCE, columns=list(wanted.values())):
                    yield pa.table({name: batch[stored] for name, stored in wanted.items()})
        except OSError as error:
            raise cannot_read(file, error) from None


def _open(uri: Uri) -> _Inventory:
    if is_folder(uri):
        uri = _newest(uri)
    with open_stream(uri) as stream:
        text = stream.read()
    try:
        content = json.loads(text)
        kind, columns, bucket = content["fileFormat"], content["fileSchema"], content["sourceBucket"]
        keys = [file["key"] for file in content["files"]]
        target = content.get("destinationBucket", "").removeprefix(_ARN)
        names = _csv_names(columns) if kind == "CSV" else _parquet_names(columns)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ManifestError(
            f"{uri} is not the {NAME} of an S3 Inventory: it has no sourceBucket, fileFormat, fileSchema and files"
        ) from None
    if kind not in ("CSV", "Parquet"):
        raise ManifestError(f"{uri}: its files are {kind}; have the inventory written as Parquet or CSV")
    if _KEY not in names:
        raise ManifestError(f"{uri}: its fileSchema has no key: {columns}")
    if _VERSION_ID in names and not {_LATEST, _MARKER} <= names.keys():
        raise ManifestError(
            f"{uri} lists all versions and does not say which is the latest: have it list current versions only"
        )
    if uri.scheme == "s3" and uri.host == target:
        files = [Uri(f"s3://{target}/{key}") for key in keys]
    else:  # a copy, which lies together as S3 lays it out
        folder = Uri(posixpath.dirname(posixpath.dirname(uri.absolute().secret_text))) / _DATA_FOLDER
        files = [folder / posixpath.basename(key) for key in keys]
    return _Inventory(uri, bucket, tuple(files), names, kind == "CSV")


def _newest(folder: Uri) -> Uri:
    """The newest inventory of a folder in which S3 writes one after the other."""
    objects = open_objects(folder)
    for name in sorted(filter(_DATED.fullmatch, objects.list("").folders), reverse=True):
        if any(file.name == NAME for file in objects.list(name).files):
            return folder / name / NAME
    raise ManifestError(
        f"{folder} holds no S3 Inventory: give its {NAME}, or the folder of its configuration, with a folder like "
        "2026-05-04T01-00Z for each"
    )


def _csv_names(schema: str) -> dict[str, str]:
    return {_plain(name): name.strip() for name in schema.split(",")}


def _parquet_names(schema: str) -> dict[str, str]:
    return {_plain(name): name for name in re.findall(r"\b(?:required|optional)\s+\w+\s+(\w+)", schema)}


def _plain(name: str) -> str:
    return name.strip().replace("_", "").lower()


def _flags(table: pa.Table, name: str, default: bool) -> pa.Array:
    if name not in table.column_names:
        return pa.repeat(default, len(table))
    values = table[name].combine_chunks()
    if pa.types.is_string(values.type):
        values = pc.equal(pc.utf8_lower(values), "true")
    return pc.fill_null(values, default)


def _pictures(rows: pa.Table, root: Uri, prefix: str, is_encoded: bool, left_out: LeftOut) -> pa.Table:
    kept: list[int] = []
    named: list[tuple[str, str]] = []
    for i, key in enumerate(rows[_KEY].to_pylist()):
        if is_encoded and key and ("%" in key or "+" in key):
            key = unquote_plus(key)
        if not key or key.endswith("/") or not key.startswith(prefix) or is_hidden(path := key[len(prefix) :]):
            continue
        if not left_out.takes(path):
            kept.append(i)
            named.append(id_and_uri(root, path))
    columns: dict[str, Any] = {
        ID: pa.array([image_id for image_id, _ in named], pa.string()),
        URI: pa.array([uri for _, uri in named], pa.string()),
    }
    chosen = rows.take(pa.array(kept, pa.int64()))
    versions = version_table(
        {name: chosen[source] for name, source in _VERSIONS.items() if source in chosen.column_names}, len(chosen)
    )
    return pa.table({**columns, **{name: versions[name] for name in versions.column_names}})

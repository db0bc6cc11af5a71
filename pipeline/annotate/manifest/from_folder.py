"""A folder of images as a manifest."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pyarrow as pa

from pipeline.annotate.manifest.parquet_copy import ROW_GROUP_ROWS, UnitWriter
from pipeline.annotate.manifest.rules import URI, Columns, ManifestError, Opened, Spec
from pipeline.storage.listing import IMAGE_SUFFIXES, PARQUET_SUFFIXES, list_files, plain_root
from pipeline.storage.uris import redact


def read_folder(spec: Spec, scratch_uri: str) -> Opened:
    """All images below a folder or prefix, in the order of their paths; the ids are the paths in the folder.

    Told by their suffixes. Hidden files and folders are skipped, and so is the scratch folder.
    """
    root = plain_root(spec.uri)
    if spec.carry:
        raise ManifestError(f"{redact(spec.uri)} is a folder of images: it has no columns to carry")
    if spec.image_root and plain_root(spec.image_root) != root:
        raise ManifestError("image_root has no meaning for a folder of images: leave it out")
    images = _only_images(list_files(spec.uri, scratch_uri), spec)
    with UnitWriter(scratch_uri) as writer:
        while chunk := list(islice(images, ROW_GROUP_ROWS)):
            writer.write(pa.table({URI: pa.array(chunk, pa.string())}))
    return Opened(writer.units, Columns(None, URI, None), pa.string(), pa.schema([]), root)


def _only_images(paths: Iterator[str], spec: Spec) -> Iterator[str]:
    for path in paths:
        if path.lower().endswith(IMAGE_SUFFIXES):
            yield path
        elif spec.format == "auto" and path.lower().endswith(PARQUET_SUFFIXES):
            raise ManifestError(f"{redact(spec.uri)} holds Parquet files and images: set the manifest's format")

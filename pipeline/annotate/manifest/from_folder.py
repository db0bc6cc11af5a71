"""A folder of images as a manifest."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pyarrow as pa

from pipeline.annotate.config import ManifestConfig
from pipeline.annotate.manifest.parquet_copy import ROW_GROUP_ROWS, UnitWriter
from pipeline.annotate.manifest.rules import URI, Columns, ManifestError, ManifestParts
from pipeline.images.decode import IMAGE_SUFFIXES
from pipeline.storage.listing import PARQUET_SUFFIXES, list_files
from pipeline.storage.uris import Uri


def read_folder(config: ManifestConfig, scratch_uri: Uri) -> ManifestParts:
    """All images below a folder or prefix, in the order of their paths; the ids are the paths in the folder.

    Told by their suffixes. Hidden files and folders are skipped, and so is the scratch folder.
    """
    if config.carry:
        raise ManifestError(f"{config.uri} is a folder of images: it has no columns to carry")
    if config.image_root is not None and not config.image_root.is_at(config.uri):
        raise ManifestError("image_root has no meaning for a folder of images: leave it out")
    images = _only_images(list_files(config.uri, scratch_uri), config)
    with UnitWriter(scratch_uri) as writer:
        while chunk := list(islice(images, ROW_GROUP_ROWS)):
            writer.write(pa.table({URI: pa.array(chunk, pa.string())}))
    return ManifestParts(writer.units, Columns(None, URI, None), pa.string(), pa.schema([]), config.uri)


def _only_images(paths: Iterator[str], config: ManifestConfig) -> Iterator[str]:
    for path in paths:
        if path.lower().endswith(IMAGE_SUFFIXES):
            yield path
        elif config.format == "auto" and path.lower().endswith(PARQUET_SUFFIXES):
            raise ManifestError(f"{config.uri} holds Parquet files and images: set the manifest's format")

"""A folder of images as a manifest."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator
from itertools import islice
from urllib.parse import quote

import pyarrow as pa

from pipeline.annotate.config import ManifestConfig
from pipeline.annotate.manifest.parquet_copy import ROW_GROUP_ROWS, UnitWriter
from pipeline.annotate.manifest.rules import ID, UNSHOWABLE, URI, Columns, ManifestError, ManifestParts
from pipeline.annotate.manifest.versions import COPIED, listed_versions, named_by_user
from pipeline.images.left_out import LeftOut
from pipeline.storage.listing import PARQUET_SUFFIXES, ListedFile, list_files
from pipeline.storage.uris import Uri

logger = logging.getLogger(__name__)


def read_folder(config: ManifestConfig, scratch_uri: Uri, outside: Collection[Uri] = ()) -> ManifestParts:
    """All images below a folder or prefix, in the order of their paths; the ids are the paths in the folder.

    Told by their suffixes; others are counted, and the log says so. Hidden files and folders are skipped, and so are
    the scratch folder and those outside. Names are taken as they are, keys of object stores to the letter. A local name
    that is not UTF-8, or holds control characters, is written as a file URI writes it: the image ``b\\xff.jpg`` has the
    id ``./b%FF.jpg``, and no other has it.
    """
    if config.carry or named_by_user(config):
        raise ManifestError(f"{config.uri} is a folder of images: it has no columns")
    if config.image_root is not None and not config.image_root.is_at(config.uri):
        raise ManifestError("image_root has no meaning for a folder of images: leave it out")
    left_out = LeftOut()
    root = config.uri.absolute()
    listed = list_files(config.uri, (scratch_uri, *outside), with_versions=config.compare != "none")
    images = _only_images(listed, config, left_out)
    with UnitWriter(scratch_uri) as writer:
        while chunk := list(islice(images, ROW_GROUP_ROWS)):
            ids, uris = zip(*(id_and_uri(root, file.path) for file in chunk), strict=True)
            versions = listed_versions([file.version for file in chunk])
            named = {ID: pa.array(ids, pa.string()), URI: pa.array(uris, pa.string())}
            writer.write(pa.table({**named, **{name: versions[name] for name in versions.column_names}}))
    if not writer.units:
        raise ManifestError(f"{config.uri} has no image{f'; {left_out}' if left_out.count else ''}")
    if left_out.count:
        logger.warning("%s: %s", config.uri, left_out)
    return ManifestParts(writer.units, Columns(ID, URI, None, versions=COPIED), pa.string(), pa.schema([]), config.uri)


def _only_images(files: Iterator[ListedFile], config: ManifestConfig, left_out: LeftOut) -> Iterator[ListedFile]:
    for file in files:
        if not left_out.takes(file.path):
            yield file
        elif config.format == "auto" and file.path.lower().endswith(PARQUET_SUFFIXES):
            raise ManifestError(f"{config.uri} holds Parquet files and images: set the manifest's format")


def id_and_uri(root: Uri, path: str) -> tuple[str, str]:
    """Of the image at a path below the root. The URI is absolute: a key that looks like one would be taken for it."""
    if not UNSHOWABLE.search(path):
        return path, root.below(path)
    quoted = quote(os.fsencode(path))
    if root.local_path is None:
        return f"./{quoted}", root.below(quoted)
    # No path in the listing of a local folder begins with "./".
    return f"./{quoted}", f"file://{quote(os.fsencode(root.local_path.rstrip('/')))}/{quoted}"

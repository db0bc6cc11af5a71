"""Writing manifests, reading them back, and refusing bad ones."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.annotate.config import ManifestConfig
from pipeline.annotate.manifest.open import Manifest, open_manifest
from pipeline.annotate.manifest.rules import ManifestError
from pipeline.storage.uris import Uri


def read_all(manifest: Manifest, batch_rows: int = 1024) -> list[dict[str, Any]]:
    tables = [
        table for unit in manifest.units for table in manifest.read_rows(unit, np.ones(unit.num_rows, bool), batch_rows)
    ]
    assert all(table.schema == manifest.schema for table in tables)
    return pa.concat_tables(tables).to_pylist()


def read_all_ids(manifest: Manifest) -> list[int | str]:
    arrays = [manifest.read_ids(unit) for unit in manifest.units]
    assert all(array.type == manifest.id_type for array in arrays)
    return [value for array in arrays for value in array.to_pylist()]


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


def parquet(**columns: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


# name: (file name, content, fields of the description, words of the message)
BadManifests = dict[str, tuple[str, bytes, dict[str, Any], str]]


def each_of(cases: BadManifests) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [pytest.param(case, id=key) for key, case in cases.items()])


def check_refused(folder: Path, case: tuple[str, bytes, dict[str, Any], str]) -> None:
    name, content, fields, message = case
    spec = ManifestConfig(uri=write(folder / name, content), **fields)
    with pytest.raises(ManifestError, match=message):
        open_manifest(spec, Uri(str(folder / "scratch")))


def tar(members: dict[str, bytes] | list[tuple[str, bytes]], format: int = tarfile.GNU_FORMAT) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=format) as file:
        for name, content in members.items() if isinstance(members, dict) else members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    return sink.getvalue()


def idx(content: bytes, version: str = "v1.2") -> bytes:
    """The index of a shard as DALI describes it: a line a sample, of each member extension, offset, size, name."""
    samples: dict[str, list[str]] = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as file:
        for entry in file:
            key, _, extension = entry.name.partition(".")
            fields = [extension, str(entry.offset_data), str(entry.size), *([entry.name] if version == "v1.2" else [])]
            samples.setdefault(key, []).extend(fields)
    return "".join(f"{line}\n" for line in (f"{version} {len(samples)}", *map(" ".join, samples.values()))).encode()

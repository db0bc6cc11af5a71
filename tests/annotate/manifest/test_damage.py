"""Manifests of every kind, cut off and with bits turned over: opened with all rows, or refused by name."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import http.server
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.annotate.config import ManifestConfig
from pipeline.annotate.manifest.open import open_manifest
from pipeline.annotate.manifest.rules import ManifestError
from pipeline.annotate.pending.antijoin import find_pending
from pipeline.storage.uris import Uri
from testing.web import serving
from tests.annotate.manifest.manifest_cases import read_all, write

NUM_ROWS = 300
ROWS = [{"image_id": i, "image_uri": f"/data/{i:05d}.jpg", "k": f"text, {i % 7}"} for i in range(NUM_ROWS)]


def _csv() -> bytes:
    lines = [f'{row["image_id"]},{row["image_uri"]},"{row["k"]}"' for row in ROWS]
    return "\n".join(["image_id,image_uri,k", *lines, ""]).encode()


def _tsv() -> bytes:
    lines = [f'{row["image_id"]}\t{row["image_uri"]}\t"{row["k"]}"' for row in ROWS]
    return "\n".join(["image_id\timage_uri\tk", *lines, ""]).encode()


def _list() -> bytes:
    return "".join(f"{row['image_uri']}\n" for row in ROWS).encode()


def _jsonl() -> bytes:
    return "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def _coco() -> bytes:
    images = [{"id": row["image_id"], "file_name": row["image_uri"], "k": row["k"]} for row in ROWS]
    return json.dumps({"images": images, "annotations": [{"image_id": 1, "category_id": 1}]}).encode()


def _parquet(**options: object) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ROWS), sink, row_group_size=100, **options)
    return sink.getvalue().to_pybytes()


def _zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


PLAIN = {"csv": _csv, "tsv": _tsv, "txt": _list, "jsonl": _jsonl, "json": _coco}
COMPRESSED: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "bz2": bz2.compress, "zst": _zstd}
KINDS = {f"m.{kind}": make() for kind, make in PLAIN.items()}
KINDS |= {f"m.{kind}.{suffix}": pack(make()) for kind, make in PLAIN.items() for suffix, pack in COMPRESSED.items()}
LARGE = _parquet(compression="none", use_dictionary=False) + bytes(12 << 20) + b"PAR1"  # more than a read takes
KINDS |= {"m.parquet": _parquet(write_page_checksum=True, use_dictionary=False), "n.parquet": _parquet()}


def _count_or_reason(path: str, scratch: Uri) -> int | str:
    """Rows that are there to the last; or the message, which names the file."""
    try:
        carry = () if ".txt" in path else ("k",)
        manifest = open_manifest(ManifestConfig(uri=path, carry=carry), scratch)
        find_pending(manifest, [])
        return len(read_all(manifest))
    except ManifestError as error:
        return str(error)


@pytest.mark.parametrize("name", KINDS)
def test_whole_ones_are_read(tmp_path: Path, scratch: Uri, name: str) -> None:
    assert _count_or_reason(write(tmp_path / name, KINDS[name]), scratch) == NUM_ROWS


@pytest.mark.parametrize("name", KINDS)
def test_cut_off(tmp_path: Path, scratch: Uri, name: str) -> None:
    content = KINDS[name]
    for length in sorted({*range(1, len(content), len(content) // 25), len(content) - 1, len(content) - 4}):
        found = _count_or_reason(path := write(tmp_path / name, content[:length]), scratch)
        if isinstance(found, int):  # text that ends between two rows
            assert name in ("m.csv", "m.tsv", "m.txt", "m.jsonl")
            header = name in ("m.csv", "m.tsv")
            assert found == (content[:length].rstrip(b"\n") + b"\n").count(b"\n") - header
        else:
            assert path in found


@pytest.mark.parametrize("name", KINDS)
def test_bits_turned_over(tmp_path: Path, scratch: Uri, name: str) -> None:
    draw = random.Random(name)
    for _ in range(40):
        content = bytearray(KINDS[name])
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        found = _count_or_reason(path := write(tmp_path / name, bytes(content)), scratch)
        # Of a plain list nobody can tell that a line was cut in two.
        num_rows = len(content.splitlines()) if name == "m.txt" else NUM_ROWS
        assert found == num_rows or (isinstance(found, str) and path in found)


@pytest.mark.parametrize("name", ["m.parquet", "n.parquet"])
def test_every_byte_of_a_footer(tmp_path: Path, scratch: Uri, name: str) -> None:
    content = KINDS[name]
    length = int.from_bytes(content[-8:-4], "little") + 8
    for at in range(len(content) - length, len(content), 13):  # pyarrow's own view of some of these ends the process
        broken = bytearray(content)
        broken[at] ^= 1 << at % 8
        found = _count_or_reason(path := write(tmp_path / name, bytes(broken)), scratch)
        assert found == NUM_ROWS or (isinstance(found, str) and path in found)


@pytest.mark.parametrize("name", ["m.CSV.GZ", "m.jsonl.Bz2"])
def test_a_suffix_in_capitals(tmp_path: Path, scratch: Uri, name: str) -> None:
    assert _count_or_reason(write(tmp_path / name, KINDS[name.lower()]), scratch) == NUM_ROWS


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"no gzip at all" * 9, bytes(1000)], ids=["empty", "magic", "text", "0"]
)
@pytest.mark.parametrize("name", KINDS)
def test_something_else(tmp_path: Path, scratch: Uri, name: str, content: bytes) -> None:
    found = _count_or_reason(path := write(tmp_path / name, content), scratch)
    assert isinstance(found, str)
    assert path in found


@pytest.mark.parametrize("name", ["m.jsonl", "m.json"])
def test_deep_nesting(tmp_path: Path, scratch: Uri, name: str) -> None:
    found = _count_or_reason(write(tmp_path / name, b'{"images":' + b"[" * 200_000), scratch)
    assert "nested too deeply" in str(found)


class _NoRanges(http.server.BaseHTTPRequestHandler):
    """``/sized`` says how long the file is, ``/none`` also that there are no ranges, ``/unsized`` nothing."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        if "/unsized" not in self.path:
            self.send_header("Content-Length", str(len(LARGE)))
        if "/none" in self.path:
            self.send_header("Accept-Ranges", "none")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        with contextlib.suppress(OSError):
            self.wfile.write(LARGE)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[str]:
    with serving(_NoRanges) as url:
        yield url


@pytest.mark.parametrize("how", ["sized", "none", "unsized"])
def test_parquet_from_a_server_without_ranges(web: str, scratch: Uri, how: str) -> None:
    found = _count_or_reason(f"{web}/{how}/m.parquet?sig=secret", scratch)
    assert f"{web}/{how}/m.parquet cannot be read" in str(found)
    assert "try a copy on a disk or in a store" in str(found)
    assert "secret" not in str(found)

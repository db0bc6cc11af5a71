from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.annotate.config import ManifestConfig
from pipeline.annotate.manifest import from_json, parquet_copy
from pipeline.annotate.manifest.open import open_manifest
from pipeline.storage.uris import Uri
from tests.annotate.manifest.manifest_cases import (
    BadManifests,
    check_refused,
    each_of,
    read_all,
    read_all_ids,
    write,
)


class TestJsonLines:
    def test_types_come_from_all_lines(self, tmp_path: Path, scratch: Uri, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(parquet_copy, "ROW_GROUP_ROWS", 2)
        monkeypatch.setattr(from_json, "ROW_GROUP_ROWS", 2)
        records: list[dict[str, Any]] = [
            {"image_id": 3, "image_uri": "/3", "score": None, "meta": {"a": 1}},
            {"image_id": 1, "image_uri": "/1"},
            {"image_id": 2, "image_uri": "/2", "score": 1, "meta": {"a": 2}, "never": None},
            {"image_id": 4, "image_uri": "/4", "score": 2, "meta": {"a": 3, "b": "x"}},
            {"image_id": 5, "image_uri": "/5", "score": 0.5, "tags": ["t"]},
        ]
        text = "\n\n".join(map(json.dumps, records))
        spec = ManifestConfig(uri=write(tmp_path / "m.jsonl", text), carry=("score", "meta", "tags", "never"))
        manifest = open_manifest(spec, scratch)
        assert manifest.carried == pa.schema(
            [
                ("score", pa.float64()),
                ("meta", pa.struct([("a", pa.int64()), ("b", pa.string())])),
                ("tags", pa.list_(pa.string())),
                ("never", pa.string()),
            ]
        )
        rows = read_all(manifest)
        assert [row["image_id"] for row in rows] == [3, 1, 2, 4, 5]
        assert [row["score"] for row in rows] == [None, None, 1.0, 2.0, 0.5]
        assert [row["meta"] for row in rows][2:] == [{"a": 2, "b": None}, {"a": 3, "b": "x"}, None]
        assert [row["tags"] for row in rows] == [None] * 4 + [["t"]]

    def test_dates_and_numbers_in_strings_stay_strings(self, tmp_path: Path, scratch: Uri) -> None:
        text = '{"image_id": "2020-01-01", "image_uri": "/a"}\n{"image_id": "007", "image_uri": "/b"}\n'
        manifest = open_manifest(ManifestConfig(uri=write(tmp_path / "m.ndjson", text)), scratch)
        assert read_all_ids(manifest) == ["2020-01-01", "007"]


class TestCoco:
    def test_images(self, tmp_path: Path, scratch: Uri) -> None:
        content = {
            "images": [
                {"id": 9, "file_name": "a/9.jpg", "height": 3, "license": 1, "coco_url": "http://host/9"},
                {"id": 4, "file_name": "4.jpg", "height": 5, "license": None, "coco_url": "http://host/4"},
            ],
            "annotations": [{"id": 1, "image_id": 9, "category_id": 1, "segmentation": {"size": [1, 1]}}],
        }
        path = write(tmp_path / "m.json", json.dumps(content))
        manifest = open_manifest(ManifestConfig(uri=path, image_root="/data", carry=("license",)), scratch)
        assert [tuple(row.values()) for row in read_all(manifest)] == [
            (9, "/data/a/9.jpg", None, 1),
            (4, "/data/4.jpg", None, None),
        ]
        manifest = open_manifest(ManifestConfig(uri=path, uri_column="coco_url", id_column="file_name"), scratch)
        assert [tuple(row.values())[:2] for row in read_all(manifest)] == [
            ("a/9.jpg", "http://host/9"),
            ("4.jpg", "http://host/4"),
        ]


BAD_MANIFESTS: BadManifests = {
    "jsonl: empty file": ("m.jsonl", b"\n", {}, "is empty"),
    "jsonl: not JSON": ("m.jsonl", b'{"image_uri": "/a"}\n{"image_uri"\n', {}, "line 2: not JSON"),
    "jsonl: not UTF-8": ("m.jsonl", b'{"image_uri": "\xff"}\n', {}, "line 1: not JSON: not UTF-8"),
    "jsonl: not an object": ("m.jsonl", b"[1]\n", {}, "line 1: a list, not an object"),
    "jsonl: no uri key": ("m.jsonl", b'{"uri": "/a"}\n', {}, "no column 'image_uri'; it has: uri"),
    "jsonl: uri missing later": ("m.jsonl", b'{"image_uri": "/a"}\n\n{}\n', {}, "line 3: the image URI is null"),
    "jsonl: uri a number": ("m.jsonl", b'{"image_uri": 1}\n', {}, "line 1: 'image_uri' must be a string, not int"),
    "jsonl: bool id": ("m.jsonl", b'{"image_id": true, "image_uri": "/a"}', {}, "line 1: .* not bool"),
    "jsonl: float id": ("m.jsonl", b'{"image_id": 1.0, "image_uri": "/a"}', {}, "line 1: .* not float"),
    "jsonl: id null": ("m.jsonl", b'{"image_id": null, "image_uri": "/a"}', {}, "line 1: the id is null"),
    "jsonl: id of 65 bits": (
        "m.jsonl",
        b'{"image_id": 9223372036854775808, "image_uri": "/"}',
        {},
        "line 1: .* 64 bits",
    ),
    "jsonl: two id types": (
        "m.jsonl",
        b'{"image_id": 1, "image_uri": "/a"}\n{"image_id": "2", "image_uri": "/b"}',
        {},
        "line 2: .* str here, int64 before",
    ),
    "jsonl: ids from line 2 on": (
        "m.jsonl",
        b'{"image_uri":"/a"}\n{"image_uri":"/b","image_id":1}',
        {},
        "line 2: it has",
    ),
    "jsonl: lone surrogate": ("m.jsonl", b'{"image_uri": "/a"}\n{"image_uri": "/\\ud800"}', {}, "line 2: .* Unicode"),
    "jsonl: carried types clash": (
        "m.jsonl",
        b'{"image_uri": "/a", "k": 1}\n{"image_uri": "/b", "k": "x"}',
        {"carry": ("k",)},
        r"'k' holds values that no one type can hold \(int, str\)",
    ),
    "jsonl: carried nowhere": ("m.jsonl", b'{"image_uri": "/a"}', {"carry": ("k",)}, "no column 'k'"),
    "coco: not JSON": ("m.json", b"{", {}, "is not JSON"),
    "coco: a list": ("m.json", b"[]", {}, "no list 'images'"),
    "coco: no images": ("m.json", b'{"images": []}', {}, "has no row"),
    "coco: no file name": ("m.json", b'{"images": [{"id": 1}]}', {}, "no column 'file_name'; it has: id"),
    "coco: second without id": (
        "m.json",
        b'{"images": [{"id": 1, "file_name": "/a"}, {"file_name": "/b"}]}',
        {},
        "image 2: the id is null",
    ),
}


@each_of(BAD_MANIFESTS)
def test_bad_manifests(tmp_path: Path, case: Any) -> None:
    check_refused(tmp_path, case)


def test_file_names_that_are_carried_lose_their_secrets(tmp_path: Path, scratch: Uri) -> None:
    content = '{"images":[{"id":1,"file_name":"https://host/a.jpg?sig=secret"}]}'
    config = ManifestConfig(uri=write(tmp_path / "m.json", content), carry=("file_name",))
    row = read_all(open_manifest(config, scratch))[0]
    assert (row["file_name"], row["image_uri"]) == ("https://host/a.jpg", "https://host/a.jpg?sig=secret")

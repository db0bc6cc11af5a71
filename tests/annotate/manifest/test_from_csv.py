from __future__ import annotations

import csv
import gzip
import os
from pathlib import Path
from typing import Any
from unittest import mock

import pandas
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.annotate.config import ManifestConfig
from pipeline.annotate.manifest import from_csv, parquet_copy
from pipeline.annotate.manifest.open import open_manifest
from pipeline.annotate.manifest.rules import ManifestError
from pipeline.annotate.pending.antijoin import DuplicateIdError, find_pending
from pipeline.storage.uris import Uri
from tests.annotate.manifest.manifest_cases import (
    BadManifests,
    check_refused,
    each_of,
    parquet,
    read_all,
    read_all_ids,
    write,
)


class TestCsv:
    def test_ids_uris_and_carried_columns(self, tmp_path: Path, scratch: Uri) -> None:
        text = '\ufeffpath,note,image_id\na.jpg,"one, two\nthree",7\n\n"b c.jpg",,-8\n/d.jpg,NA,0\n'
        path = write(tmp_path / "m.csv", text)
        spec = ManifestConfig(uri=path, image_root="/root", uri_column="path", carry=("note",))
        manifest = open_manifest(spec, scratch)
        assert manifest.id_type == pa.int64()
        assert [tuple(row.values()) for row in read_all(manifest)] == [
            (7, "/root/a.jpg", None, "one, two\nthree"),
            (-8, "/root/b c.jpg", None, ""),
            (0, "/d.jpg", None, "NA"),
        ]

    @pytest.mark.parametrize(
        ("ids", "is_integer"),
        [
            (["1", "-20", "0"], True),
            (["0012", "13"], False),
            (["12", "1e3"], False),
            (["1", "null"], False),
            (["+1"], False),
            ([" 1"], False),
            (["-0"], False),
            (["12345678901234567890"], False),
            (["٣"], False),
        ],
        ids=str,
    )
    def test_ids_are_integers_only_if_all_are_written_so(
        self, tmp_path: Path, scratch: Uri, ids: list[str], is_integer: bool
    ) -> None:
        lines = "".join(f"{value},/x{index}\n" for index, value in enumerate(ids))
        manifest = open_manifest(ManifestConfig(uri=write(tmp_path / "m.csv", "image_id,image_uri\n" + lines)), scratch)
        assert read_all_ids(manifest) == ([int(value) for value in ids] if is_integer else ids)

    def test_long_files_are_cut_into_row_groups_and_files(
        self, tmp_path: Path, scratch: Uri, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(parquet_copy, "ROW_GROUP_ROWS", 100)
        monkeypatch.setattr(parquet_copy, "ROW_GROUPS_PER_FILE", 3)
        monkeypatch.setattr(from_csv, "_CSV_BLOCK_BYTES", 1000)
        text = gzip.compress(b"image_uri\n" + b"".join(b"/%d.jpg\n" % i for i in range(1050)))
        manifest = open_manifest(ManifestConfig(uri=write(tmp_path / "m.csv.gz", text)), scratch)
        assert [unit.num_rows for unit in manifest.units] == [100] * 10 + [50]
        assert sorted(os.listdir(scratch.path)) == [f"manifest-{i:05d}.parquet" for i in range(4)]
        assert read_all_ids(manifest) == [f"/{i}.jpg" for i in range(1050)]


def many(first: int, last: int) -> str:
    return "".join(f"{i},/d/{i:08d}.jpg,t\n" for i in range(first, last))


HEAD = "image_id,image_uri,title\n"
OPEN_QUOTES = {
    "three rows": HEAD + '1,/a.jpg,"hello\n2,/b.jpg,x\n3,/c.jpg,y\n',
    "many rows": HEAD + many(0, 1000) + '1000,/x.jpg,"TV 40 inch\n' + many(1001, 60_000),
    "the end of a big file": HEAD + many(0, 150_000) + '150000,/x.jpg,"TV 40 inch\n' + many(150_001, 160_000),
    "more than a block": HEAD + many(0, 1000) + '1000,/x.jpg,"TV 40 inch\n' + many(1001, 150_000),
    "two of them": HEAD + '1,/a.jpg,"40 inch\n2,/b.jpg,x\n3,/c.jpg,"50 inch\n4,/d.jpg,x\n',
}


class TestQuotes:
    @pytest.mark.parametrize("text", OPEN_QUOTES.values(), ids=OPEN_QUOTES.keys())
    @pytest.mark.parametrize("carry", [(), ("title",)], ids=["column not used", "column carried"])
    def test_one_that_never_closes(self, tmp_path: Path, scratch: Uri, text: str, carry: tuple[str, ...]) -> None:
        path = write(tmp_path / "m.csv", text)
        line = text[: text.index('"')].count("\n") + 1
        with pytest.raises(ManifestError, match=rf"m\.csv, line {line}: .*(closed|close it)"):
            open_manifest(ManifestConfig(uri=path, carry=carry), scratch)
        if "50 inch" not in text:  # whose fields pandas makes of it all the same
            with pytest.raises(pandas.errors.ParserError):
                pandas.read_csv(path)

    def test_closed_ones_hold_what_they_like(self, tmp_path: Path, scratch: Uri) -> None:
        text = HEAD + '1,/a.jpg,"hello\nworld, ""x"""\n\n2,/b.jpg,5" wide\n3,"/c\r\n.jpg",\r\n4,/d.jpg,z'
        path = write(tmp_path / "m.csv", text)
        manifest = open_manifest(ManifestConfig(uri=path, carry=("title",)), scratch)
        expected = pandas.read_csv(path, dtype=str, keep_default_na=False)
        rows = read_all(manifest)
        assert [row["image_uri"] for row in rows] == expected["image_uri"].tolist()
        assert [row["title"] for row in rows] == expected["title"].tolist()
        assert [manifest.name_row(manifest.units[0], index) for index in range(4)] == [
            f"{path}, line {line}" for line in (2, 5, 6, 8)
        ]

    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        cells=st.lists(st.text('ab", \n\r\ufeff\0é', max_size=8), max_size=6),
        end=st.sampled_from(["\n", "\r\n", "\r", "\n\n"]),
        block=st.sampled_from([64, 1 << 20]),
    )
    def test_rows_are_those_of_other_readers(self, tmp_path: Path, cells: list[str], end: str, block: int) -> None:
        path = write(tmp_path / "m.csv", "".join(f"{row}{end}" for row in ("image_uri,k", *(f"/a,{c}" for c in cells))))
        with mock.patch.object(from_csv, "_CSV_BLOCK_BYTES", block):
            try:
                manifest = open_manifest(ManifestConfig(uri=path, carry=("k",)), Uri(str(tmp_path / "scratch")))
            except ManifestError:
                return
        found = [(row["image_uri"], row["k"]) for row in read_all(manifest)]
        with open(path, newline="", encoding="utf-8-sig") as file:
            assert [tuple(row) for row in csv.reader(file, strict=True) if row][1:] == found
        assert len(pandas.read_csv(path, dtype=str, keep_default_na=False)) == len(found)


class TestTsv:
    @settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(cells=st.lists(st.text('ab",\t \n\ufeff\0é', max_size=8), max_size=6))
    def test_what_pandas_writes_comes_back(self, tmp_path: Path, cells: list[str]) -> None:
        table = pandas.DataFrame({"image_id": range(len(cells)), "image_uri": "/a b,c.jpg", "k": cells}, dtype=str)
        table.to_csv(path := tmp_path / "m.tsv", sep="\t", index=False)
        if not cells:
            return
        manifest = open_manifest(ManifestConfig(uri=str(path), carry=("k",)), Uri(str(tmp_path / "scratch")))
        found = [(row["image_id"], row["image_uri"], row["k"]) for row in read_all(manifest)]
        assert found == [(index, "/a b,c.jpg", cell) for index, cell in enumerate(cells)]

    def test_a_row_of_too_few_fields(self, tmp_path: Path, scratch: Uri) -> None:
        path = write(tmp_path / "m.tsv.gz", gzip.compress(b"image_uri\tk\n/a,b\t1\n/b\n"))
        with pytest.raises(ManifestError, match=r"m\.tsv\.gz, line 3: 1 fields .* hold tabs in quotes"):
            open_manifest(ManifestConfig(uri=path), scratch)


class TestList:
    LINES = ("a.jpg", "  ", "# b.jpg", "", 'sub/c "d", e.jpg', "/f g.jpg ", "s3://bucket/h?#%20.jpg", "ünï.jpg")
    IDS = ("a.jpg", "# b.jpg", 'sub/c "d", e.jpg', "/f g.jpg ", "s3://bucket/h?#%20.jpg", "ünï.jpg")

    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    @pytest.mark.parametrize("start", ["", "\ufeff"], ids=["", "BOM"])
    @pytest.mark.parametrize("last", ["", "end"])
    def test_a_line_is_the_id_and_the_uri(self, tmp_path: Path, scratch: Uri, end: str, start: str, last: str) -> None:
        path = write(tmp_path / "train.txt", start + end.join(self.LINES) + (end if last else ""))
        manifest = open_manifest(ManifestConfig(uri=path, image_root="/root"), scratch)
        assert [(row["image_id"], row["image_uri"], row["image_bytes"]) for row in read_all(manifest)] == [
            (name, name if name.startswith(("/", "s3://")) else f"/root/{name}", None) for name in self.IDS
        ]
        assert [manifest.name_row(manifest.units[0], index) for index in range(6)] == [
            f"{path}, line {line}" for line in (1, 3, 5, 6, 7, 8)
        ]

    @pytest.mark.parametrize("name", ["LIST.TXT.GZ", "m.lst", "m"])
    def test_by_its_format_where_the_suffix_does_not_tell(self, tmp_path: Path, scratch: Uri, name: str) -> None:
        content = gzip.compress(b"/a\n/b") if name.endswith("GZ") else b"/a\n/b"
        path = write(tmp_path / name, content)
        manifest = open_manifest(ManifestConfig(uri=path, format="auto" if "TXT" in name else "list"), scratch)
        assert read_all_ids(manifest) == ["/a", "/b"]

    def test_over_many_row_groups(self, tmp_path: Path, scratch: Uri, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(parquet_copy, "ROW_GROUP_ROWS", 7)
        monkeypatch.setattr(from_csv, "ROW_GROUP_ROWS", 7)
        names = [f"/{index}.jpg" for index in range(100)]
        manifest = open_manifest(ManifestConfig(uri=write(tmp_path / "m.txt", "\n".join(names))), scratch)
        assert read_all_ids(manifest) == names
        assert len(manifest.units) == 15


class TestLongRows:
    """Such as masks or texts that stand beside the images."""

    @pytest.mark.parametrize("text", ["y" * 3_900_000, '"' + "y\n" * 1_900_000 + '"'], ids=["a line", "many lines"])
    def test_of_two_blocks(self, tmp_path: Path, scratch: Uri, text: str) -> None:
        path = write(tmp_path / "m.csv", f"image_uri,k\n/a,{text}\n/b,\n")
        assert open_manifest(ManifestConfig(uri=path), scratch).num_rows == len(pandas.read_csv(path)) == 2

    @pytest.mark.parametrize(
        ("cells", "message"),
        [
            (("y" * 5_000_000, "z"), "line 3: a field of more than 4,194,304 characters"),
            (("y" * 3_000_000, "z" * 3_000_000), "a row takes more than 4,194,304 bytes"),
        ],
        ids=["a field", "a row"],
    )
    def test_longer_ones_are_refused(self, tmp_path: Path, scratch: Uri, cells: tuple[str, str], message: str) -> None:
        path = write(tmp_path / "m.csv", f"image_uri,k,l\n/a,,\n/b,{','.join(cells)}\n")
        with pytest.raises(ManifestError, match=rf"m\.csv.*{message}; take .* out of the file"):
            open_manifest(ManifestConfig(uri=path), scratch)


class TestDoubledIds:
    @pytest.mark.parametrize(
        ("name", "content", "place"),
        [
            ("m.csv", b'image_id,image_uri,k\n1,/a,"x\ny"\n\n2,/b,\n1,/c,\n2,/d,\n', ("line 2", "line 5")),
            ("m.tsv", b'image_id\timage_uri\tk\n1\t/a\t"x\ny"\n\n2\t/b\t\n1\t/c\t\n2\t/d\t\n', ("line 2", "line 5")),
            ("m.jsonl", b'{"image_id":1,"image_uri":"/a"}\n\n{"image_id":2,"image_uri":"/b"}\n'
             b'{"image_id":1,"image_uri":"/c"}\n{"image_id":2,"image_uri":"/c"}\n', ("line 1", "line 3")),
            ("m.json", b'{"images":[{"id":1,"file_name":"/a"},{"id":2,"file_name":"/a"},{"id":2,"file_name":"/a"},'
             b'{"id":1,"file_name":"/a"}]}', ("image 1", "image 2")),
            ("m.parquet", parquet(image_id=[1, 2, 1, 2], image_uri=["/a"] * 4),
             ("row group 0, row 1", "row group 0, row 2")),
        ],
        ids=["csv", "tsv", "jsonl", "coco", "parquet"],
    )  # fmt: skip
    @pytest.mark.parametrize("memory_rows", [1, 1000], ids=["spilled", "in memory"])
    def test_are_named_where_the_user_finds_them(
        self, tmp_path: Path, scratch: Uri, name: str, content: bytes, place: tuple[str, str], memory_rows: int
    ) -> None:
        manifest = open_manifest(ManifestConfig(uri=write(tmp_path / name, content)), scratch)
        with pytest.raises(DuplicateIdError) as raised:
            find_pending(manifest, [], memory_rows=memory_rows)
        for number, where in enumerate(place, start=1):
            assert f"{number} 2 times (first in {tmp_path / name}, {where})" in str(raised.value)
        assert scratch.path not in str(raised.value)

    @pytest.mark.parametrize(("name", "head"), [("m.csv", "image_uri\n"), ("m.txt", "\n")])
    def test_uris_as_ids_need_a_column(self, tmp_path: Path, scratch: Uri, name: str, head: str) -> None:
        manifest = open_manifest(ManifestConfig(uri=write(tmp_path / name, f"{head}/a\n/b\n/a\n")), scratch)
        said = rf"1 image id occurs more than once: '/a' 2 times \(first in .*{name}, line 2\).*column of ids"
        with pytest.raises(DuplicateIdError, match=said):
            find_pending(manifest, [])


BAD_MANIFESTS: BadManifests = {
    "empty file": ("m.csv", b"", {}, "is empty"),
    "header only": ("m.csv", b"image_uri\n", {}, "has no row"),
    "no uri column": ("m.csv", b"image_id,b\n1,2\n", {}, "no column 'image_uri'; it has: image_id, b"),
    "column twice": ("m.csv", b"image_uri,image_uri\n/a,/b\n", {}, "2 columns named 'image_uri'"),
    "text behind a quote": ("m.csv", b'image_uri\n"/a"b\n', {}, "line 2: .*a quote that begins a field must end it"),
    "UTF-16": ("m.csv", "image_uri\n/a\n".encode("utf-16"), {}, "line 1: not UTF-8"),
    "lone surrogates": ("m.csv", b"image_uri\n/a\n/b\xed\xa0\x80\n", {}, "line 3: not UTF-8"),
    "too many fields": ("m.csv", b"a,image_uri\n1,/a\n2,/b,c\n", {}, "line 3: 3 fields instead of 2"),
    "too few fields": ("m.csv", b"a,image_uri\n1,/a\n2\n", {}, "line 3: 1 fields instead of 2"),
    "empty uri": ("m.csv", b"a,image_uri\n1,/a\n2,\n", {}, "line 3: the image URI is null or empty"),
    "empty id": ("m.csv", b"image_id,image_uri\n1,/a\n,/b\n", {}, "line 3: the id is null or empty"),
    "not UTF-8": ("m.csv", b"image_uri\n/\xff\n", {}, "line 2: not UTF-8"),
    "no root": ("m.csv", b"image_uri\na\n", {}, "line 2: .* set image_root"),
    "tabs": ("m.csv", b"image_id\timage_uri\n1\t/a\n", {}, "tabs stand between .*manifest.format: tsv"),
    "commas": ("m.tsv", b"image_id,image_uri\n1,/a\n", {}, "commas stand between .*manifest.format: csv"),
    "header of CSV": ("m.txt", b"k,image_uri\n1,/a\n", {}, "a table with a header.*manifest.format: csv"),
    "header of TSV": ("m.txt", b"k\tx\n1\t/a\n", {"uri_column": "x"}, "a table with a header.*manifest.format: tsv"),
    "empty list": ("m.txt", b"\n  \n", {}, "is empty"),
    "list, no root": ("m.txt", b"/a\n\nb.jpg\n", {}, "line 3: .*'b.jpg'.* set image_root"),
    "list, out of root": ("m.txt", b"../b.jpg\n", {"image_root": "/r"}, "line 1: .*climbs out"),
    "list in UTF-16": ("m.txt", "/a\n".encode("utf-16"), {}, "line 1: not UTF-8; save"),
    "list in UTF-16, no mark": ("m.txt", "a\n".encode("utf-16-le"), {"image_root": "/r"}, "line 1: holds NUL"),
    "list in Latin-1": ("m.txt", b"/a\n\n/\xfc.jpg\n", {}, "line 3: not UTF-8; save"),
    "list, columns": ("m.txt", b"/a\n", {"carry": ("k",)}, "no column 'k'"),
    "list, ids": ("m.txt", b"/a\n", {"id_column": "k"}, "no column 'k'"),
    "list, bytes": ("m.txt", b"/a\n", {"bytes_column": "k"}, "from Parquet only"),
    "list, one line": ("m.txt", b"/" + b"a" * 65_535 + b"\n/" + b"a" * 65_536, {}, "line 2: more than 65,536"),
    "list, signed": ("m.txt", b"/a\nhttps://h/a.jpg?sig=x\n", {}, "line 2: 'https://h/a.jpg' .*CSV with the columns"),
    "bytes": ("m.csv", b"image_uri,jpg\n/a,x\n", {"bytes_column": "jpg"}, "from Parquet only"),
}


@each_of(BAD_MANIFESTS)
def test_bad_manifests(tmp_path: Path, case: Any) -> None:
    check_refused(tmp_path, case)

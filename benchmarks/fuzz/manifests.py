"""Manifests of every format, whole and broken, opened, read and looked through for doubled ids.

Of a whole one the ids that come out must be those that were written. Of a broken one they must be those that another
reader finds, where that reader takes the file; and a CSV file whose quote never closes must be refused.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.fuzz.case import Limits, Wrong
from benchmarks.fuzz.mutate import break_bytes, break_tree, dump_json
from pipeline.annotate.config import ManifestConfig
from pipeline.annotate.manifest.open import open_manifest
from pipeline.annotate.pending.antijoin import DuplicateIdError, find_pending
from pipeline.storage.uris import Uri

Json = dict[str, Any]

_STEM = "listing"  # and not "manifest", as the copies in the scratch folder are called
_ID, _URI, _CARRIED = "image_id", "image_uri", "camera"
_TRICKY_TEXTS = (
    "a",
    "007",
    "1e5",
    "-0",
    "+1",
    " 1",
    "a b",
    "a,b",
    'a"b',
    '"a"',
    "a\nb",
    "a\r\nb",
    "a\rb",
    "=1+1",
    "a/b",
    "../a",
    "a\x00b",
    "ünï",
    "e\u0301",
    "\N{GRINNING FACE}",
    "\u2028",
    "\ufeff",
    "null",
    "NaN",
    "None",
    "true",
    "2024-01-01",
    "x" * 300,
    "9223372036854775807",
    "9223372036854775808",
)
_TRICKY_URIS = (
    "a.jpg",
    "/data/a.jpg",
    "file:///data/a.jpg",
    "s3://bucket/a.jpg",
    "s3://bucket//a.jpg",
    "s3://bucket/./a/../b.jpg",
    "s3://bucket/a?b#c.jpg",
    "https://host/a.jpg",
    "C:\\a.jpg",
    "a b.jpg",
    "a%20b.jpg",
    "ünï.jpg",
    "a\nb.jpg",
    "~/a.jpg",
)
# Short ones are three times as frequent as long ones.
_INSERTIONS = (
    *(b'"', b"'", b",", b"\n", b"\r", b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b";", b"\t", b"\\") * 3,
    *(b"[" * 100_000, b"{" * 3000, b"9" * 5000, b"NaN", b"1e999", b"x" * 3_000_000),
)
_IMAGE_NAMES = ("a.jpg", "b.JPEG", "c.png", "d.webp", "sub/e.tif", "sub/deep/f.bmp", "images/g.gif")
_ODD_IMAGE_NAMES = ("h i.jpg", "ünï.jpg", "k#l.jpg", "k?l.jpg", "k%20l.jpg", "=1.jpg", "a\nb.jpg", "x" * 250 + ".jpg")
_OTHER_NAMES = (".hidden.jpg", ".cache/n.jpg", "notes.txt", "jpg", "o.jpg.txt")
_BAD_URIS = ("", "../a.jpg", "https://host/a.jpg?sig=x", "s3://key:secret@bucket/a.jpg", "x://", "//host/a.jpg")


@dataclass(frozen=True)
class Table:
    """What a manifest says.

    Attributes:
        ids: of the rows; ``None`` where the ids are the URIs.
        uris: of the rows.
        carried: values of a further column; ``None`` where there is none.
    """

    ids: list[Any] | None
    uris: list[str]
    carried: list[Any] | None

    @property
    def columns(self) -> dict[str, list[Any]]:
        """By name, as far as there are any."""
        named = {_ID: self.ids, _URI: self.uris, _CARRIED: self.carried}
        return {name: values for name, values in named.items() if values is not None}

    @property
    def rows(self) -> list[Json]:
        """The same by row."""
        return [dict(zip(self.columns, row, strict=True)) for row in zip(*self.columns.values(), strict=True)]


@dataclass(frozen=True)
class ManifestCase:
    """A manifest to be opened.

    Attributes:
        path: of the file or folder.
        scratch: folder for its copy.
        fields: of its config.
        ids: that must come out if any do, as text; ``None`` where nobody knows.
        must_refuse: why it must not be taken, or "".
    """

    story: str
    path: Path
    scratch: Path
    fields: Json = field(default_factory=dict)
    ids: list[str] | None = None
    must_refuse: str = ""

    @property
    def names(self) -> Sequence[str]:
        """The file or folder."""
        return (self.path.name,)

    def check(self) -> None:
        """See `Case`."""
        config = ManifestConfig(uri=Uri(str(self.path)), **self.fields)
        manifest = open_manifest(config, Uri(str(self.scratch)))
        found: list[Any] = []
        for unit in manifest.units:
            ids = manifest.read_ids(unit).to_pylist()
            chosen = np.ones(unit.num_rows, np.bool_)
            tables = list(manifest.read_rows(unit, chosen, 7))
            if [id_ for table in tables for id_ in table[_ID].to_pylist()] != ids:
                raise Wrong("ids and rows differ")
            found += ids
        if self.must_refuse:
            raise Wrong(self.must_refuse, f"{len(found)} rows were read")
        if len(found) != manifest.num_rows:
            raise Wrong("another number of rows than was said", f"{len(found)}, {manifest.num_rows}")
        # The files of a folder come in the order of its storage.
        if self.ids is not None and sorted(map(str, found)) != sorted(self.ids):
            told = "another number of rows" if len(found) != len(self.ids) else "other ids"
            kind = self.path.suffix or "folder"
            raise Wrong(f"{told} ({kind})", f"{found!r:.200} for {self.ids!r:.200}")
        most = max(Counter(found).values())
        try:
            find_pending(manifest, [])
        except DuplicateIdError:
            if most == 1:
                raise Wrong("ids are called doubled that are not") from None
            raise
        if most > 1:
            raise Wrong("doubled ids are taken")


class Manifests:
    """See `Kind`."""

    name: ClassVar[str] = "manifests"
    limits: ClassVar[Limits] = Limits(seconds=10.0, memory_bytes=300 << 20)

    def __init__(self, folder: Path) -> None:
        pass

    def make(self, rng: random.Random, folder: Path) -> ManifestCase:
        """See `Kind`."""
        return rng.choice(_FORMATS)(rng, folder)


def _random_table(rng: random.Random, types: Sequence[str] = ("int", "text")) -> Table:
    """Mostly rows that can be read, sometimes with an id or URI that cannot."""
    number = rng.choice((1, 2, 5, 20, 20, 300))
    kind = rng.choice((*types, *types, "none"))
    ids: list[Any] | None = None
    if kind == "int":
        ids = rng.sample(range(-50, 10 * number + 50), number)
    elif kind == "text":
        tricky = rng.sample(_TRICKY_TEXTS, min(number, rng.choice((0, 1, 5))))
        ids = [*tricky, *(f"id {n}" for n in range(number - len(tricky)))]
        rng.shuffle(ids)
    if ids is not None and rng.random() < 0.15:
        ids[rng.randrange(number)] = rng.choice((ids[0], "", None))
    uris = [f"s3://bucket/{n}.jpg" for n in range(number)]
    for _ in range(rng.choice((0, 0, 1, 3))):
        uris[rng.randrange(number)] = rng.choice(_TRICKY_URIS)
    if rng.random() < 0.15:
        uris[rng.randrange(number)] = rng.choice(_BAD_URIS)
    carried = [rng.choice(("front", "back", 'the "left"', "", "1")) for _ in range(number)]
    return Table(ids, uris, carried if rng.random() < 0.5 else None)


def _fields(rng: random.Random, table: Table, format: str) -> Json:
    fields: Json = {"format": rng.choice(("auto", "auto", format))}
    if table.carried is not None and rng.random() < 0.5:
        fields["carry"] = (_CARRIED,)
    if (root := rng.choice((None, "s3://pictures/root", "/data", "https://host/root"))) is not None:
        fields["image_root"] = Uri(root)
    return fields


def _expected(table: Table) -> list[str] | None:
    """As text; nobody knows where an id is missing, or is a URI, which may be written in another way."""
    if table.ids is None or any(id_ is None for id_ in table.ids):
        return None
    return [str(id_) for id_ in table.ids]


def _packed(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Perhaps compressed, and then perhaps cut off or broken: suffix and content."""
    kind = rng.random()
    if kind < 0.7:
        return "", content
    pack: Callable[[bytes], bytes]
    suffix, pack = rng.choice(((".gz", _gzip), (".bz2", bz2.compress), (".zst", _zstd)))
    return suffix, pack(content)


def _gzip(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def _zstd(content: bytes) -> bytes:
    return bytes(pa.compress(content, codec="zstd", asbytes=True))


def _text_file(
    rng: random.Random, folder: Path, suffix: str, content: bytes, count: Callable[[bytes], list[str] | str | None]
) -> tuple[str, Path, list[str] | str | None, bool]:
    """Write a file of text, whole or broken.

    Args:
        count: another reader: the ids, ``None`` if it cannot tell, or why the file must be refused.

    Returns:
        What was done, the file, what the other reader finds, and whether the file is whole.
    """
    how = rng.random()
    story, whole = "whole", how < 0.3
    if 0.3 <= how < 0.6:
        content, story = break_bytes(content, rng)
    elif how >= 0.6:
        content, story = _edited(content, rng)
    found = count(content)
    packing, packed = _packed(content, rng)
    if packing and rng.random() < 0.4:
        packed, more = break_bytes(packed, rng)
        story, found, whole = f"{story}; {packing}: {more}", None, False
    path = folder / f"{_STEM}{suffix}{packing}"
    path.write_bytes(packed)
    return f"{path.name}: {story}", path, found, whole


def _edited(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """What editors and other programs do to text."""
    lines = content.splitlines(keepends=True)
    place = rng.randrange(len(lines))
    at = rng.randrange(len(content) + 1)
    insertion = rng.choice(_INSERTIONS)
    change = rng.randrange(8)
    if change <= 2:
        return content[:at] + insertion + content[at:], f"{insertion!r:.20} inserted at {at}"
    if change == 3:
        lines[place:place] = [lines[place]] * rng.choice((1, 3))
        return b"".join(lines), f"line {place} repeated"
    if change == 4:
        del lines[place]
        return b"".join(lines), f"line {place} removed"
    if change == 5:
        encoding = rng.choice(("utf-8-sig", "utf-16", "utf-16-le", "latin-1"))
        return content.decode(errors="replace").encode(encoding, errors="replace"), encoding
    if change == 6:
        fields = lines[place].split(b",")
        lines[place] = b",".join([*fields[:-1], b'"' + fields[-1]])
        return b"".join(lines), f"a quote opens in the last field of line {place}"
    end = rng.choice((b"\r\n", b"\r", b"\n\n", b"\n   \n"))
    return content.replace(b"\n", end), f"lines end with {end!r}"


def _as_case(story: str, path: Path, folder: Path, fields: Json, found: list[str] | str | None) -> ManifestCase:
    reason = found if isinstance(found, str) else ""
    ids = found if isinstance(found, list) else None
    return ManifestCase(story, path, folder / "scratch", fields, ids, reason)


def _csv(rng: random.Random, folder: Path) -> ManifestCase:
    table = _random_table(rng)
    sink = io.StringIO()
    dialect = csv.unix_dialect if rng.random() < 0.5 else csv.excel  # every field in quotes, or those that need them
    format, delimiter = rng.choice((("csv", ","), ("csv", ","), ("tsv", "\t")))
    writer = csv.writer(sink, dialect, delimiter=delimiter, lineterminator=rng.choice(("\n", "\r\n")))
    writer.writerow(table.columns)
    writer.writerows(zip(*table.columns.values(), strict=True))
    content = sink.getvalue().encode()
    count = partial(_ids_of_csv, delimiter=delimiter)
    story, path, found, whole = _text_file(rng, folder, f".{format}", content, count)
    return _as_case(story, path, folder, _fields(rng, table, format), _expected(table) if whole else found)


def _ids_of_csv(content: bytes, delimiter: str) -> list[str] | str | None:
    """As the csv module reads them, strictly."""
    csv.field_size_limit(1 << 30)
    try:
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), delimiter=delimiter, strict=True)
        rows = [row for row in reader if row]
    except csv.Error as error:
        return "a quote that never closes is taken" if "unexpected end of data" in str(error) else None
    except UnicodeDecodeError:
        return None
    if not rows or rows[0].count(_ID) != 1 or any(len(row) != len(rows[0]) for row in rows):
        return None
    at = rows[0].index(_ID)
    return [row[at] for row in rows[1:]]


def _list(rng: random.Random, folder: Path) -> ManifestCase:
    table = _random_table(rng, ("none",))
    end = rng.choice(("\n", "\r\n"))
    content = "".join(f"{uri}{end}" for uri in dict.fromkeys(table.uris)).encode()
    story, path, found, _ = _text_file(rng, folder, ".txt", content, _lines_of_text)
    fields = {name: value for name, value in _fields(rng, table, "list").items() if name != "carry"}
    return _as_case(story, path, folder, fields, found)


def _lines_of_text(content: bytes) -> list[str] | str | None:
    """As Python's text files have them, which end at any of the three usual ends."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return "text that is not UTF-8 is taken"
    return [line for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n") if line.strip()]


def _jsonl(rng: random.Random, folder: Path) -> ManifestCase:
    table = _random_table(rng)
    rows: list[Any] = table.rows
    stories = []
    for _ in range(rng.choice((0, 0, 1, 2))):
        place = rng.randrange(len(rows))
        rows[place], story = break_tree(rows[place], rng)
        stories.append(f"line {place + 1}: {story}")
    content = "\n".join(dump_json(row, rng) for row in rows).encode() + b"\n"
    suffix = rng.choice((".jsonl", ".ndjson"))
    story, path, found, _ = _text_file(rng, folder, suffix, content, _ids_of_jsonl)
    return _as_case("; ".join([story, *stories]), path, folder, _fields(rng, table, "jsonl"), found)


def _ids_of_jsonl(content: bytes) -> list[str] | str | None:
    lines = [line for line in content.split(b"\n") if line.strip()]
    return _ids_of_records(lambda: [json.loads(line.decode("utf-8-sig")) for line in lines], _ID)


def _ids_of_records(read: Callable[[], Any], key: str) -> list[str] | None:
    try:
        records = read()
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    if not isinstance(records, list):
        return None
    if not all(isinstance(record, dict) and isinstance(record.get(key), str | int) for record in records):
        return None
    return [str(record[key]) for record in records]


def _coco(rng: random.Random, folder: Path) -> ManifestCase:
    table = _random_table(rng)
    ids = table.ids or range(len(table.uris))
    images = [{"id": id_, "file_name": uri, "height": 4, "width": 4} for id_, uri in zip(ids, table.uris, strict=True)]
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [0, 0, 1, 1]} for n in range(5)]
    tree: Any = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "ball"}]}
    stories = []
    for _ in range(rng.choice((0, 0, 1, 3))):
        tree, story = break_tree(tree, rng)
        stories.append(story)
    content = dump_json(tree, rng).encode()
    story, path, found, _ = _text_file(rng, folder, ".json", content, _ids_of_coco)
    fields = {"format": rng.choice(("auto", "coco"))}
    return _as_case("; ".join([story, *stories]), path, folder, fields, found)


def _ids_of_coco(content: bytes) -> list[str] | str | None:
    return _ids_of_records(lambda: json.loads(content)["images"], "id")


def _parquet(rng: random.Random, folder: Path) -> ManifestCase:
    """One file, or a folder of them; ids of many types, images as bytes."""
    table = _random_table(rng)
    expected = _expected(table)
    columns: dict[str, pa.Array] = {}
    stories = []
    for name, values in table.columns.items():
        texts = values if name != _ID or any(isinstance(value, str) for value in values) else None
        kinds: Sequence[pa.DataType | None] = _TEXT_TYPES if texts is not None else _INTEGER_TYPES
        if rng.random() < 0.1:
            kinds = _OTHER_TYPES
        kind = rng.choice(kinds)
        try:
            columns[name] = pa.array(values, kind)
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            columns[name] = pa.array([None if value is None else str(value) for value in values])
        stories.append(f"{name} {columns[name].type}")
    if rng.random() < 0.2:
        contents = [rng.choice((b"\xff\xd8", b"", None)) for _ in table.uris]
        columns["image_bytes"] = pa.array(contents, pa.binary())
    elif pa.types.is_string(columns[_URI].type) and rng.random() < 0.25:  # as Hugging Face's datasets have images
        paths = [None if rng.random() < 0.05 else uri for uri in columns.pop(_URI).to_pylist()]
        images = [{"bytes": rng.choice((b"\xff\xd8", None)), "path": path} for path in paths]
        columns["image"] = pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        stories.append("images as structs")
    if columns.get(_ID) is not None and not _is_plain(columns[_ID].type):
        expected = None
    whole = pa.table(columns)
    parts = [whole]
    if rng.random() < 0.4:
        cut = rng.randrange(whole.num_rows + 1)
        parts = [whole.slice(0, cut), whole.slice(cut)]
    files = [_parquet_bytes(part, rng) for part in parts]
    if rng.random() < 0.65:
        broken = rng.randrange(len(files))
        files[broken], story = _broken_parquet(files[broken], rng)
        expected = None
        stories.append(f"file {broken}: {story}")
    path = folder / (_STEM if len(files) > 1 else f"{_STEM}.parquet")
    if len(files) == 1:
        path.write_bytes(files[0])
    else:
        path.mkdir()
        for number, content in enumerate(files):
            (path / f"part-{number}.parquet").write_bytes(content)
        leftover = rng.choice(("", "", "_SUCCESS", "_temporary/0/part-0.parquet", ".part-0.parquet.crc", "_metadata"))
        if leftover:
            (path / leftover).parent.mkdir(parents=True, exist_ok=True)
            (path / leftover).write_bytes(rng.choice((b"", files[0])))
            stories.append(leftover)
    return _as_case(f"{path.name}: {', '.join(stories)}", path, folder, _fields(rng, table, "parquet"), expected)


_TEXT_TYPES = (None, pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()))
_INTEGER_TYPES = (None, pa.int64(), pa.int32(), pa.int16(), pa.uint64(), pa.uint32())
_OTHER_TYPES = (
    pa.binary(),
    pa.float64(),
    pa.bool_(),
    pa.timestamp("us"),
    pa.decimal128(20, 2),
    pa.list_(pa.string()),
    pa.null(),
    pa.date32(),
)


def _is_plain(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _parquet_bytes(table: pa.Table, rng: random.Random) -> bytes:
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        row_group_size=rng.choice((3, 50, 10_000)),
        compression=rng.choice(("none", "snappy", "zstd", "gzip")),
        write_statistics=rng.random() < 0.7,
        data_page_version=rng.choice(("1.0", "2.0")),
        use_dictionary=rng.random() < 0.5,
    )
    return sink.getvalue()


def _broken_parquet(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    start = len(content) - int.from_bytes(content[-8:-4], "little") - 8
    if rng.random() < 0.6:
        footer, story = break_bytes(content[start:-8], rng)
        length = len(footer) if rng.random() < 0.7 else len(content) - 8 - start
        return content[:start] + footer + length.to_bytes(4, "little") + content[-4:], f"footer: {story}"
    return break_bytes(content, rng)


def _folder(rng: random.Random, folder: Path) -> ManifestCase:
    path = folder / _STEM
    path.mkdir()
    images = rng.sample(_IMAGE_NAMES, rng.randint(1, len(_IMAGE_NAMES)))
    images += rng.sample(_ODD_IMAGE_NAMES, rng.choice((0, 1, 3)))
    for name in [*images, *rng.sample(_OTHER_NAMES, rng.choice((0, 2)))]:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"\xff\xd8")
    stories = []
    expected: list[str] | None = [f"./{quote(name)}" if "\n" in name else name for name in images]
    if rng.random() < 0.15:
        with open(bytes(path) + b"/\xff\xfe.jpg", "wb") as file:
            file.write(b"\xff\xd8")
        expected = None
        stories.append("a name that is not UTF-8")
    if rng.random() < 0.15:
        (path / "broken.jpg").symlink_to("nowhere.jpg")
        expected = None
        stories.append("a link to nowhere")
    if rng.random() < 0.1:
        (path / "folder.jpg").mkdir()
        stories.append("a folder with an image's name")
    story = f"folder of {images!r:.80}: {', '.join(stories)}"
    return _as_case(story, path, folder, {"format": "folder"}, expected)


def _wrong_format(rng: random.Random, folder: Path) -> ManifestCase:
    """A file of one format that is called another, or is none."""
    content = rng.choice(
        (
            b"",
            b"\n",
            b"{}",
            b"[]",
            b"PAR1",
            b"PAR1PAR1",
            b"\x1f\x8b",
            b"image_id,image_uri\n",
            rng.randbytes(500),
            b"\0" * 5000,
        )
    )
    suffix = rng.choice((".csv", ".jsonl", ".json", ".parquet", ".csv.gz", ".json.zst", ".txt", ".tsv", ".tar", ""))
    path = folder / f"{_STEM}{suffix}"
    path.write_bytes(content)
    format = rng.choice(("auto", "auto", "csv", "jsonl", "coco", "parquet", "folder"))
    return _as_case(f"{path.name} as {format}: {content!r:.40}", path, folder, {"format": format}, None)


_FORMATS: tuple[Callable[[random.Random, Path], ManifestCase], ...] = (
    *(_csv,) * 5,
    *(_jsonl,) * 4,
    *(_coco,) * 3,
    *(_list,) * 3,
    *(_parquet,) * 5,
    _folder,
    _wrong_format,
)

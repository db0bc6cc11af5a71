"""Output folders of the annotate job with one file damaged, read by all who read one, and recovered.

What is read must be what was written, or an error names the damaged file. Whatever happens, the rows of the other files
are there afterwards, once each, and a file of the user's is as it was.
"""

from __future__ import annotations

import io
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pycocotools import mask as coco_mask

from benchmarks.fuzz.case import Limits, Refused, Wrong
from benchmarks.fuzz.mutate import break_bytes, break_tree, dump_json
from pipeline.annotations.class_thresholds import Selection
from pipeline.annotations.data_file import Identity, OutputError
from pipeline.annotations.data_folder import DATA_FOLDER
from pipeline.annotations.ledger import OutputStore
from pipeline.annotations.overview import failed_rows, look_over
from pipeline.annotations.overview_text import overview_text
from pipeline.annotations.reader import open_source
from pipeline.annotations.run_json import NAME as RUN_JSON
from pipeline.annotations.run_json import ImageCounts, RunJson, RunState
from pipeline.annotations.schema import ANNOTATED, FAILED, ImageDetections, detections_array, made_by
from pipeline.config.images import ImagesConfig
from pipeline.errors import RunError, UserError
from pipeline.evaluate.inputs.annotations import open_annotated_output
from pipeline.export.labels import Labels
from pipeline.metrics.blocks import Categories
from pipeline.model.categories import Category
from pipeline.storage.lock.holder import LOCK_NAME
from pipeline.storage.lock.lease import OutputLock
from pipeline.storage.uris import Uri
from testing.output_rows import output_rows as made_rows

Rows = dict[Any, dict[str, Any]]

CATEGORIES = (Category(1, "ball"), Category(7, "kite"))
IDENTITY = Identity("tiny", "a" * 64, "c" * 64, json.dumps({"model": {"threshold": 0.05}}), "0.1", "run-1")

_USERS_FILE = "notes.txt"
_USERS_TEXT = b"the user's own"
_ROWS_PER_FILE, _NUM_FILES = 6, 3
_IMAGE_SIZE = (24, 32)
# What differs from one acquisition of a lock to the next.
_HOLDER = {
    "token": "0" * 32,
    "host": "host",
    "namespace": "",
    "pid": 1,
    "process_started": "",
    "acquired_at": "2026-01-01T00:00:00+00:00",
}
_ODD_TEXTS = ("", "0", "\x00", "x" * 100_000, "\N{GRINNING FACE}", "../../up", "null", "[" * 100_000)


@dataclass(frozen=True)
class Whole:
    """An output that nobody has touched.

    Attributes:
        files: content by the path in the output.
        rows: by id.
        ids: of each data file.
    """

    files: Mapping[str, bytes]
    rows: Rows
    ids: Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class OutputCase:
    """An output with one damaged file.

    Attributes:
        folder: of the output.
        damaged: path of the file in it.
        whole: what it was.
    """

    story: str
    folder: Path
    damaged: str
    whole: Whole

    @property
    def names(self) -> Sequence[str]:
        """The damaged file."""
        return (Path(self.damaged).name,)

    def check(self) -> None:
        """See `Case`."""
        refusals = []
        for job in (self._report, self._show, self._export, self._evaluate, self._annotate):
            try:
                job()
            except (UserError, RunError) as error:
                if not any(name in str(error) for name in self.names):
                    raise
                refusals.append(f"{job.__name__[1:]}: {error}")
            self._check_the_rest(job.__name__[1:])
        if refusals:
            raise Refused("; ".join(refusals))

    @property
    def _uri(self) -> Uri:
        return Uri(str(self.folder))

    def _report(self) -> None:
        RunJson.read(self._uri)

    def _show(self) -> None:
        """Names what is damaged in its text."""
        overview = look_over(self._uri)
        problems = list(overview.problems)
        overview_text(overview)
        for failed in failed_rows(overview, problems):
            row = self._row(failed.image_id, "show")
            if (failed.error_code, failed.error_message) != (row["error_code"], row["error_message"]):
                raise Wrong("show reads another failure", repr(failed))
        if problems:
            raise OutputError("; ".join(problems))
        num_rows = overview.counts.images + (overview.pending or 0)
        if self.damaged != RUN_JSON and num_rows != len(self.whole.rows):
            raise Wrong("show misses rows", f"{overview.counts.rows} there, {overview.pending} pending")

    def _export(self) -> None:
        labels = Labels(open_source(self._uri), Selection(), keep_empty=True)
        for image in labels.images():
            expected = self._row(image.image.id, "export")["detections"] or ()
            if image.counts != [one["segmentation"]["counts"] for one in expected]:
                raise Wrong("export reads other masks", str(image.image.id))
            for index in range(len(image)):
                image.crop(index)

    def _evaluate(self) -> None:
        output = open_annotated_output(self._uri)
        categories = Categories(tuple(c.id for c in CATEGORIES), tuple(c.name for c in CATEGORIES))
        for group in range(output.num_groups):
            output.list_group(group)
            for batch in output.read_group(group, masks=True):
                ids = batch.image_ids.to_pylist()
                sizes = np.tile(np.array(_IMAGE_SIZE), (len(ids), 1))
                block = batch.block(np.arange(len(ids)), sizes, categories, masks=True)
                expected = [self._row(id_, "evaluation")["detections"] or () for id_ in ids]
                scores = [one["score"] for row in expected for one in row]
                if not np.array_equal(block.scores, scores):
                    raise Wrong("evaluation reads other scores", str(ids))

    def _annotate(self) -> None:
        """What a run does with an output before it writes to it; with ``--retry-failed``."""
        store = OutputStore(self._uri)
        with OutputLock(self._uri, "fuzz", lease_s=0.1, wait_s=0.3):
            store.recover(lambda: None)
            store.files().check_identity(IDENTITY)
            self._read()
            self._check_the_rest("recover")
            store.strip_failed(lambda: None)
            self._read()

    def _read(self) -> None:
        store = OutputStore(self._uri)
        columns = tuple(next(iter(self.whole.rows.values())))
        for table in store.iter_ids(store.files().settled, columns):
            for row in table.to_pylist():
                if row.keys() != set(columns):
                    raise Wrong("the ledger reads a row without some columns", str(row.keys() ^ set(columns)))
                if repr(row) != repr(self._row(row["image_id"], "the ledger")):
                    raise Wrong("the ledger reads another row", repr(row)[:500])

    def _row(self, id_: Any, reader: str) -> dict[str, Any]:
        if id_ not in self.whole.rows:
            raise Wrong(f"{reader} reads a row that nobody wrote", repr(id_))
        return self.whole.rows[id_]

    def _check_the_rest(self, step: str) -> None:
        if (self.folder / _USERS_FILE).read_bytes() != _USERS_TEXT:
            raise Wrong(f"{step} touches a file of the user's")
        found = Counter(id_ for path in (self.folder / DATA_FOLDER).iterdir() for id_ in _ids_if_readable(path))
        for name, ids in self.whole.ids.items():
            if name == Path(self.damaged).name:
                continue
            for id_ in ids:
                if self.whole.rows[id_]["status"] == ANNOTATED and found[id_] < 1:
                    raise Wrong(f"{step} loses a row of an undamaged file", f"{id_!r} of {name}")
                if found[id_] > 1:
                    raise Wrong(f"{step} doubles a row", f"{id_!r} of {name}")


def _ids_if_readable(path: Path) -> list[Any]:
    try:
        return pq.read_table(path, columns=["image_id"])["image_id"].to_pylist()
    except (OSError, pa.ArrowException, KeyError):
        return []


class Outputs:
    """See `Kind`."""

    name: ClassVar[str] = "outputs"
    limits: ClassVar[Limits] = Limits(seconds=10.0, memory_bytes=300 << 20)

    def __init__(self, folder: Path) -> None:
        self._wholes = [_whole(folder / "numbers", int), _whole(folder / "texts", "picture {}".format)]

    def make(self, rng: random.Random, folder: Path) -> OutputCase:
        """See `Kind`."""
        whole = rng.choice(self._wholes)
        files = dict(whole.files)
        data = rng.choice(sorted(name for name in files if name.startswith(DATA_FOLDER)))
        damages: list[tuple[Callable[[bytes, random.Random], Damage], str]] = [
            *((_broken, data),) * 4,
            *((_page_flipped, data),) * 4,
            *((_footer_broken, data),) * 4,
            *((partial(_metadata_changed, names=list(whole.ids)), data),) * 4,
            *((_schema_changed, data),) * 2,
            *((_json_changed, RUN_JSON),) * 4,
            (_broken, RUN_JSON),
            *((_json_changed, LOCK_NAME),) * 2,
            (_broken, LOCK_NAME),
            *((_replaced, name) for name in (data, RUN_JSON, LOCK_NAME)),
            (_untouched, _USERS_FILE),
        ]
        damage, path = rng.choice(damages)
        content, story = damage(files[path], rng)
        if rng.random() < 0.05:
            path, content, story = rng.choice(
                (
                    (f"{DATA_FOLDER}/odd.txt", b"?", "a foreign file"),
                    (f"{DATA_FOLDER}/{Path(data).name}.part", b"?", "a foreign file"),
                    (f"{DATA_FOLDER}/part-{'0' * 20}.parquet", b"", "a file that is empty"),
                    (f"{DATA_FOLDER}/part-{'0' * 20}.parquet/x", b"", "a folder with a file's name"),
                )
            )
        files.pop(path, None)
        for name, whole_content in files.items():
            _put(folder / name, whole_content)
        if content is not None:
            _put(folder / path, content)
        damaged = f"{DATA_FOLDER}/part-{'0' * 20}.parquet" if path.endswith("/x") else path
        return OutputCase(f"{path}: {story}", folder, damaged, whole)


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _whole(folder: Path, name_id: Callable[[int], Any]) -> Whole:
    uri, ids = Uri(str(folder)), {}
    store = OutputStore(uri)
    rows: Rows = {}
    with OutputLock(uri, "run-1"):
        for number in range(_NUM_FILES):
            numbers = range(number * _ROWS_PER_FILE, (number + 1) * _ROWS_PER_FILE)
            table = made_by(_table([name_id(n) for n in numbers], seed=number), IDENTITY.run_id)
            name = store.write_rows(table, IDENTITY).name
            ids[name] = table["image_id"].to_pylist()
            rows |= {row["image_id"]: row for row in table.to_pylist()}
    failed = sum(row["status"] == FAILED for row in rows.values())
    RunJson(
        run_id="run-1",
        state=RunState.FINISHED,
        config={"images": ImagesConfig().model_dump(mode="json"), "manifest": {"uri": "s3://bucket/list.csv"}},
        identity={"weights_sha256": "a" * 64},
        categories=CATEGORIES,
        images=ImageCounts(len(rows), len(rows) - failed, failed),
        failures={"not_found": failed},
    ).write(uri)
    (folder / _USERS_FILE).write_bytes(_USERS_TEXT)
    lock = folder / LOCK_NAME
    lock.write_text(json.dumps({**json.loads(lock.read_bytes()), **_HOLDER}, indent=1))
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return Whole(files, rows, ids)


def _table(ids: Sequence[Any], seed: int) -> pa.Table:
    """A row an id; every fourth image has failed, the others have 0 to 2 detections."""
    rng = np.random.default_rng(seed)
    bad = [number % 4 == 3 for number in range(len(ids))]
    found = [None if failed else _detections(rng, number % 3) for number, failed in enumerate(bad)]
    columns = [
        pa.array(ids),
        pa.array([f"s3://images/{id_}.jpg" for id_ in ids]),
        *(pa.array([None if failed else side for failed in bad], pa.int32()) for side in _IMAGE_SIZE),
        pa.array([None if failed else 1 for failed in bad], pa.int8()),
        pa.array([FAILED if failed else ANNOTATED for failed in bad]),
        detections_array(found, [c.id for c in CATEGORIES], [c.name for c in CATEGORIES]),
        *(pa.array([text if failed else None for failed in bad], pa.string()) for text in ("fetch", "not_found", "?")),
    ]
    return made_rows(columns)


def _detections(rng: np.random.Generator, number: int) -> ImageDetections:
    masks = np.asfortranarray((rng.random((*_IMAGE_SIZE, number)) < 0.3).astype(np.uint8))
    rles = coco_mask.encode(masks)
    return ImageDetections(
        boxes=rng.random((number, 4)).astype(np.float32) * 10,
        scores=np.sort(rng.random(number))[::-1].astype(np.float32),
        labels=rng.integers(0, len(CATEGORIES), number),
        areas=masks.sum((0, 1)).astype(np.float32),
        image_size=_IMAGE_SIZE,
        counts=[rle["counts"] for rle in rles],
    )


Damage = tuple[bytes | None, str]


def _untouched(content: bytes, rng: random.Random) -> Damage:
    return content, "whole"


def _broken(content: bytes, rng: random.Random) -> Damage:
    return break_bytes(content, rng)


def _replaced(content: bytes, rng: random.Random) -> Damage:
    new = rng.choice((None, b"", b"\0" * len(content), b"PAR1", b"PAR1" * 4, rng.randbytes(200), b"null", b"[]", b"{}"))
    return new, "removed" if new is None else f"replaced by {new!r:.40}"


def _page_flipped(content: bytes, rng: random.Random) -> Damage:
    """What a disk or a network does: one bit, between the file's first magic and its footer."""
    start = len(content) - int.from_bytes(content[-8:-4], "little") - 8
    place, bit = rng.randrange(4, start), rng.randrange(8)
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :], f"bit {bit} of byte {place}"


def _footer_broken(content: bytes, rng: random.Random) -> Damage:
    start = len(content) - int.from_bytes(content[-8:-4], "little") - 8
    if rng.random() < 0.2:
        length = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, len(content), len(content) - start))
        return content[:-8] + length.to_bytes(4, "little") + content[-4:], f"a footer of {length} bytes"
    broken, story = break_bytes(content[start:-8], rng)
    length = len(broken) if rng.random() < 0.5 else len(content) - 8 - start
    return content[:start] + broken + length.to_bytes(4, "little") + content[-4:], f"footer: {story}"


def _metadata_changed(content: bytes, rng: random.Random, names: Sequence[str]) -> Damage:
    """What our own footers say, changed, in a file that is otherwise as good. ``names`` are those of data files."""
    table = pq.read_table(io.BytesIO(content))
    metadata = {key.decode(): text.decode() for key, text in table.schema.metadata.items()}
    key = rng.choice(sorted(metadata))
    if key.endswith("replaces"):
        some = {rng.choice(names): rng.choice((0, 1, -1, None)) for _ in range(rng.randrange(1, 4))}
        metadata[key] = rng.choice((*names, "no such file", json.dumps(some), "{", '{"a": "b"}'))
    elif key.endswith(("counts", "content_config")):
        tree, story = break_tree(json.loads(metadata[key]), rng)
        metadata[key] = dump_json(tree, rng)
        return _parquet(table.replace_schema_metadata(metadata)), f"{key}: {story}"
    elif rng.random() < 0.2:
        del metadata[key]
        return _parquet(table.replace_schema_metadata(metadata)), f"{key} removed"
    else:
        metadata[key] = rng.choice(_ODD_TEXTS)
    return _parquet(table.replace_schema_metadata(metadata)), f"{key} = {metadata[key]!r:.60}"


def _schema_changed(content: bytes, rng: random.Random) -> Damage:
    table = pq.read_table(io.BytesIO(content))
    index = rng.randrange(table.num_columns)
    name, change = table.column_names[index], rng.randrange(3)
    if change == 0:
        return _parquet(table.drop_columns([name])), f"column {name} removed"
    if change == 1:
        renamed = [f"{one}_" if one == name else one for one in table.column_names]
        return _parquet(table.rename_columns(renamed)), f"column {name} renamed"
    values = pa.array([None] * table.num_rows, pa.binary())
    return _parquet(table.set_column(index, name, values)), f"column {name} is binary"


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _json_changed(content: bytes, rng: random.Random) -> Damage:
    tree = json.loads(content)
    stories = []
    for _ in range(rng.choice((1, 1, 3))):
        tree, story = break_tree(tree, rng)
        stories.append(story)
    return dump_json(tree, rng).encode(), "; ".join(stories)

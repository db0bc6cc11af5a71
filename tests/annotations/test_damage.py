"""Damaged data files: what is read of them is what was written, or an error says which file it is and what to do."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.annotations.class_thresholds import Selection
from pipeline.annotations.data_file import Counts, OutputError
from pipeline.annotations.ledger import OutputStore
from pipeline.annotations.overview import failed_rows, look_over
from pipeline.annotations.reader import open_source
from pipeline.annotations.rows import OutputRows
from pipeline.errors import UserError
from pipeline.evaluate.inputs.annotations import open_annotated_output
from pipeline.export.labels import Labels
from pipeline.storage.objects.any_fsspec import FsspecObjects
from pipeline.storage.uris import Uri
from pipeline.train.data.pseudo_labels import ScoreBands, read_pseudo_labels
from testing.output_rows import NAMES_OF_1
from tests.export.export_cases import CATEGORIES, IDENTITY, Picture, awkward_pictures, table_of

ADVICE = ("Move it away and run annotate again", "is cut off; run again to recover")


@dataclass(frozen=True)
class Output:
    """An output of two files, one of which can be damaged."""

    uri: Uri
    file: Path
    content: bytes

    @property
    def footer_at(self) -> int:
        return len(self.content) - 8 - int.from_bytes(self.content[-8:-4], "little")


@pytest.fixture
def output(tmp_path: Path) -> Output:
    store = OutputStore(Uri(str(tmp_path / "out")))
    pictures = awkward_pictures()
    name = store.write_rows(table_of(pictures), IDENTITY).name
    store.write_rows(table_of([Picture(999, [np.ones((5, 4), bool)])]), IDENTITY)
    file = tmp_path / "out" / "data" / name
    return Output(store.uri, file, file.read_bytes())


def _ids(uri: Uri) -> Any:
    store = OutputStore(uri)
    return [table.to_pydict() for table in store.iter_ids(store.files().settled, ("image_id", "status"))]


def _export(uri: Uri) -> Any:
    images = Labels(open_source(uri), Selection(), keep_empty=True).images()
    return [(image.image, image.boxes.tolist(), image.scores.tolist(), image.counts) for image in images]


def _evaluate(uri: Uri) -> Any:
    predictions = open_annotated_output(uri)
    batches = [batch for group in range(predictions.num_groups) for batch in predictions.read_group(group, True)]
    found = [(batch.place, batch.image_ids.to_pylist(), batch.detections.to_pylist()) for batch in batches]
    return predictions.list_group(0)[0].to_pydict(), found


def _train(uri: Uri) -> Any:
    images, report = read_pseudo_labels(uri, ScoreBands(Selection(), Selection()), CATEGORIES)
    return images, report


def _show(uri: Uri) -> Any:
    """What is damaged is named, not raised."""
    overview = look_over(uri)
    problems = list(overview.problems)
    rows = list(failed_rows(overview, problems))
    if problems:
        raise OutputError(problems[0])
    return overview.counts, overview.failures, overview.classes, rows


READERS: dict[str, Callable[[Uri], Any]] = {
    "resume": _ids,
    "books": lambda uri: OutputStore(uri).files().counts,
    "identity": lambda uri: OutputStore(uri).files().identity(),
    "export": _export,
    "visualize": lambda uri: list(OutputRows(uri).annotated()),
    "rows by id": lambda uri: OutputRows(uri).by_id(["1", "3", "999"]),
    "evaluate": _evaluate,
    "train": _train,
    "show": _show,
}


def check(output: Output, wanted: dict[str, Any]) -> Iterator[bool]:
    """Each reader gives what it gave of the whole file, or raises the one error; whether it did that."""
    for name, read in READERS.items():
        try:
            found = read(output.uri)
        except UserError as error:
            message = str(error)
        else:
            assert found == wanted[name], name
            yield False
            continue
        assert output.file.name in message, name
        assert any(advice in message for advice in ADVICE), name
        yield True


@pytest.mark.parametrize("part", ["rows", "footer"])
def test_a_damaged_byte(output: Output, part: str) -> None:
    wanted = {name: read(output.uri) for name, read in READERS.items()}
    places = range(output.footer_at) if part == "rows" else range(output.footer_at, len(output.content))
    rng = random.Random(part)
    raised = []
    for place in rng.sample(places, 60):
        content = bytearray(output.content)
        content[place] ^= 1 << rng.randrange(8)
        output.file.write_bytes(content)
        raised += list(check(output, wanted))
    assert sum(raised) > 100, "most readers read most parts"


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content, at: content[:at] + bytes(64) + content[at + 64 :], id="zeros"),
        pytest.param(lambda content, at: content[:at] + content[at + 1 :], id="a byte less"),
        pytest.param(lambda content, at: content[:at] + content[at - 100 : at] + content[at + 100 :], id="twice"),
        pytest.param(lambda content, at: content[:at], id="an end"),
    ],
)
def test_more_than_a_byte(output: Output, damage: Callable[[bytes, int], bytes]) -> None:
    wanted = {name: read(output.uri) for name, read in READERS.items()}
    rng = random.Random(1)
    for at in rng.sample(range(100, len(output.content) - 100), 10):
        output.file.write_bytes(damage(output.content, at))
        assert any(check(output, wanted))


def test_rows_are_not_removed_where_they_cannot_be_read(output: Output) -> None:
    content = bytearray(output.content)
    for place in range(4, output.footer_at, 8):
        content[place] ^= 255
    output.file.write_bytes(content)
    with pytest.raises(OutputError, match=rf"{output.file.name} is damaged .*Move it away"):
        OutputStore(output.uri).strip_failed(lambda: None)
    assert output.file.read_bytes() == bytes(content)
    output.file.rename(output.file.parents[2] / "away")
    assert OutputStore(output.uri).recover(lambda: None).num_files == 1
    assert OutputStore(output.uri).files().counts.rows == 1


def _of_an_earlier_release(table: pa.Table, changed: dict[str, str | bytes | None]) -> bytes:
    values = {"schema_version": "1", "replaces": "", "counts": json.dumps(asdict(Counts.of(table)))}
    texts = asdict(IDENTITY) | values | changed
    sink = pa.BufferOutputStream()
    metadata = {f"maskfleet.{key}": text for key, text in texts.items() if text is not None}
    pq.write_table(table.select(NAMES_OF_1).replace_schema_metadata(metadata), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("changed", [{}, {"of a later release": "x"}])
def test_files_without_checksums_are_read(output: Output, changed: dict[str, Any]) -> None:
    wanted = {name: read(output.uri) for name, read in READERS.items()}
    output.file.write_bytes(_of_an_earlier_release(table_of(awkward_pictures()), changed))
    assert not any(check(output, wanted))


_STATISTICS = """
import sys, pyarrow as pa, pyarrow.parquet as pq
for content in sys.stdin.buffer.read().split(b"|end|")[:-1]:
    try:
        metadata = pq.read_metadata(pa.BufferReader(content))
        [str(metadata.row_group(0).column(at).statistics) for at in range(metadata.num_columns)]
    except Exception:
        pass
"""
_READ = """
import sys
from pathlib import Path
from tests.annotations.test_damage import READERS, Uri
file = Path(sys.argv[1])
for content in sys.stdin.buffer.read().split(b"|end|")[:-1]:
    file.write_bytes(content)
    for name in ("books", "resume", "export", "evaluate"):
        try:
            READERS[name](Uri(str(file.parents[1])))
        except Exception:
            pass
"""


def test_damaged_statistics_end_no_process(output: Output) -> None:
    """As they do in pyarrow's view of them, which an uncaught C++ exception leaves; in files without a digest, too."""
    whole = _of_an_earlier_release(table_of(awkward_pictures()), {})
    start = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    rng = random.Random(1)
    damaged = b""
    for at in rng.choices(range(start, len(whole) - 8), k=400):
        content = bytearray(whole)
        content[at] = rng.choice([content[at] ^ 1 << rng.randrange(8), 0, 255])
        damaged += bytes(content) + b"|end|"
    codes = [
        subprocess.run([sys.executable, "-c", code, str(output.file)], input=damaged, capture_output=True).returncode
        for code in (_STATISTICS, _READ)
    ]
    assert codes == [-signal.SIGABRT, 0]


@pytest.mark.parametrize(
    "changed",
    [
        {"counts": "{"},
        {"counts": "[" * 100_000},
        {"counts": '{"annotated": ' * 100_000},
        {"counts": "null"},
        {"counts": "[1, 2]"},
        {"counts": '{"annotated": "many"}'},
        {"counts": '{"annotated": 1e400}'},
        {"counts": '{"annotated": 7, "detections_by_category": {"cat": 1}}'},
        {"counts": '{"annotated": 7, "failed": 1}'},
        {"run_id": b"\xff\xfe"},
        {"weights_sha256": None},
        {"schema_version": None},
    ],
    ids=lambda changed: str(changed)[:40],
)
def test_garbage_in_the_footer(output: Output, changed: dict[str, Any]) -> None:
    output.file.write_bytes(_of_an_earlier_release(table_of(awkward_pictures()), changed))
    for read in (*READERS.values(), lambda uri: OutputStore(uri).recover(lambda: None)):
        with pytest.raises(UserError, match=rf"{output.file.name} is damaged .*Move it away"):
            read(output.uri)
    assert output.file.exists()


@pytest.mark.parametrize("settings", ["{", "[" * 100_000, "null", '{"a":' * 900 + "1" + "}" * 900, "\0"])
def test_settings_that_are_none(output: Output, settings: str) -> None:
    """They are shown where another run has others, and are no reason to end otherwise."""
    output.file.write_bytes(_of_an_earlier_release(table_of(awkward_pictures()), {"content_config": settings}))
    output.file.parent.joinpath(next(f for f in output.file.parent.iterdir() if f != output.file)).unlink()
    OutputStore(output.uri).files().check_identity(IDENTITY)
    with pytest.raises(OutputError, match="made with other settings"):
        OutputStore(output.uri).files().check_identity(type(IDENTITY)(**asdict(IDENTITY) | {"config_digest": "d" * 64}))


def test_a_schema_of_others_that_is_deeply_nested(output: Output) -> None:
    """Thrift's compact protocol: a group in a group and so on, and a column at the end."""
    depth = 200_000
    group, column = bytes([0x35, 0, 0x18, 1]) + b"a" + bytes([0x15, 2, 0]), bytes([0x15, 2, 0x25, 0, 0x18, 1]) + b"x\0"
    number = bytes([(depth + 1) & 127 | 128, (depth + 1) >> 7 & 127 | 128, (depth + 1) >> 14])
    schema = bytes([0x15, 4, 0x19, 0xFC]) + number + group * depth + column
    footer = schema + bytes([0x16, 0, 0x19, 0x0C, 0])
    output.file.write_bytes(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    for read in READERS.values():
        with pytest.raises(UserError, match=output.file.name):
            read(output.uri)


def test_a_storage_that_fails_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = OutputStore(Uri(f"memory://{tmp_path.name}/out"))
    name = store.write_rows(table_of(awkward_pictures()), IDENTITY).name
    of_folder, calls = FsspecObjects.read_range, iter(range(100))

    def fail(objects: FsspecObjects, *what: Any) -> bytes:
        if next(calls):
            raise OSError("HTTP 503")
        return of_folder(objects, *what)

    monkeypatch.setattr(FsspecObjects, "read_range", fail)
    for _ in range(2):  # when the rows are read, and when the footer is
        with pytest.raises(OSError, match=rf"{name} cannot be read: HTTP 503"):
            list(store.iter_ids(store.files().settled))

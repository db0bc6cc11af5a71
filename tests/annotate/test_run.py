"""The annotate job from end to end, on a real Ray, with a small model and small pictures."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import logging
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler
from itertools import count
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import ray
import torch
import yaml
from PIL import Image
from pycocotools import mask as coco_mask

from jobs import annotate as cli
from pipeline.annotate import rounds
from pipeline.annotate.config import AnnotateConfig
from pipeline.annotate.run import MAX_EMPTY_ROUNDS, RunFailed, annotate
from pipeline.annotate.summary import page as summary_page
from pipeline.annotate.summary.sample import Sample
from pipeline.annotations.ledger import IdentityMismatch, OutputStore
from pipeline.annotations.overview import Overview, Standing, look_over
from pipeline.annotations.run_json import ImageCounts, RunJson, ThisRun
from pipeline.annotations.schema import output_schema
from pipeline.cluster.address import ClusterError
from pipeline.images.decode import decode_image
from pipeline.model.cascade_mask_rcnn.layouts import to_native
from pipeline.model.detections import Detections
from pipeline.model.files.checkpoints import Checkpoint, save_checkpoint
from pipeline.model.predictor import load_model
from pipeline.storage.filesystems import open_filesystem
from pipeline.storage.lock.lease import OutputLock
from pipeline.storage.lock.watch import LockHeld
from pipeline.storage.uris import Uri
from pipeline.storage.versions import ObjectVersion, microseconds, version_of_bytes, version_of_status
from testing.s3_server import S3Server, s3_environment_variables
from testing.small_model import SMALL, SMALL_CATEGORIES, SMALL_SETTINGS, picture
from testing.web import serving
from tests.model.golden_weights import official_weights

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

SETTINGS = replace(SMALL_SETTINGS, short_side=64, long_side=96, max_detections=6)
CARRIED = pa.schema([("split", pa.string()), ("tags", pa.list_(pa.int64())), ("weight", pa.float32())])
MAX_PIXELS, MAX_BYTES = 200_000, 500_000
LATE_ID = 1900
GATE_S = 60.0

Row = dict[str, Any]


def encoded(image: np.ndarray | Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format, **options)
    return buffer.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture(60, 90, 8), "JPEG", exif=exif, quality=90)


# File, its content; as it lies beside the manifest.
GOOD_FILES: dict[str, bytes] = {
    "a.png": encoded(picture(64, 90, 0)),
    "b.png": encoded(picture(64, 90, 1)),
    "portrait.png": encoded(picture(90, 64, 2)),
    "grey.png": encoded(Image.fromarray(picture(70, 70, 3)).convert("L")),
    "alpha.png": encoded(Image.fromarray(picture(64, 80, 4)).convert("RGBA")),
    "photo.jpg": encoded(picture(64, 90, 5), "JPEG"),
    "large.png": encoded(picture(210, 300, 6)),
    "deep/er/photo.webp": encoded(picture(64, 96, 7), "WEBP"),
    "turned.jpg": turned(),
    "palette.gif": encoded(Image.fromarray(picture(48, 90, 9)).quantize(64), "GIF"),
}
GOOD_BYTES: list[bytes] = [
    encoded(picture(64, 90, 10)),
    encoded(picture(50, 50, 11), "BMP"),
    encoded(picture(64, 90, 12)),
]
BAD_FILES: dict[str, tuple[bytes | None, str, str]] = {
    "missing.png": (None, "fetch", "not_found"),
    "huge.bmp": (b"BM" + bytes(MAX_BYTES), "fetch", "too_large"),
    "empty.png": (b"", "decode", "empty_object"),
    "page.jpg": (b"<html>404</html>", "decode", "not_an_image"),
    "cut.png": (encoded(picture(64, 90, 13))[:4000], "decode", "corrupt_image"),
    "wide.jpg": (encoded(picture(250, 1000, 15), "JPEG"), "decode", "too_many_pixels"),
    "paper.png": (b"%PDF-1.7", "decode", "unsupported_image"),
}


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of single tests draw their page without pictures, which take a process of their own; `first` draws all."""
    monkeypatch.setattr(summary_page, "draw_sample", lambda *_: Sample())


@dataclass(frozen=True)
class World:
    """A manifest with good and bad images of every kind, and a model.

    Attributes:
        good: content of the good images by id.
        bad: stage and error code of the others.
        late: where the image belongs that is not there yet, and its content.
    """

    folder: Path
    table: pa.Table
    good: dict[int, bytes]
    bad: dict[int, tuple[str, str]]
    late: tuple[Path, bytes]

    def values(self, out: Path | str, **changes: Any) -> dict[str, Any]:
        """A config; changes are ``section__key=value``."""
        values: dict[str, Any] = {
            "manifest": {"uri": str(self.folder / "manifest.parquet"), "carry": CARRIED.names},
            "images": {"max_pixels": MAX_PIXELS, "max_object_bytes": MAX_BYTES},
            "model": {"checkpoint": str(self.folder / "model.safetensors"), "batch_size": 2},
            "resources": {"images_per_block": 4},
            "output": {"uri": str(out), "images_per_file": 8, "max_failed_fraction": 0.9},
        }
        for path, value in changes.items():
            section, key = path.split("__")
            values[section][key] = value
        return values

    def config(self, out: Path | str, **changes: Any) -> AnnotateConfig:
        return AnnotateConfig.model_validate(self.values(out, **changes))


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    weights = to_native(official_weights(SMALL), "official")
    return Checkpoint(weights, SMALL, SMALL_CATEGORIES, SETTINGS, {"file": "made up"})


@pytest.fixture(scope="module")
def world(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    save_checkpoint(checkpoint, folder / "model.safetensors")
    contents = {**GOOD_FILES, **{name: blob for name, (blob, *_) in BAD_FILES.items()}}
    for name, content in contents.items():
        if content is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    # Good and bad ones alternate; ids are neither dense nor in order.
    names = [name for pair in zip(GOOD_FILES, [*BAD_FILES, None, None, None], strict=True) for name in pair if name]
    ids = [1000 - 37 * i for i in range(len(names))]
    rows: list[tuple[int, str | None, bytes | None]] = [
        (number, str(folder / name), None) for number, name in zip(ids, names, strict=True)
    ]
    rows += [(2000 + i, None, blob) for i, blob in enumerate(GOOD_BYTES)]
    rows += [(2100, None, b"broken"), (LATE_ID, str(folder / "late.png"), None)]
    table = pa.table(
        {
            "image_id": pa.array([row[0] for row in rows], pa.int64()),
            "image_uri": pa.array([row[1] for row in rows], pa.string()),
            "image_bytes": pa.array([row[2] for row in rows], pa.binary()),
            "split": pa.array([("train", "val", None)[i % 3] for i in range(len(rows))], pa.string()),
            "tags": pa.array([(None, [], [i, i + 1])[i % 3] for i in range(len(rows))], CARRIED.field("tags").type),
            "weight": pa.array([i / 7 for i in range(len(rows))], pa.float32()),
            "left out": pa.array(range(len(rows))),
        }
    )
    pq.write_table(table, folder / "manifest.parquet", row_group_size=9)
    good = {number: GOOD_FILES[name] for number, name in zip(ids, names, strict=True) if name in GOOD_FILES}
    good |= {2000 + i: blob for i, blob in enumerate(GOOD_BYTES)}
    bad = {n: BAD_FILES[name][1:] for n, name in zip(ids, names, strict=True) if name in BAD_FILES}
    bad |= {2100: ("decode", "not_an_image"), LATE_ID: ("fetch", "not_found")}
    return World(folder, table, good, bad, (folder / "late.png", encoded(picture(64, 90, 14))))


@pytest.fixture(scope="module")
def expected(checkpoint: Checkpoint, world: World) -> dict[int, Detections]:
    """What the model's own `predict` finds, one picture at a time."""
    wide = next(number for number, (_, code) in world.bad.items() if code == "too_many_pixels")
    wide_content = BAD_FILES["wide.jpg"][0]
    assert wide_content is not None
    return predictions(checkpoint, {**world.good, LATE_ID: world.late[1], wide: wide_content})


def predictions(checkpoint: Checkpoint, contents: dict[Any, bytes]) -> dict[Any, Detections]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        predictor = load_model(checkpoint, "cpu")
        return {key: predictor.predict([decode_image(blob).pixels])[0] for key, blob in contents.items()}
    finally:
        torch.set_num_threads(threads)


@dataclass
class Ended:
    """How a command ended: exit code, log lines, what it printed."""

    code: int
    log: list[str] = field(default_factory=list)
    said: str = ""


class _Lines(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.INFO)
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def command(folder: Path, values: dict[str, Any], *arguments: str) -> Ended:
    """``python -m jobs.annotate`` in this process."""
    path = folder / "annotate.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    log: list[str] = []
    root, handler, said = logging.getLogger(), _Lines(log), io.StringIO()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        with contextlib.redirect_stdout(said):
            code = cli.main(["--config", str(path), *arguments])
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    return Ended(code, log, said.getvalue())


def read_rows(out: Path | str) -> dict[Any, Row]:
    """All rows by id; an id that is there twice is an error."""
    filesystem, path = open_filesystem(Uri(str(out)))
    table = pa.dataset.dataset(f"{path}/data", filesystem=filesystem).to_table()
    rows = {row["image_id"]: row for row in table.to_pylist()}
    assert len(rows) == len(table)
    return rows


def data_files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "data").iterdir())}


def assert_detections(row: Row, found: Detections, categories: Sequence[Any] = SMALL_CATEGORIES) -> None:
    """Equal, but for rounding: a batch of several images may use other kernels than one image."""
    assert (row["height"], row["width"]) == found.image_size
    assert len(row["detections"]) == len(found) > 0
    for i, (detection, rle) in enumerate(zip(row["detections"], found.rle(), strict=True)):
        category = categories[found.labels[i]]
        assert (detection["category_id"], detection["category_name"]) == (category.id, category.name)
        assert detection["score"] == pytest.approx(float(found.scores[i]), abs=1e-5)
        x0, y0, x1, y1 = found.boxes[i].tolist()
        assert detection["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0], abs=1e-3)
        segmentation = detection["segmentation"]
        assert segmentation["size"] == list(found.image_size)
        if segmentation["counts"].encode() != rle["counts"]:
            ours, theirs = (
                coco_mask.decode({**segmentation, "counts": c})
                for c in (segmentation["counts"].encode(), rle["counts"])
            )
            assert np.count_nonzero(ours != theirs) <= 2
        assert detection["area"] == coco_mask.area({**segmentation, "counts": segmentation["counts"].encode()})


def without_detections(row: Row) -> Row:
    return {key: value for key, value in row.items() if key != "detections"}


def assert_same_content(left: dict[Any, Row], right: dict[Any, Row]) -> None:
    assert left.keys() == right.keys()
    for key, row in left.items():
        runs = {"run_id": None}  # two of them
        assert {**without_detections(row), **runs} == {**without_detections(right[key]), **runs}
        if row["status"] == "failed":
            assert (row["detections"], right[key]["detections"]) == (None, None)
            continue
        assert len(row["detections"]) == len(right[key]["detections"])
        for ours, theirs in zip(row["detections"], right[key]["detections"], strict=True):
            assert ours["category_id"] == theirs["category_id"]
            assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)
            assert ours["bbox"] == pytest.approx(theirs["bbox"], abs=1e-3)
            assert ours["area"] == pytest.approx(theirs["area"], abs=2)


def eventually(is_true: Callable[[], bool], timeout_s: float = 60.0) -> bool:
    give_up_at = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > give_up_at:
            return False
        time.sleep(0.2)
    return True


@pytest.fixture(autouse=True)
def _nothing_stays_in_ray(ray_s3: S3Server) -> Iterator[None]:
    """Replicas that outlive their run would keep the next one waiting for ever."""
    yield
    gc.collect()
    assert eventually(lambda: ray.available_resources().get("CPU", 0.0) == 3.0), ray.available_resources()


@dataclass(frozen=True)
class First:
    """The first run: an empty output, a budget that is too small."""

    out: Path
    ended: Ended
    rows: dict[int, Row]
    report: dict[str, Any]

    def copy(self, to: Path) -> Path:
        """The output, to be worked on."""
        shutil.copytree(self.out, to)
        return to


@pytest.fixture(scope="module")
def first(ray_s3: S3Server, world: World, tmp_path_factory: pytest.TempPathFactory) -> First:
    out = tmp_path_factory.mktemp("first") / "out"
    ended = command(out.parent, world.values(out), "--set", "output.max_failed_fraction=0.1")
    return First(out, ended, read_rows(out), json.loads((out / "run.json").read_text()))


class TestFirstRun:
    def test_above_the_error_budget(self, first: First, world: World) -> None:
        assert first.ended.code == 3
        share = len(world.bad) / len(world.table)
        assert first.ended.log[-1] == (
            f"exit code 3: {share:.2%} of the images failed, more than the 10.00% of output.max_failed_fraction; "
            "all results were kept"
        )
        assert first.report["state"] == "too_many_failures"

    def test_equals_predict(self, first: First, world: World, expected: dict[int, Detections]) -> None:
        annotated = {number: row for number, row in first.rows.items() if row["status"] == "annotated"}
        assert annotated.keys() == world.good.keys()
        for number, row in annotated.items():
            assert_detections(row, expected[number])
            assert (row["stage"], row["error_code"], row["error_message"]) == (None, None, None)
        assert len({label for found in expected.values() for label in found.labels.tolist()}) > 2

    def test_bad_images(self, first: First, world: World) -> None:
        failed = {number: row for number, row in first.rows.items() if row["status"] == "failed"}
        assert {number: (row["stage"], row["error_code"]) for number, row in failed.items()} == world.bad
        for row in failed.values():
            assert row["error_message"]
            assert (row["detections"], row["height"], row["width"]) == (None, None, None)

    def test_exif_orientation(self, first: First, world: World) -> None:
        number = next(n for n, blob in world.good.items() if blob == GOOD_FILES["turned.jpg"])
        row = first.rows[number]
        assert (row["exif_orientation"], row["height"], row["width"]) == (6, 90, 60)

    def test_what_rows_were_made_from(self, first: First, world: World) -> None:
        contents = dict(zip(world.table["image_id"].to_pylist(), world.table["image_bytes"].to_pylist(), strict=True))
        for number, row in first.rows.items():
            assert row["run_id"] == first.report["run_id"]
            wanted = ObjectVersion()
            if contents[number] is not None:
                wanted = version_of_bytes(contents[number])
            elif row["stage"] != "fetch":
                wanted = version_of_status(os.stat(row["image_uri"]))
            time = row["object_mtime"]
            found = (row["object_etag"], row["object_size"], time and microseconds(time), row["object_version"])
            assert found == wanted, row["image_uri"]

    def test_the_books_close(self, first: First, world: World) -> None:
        assert sorted(first.rows) == sorted(world.table["image_id"].to_pylist())
        good, bad = len(world.good), len(world.bad)
        assert first.report["images"] == {"manifest": good + bad, "annotated": good, "failed": bad, "deleted": 0}
        assert first.report["failures"] == Counter(code for _, code in world.bad.values())
        names = Counter(d["category_name"] for row in first.rows.values() for d in row["detections"] or [])
        assert first.report["detections_per_category"] == names

    def test_carried_columns_and_uris(self, first: First, world: World) -> None:
        for source in world.table.to_pylist():
            row = first.rows[source["image_id"]]
            for name in ("image_uri", *CARRIED.names):
                assert row[name] == source[name], name
            assert "left out" not in row
            assert "image_bytes" not in row

    def test_run_json(self, first: First, world: World, checkpoint: Checkpoint) -> None:
        report = first.report
        assert set(report) == {
            *("run_id", "state", "ended", "looked_again", "config", "identity", "code", "cluster", "categories"),
            *("image_root", "manifest_version", "images", "changes"),
            *("failures", "detections_per_category", "this_run"),
        }
        assert report["config"]["manifest"]["uri"] == str(world.folder / "manifest.parquet")
        assert report["config"]["output"]["max_failed_fraction"] == 0.1  # as given on the command line
        assert report["config"]["images"]["apply_exif"] is True  # a default, written out
        assert report["identity"]["weights_sha256"] == checkpoint.weights_sha256
        assert report["identity"]["model_name"] == "custom (made up)"
        assert report["image_root"] is None  # its URIs are absolute
        assert report["categories"] == [{"id": c.id, "name": c.name} for c in checkpoint.categories]
        assert report["identity"]["run_id"] == report["run_id"]
        assert report["identity"]["source"] == {"file": "made up"}
        assert report["code"]["version"] == report["identity"]["code_version"]
        assert report["code"]["packages"]["ray"] == ray.__version__
        assert (report["cluster"]["nodes"], report["cluster"]["cpus"], report["cluster"]["gpus"]) == (1, 3, 0)
        run = report["this_run"]
        assert (run["images"], run["rounds"]) == (len(world.table), 1)
        assert run["images_per_second"] == pytest.approx(run["images"] / run["seconds"], rel=0.01)
        assert 0 < run["replica_busy_share"] <= 1
        assert 0.5 <= run["batch_fill"] <= 1  # batches of two
        assert set(run["time_split_s"]) == {"fetch", "decode", "segment", "encode", "write"}
        assert all(seconds > 0 for seconds in run["time_split_s"].values()), run["time_split_s"]
        assert sum(run["time_split_s"].values()) < 3 * run["seconds"]

    def test_files(self, first: First, checkpoint: Checkpoint) -> None:
        assert sorted(p.name for p in first.out.iterdir() if not p.name.startswith(".")) == [
            "_lock.json",
            "data",
            "run.json",
            "summary.html",
        ]
        page = (first.out / "summary.html").read_text()
        assert "The run: finished" in page
        assert "data:image/webp" in page
        assert json.loads((first.out / "_lock.json").read_text())["released"] is True
        rows = sorted(pq.read_metadata(path).num_rows for path in (first.out / "data").iterdir())
        assert sum(rows) == len(first.rows)
        assert max(rows) <= 8
        store = OutputStore(Uri(str(first.out)))
        assert store.recover(lambda: None).num_files == len(rows)
        identity = store.files().identity()
        assert identity is not None
        assert (identity.weights_sha256, identity.run_id) == (checkpoint.weights_sha256, first.report["run_id"])
        assert identity.config_digest == first.report["identity"]["config_digest"]

    def test_summary(self, first: First, world: World) -> None:
        lines = first.ended.said.splitlines()
        good, bad = len(world.good), len(world.bad)
        assert lines[0] == f"{good + bad} images = {good} annotated + {bad} failed ({bad / (good + bad):.2%})"
        assert "  2 not_found" in lines
        assert any(line.startswith(f"this run: {good + bad} images in ") for line in lines)
        total = sum(len(row["detections"] or []) for row in first.rows.values())
        assert any(line.startswith(f"{total:,} detections: ") for line in lines)


class TestReaders:
    """Types as the schema says, with no code of ours."""

    def test_pyarrow(self, first: First) -> None:
        schema = output_schema(pa.int64(), CARRIED)
        assert pa.dataset.dataset(first.out / "data").schema.remove_metadata().equals(schema)
        table = pq.read_table(first.out / "data")
        assert table.schema.remove_metadata().equals(schema)
        table.validate(full=True)
        assert len(table) == len(first.rows)

    def test_pandas(self, first: First) -> None:
        frame = pd.read_parquet(first.out / "data")
        assert frame.columns.tolist() == output_schema(pa.int64(), CARRIED).names
        assert (frame["image_id"].dtype, frame["weight"].dtype) == (np.int64, np.float32)
        found = frame.set_index("image_id")["detections"]
        for number, row in first.rows.items():
            assert (found[number] is None) == (row["status"] == "failed")
            if row["status"] == "annotated":
                assert [d["score"] for d in found[number]] == [d["score"] for d in row["detections"]]

    def test_polars(self, first: First) -> None:
        frame = pl.read_parquet(first.out / "data" / "*.parquet")
        assert frame.schema["image_id"] == pl.Int64
        assert frame.schema["status"] == pl.String
        assert frame.schema["tags"] == pl.List(pl.Int64)
        detection = frame.schema["detections"].inner.to_schema()  # type: ignore[attr-defined]
        assert detection["bbox"] in (pl.Array(pl.Float32, 4), pl.List(pl.Float32))
        plain = {
            name: kind for name, kind in detection.items() if name in ("score", "category_id", "category_name", "area")
        }
        assert plain == {"score": pl.Float32, "category_id": pl.Int32, "category_name": pl.String, "area": pl.Float32}
        scores = frame.explode("detections").unnest("detections")["score"].drop_nulls().to_list()
        assert sorted(scores) == sorted(d["score"] for row in first.rows.values() for d in row["detections"] or [])

    def test_duckdb(self, first: First) -> None:
        source = f"read_parquet('{first.out}/data/*.parquet')"
        types = {name: kind for name, kind, *_ in duckdb.sql(f"describe select * from {source}").fetchall()}
        assert types["image_id"] == "BIGINT"
        assert types["exif_orientation"] == "TINYINT"
        assert types["weight"] == "FLOAT"
        assert types["detections"].startswith("STRUCT(bbox FLOAT[")
        assert types["detections"].endswith("[]")
        query = f"""
            select d.category_name, count(*) from (select unnest(detections) as d from {source})
            where d.segmentation.size[1] > 0 group by 1
        """
        assert dict(duckdb.sql(query).fetchall()) == first.report["detections_per_category"]


class TestSecondRun:
    def test_nothing_to_do(self, first: First, world: World, tmp_path: Path) -> None:
        out = first.copy(tmp_path / "out")
        before = {
            path: path.stat().st_mtime_ns
            for path in [*(out / "data").iterdir(), out / "run.json", out / "summary.html"]
        }
        # How a run is spread, and its limits, are no matter of content.
        changes = {"output__images_per_file": 100, "resources__images_per_block": 8, "images__max_pixels": 999}
        values = world.values(out, model__batch_size=4, **changes)
        ended = command(tmp_path, values)
        assert ended.code == 0
        assert ended.log[-1] == f"exit code 0: nothing_to_do: {out}"
        assert {path: path.stat().st_mtime_ns for path in before} == before
        assert data_files(out) == data_files(first.out)
        assert ended.said.startswith(first.ended.said.splitlines()[0])

    def test_the_budget_stays_too_small(self, first: First, world: World, tmp_path: Path) -> None:
        report = annotate(world.config(first.copy(tmp_path / "out"), output__max_failed_fraction=0.1))
        assert (report.state, report.this_run) == ("too_many_failures", ThisRun())

    def test_a_report_that_a_crash_left_is_put_right(self, first: First, world: World, tmp_path: Path) -> None:
        out = first.copy(tmp_path / "out")
        (out / "run.json").write_text(json.dumps({**first.report, "state": "running", "images": {}}))
        annotate(world.config(out))
        report = json.loads((out / "run.json").read_text())
        assert (report["state"], report["images"]) == ("nothing_to_do", first.report["images"])

    def test_images_that_left_the_manifest_stay_in_the_output(self, first: First, world: World, tmp_path: Path) -> None:
        out = first.copy(tmp_path / "out")
        pq.write_table(world.table.slice(3), tmp_path / "manifest.parquet")
        ended = command(tmp_path, world.values(out, manifest__uri=str(tmp_path / "manifest.parquet")))
        assert ended.code == 0
        assert any("3 images are in the output and not in the manifest" in line for line in ended.log)
        assert data_files(out) == data_files(first.out)

    @pytest.mark.parametrize(
        ("changes", "shown"),
        [
            pytest.param(
                {"model__score_threshold": 0.3}, "model.settings.score_threshold: 0.05 -> 0.3", id="threshold"
            ),
            pytest.param({"images__apply_exif": False}, "images.apply_exif: true -> false", id="exif"),
            pytest.param({"model__class_thresholds": {"thing 0": 0.5}}, "thing 0", id="class threshold"),
            pytest.param({"manifest__carry": ["split"]}, "manifest.carry", id="carried columns"),
        ],
    )
    @pytest.mark.parametrize("flags", [[], ["--retry-failed"]], ids=["plain", "retry failed"])
    def test_another_config_is_refused(
        self, first: First, world: World, tmp_path: Path, changes: dict[str, Any], shown: str, flags: list[str]
    ) -> None:
        out = first.copy(tmp_path / "out")
        ended = command(tmp_path, world.values(out, **changes), *flags)
        assert ended.code == 2
        assert ended.log[-1].startswith("exit code 2: IdentityMismatch: ")
        assert shown in ended.log[-1]
        assert data_files(out) == data_files(first.out)

    def test_another_model_is_refused(self, first: First, world: World, checkpoint: Checkpoint, tmp_path: Path) -> None:
        weights = {name: tensor.clone() for name, tensor in checkpoint.weights.items()}
        next(iter(weights.values())).view(-1)[0] += 1e-3
        save_checkpoint(replace(checkpoint, weights=weights, weights_sha256=""), tmp_path / "other.safetensors")
        out = first.copy(tmp_path / "out")
        with pytest.raises(IdentityMismatch) as refused:
            annotate(world.config(out, model__checkpoint=str(tmp_path / "other.safetensors")))
        assert [line.split(":")[0] for line in refused.value.differences] == ["weights_sha256"]
        assert data_files(out) == data_files(first.out)

    def test_another_type_of_a_carried_column_is_refused(self, first: First, world: World, tmp_path: Path) -> None:
        out = first.copy(tmp_path / "out")
        weight = world.table.column_names.index("weight")
        table = world.table.set_column(weight, "weight", world.table["weight"].cast(pa.float64()))
        pq.write_table(table, tmp_path / "manifest.parquet")
        with pytest.raises(IdentityMismatch, match="column weight: float -> double"):
            annotate(world.config(out, manifest__uri=str(tmp_path / "manifest.parquet")))
        assert data_files(out) == data_files(first.out)

    def test_the_same_model_under_another_name(
        self, first: First, world: World, checkpoint: Checkpoint, tmp_path: Path
    ) -> None:
        save_checkpoint(replace(checkpoint, source={"file": "renamed"}), tmp_path / "renamed.safetensors")
        out = first.copy(tmp_path / "out")
        report = annotate(world.config(out, model__checkpoint=str(tmp_path / "renamed.safetensors")))
        assert report.state == "nothing_to_do"

    def test_an_output_that_another_run_writes(self, first: First, world: World, tmp_path: Path) -> None:
        out = first.copy(tmp_path / "out")
        with OutputLock(Uri(str(out)), "the-other-run", lease_s=1.5):
            ended = command(tmp_path, world.values(out))
        assert ended.code == 1
        assert ended.log[-1].startswith("exit code 1: LockHeld: ")
        assert "the-other-run" in ended.log[-1]
        assert annotate(world.config(out)).state == "nothing_to_do"  # as soon as that one is over

    def test_rows_that_are_there_twice(self, first: First, world: World, tmp_path: Path) -> None:
        out = first.copy(tmp_path / "out")
        file = next((out / "data").iterdir())
        shutil.copy(file, file.with_name("part-00000000000000000000.parquet"))
        before = data_files(out)
        ended = command(tmp_path, world.values(out))
        assert ended.code == 2
        assert ended.log[-1].startswith("exit code 2: OutputError: ")
        assert "are more than once in" in ended.log[-1]
        assert data_files(out) == before

    def test_no_room_in_the_cluster(self, first: First, world: World, tmp_path: Path) -> None:
        out = first.copy(tmp_path / "out")
        values = world.values(out, resources__actors=50)
        ended = command(tmp_path, values, "--retry-failed")
        assert ended.code == 2
        assert "exit code 2: ClusterError: 50 replicas of 1 CPU, and 1 CPU for fetching" in ended.log[-1]
        assert data_files(out) == data_files(first.out)  # nothing was started, so nothing is queued again


class TestRounds:
    """The audit at the end, with rounds that lose rows."""

    def test_what_a_round_loses_is_queued_again(
        self, first: First, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[int] = []
        files = sorted((first.out / "data").iterdir())
        there = [1] * MAX_EMPTY_ROUNDS + list(range(2, len(files) + 1))  # as often as it takes, while some are written

        def lossy(self: rounds.Rounds, pending: Any, work: Any, store: Any) -> str:
            asked.append(pending.num_pending)
            kept = files[: there[len(asked) - 1]]
            (tmp_path / "out" / "data").mkdir(exist_ok=True)
            for file in kept:
                shutil.copy(file, tmp_path / "out" / "data")
            return ""

        monkeypatch.setattr(rounds.Rounds, "run", lossy)
        report = annotate(world.config(tmp_path / "out"))
        assert asked[:2] == [len(world.table), len(world.table) - pq.read_metadata(files[0]).num_rows]
        assert (report.state, report.this_run.rounds) == ("finished", len(there))
        assert_same_content(read_rows(tmp_path / "out"), first.rows)

    def test_rounds_end(self, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[int] = []
        monkeypatch.setattr(rounds.Rounds, "run", lambda self, pending, work, store: asked.append(pending.num_pending))
        ended = command(tmp_path, world.values(tmp_path / "out"))
        assert ended.code == 1
        message = f"{len(world.table)} images are still missing, and 3 rounds wrote none of them"
        assert f"RunFailed: {message}" in ended.log[-1]
        assert len(asked) == 3
        report = json.loads((tmp_path / "out" / "run.json").read_text())
        assert (report["state"], report["this_run"]["error"]) == ("failed", message)


@contextmanager
def _gallery(picture: bytes | None, at_once: int, opens: Callable[[], bool]) -> Iterator[str]:
    """A web server that answers the first few requests at once, and all others from when on something has happened.

    Args:
        picture: the answer to all of them, ``None`` for 404, which those get as well that have waited for long.
        opens: whether it has happened.

    Gives:
        its root.
    """
    asked, opened = count(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            in_time = next(asked) < at_once or opened.is_set()
            if not in_time and eventually(opens, timeout_s=GATE_S):
                opened.set()
                in_time = True
            answer = picture if in_time else None
            self.send_response(404 if answer is None else 200)
            self.send_header("Content-Length", str(len(answer or b"")))
            self.end_headers()
            self.wfile.write(answer or b"")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with serving(Handler) as url:
        yield f"{url}/"


def _pictures_of(root: str, count: int, manifest: Path) -> dict[str, Any]:
    """Write a manifest of so many pictures of a gallery; the settings to annotate them."""
    pq.write_table(
        pa.table({"image_id": range(count), "image_uri": [f"{root}{i}.png" for i in range(count)]}), manifest
    )
    return {
        "manifest__uri": str(manifest),
        "manifest__carry": [],
        "images__allowed_roots": [root],
        "images__attempt_timeout_s": GATE_S + 20,
        "resources__images_per_block": 2,
    }


class TestOtherRuns:
    """Each of these starts replicas."""

    def test_only_the_rows_of_a_lost_file_are_done_again(self, first: First, world: World, tmp_path: Path) -> None:
        out = first.copy(tmp_path / "out")
        victim, *others = sorted((out / "data").iterdir())
        lost = pq.read_table(victim, columns=["image_id"])["image_id"].to_pylist()
        kept = {path: path.read_bytes() for path in others}
        victim.unlink()
        (out / "data" / "part-0123456789abcdef0123.parquet").write_bytes(others[0].read_bytes()[:3000])  # cut off
        ended = command(tmp_path, world.values(out))
        assert ended.code == 0
        assert ended.log[-1] == f"exit code 0: finished: {out}"
        report = json.loads((out / "run.json").read_text())
        assert (report["state"], report["this_run"]["images"]) == ("finished", len(lost))
        assert report["images"] == first.report["images"]
        assert {path: path.read_bytes() for path in others} == kept
        assert_same_content(read_rows(out), first.rows)

    def test_retry_failed_after_a_repair(
        self, first: First, world: World, expected: dict[int, Detections], tmp_path: Path
    ) -> None:
        out = first.copy(tmp_path / "out")
        path, content = world.late
        path.write_bytes(content)
        try:
            # A limit is raised as well, above a picture that was refused.
            ended = command(tmp_path, world.values(out, images__max_pixels=300_000), "--retry-failed")
        finally:
            path.unlink()
        assert ended.code == 0
        report = json.loads((out / "run.json").read_text())
        good, bad = len(world.good) + 2, len(world.bad) - 2
        assert report["images"] == {"manifest": good + bad, "annotated": good, "failed": bad, "deleted": 0}
        assert report["this_run"]["images"] == len(world.bad)
        rows = read_rows(out)
        wide_id = next(number for number, (_, code) in world.bad.items() if code == "too_many_pixels")
        for number in (LATE_ID, wide_id):
            assert_detections(rows.pop(number), expected[number])
        assert_same_content(rows, {number: row for number, row in first.rows.items() if number in rows})

    def test_two_replicas_and_other_sizes_give_the_same_content(
        self, first: First, world: World, tmp_path: Path
    ) -> None:
        changes = {"model__batch_size": 1, "resources__images_per_block": 3, "output__images_per_file": 100}
        report = annotate(world.config(tmp_path / "out", resources__actors=2, **changes))
        assert report.state == "finished"
        assert len(list((tmp_path / "out" / "data").iterdir())) == 1
        assert_same_content(read_rows(tmp_path / "out"), first.rows)

    def test_s3(self, ray_s3: S3Server, world: World, checkpoint: Checkpoint, tmp_path: Path) -> None:
        good = {
            "a b.png": GOOD_FILES["a.png"],
            "deep/ü.webp": GOOD_FILES["deep/er/photo.webp"],
            "c%20.png": GOOD_BYTES[2],
        }
        for key, blob in {**good, "broken.png": b"\x89PNG\r\n\x1a\n", "secret/d.png": GOOD_FILES["b.png"]}.items():
            ray_s3.put("pictures", f"images/{key}", blob)
        ray_s3.deny("pictures", "images/secret/")
        bad = {"broken.png": "corrupt_image", "gone.png": "not_found", "secret/d.png": "access_denied"}
        buffer = pa.BufferOutputStream()
        pq.write_table(pa.table({"image_uri": [*good, *bad]}), buffer)
        manifest = ray_s3.put("pictures", "manifest.parquet", buffer.getvalue().to_pybytes())
        out = "s3://pictures/results/night 1"
        changes = {
            "manifest__uri": manifest,
            "manifest__image_root": "s3://pictures/images",
            "manifest__carry": [],
            "images__max_attempts": 1,
        }
        with s3_environment_variables(ray_s3.endpoint):
            ended = command(tmp_path, world.values(out, **changes))
            assert ended.code == 0
            rows = read_rows(out)
            report = RunJson.read(Uri(out))
            assert command(tmp_path, world.values(out, **changes)).log[-1] == f"exit code 0: nothing_to_do: {out}"
        found = predictions(checkpoint, good)
        for key in good:
            assert_detections(rows[key], found[key])
        assert {key: rows[key]["error_code"] for key in rows.keys() - good.keys()} == bad
        assert rows["a b.png"]["image_uri"] == "s3://pictures/images/a b.png"
        assert report is not None
        assert (report.state, report.images) == ("finished", ImageCounts(6, 3, 3))
        assert report.image_root == Uri("s3://pictures/images")

    def test_files_appear_while_images_are_fetched(self, world: World, tmp_path: Path) -> None:
        """The replica and one fetch task take all CPUs; what is finished must not wait until all is fetched."""
        out, images, at_once = tmp_path / "out", 24, 8
        with _gallery(GOOD_FILES["a.png"], at_once, lambda: (out / "data").is_dir() and bool(data_files(out))) as root:
            changes = {
                **_pictures_of(root, images, tmp_path / "manifest.parquet"),
                "resources__cpus_per_actor": 2.0,
                "output__images_per_file": 1000,
                "output__write_interval_s": 0.5,
            }
            report = annotate(world.config(out, **changes))
        assert (report.state, report.failures) == ("finished", {})
        assert len(data_files(out)) > 1
        assert len(read_rows(out)) == images

    def test_a_run_in_which_all_fails_ends_early_and_goes_on(self, world: World, tmp_path: Path) -> None:
        out, images, at_once = tmp_path / "out", 40, 16
        seen: list[Overview] = []

        def state() -> str:
            return str(json.loads((out / "run.json").read_text())["state"])

        def has_ended() -> bool:
            if not seen:
                seen.append(look_over(Uri(str(out))))
            return state() != "running"

        with _gallery(None, at_once, has_ended) as root:
            changes = {
                **_pictures_of(root, images, tmp_path / "manifest.parquet"),
                "output__stop": {"failed_fraction": 1.0, "after": 10},
            }
            ended = command(tmp_path, world.values(out, **changes))
            assert ended.code == 4
            assert "images failed (most often: not_found)" in ended.log[-1]
            assert state() == "stopped_by_failures"
            written = json.loads((out / "run.json").read_text())["this_run"]["written"]
            assert 10 <= written == len(read_rows(out)) < images
            while_at_work, ended_early = seen[0], look_over(Uri(str(out)))
            assert (while_at_work.standing, while_at_work.manifest) == (Standing.RUNNING, images)
            assert while_at_work.pending == images - while_at_work.counts.rows
            assert (ended_early.standing, ended_early.pending) == (Standing.ENDED, images - written)
            assert json.loads((out / "_lock.json").read_text())["released"] is True
            ended = command(tmp_path, world.values(out, **{**changes, "output__stop": None}))
        assert ended.code == 3
        assert len(read_rows(out)) == images


def test_a_model_that_overflows_ends_the_run_and_says_what_to_do(
    ray_s3: S3Server, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """All its numbers are finite, and what it computes on any image is not."""
    huge = torch.full_like(checkpoint.weights["neck.outputs.0.weight"], 3e38)
    weights = {**checkpoint.weights, "neck.outputs.0.weight": huge}
    save_checkpoint(replace(checkpoint, weights=weights, weights_sha256=""), tmp_path / "model.safetensors")
    (tmp_path / "pictures").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "pictures" / name).write_bytes(GOOD_FILES[name])
    out = tmp_path / "out"
    values = {
        "manifest": {"uri": str(tmp_path / "pictures")},
        "model": {"checkpoint": str(tmp_path / "model.safetensors")},
        "output": {"uri": str(out)},
    }
    ended = command(tmp_path, values)
    assert ended.code == 1
    assert ended.log[-1] == (
        "exit code 1: ModelNotFinite: the network's numbers are NaN or infinite on this image, the first that this "
        "replica got: no precision of the model is finer: run with another checkpoint"
    )
    assert not list((out / "data").glob("*"))
    assert json.loads((out / "run.json").read_text())["state"] == "failed"


def test_errors_come_out_of_the_library_as_they_are(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ClusterError):
        annotate(world.config(out, resources__gpus_per_actor=1.0))
    with OutputLock(Uri(str(out)), "the-other-run", lease_s=1.0), pytest.raises(LockHeld):
        annotate(world.config(out))
    assert not (out / "data").exists()
    assert not (out / "run.json").exists()
    assert issubclass(RunFailed, RuntimeError)

"""Nights over a bucket whose pictures are new, changed, gone and damaged, and runs that die in them. No Ray."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as coco_mask

from pipeline.annotate import run as annotate_run
from pipeline.annotate.config import AnnotateConfig
from pipeline.annotate.dry_run import dry_run
from pipeline.annotate.manifest.open import open_manifest
from pipeline.annotate.manifest.rules import ManifestError
from pipeline.annotate.run import annotate
from pipeline.annotations.class_thresholds import Selection
from pipeline.annotations.compact import compact
from pipeline.annotations.ledger import CHANGED_FOLDER, OutputStore
from pipeline.annotations.reader import open_source
from pipeline.annotations.run_json import Changes, ImageCounts, RunJson, RunState
from pipeline.annotations.schema import output_schema
from pipeline.compare.run import Side, compare
from pipeline.evaluate.inputs.annotations import open_annotated_output
from pipeline.export.run import Export, export
from pipeline.storage.objects.local import LocalObjects
from pipeline.storage.uris import Uri
from testing.output_rows import as_schema_1
from testing.rounds_without_ray import rounds_without_ray
from testing.small_model import save_tiny
from tests.annotations.output_cases import CATEGORY_IDS, CATEGORY_NAMES, output_table

COLUMNS = ["image_id", "status", "object_etag", "object_size", "object_mtime"]
Picture = tuple[str, int, int, bool]  # ETag, size, seconds at which it was put there, whether it is damaged


@dataclass
class Bucket:
    """Pictures by their ids, as they are now; and what lists them."""

    folder: Path
    model: Path
    pictures: dict[int, Picture] = field(default_factory=dict)
    time: int = 1_700_000_000

    def put(self, *ids: int, damaged: bool = False) -> None:
        self.time += 10
        for i in ids:
            self.pictures[i] = (f"{i}-{self.time}", 100 + i % 7, self.time, damaged)

    def remove(self, *ids: int) -> None:
        for i in ids:
            del self.pictures[i]

    def listed(self) -> list[int]:
        """The manifest is what the bucket holds now."""
        ids = sorted(self.pictures)
        etags, sizes, times, _ = zip(*(self.pictures[i] for i in ids), strict=True)
        columns = {"image_id": ids, "image_uri": [f"/{i}.png" for i in ids], "etag": etags, "size": sizes}
        modified = pa.array([1_000_000 * t for t in times], pa.timestamp("us", "UTC"))
        table = pa.table({**columns, "last_modified": modified})
        pq.write_table(table, self.folder / "manifest.parquet", row_group_size=5)
        return ids

    def rows(self, ids: pa.Array) -> pa.Table:
        """What annotating them now gives."""
        numbers = ids.to_pylist()
        found = [self.pictures.get(i) for i in numbers]
        table = output_table(numbers, failed=[i for i, p in zip(numbers, found, strict=True) if p is None or p[3]])
        for name, place in (("object_etag", 0), ("object_size", 1), ("object_mtime", 2)):
            values = [None if p is None else p[place] * (1_000_000 if place == 2 else 1) for p in found]
            at = table.column_names.index(name)
            table = table.set_column(at, name, pa.array(values).cast(table.schema.field(name).type))
        return table.cast(output_schema(pa.int64()))

    def config(self, output: Uri | None = None, **manifest: Any) -> AnnotateConfig:
        values = {
            "manifest": {"uri": str(self.folder / "manifest.parquet"), **manifest},
            "model": {"checkpoint": str(self.model)},
            "output": {"uri": str(output or self.folder / "out"), "max_failed_fraction": 1.0},
        }
        return AnnotateConfig.model_validate(values)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    return save_tiny(path, zip(CATEGORY_IDS, CATEGORY_NAMES, strict=True))


@pytest.fixture
def bucket(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setattr(annotate_run, "page_at_end", lambda *_: nullcontext())
    return Bucket(tmp_path, model)


def run(
    bucket: Bucket,
    config: AnnotateConfig,
    meanwhile: Callable[[OutputStore], None] = lambda store: None,
    retry_failed: bool = False,
) -> RunJson:
    with rounds_without_ray(bucket.rows, meanwhile):
        return annotate(config, retry_failed)


def contents(uri: Uri) -> list[dict[str, Any]]:
    """All rows that count, by their ids; what is the same in any run of the same pictures."""
    store = OutputStore(uri)
    tables = [table.select(COLUMNS) for table in store.iter_ids(store.files().settled, COLUMNS)]
    return pa.concat_tables(tables).sort_by("image_id").to_pylist() if tables else []


def fresh(bucket: Bucket) -> list[dict[str, Any]]:
    """What a first run over the bucket as it is gives."""
    return bucket.rows(pa.array(sorted(bucket.pictures))).select(COLUMNS).to_pylist()


def files(bucket: Bucket, folder: str = "data") -> set[str]:
    return {path.name for path in (bucket.folder / "out" / folder).glob("part-*")}


@pytest.mark.parametrize("compare", ["etag", "size_mtime"])
def test_changed_pictures_are_annotated_again(bucket: Bucket, compare: str) -> None:
    bucket.put(*range(12))
    bucket.listed()
    config = bucket.config(compare=compare)
    first = run(bucket, config)
    assert first.changes == Changes(new=12)
    before = files(bucket)
    bucket.put(3, 20)
    bucket.put(7, damaged=True)
    bucket.listed()
    second = run(bucket, config)
    assert second.state is RunState.FINISHED
    assert second.changes == Changes(new=1, changed=2, unchanged=10)
    assert second.images == ImageCounts(13, 12, 1)
    assert contents(config.output.uri) == fresh(bucket)
    assert len(before & files(bucket)) == 1  # of 10 and 11, as it was
    assert files(bucket, f"{CHANGED_FOLDER}/data") == set()
    assert second.ended is not None
    assert second.looked_again == ""
    for _ in range(2):
        later = run(bucket, config)
        assert later.state is RunState.NOTHING_TO_DO
        report = RunJson.read(config.output.uri)
        assert report is not None
        assert (report.state, report.changes) == (RunState.NOTHING_TO_DO, Changes(unchanged=13))
        for name in ("run_id", "ended", "images", "this_run"):
            assert getattr(report, name) == getattr(second, name)
        assert report.looked_again == later.run_id
    bucket.remove(7)
    bucket.listed()
    assert run(bucket, config).state is RunState.NOTHING_TO_DO
    report = RunJson.read(config.output.uri)
    assert report is not None
    assert (report.changes, report.images) == (Changes(unchanged=12), ImageCounts(12, 12, 1))


def test_the_time_of_a_run_begins_before_ray_is_started(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    times = []

    def opened(*arguments: Any) -> Any:
        times.append(time.monotonic())
        time.sleep(0.2)
        return open_manifest(*arguments)

    monkeypatch.setattr(annotate_run, "open_manifest", opened)
    bucket.put(1)
    bucket.listed()
    seen = time.monotonic()
    report = run(bucket, bucket.config(), meanwhile=lambda store: times.append(time.monotonic()))
    assert times[1] - times[0] < report.this_run.seconds < time.monotonic() - seen


def test_without_it_they_are_not_noticed(bucket: Bucket) -> None:
    bucket.put(1, 2)
    bucket.listed()
    run(bucket, bucket.config())
    bucket.put(1)
    bucket.listed()
    assert run(bucket, bucket.config()).state is RunState.NOTHING_TO_DO


@pytest.mark.parametrize("deleted", ["keep", "mark", "drop"])
def test_pictures_that_are_gone(bucket: Bucket, deleted: str) -> None:
    bucket.put(*range(11))
    bucket.listed()
    config = bucket.config(compare="etag", deleted=deleted)
    run(bucket, config)
    lost = {0, 1, 2, 10}  # of the last file all
    bucket.remove(*lost)
    bucket.listed()
    report = run(bucket, config)
    rows = contents(config.output.uri)
    if deleted == "keep":
        assert report.state is RunState.NOTHING_TO_DO
        assert len(rows) == 11
        return
    assert report.state is RunState.FINISHED
    assert report.changes == Changes(unchanged=7, deleted=4)
    assert [row for row in rows if row["status"] != "deleted"] == fresh(bucket)
    assert {row["image_id"] for row in rows if row["status"] == "deleted"} == (lost if deleted == "mark" else set())
    assert report.images == ImageCounts(7, 7, 0, 4 if deleted == "mark" else 0)
    assert run(bucket, config).state is RunState.NOTHING_TO_DO
    labelled = [
        i
        for batch in open_source(config.output.uri).batches(["image_id", "status"])
        for i in batch.filter(pc.equal(batch["status"], "annotated"))["image_id"].to_pylist()
    ]
    assert sorted(labelled) == sorted(bucket.pictures)
    # One comes back as it was, one as another.
    bucket.put(0, 1)
    bucket.listed()
    report = run(bucket, bucket.config(deleted=deleted))
    assert report.images == ImageCounts(9, 9, 0, 2 if deleted == "mark" else 0)
    assert [row for row in contents(config.output.uri) if row["status"] != "deleted"] == fresh(bucket)


def test_what_was_marked_is_dropped_by_a_later_night(bucket: Bucket, caplog: pytest.LogCaptureFixture) -> None:
    """Whenever the run dies; and not what came back. It was counted when it was marked."""
    caplog.set_level("INFO")
    bucket.put(*range(12))
    bucket.listed()
    run(bucket, bucket.config(deleted="mark"))
    kept = {i: bucket.pictures.pop(i) for i in (0, 1, 7, 11)}
    bucket.listed()
    marked = run(bucket, bucket.config(deleted="mark"))
    assert marked.images == ImageCounts(8, 8, 0, 4)
    old = contents(bucket.config().output.uri)
    bucket.pictures[7] = kept[7]
    bucket.listed()
    config = bucket.config(deleted="drop", max_deleted_fraction=0.0)
    for number, _ in deaths(bucket, config):
        (bucket.folder / "out" / "_lock.json").unlink(missing_ok=True)
        rows = contents(config.output.uri)
        assert all(row in [*old, *fresh(bucket)] for row in rows), number
        assert {row["image_id"] for row in rows} >= set(bucket.pictures), number
        run(bucket, config)
        assert contents(config.output.uri) == fresh(bucket), number
    assert number > 2
    assert "1 to do, 1 changed, 3 marked as deleted before, to be dropped" in caplog.text
    report = RunJson.read(config.output.uri)
    assert report is not None
    assert report.images == ImageCounts(9, 9, 0)


def test_a_night_that_only_drops_what_was_marked(bucket: Bucket) -> None:
    bucket.put(*range(6))
    bucket.listed()
    run(bucket, bucket.config(deleted="mark"))
    bucket.remove(2, 5)
    bucket.listed()
    run(bucket, bucket.config(deleted="mark"))
    assert run(bucket, bucket.config(deleted="keep")).images.deleted == 2
    config = bucket.config(deleted="drop")
    report = run(bucket, config)
    assert (report.state, report.changes, report.images) == (
        RunState.FINISHED,
        Changes(unchanged=4),
        ImageCounts(4, 4, 0),
    )
    assert contents(config.output.uri) == fresh(bucket)
    assert run(bucket, config).state is RunState.NOTHING_TO_DO


def test_an_output_in_the_folder_of_pictures(bucket: Bucket, caplog: pytest.LogCaptureFixture) -> None:
    """Night after night it is no part of what is listed, and nothing is said of it."""
    folder = bucket.folder / "pictures"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg", "z.jpg"):
        (folder / name).touch()

    def rows(ids: pa.Array) -> pa.Table:
        return output_table(ids.to_pylist()).cast(output_schema(pa.string()))

    def config(**manifest: Any) -> AnnotateConfig:
        values = bucket.config(folder / "labels").model_dump(mode="json")
        return AnnotateConfig.model_validate({**values, "manifest": {"uri": str(folder), **manifest}})

    with rounds_without_ray(rows):
        assert annotate(config()).images == ImageCounts(3, 3, 0)
        assert annotate(config()).state is RunState.NOTHING_TO_DO
        (folder / "c.jpg").touch()
        assert annotate(config()).images == ImageCounts(4, 4, 0)
    assert "left out" not in caplog.text
    (folder / "b.jpg").unlink()
    for job in (annotate, dry_run):
        with pytest.raises(ManifestError, match="lacks 1 of the 4 images"):
            job(config(deleted="drop", max_deleted_fraction=0.0))


def test_a_listing_that_lacks_too_much_is_refused(bucket: Bucket) -> None:
    bucket.put(*range(10))
    bucket.listed()
    config = bucket.config(deleted="drop", max_deleted_fraction=0.3)
    run(bucket, config)
    before = contents(config.output.uri)
    bucket.remove(*range(4))
    bucket.put(50)
    bucket.listed()
    for job in (annotate, dry_run):
        with pytest.raises(ManifestError, match=r"lacks 4 of the 10 images .*max_deleted_fraction \(0.3\)"):
            job(config)
    assert contents(config.output.uri) == before


def test_a_picture_that_changes_while_it_is_annotated(bucket: Bucket) -> None:
    """It ends with the version that was read, and older listings do not bring it back."""
    bucket.put(1, 2, 3)
    bucket.listed()
    bucket.put(2)  # read after it was listed
    config = bucket.config(compare="etag")
    assert run(bucket, config).changes == Changes(new=3)
    assert contents(config.output.uri) == fresh(bucket)
    assert run(bucket, config).state is RunState.NOTHING_TO_DO
    bucket.put(3)
    bucket.listed()
    bucket.put(3)
    assert run(bucket, config).changes == Changes(changed=1, unchanged=2)
    assert contents(config.output.uri) == fresh(bucket)


def test_versions_that_nobody_knows(bucket: Bucket) -> None:
    bucket.put(1, 2)
    bucket.listed()
    path = bucket.folder / "manifest.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["etag"]), path)
    config = bucket.config(compare="etag")
    for job in (annotate, dry_run):
        with pytest.raises(ManifestError, match="no ETag"):
            job(config)
    at = table.column_names.index("etag")
    pq.write_table(table.set_column(at, "etag", pa.array([None, "2-x"])), path)
    run(bucket, bucket.config())
    report = run(bucket, config)
    assert report.changes == Changes(changed=1, unchanged=1, unknown_version=1)


class Died(BaseException):
    """The process."""


@contextmanager
def dies_at(number: int) -> Iterator[list[int]]:
    """After the first n requests that change the storage no other is made: so it is left as each of them leaves it."""
    count = [0]

    def dying(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(objects: LocalObjects, name: str, *args: Any, **options: Any) -> Any:
            if not name.startswith(("data/", f"{CHANGED_FOLDER}/")) and CHANGED_FOLDER not in str(objects.__dict__):
                return method(objects, name, *args, **options)
            count[0] += 1
            if count[0] > number:
                raise Died
            return method(objects, name, *args, **options)

        return call

    with ExitStack() as stack:
        for name in ("put", "delete"):
            stack.enter_context(mock.patch.object(LocalObjects, name, dying(getattr(LocalObjects, name))))
        yield count


def deaths(bucket: Bucket, config: AnnotateConfig) -> Iterator[tuple[int, bool]]:
    """Runs on the output as it is, after n requests each, and whether they died: up to one that did not."""
    out, keep = bucket.folder / "out", bucket.folder / "before"
    out.rename(keep)
    number, died = -1, True
    while died:
        number += 1
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(keep, out)
        with dies_at(number) as count, suppress(Died):
            run(bucket, config)
        died = count[0] > number
        yield number, died


@pytest.mark.parametrize("deleted", ["mark", "drop"])
def test_a_run_dies_at_any_request(bucket: Bucket, deleted: str) -> None:
    bucket.put(*range(23))
    bucket.put(5, damaged=True)
    bucket.listed()
    config = bucket.config(compare="etag", deleted=deleted)
    run(bucket, config)
    start = contents(config.output.uri)
    bucket.put(2, 5, 12, 13)
    bucket.remove(1, 2, 14, 20, 21, 22)
    bucket.put(30, 31)
    bucket.listed()
    old = {row["image_id"]: row for row in start}
    new = {row["image_id"]: row for row in fresh(bucket)}
    for number, _ in deaths(bucket, config):
        (bucket.folder / "out" / "_lock.json").unlink(missing_ok=True)
        if number % 2:
            compact(config.output.uri)  # of rows that others wait to replace
        # Whoever reads it meanwhile finds the old row of a picture, or the new one.
        for row in contents(config.output.uri):
            i = row["image_id"]
            assert row in (old.get(i), new.get(i), {**old.get(i, {}), "status": "deleted"}), number
        ids = [row["image_id"] for row in contents(config.output.uri)]
        assert len(ids) == len(set(ids))
        assert set(ids) >= set(old) & set(new), number
        run(bucket, config)
        rows = contents(config.output.uri)
        assert [row for row in rows if row["status"] != "deleted"] == list(new.values()), number
        assert files(bucket, f"{CHANGED_FOLDER}/data") == set()
    assert number > 6


def with_masks(rows: pa.Table) -> pa.Table:
    """The same with masks that can be decoded."""
    whole = coco_mask.encode(np.ones((480, 640), np.uint8, order="F"))["counts"].decode()
    found = rows["detections"].to_pylist()
    for detection in (each for of_image in found for each in of_image or ()):
        detection["segmentation"]["counts"] = whole
    at = rows.column_names.index("detections")
    return rows.set_column(at, rows.schema.field(at), pa.array(found, rows.schema.field(at).type))


@pytest.mark.parametrize("table", [None, {"kind": "delta"}])
def test_other_jobs_read_each_picture_once_where_a_run_died(
    bucket: Bucket, table: dict[str, str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two requests, before another run has put it right: with files that wait to be removed, new rows that
    wait for their places, and files that stay for earlier versions of a table.
    """
    monkeypatch.setattr(bucket, "rows", lambda ids: with_masks(Bucket.rows(bucket, ids)))
    bucket.put(*range(23))
    bucket.put(5, damaged=True)
    bucket.listed()
    values = bucket.config(compare="etag", deleted="drop").model_dump(mode="json")
    config = AnnotateConfig.model_validate({**values, "output": {**values["output"], "table": table}})
    out = config.output.uri
    run(bucket, config)
    old = {row["image_id"]: row for row in contents(out)}
    bucket.put(2, 5, 12, 13)
    bucket.remove(1, 14, 20, 21, 22)
    bucket.put(30, 31)
    bucket.listed()
    new = {row["image_id"]: row for row in fresh(bucket)}
    notes: set[str] = set()
    for number, died in deaths(bucket, config):
        source = open_source(out)
        rows = [row for batch in source.batches(COLUMNS) for row in batch.to_pylist()]
        there = [row["image_id"] for row in rows]
        assert all(row in (old.get(row["image_id"]), new.get(row["image_id"])) for row in rows), number
        assert set(old) & set(new) <= set(there), number
        assert len(there) == len(set(there)) == source.counts.rows, number
        annotated = sorted(row["image_id"] for row in rows if row["status"] == "annotated")
        predictions = open_annotated_output(out)
        groups = range(predictions.num_groups)
        listed = [i for group in groups for i in predictions.list_group(group)[0]["image_id"].to_pylist()]
        assert sorted(listed) == sorted(there), number
        read = [i for g in groups for batch in predictions.read_group(g, True) for i in batch.image_ids.to_pylist()]
        assert sorted(read) == sorted(there), number
        summary = export(Export(out, "coco", Uri(str(tmp_path / "coco.json")), Selection(), overwrite=True))
        exported = json.loads((tmp_path / "coco.json").read_text())
        assert sorted(image["id"] for image in exported["images"]) == annotated, number
        notes.update(note for note in summary.notes if died and "has not finished" in note)
        found = compare(Side(source), Side(open_source(out))).content
        assert found["before"]["images"] == len(there), number
        assert found["agreement"]["images"] == len(annotated), number
    assert number > 6
    assert len(notes) == 1
    assert sorted(there) == sorted(new)


def test_nights(bucket: Bucket) -> None:
    """Each night's rows are what a first run over the bucket gives, whatever happened in the nights before."""
    rng = random.Random(0)
    bucket.put(*range(30))
    config = bucket.config(compare="etag", deleted="drop", max_deleted_fraction=1.0)
    for night in range(20):
        there = sorted(bucket.pictures)
        bucket.remove(*rng.sample(there, rng.randrange(4)))
        bucket.put(*rng.sample(sorted(bucket.pictures), rng.randrange(6)), damaged=rng.random() < 0.2)
        bucket.put(*range(100 * night + 100, 100 * night + 100 + rng.randrange(8)))
        bucket.listed()
        if night % 3 == 2:
            with dies_at(rng.randrange(20)), suppress(Died):
                run(bucket, config)
            (bucket.folder / "out" / "_lock.json").unlink(missing_ok=True)
        report = run(bucket, config, retry_failed=rng.random() < 0.3)
        assert report.images.manifest == len(bucket.pictures)
        assert contents(config.output.uri) == fresh(bucket), night


@pytest.mark.parametrize("deleted", ["keep", "mark", "drop"])
@pytest.mark.parametrize("compare", ["none", "etag", "size_mtime"])
def test_pictures_that_come_back_as_they_were(bucket: Bucket, compare: str, deleted: str) -> None:
    """Files were joined meanwhile; a failed one is among them."""
    bucket.put(*range(12))
    bucket.put(4, damaged=True)
    bucket.listed()
    config = bucket.config(compare=compare, deleted=deleted)
    run(bucket, config)
    kept = {i: bucket.pictures.pop(i) for i in (3, 4)}
    bucket.listed()
    run(bucket, config)
    compact(config.output.uri)
    bucket.pictures.update(kept)
    bucket.listed()
    assert run(bucket, config).images == ImageCounts(12, 11, 1)
    assert contents(config.output.uri) == fresh(bucket)
    assert run(bucket, config).state is RunState.NOTHING_TO_DO


def test_an_output_of_schema_1_goes_on_with_nights(bucket: Bucket) -> None:
    """Of its rows no version is known, so none is changed; gone and back they are made anew."""
    bucket.put(*range(12))
    bucket.listed()
    config = bucket.config(compare="etag", deleted="mark")
    run(bucket, config)
    for path in (bucket.folder / "out" / "data").glob("part-*"):
        as_schema_1(path)
    bucket.put(3, 50)
    bucket.remove(5)
    bucket.listed()
    assert run(bucket, config).changes == Changes(new=1, unchanged=11, deleted=1, unknown_version=11)
    compact(config.output.uri)
    bucket.put(50, 5)
    bucket.listed()
    assert run(bucket, config).changes == Changes(changed=2, unchanged=11, unknown_version=11)
    known = [row for row in contents(config.output.uri) if row["object_etag"] is not None]
    assert known == [row for row in fresh(bucket) if row["image_id"] in (5, 50)]


def test_failures_that_end_a_run_replace_nothing(bucket: Bucket) -> None:
    """Else revoked credentials would take the place of good rows."""
    bucket.put(1, 2, 3)
    bucket.listed()
    config = bucket.config(compare="etag")
    run(bucket, config)
    before = contents(config.output.uri)
    bucket.put(1, 2, damaged=True)
    bucket.put(3)
    bucket.listed()
    with rounds_without_ray(bucket.rows, why_ended="almost all failed"):
        assert annotate(config).state is RunState.STOPPED_BY_FAILURES
    assert contents(config.output.uri) == [*before[:2], fresh(bucket)[2]]
    run(bucket, config)
    assert contents(config.output.uri) == fresh(bucket)

"""Nights over a bucket: that they pass, and that what they check would be seen."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyiceberg.catalog.sql  # noqa: F401  # what is first imported while rounds are replaced is forgotten after them
import pytest

from benchmarks import nights
from benchmarks.nights import Bucket, Night, Year, problems, rows_of
from benchmarks.support.random_model import MODEL_SEED, random_model
from pipeline.annotations.ledger import CHANGED_FOLDER
from pipeline.annotations.run_json import ImageCounts, RunJson
from pipeline.model.files.checkpoints import save_checkpoint
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri
from testing.s3_server import S3Server
from tests.lake.test_publish import place_of, same


def test_a_few_nights(capsys: pytest.CaptureFixture[str]) -> None:
    assert nights.main(["--nights", "4", "--seed", "2"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == ["ok"] * 4
    assert last.endswith(": 0 off")


@pytest.fixture
def year(tmp_path: Path) -> Year:
    checkpoint = tmp_path / "model.safetensors"
    save_checkpoint(random_model(MODEL_SEED), checkpoint)
    rng = random.Random(0)
    bucket = Bucket(Uri(str(tmp_path / "images")), rng)
    bucket.put([f"{i}.png" for i in range(6)], 0.0)
    return Year(bucket, Uri(str(tmp_path / "out")), Uri(str(tmp_path / "fresh")), checkpoint, "size_mtime", rng)


def stray(year: Year) -> None:
    (file,) = open_objects(year.output).list("data").files
    content, _ = open_objects(year.output).read(f"data/{file.name}", 1 << 20)
    open_objects(year.output / CHANGED_FOLDER).put(f"data/{file.name}", content)


FAULTS: dict[str, Callable[[Year], None]] = {
    "missing": lambda year: year.bucket.put(["new.png"], 0.0),
    "too many": lambda year: year.bucket.sizes.pop("0.png") and None,
    "another content": lambda year: year.bucket.put(["0.png"], 1.0),
    "left in": stray,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_they_would_see_it(year: Year, fault: str) -> None:
    report = Night(year.config(year.output)).run()
    fresh, _ = rows_of(year.output)
    assert list(problems(year.bucket, year.output, fresh, report)) == []
    FAULTS[fault](year)
    assert any(fault in found for found in problems(year.bucket, year.output, fresh, report))


def test_rows_of_another_version_and_open_books(year: Year) -> None:
    report: RunJson = Night(year.config(year.output)).run()
    fresh, _ = rows_of(year.output)
    fresh[0]["object_mtime"] = None
    (found,) = problems(year.bucket, year.output, fresh, report)
    assert found == "1 differ: ['0.png']"
    off = "; ".join(problems(year.bucket, year.output, fresh, replace(report, images=ImageCounts(6, 5, 1))))
    assert "the books do not close" in off
    assert "the footers count" in off


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["delta", "iceberg"])
def test_thirty_nights_of_a_table(kind: str, s3: S3Server, tmp_path: Path) -> None:
    """The job itself, over a bucket whose pictures are new, replaced, gone and damaged. Every third run is killed, half
    of those beside the commit; every fourth does failed images again.
    """
    root = f"s3://bucket/{uuid.uuid4().hex}"
    place = place_of(kind, f"{root}/out", tmp_path, s3.endpoint)
    checkpoint = tmp_path / "model.safetensors"
    save_checkpoint(random_model(MODEL_SEED), checkpoint)
    rng = random.Random(3)
    bucket = Bucket(Uri(f"{root}/images"), rng)
    bucket.put([f"first/{i:02d}.png" for i in range(20)], 0.1)
    table = place.config.model_dump(mode="json")
    year = Year(bucket, place.uri, Uri(f"{root}/fresh"), checkpoint, "etag", rng, table)
    nights: dict[int, pa.Table] = {}
    for number in range(30):
        told = year.night(number)
        assert told.endswith("ok"), told
        assert place.publish() == (0, 0)
        nights[place.versions()[-1]] = place.truth()
        assert same(place.rows(), place.truth())
    assert year.sums["killed"] > 5
    for version, rows in nights.items():
        assert same(place.rows(version), rows)
    vanished = [f for f in place.store.files().footers.values() if not f.counts.rows]
    assert (len(nights) > 15, len(vanished) > 3) == (True, True)

"""Pictures in tar shards from end to end: annotated on a real Ray, and what other jobs make of such an output."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from jobs import export, show, visualize
from pipeline.annotate.config import AnnotateConfig
from pipeline.annotate.run import annotate
from pipeline.annotate.summary import page as summary_page
from pipeline.annotate.summary.sample import Sample
from pipeline.annotations.class_thresholds import Selection
from pipeline.annotations.pictures import PictureSource
from pipeline.annotations.reader import open_source
from pipeline.annotations.run_json import RunJson
from pipeline.annotations.schema import ANNOTATED, FAILED, output_schema
from pipeline.errors import UserError
from pipeline.evaluate.analysis import AnalysisPlan
from pipeline.evaluate.config import AnalysisConfig, GalleryConfig
from pipeline.evaluate.gallery import gallery_images
from pipeline.evaluate.measure import Request, measure
from pipeline.images.decode import decode_image
from pipeline.metrics.protocol import CocoProtocol
from pipeline.model.categories import Category
from pipeline.storage.uris import TarMember, Uri, UriText
from pipeline.train.data.pseudo_labels import ScoreBands, read_pseudo_labels
from testing.s3_server import S3Server, s3_environment_variables
from testing.small_model import picture, save_tiny
from tests.annotate.manifest.manifest_cases import idx, tar

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

COLUMNS = [field.name for field in output_schema(pa.string())]
CATEGORIES = ((1, "cat"), (2, "dog"), (3, "cow"))


def encoded(seed: int, format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(48 + seed % 3, 64, seed)).save(buffer, format)
    return buffer.getvalue()


def members(first: int, count: int) -> dict[str, bytes]:
    """Samples of a picture and a text."""
    found: dict[str, bytes] = {}
    for i in range(first, first + count):
        suffix = ("jpg", "png")[i % 2]
        found |= {f"{i:04d}.{suffix}": encoded(i, {"jpg": "JPEG", "png": "PNG"}[suffix]), f"{i:04d}.txt": b"text"}
    return found


@dataclass(frozen=True)
class World:
    """Shards on S3, their output, and what is in them.

    Attributes:
        contents: of the pictures that can be read, by id.
        lost: ids of those that were cut off.
        copied: ids of those that came out of a compressed shard.
    """

    s3: S3Server
    model: Path
    out: Uri
    contents: dict[str, bytes]
    lost: set[str]
    copied: set[str]

    @property
    def places(self) -> dict[str, UriText]:
        """URIs of pictures, by id."""
        return {row["image_id"]: UriText(row["image_uri"]) for row in self.rows() if row["image_uri"] is not None}

    def rows(self) -> list[dict[str, Any]]:
        return [row for batch in open_source(self.out).batches(COLUMNS) for row in batch.to_pylist()]


def config(model: Path, manifest: str, out: Uri) -> AnnotateConfig:
    return AnnotateConfig.model_validate(
        {
            "manifest": {"uri": manifest},
            "model": {"checkpoint": str(model), "batch_size": 4},
            "resources": {"images_per_block": 4},
            "output": {"uri": str(out), "max_failed_fraction": 0.5},
        }
    )


@pytest.fixture(scope="module")
def world(ray_s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("tars")
    model = save_tiny(folder / "tiny.safetensors", CATEGORIES)
    shards = {"a/0.tar": members(0, 6), "a/1.tar": members(6, 6), "2.tar": members(12, 6), "3.tar.gz": members(18, 3)}
    shards["4.tar"] = members(21, 3)
    blobs = {name: tar(inside) for name, inside in shards.items()}
    blobs["a/1.idx"], blobs["2.idx"] = idx(blobs["a/1.tar"]), idx(blobs["2.tar"])
    blobs["2.tar"] = blobs["2.tar"][: blobs["2.tar"].index(b"0014.jpg") + 600]  # of that the header, some bytes
    blobs["3.tar.gz"] = gzip.compress(blobs["3.tar.gz"])
    blobs["4.tar"] = blobs["4.tar"][: blobs["4.tar"].index(b"0022.jpg") + 600]
    contents = {
        f"{shard}/{name}": content
        for shard, inside in shards.items()
        for name, content in inside.items()
        if not name.endswith(".txt")
    }
    # Without an index nobody knows of the picture behind the one that was cut.
    lost = {"2.tar/0014.jpg", "2.tar/0015.png", "2.tar/0016.jpg", "2.tar/0017.png", "4.tar/0022.jpg"}
    contents = {key: content for key, content in contents.items() if key not in {*lost, "4.tar/0023.png"}}
    with s3_environment_variables(ray_s3.endpoint), pytest.MonkeyPatch.context() as patch:
        patch.setattr(summary_page, "draw_sample", lambda *_: Sample())
        for name, blob in blobs.items():
            ray_s3.put("pictures", f"shards/{name}", blob)
        out = Uri("s3://pictures/of shards")
        report = annotate(config(model, "s3://pictures/shards", out))
        assert report.state == "finished"
        copied = {image_id for image_id in contents if image_id.startswith("3.tar.gz")}
        yield World(ray_s3, model, out, contents, lost, copied)


@pytest.fixture(autouse=True)
def _s3(world: World) -> Iterator[None]:
    with s3_environment_variables(world.s3.endpoint):
        yield


def test_a_row_for_each_picture(world: World) -> None:
    rows = {row["image_id"]: row for row in world.rows()}
    assert len(rows) == len(world.rows())
    assert {key for key, row in rows.items() if row["status"] == ANNOTATED} == world.contents.keys()
    failed = {key: (row["stage"], row["error_code"]) for key, row in rows.items() if row["status"] == FAILED}
    assert failed == dict.fromkeys(world.lost, ("fetch", "truncated"))
    for key, content in world.contents.items():
        row = rows[key]
        assert (row["height"], row["width"]) == decode_image(content).pixels.shape[:2]
        assert row["object_size"] == len(content)
        member = TarMember.of(row["image_uri"] or "")
        if key in world.copied:
            assert member is None
        else:
            assert member is not None
            assert member.shard == f"s3://pictures/shards/{key.rpartition('/')[0]}"
            assert member.version == row["object_etag"]
    report = RunJson.read(world.out)
    assert report is not None
    assert report.failures == Counter(truncated=len(world.lost))


def test_a_second_run_has_nothing_to_do(world: World) -> None:
    assert annotate(config(world.model, "s3://pictures/shards", world.out)).state == "nothing_to_do"


def test_duplicates_are_told_before_anything_is_done(world: World) -> None:
    content = encoded(1, "PNG")
    world.s3.put("pictures", "twice/0.tar", tar([("a.png", content), ("b.png", content), ("a.png", content)]))
    out = Uri("s3://pictures/of duplicates")
    with pytest.raises(UserError, match=r"'0\.tar/a\.png' 2 times \(first in .*twice, picture 1\)"):
        annotate(config(world.model, "s3://pictures/twice", out))
    assert RunJson.read(out) is None


def test_show(world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert show.main([world.out.secret_text, "--failed", str(tmp_path / "failures.csv")]) == 0
    assert "truncated" in capsys.readouterr().out
    with (tmp_path / "failures.csv").open(newline="") as file:
        assert {row["image_id"] for row in csv.DictReader(file)} == world.lost


def test_visualize(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert visualize.main(
        ["--annotations", world.out.secret_text, "--out", str(tmp_path / "drawn"), "--limit", "99"]
    ) in (0, 1)
    said = capsys.readouterr().out
    drawn = len(world.contents) - len(world.copied)
    assert f"{drawn} images drawn" in said
    assert f"{len(world.copied)} images could not be drawn" in said
    assert len(list((tmp_path / "drawn").glob("*.png"))) == drawn


def test_export_to_coco(world: World, tmp_path: Path) -> None:
    out = tmp_path / "labels.json"
    assert export.main(["--annotations", world.out.secret_text, "--format", "coco", "--out", str(out)]) == 0
    images = json.loads(out.read_text())["images"]
    assert len(images) == len(world.contents)
    source = PictureSource()
    named = [image for image in images if image["maskfleet_image_id"] not in world.copied]
    for image, found in zip(named, source.read_many([UriText(image["file_name"]) for image in named]), strict=True):
        assert np.array_equal(found, decode_image(world.contents[image["maskfleet_image_id"]]).pixels)


def test_export_to_yolo(world: World, tmp_path: Path) -> None:
    out = tmp_path / "yolo"
    options = ["--format", "yolo-seg", "--images", "copy", "--out", str(out)]
    assert export.main(["--annotations", world.out.secret_text, *options]) == 0
    kept = {key: content for key, content in world.contents.items() if key not in world.copied}
    assert {str(path.relative_to(out / "images")): path.read_bytes() for path in (out / "images").rglob("*.*g")} == kept
    for key in kept:
        assert (out / "labels" / key).with_suffix(".txt").is_file()


def test_other_exports(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def run(format: str) -> int:
        out = str(tmp_path / format)
        return export.main(["--annotations", world.out.secret_text, "--format", format, "--out", out])

    assert run("cvat") == 0
    names = [image.get("name") for image in ElementTree.parse(tmp_path / "cvat").iter("image")]
    assert set(names) == world.contents.keys()
    assert run("label-studio") == 2
    # Whichever comes first.
    assert re.search(r"(in a tar shard|came as bytes, without a URI): Label Studio could not show it", caplog.text)


def test_gallery_of_an_evaluation(world: World, tmp_path: Path) -> None:
    rows = [row for row in world.rows() if row["status"] == ANNOTATED]
    truth = {
        "images": [{"id": row["image_id"], "height": row["height"], "width": row["width"]} for row in rows],
        "categories": [{"id": number, "name": name} for number, name in CATEGORIES],
        "annotations": [
            {key: found[key] for key in ("category_id", "bbox", "area", "segmentation")}
            | {"id": number, "image_id": row["image_id"], "iscrowd": 0}
            for number, (row, found) in enumerate(
                ((row, found) for row in rows for found in row["detections"]), start=1
            )
        ],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    request = Request(
        predictions_uri=world.out,
        truth_uri=Uri(str(tmp_path / "truth.json")),
        images="all",
        iou_types=("segm",),
        protocol=CocoProtocol(),
        analysis=AnalysisPlan(AnalysisConfig(), "segm", 50, Uri(str(tmp_path / "matches"))),
        scratch_uri=Uri(str(tmp_path / "scratch")),
    )
    measured = measure(request, lambda work, items, _: map(work, items), lambda line: None)
    seen = {str(image.image_id): image for image in gallery_images(GalleryConfig(), measured)}
    assert seen.keys() & world.contents.keys() - world.copied
    for key, image in seen.items():
        if key in world.copied:
            assert image.reason.startswith("no_uri")
        else:
            assert np.array_equal(image.pixels, decode_image(world.contents[key]).pixels)


def test_pseudo_labels(world: World) -> None:
    bands = ScoreBands(Selection(), Selection())
    images, report = read_pseudo_labels(world.out, bands, [Category(*pair) for pair in CATEGORIES])
    assert (report.usable, report.failed, report.without_uri) == (
        len(world.contents) - len(world.copied),
        len(world.lost),
        len(world.copied),
    )
    found = PictureSource().read_many([image.uri for image in images])
    wanted = {world.places[key].secret_text: content for key, content in world.contents.items() if key in world.places}
    for image, pixels in zip(images, found, strict=True):
        assert np.array_equal(pixels, decode_image(wanted[image.uri.secret_text]).pixels)

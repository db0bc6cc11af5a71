"""The evaluation job on a real Ray: files in, files out, and pycocotools as the judge."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest
import yaml
from PIL import Image

from jobs import evaluate as cli
from pipeline.annotate.config import AnnotateConfig
from pipeline.annotations.run_json import RunJson, RunState
from pipeline.config.loading import load_config
from pipeline.evaluate import measure
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.inputs import annotations, ground_truth, predictions
from pipeline.evaluate.metrics_file import arrays_of
from pipeline.evaluate.run import class_lines, evaluate
from pipeline.metrics.protocol import IOU_TYPES
from pipeline.model.categories import Category
from pipeline.page.numbers import DASH
from pipeline.storage.lock.lease import OutputLock
from pipeline.storage.uris import Uri
from testing.s3_server import S3Server, s3_environment_variables
from tests.evaluate.coco_cases import CocoCase, pycocotools_result, random_case
from tests.evaluate.input_cases import write_json, write_output

pytestmark = pytest.mark.ray

UNKNOWN = 999  # a category that some detections of the case have and the ground truth has not


@dataclasses.dataclass(frozen=True)
class World:
    """A set on disk in both forms of predictions, and what is to come out."""

    folder: Path
    case: CocoCase
    names: dict[int, str]

    def config(self, out: Path | str, **sections: Mapping[str, Any]) -> EvaluateConfig:
        return EvaluateConfig.model_validate(self.values(out, **sections))

    def values(self, out: Path | str, **sections: Mapping[str, Any]) -> dict[str, Any]:
        values: dict[str, Any] = {
            "predictions": {"uri": str(self.folder / "run")},
            "ground_truth": {"uri": str(self.folder / "truth.json")},
            "gallery": {"images_per_class": 1, "image_root": str(self.folder / "images")},
            "output": {"uri": str(out)},
        }
        for name, section in sections.items():
            values[name] = {**values.get(name, {}), **section}
        return values


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    case = random_case(5, num_images=24, max_detections=30)
    for image in case.dataset["images"]:
        image["file_name"] = f"{image['id']}.png"
    # What annotate writes is float32, and that is what pycocotools gets to see as well.
    results = [
        {**r, "bbox": np.float32(r["bbox"]).tolist(), "score": float(np.float32(r["score"]))} for r in case.results
    ]
    case = CocoCase(case.dataset, results)
    names = {c["id"]: c["name"] for c in case.dataset["categories"]}
    write_json(folder / "truth.json", case.dataset)
    write_json(folder / "results.json", results)
    write_output(
        str(folder / "run"), case.dataset, _with_areas(results), {**names, UNKNOWN: "unicorn"}, rows_per_file=5
    )
    (folder / "images").mkdir()
    for image in case.dataset["images"][1:]:
        Image.new("RGB", (image["width"], image["height"]), (90, 120, 90)).save(folder / "images" / image["file_name"])
    return World(folder, case, names)


def _with_areas(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from pycocotools import mask as coco_mask

    return [
        {**r, "area": int(coco_mask.area({**r["segmentation"], "counts": r["segmentation"]["counts"].encode()}))}
        for r in results
    ]


@pytest.fixture(autouse=True)
def _many_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small sets take the way of large ones: several parts and groups."""
    monkeypatch.setattr(annotations, "GROUP_IMAGES", 8)
    monkeypatch.setattr(ground_truth, "PART_BYTES", 8000)
    monkeypatch.setattr(predictions, "BLOCK_IMAGES", 3)
    monkeypatch.setattr(measure, "_REDUCE_TASKS", 3)


@pytest.mark.parametrize("form", ["run", "results.json"])
def test_equal_to_pycocotools(ray_cluster: None, world: World, tmp_path: Path, form: str) -> None:
    config = world.config(tmp_path, predictions={"uri": str(world.folder / form)})
    done = evaluate(config)
    for iou_type in IOU_TYPES:
        wanted = pycocotools_result(world.case.dataset, world.case.results, iou_type, (1, 10, 100))
        got = arrays_of(done.measured, iou_type)
        assert np.array_equal(got.precision, wanted.precision)
        assert np.array_equal(got.recall, wanted.recall)
        assert np.array_equal(got.scores, wanted.scores)
        assert done.metrics["summary"][iou_type]["stats"] == wanted.stats.tolist()
    assert json.loads((tmp_path / "metrics.json").read_text()) == json.loads(json.dumps(done.metrics))


class TestWhatIsWritten:
    @pytest.fixture(scope="class")
    def out(self, ray_cluster: None, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
        out = tmp_path_factory.mktemp("written")
        evaluate(world.config(out, metrics={"iou_types": ["segm"]}, analysis={"wanted_precision": 0.5}))
        return out

    @pytest.fixture(scope="class")
    def metrics(self, out: Path) -> dict[str, Any]:
        return json.loads((out / "metrics.json").read_text())

    def test_nothing_else_is_left(self, out: Path) -> None:
        names = {path.name for path in out.iterdir() if not path.name.startswith("._")}
        assert names == {"metrics.json", "report.html", "thresholds.yaml", "matches", "_lock.json"}

    def test_books_and_decisions(self, world: World, metrics: dict[str, Any]) -> None:
        num_images = len(world.case.dataset["images"])
        assert metrics["images"]["ground_truth"] == metrics["images"]["evaluated"] == num_images
        assert [text for text in metrics["decisions"] if "unicorn" in text]
        assert metrics["mmdet"]["segm_mAP"] == metrics["summary"]["segm"]["stats"][0]
        assert "bbox_mAP" not in metrics["mmdet"]

    def test_match_table_has_a_row_for_each_detection(self, world: World, out: Path) -> None:
        table = ds.dataset(out / "matches").to_table()
        known = [r for r in world.case.results if r["category_id"] != UNKNOWN]
        found = [row for row in table.to_pylist() if row["outcome"] != "missed"]
        key = {(row["image_id"], row["detection"]) for row in found}
        assert len(key) == len(found) == len(known)

    def test_confusion_counts_every_object_once(self, world: World, metrics: dict[str, Any]) -> None:
        matrix = np.array(metrics["confusion"]["matrix"])
        objects = [a for a in world.case.dataset["annotations"] if not a["iscrowd"]]
        assert matrix[:-1].sum() == len(objects)

    def test_annotate_takes_the_thresholds(self, world: World, out: Path, tmp_path: Path) -> None:
        values = {
            "manifest": {"uri": "a.csv"},
            "model": {"checkpoint": "m", "score_threshold": 0.0, "class_thresholds_file": str(out / "thresholds.yaml")},
            "output": {"uri": "o"},
        }
        (tmp_path / "annotate.yaml").write_text(yaml.safe_dump(values))
        config = load_config(AnnotateConfig, tmp_path / "annotate.yaml")
        assert set(config.model.class_thresholds) == set(world.names.values())
        assert config.model.label_thresholds(list(world.names.values()))

    def test_report_shows_classes_and_pictures(self, world: World, out: Path) -> None:
        page = (out / "report.html").read_text()
        for name in world.names.values():
            assert name in page
        assert page.count("data:image/webp") >= 4


def test_a_second_evaluation_replaces_the_first(ray_cluster: None, world: World, tmp_path: Path) -> None:
    (tmp_path / "matches").mkdir()
    (tmp_path / "matches" / "part-00099.parquet").write_bytes(b"old")
    (tmp_path / "thresholds.yaml").write_text("old")
    (tmp_path / "metrics.json").write_text('{"sources": {}, "decisions": [], "run": {}}')
    evaluate(world.config(tmp_path, analysis={"enabled": False}, metrics={"iou_types": ["bbox"]}))
    assert not (tmp_path / "thresholds.yaml").exists()
    assert not (tmp_path / "matches").exists()
    assert "confusion" not in json.loads((tmp_path / "metrics.json").read_text())


def test_thresholds_of_categories_that_cannot_be_told_apart(ray_cluster: None, world: World, tmp_path: Path) -> None:
    categories = [{**category, "name": "thing"} for category in world.case.dataset["categories"]]
    truth = write_json(tmp_path / "truth.json", {**world.case.dataset, "categories": categories})
    sections = {"predictions": {"uri": str(world.folder / "results.json")}, "ground_truth": {"uri": truth}}
    done = evaluate(world.config(tmp_path / "out", **sections))
    assert "thresholds.yaml was not written" in done.metrics["decisions"][-1]
    assert not (tmp_path / "out" / "thresholds.yaml").exists()


def test_thresholds_have_the_model_s_names(ray_cluster: None, world: World, tmp_path: Path) -> None:
    """Of those categories that it has."""
    run = tmp_path / "run"
    shutil.copytree(world.folder / "run", run)
    kept = sorted(world.names)[:2]
    categories = tuple(Category(id_, world.names[id_].upper()) for id_ in kept)
    RunJson(state=RunState.FINISHED, categories=categories).write(Uri(str(run)))
    evaluate(world.config(tmp_path / "out", predictions={"uri": str(run)}))
    thresholds = yaml.safe_load((tmp_path / "out" / "thresholds.yaml").read_text())
    assert list(thresholds) == [world.names[id_].upper() for id_ in kept]


def test_images_without_result_and_failed_ones(ray_cluster: None, world: World, tmp_path: Path) -> None:
    """All: as if nothing was found on them. Annotated: as if they were not in the ground truth."""
    images = world.case.dataset["images"]
    failed, missing = images[0]["id"], images[1]["id"]
    some = {**world.case.dataset, "images": [i for i in images if i["id"] != missing]}
    write_output(
        str(tmp_path / "run"), some, _with_areas(world.case.results), {**world.names, UNKNOWN: "x"}, failed=[failed]
    )
    kept = [r for r in world.case.results if r["image_id"] not in (failed, missing)]
    left = {
        **world.case.dataset,
        "images": [i for i in images if i["id"] not in (failed, missing)],
        "annotations": [a for a in world.case.dataset["annotations"] if a["image_id"] not in (failed, missing)],
    }
    for which, dataset in (("all", world.case.dataset), ("annotated", left)):
        done = evaluate(
            world.config(
                tmp_path / which,
                predictions={"uri": str(tmp_path / "run")},
                ground_truth={"images": which},
                metrics={"iou_types": ["bbox"]},
                analysis={"enabled": False},
            )
        )
        wanted = pycocotools_result(dataset, kept, "bbox", (1, 10, 100))
        assert done.metrics["summary"]["bbox"]["stats"] == wanted.stats.tolist()
        assert (done.metrics["images"]["failed"], done.metrics["images"]["without_result"]) == (1, 1)
        assert done.metrics["images"]["evaluated"] == len(dataset["images"])


class TestTheCommand:
    @pytest.mark.parametrize(
        ("sections", "message"),
        [
            ({"ground_truth": {"uri": "results.json"}}, "InputError: .*is a list, as results are"),
            ({"predictions": {"uri": "nowhere"}}, "StorageError: predictions.uri: .*nowhere does not exist"),
            ({"metrics": {"max_dets": [100, 10, 1]}}, "ConfigError: .*three ascending"),
            ({"output": {"uri": "run"}}, "ConfigError: .*where the predictions lie"),
        ],
    )
    def test_bad_input(
        self,
        ray_cluster: None,
        world: World,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        sections: dict[str, dict[str, Any]],
        message: str,
    ) -> None:
        for section in sections.values():
            if "uri" in section:
                section["uri"] = str(world.folder / section["uri"])
        (tmp_path / "evaluate.yaml").write_text(yaml.safe_dump(world.values(tmp_path / "out", **sections)))
        with caplog.at_level(logging.INFO):
            assert cli.main(["--config", str(tmp_path / "evaluate.yaml")]) == 2
        assert caplog.messages[-1].startswith("exit code 2: ")
        assert pytest.importorskip("re").search(message, caplog.messages[-1]), caplog.messages[-1]
        assert not (tmp_path / "out" / "metrics.json").exists()

    def test_a_mask_of_another_size_is_found_in_a_task(
        self, ray_cluster: None, world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        results = json.loads((world.folder / "results.json").read_text())
        results[0]["segmentation"]["size"] = results[0]["segmentation"]["size"][::-1]
        path = write_json(tmp_path / "swapped.json", results)
        values = world.values(tmp_path / "out", predictions={"uri": path})
        (tmp_path / "evaluate.yaml").write_text(yaml.safe_dump(values))
        with caplog.at_level(logging.INFO):
            assert cli.main(["--config", str(tmp_path / "evaluate.yaml")]) == 2
        assert f"image {results[0]['image_id']}" in caplog.messages[-1]
        assert not (tmp_path / "out" / "_scratch").exists()

    def test_another_evaluation_writes_there(self, ray_cluster: None, world: World, tmp_path: Path) -> None:
        (tmp_path / "evaluate.yaml").write_text(yaml.safe_dump(world.values(tmp_path / "out")))
        with OutputLock(Uri(str(tmp_path / "out")), "the-other", lease_s=1.5):
            assert cli.main(["--config", str(tmp_path / "evaluate.yaml")]) == 1


def test_on_s3(ray_s3: S3Server, world: World, tmp_path: Path) -> None:
    bucket = "evaluation"
    ray_s3.create_bucket(bucket)
    ray_s3.put(bucket, "truth.json", (world.folder / "truth.json").read_bytes())
    for file in sorted((world.folder / "run" / "data").iterdir()):
        ray_s3.put(bucket, f"run/data/{file.name}", file.read_bytes())
    sections = {"predictions": {"uri": f"s3://{bucket}/run"}, "ground_truth": {"uri": f"s3://{bucket}/truth.json"}}
    with s3_environment_variables(ray_s3.endpoint):
        done = evaluate(world.config(f"s3://{bucket}/out", **sections))
        left = ds.dataset(f"{bucket}/out/matches", filesystem=_s3(ray_s3)).count_rows()
    wanted = pycocotools_result(world.case.dataset, world.case.results, "segm", (1, 10, 100))
    assert done.metrics["summary"]["segm"]["stats"] == wanted.stats.tolist()
    assert left > 0


def _s3(server: S3Server) -> Any:
    import pyarrow.fs as pafs

    return pafs.S3FileSystem(endpoint_override=server.endpoint, region="us-east-1")


def test_the_classes_on_a_terminal() -> None:
    names = ["cat", "no\nobjects", "x" * 50, *(f"class {i}" for i in range(40))]
    aps = [0.25, None, 0.125, *(0.5 + i / 100 for i in range(40))]
    rows = [
        {"category_id": i, "name": name, "AP": ap, "objects": 1200 * (ap is not None), "detections": 7}
        for i, (name, ap) in enumerate(zip(names, aps, strict=True))
    ]
    lines = class_lines({"bbox": rows, "segm": [{**row, "AP": row["AP"] and row["AP"] / 2} for row in rows]})
    assert lines[1].split() == ["class", "mask", "AP", "box", "AP", "objects", "detections"]
    assert [line.split()[-4:] for line in lines[2:5]] == [
        ["0.062", "0.125", "1,200", "7"],
        ["0.125", "0.250", "1,200", "7"],
        ["0.250", "0.500", "1,200", "7"],
    ]
    assert lines[-1] == " and 13 more in metrics.json and report.html"
    assert len({len(line) for line in lines[1:-1]}) == 1
    few = class_lines({"bbox": rows[:3]})
    assert few[-1].split() == ["no\\nobjects", DASH, "0", "7"]
    assert class_lines({}) == []

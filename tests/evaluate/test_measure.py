"""All stages in this process, on sets cut into many parts, groups and tasks, with pycocotools as the judge."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.annotations.class_thresholds import Selection
from pipeline.annotations.reader import open_source
from pipeline.cluster import connect
from pipeline.coco.errors import InputError
from pipeline.errors import UserError
from pipeline.evaluate import measure
from pipeline.evaluate import run as evaluate_job
from pipeline.evaluate.analysis import AnalysisPlan
from pipeline.evaluate.config import AnalysisConfig, EvaluateConfig
from pipeline.evaluate.inputs import annotations, ground_truth, predictions
from pipeline.evaluate.measure import Measured, Request
from pipeline.evaluate.metrics_file import analysis_figures, arrays_of, figures
from pipeline.export.formats.coco import write_coco, write_coco_results
from pipeline.export.labels import Labels
from pipeline.metrics.ap import sorted_runs
from pipeline.metrics.protocol import CocoProtocol, IouType
from pipeline.storage.uris import Uri
from tests.evaluate.coco_cases import CocoCase, pycocotools_result, random_case
from tests.evaluate.input_cases import write_json, write_output


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotations, "GROUP_IMAGES", 6)
    monkeypatch.setattr(ground_truth, "PART_BYTES", 6000)
    monkeypatch.setattr(predictions, "BLOCK_IMAGES", 2)
    monkeypatch.setattr(sorted_runs, "CHUNK_RECORDS", 16)
    monkeypatch.setattr(measure, "_REDUCE_TASKS", 3)


def shuffled(work: Callable[[Any], Any], items: Sequence[Any], verb: str) -> Iterator[Any]:
    """Tasks come back in any order, and some are run twice, as after the loss of a node."""
    rng = random.Random(verb)
    some = list(items)
    rng.shuffle(some)
    for item in some:
        if rng.random() < 0.3:
            work(item)
        yield work(item)


def run(
    folder: Path, iou_types: tuple[IouType, ...], found: str = "run", max_dets: tuple[int, int, int] = (1, 10, 100)
) -> Measured:
    request = Request(
        predictions_uri=Uri(str(folder / found)),
        truth_uri=Uri(str(folder / "truth.json")),
        images="all",
        iou_types=iou_types,
        protocol=CocoProtocol(max_dets),
        analysis=AnalysisPlan(AnalysisConfig(wanted_precision=0.5), iou_types[-1], 2, Uri(str(folder / "matches"))),
        scratch_uri=Uri(str(folder / "scratch")),
    )
    return measure.measure(request, shuffled, lambda line: None)


def write(folder: Path, case: CocoCase) -> CocoCase:
    """The set on disk, in both forms, with the float32 numbers of an output."""
    results = [
        {**r, "bbox": np.float32(r["bbox"]).tolist(), "score": float(np.float32(r["score"])), "area": 1 << 25}
        for r in case.results
    ]
    names = {c["id"]: c["name"] for c in case.dataset["categories"]}
    write_json(folder / "truth.json", case.dataset)
    write_json(folder / "results.json", results)
    write_output(str(folder / "run"), case.dataset, results, {**names, 999: "unknown"}, rows_per_file=4)
    return CocoCase(case.dataset, [{k: v for k, v in r.items() if k != "area"} for r in results])


@pytest.mark.parametrize("found", ["run", "results.json"])
@pytest.mark.parametrize("max_dets", [(1, 10, 100), (100, 300, 1000), (1, 2, 3)])
@pytest.mark.parametrize("seed", [1, 2])
def test_equal_to_pycocotools(tmp_path: Path, seed: int, max_dets: tuple[int, int, int], found: str) -> None:
    most = 150 if max_dets[2] > 100 else 20
    case = write(tmp_path, random_case(seed, num_images=22, max_detections=most))
    measured = run(tmp_path, ("bbox", "segm"), found, max_dets)
    for iou_type in ("bbox", "segm"):
        wanted = pycocotools_result(case.dataset, case.results, iou_type, max_dets)
        got = arrays_of(measured, iou_type)
        assert np.array_equal(got.precision, wanted.precision)
        assert np.array_equal(got.recall, wanted.recall)
        assert np.array_equal(got.scores, wanted.scores)


def with_text_ids(case: CocoCase) -> CocoCase:
    new = {image["id"]: f"{image['id']}" for image in case.dataset["images"]}
    dataset = {
        **case.dataset,
        "images": [{**image, "id": new[image["id"]]} for image in case.dataset["images"]],
        "annotations": [{**a, "image_id": new[a["image_id"]]} for a in case.dataset["annotations"]],
    }
    return CocoCase(dataset, [{**r, "image_id": new[r["image_id"]]} for r in case.results])


@pytest.mark.parametrize("text_ids", [False, True])
def test_what_was_exported_is_paired_as_the_output_is(tmp_path: Path, text_ids: bool) -> None:
    """Results in the format coco-results, whose images are numbered where their ids are strings."""
    case = random_case(5, num_images=14)
    case = write(tmp_path, with_text_ids(case) if text_ids else case)
    uri = Uri(str(tmp_path / "run"))
    with (tmp_path / "exported.json").open("wb") as file:
        write_coco_results(Labels(open_source(uri), Selection(), keep_empty=True), file)
    with (tmp_path / "labels.json").open("wb") as file:
        write_coco(Labels(open_source(uri), Selection(), keep_empty=False), file)
    wanted = pycocotools_result(case.dataset, case.results, "segm", (1, 10, 100))
    assert np.array_equal(arrays_of(run(tmp_path, ("segm",), "exported.json"), "segm").precision, wanted.precision)

    (tmp_path / "truth.json").write_bytes((tmp_path / "labels.json").read_bytes())
    labels, results = (json.loads((tmp_path / f"{name}.json").read_bytes()) for name in ("labels", "exported"))
    wanted = pycocotools_result(labels, results, "segm", (1, 10, 100))
    assert np.array_equal(arrays_of(run(tmp_path, ("segm",), "exported.json"), "segm").precision, wanted.precision)


@pytest.fixture
def labels(tmp_path: Path) -> dict[str, Any]:
    """An output whose ids are strings, as a data set that the export has numbered."""
    write(tmp_path, with_text_ids(random_case(5, num_images=14)))
    with (tmp_path / "truth.json").open("wb") as file:
        write_coco(Labels(open_source(Uri(str(tmp_path / "run"))), Selection(), keep_empty=False), file)
    found: dict[str, Any] = json.loads((tmp_path / "truth.json").read_bytes())
    return found


@pytest.mark.parametrize("annotations_first", [False, True])
def test_labels_that_were_exported_and_corrected(
    tmp_path: Path, labels: dict[str, Any], annotations_first: bool
) -> None:
    """By a tool that numbers the images anew, and keeps of an annotation what COCO knows: pycocotools is the judge."""
    known = ("id", "category_id", "bbox", "area", "iscrowd", "segmentation")
    new = {image["id"]: 100 - image["id"] for image in labels["images"]}
    images = [{**image, "id": new[image["id"]]} for image in reversed(labels["images"])]
    kept = [{**{key: a[key] for key in known}, "image_id": new[a["image_id"]]} for a in labels["annotations"][::3]]
    lists = {"images": images, "annotations": kept, "categories": labels["categories"]}
    write_json(tmp_path / "truth.json", dict(reversed(lists.items())) if annotations_first else lists)
    uri = Uri(str(tmp_path / "run"))
    with (tmp_path / "exported.json").open("wb") as file:
        write_coco_results(Labels(open_source(uri), Selection(), keep_empty=True), file)
    numbers = {image["maskfleet_image_id"]: image["id"] for image in images}
    results = json.loads((tmp_path / "exported.json").read_bytes())
    results = [{**r, "image_id": numbers[r["maskfleet_image_id"]]} for r in results]
    wanted = pycocotools_result(lists, results, "segm", (1, 10, 100))
    for found in ("run", "exported.json"):
        got = arrays_of(run(tmp_path, ("segm",), found), "segm")
        assert np.array_equal(got.precision, wanted.precision)
        assert np.array_equal(got.scores, wanted.scores)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found["images"][3].pop("maskfleet_image_id"), r"images\[3\].* no maskfleet_image_id, which"),
        (lambda found: found["images"][0].pop("maskfleet_image_id"), r"images\[1\].* first image has no maskfleet_im"),
        (lambda found: found["images"][2].update(maskfleet_image_id=7), r"images\[2\].*must be a string, not 7"),
        (
            lambda found: found["images"].append({**found["images"][1], "maskfleet_image_id": "x"}),
            r"images have an id that another one has, too: 2; give",
        ),
        (
            lambda found: found["images"][2].update(maskfleet_image_id=found["images"][1]["maskfleet_image_id"]),
            r"images of the ground truth have an id that another one has, too: '",
        ),
        (lambda found: found["images"].pop(0), r"annotations belong to images that the file lacks: 1 \(of image 1\)"),
        (
            lambda found: [image.pop("maskfleet_image_id") for image in found["images"]],
            r"both must be .* still have maskfleet_image_id",
        ),
    ],
)
def test_exported_labels_that_do_not_fit(
    tmp_path: Path, labels: dict[str, Any], change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    change(labels)
    write_json(tmp_path / "truth.json", labels)
    with pytest.raises(InputError, match=message):
        run(tmp_path, ("segm",))


def test_text_ids_are_ordered_like_text(tmp_path: Path) -> None:
    case = write(tmp_path, with_text_ids(random_case(4, num_images=14)))
    wanted = pycocotools_result(case.dataset, case.results, "bbox", (1, 10, 100))
    assert np.array_equal(arrays_of(run(tmp_path, ("bbox",)), "bbox").scores, wanted.scores)


@pytest.mark.parametrize(
    "dataset",
    [
        pytest.param({"images": [], "annotations": []}, id="no images"),
        pytest.param({"images": [{"id": 1, "height": 9, "width": 9}], "annotations": []}, id="no objects"),
    ],
)
def test_nothing_to_find(tmp_path: Path, dataset: dict[str, Any]) -> None:
    write_json(tmp_path / "truth.json", {**dataset, "categories": [{"id": 3, "name": "cat"}]})
    (tmp_path / "results.json").write_text("[]")
    measured = run(tmp_path, ("segm",), "results.json")
    content = figures(measured, (1, 10, 100)) | analysis_figures(measured)
    assert content["summary"]["segm"]["stats"] == [-1.0] * 12
    assert content["per_class"]["segm"][0]["AP"] is None
    json.dumps(content, allow_nan=False)


def test_every_problem_is_in_the_message(tmp_path: Path) -> None:
    case = write(tmp_path, random_case(6))
    images, objects = case.dataset["images"], case.dataset["annotations"]
    write_json(
        tmp_path / "truth.json",
        {**case.dataset, "images": [*images, images[0]], "annotations": [*objects, {**objects[0], "image_id": 12345}]},
    )
    with pytest.raises(InputError, match=r"have an id that another one has.*annotations belong to images"):
        run(tmp_path, ("bbox",))


def test_metrics_are_plain_json(tmp_path: Path) -> None:
    write(tmp_path, random_case(8, num_images=12))
    measured = run(tmp_path, ("bbox", "segm"))
    content = figures(measured, (1, 10, 100)) | analysis_figures(measured)
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    objects = {row["name"]: row["objects"] for row in content["categories"]}
    for row in content["thresholds"]["classes"]:
        assert row["objects"] == objects[row["name"]]
    assert sum(content["calibration"]["overall"]["count"]) == sum(
        row["count"] for row in content["calibration"]["per_class"]
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        pytest.param({"ground_truth": "gone.json"}, "gone.json does not exist", id="no truth"),
        pytest.param({"ground_truth": "."}, "is a folder", id="a folder as truth"),
        pytest.param({"ground_truth": "results.json"}, "is a list", id="results as truth"),
        pytest.param({"predictions": "gone"}, "gone", id="no predictions"),
        pytest.param({"predictions": "gone.json"}, "gone.json", id="no results"),
        pytest.param({"predictions": "truth.json"}, "truth.json", id="truth as results"),
    ],
)
def test_what_the_inputs_tell_is_told_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, str], message: str
) -> None:
    write(tmp_path, random_case(3))
    monkeypatch.setattr(connect, "connect", lambda address: pytest.fail("Ray was started"))
    places = {"predictions": "run", "ground_truth": "truth.json", "output": "out"} | wrong
    values = {name: {"uri": str(tmp_path / place)} for name, place in places.items()}
    with pytest.raises((UserError, OSError), match=message):
        evaluate_job.evaluate(EvaluateConfig.model_validate(values))


def test_inputs_that_cannot_be_evaluated_cost_no_earlier_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, random_case(3))
    monkeypatch.setattr(evaluate_job, "_OnRay", lambda *_: shuffled)
    out = tmp_path / "out"
    values: dict[str, Any] = {
        "predictions": {"uri": str(tmp_path / "run")},
        "ground_truth": {"uri": str(tmp_path / "truth.json")},
        "gallery": {"images_per_class": 0},
        "output": {"uri": str(out)},
    }
    evaluate_job.evaluate(EvaluateConfig.model_validate(values))
    names = ("metrics.json", "report.html", "matches/part-00000.parquet")
    before = {name: (out / name).read_bytes() for name in names}
    for missing in ("predictions", "ground_truth"):
        wrong = EvaluateConfig.model_validate({**values, missing: {"uri": str(tmp_path / "mistyped")}})
        with pytest.raises((UserError, OSError)):
            evaluate_job.evaluate(wrong)
        assert {name: (out / name).read_bytes() for name in names} == before
    evaluate_job.evaluate(EvaluateConfig.model_validate({**values, "analysis": {"enabled": False}}))
    assert not (out / "matches").exists()

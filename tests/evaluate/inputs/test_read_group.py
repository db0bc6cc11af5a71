"""All stages of reading, from files to blocks, judged by what pycocotools makes of the same files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pipeline.coco.errors import InputError
from pipeline.evaluate.inputs import annotations, coco_results, ground_truth
from pipeline.evaluate.inputs import read_group as groups
from pipeline.evaluate.inputs.annotations import open_annotated_output
from pipeline.evaluate.inputs.coco_results import deal_results
from pipeline.evaluate.inputs.ground_truth import deal_truth
from pipeline.evaluate.inputs.pairing import pair_part, truth_chunks
from pipeline.evaluate.inputs.predictions import Predictions, list_images
from pipeline.evaluate.inputs.read_group import read_group
from pipeline.evaluate.shuffle import chunks
from pipeline.evaluate.shuffle.chunks import ChunkStore
from pipeline.metrics.ap.figures import evaluate_blocks
from pipeline.metrics.protocol import IOU_TYPES, CocoProtocol, IouType
from pipeline.storage.uris import Uri
from testing.s3_server import S3Server
from tests.evaluate.coco_cases import CocoCase, pycocotools_result, random_case
from tests.evaluate.input_cases import Read, image_ids, read_all, write_json, write_output

COCOAPI = Path(__file__).parents[4] / "shared" / "data" / "cocoapi"


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many parts, files, groups and blocks even of small sets."""
    for module in (groups, coco_results, annotations):
        monkeypatch.setattr(module, "BLOCK_IMAGES", 2)
    monkeypatch.setattr(ground_truth, "PART_BYTES", 3000)
    monkeypatch.setattr(ground_truth, "_ROWS_AT_ONCE", 4)
    monkeypatch.setattr(chunks, "BUFFER_BYTES", 2000)
    monkeypatch.setattr(annotations, "GROUP_IMAGES", 5)


def float32_case(seed: int, texts: bool = False) -> CocoCase:
    """A set whose results the output's types hold without loss, with ids that are integers or strings."""
    dataset, results = random_case(seed, num_images=24)
    for row in results:
        row["score"] = float(np.float32(row["score"]))
        row["area"] = int(coco_mask.area(row["segmentation"]))
    if texts:
        for image in dataset["images"]:
            image["id"] = f"ü/{image['id']}"
        for row in (*dataset["annotations"], *results):
            row["image_id"] = f"ü/{row['image_id']}"
    return CocoCase(dataset, results)


def names_of(case: CocoCase) -> dict[int, str]:
    return {category["id"]: category["name"] for category in case.dataset["categories"]} | {999: "ghost"}


def open_predictions(form: str, case: CocoCase, folder: Path, masks: bool) -> Predictions:
    if form == "output":
        return open_annotated_output(write_output(str(folder / "out"), *case, names_of(case)).uri)
    return deal_results(
        Uri(write_json(folder / "results.json", case.results)), ChunkStore(Uri(str(folder / "dealt"))), masks
    )


def check_equal(got: Read, case: CocoCase, iou_type: IouType) -> None:
    """To the last bit."""
    assert got.report.problems() == []
    num_categories = len(case.dataset["categories"])
    found = evaluate_blocks(got.blocks, iou_type, num_categories, CocoProtocol())
    wanted = pycocotools_result(*case, iou_type)
    for name in ("precision", "recall", "scores"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("texts", [False, True], ids=["integers", "strings"])
@pytest.mark.parametrize("iou_type", IOU_TYPES)
@pytest.mark.parametrize("form", ["output", "results"])
@pytest.mark.parametrize("seed", [0, 1])
def test_equal_to_pycocotools(seed: int, form: str, iou_type: IouType, texts: bool, tmp_path: Path) -> None:
    case = float32_case(seed, texts)
    masks = iou_type == "segm"
    predictions = open_predictions(form, case, tmp_path, masks)
    got = read_all(write_json(tmp_path / "gt.json", case.dataset), predictions, str(tmp_path / "scratch"), masks)
    assert got.truth.num_parts > 3
    assert predictions.num_groups > 3
    assert max(len(truth) for truth, _ in got.blocks) <= 2
    assert sorted(image_ids(got.blocks)) == sorted(image["id"] for image in case.dataset["images"])
    check_equal(got, case, iou_type)


def test_blocks_with_masks_serve_boxes_too(tmp_path: Path) -> None:
    case = float32_case(3)
    predictions = open_predictions("results", case, tmp_path, masks=True)
    got = read_all(write_json(tmp_path / "gt.json", case.dataset), predictions, str(tmp_path / "scratch"))
    for iou_type in IOU_TYPES:
        check_equal(got, case, iou_type)


@pytest.mark.parametrize(("iou_type", "ap"), [("bbox", 0.505), ("segm", 0.320)])
def test_the_example_of_cocoapi(iou_type: IouType, ap: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real polygons and crowds, and the figures that the COCO API publishes for them."""
    truth_path = COCOAPI / "instances_val2014_100.json"
    if not truth_path.exists():
        pytest.skip("the COCO API's example is not here")
    monkeypatch.setattr(ground_truth, "PART_BYTES", 60_000)
    results_path = COCOAPI / f"instances_val2014_fake{iou_type}100_results.json"
    masks = iou_type == "segm"
    dealt = deal_results(Uri(str(results_path)), ChunkStore(Uri(str(tmp_path / "dealt"))), masks)
    got = read_all(str(truth_path), dealt, str(tmp_path / "scratch"), masks)
    case = CocoCase(json.loads(truth_path.read_text()), json.loads(results_path.read_text()))
    check_equal(got, case, iou_type)
    assert round(float(pycocotools_result(*case, iou_type).stats[0]), 3) == ap


@pytest.mark.usefixtures("small_pieces")
def test_everything_on_s3(s3: S3Server, tmp_path: Path) -> None:
    case = float32_case(4)
    truth_uri = s3.put("bucket", "gt.json", json.dumps(case.dataset).encode())
    store = write_output("s3://bucket/out", *case, names_of(case), rows_per_file=8)
    got = read_all(truth_uri, open_annotated_output(store.uri), str(store.uri / "scratch"))
    check_equal(got, case, "segm")


def one_group(case: CocoCase, folder: Path) -> tuple[Any, ...]:
    """All that `read_group` takes."""
    store = ChunkStore(Uri(str(folder / "scratch")))
    truth = deal_truth(Uri(write_json(folder / "gt.json", case.dataset)), store, masks=True)
    predictions = open_predictions("output", case, folder, masks=True)
    listed = [list_images(predictions, [0], store, truth.num_parts)]
    paired = [pair_part(truth, listed, store, 0, 1, "all")]
    return truth, predictions, store, 0, truth_chunks(paired, 0)


def test_an_output_that_changes_meanwhile(tmp_path: Path) -> None:
    case = float32_case(5)
    arguments = one_group(case, tmp_path)
    predictions = arguments[1]
    without = predictions.groups[0][:-1]
    changed = replace(predictions, groups=(without,))
    assert len(list(read_group(*arguments))) > 0
    with pytest.raises(InputError, match=r"has changed while it was evaluated: image .* is gone; evaluate again"):
        list(read_group(arguments[0], changed, *arguments[2:]))


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [5, 5], "counts": "x"}, r"gt.json, annotation 0: .* is 5 x 5, the image's 120 x 136"),
        ({"size": [120, 136], "counts": "53"}, r"gt.json, annotation 0: run lengths of 8 pixels in all for a mask of"),
        ({"size": [120, 136], "counts": "00N8"}, r"gt.json, annotation 0: a run of -2 pixels"),
        ([[1, 2, 3]], r"gt.json, annotation 0: a polygon must be a list"),
        ([[1, 2, 3, 4, 5, 1e9]], r"gt.json, annotation 0: a polygon must be a list"),
        ([[1, 2, 3, 4, 5, 6], None], r"gt.json, annotation 0: a polygon must be a list"),
        ([[1, 2, 3, 4, 5, None]], r"gt.json, annotation 0: a polygon must be a list"),
        ([[1, 2, 3, 4, 5, "6"]], r"gt.json, annotation 0: a polygon must be a list"),
        ([1, 2, 3, 4, 5, 6], r"gt.json, annotation 0: a polygon must be a list"),
    ],
)
def test_a_mask_that_cannot_be_compared(segmentation: Any, message: str, tmp_path: Path) -> None:
    case = float32_case(5)
    case.dataset["annotations"][0]["segmentation"] = segmentation
    with pytest.raises(InputError, match=message):
        list(read_group(*one_group(case, tmp_path)))


@pytest.mark.usefixtures("small_pieces")
def test_what_is_held_does_not_grow_with_the_number_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of the largest table that any stage reads from scratch storage, for 20 and 200 images."""
    largest = {}
    read = ChunkStore.read

    def watch(store: ChunkStore, *arguments: Any) -> Any:
        table = read(store, *arguments)
        largest[num_images] = max(largest.get(num_images, 0), table.num_rows)
        return table

    monkeypatch.setattr(ChunkStore, "read", watch)
    for num_images in (20, 200):
        folder = tmp_path / str(num_images)
        folder.mkdir()
        case = random_case(0, num_images=num_images, max_detections=0)
        predictions = open_annotated_output(write_output(str(folder / "out"), *case, names_of(case), (), 5).uri)
        read_all(write_json(folder / "gt.json", case.dataset), predictions, str(folder / "scratch"))
    assert largest[200] < 3 * largest[20]  # a hash deals unevenly

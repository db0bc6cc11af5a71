from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from pipeline.coco.errors import InputError
from pipeline.evaluate.inputs import coco_results, ground_truth
from pipeline.evaluate.inputs.coco_results import DealtResults, deal_results
from pipeline.evaluate.shuffle import chunks
from pipeline.evaluate.shuffle.chunks import ChunkStore
from pipeline.metrics.blocks import Categories
from pipeline.storage.uris import Uri
from tests.evaluate.input_cases import write_json

HEIGHT, WIDTH = 20, 30
MASK = coco_mask.encode(np.asfortranarray(np.tri(HEIGHT, WIDTH, dtype=np.uint8)))
SEGMENTATION = {"size": [HEIGHT, WIDTH], "counts": MASK["counts"].decode()}
RESULT = {"image_id": 1, "category_id": 5, "bbox": [1, 2, 3.25, 4], "score": 0.1, "segmentation": SEGMENTATION}
CATEGORIES = Categories((1, 5), ("cat", "dog"))


def dealt(tmp_path: Path, content: Any, masks: bool = True) -> DealtResults:
    return deal_results(
        Uri(write_json(tmp_path / "results.json", content)), ChunkStore(Uri(str(tmp_path / "scratch"))), masks
    )


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in RESULT.items() if key not in keys}


def test_an_images_results_stay_in_order_over_files_and_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ground_truth, "PART_BYTES", 3000)
    monkeypatch.setattr(ground_truth, "_ROWS_AT_ONCE", 3)
    monkeypatch.setattr(chunks, "BUFFER_BYTES", 1500)
    monkeypatch.setattr(coco_results, "BLOCK_IMAGES", 2)
    rng = np.random.default_rng(0)
    rows = [{**RESULT, "image_id": int(rng.integers(12)), "score": n / 7} for n in range(100)]
    results = dealt(tmp_path, rows)
    assert results.num_groups > 3
    assert len(results.files) > 3
    found: dict[int, list[float]] = {}
    for group in range(results.num_groups):
        listed, counts = results.list_group(group)
        batches = list(results.read_group(group, masks=True))
        assert listed["image_id"].to_pylist() == [id_ for batch in batches for id_ in batch.image_ids.to_pylist()]
        assert sum(counts.values()) == sum(len(batch.table) for batch in batches)  # type: ignore[attr-defined]
        for batch in batches:
            num_images = len(batch.image_ids)
            assert num_images <= 2
            block = batch.block(np.arange(num_images), np.array([[HEIGHT, WIDTH]] * num_images), CATEGORIES, True)
            for row, id_ in enumerate(batch.image_ids.to_pylist()):
                found[id_] = block.scores[block.offsets[row] : block.offsets[row + 1]].tolist()
    wanted: dict[int, list[float]] = {}
    for row in rows:
        wanted.setdefault(row["image_id"], []).append(row["score"])
    assert found == wanted


def test_boxes_and_areas_of_masks_are_those_of_pycocotools(tmp_path: Path) -> None:
    truth = COCO()
    truth.dataset = {"images": [{"id": 1, "height": HEIGHT, "width": WIDTH}], "annotations": [], "categories": []}
    truth.createIndex()
    wanted = truth.loadRes([without("bbox")]).loadAnns([1])[0]
    results = dealt(tmp_path, [without("bbox"), {**RESULT, "category_id": 7}, RESULT])
    assert results.num_without_box == 1
    (batch,) = results.read_group(0, masks=True)
    block = batch.block(np.array([0]), np.array([[HEIGHT, WIDTH]]), CATEGORIES, masks=True)
    assert block.boxes.tolist() == [wanted["bbox"].tolist(), RESULT["bbox"]]
    assert block.positions.tolist() == [0, 2]
    assert block.rles is not None
    assert block.rles.areas.tolist() == [wanted["area"]] * 2
    assert block.rles[0]["counts"] == MASK["counts"]


@pytest.mark.parametrize("segmentation", [SEGMENTATION, [[1, 1, 9, 1, 9, 9]], {"size": [20, 30], "counts": [300, 300]}])
def test_boxes_of_masks_where_only_boxes_are_compared(segmentation: Any, tmp_path: Path) -> None:
    results = dealt(tmp_path, [{**without("bbox"), "segmentation": segmentation}, without("segmentation")], False)
    (batch,) = results.read_group(0, masks=False)
    block = batch.block(np.array([0]), np.array([[HEIGHT, WIDTH]]), CATEGORIES, masks=False)
    mask = coco_mask.frPyObjects(segmentation, HEIGHT, WIDTH) if segmentation is not SEGMENTATION else MASK
    wanted = coco_mask.toBbox(mask[0] if isinstance(mask, list) else mask).tolist()
    assert block.boxes.tolist() == [wanted, RESULT["bbox"]]
    assert block.rles is None


def test_no_results(tmp_path: Path) -> None:
    results = dealt(tmp_path, [])
    assert results.num_groups == 1
    assert results.list_group(0)[0].num_rows == 0
    assert list(results.read_group(0, masks=True)) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": [], "annotations": []}, "no COCO results file: that is a list"),
        ({}, "no COCO results file"),
        ([RESULT, {**RESULT, "image_id": "a"}], r"results.json, result\[1\]: image ids must be all integers"),
        ([without("score")], r"result\[0\]: it has no key 'score'"),
        ([without("segmentation")], "no segmentation; evaluate boxes only"),
        ([3], r"result\[0\]: it is 3, not an object"),
    ],
)
def test_what_cannot_be_evaluated(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        dealt(tmp_path, content)


def test_nan_is_no_score(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="score must be a finite number, not nan"):
        dealt(tmp_path, [{**RESULT, "score": float("nan")}])
    assert "NaN" in json.dumps(float("nan"))


def test_a_mask_of_another_size(tmp_path: Path) -> None:
    (batch,) = dealt(tmp_path, [RESULT]).read_group(0, masks=True)
    with pytest.raises(InputError, match=r"a result on image 1: .* is 20 x 30, the image's 30 x 20"):
        batch.block(np.array([0]), np.array([[WIDTH, HEIGHT]]), CATEGORIES, masks=True)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"counts": "53"}, "run lengths of 8 pixels in all for a mask of 20 x 30"),
        ({"counts": "00N8"}, "a run of -2 pixels"),
        ({"size": [-20, 30]}, "cannot have a mask"),
        ({"size": "wide"}, "cannot have a mask"),
        ({"size": None}, "cannot have a mask"),
    ],
)
@pytest.mark.parametrize("is_known", [True, False])
def test_damaged_masks(segmentation: dict[str, Any], message: str, is_known: bool, tmp_path: Path) -> None:
    """Also where only boxes are compared, masks give them, and nobody knows the image's size."""
    if is_known and "size" in segmentation:
        message = "the mask's size"
    mask = {**RESULT["segmentation"], **segmentation}
    (batch,) = dealt(tmp_path, [RESULT, {**without("bbox"), "segmentation": mask}], is_known).read_group(0, is_known)
    size = [HEIGHT, WIDTH] if is_known else [0, 0]
    with pytest.raises(InputError, match=f"results.json: a result on image 1: .*{message}"):
        batch.block(np.array([0]), np.array([size]), CATEGORIES, masks=is_known)

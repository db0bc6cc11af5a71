from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.annotations.ledger import OutputStore
from pipeline.coco.errors import InputError
from pipeline.evaluate.inputs.annotations import open_annotated_output
from pipeline.evaluate.inputs.books import InputReport
from pipeline.evaluate.inputs.coco_results import deal_results
from pipeline.evaluate.shuffle.chunks import ChunkStore
from pipeline.messages.examples import Examples
from pipeline.storage.uris import Uri
from tests.evaluate.input_cases import IDENTITY, Read, image_ids, output_rows, read_all, write_json

NAMES = {1: "Cat ", 2: "dog"}
CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def images(*ids: int | str) -> list[dict[str, Any]]:
    return [{"id": id_, "height": 20, "width": 30} for id_ in ids]


def objects(*ids: int | str, first: int = 1) -> list[dict[str, Any]]:
    """An object on each image."""
    return [
        {"id": first + n, "image_id": id_, "category_id": 1, "bbox": [0, 0, 5, 5], "area": 25}
        for n, id_ in enumerate(ids)
    ]


def results(*ids: int | str, category_id: int = 1) -> list[dict[str, Any]]:
    """A detection on each image."""
    return [
        {
            "image_id": id_,
            "category_id": category_id,
            "bbox": [0, 0, 5, 5],
            "score": 0.5,
            "segmentation": {"size": [20, 30], "counts": "0"},
        }
        for id_ in ids
    ]


def paired(
    folder: Path,
    truth: dict[str, Any],
    *files: list[dict[str, Any]],
    found: list[dict[str, Any]] | None = None,
    failed: tuple[int | str, ...] = (),
    names: dict[int, str] = NAMES,
    which: Any = "all",
) -> Read:
    """Ground truth (boxes only) against an output with these files."""
    store = OutputStore(Uri(str(folder / "out")))
    for rows in files:
        store.write_rows(output_rows(rows, found or [], names, failed), IDENTITY)
    uri = write_json(folder / "gt.json", {"categories": CATEGORIES, **truth})
    return read_all(uri, open_annotated_output(store.uri), str(folder / "scratch"), masks=False, images=which)


def test_the_books(tmp_path: Path) -> None:
    truth = {"images": images(1, 2, 3, 4, 5), "annotations": objects(1, 1, 3, 4)}
    got = paired(tmp_path, truth, images(9, 3, 2), images(1, 8), found=results(1, 1, 8, 2), failed=(3,))
    assert got.report == InputReport(
        images=5,
        objects=4,
        rows=5,
        common=3,
        detections=4,
        missing=Examples(2, ("4", "5")),
        failed=Examples(1, ("3",)),
        unknown=Examples(2, got.report.unknown.first),
    )
    assert set(got.report.unknown.first) == {"8", "9"}
    assert got.report.problems() == []
    assert sorted(image_ids(got.blocks)) == [1, 2, 3, 4, 5]
    objects_of, detections_of = {}, {}
    for truth_block, detection_block in got.blocks:
        assert len(truth_block) == len(detection_block)
        for n, id_ in enumerate(truth_block.image_ids):
            objects_of[id_] = int(truth_block.offsets[n + 1] - truth_block.offsets[n])
            detections_of[id_] = int(detection_block.offsets[n + 1] - detection_block.offsets[n])
    assert objects_of == {1: 2, 2: 0, 3: 1, 4: 1, 5: 0}
    assert detections_of == {1: 2, 2: 1, 3: 0, 4: 0, 5: 0}


def test_only_annotated_images_count(tmp_path: Path) -> None:
    truth = {"images": images(1, 2, 3, 4), "annotations": objects(1, 3, 4)}
    got = paired(tmp_path, truth, images(3, 2, 1), failed=(3,), which="annotated")
    assert sorted(image_ids(got.blocks)) == [1, 2]
    assert (got.report.missing, got.report.failed) == (Examples(1, ("4",)), Examples(1, ("3",)))


def test_results_do_not_say_which_images_were_annotated(tmp_path: Path) -> None:
    truth = write_json(tmp_path / "gt.json", {"categories": CATEGORIES, "images": images(1), "annotations": []})
    found = deal_results(
        Uri(write_json(tmp_path / "r.json", results(1))), ChunkStore(Uri(str(tmp_path / "r"))), masks=False
    )
    with pytest.raises(InputError, match=r"r.json is a results file, which does not say.*; evaluate all images"):
        read_all(truth, found, str(tmp_path / "scratch"), masks=False, images="annotated")


@pytest.mark.parametrize(
    ("truth", "files", "problem"),
    [
        ({"images": images(1, 2, 1), "annotations": []}, [images(1, 2)], "1 images of the ground truth .*: 1; give"),
        ({"images": images(1), "annotations": objects(1) * 2}, [images(1)], "1 annotations of .* another one .*: 1;"),
        ({"images": images(1), "annotations": objects(7)}, [images(1)], r"1 annotations belong .*: 1 \(of image 7\);"),
        ({"images": images(1, 2), "annotations": []}, [images(1, 2), images(2)], "1 images have more than one row.*2;"),
        ({"images": images("a"), "annotations": []}, [images("b")], "no image is in both: .* have 'b', .* truth 'a'"),
        (
            {"images": images(1, 2), "annotations": []},
            [[*images(1), {"id": 2, "height": 30, "width": 20}]],
            r"1 images have another size .*: 2 \(30 x 20, not 20 x 30\); where the sides are swapped",
        ),
    ],
)
def test_problems(truth: dict[str, Any], files: list[list[dict[str, Any]]], problem: str, tmp_path: Path) -> None:
    (text,) = paired(tmp_path, truth, *files).report.problems()
    assert re.search(problem, text)


def test_a_failed_image_may_have_any_size(tmp_path: Path) -> None:
    truth = {"images": images(1), "annotations": []}
    got = paired(tmp_path, truth, [{"id": 1, "height": 30, "width": 20}], failed=(1,))
    assert got.report.problems() == []


def test_an_image_of_unknown_size_has_no_other_size(tmp_path: Path) -> None:
    got = paired(tmp_path, {"images": [{"id": 1}], "annotations": []}, images(1))
    assert got.report.problems() == []
    assert got.blocks[0][0].image_sizes.tolist() == [[0, 0]]


def test_categories_are_compared_by_id_and_name(tmp_path: Path) -> None:
    truth = {"images": images(1), "annotations": []}
    found = [*results(1), *results(1, category_id=2), *results(1, 1, category_id=77)]
    got = paired(tmp_path, truth, images(1), found=found, names={**NAMES, 2: "wolf", 77: "unicorn"})
    assert got.report.renamed == Examples(1, ("2 is 'wolf' in the predictions and 'dog' in the truth",))
    assert got.report.foreign == {"unicorn": 2}
    assert got.report.detections == 4


@pytest.mark.parametrize(("here", "there"), [(1, "1"), ("1", 1)])
def test_ids_of_different_types(here: int | str, there: int | str, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=f"out are like {there!r}, those of .*gt.json like {here!r}: both must .*manifest"
    ):
        paired(tmp_path, {"images": images(here), "annotations": []}, images(there))


@pytest.mark.parametrize("id_", [1, "a"])
def test_ground_truth_without_images(id_: int | str, tmp_path: Path) -> None:
    got = paired(tmp_path, {"images": [], "annotations": []}, images(id_), found=results(id_))
    assert got.blocks == []
    assert got.report.problems() == []
    assert got.report.decisions("all")[0] == "the ground truth has no images: every figure is -1"

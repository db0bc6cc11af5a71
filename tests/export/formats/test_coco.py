"""COCO files, read back with json and with pycocotools."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from pipeline.annotations.class_thresholds import Selection
from pipeline.export.errors import ExportError
from pipeline.export.formats.base import Options
from pipeline.export.formats.coco import to_json, write_coco, write_coco_results
from pipeline.export.run import Export
from pipeline.export.run import export as run_export
from pipeline.storage.uris import Uri
from pipeline.train.data.coco_source import read_coco
from tests.export.export_cases import (
    CATEGORIES,
    EMPTY,
    MASKS,
    Mask,
    Picture,
    any_mask,
    awkward_pictures,
    labels_of,
    mask_of,
    masks_by_image,
    write_output,
)

FULL = MASKS["full"]
PARTED = Options(polygons=True, images_per_file=1)


def results(uri: str, **options: Any) -> list[dict[str, Any]]:
    file = io.BytesIO()
    write_coco_results(labels_of(uri, keep_empty=True, **options), file)
    return json.loads(file.getvalue())


def dataset(uri: str, **options: Any) -> dict[str, Any]:
    file = io.BytesIO()
    write_coco(labels_of(uri, **options), file)
    return json.loads(file.getvalue())


def masks_in(entries: list[dict[str, Any]]) -> dict[Any, list[Mask]]:
    found: dict[Any, list[Mask]] = {}
    for entry in entries:
        mask = mask_of(entry["segmentation"]["counts"], entry["segmentation"]["size"])
        found.setdefault(entry["image_id"], []).append(mask)
    return found


def assert_same_masks(found: dict[Any, list[Mask]], wanted: dict[Any, list[Mask]]) -> None:
    assert found.keys() == {key for key, masks in wanted.items() if masks}
    for key, masks in found.items():
        for one, other in zip(masks, wanted[key], strict=True):
            np.testing.assert_array_equal(one, other)


class TestResults:
    def test_masks_come_back(self, tmp_path: Path) -> None:
        pictures = awkward_pictures()
        uri = write_output(tmp_path / "out", pictures[:5], pictures[5:])
        assert_same_masks(masks_in(results(uri)), masks_by_image(pictures))

    def test_numbers_are_exact(self, tmp_path: Path) -> None:
        picture = Picture(11, [FULL, EMPTY], scores=[1 / 3, 0.1])
        first, second = results(write_output(tmp_path / "out", [picture]))
        wanted = picture.detections()
        assert wanted is not None
        assert [first["score"], second["score"]] == [float(np.float32(1 / 3)), float(np.float32(0.1))]
        assert first["bbox"] == wanted.boxes.astype(np.float32)[0].tolist()
        assert (first["image_id"], first["category_id"], second["category_id"]) == (11, 7, 3)
        assert set(first) == {"image_id", "category_id", "bbox", "score", "segmentation"}

    def test_pycocotools_loads_them(self, tmp_path: Path) -> None:
        pictures = awkward_pictures()
        uri = write_output(tmp_path / "out", pictures)
        file = tmp_path / "results.json"
        with file.open("wb") as out:
            write_coco_results(labels_of(uri, keep_empty=True), out)
        truth = COCO()
        truth.dataset = {"images": [{"id": p.id} for p in pictures], "categories": [{"id": c.id} for c in CATEGORIES]}
        with contextlib.redirect_stdout(io.StringIO()):
            truth.createIndex()
            loaded = truth.loadRes(str(file))
        assert len(loaded.anns) == sum(len(p.masks or ()) for p in pictures)

    def test_string_ids_are_numbered(self, tmp_path: Path) -> None:
        uri = write_output(tmp_path / "out", [Picture("failed", None), Picture("b/ä\n.png", [FULL])])
        (result,) = results(uri)
        assert (result["image_id"], result["maskfleet_image_id"]) == (1, "b/ä\n.png")

    def test_nothing_found(self, tmp_path: Path) -> None:
        assert results(write_output(tmp_path / "out", [Picture(1, []), Picture(2, None)])) == []

    @settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.tuples(any_mask), max_size=4))
    def test_any_masks(self, tmp_path_factory: pytest.TempPathFactory, masks: list[tuple[Mask]]) -> None:
        pictures = [Picture(0, []), *(Picture(i, list(one)) for i, one in enumerate(masks, 1))]
        uri = write_output(tmp_path_factory.mktemp("any") / "out", pictures)
        assert_same_masks(masks_in(results(uri)), masks_by_image(pictures))


class TestDataset:
    def test_masks_come_back(self, tmp_path: Path) -> None:
        pictures = awkward_pictures()
        found = dataset(write_output(tmp_path / "out", pictures[:5], pictures[5:]))
        assert_same_masks(masks_in(found["annotations"]), masks_by_image(pictures))

    def test_fields(self, tmp_path: Path) -> None:
        found = dataset(write_output(tmp_path / "out", [Picture(5, [EMPTY, FULL, FULL]), Picture(6, None)]))
        assert found["categories"] == [{"id": c.id, "name": c.name} for c in CATEGORIES]
        (image,) = found["images"]
        assert image == {"id": 5, "file_name": "5.jpg", "height": 5, "width": 4, "image_uri": "s3://pictures/5.jpg"}
        assert [(a["id"], a["image_id"], a["iscrowd"], a["area"]) for a in found["annotations"]] == [
            (1, 5, 0, 20),
            (2, 5, 0, 20),
        ]
        assert found["annotations"][0]["score"] == float(np.float32(0.45))

    def test_images_without_labels_are_negatives(self, tmp_path: Path) -> None:
        uri = write_output(tmp_path / "out", [Picture(1, []), Picture(2, [FULL], scores=[0.1]), Picture(3, None)])
        found = dataset(uri, selection=Selection(0.5))
        assert [image["id"] for image in found["images"]] == [1, 2]
        assert found["annotations"] == []

    def test_string_ids_are_numbered(self, tmp_path: Path) -> None:
        uri = write_output(tmp_path / "out", [Picture("x", [FULL]), Picture("y", None), Picture("z", [FULL])])
        found = dataset(uri)
        assert {image["id"]: image["maskfleet_image_id"] for image in found["images"]} == {1: "x", 2: "z"}
        assert [annotation["image_id"] for annotation in found["annotations"]] == [1, 2]

    def test_where_they_come_from(self, tmp_path: Path) -> None:
        uri = write_output(tmp_path / "out", [Picture(1, [FULL])], [Picture(2, [])])
        info = dataset(uri, selection=Selection(0.25, {"cat": 0.5}))["info"]
        assert info["model"] == "tiny (a.safetensors)"
        assert info["weights_sha256"] == "a" * 64
        assert info["run_ids"] == ["20260101T000000-run", "20260101T000001-run"]
        assert (info["min_score"], info["class_thresholds"]) == (0.25, {"cat": 0.5})

    @pytest.mark.parametrize(
        ("uri", "fields"),
        [
            (None, {"file_name": "1"}),
            ("https://h/a/1.png", {"file_name": "https://h/a/1.png", "coco_url": "https://h/a/1.png"}),
        ],
    )
    def test_uris(self, tmp_path: Path, uri: str | None, fields: dict[str, str]) -> None:
        (image,) = dataset(write_output(tmp_path / "out", [Picture(1, [], uri=uri)]))["images"]
        assert image.items() >= fields.items()
        assert image.get("image_uri") == uri

    def test_odd_keys_are_found_again(self, tmp_path: Path) -> None:
        """By whoever joins the file name with the root, training here: one name an object."""
        keys = ["a/b.jpg", "a//b.jpg", "./x.jpg", "../x.jpg", "x?y#z.jpg", "c%20d.jpg", "ü b.jpg", "s3://inner/k.jpg"]
        uris = [f"s3://pictures/{key}" for key in keys]
        found = write_output(tmp_path / "out", [Picture(n, [FULL], uri=uri) for n, uri in enumerate(uris)])
        with (tmp_path / "labels.json").open("wb") as file:
            write_coco(labels_of(found), file)
        images, _, _ = read_coco(Uri(str(tmp_path / "labels.json")), Uri("s3://pictures"))
        assert [image.uri.secret_text for image in images] == uris

    def test_pycocotools_indexes_it(self, tmp_path: Path) -> None:
        pictures = awkward_pictures()
        file = tmp_path / "labels.json"
        with file.open("wb") as out:
            write_coco(labels_of(write_output(tmp_path / "out", pictures)), out)
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(str(file))
        for picture in pictures:
            for annotation, mask in zip(coco.imgToAnns[picture.id], picture.masks or (), strict=True):
                np.testing.assert_array_equal(coco.annToMask(annotation), mask)


@pytest.mark.parametrize("strings", [False, True])
@pytest.mark.parametrize("min_score", [0.0, 0.5])
def test_both_files_go_together(tmp_path: Path, strings: bool, min_score: float) -> None:
    """In pycocotools, with images that failed, that have no detections, and none above the threshold."""
    pictures = [replace(p, id=f"im/{p.id}.jpg" if strings else p.id + 40) for p in awkward_pictures()]
    pictures.append(Picture("low" if strings else 9, [FULL], scores=[0.1]))
    uri = write_output(tmp_path / "out", pictures[:4], pictures[4:9], pictures[9:])
    labels = labels_of(uri, Selection(min_score)), labels_of(uri, keep_empty=True)
    files = tmp_path / "coco.json", tmp_path / "results.json"
    for file, source, write in zip(files, labels, (write_coco, write_coco_results), strict=True):
        with file.open("wb") as out:
            write(source, out)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(files[0]))
        found = coco.loadRes(str(files[1]))
    assert coco.dataset["info"]["image_ids"].startswith("numbered from 1" if strings else "those of")
    ids = {image.get("maskfleet_image_id", image["id"]): image["id"] for image in coco.dataset["images"]}
    assert ids.keys() == {picture.id for picture in pictures if picture.masks is not None}
    for picture in pictures:
        masks = [found.annToMask(a) for a in found.imgToAnns[ids[picture.id]]] if picture.masks is not None else []
        assert len(masks) == len(picture.masks or [])
        for one, other in zip(masks, picture.masks or [], strict=True):
            np.testing.assert_array_equal(one, other)


def test_json_is_strict() -> None:
    with pytest.raises(ValueError, match="JSON"):
        to_json([float("nan")])


def written(uri: Uri, out: Path, format: str, options: Options) -> tuple[list[Path], str]:
    """Whole files of an export, and what it said."""
    text = run_export(Export(uri, format, Uri(str(out)), Selection(0.01), options=options)).text()
    return sorted(out.glob("*-of-*.json")), text


class TestParts:
    @pytest.mark.parametrize("strings", [False, True])
    @pytest.mark.parametrize("per_file", [1, 3, 5, 100])
    def test_together_they_are_the_whole(self, tmp_path: Path, per_file: int, strings: bool) -> None:
        pictures = [replace(p, id=f"im/{p.id}.jpg" if strings else p.id) for p in awkward_pictures()]
        uri = write_output(tmp_path / "out", pictures[:4], pictures[4:9], pictures[9:])
        options = Options(images_per_file=per_file)
        whole, whole_results = dataset(uri, selection=Selection(0.01)), results(uri, selection=Selection(0.01))
        parts, _ = written(uri, tmp_path / "coco", "coco", options)
        num_files = -(-len(whole["images"]) // per_file)
        assert [part.name for part in parts] == [f"instances-{n:05d}-of-{num_files:05d}.json" for n in range(num_files)]
        loaded = [json.loads(part.read_text("utf-8")) for part in parts]
        for key in ("info", "categories"):
            assert all(part[key] == whole[key] for part in loaded)
        for key in ("images", "annotations"):
            assert [entry for part in loaded for entry in part[key]] == whole[key], "unique ids too, as in the whole"
        assert all(len(part["images"]) <= per_file for part in loaded)
        result_parts, _ = written(uri, tmp_path / "results", "coco-results", options)
        assert [entry for part in result_parts for entry in json.loads(part.read_text("utf-8"))] == whole_results
        for part, result_part in zip(parts, result_parts, strict=True):
            with contextlib.redirect_stdout(io.StringIO()):
                coco = COCO(str(part))
                found = coco.loadRes(str(result_part)) if json.loads(result_part.read_text("utf-8")) else None
            assert len(found.anns if found else {}) == len(coco.anns)

    def test_the_books_count_what_comes_last(self, tmp_path: Path) -> None:
        """Rows behind the last annotated one, which no part needs."""
        pictures = [Picture(1, [FULL]), Picture(2, [FULL])]
        uri = write_output(tmp_path / "out", pictures, [Picture(number, None) for number in range(3, 600)])
        parts, text = written(uri, tmp_path / "coco", "coco", Options(images_per_file=1))
        assert len(parts) == 2
        assert text.startswith("2 images, 2 labels; left out: 597 failed images")
        assert json.loads((tmp_path / "coco" / "export.json").read_text())["options"] == {"images_per_file": 1}

    def test_no_images(self, tmp_path: Path) -> None:
        uri = write_output(tmp_path / "out", [Picture(2, None)])
        (part,), _ = written(uri, tmp_path / "coco", "coco", Options(images_per_file=7))
        assert (part.name, json.loads(part.read_text())["images"]) == ("instances-00000-of-00001.json", [])

    def test_whole_or_not_at_all(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        uri = write_output(tmp_path / "out", [Picture(1, [FULL]), Picture(2, [FULL])])
        monkeypatch.setattr("pipeline.export.formats.coco._results", lambda number, *_: [{}] if number == 1 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            written(uri, tmp_path / "coco", "coco", Options(images_per_file=1))
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_no_number(self) -> None:
        with pytest.raises(ExportError, match="--images-per-file must be at least 1, not 0"):
            Options(images_per_file=0)


class TestPolygons:
    def test_pycocotools_makes_the_same_masks_of_them(self, tmp_path: Path) -> None:
        pictures = awkward_pictures()
        uri = write_output(tmp_path / "out", pictures[:5], pictures[5:])
        file = tmp_path / "labels.json"
        with file.open("wb") as out:
            remarks = write_coco(labels_of(uri), out, Options(polygons=True))
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(str(file))
        for picture in pictures:
            for annotation, mask in zip(coco.imgToAnns[picture.id], picture.masks or (), strict=True):
                assert all(len(polygon) >= 8 for polygon in annotation["segmentation"])
                np.testing.assert_array_equal(coco.annToMask(annotation), mask)
                assert annotation["area"] == mask.sum()
        assert remarks[0].startswith("LOSSY")
        assert remarks[1] == f"IoU of polygons and masks, first {len(coco.anns)}: mean 1.000000, least 1.000000"
        assert coco.dataset["info"]["masks"] == remarks[0]

    def test_a_hole_by_hand(self, tmp_path: Path) -> None:
        """Two parts, one of them with a hole of a pixel."""
        mask = np.ones((3, 5), bool)
        mask[1, 1] = mask[:, 3] = False
        found = written(write_output(tmp_path / "out", [Picture(1, [mask])]), tmp_path / "p", "coco", PARTED)[0]
        (annotation,) = json.loads(found[0].read_text())["annotations"]
        ring, strip = sorted(annotation["segmentation"], key=len, reverse=True)
        assert sorted(zip(strip[::2], strip[1::2], strict=True)) == [(4, 0), (4, 3), (5, 0), (5, 3)]
        corners = {*zip(ring[::2], ring[1::2], strict=True)}
        assert corners == {(0, 0), (3, 0), (3, 3), (0, 3), (1, 1), (2, 1), (2, 2), (1, 2)}

"""Exports in the tools that they are for, as docs/evaluation.md shows it: its snippets are run here.

Tools that are not installed are skipped: ``pip install fiftyone ultralytics`` beside the test extra tries them too.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pipeline.annotations.class_thresholds import Selection
from pipeline.export.formats.base import Options
from pipeline.export.run import Export, export
from pipeline.storage.uris import Uri
from tests.export.export_cases import CATEGORIES, blobs, output_with_files

DOCS = Path(__file__).parents[2] / "docs" / "evaluation.md"
NUM_IMAGES = 6  # of 40 x 64 pixels, each but the first with both of `MASKS`
MASKS = blobs(40, 64)
NAMES = [category.name for category in CATEGORIES]


@pytest.fixture
def exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: what the snippets read, by the names that they call it."""
    monkeypatch.chdir(tmp_path)
    annotations = output_with_files(tmp_path, NUM_IMAGES)
    wanted = {
        "labels.json": ("coco", Options()),
        "polygons.json": ("coco", Options(polygons=True)),
        "yolo": ("yolo-seg", Options(images="link", val_fraction=0.4)),
    }
    for name, (format, options) in wanted.items():
        export(Export(annotations, format, Uri(str(tmp_path / name)), Selection(0.01), options=options))
    return tmp_path


def snippet(tool: str) -> str:
    """The documented code that imports a tool."""
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL) if tool in code]
    return code


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def test_supervision(exports: Path) -> None:
    pytest.importorskip("supervision")
    found: dict[str, Any] = {}
    exec(snippet("supervision"), found)
    for name, bound in (("coco", 1.0), ("train", 0.8), ("val", 0.8)):  # it draws outlines and bridges too
        dataset = found[name]
        for path, picture, detections in dataset:
            assert picture.shape == (40, 64, 3), path
            masks = [] if path.endswith("0.jpg") else MASKS
            assert len(detections) == len(masks)
            for mask, read in zip(masks, detections.mask if masks else [], strict=True):
                assert iou(read, mask) >= bound
            assert [dataset.classes[label] for label in detections.class_id] == NAMES[: len(masks)]
    assert len(found["coco"]) == len(found["train"]) + len(found["val"]) == NUM_IMAGES
    assert min(len(found["train"]), len(found["val"])) > 0


@pytest.mark.parametrize("labels", ["labels.json", "polygons.json"])
def test_fiftyone(exports: Path, labels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its importers, which need no database; the data sets that it makes with them do."""
    fiftyone = pytest.importorskip("fiftyone")
    import fiftyone.utils.data as fiftyone_data

    def read(dataset_type: type, **options: Any) -> list[tuple[str, Any]]:
        importer, _ = fiftyone_data.build_dataset_importer(dataset_type, **options)
        with importer:
            return [(os.path.basename(path), label) for path, _, label in importer]

    monkeypatch.setattr(fiftyone.Dataset, "from_dir", read)
    found: dict[str, Any] = {}
    exec(snippet("fiftyone").replace("labels.json", labels), found)
    assert sorted(name for name, _ in found["coco"]) == [f"{n}.jpg" for n in range(NUM_IMAGES)]
    for name, label in found["coco"]:
        detections = label.detections if label else []
        assert [detection.label for detection in detections] == ([] if name == "0.jpg" else NAMES[:2])
        for detection, mask in zip(detections, MASKS, strict=False):
            rows, columns = np.nonzero(mask)
            box = np.array(detection.bounding_box) * (64, 40, 64, 40)
            assert np.allclose(box, (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1), atol=1)
            assert detection.mask.sum() == pytest.approx(mask.sum(), rel=0.02)
    assert sum(len(label.polylines) for _, label in found["train"] if label) > 0


def test_ultralytics(exports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image of both parts is read with its labels, none is taken for corrupt."""
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(exports / "settings"))
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    pytest.importorskip("ultralytics")
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset

    before = {path: path.read_bytes() for path in (exports / "pictures").iterdir()}
    data = check_det_dataset(str(exports / "yolo" / "data.yaml"), autodownload=False)
    sizes = []
    for part in ("train", "val"):
        dataset = YOLODataset(img_path=data[part], data=data, task="segment", imgsz=64, augment=False)
        sizes.append(len(dataset))
        for label in dataset.labels:
            masks = [] if label["im_file"].endswith("0.jpg") else MASKS
            assert label["cls"].reshape(-1).tolist() == list(range(len(masks)))
            for mask, segment in zip(masks, label["segments"], strict=True):
                (rle,) = coco_mask.frPyObjects([(segment * (64, 40)).reshape(-1).tolist()], 40, 64)
                assert iou(coco_mask.decode(rle).astype(bool), mask) > 0.999
    assert sum(sizes) == NUM_IMAGES
    assert min(sizes) > 0
    assert {path: path.read_bytes() for path in before} == before

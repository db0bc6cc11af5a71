"""Annotate with a relative manifest and image root, then export: images are named relative to that root."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from pipeline.annotate.config import AnnotateConfig
from pipeline.annotate.run import annotate
from pipeline.annotations.class_thresholds import Selection
from pipeline.export.run import Export, export
from pipeline.model.cascade_mask_rcnn.layouts import to_native
from pipeline.model.files.checkpoints import Checkpoint, save_checkpoint
from pipeline.storage.uris import Uri
from testing.small_model import SMALL, SMALL_CATEGORIES, SMALL_SETTINGS, picture
from tests.model.golden_weights import official_weights

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

NAMES = ["a.png", "deep/b c.png"]
# Each is read in the folder that holds the folder "scenes".
MANIFESTS = {
    "folder": {"uri": "./elsewhere/../scenes/"},
    "csv": {"uri": "list.csv", "image_root": "scenes"},
}


@dataclass(frozen=True)
class Annotated:
    """What annotate made.

    Attributes:
        home: its current directory.
        out: its output, absolute.
    """

    home: Path
    out: str


@pytest.fixture(scope="module", params=MANIFESTS)
def annotated(ray_cluster: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Annotated:
    home = tmp_path_factory.mktemp("home")
    (home / "elsewhere").mkdir()
    for number, name in enumerate(NAMES):
        (home / "scenes" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(48, 64, number)).save(home / "scenes" / name)
    (home / "list.csv").write_text("\n".join(["image_uri", *NAMES]))
    settings = replace(SMALL_SETTINGS, short_side=64, long_side=96, max_detections=3)
    weights = to_native(official_weights(SMALL), "official")
    save_checkpoint(
        Checkpoint(weights, SMALL, SMALL_CATEGORIES, settings, {"file": "made up"}), home / "model.safetensors"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        config = AnnotateConfig.model_validate(
            {
                "manifest": MANIFESTS[request.param],
                "model": {"checkpoint": str(home / "model.safetensors"), "batch_size": 1},
                "output": {"uri": str(home / "out")},
            }
        )
        assert annotate(config).state == "finished"
    return Annotated(home, str(home / "out"))


def coco_names(out: Path) -> list[str]:
    return [image["file_name"] for image in json.loads(out.read_text())["images"]]


def coco_results_names(out: Path) -> list[str]:
    """The manifests have no ids, so the URIs as they stand there are the ids, beside the numbers that COCO has."""
    return [result["maskfleet_image_id"] for result in json.loads(out.read_text())]


def cvat_names(out: Path) -> list[str]:
    return [image.attrib["name"] for image in ElementTree.parse(out).iter("image")]


def yolo_names(out: Path) -> list[str]:
    with (out / "images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all((out / row["label"]).exists() for row in rows)
    assert {Path(row["image"]).with_suffix("") for row in rows} == {
        Path(row["label"].replace("labels/", "images/", 1)).with_suffix("") for row in rows
    }
    return [row["image"].removeprefix("images/") for row in rows]


def label_studio_names(out: Path) -> list[str]:
    """It is shown the images at their own places, and has our name for each as its id."""
    tasks = [task for file in (out / "tasks").iterdir() for task in json.loads(file.read_text())]
    for task in tasks:
        assert Path(task["data"]["image"]).is_file()
    return [task["data"]["image_id"] for task in tasks]


@pytest.mark.parametrize("elsewhere", [False, True], ids=["from there", "from elsewhere"])
@pytest.mark.parametrize(
    ("format", "names_in"),
    [
        ("coco", coco_names),
        ("coco-results", coco_results_names),
        ("cvat", cvat_names),
        ("yolo-seg", yolo_names),
        ("label-studio", label_studio_names),
    ],
)
def test_names_are_relative_to_the_root(
    annotated: Annotated,
    format: str,
    names_in: Callable[[Path], list[str]],
    elsewhere: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(annotated.home / "elsewhere" if elsewhere else annotated.home)
    export(Export(Uri(annotated.out), format, Uri(str(tmp_path / "out")), Selection()))
    assert set(names_in(tmp_path / "out")) == set(NAMES)

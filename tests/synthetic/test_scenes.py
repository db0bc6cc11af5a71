from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from pipeline.annotations.pictures import PictureSource
from pipeline.evaluate.inputs.ground_truth import deal_truth
from pipeline.evaluate.shuffle.chunks import ChunkStore
from pipeline.storage.uris import Uri
from pipeline.synthetic.scenes import CATEGORIES, MOST_OBJECTS, VISIBLE_PIXELS, Scene, render_scene, write_scenes
from pipeline.train.data.coco_source import read_coco
from pipeline.train.data.labelled import load_sample
from pipeline.train.sample.sample import Sample

NUM_SCENES = 150


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [render_scene((11, number)) for number in range(NUM_SCENES)]


def test_the_same_seed_gives_the_same_scene_whatever_came_before(scenes: list[Scene]) -> None:
    for number in (0, 9):
        again = render_scene((11, number))
        for name in ("pixels", "masks", "labels"):
            np.testing.assert_array_equal(getattr(again, name), getattr(scenes[number], name))
    assert len({scene.pixels.tobytes() for scene in scenes}) == NUM_SCENES


@pytest.mark.parametrize("size", [(160, 160), (64, 96), (240, 320)])
def test_scenes_have_the_shapes_they_say(size: tuple[int, int]) -> None:
    scene = render_scene(3, size)
    assert (scene.pixels.shape, scene.pixels.dtype) == ((*size, 3), np.uint8)
    assert (scene.masks.shape, scene.masks.dtype) == ((len(scene.labels), *size), np.bool_)
    assert scene.labels.dtype == np.int64


def test_too_small_a_scene_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 64 pixels a side, not 63 x 100"):
        render_scene(0, (63, 100))


def test_no_two_masks_overlap_and_enough_of_each_is_visible(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.masks.sum(axis=0).max() <= 1
        assert scene.masks.sum(axis=(1, 2)).min() >= VISIBLE_PIXELS
        assert 1 <= len(scene.labels) <= MOST_OBJECTS


def test_objects_hide_each_other_now_and_then(scenes: list[Scene]) -> None:
    """The box of a hidden part's object is filled by the one in front: masks touch where one ends under the other."""
    touching = 0
    for scene in scenes:
        index = (scene.masks * np.arange(1, len(scene.labels) + 1)[:, None, None]).sum(axis=0)
        left, right = index[:, :-1], index[:, 1:]
        touching += bool(((left != right) & (left > 0) & (right > 0)).any())
    assert touching > NUM_SCENES // 5


def test_no_class_is_rare(scenes: list[Scene]) -> None:
    counts = np.bincount(np.concatenate([scene.labels for scene in scenes]), minlength=len(CATEGORIES))
    assert counts.min() > 0.7 * counts.mean()


def test_colour_does_not_tell_the_class(scenes: list[Scene]) -> None:
    colours: dict[int, list[np.ndarray]] = {}
    for scene in scenes:
        for mask, label in zip(scene.masks, scene.labels.tolist(), strict=True):
            colours.setdefault(label, []).append(scene.pixels[mask].mean(axis=0))
    means = np.array([np.mean(of_class, axis=0) for of_class in colours.values()])
    spread = np.mean([np.std(of_class, axis=0) for of_class in colours.values()])
    assert np.ptp(means, axis=0).max() < spread


def test_rendering_is_fast() -> None:
    """60 scenes a second are wanted; a third of it leaves room for a busy machine."""
    started = time.process_time()
    for number in range(30):
        render_scene((1, number))
    assert 30 / (time.process_time() - started) > 20


def test_written_scenes_are_coco_for_every_reader(tmp_path: Path) -> None:
    path = write_scenes(tmp_path / "set", 12, seed=4, size=(96, 128))
    coco = COCO(str(path))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == [
        "ball",
        "brick",
        "star",
        "leaf",
        "ring",
    ]
    truth = deal_truth(Uri(str(path)), ChunkStore(Uri(str(tmp_path / "scratch"))), masks=True)
    assert (truth.num_images, truth.num_objects) == (12, len(coco.anns))
    images, classes, report = read_coco(Uri(str(path)), Uri(str(tmp_path / "set")))
    assert (classes, report.usable, report.objects) == (CATEGORIES, 12, len(coco.anns))
    for number, image in enumerate(images):
        sample = load_sample(image, PictureSource())
        assert isinstance(sample, Sample)
        scene = render_scene((4, number), (96, 128))
        np.testing.assert_array_equal(sample.masks, scene.masks)
        np.testing.assert_array_equal(sample.labels, scene.labels)
        assert np.abs(sample.pixels.astype(int) - scene.pixels).mean() < 10  # the noise, by JPEG
        for annotation, mask in zip(coco.imgToAnns[number + 1], scene.masks, strict=True):
            np.testing.assert_array_equal(coco.annToMask(annotation), mask)
            assert annotation["area"] == mask.sum()
            assert annotation["bbox"] == coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask))).tolist()


def test_writing_again_changes_no_byte(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_scenes(tmp_path / folder, 3, seed=1, size=(64, 64))
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 4
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    other = write_scenes(tmp_path / "c", 3, seed=2, size=(64, 64)).parent / "images" / "000000.jpg"
    assert Image.open(other).tobytes() != Image.open(tmp_path / "a" / "images" / "000000.jpg").tobytes()

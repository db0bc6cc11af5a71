"""Pictures as people have them in, detections as people use them out, as the predict job and pycocotools have them."""

from __future__ import annotations

import doctest
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from jobs import predict as predict_job
from pipeline.errors import UserError
from pipeline.images.decode import ImageError, decode_image
from pipeline.masks.rle import Rle
from pipeline.model.cascade_mask_rcnn.layouts import to_native
from pipeline.model.categories import Category
from pipeline.model.files.checkpoints import Checkpoint, save_checkpoint
from pipeline.model.files.resolve import UnknownModelError
from pipeline.model.predictor import Predictor
from pipeline.predict import model as module
from pipeline.predict.model import Detection, Detections, Model, load_model
from testing.small_model import SMALL, SMALL_SETTINGS, picture
from tests.model.golden_weights import official_weights

ROOT = Path(__file__).parents[2]

# Ids out of order and with gaps, as COCO's are: neither labels nor labels + 1.
CATEGORIES = tuple(map(Category, (7, 3, 12, 1, 90), ("person", "dog", "kite", "cat", "car")))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model; a photo whose EXIF turns it by 90 degrees, and others."""
    folder = tmp_path_factory.mktemp("python")
    weights = to_native(official_weights(SMALL), "official")  # whose masks are neither empty nor full
    save_checkpoint(Checkpoint(weights, SMALL, CATEGORIES, SMALL_SETTINGS), folder / "model.safetensors")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(640, 480)).save(folder / "photo.jpg", exif=exif)
    Image.fromarray(picture(50, 70, seed=1)).save(folder / "other.png")
    (folder / "text.jpg").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load_model(str(folder / "model.safetensors"), "cpu")


@pytest.fixture(scope="module")
def found(model: Model, folder: Path) -> Detections:
    return model.predict(folder / "photo.jpg")


def same(one: Detections, other: Detections) -> bool:
    """Up to the last digits: kernels may sum in another order for another number of images."""
    np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-2)
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
    return one.image_size == other.image_size and one.names.tolist() == other.names.tolist()


# --------------------------------------------------------------------------------------------------------- what goes in
def test_every_way_to_give_a_picture(model: Model, folder: Path) -> None:
    path = folder / "photo.jpg"
    pixels = decode_image(path.read_bytes()).pixels
    assert pixels.shape == (480, 640, 3)
    expected = model.predictor.predict([pixels])[0]
    for given in (path, str(path), Image.open(path), pixels):
        found = model.predict(given)
        np.testing.assert_array_equal(found.boxes, expected.boxes)
        np.testing.assert_array_equal(found.scores, expected.scores)
        np.testing.assert_array_equal(found.labels, expected.labels)
        assert [rle["counts"].encode() for rle in found.rle()] == [rle["counts"] for rle in expected.rle()]
        assert found.image_size == (480, 640)


def test_one_gives_one_and_several_a_list(model: Model, folder: Path) -> None:
    files = [folder / "photo.jpg", folder / "other.png"]
    alone = [model.predict(file) for file in files]
    for given in (files, tuple(files), iter(files), map(Image.open, files)):
        together = model.predict(given)
        assert isinstance(together, list)
        assert all(same(*pair) for pair in zip(together, alone, strict=True))
    [single] = model.predict(files[:1])
    assert same(single, alone[0])
    assert model.predict([]) == []


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_arrays_of_any_channels_are_what_pillow_makes_of_their_pictures(model: Model, mode: str) -> None:
    image = Image.fromarray(picture(40, 60)).convert(mode)
    expected = model.predictor.predict([np.asarray(image.convert("RGB"))])[0]
    for given in (image, np.asarray(image)):
        np.testing.assert_array_equal(model.predict(given).boxes, expected.boxes)


def test_pictures_are_read_as_they_are_needed(model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken, calls = 0, []
    original = Predictor.predict

    def spy(self: Predictor, images: list[np.ndarray], *args: Any, **options: Any) -> Any:
        calls.append((len(images), taken))
        return original(self, images, *args, **options)

    def files() -> Iterator[Path]:
        nonlocal taken
        for _ in range(5):
            taken += 1
            yield folder / "other.png"

    monkeypatch.setattr(Predictor, "predict", spy)
    assert len(model.predict(files(), batch_size=2)) == 5
    assert calls == [(2, 2), (2, 4), (1, 5)]


GREY = np.zeros((4, 4), np.uint8)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        pytest.param(np.zeros((4, 4, 3)), TypeError, "the image is an array of float64: expected uint8", id="floats"),
        pytest.param(np.zeros((4, 4), bool), TypeError, "array of bool", id="a mask"),
        pytest.param(np.zeros((3, 40, 40), np.uint8), ValueError, r"transpose\(1, 2, 0\)", id="channels first"),
        pytest.param(np.zeros((2, 4, 4, 3), np.uint8), ValueError, "give several pictures as a list", id="a batch"),
        pytest.param(np.zeros((0, 4, 3), np.uint8), ValueError, r"shape \(0, 4, 3\)", id="no pixels"),
        pytest.param(b"\xff\xd8\xff", TypeError, r"type bytes: .*PIL.Image.open\(io.BytesIO", id="encoded bytes"),
        pytest.param(None, TypeError, "the image is of type NoneType: expected a path", id="nothing"),
        pytest.param(Image.new("F", (4, 4)), ImageError, "the image: a picture with pixels of type F", id="PIL floats"),
        pytest.param([GREY, [1, 2]], TypeError, "image 1 is of type list", id="which of a list"),
        pytest.param([GREY, GREY, GREY[:, :0]], ValueError, "image 2 is an array of shape", id="which of later ones"),
        pytest.param(["https://host/a.jpg"], UserError, "https://host/a.jpg: URIs are not followed", id="https"),
        pytest.param("s3://me:secret@bucket/a", UserError, r"^(?!.*secret).*URIs are not followed", id="password"),
        pytest.param("gone.jpg", FileNotFoundError, "gone.jpg", id="no such file"),
        pytest.param("/", IsADirectoryError, "'/'", id="a folder"),
    ],
)
def test_what_is_no_picture(model: Model, given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        model.predict(given, batch_size=2)


def test_a_file_that_is_no_picture_is_named(model: Model, folder: Path) -> None:
    with pytest.raises(ImageError, match=r"text\.jpg: no known image format") as refused:
        model.predict([folder / "other.png", folder / "text.jpg"])
    assert refused.value.code == "not_an_image"


def test_batch_size(model: Model) -> None:
    with pytest.raises(ValueError, match="batch_size=0"):
        model.predict([GREY], batch_size=0)


# ------------------------------------------------------------------------------------------------------- what comes out
@pytest.fixture(scope="module")
def job(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the predict job makes of the photo."""
    out = tmp_path_factory.mktemp("job")
    options = ["--model", str(folder / "model.safetensors"), "--out", str(out), "--device", "cpu"]
    assert predict_job.main([str(folder / "photo.jpg"), *options, "--draw-threshold", "0"]) == 0
    return out


def test_coco_rows_are_the_job_s(found: Detections, job: Path) -> None:
    written = json.loads((job / "predictions.json").read_bytes())["annotations"]
    rows = json.loads(json.dumps(found.to_coco(image_id=1), allow_nan=False))
    assert len(rows) == len(found) > 0
    assert found.masks.any()
    assert not found.masks.all()
    assert rows == [{key: annotation[key] for key in rows[0]} for annotation in written]


def test_pycocotools_takes_the_rows(found: Detections) -> None:
    truth = COCO()
    truth.dataset = {"images": [{"id": 42, "height": 480, "width": 640}], "annotations": [], "categories": []}
    truth.createIndex()
    loaded = truth.loadRes(found.to_coco(np.int64(42))).loadAnns(range(1, len(found) + 1))
    np.testing.assert_array_equal([truth.annToMask(annotation) for annotation in loaded], found.masks)
    assert [annotation["category_id"] for annotation in loaded] == found.category_ids.tolist()
    with pytest.raises(TypeError):
        found.to_coco("photo.jpg")  # type: ignore[arg-type]


def test_drawn_as_by_the_job(found: Detections, folder: Path, job: Path) -> None:
    expected = np.asarray(Image.open(job / "photo.png"))
    for given in (folder / "photo.jpg", Image.open(folder / "photo.jpg")):
        np.testing.assert_array_equal(found.draw(given), expected)
    plain = found.draw(folder / "photo.jpg", boxes=False, labels=False, scores=False, masks=False)
    np.testing.assert_array_equal(plain, decode_image((folder / "photo.jpg").read_bytes()).pixels)
    with pytest.raises(ValueError, match=r"is 50 x 70 .*found in one of 480 x 640"):
        found.draw(folder / "other.png")


def of_labels(*labels: int) -> Detections:
    """Objects whose masks are the pixels of their boxes, by hand."""
    count = len(labels)
    boxes = np.array([[i, 0, i + 2, 3] for i in range(count)], np.float32).reshape(-1, 4)
    pixels = np.zeros((20, 30, count), np.uint8, order="F")
    for i in range(count):
        pixels[:3, i : i + 2, i] = 1
    rles: list[Rle] = coco_mask.encode(pixels) if count else []
    scores = np.linspace(0.9, 0.5, count).astype(np.float32)
    return Detections(boxes, scores, np.array(labels, np.int64), rles, CATEGORIES, (20, 30))


def test_names_and_ids() -> None:
    found = of_labels(2, 0, 0)
    assert found.names.tolist() == ["kite", "person", "person"]
    assert found.category_ids.tolist() == [12, 7, 7]
    assert found[0] == Detection("kite", 12, float(np.float32(0.9)), (0, 0, 2, 3), found.rle()[0])
    assert found.masks.sum(axis=(1, 2)).tolist() == [6, 6, 6]
    assert json.loads(json.dumps(found[1]))[0] == "person"
    assert repr(found[1]) == "Detection(person 0.70, box 1.0, 0.0, 3.0, 3.0)"


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        pytest.param([], "Detections(0 objects; 30x20)", id="none"),
        pytest.param([1], "Detections(1 object: dog 1; 30x20)", id="one"),
        pytest.param([2, 0, 0, 1, 0, 2], "Detections(6 objects: person 3, kite 2, dog 1; 30x20)", id="most first"),
    ],
)
def test_repr(labels: list[int], shown: str) -> None:
    assert repr(of_labels(*labels)) == shown


def test_repr_of_many_classes_is_short() -> None:
    categories = tuple(Category(i, f"class {i}") for i in range(80))
    labels = np.arange(80)
    arrays = np.zeros((80, 4), np.float32), np.zeros(80, np.float32), labels
    empty = coco_mask.encode(np.zeros((20, 30), np.uint8, order="F"))
    many = Detections(*arrays, [empty] * 80, categories, (20, 30))
    assert repr(many) == ("Detections(80 objects: class 0 1, class 1 1, class 2 1, class 3 1, class 4 1, ...; 30x20)")


def test_repr_of_a_model(model: Model) -> None:
    assert repr(model) == "Model(5 classes: person, dog, kite, cat, car; fp32 on cpu)"


@pytest.mark.parametrize(
    "key",
    [
        slice(1, 3),
        slice(None, None, -1),
        [2, 0],
        [],
        np.array([True, False, True, False]),
        [False, True, False, False],
        np.array([-1]),
    ],
    ids=str,
)
def test_a_choice_is_numpy_s(key: Any) -> None:
    found = of_labels(2, 0, 1, 0)
    chosen = found[key]
    for name in ("boxes", "scores", "labels", "names", "category_ids", "masks"):
        np.testing.assert_array_equal(getattr(chosen, name), getattr(found, name)[key])
    assert list(chosen) == [list(found)[i] for i in np.arange(4)[key]]
    assert len(chosen) == len(np.arange(4)[key])


def test_a_choice_that_is_none() -> None:
    found = of_labels(2, 0)
    assert found[-1].name == "person"
    for key in (2, np.array([True]), (slice(None), None)):
        with pytest.raises(IndexError):
            found[key]  # type: ignore[index]


def test_nothing_found(folder: Path) -> None:
    found = of_labels()
    assert (found.masks.shape, found.names.shape, found.rle(), found.to_coco(1), list(found)) == (
        (0, 20, 30),
        (0,),
        [],
        [],
        [],
    )
    image = picture(20, 30)
    np.testing.assert_array_equal(found.draw(image), image)


@pytest.mark.parametrize("labels", [[2, 0, 0, 1], []], ids=["some", "none"])
def test_supervision_takes_them(labels: list[int]) -> None:
    supervision = pytest.importorskip("supervision")
    found = of_labels(*labels)
    detections = supervision.Detections(
        xyxy=found.boxes,
        mask=found.masks,
        confidence=found.scores,
        class_id=found.labels,
        data={"class_name": found.names},
    )
    assert len(detections) == len(labels)
    chosen = detections[detections["class_name"] == "person"]
    assert chosen.class_id is not None
    assert chosen.class_id.tolist() == [0] * labels.count(0)
    assert detections.area.tolist() == [6] * len(labels)


# ------------------------------------------------------------------------------------------------------------ the model
def test_names_of_models_are_known(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match=r"Did you mean swin_b_coco\?"):
        load_model("swin_b_cocoo")
    with pytest.raises(UserError, match="is a directory"):
        load_model(tmp_path)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_precision_is_refused_before_a_published_model_is_fetched(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.predict.model.resolve_checkpoint", lambda model: pytest.fail("fetched"))
    with pytest.raises(UserError, match="precision"):
        load_model("swin_b_coco", "cpu", precision)


def test_settings(folder: Path) -> None:
    file = folder / "model.safetensors"
    changed = load_model(file, "cpu", "bf16", short_side=32, long_side=48, score_threshold=0.1, max_detections=2)
    settings = changed.predictor.settings
    assert (settings.short_side, settings.long_side, settings.score_threshold) == (32, 48, 0.1)
    assert changed.predictor.precision == "bf16"
    assert len(changed.predict(picture(40, 60))) <= 2
    with pytest.raises(UserError, match="score_threshold must lie in"):
        load_model(file, score_threshold=3)


def test_classes(folder: Path, tmp_path: Path) -> None:
    file = folder / "model.safetensors"
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\ne\n")
    expected = tuple(Category(i + 1, name) for i, name in enumerate("abcde"))
    for classes in (["a", "b", "c", "d", "e"], tmp_path / "names.txt", str(tmp_path / "names.txt")):
        assert load_model(file, "cpu", classes=classes).categories == expected
    for wrong, message in ((["a", "b"], "2 categories for a model of 5"), ([*"abcda"], "one name: a")):
        with pytest.raises(UserError, match=message):
            load_model(file, "cpu", classes=wrong)


# --------------------------------------------------------------------------------------------------------- the examples
def examples() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [test for test in finder.find(module, globs={}) if test.examples]


@pytest.mark.parametrize("example", examples(), ids=lambda test: test.name.rpartition(".")[2])
def test_examples_run(
    example: doctest.DocTest,
    folder: Path,
    model: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("model.safetensors", "photo.jpg"):
        (tmp_path / name).symlink_to(folder / name)
    monkeypatch.chdir(tmp_path)
    example.globs = {
        "maskfleet": SimpleNamespace(load_model=load_model),
        "model": model,
        "found": model.predict("photo.jpg"),
        "Image": Image,
        "json": json,
    }
    output = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    assert runner.run(example, out=output.write).failed == 0, output.getvalue()


def test_what_the_documentation_shows_runs(
    folder: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("supervision")
    for name in ("photo.jpg", "other.jpg"):
        (tmp_path / name).symlink_to(folder / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "maskfleet", SimpleNamespace(load_model=lambda name: model))
    section = (ROOT / "docs/model.md").read_text(encoding="utf-8").partition("## In Python")[2].partition("\n## ")[0]
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
        exec(block, names)
    assert capsys.readouterr().out == f"{model.predict('photo.jpg')}\n"
    assert Image.open("drawn.png").size == (640, 480)
    rows = json.loads(Path("results.json").read_text())
    assert [row["image_id"] for row in rows] == [42] * (len(rows) // 2) + [43] * (len(rows) // 2)
    assert names["detections"].mask.sum() == names["found"].masks.sum() > 0


def test_what_people_call_has_an_example() -> None:
    with_example = {test.name.rpartition("model.")[2] for test in examples()}
    assert {"load_model", "Model.predict", "Detections", "Detections.rle", "Detections.to_coco", "Detections.draw"} <= (
        with_example
    )

"""What a training warns of, and what it refuses, before anything starts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.model.files.resolve import UnknownModelError
from pipeline.storage.uris import UriText
from pipeline.train.checks import check_pictures, check_places, oddities
from pipeline.train.config import TrainConfig
from pipeline.train.data.labelled import DataError
from pipeline.train.inputs import Inputs, read_inputs
from tests.train.test_run import training_values, write_set


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    """A config that gives no cause for a warning: 8 images, 4 a step, 2 steps an epoch, 2 epochs."""
    return training_values(tmp_path)


def read(values: dict[str, Any]) -> tuple[TrainConfig, Inputs]:
    config = TrainConfig.model_validate(values)
    return config, read_inputs(config.data, config.model.classes)


def warnings(values: dict[str, Any], steps_per_epoch: int = 2) -> list[str]:
    return oddities(*read(values), steps_per_epoch)


def without_objects(path: str, category_id: int) -> None:
    """Take the objects of a category out of a COCO file."""
    content = json.loads(Path(path).read_text())
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != category_id]
    Path(path).write_text(json.dumps(content))


def test_nothing_to_say(values: dict[str, Any]) -> None:
    assert warnings(values) == []
    assert check_pictures(*read(values), read_elsewhere=False) == []


class TestSchedule:
    def test_the_published_ones(self, values: dict[str, Any]) -> None:
        """1x and 3x of Swin, on COCO's 7,330 steps an epoch."""
        for epochs, steps in ((12, [8, 11]), (36, [27, 33])):
            values["schedule"] = {"epochs": epochs, "steps": steps, "warmup_iterations": 500}
            assert warnings(values, 7330) == []

    @pytest.mark.parametrize(("warmup", "is_said"), [(3, False), (4, True), (500, True)])
    def test_warm_up_beyond_the_training(self, values: dict[str, Any], warmup: int, is_said: bool) -> None:
        """The rate of the last of 4 steps, in a warm-up of 500: 0.001 + 0.999 x 3 / 500 of 0.001."""
        values["schedule"] = {"epochs": 2, "steps": [], "warmup_iterations": warmup}
        said = warnings(values)
        assert len(said) == is_said
        if warmup == 500:
            assert "schedule.warmup_iterations is 500, and there are 4 steps" in said[0]
            assert "is 7e-06 instead of 0.001" in said[0]

    @pytest.mark.parametrize(("warmup", "is_said"), [(2, False), (3, True)])
    def test_drop_within_the_warm_up(self, values: dict[str, Any], warmup: int, is_said: bool) -> None:
        values["schedule"] = {"epochs": 2, "steps": [1], "warmup_iterations": warmup}
        assert [line.startswith("the learning rate drops before the warm-up ends") for line in warnings(values)] == (
            [True] if is_said else []
        )

    @pytest.mark.parametrize(
        ("epochs", "late"),
        [(12, None), (11, "11"), (8, "8, 11"), (1, "8, 11")],
        ids=["all", "last", "both", "one epoch"],
    )
    def test_drops_after_the_end(self, values: dict[str, Any], epochs: int, late: str | None) -> None:
        values["schedule"] = {"epochs": epochs, "steps": [8, 11], "warmup_iterations": 0}
        found = [line for line in warnings(values) if line.startswith("schedule.steps")]
        assert len(found) == (late is not None)
        if late:
            assert f"schedule.steps has {late}, and schedule.epochs is {epochs}:" in found[0]


class TestStepSize:
    def test_more_than_there_are(self, values: dict[str, Any]) -> None:
        values["data"]["batch_size"] = 5
        (said,) = warnings(values)
        assert "takes 10 images (data.batch_size 5 x resources.workers 2), of 8 that there are" in said

    @pytest.mark.parametrize(
        ("batch", "workers", "rule"), [(2, 1, "1.25e-05"), (2, 8, None), (4, 2, None), (8, 4, None), (3, 16, "0.0003")]
    )
    def test_published_rate_with_other_steps(
        self, values: dict[str, Any], batch: int, workers: int, rule: str | None
    ) -> None:
        """Goyal et al. 2017 (arXiv 1706.02677): k times the images, k times the rate. Published: 1e-4 for 8 x 2."""
        values["data"]["batch_size"], values["resources"]["workers"] = batch, workers
        del values["optimizer"]["lr"]
        said = [line for line in warnings(values) if line.startswith("optimizer.lr")]
        assert [line.rpartition(" ")[2] for line in said] == ([] if rule is None else [rule])


class TestClasses:
    def test_names_that_no_annotation_uses(self, values: dict[str, Any]) -> None:
        values["model"]["classes"] = ["box", "bar", "ghost", "spirit"]
        (said,) = warnings(values)
        assert said.startswith("no object to learn from, of 2 of 4 classes (ghost, spirit): model.classes")

    def test_only_validated(self, values: dict[str, Any]) -> None:
        without_objects(values["data"]["train"][0]["uri"], 9)
        (said,) = warnings(values)
        assert said.startswith("no object to learn from, of 1 of 2 classes (bar): the validation set has some")

    def test_never_validated(self, values: dict[str, Any]) -> None:
        without_objects(values["data"]["validation"]["uri"], 4)
        (said,) = warnings(values)
        assert said.startswith("no object to validate with, of 1 of 2 classes (box)")

    def test_another_source_has_it(self, values: dict[str, Any]) -> None:
        (first,) = values["data"]["train"]
        second = Path(first["uri"]).with_name("second.json")
        second.write_text(Path(first["uri"]).read_text())
        without_objects(first["uri"], 9)
        values["data"]["train"].append({**first, "uri": str(second)})
        assert warnings(values) == []

    def test_no_object_at_all(self, values: dict[str, Any]) -> None:
        for category_id in (4, 9):
            without_objects(values["data"]["train"][0]["uri"], category_id)
        with pytest.raises(DataError, match="not one object to learn from"):
            warnings(values)

    def test_no_validation(self, values: dict[str, Any]) -> None:
        del values["data"]["validation"]
        (said,) = warnings(values)
        assert "no best.safetensors" in said


def test_learnt_and_validated(values: dict[str, Any], tmp_path: Path) -> None:
    """Whatever the files are called, and whatever the ids in them."""
    uri = write_set(tmp_path, "other.json", range(6, 12))
    values["data"]["validation"]["uri"] = uri
    (said,) = warnings(values)
    pictures = ", ".join(f"{tmp_path}/images/{number}.png" for number in (6, 7))
    assert said.startswith(f"2 of 6 pictures to validate with are learnt from, too ({pictures})")


class TestPictures:
    def test_wrong_root(self, values: dict[str, Any], tmp_path: Path) -> None:
        values["data"]["train"][0]["image_root"] = str(tmp_path / "elsewhere")
        with pytest.raises(DataError, match=r"data\.train\.0: 8 of 8 pictures tried") as caught:
            check_pictures(*read(values), read_elsewhere=False)
        assert str(tmp_path / "elsewhere" / "0.png") in str(caught.value)
        assert f"(image_root is {tmp_path / 'elsewhere'})" in str(caught.value)

    def test_the_tasks_may_see_them(self, values: dict[str, Any], tmp_path: Path) -> None:
        """A cluster whose nodes have a mount that this machine lacks."""
        for one in (values["data"]["train"][0], values["data"]["validation"]):
            one["image_root"] = str(tmp_path / "elsewhere")
        train, validation = check_pictures(*read(values), read_elsewhere=True)
        assert "8 of 8 pictures tried cannot be read" in train
        assert "3 of 3 pictures tried cannot be read" in validation

    def test_some_are_replaced(self, values: dict[str, Any], tmp_path: Path) -> None:
        (tmp_path / "images" / "3.png").unlink()
        (tmp_path / "images" / "5.png").write_bytes(b"no picture")
        (said,) = check_pictures(*read(values), read_elsewhere=False)
        assert said.startswith(f"data.train.0: 2 of 8 pictures tried cannot be read, such as {tmp_path}/images/3.png")

    def test_validation_needs_all(self, values: dict[str, Any], tmp_path: Path) -> None:
        (tmp_path / "images" / "101.png").unlink()
        with pytest.raises(DataError, match=r"data\.validation: 1 of 3 pictures tried .*images/101\.png"):
            check_pictures(*read(values), read_elsewhere=False)

    def test_another_size(self, values: dict[str, Any], tmp_path: Path) -> None:
        path = tmp_path / "images" / "7.png"
        with Image.open(path) as picture:
            turned = picture.resize((picture.width + 1, picture.height))
        turned.save(path)
        with pytest.raises(DataError, match="image 7: the picture is"):
            check_pictures(*read(values), read_elsewhere=False)

    def test_a_few_of_many(self, values: dict[str, Any]) -> None:
        """The last one, too, as whole days or folders may be missing."""
        config, inputs = read(values)
        (table,) = inputs.sources
        many = type(table).of([table[i % 8] for i in range(99)] + [replace(table[0], uri=UriText("/nowhere.png"))])
        (said,) = check_pictures(config, Inputs((many,), None, inputs.categories, inputs.reports), read_elsewhere=False)
        assert "1 of 16 pictures tried of 100 cannot be read" in said


class TestPlaces:
    @pytest.mark.parametrize("key", ["data.train.0.uri", "data.validation.uri", "data.train.0.class_thresholds_file"])
    def test_missing(self, values: dict[str, Any], key: str, tmp_path: Path) -> None:
        missing = str(tmp_path / "gone.json")
        section = values["data"]["validation"] if "validation" in key else values["data"]["train"][0]
        section[key.rpartition(".")[2]] = missing
        with pytest.raises(DataError, match=f"{key}: {missing} does not exist"):
            check_places(TrainConfig.model_validate(values))

    def test_a_file_where_a_folder_must_be_and_the_other_way_round(
        self, values: dict[str, Any], tmp_path: Path
    ) -> None:
        (tmp_path / "folder.json").mkdir()
        (tmp_path / "list.csv").touch()
        for name, problem in (
            ("folder.json", "is a folder, and must be a file"),
            ("list.csv", "is a file, and must be"),
        ):
            values["data"]["train"][0]["uri"] = str(tmp_path / name)
            with pytest.raises(DataError, match=problem):
                check_places(TrainConfig.model_validate(values))

    def test_weights(self, values: dict[str, Any], tmp_path: Path) -> None:
        """Of a training that is gone on with they are not needed."""
        values["model"]["start"] = "nowhere.pth"
        config = TrainConfig.model_validate(values)
        with pytest.raises(UnknownModelError, match="neither a file"):
            check_places(config)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "last.safetensors").touch()
        check_places(config)

    def test_elsewhere_is_found_out_when_it_is_read(self, values: dict[str, Any]) -> None:
        values["data"]["train"][0]["uri"] = "s3://bucket/gone.json"
        values["model"]["start"] = "swin_t_coco"
        check_places(TrainConfig.model_validate(values))

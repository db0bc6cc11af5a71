from __future__ import annotations

import json
import uuid
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from pipeline.annotations.data_file import OutputError
from pipeline.annotations.image_uris import image_path
from pipeline.annotations.run_json import AcceleratorUse, ImageCounts, RunJson, RunState, Seconds, ThisRun
from pipeline.config.images import ImagesConfig
from pipeline.model.categories import Category
from pipeline.storage.uris import Uri

FULL = RunJson(
    run_id="20260101T000000-run1",
    state=RunState.FINISHED,
    config={"manifest": {"uri": "images", "format": "auto", "image_root": None}, "log_interval_s": 30.0},
    identity={"model_name": "tiny", "source": {"file": "a.safetensors"}},
    code={"version": "0.1", "packages": {"ray": "2"}},
    cluster={"nodes": 1, "cpus": 3.0},
    ended=datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
    looked_again="20260103T030405-00000003",
    categories=(Category(7, "Äpfel"), Category(3, "cat")),
    image_root=Uri("/data/images"),
    images=ImageCounts(5, 3, 2),
    failures={"not_found": 2},
    detections_per_category={"cat": 4},
    this_run=ThisRun(
        *(5, 5, 1, 2.5, 2.0, 0.75, 0.875, {"fetch": 0.5}),
        replica_seconds=Seconds(9.0, 6.0, 2.5, 0.5),
        gpu_seconds=Seconds(4.5, 3.0, 1.25, 0.25),
        by_accelerator={"NVIDIA H100": AcceleratorUse(5, 9.0, 4.5, 4000.0), "CPU": AcceleratorUse()},
        cost=0.01,
    ),
)
# What annotate wrote before there was a key image_root; the root stands in the config as it was typed.
OLDER: dict[str, Any] = {
    "run_id": "20250101T000000-run1",
    "state": "finished",
    "config": {"manifest": {"uri": "list.csv", "format": "auto", "image_root": "images"}},
    "identity": {},
    "code": {},
    "cluster": {},
    "categories": [{"id": 3, "name": "cat"}],
    "images": {"manifest": 1, "annotated": 1, "failed": 0},
    "failures": {},
    "detections_per_category": {"cat": 4},
    "this_run": {},
}


@pytest.fixture(params=["local", "s3", "memory"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "out")
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}/out"
    request.getfixturevalue("s3")
    return f"s3://bucket/{uuid.uuid4().hex}/out"


def write_text(folder: Path, content: object) -> str:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "run.json").write_text(text)
    return str(folder)


def older(**manifest: str | None) -> dict[str, Any]:
    return {**OLDER, "config": {"manifest": {"uri": "list.csv", "format": "auto", "image_root": None, **manifest}}}


def test_there_and_back(uri: str) -> None:
    assert RunJson.read(Uri(uri)) is None
    RunJson(state=RunState.RUNNING).write(Uri(uri))
    FULL.write(Uri(uri))
    assert RunJson.read(Uri(uri)) == FULL


@pytest.mark.parametrize("state", RunState)
@pytest.mark.parametrize("this_run", [ThisRun(), ThisRun(error="gone"), ThisRun(3, 3, 2, 1.0, 3.0, error="gone")])
def test_every_state(tmp_path: Path, state: RunState, this_run: ThisRun) -> None:
    run = RunJson(state=state, this_run=this_run)
    run.write(Uri(str(tmp_path)))
    assert RunJson.read(Uri(str(tmp_path))) == run


def test_the_file(tmp_path: Path) -> None:
    """What machines read: these keys and strings."""
    FULL.write(Uri(str(tmp_path)))
    found = json.loads((tmp_path / "run.json").read_text())
    assert list(found) == [
        *(
            "run_id",
            "state",
            "ended",
            "looked_again",
            "config",
            "identity",
            "code",
            "cluster",
            "categories",
            "image_root",
        ),
        *("manifest_version", "images", "changes", "failures", "detections_per_category", "this_run"),
    ]
    assert found["state"] == "finished"
    assert found["ended"] == "2026-01-02T03:04:05+00:00"
    assert found["categories"] == [{"id": 7, "name": "Äpfel"}, {"id": 3, "name": "cat"}]
    assert found["images"] == {"manifest": 5, "annotated": 3, "failed": 2, "deleted": 0}
    assert found["this_run"] == {
        "images": 5,
        "written": 5,
        "rounds": 1,
        "seconds": 2.5,
        "images_per_second": 2.0,
        "replica_busy_share": 0.75,
        "batch_fill": 0.875,
        "time_split_s": {"fetch": 0.5},
        "replica_seconds": {"held": 9.0, "busy": 6.0, "idle": 2.5, "lost": 0.5},
        "gpu_seconds": {"held": 4.5, "busy": 3.0, "idle": 1.25, "lost": 0.25},
        "by_accelerator": {
            "NVIDIA H100": {
                "images": 5,
                "replica_seconds": 9.0,
                "gpu_seconds": 4.5,
                "images_per_gpu_hour": 4000.0,
            },
            "CPU": {"images": 0, "replica_seconds": 0.0, "gpu_seconds": 0.0, "images_per_gpu_hour": None},
        },
        "cost": 0.01,
    }


def test_the_file_of_a_run_that_is_not_over(tmp_path: Path) -> None:
    RunJson(state=RunState.FAILED, config={"file": Path("/x")}, this_run=ThisRun(error="gone")).write(
        Uri(str(tmp_path))
    )
    found = json.loads((tmp_path / "run.json").read_text())
    assert (found["state"], found["images"], found["this_run"]) == ("failed", {}, {"error": "gone"})
    assert found["config"] == {"file": "/x"}
    assert found["ended"] is None


@pytest.mark.parametrize(
    ("text", "hour"), [("2026-01-02T03:04:05+02:00", 1), ("0001-01-01T00:00:00+23:00", None), ("last night", None)]
)
def test_when_it_ended(tmp_path: Path, text: str, hour: int | None) -> None:
    folder = write_text(tmp_path, {**OLDER, "ended": text})
    if hour is None:
        with pytest.raises(OutputError, match=r"run\.json is damaged.*ended"):
            RunJson.read(Uri(folder))
        return
    run = RunJson.read(Uri(folder))
    assert run is not None
    assert run.ended == datetime(2026, 1, 2, hour, 4, 5, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("manifest", "root"),
    [
        pytest.param({"image_root": "images"}, "{here}/images", id="a relative root"),
        pytest.param({"image_root": "./up/../images/"}, "{here}/images", id="a root in other words"),
        pytest.param({"image_root": "/data/images/"}, "/data/images", id="an absolute root"),
        pytest.param({"image_root": "file:///data/a%20b"}, "/data/a b", id="a file URI"),
        pytest.param({"image_root": "s3://b/set"}, "s3://b/set", id="a bucket"),
        pytest.param({"uri": "images", "format": "folder"}, "{here}/images", id="a folder"),
        pytest.param({"uri": "images"}, "{here}/images", id="a folder, found out"),
        pytest.param({"uri": "images", "format": "parquet"}, None, id="no root"),
    ],
)
def test_the_root_in_older_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manifest: dict[str, str], root: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunJson.read(Uri(write_text(tmp_path, older(**manifest))))
    assert run is not None
    assert run.image_root == (None if root is None else Uri(root.format(here=tmp_path)))
    assert (run.images, run.categories) == (ImageCounts(1, 1, 0), (Category(3, "cat"),))


def test_names_below_the_root_of_an_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunJson.read(Uri(write_text(tmp_path, older(uri="images", format="folder"))))
    assert run is not None
    assert image_path(1, f"{tmp_path}/images/a/1.jpg", run.image_root) == "a/1.jpg"


@pytest.mark.parametrize("config", [{}, {"manifest": None}, {"manifest": {}}])
def test_no_manifest_in_an_older_file(tmp_path: Path, config: dict[str, Any]) -> None:
    run = RunJson.read(Uri(write_text(tmp_path, {"state": "running", "config": config})))
    assert run == RunJson(state=RunState.RUNNING, config=config)


def test_keys_of_a_later_version_are_passed_over(tmp_path: Path) -> None:
    run = RunJson.read(Uri(write_text(tmp_path, {**OLDER, "image_root": None, "moon": "full"})))
    assert run is not None
    assert run.image_root is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param("", "Expecting value", id="empty"),
        pytest.param('{"state": "fini', "Unterminated string", id="cut off"),
        pytest.param([1, 2], "Input should be a dictionary", id="a list"),
        pytest.param({}, "state: ", id="something else"),
        pytest.param({**OLDER, "state": "asleep"}, "state: Input should be 'running', ", id="an unknown state"),
        pytest.param({**OLDER, "config": None}, "config: ", id="no config"),
        pytest.param({**OLDER, "categories": [{"id": "x"}]}, "categories.0.", id="categories"),
        pytest.param({**OLDER, "images": {"manifest": "many"}}, "images.manifest: ", id="counts"),
        pytest.param(older(image_root="s3://"), "no bucket", id="a root that is none"),
    ],
)
def test_garbage(tmp_path: Path, content: object, reason: str) -> None:
    uri = write_text(tmp_path, content)
    with pytest.raises(OutputError) as refused:
        RunJson.read(Uri(uri))
    message = str(refused.value)
    assert message.startswith(f"{uri}/run.json is damaged, or not an annotate job's (")
    assert reason in message
    assert "move it away; the next run of annotate on this output writes it anew" in message


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(b"\xff\xfe\x00PAR1")
    with pytest.raises(OutputError, match=r"run\.json is damaged"):
        RunJson.read(Uri(str(tmp_path)))


def test_failed_fraction() -> None:
    assert FULL.failed_fraction == 0.4
    assert RunJson(state=RunState.RUNNING).failed_fraction == 0


def test_how_images_were_read() -> None:
    config = {"images": ImagesConfig(apply_exif=False).model_dump(mode="json")}
    run = RunJson(state=RunState.FINISHED, config=config)
    assert (run.apply_exif, run.images_config()) == (False, ImagesConfig(apply_exif=False))
    assert FULL.apply_exif is None

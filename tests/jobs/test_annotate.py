"""What the annotate command refuses before Ray starts: exit code 2, and the reason in the last line."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest
import ray
import yaml

from jobs import annotate
from pipeline.annotate import run as annotate_run
from pipeline.annotate.config import AnnotateConfig
from pipeline.annotate.prepare import choose_model, make_identity
from pipeline.annotations.ledger import OutputStore
from pipeline.annotations.run_json import RunJson, RunState
from pipeline.cluster import connect
from pipeline.model.files.checkpoints import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from pipeline.model.files.header import Header, read_header
from pipeline.storage.lock.lease import OutputLock
from pipeline.storage.uris import Uri
from tests.annotations.output_cases import output_table

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _ray_must_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*args: Any, **options: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", started)
    monkeypatch.setattr(connect, "connect", started)


@pytest.fixture
def values(tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    """A config that would do, but for the manifest, which is not there."""
    return {
        "manifest": {"uri": str(tmp_path / "manifest.parquet")},
        "model": {"checkpoint": str(tiny_model)},
        "output": {"uri": str(tmp_path / "out")},
    }


def write(folder: Path, values: dict[str, Any] | str) -> str:
    path = folder / "annotate.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values), encoding="utf-8")
    return str(path)


def refused(caplog: pytest.LogCaptureFixture, *arguments: str) -> str:
    """The last line of a run that must end with exit code 2."""
    with caplog.at_level(logging.INFO):
        assert annotate.main(arguments) == 2
    last = caplog.records[-1]
    assert last.levelno == logging.ERROR
    assert last.getMessage().startswith("exit code 2: ")
    return last.getMessage()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "the file is empty", id="empty"),
        pytest.param("manifest: [", "not valid YAML", id="no YAML"),
        pytest.param(
            "manifest: {}\nmodel: {checkpoint: x}\noutput: {uri: x}", "manifest.uri is missing", id="missing key"
        ),
        pytest.param(
            "manifest: {uri: a}\nmodel: {checkpoint: x}\noutput: {url: x, uri: y}",
            "did you mean 'uri'",
            id="unknown key",
        ),
        pytest.param(
            "manifest: {uri: a}\nmodel: {checkpoint: x, batch_size: lots}\noutput: {uri: y}",
            "model.batch_size: must be a whole number",
            id="wrong type",
        ),
    ],
)
def test_bad_config(tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, message: str) -> None:
    said = refused(caplog, "--config", write(tmp_path, text))
    assert said.startswith("exit code 2: ConfigError: ")
    assert message in said


def test_config_file_is_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert "cannot be read" in refused(caplog, "--config", str(tmp_path / "gone.yaml"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        pytest.param("model.batchsize=4", "no such setting; did you mean 'batch_size'?", id="unknown key"),
        pytest.param("model.batch_size=0", "--set model.batch_size", id="out of range"),
        pytest.param("batch_size", "expected section.key=value", id="no value"),
        pytest.param("model.class_thresholds={dog: 0.5}", "the model has no category 'dog'", id="category"),
        pytest.param("model.short_side=500", "short_side 500 exceeds long_side 96", id="sizes"),
        pytest.param("model.checkpoint=gone.safetensors", "gone.safetensors", id="checkpoint"),
        pytest.param("output.uri=s3:///x", "no bucket", id="output"),
    ],
)
def test_bad_setting(
    values: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture, override: str, message: str
) -> None:
    (tmp_path / "manifest.parquet").touch()
    assert message in refused(caplog, "--config", write(tmp_path, values), "--set", override)
    assert not (tmp_path / "out").exists()


MANIFESTS: dict[str, tuple[dict[str, list[Any]] | None, str]] = {
    "missing": (None, "does not exist"),
    "empty": ({"image_uri": []}, "has no row"),
    "no URIs": ({"image_id": [1], "path": ["a"]}, "image_uri"),
    "a null URI": ({"image_uri": ["/a.png", None]}, "null or empty"),
    "relative without a root": ({"image_uri": ["a.png"]}, "needs an image root"),
    "null id": ({"image_id": [1, None], "image_uri": ["/a.png", "/b.png"]}, "null or empty"),
}


@pytest.mark.parametrize(("columns", "message"), MANIFESTS.values(), ids=MANIFESTS)
def test_bad_manifest(
    values: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    columns: dict[str, list[Any]] | None,
    message: str,
) -> None:
    if columns is not None:
        types = {"image_id": pa.int64(), "image_uri": pa.string(), "path": pa.string()}
        table = pa.table({name: pa.array(cells, types[name]) for name, cells in columns.items()})
        pq.write_table(table, tmp_path / "manifest.parquet")
    said = refused(caplog, "--config", write(tmp_path, values))
    assert said.startswith(
        "exit code 2: StorageError: manifest.uri: " if columns is None else "exit code 2: ManifestError: "
    )
    assert message in said
    assert not (tmp_path / "out").exists()


def test_a_dry_run_that_finds_no_manifest_leaves_nothing(
    values: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values["output"]["uri"] = str(tmp_path / "new" / "out")
    assert "does not exist" in refused(caplog, "--config", write(tmp_path, values), "--dry-run")
    assert not (tmp_path / "new").exists()


def test_no_secret_is_said(values: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values["manifest"]["uri"] = "s3://key:SECRET@bucket/manifest.parquet"
    assert "SECRET" not in refused(caplog, "--config", write(tmp_path, values))
    assert "SECRET" not in caplog.text


@pytest.mark.parametrize("arguments", [[], ["--config"], ["--config", "x", "--nonsense"]])
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        annotate.main(arguments)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


class TestWithoutRayAndTorch:
    """What takes neither to be known: told by a process that has loaded none of the two."""

    @pytest.fixture
    def finished(self, values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        """The config of an output in which nothing is to do: one image annotated, two failed. No page is drawn here."""
        monkeypatch.setattr(annotate_run, "page_at_end", lambda *_: nullcontext())
        pq.write_table(pa.table({"image_id": [5, 6, 7], "image_uri": ["/a.png"] * 3}), tmp_path / "manifest.parquet")
        config = AnnotateConfig.model_validate(values | {"output": values["output"] | {"max_failed_fraction": 0.9}})
        identity = make_identity(config, choose_model(config).header, "earlier")
        OutputStore(config.output.uri).write_rows(output_table([5, 6, 7], failed=[6, 7]), identity)
        return config.model_dump(mode="json")

    def test_said(self, finished: dict[str, Any], tmp_path: Path) -> None:
        (tmp_path / "taken").mkdir()
        (tmp_path / "taken" / "notes.txt").write_text("mine")
        # Of other formats torch reads the weights, but not to see that there are no images.
        (tmp_path / "model.pth").write_bytes(b"x")
        config = ["--config", write(tmp_path, finished)]
        held = {"output": {"uri": str(tmp_path / "held")}}
        (tmp_path / "held").mkdir()
        cases: dict[str, tuple[list[str], int, str]] = {
            "finished": ([], 0, "nothing_to_do"),
            "a dry run without a manifest": (["--dry-run", "--set", "manifest.uri=gone.csv"], 2, "does not exist"),
            "no checkpoint": (["--set", "model.checkpoint=gone.safetensors"], 2, "neither a file nor a known model"),
            "no manifest": (["--set", "manifest.uri=gone.csv"], 2, "gone.csv does not exist"),
            "other weights, no manifest": (
                ["--set", f"model.checkpoint={tmp_path}/model.pth", "--set", "manifest.uri=gone.csv"],
                2,
                "gone.csv does not exist",
            ),
            "another's folder": (["--set", f"output.uri={tmp_path}/taken"], 2, "ForeignFolder"),
            "other settings": (["--set", "model.score_threshold=0.7"], 2, "IdentityMismatch"),
            "a run at work": (["--set", f"output.uri={held['output']['uri']}"], 1, "LockHeld"),
        }
        code = (
            "import json, sys; from jobs import annotate\n"
            "for arguments in json.loads(sys.argv[1]):\n"
            "    code = annotate.main(arguments)\n"
            "    print('code', code, sorted({'ray', 'torch'} & set(sys.modules)), file=sys.stderr, flush=True)"
        )
        arguments = json.dumps([[*config, *case] for case, _, _ in cases.values()])
        with OutputLock(Uri(held["output"]["uri"]), "the other run", lease_s=1.5):
            ended = subprocess.run(
                [sys.executable, "-c", code, arguments],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=400,
                check=False,
            )
        lines = ended.stderr.splitlines()
        told = [(lines[i - 1], line) for i, line in enumerate(lines) if line.startswith("code ")]
        assert len(told) == len(cases), ended.stderr
        for (case, (_, wanted, message)), (said, line) in zip(cases.items(), told, strict=True):
            assert line == f"code {wanted} []", (case, said)
            assert message in said, case
        assert "3 images = 1 annotated + 2 failed" in ended.stdout
        assert sorted(os.listdir(tmp_path / "taken")) == ["notes.txt"]

    def test_a_finished_output_is_left_as_it_is(self, finished: dict[str, Any], tmp_path: Path) -> None:
        out = tmp_path / "out"
        RunJson(run_id="earlier", state=RunState.FINISHED).write(Uri(str(out)))
        before = {path: path.read_bytes() for path in (out / "run.json", *(out / "data").iterdir())}
        assert annotate.main(["--config", write(tmp_path, finished)]) == 0
        assert {path: path.read_bytes() for path in (out / "run.json", *(out / "data").iterdir())} == before

    def test_a_report_that_a_crash_left_names_the_driver_alone(self, finished: dict[str, Any], tmp_path: Path) -> None:
        uri = Uri(str(tmp_path / "out"))
        RunJson(run_id="earlier", state=RunState.RUNNING).write(uri)
        assert annotate.main(["--config", write(tmp_path, finished)]) == 0
        report = RunJson.read(uri)
        assert report is not None
        assert (report.state, report.cluster) == (RunState.NOTHING_TO_DO, {"driver": socket.gethostname()})

    def test_failures_are_named_at_the_end(
        self, finished: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert annotate.main(["--config", write(tmp_path, finished)]) == 0
        rows = pq.read_table(tmp_path / "out" / "data").filter(pa.compute.field("status") == "failed").to_pylist()
        said = capsys.readouterr().out.splitlines()
        at = said.index(f"  2 {rows[0]['error_code']}")
        assert said[at + 1 : at + 4] == [
            *(f"      {row['image_id']}: {row['error_message']}" for row in rows),
            f"  all of them: maskfleet show {tmp_path / 'out'} --failed failed.csv",
        ]

    def test_weights_that_changed_meanwhile(self, values: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        path.write_bytes(tiny_model.read_bytes())
        values["model"]["checkpoint"] = str(path)
        chosen = choose_model(AnnotateConfig.model_validate(values))
        checkpoint = chosen.load()
        assert checkpoint.weights_sha256 == chosen.header.weights_sha256
        save_checkpoint(replace(checkpoint, settings=replace(checkpoint.settings, max_detections=4)), path)
        with pytest.raises(CheckpointError, match="replaced by another file"):
            chosen.load()

    @pytest.mark.parametrize("halved", [False, True])
    def test_what_a_file_says_of_itself_is_what_its_weights_say(
        self, tiny_checkpoint: Checkpoint, tmp_path: Path, halved: bool
    ) -> None:
        """But for weights that lie there in half precision: their digest is another once they are read."""
        weights = {
            name: tensor.half() if halved and tensor.is_floating_point() else tensor
            for name, tensor in tiny_checkpoint.weights.items()
        }
        path = tmp_path / "model.safetensors"
        save_checkpoint(replace(tiny_checkpoint, weights=weights, weights_sha256=""), path)
        header, loaded = read_header(path), load_checkpoint(path)
        said = None if header is None else [getattr(header, field.name) for field in fields(Header)]
        assert said == (None if halved else [getattr(loaded, field.name) for field in fields(Header)])


def test_as_a_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.annotate", "--config", str(tmp_path / "gone.yaml")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert ended.returncode == 2
    assert "exit code 2: ConfigError: " in ended.stderr.splitlines()[-1]
    assert ended.stdout == ""

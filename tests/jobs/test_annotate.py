"""What the annotate command refuses before Ray starts: exit code 2, and the reason in the last line."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import yaml

from jobs import annotate
from pipeline.annotate import run as pipeline_annotate
from pipeline.annotations.run_json import RunJson
from pipeline.storage.uris import Uri

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _ray_must_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*args: Any, **options: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", started)
    monkeypatch.setattr(pipeline_annotate, "connect", started)


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
    assert RunJson.read(Uri(str(tmp_path / "out"))) is None
    assert not (tmp_path / "out" / "_scratch").exists()


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


def test_as_a_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.annotate", "--config", str(tmp_path / "gone.yaml")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert ended.returncode == 2
    assert "exit code 2: ConfigError: " in ended.stderr.splitlines()[-1]
    assert ended.stdout == ""

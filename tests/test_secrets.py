"""Secrets planted wherever a URI can stand, and everything searched that is then said, logged or written."""

from __future__ import annotations

import json
import logging
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import yaml
from PIL import Image

from jobs import annotate, convert_checkpoint, evaluate, export, predict, train, visualize
from pipeline.annotate.config import AnnotateConfig, ManifestConfig
from pipeline.annotate.manifest.open import Manifest, open_manifest
from pipeline.annotate.pending.antijoin import find_pending
from pipeline.annotations.pictures import PictureSource
from pipeline.config.base import ConfigError, Section
from pipeline.config.loading import load_config
from pipeline.errors import UserError
from pipeline.evaluate.config import EvaluateConfig
from pipeline.export.formats.table import FORMATS
from pipeline.model.categories import Category
from pipeline.model.files.checkpoints import save_checkpoint
from pipeline.storage import filesystems
from pipeline.storage.access import AccessPolicy
from pipeline.storage.fetch.fetcher import Fetcher
from pipeline.storage.fetch.rules import FetchSettings
from pipeline.storage.uris import Uri, UriText
from pipeline.train.config import TrainConfig
from testing.small_model import TINY, TINY_SETTINGS, picture, random_checkpoint
from testing.web import serving

CATEGORIES = (Category(3, "cat"), Category(7, "dog"), Category(12, "traffic light"))
SECRET = "S3cR3tXyZ"

# One for each kind of secret. None of them leads anywhere: what is opened is refused at once.
PLANTED = {
    "presigned": f"http://127.0.0.1:9/x.csv?X-Amz-Signature={SECRET}&a=b",
    "presigned JSON": f"http://127.0.0.1:9/x.json?sig={SECRET}",
    "fragment": f"http://127.0.0.1:9/x#{SECRET}",
    "HTTP password": f"https://user:{SECRET}@127.0.0.1:9/x",
    "HTTP user": f"https://{SECRET}@127.0.0.1:9/x",
    "S3 keys": f"s3://AKIA:{SECRET}@bucket/x",
    "S3 keys with a slash": f"s3://AKIA:a/{SECRET}@bucket/x",
    "Azure password": f"abfs://user:{SECRET}@account/x",
    "Azure SAS": f"abfs://container@account/x?sig={SECRET}",
    "FTP password": f"ftp://user:{SECRET}@127.0.0.1:9/x",
    "chained": f"simplecache::https://user:{SECRET}@127.0.0.1:9/x",
    "control character": f"https://127.0.0.1:9/\n?sig={SECRET}",
    "no scheme that there is": f"nope://host/x?sig={SECRET}",
}


@dataclass
class Ears:
    """Hears what is printed and logged, and reads what is written.

    Attributes:
        folder: of which all files are read, but for those that the test itself wrote.
    """

    folder: Path
    caplog: pytest.LogCaptureFixture
    capsys: pytest.CaptureFixture[str]
    own: set[Path] = field(default_factory=set)

    def wrote(self, path: Path) -> Path:
        """A file of the test's, in which a secret may stand."""
        self.own.add(path)
        return path

    def check(self, *others: object) -> None:
        """Fail if the secret is anywhere; ``others`` are values whose texts count too."""
        printed = self.capsys.readouterr()
        heard = [printed.out, printed.err, self.caplog.text]
        heard += [f"{record.getMessage()} {record.args!r}" for record in self.caplog.records]
        self.caplog.clear()
        for other in others:
            heard += [str(other), repr(other)]
            if isinstance(other, BaseException):
                heard += [repr(other.__dict__), repr(pickle.loads(pickle.dumps(other)))]  # noqa: S301
        for text in heard:
            assert SECRET not in text
        for path in sorted(self.folder.rglob("*")):
            assert SECRET not in path.name
            if path.is_file() and path not in self.own:
                assert SECRET not in content_of(path), path


def content_of(path: Path) -> str:
    """All that a file says, unpacked where it is packed."""
    if path.suffix == ".parquet":
        file = pq.ParquetFile(path)
        return f"{file.read().to_pylist()} {file.schema_arrow} {file.metadata.metadata} {file.schema_arrow.metadata}"
    return path.read_bytes().decode("utf-8", "replace")


@pytest.fixture
def ears(tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> Ears:
    caplog.set_level(logging.DEBUG, logger="pipeline")
    caplog.set_level(logging.INFO)
    caplog.set_level(logging.DEBUG, logger="jobs")
    return Ears(tmp_path, caplog, capsys)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_checkpoint(random_checkpoint(TINY, CATEGORIES, TINY_SETTINGS), path)
    return path


def write_picture(path: Path) -> None:
    Image.fromarray(picture(64, 90)).save(path)


def write_truth(folder: Path, file_name: str = "1.png") -> Path:
    """A COCO file of one image and one object."""
    found = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 1, 20, 20], "area": 400, "iscrowd": 0}
    content = {
        "images": [{"id": 1, "height": 64, "width": 90, "file_name": file_name}],
        "annotations": [{**found, "segmentation": [[1, 1, 21, 1, 21, 21, 1, 21]]}],
        "categories": [{"id": category.id, "name": category.name} for category in CATEGORIES],
    }
    path = folder / "truth.json"
    path.write_text(json.dumps(content))
    return path


SIZES = {
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
    "fpn_channels": 8,
    "box_convs": 1,
    "box_channels": 8,
    "box_fc": 16,
    "mask_convs": 1,
    "mask_channels": 8,
}

# Jobs whose every setting that takes a URI gets one with a secret in it.


def annotate_values(folder: Path, model: Path) -> dict[str, Any]:
    write_picture(folder / "1.png")
    pq.write_table(pa.table({"image_id": [1], "image_uri": [str(folder / "1.png")]}), folder / "manifest.parquet")
    return {
        "manifest": {"uri": str(folder / "manifest.parquet")},
        "model": {"checkpoint": str(model)},
        "output": {"uri": str(folder / "out")},
    }


def evaluate_values(folder: Path, _: Path) -> dict[str, Any]:
    truth = write_truth(folder)
    (folder / "results.json").write_text("[]")
    return {
        "predictions": {"uri": str(folder / "results.json")},
        "ground_truth": {"uri": str(truth)},
        "gallery": {"images": {}},
        "output": {"uri": str(folder / "report")},
    }


def train_values(folder: Path, _: Path) -> dict[str, Any]:
    write_picture(folder / "1.png")
    source = {"uri": str(write_truth(folder)), "image_root": str(folder)}
    return {
        "data": {"train": [source], "validation": dict(source), "images": {}},
        "model": {"sizes": SIZES},
        "output": {"uri": str(folder / "run")},
    }


@dataclass(frozen=True)
class Job:
    main: Callable[[list[str]], int]
    config: type[Section]
    values: Callable[[Path, Path], dict[str, Any]]


JOBS = {
    "annotate": Job(annotate.main, AnnotateConfig, annotate_values),
    "evaluate": Job(evaluate.main, EvaluateConfig, evaluate_values),
    "train": Job(train.main, TrainConfig, train_values),
}
KEYS = {
    "annotate": (
        "manifest.uri",
        "manifest.image_root",
        "images.allowed_roots",
        "model.checkpoint",
        "model.class_thresholds_file",
        "resources.ray_address",
        "output.uri",
    ),
    "evaluate": (
        "predictions.uri",
        "ground_truth.uri",
        "gallery.image_root",
        "gallery.images.allowed_roots",
        "resources.ray_address",
        "output.uri",
    ),
    "train": (
        "data.train.0.uri",
        "data.train.0.image_root",
        "data.train.0.class_thresholds_file",
        "data.validation.uri",
        "data.validation.image_root",
        "data.images.allowed_roots",
        "model.start",
        "resources.ray_address",
        "output.uri",
    ),
}


def planted(values: Any, path: list[str], uri: str) -> Any:
    """The values with a URI at a place."""
    if not path:
        return uri
    key, *rest = path
    if isinstance(values, list):
        return [planted(values[int(key)], rest, uri)]
    inner = [uri] if key == "allowed_roots" else planted((values or {}).get(key), rest, uri)
    return {**(values or {}), key: inner}


@pytest.fixture
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray that does not start, in words that quote the address, as its own do."""

    def refuse(address: str | None = None, **_: object) -> None:
        raise ConnectionError(f"Ray cannot be reached at '{address}' (gRPC to {address}: refused)")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray, "shutdown", lambda: None)  # else the one of the other tests ends
    monkeypatch.setattr("pipeline.cluster.connect._PAUSE_S", 0.0)


@pytest.mark.usefixtures("_no_ray")
@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in KEYS.items() for key in keys])
def test_no_setting_of_a_job_tells(name: str, key: str, ears: Ears, model: Path) -> None:
    job = JOBS[name]
    values = job.values(ears.folder, model)
    file = ears.wrote(ears.folder / "config.yaml")
    for uri in PLANTED.values():
        file.write_text(yaml.safe_dump(planted(values, key.split("."), uri)))
        more = ["--dry-run"] if name == "annotate" else []
        for arguments in ([], more)[: 1 + len(more)]:
            assert job.main(["--config", str(file), *arguments]) in (1, 2)
            assert ears.caplog.messages[-1].startswith("exit code")
            ears.check()
        ears.check(*what_a_config_says(job.config, file))


def what_a_config_says(kind: type[Section], file: Path) -> list[object]:
    """A config in every form in which it may be shown, or why there is none."""
    try:
        config = load_config(kind, file)
    except ConfigError as error:
        return [error]
    said = [config, config.model_dump(), config.__dict__, config.model_dump_json(), config.model_dump(mode="json")]
    said += [yaml.safe_dump(config.model_dump(mode="json")), pickle.loads(pickle.dumps(config))]  # noqa: S301
    return [*said, json.dumps(config.model_dump(), default=str), getattr(config, "content", lambda: None)()]


@pytest.mark.parametrize("name", JOBS)
def test_no_override_tells(name: str, ears: Ears, model: Path) -> None:
    file = ears.folder / "config.yaml"
    file.write_text(yaml.safe_dump(JOBS[name].values(ears.folder, model)))
    for uri in PLANTED.values():
        for override in (f"output.uri={json.dumps(uri)}", f"output.url={uri!r}", f"output={uri!r}"):
            assert JOBS[name].main(["--config", str(file), "--set", override]) in (1, 2)
        assert JOBS[name].main(["--config", uri]) == 2
        ears.check()


def test_no_other_command_tells(ears: Ears, tmp_path: Path) -> None:
    for uri in PLANTED.values():
        commands: list[tuple[Callable[[list[str]], int], list[str]]] = [
            (export.main, ["--annotations", uri, "--format", "coco", "--out", "labels.json"]),
            (export.main, ["--annotations", str(tmp_path), "--format", "coco", "--out", uri]),
            (export.main, ["--annotations", "a", "--format", "coco", "--out", "b", "--class-thresholds", uri]),
            (visualize.main, ["--annotations", uri, "--out", str(tmp_path)]),
            (predict.main, [uri, "--model", "swin_t_coco", "--out", str(tmp_path)]),
            (convert_checkpoint.main, [uri, str(tmp_path / "made.safetensors")]),
        ]
        for main, arguments in commands:
            assert main(arguments) in (1, 2)
        ears.check()


# Rows of a manifest.


def rows_with_secrets(here: str = "http://127.0.0.1:9") -> list[str]:
    return [*PLANTED.values(), f"{here}/1.png?sig={SECRET}", f"{here}/gone.png?sig={SECRET}#{SECRET}"]


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl", "m.parquet"])
def test_no_row_that_is_refused_tells(name: str, ears: Ears) -> None:
    """Without a column of ids the URIs are the ids, which are written out."""
    relative = [f"../a.png?sig={SECRET}", f"a.png?sig={SECRET}"]
    for uri in [*PLANTED.values(), *relative]:
        write_manifest(ears.wrote(ears.folder / name), {"image_uri": ["/a", uri, uri]})
        root = Uri("https://host/set") if uri in relative else None
        for image_root in {root, None}:
            config = ManifestConfig(uri=str(ears.folder / name), image_root=image_root)
            if uri in (PLANTED["fragment"],):
                continue  # an id like any other
            with pytest.raises(UserError) as caught:
                open_manifest(config, Uri(str(ears.folder / "scratch")))
            for file in (ears.folder / "scratch").glob("*"):
                file.unlink()  # the copy that tasks read; it is removed when the run is over
            ears.check(caught.value)


def write_manifest(path: Path, columns: Mapping[str, list[Any]]) -> None:
    table = pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    else:
        table.to_pandas().to_csv(path, index=False)


def test_no_image_that_is_refused_tells(ears: Ears) -> None:
    uris = [UriText(uri) for uri in rows_with_secrets()]
    for policy in (AccessPolicy(), AccessPolicy((Uri(f"http://127.0.0.1:9/?{SECRET}"),)), AccessPolicy(())):
        ears.check(policy, *dict(Fetcher(FetchSettings(max_attempts=1), policy).fetch_in_turn(uris)).values())
    climbing = UriText(f"../1.png?sig={SECRET}")
    ears.check(*PictureSource(image_root=Uri("https://127.0.0.1:9/set")).read_many([*uris[:1], climbing]))


def test_no_endpoint_tells(ears: Ears, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"ftp://user:{SECRET}@127.0.0.1:9/?{SECRET}")
    with pytest.raises(UserError) as caught:
        filesystems.open_filesystem(Uri("s3://bucket/x"))
    ears.check(caught.value)


def test_no_endpoint_tells_in_the_words_of_a_library(ears: Ears) -> None:
    """The list of a manifest's files, which a client asks for that says in its errors what it asked."""
    script = (
        "import time; time.sleep = lambda s: None  # between attempts\n"
        "from pipeline.storage.listing import list_files; from pipeline.storage.uris import Uri\n"
        "try: list(list_files(Uri('s3://bucket/x')))\n"
        "except ValueError as error: print(error)"
    )
    environment = {
        "AWS_ENDPOINT_URL": f"http://user:{SECRET}@127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "key",
        "AWS_MAX_ATTEMPTS": "1",
        "PATH": "",
    }
    root = Path(__file__).parents[1]
    ended = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, cwd=root)
    assert "cannot be listed" in ended.stdout
    ears.check(ended.stdout, ended.stderr)


def test_the_log_of_a_job_hides_what_others_wrote(monkeypatch: pytest.MonkeyPatch, ears: Ears) -> None:
    """An error that nobody foresaw is logged with its traceback, in the words of who raised it."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(annotate, "_annotate", _unforeseen)
    assert annotate.main(["--config", "x"]) == 1
    printed = ears.capsys.readouterr().err
    assert "Traceback" in printed
    assert "https://host/x: 403" in printed
    assert SECRET not in printed


def test_the_last_line_of_a_job_hides_what_others_wrote(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever configured the log."""
    monkeypatch.setattr(annotate, "_annotate", _unforeseen)
    assert annotate.main(["--config", "x"]) == 1
    assert caplog.messages[-1].startswith("exit code 1: KeyError: 'GET https://host/x: 403'; ")
    assert SECRET not in caplog.text


def _unforeseen(_: object) -> int:
    raise KeyError(f"GET https://user:{SECRET}@host/x?sig={SECRET}: 403")


# Whole runs, whose images, manifest and ground truth come over HTTP.


class Handler(BaseHTTPRequestHandler):
    """Serves ``content`` by the path, whatever the query; ``denied`` is, and ``moved`` leads where one may not go."""

    content: Mapping[str, bytes] = {}

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        body = self.content.get(path)
        if path == "/moved.png":
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.2:9/x.png?sig={SECRET}")
        elif path == "/denied.png" or (body is not None and SECRET not in query):
            self.send_response(403)
        else:
            self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body or b"")

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """A server, and what it serves."""
    content: dict[str, bytes] = {}
    handler = type("Serving", (Handler,), {"content": content})
    with serving(handler) as url:
        yield url, content


BAD_MANIFESTS = {
    "m.csv": [
        "",
        "image_uri\n",
        "a\n1\n",
        "image_uri\n/a,b\n",
        "image_id,image_uri\n1,\n",
        "image_id,image_uri\n,/a\n",
    ],
    "m.jsonl": ["", "[]", "{", '{"image_uri": 1}', '{"image_id": null, "image_uri": "/a"}'],
    "m.json": ["{}", "[", '{"images": [{"id": 1}]}', '{"images": [{"id": 1, "file_name": ""}]}'],
    "m.txt": ["x"],
}


def test_no_manifest_tells(served: tuple[str, dict[str, bytes]], ears: Ears) -> None:
    here, content = served
    for name, texts in BAD_MANIFESTS.items():
        for text in texts:
            content[f"/{name}"] = text.encode()
            with pytest.raises(UserError, match=f"{here}/{name}") as caught:
                open_served(f"{here}/{name}?sig={SECRET}", ears)
            ears.check(caught.value)
    content["/m.csv"] = b"image_id,image_uri\n1,/a\n1,/b\n"
    with pytest.raises(UserError, match=r"occurs? more than once") as caught:
        find_pending(open_served(f"{here}/m.csv?sig={SECRET}", ears), [])
    ears.check(caught.value)


def open_served(uri: str, ears: Ears) -> Manifest:
    kinds = {".csv": "csv", ".jsonl": "jsonl", ".json": "coco", ".parquet": "parquet"}
    config = ManifestConfig.model_validate(
        {"uri": uri, "format": kinds.get(Path(uri.partition("?")[0]).suffix, "auto")}
    )
    return open_manifest(config, Uri(str(ears.folder / "scratch")))


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_no_run_tells(ray_cluster: None, served: tuple[str, dict[str, bytes]], ears: Ears, model: Path) -> None:
    """Annotate, then whatever reads its output."""
    here, content = served
    buffer = BytesIO()
    Image.fromarray(picture(64, 90)).save(buffer, "PNG")
    content["/1.png"] = buffer.getvalue()
    rows = rows_with_secrets(here) + [f"{here}/{name}.png?sig={SECRET}" for name in ("denied", "moved")]
    lines = [f"{number},{json.dumps(uri)}" for number, uri in enumerate(rows) if "\n" not in uri]
    content["/m.csv"] = "\n".join(["image_id,image_uri", *lines]).encode()
    good = rows.index(f"{here}/1.png?sig={SECRET}")
    truth = json.loads(write_truth(ears.folder, f"{here}/1.png?sig={SECRET}").read_text())
    truth["images"][0]["id"] = truth["annotations"][0]["image_id"] = good
    ears.wrote(ears.folder / "truth.json").write_text(json.dumps(truth))
    content["/truth.json"] = json.dumps(truth).encode()
    images = {"max_attempts": 1, "allowed_roots": [f"{here}/?sig={SECRET}"]}
    out = ears.folder / "out"
    run_job(
        ears,
        annotate.main,
        {
            "manifest": {"uri": f"{here}/m.csv?sig={SECRET}"},
            "images": images,
            "model": {"checkpoint": str(model), "batch_size": 2},
            "output": {"uri": str(out), "max_failed_fraction": 1.0},
        },
    )
    ears.check()
    table = pq.ParquetDataset(str(out / "data")).read()
    assert (
        dict(zip(table["image_id"].to_pylist(), table["image_uri"].to_pylist(), strict=True))[good] == f"{here}/1.png"
    )
    assert table["status"].to_pylist().count("annotated") == 1
    codes = set(table["error_code"].drop_null().to_pylist())
    assert {"bad_uri", "uri_not_allowed", "not_found", "access_denied"} <= codes
    for format in FORMATS:
        target = str(ears.folder / f"exported-{format}")
        assert export.main(["--annotations", str(out), "--format", format, "--out", target]) == 0
    visualize.main(["--annotations", str(out), "--out", str(ears.folder / "drawn")])
    ears.check()
    (ears.folder / "results.json").write_text("[]")
    for name, predictions in {"of-output": out, "of-results": ears.folder / "results.json"}.items():
        run_job(
            ears,
            evaluate.main,
            {
                "predictions": {"uri": str(predictions)},
                "ground_truth": {"uri": f"{here}/truth.json?sig={SECRET}"},
                "gallery": {"images_per_class": 1, "images": images},
                "output": {"uri": str(ears.folder / name)},
            },
        )
        ears.check()
        metrics = json.loads((ears.folder / name / "metrics.json").read_text())
        assert metrics["sources"]["ground_truth"] == f"{here}/truth.json"
        assert re.search(r"/truth\.json\b", (ears.folder / name / "report.html").read_text())


def run_job(ears: Ears, main: Callable[[list[str]], int], values: dict[str, Any]) -> None:
    file = ears.wrote(ears.folder / "config.yaml")
    file.write_text(yaml.safe_dump(values))
    assert main(["--config", str(file)]) == 0, ears.caplog.messages[-1]


@pytest.mark.usefixtures("_no_ray")
def test_no_training_data_tells(served: tuple[str, dict[str, bytes]], ears: Ears) -> None:
    """As far as training goes without workers: all annotations are read and counted, and pictures are tried."""
    here, content = served
    values = train_values(ears.folder, ears.folder)
    content["/1.png"] = (ears.folder / "1.png").read_bytes()
    values["data"]["images"] = {"max_attempts": 1, "allowed_roots": [here]}
    content["/truth.json"] = ears.wrote(write_truth(ears.folder, f"{here}/1.png?sig={SECRET}")).read_bytes()
    for source in (values["data"]["train"][0], values["data"]["validation"]):
        source |= {"uri": f"{here}/truth.json?sig={SECRET}", "image_root": here}
    ears.wrote(ears.folder / "config.yaml").write_text(yaml.safe_dump(values))
    assert train.main(["--config", str(ears.folder / "config.yaml")]) == 1
    assert any(f"source {here}/truth.json: 1 images" in message for message in ears.caplog.messages)
    assert any(f"are learnt from, too ({here}/1.png)" in message for message in ears.caplog.messages)
    ears.check()
    del content["/1.png"]
    assert train.main(["--config", str(ears.folder / "config.yaml")]) == 2
    assert f"1 of 1 pictures tried cannot be read, such as {here}/1.png: " in ears.caplog.messages[-1]
    ears.check()

"""What a run asks of an object store: a file of an earlier run is read twice, its footer and its ids. No Ray."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.annotate.config import AnnotateConfig
from pipeline.annotate.dry_run import dry_run
from pipeline.annotate.prepare import choose_model, make_identity
from pipeline.annotate.run import annotate, summary
from pipeline.annotate.summary import page
from pipeline.annotate.summary.sample import Sample
from pipeline.annotations.data_file import OutputError
from pipeline.annotations.ledger import OutputStore
from pipeline.annotations.run_json import RunState
from pipeline.annotations.schema import output_schema
from pipeline.storage.uris import Uri
from testing.output_rows import as_schema_1
from testing.rounds_without_ray import rounds_without_ray
from testing.s3_server import S3Server
from testing.small_model import save_tiny
from testing.store_requests import counted_requests
from tests.annotations.output_cases import CATEGORY_IDS, CATEGORY_NAMES, output_table

FILES = ([0, 1, 2], [3, 4], [5, 6, 7, 8])
FAILED = 4  # in the second file
FAILED_OF_NEW = 10  # of 9, 10, 11, which are to be done

Requests = Counter[tuple[str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    return save_tiny(path, zip(CATEGORY_IDS, CATEGORY_NAMES, strict=True))


def rows(ids: pa.Array) -> pa.Table:
    table = output_table(ids.to_pylist(), failed=[FAILED, FAILED_OF_NEW])
    return table.cast(output_schema(pa.int64()))


@pytest.fixture
def config(model: Path, tmp_path: Path, uri: Uri, monkeypatch: pytest.MonkeyPatch) -> AnnotateConfig:
    """Of an output that holds `FILES`. The page is drawn without a sample, which is of bounded cost."""
    monkeypatch.setattr(page, "draw_sample", lambda *_: Sample())
    monkeypatch.setattr(page, "_FILES_SAMPLED", 0)
    ids = list(range(12))
    table = pa.table({"image_id": ids, "image_uri": ["/nowhere.png"] * len(ids)})
    pq.write_table(table, tmp_path / "manifest.parquet", row_group_size=12)
    values = {
        "manifest": {"uri": str(tmp_path / "manifest.parquet")},
        "model": {"checkpoint": str(model)},
        "output": {"uri": str(uri), "max_failed_fraction": 1.0},
    }
    config = AnnotateConfig.model_validate(values)
    identity = make_identity(config, choose_model(config).header, "earlier")
    for ids in FILES:
        OutputStore(uri).write_rows(rows(pa.array(ids)), identity)
    return config


@pytest.fixture
def counted(request: pytest.FixtureRequest, uri: Uri) -> Callable[[], Iterator[Requests]]:
    """Counts requests by kind and by what is left of the name: ``data/part-…``, ``run.json``, ``data`` of a listing."""

    @contextmanager
    def on_s3() -> Iterator[Requests]:
        server: S3Server = request.getfixturevalue("s3")
        found: Requests = Counter()
        with server.recorded() as requests:
            yield found
        for method, path in requests:
            prefix = re.search(r"[?&]prefix=[^&]*?out(?:%2F|/)?([^&]*)", path)
            if prefix:
                found["LIST", prefix[1].replace("%2F", "/").strip("/")] += 1
            else:
                found[method, path.partition("/out/")[2].partition("?")[0]] += 1

    return on_s3 if uri.scheme == "s3" else counted_requests


def run(config: AnnotateConfig, meanwhile: Callable[[OutputStore], None] = lambda store: None) -> tuple[RunState, str]:
    """As the command does it."""
    store = OutputStore(config.output.uri)
    with rounds_without_ray(rows, meanwhile):
        report = annotate(config, store=store)
    return report.state, summary(report, store)


def of_data(requests: Requests, kind: str) -> dict[str, int]:
    return {name: number for (each, name), number in requests.items() if each == kind and name.startswith("data/")}


def listings(requests: Requests) -> int:
    """Of data files; those of changed rows are in a folder below, which only a store names whole."""
    return requests["LIST", "data"] + requests["LIST", "changed/data"]


@pytest.mark.parametrize("uri", ["local", "s3"], indirect=True)
def test_each_file_is_read_twice_a_run(config: AnnotateConfig, counted: Callable) -> None:
    store = OutputStore(config.output.uri)
    before = {f"data/{entry.name}": footer.counts.failed for entry, footer in store.files().footers.items()}
    with counted() as requests:
        state, said = run(config)
    assert state is RunState.FINISHED
    assert "12 images = 10 annotated + 2 failed" in said
    assert "4: ?" in said
    after = {f"data/{entry.name}": footer.counts.failed for entry, footer in store.files().footers.items()}
    assert len(after) == len(before) + 1
    # Footer and ids; and where images have failed, their messages for the page and for the closing words.
    assert of_data(requests, "GET") == {name: 4 if failed else 2 for name, failed in after.items()}
    assert of_data(requests, "HEAD") == {}
    # Whose folder it is; recovery, also of changed rows; pending; closing audit; twice each for page and closing words.
    assert listings(requests) == 9

    with counted() as requests:
        state, said = run(config)
    assert state is RunState.NOTHING_TO_DO
    assert of_data(requests, "GET") == {name: 3 if failed else 2 for name, failed in after.items()}
    # Recovery, also of changed rows; what is pending; twice for the closing words.
    assert listings(requests) == 5


local = pytest.mark.parametrize("uri", ["local"], indirect=True)


@local
def test_a_file_that_somebody_removes_during_the_run_is_made_again(config: AnnotateConfig) -> None:
    removed: list[str] = []

    def remove(store: OutputStore) -> None:
        if not removed:
            path = min((Path(str(store.uri)) / "data").iterdir())
            removed.extend(map(str, pq.read_table(path, columns=["image_id"])["image_id"].to_pylist()))
            path.unlink()

    state, said = run(config, remove)
    assert removed
    assert (state, said.splitlines()[0][:9]) == (RunState.FINISHED, "12 images")
    store = OutputStore(config.output.uri)
    assert store.files().counts.rows == 12


@local
@pytest.mark.parametrize("ids", [[0], [9], [100, 3]], ids=["of an earlier run", "of this one", "and an unknown one"])
def test_rows_that_somebody_else_writes_during_the_run_end_it(config: AnnotateConfig, ids: list[int]) -> None:
    def write(store: OutputStore) -> None:
        identity = store.files().identity()
        assert identity is not None
        store.write_rows(rows(pa.array(ids)), identity)

    said = rf"1 image is more than once in .* \({ids[-1]}; in part-\w+.parquet, part-\w+.parquet\)"
    with pytest.raises(OutputError, match=said):
        run(config, write)
    with pytest.raises(OutputError, match=said):
        dry_run(config)


@local
def test_rows_of_others_that_are_not_in_the_manifest_change_nothing(config: AnnotateConfig) -> None:
    def write(store: OutputStore) -> None:
        identity = store.files().identity()
        assert identity is not None
        store.write_rows(rows(pa.array([100, 101])), identity)

    state, said = run(config, write)
    assert (state, said.splitlines()[0][:9]) == (RunState.FINISHED, "12 images")


@local
def test_an_output_of_the_release_before_goes_on(config: AnnotateConfig) -> None:
    """Its files stay as they are; the new ones say more; and what is made of both says whose rows are whose."""
    store = OutputStore(config.output.uri)
    folder = Path(str(store.uri)) / "data"
    old = {path: as_schema_1(path) or path.read_bytes() for path in folder.iterdir()}
    assert run(config)[0] is RunState.FINISHED
    assert {path: path.read_bytes() for path in old} == old
    (new,) = set(folder.iterdir()) - old.keys()
    assert pq.read_metadata(new).metadata[b"maskfleet.schema_version"] == b"2"
    assert run(config)[0] is RunState.NOTHING_TO_DO
    with rounds_without_ray(rows):
        report = annotate(config, retry_failed=True, store=OutputStore(store.uri))
    assert report.state is RunState.FINISHED
    store = OutputStore(store.uri)
    made_by = {
        image_id: run_id
        for table in store.iter_ids(store.files().settled, ("image_id", "run_id"))
        for image_id, run_id in zip(*table.to_pydict().values(), strict=True)
    }
    again = {FAILED, FAILED_OF_NEW}
    assert {made_by[i] for ids in FILES for i in ids if i not in again} == {"earlier"}
    assert {made_by[i] for i in again} == {report.run_id}
    assert made_by.keys() == set(range(12))

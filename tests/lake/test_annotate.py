"""Runs whose config has a table."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from pipeline.annotate.config import AnnotateConfig
from pipeline.annotate.run import annotate
from pipeline.annotations.ledger import OutputStore
from pipeline.annotations.run_json import RunJson, RunState
from pipeline.lake import publish
from pipeline.lake.base import TableError, TableFailed
from pipeline.storage.uris import Uri
from testing.rounds_without_ray import rounds_without_ray
from testing.small_model import save_tiny
from tests.annotations.output_cases import CATEGORY_IDS, CATEGORY_NAMES, output_table


def config_of(tmp_path: Path, ids: range) -> AnnotateConfig:
    manifest = pa.table({"image_id": list(ids), "image_uri": [f"/{i}.jpg" for i in ids]})
    pq.write_table(manifest, tmp_path / "manifest.parquet")
    model = tmp_path / "model.safetensors"
    if not model.exists():
        save_tiny(model, zip(CATEGORY_IDS, CATEGORY_NAMES, strict=True))
    values = {
        "manifest": {"uri": str(tmp_path / "manifest.parquet")},
        "model": {"checkpoint": str(model)},
        "output": {"uri": str(tmp_path / "out"), "table": {"kind": "delta"}},
    }
    return AnnotateConfig.model_validate(values)


def run(config: AnnotateConfig) -> RunState:
    with rounds_without_ray(lambda ids: output_table(ids.to_pylist())):
        return annotate(config).state


def test_each_run_is_a_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = str(tmp_path / "out")
    for night in range(2):
        config = config_of(tmp_path, range(10 * (night + 1)))
        assert run(config) is RunState.FINISHED
        table = DeltaTable(out)
        assert (table.version(), table.count()) == (night, 10 * (night + 1))
        report = RunJson.read(Uri(out))
        assert report is not None
        assert table.history(1)[0]["maskfleet.run_id"] == report.run_id
    assert run(config) is RunState.NOTHING_TO_DO
    assert DeltaTable(out).version() == 1

    def out_of_reach(*args: object) -> None:
        raise TableFailed("no answer")

    config = config_of(tmp_path, range(40))
    with monkeypatch.context() as broken:
        broken.setattr("pipeline.lake.delta.DeltaOutput.commit", out_of_reach)
        with pytest.raises(TableFailed, match=r"no answer; all results are in .*out: .* publishes them"):
            run(config)
    assert run(config) is RunState.NOTHING_TO_DO
    assert (DeltaTable(out).version(), DeltaTable(out).count()) == (2, 40)
    publish.publish(Uri(out), publish.last_table(Uri(out)))
    assert DeltaTable(out).version() == 2

    write_deltalake(out, pa.table(DeltaTable(out).to_pyarrow_table()).slice(0, 1), mode="append")
    with pytest.raises(TableError, match="has files that are none of"):
        run(config_of(tmp_path, range(50)))


def test_a_table_that_is_wanted_later(tmp_path: Path) -> None:
    """Nothing is to do but to publish; and those who come later know of it."""
    config = config_of(tmp_path, range(10))
    without = config.model_copy(update={"output": config.output.model_copy(update={"table": None})})
    assert run(without) is RunState.FINISHED
    assert run(config) is RunState.NOTHING_TO_DO
    assert DeltaTable(tmp_path / "out").count() == 10
    assert OutputStore.as_last_run(config.output.uri).keep_replaced
    assert publish.last_table(config.output.uri) == config.output.table

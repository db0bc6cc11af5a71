"""What is compared does the same work, its CPU time is counted whole, and many GPUs are plain arithmetic."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks import scaling_model
from benchmarks.scaling_model import Costs, blocks_per_driver, need
from benchmarks.support.plain_ways import SCHEMA, Model, fetch, with_data_loader
from benchmarks.support.process_cpu import CpuTimes
from benchmarks.support.stub_replica import StubSettings, make_inputs, write_manifest
from pipeline.annotate.stages.encode import Encode
from pipeline.annotate.stages.guard import InProcessGuard
from pipeline.annotate.stages.segment import Segment
from tests.annotate.stages.test_segment import decoded_rows


def test_the_plain_ways_give_the_rows_of_the_stages(tmp_path: Path) -> None:
    files = make_inputs(tmp_path, (48, 64))
    Image.open(files[1]).resize((40, 30)).save(files[1])
    settings = StubSettings(batch_s=0.0, detections=5, log_dir=str(tmp_path))
    arguments = tmp_path / "model.safetensors", settings, 2
    model, guard = Model(*arguments), InProcessGuard()
    batch = fetch({"image_id": np.arange(3), "image_uri": np.array([str(f) for f in files[:3]])})
    plain = pa.Table.from_pylist(
        model.rows(batch["image_id"].tolist(), batch["image_uri"].tolist(), batch["image"]), SCHEMA
    )
    segment = Segment(model.predictor, 2, [0.0] * len(model.categories), guard, lambda counts: None)  # type: ignore[arg-type]
    decoded = decoded_rows(list(batch["image"]))
    for side in ("height", "width"):
        decoded = decoded.set_column(decoded.column_names.index(side), side, decoded[f"pixels_{side}"])
    ours = Encode(SCHEMA, model.categories, guard, lambda counts: None)(segment(decoded))
    compared = ["height", "width", "status", "detections"]
    assert plain.select(compared).equals(ours.select(compared))
    assert [len(found) for found in plain["detections"].to_pylist()] == [5, 5, 5]

    manifest = write_manifest(tmp_path, files[:3], 7)
    with_data_loader(manifest, tmp_path / "out", arguments, workers=1, rows_per_file=4)
    parts = [pq.ParquetFile(path).read() for path in sorted((tmp_path / "out").iterdir())]
    assert [len(part) for part in parts] == [4, 3]
    written = pa.concat_tables(parts)
    assert written["image_id"].to_pylist() == list(range(7))
    assert written.slice(3, 3).select(compared).equals(plain.select(compared))


def test_cpu_of_a_process_and_its_children() -> None:
    burn = "import time\nwhile time.process_time() < 0.4: pass\n"
    rest = burn + "time.sleep(60)"
    code = f"import subprocess, sys\n{burn}subprocess.Popen([sys.executable, '-c', {rest!r}])\ntime.sleep(60)"
    before = CpuTimes.of_tree(psutil.Process())
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        root = psutil.Process(process.pid)
        while sum(seconds for _, seconds in CpuTimes.of_tree(root).by_process.values()) < 0.7:
            assert process.poll() is None
        tree = CpuTimes.of_tree(root)
        assert [kind for kind, _ in tree.by_process.values()] == ["driver", "rest"]
        assert CpuTimes.of_tree(psutil.Process()).started_since(before) == 2
        assert sum(tree.since(tree).values()) == 0
        later = CpuTimes({key: (kind, seconds + 1) for key, (kind, seconds) in tree.by_process.items()})
        spent = later.since(CpuTimes(dict(list(tree.by_process.items())[:1])))
        assert {kind: seconds for kind, seconds in spent.items() if seconds} == {"driver": pytest.approx(1)}
        for each in [*root.children(), root]:
            each.kill()


def test_a_model_of_many_gpus() -> None:
    costs = Costs(driver=5.0, monitor=1.0, servers=2.0, workers=10.0)
    assert blocks_per_driver(costs) == pytest.approx(0.5 * 1000 / (5 * 0.7))
    assert blocks_per_driver(replace(costs, monitor=50.0)) == 10
    many = need(256, images_per_s=100, start_s=30, costs=costs)
    assert (many.blocks_per_s, many.drivers) == (400, 3)
    assert many.loop == pytest.approx(400 / 3 * 5 * 0.7 / 1000)
    assert (many.driver_cores, many.server_cores, many.worker_cores) == pytest.approx((2.4, 0.8, 4.0))
    assert many.lost_gpu_s == pytest.approx(256 / 3 * 30)


def test_its_coefficients_are_those_that_bench_driver_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = {"driver": 5, "task workers": 6, "replicas": 1, "monitor": 0.5, "raylet": 1, "gcs": 0.25, "rest": 0.1}
    (tmp_path / "figures").write_text("a table\n" + json.dumps({"before": {}, "now": figures}))
    assert scaling_model.main(["--figures", str(tmp_path / "figures"), "--gpus", "64"]) == 0
    assert "driver 5, monitor 0.5, servers 1.25, workers 7" in capsys.readouterr().out

"""Nodes that come and go under a run: real Ray nodes, Ray's own autoscaler, GPUs that are only numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from benchmarks.support.stub_replica import STUB_VARIABLE, StubSettings, make_inputs
from testing.ray_nodes import RayNodes, ray_nodes

ROOT = Path(__file__).resolve().parents[2]
BLOCK = 16
pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

_ASK = """
import sys, ray
from pipeline.annotate.config import ResourcesConfig
from pipeline.annotate.pool import choose_pool, gpus_waited_for
from pipeline.cluster.connect import connect
with connect(None), gpus_waited_for(config := ResourcesConfig(wait_for_gpus_s=90, actors=1)):
    print(choose_pool(config).max_actors, ray.cluster_resources()["GPU"])
"""


def test_the_autoscaler_is_asked_for_a_gpu(tmp_path: Path) -> None:
    with ray_nodes(tmp_path / "nodes.log", cpus=1, gpus=1, scaled=1) as nodes:
        environment = {**os.environ, "RAY_ADDRESS": nodes.address}
        said = subprocess.run(
            [sys.executable, "-c", _ASK], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
    assert said.stdout == "1 1.0\n", said.stderr


class Run:
    """The job on a cluster, with replicas that sleep."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], images: int) -> None:
        self._folder, self._process, self._images = folder, process, images

    @property
    def replicas(self) -> int:
        """Those that have had a batch, each that was started anew counted again."""
        return sum(log.stat().st_size > 0 for log in self._folder.glob("*.jsonl"))

    @property
    def files(self) -> int:
        return len(list(self._folder.glob("output/data/part-*")))

    def wait_for(self, happened: Callable[[], bool]) -> None:
        while not happened():
            assert self._process.poll() is None, self.log()
            time.sleep(0.2)

    def log(self) -> str:
        return (self._folder / "job.log").read_text(errors="replace")

    def end(self) -> dict[str, Any]:
        """run.json, after all went well."""
        assert self._process.wait() == 0, self.log()
        files = [pq.ParquetFile(file) for file in self._folder.glob("output/data/part-*")]
        ids = [image_id for file in files for image_id in file.read(["image_id"])["image_id"].to_pylist()]
        assert sorted(ids) == list(range(self._images))
        report: dict[str, Any] = json.loads((self._folder / "output" / "run.json").read_bytes())
        assert report["images"] == {"manifest": self._images, "annotated": self._images, "failed": 0, "deleted": 0}
        return report


@contextmanager
def running(folder: Path, images: int, resources: dict[str, Any], **cluster: int) -> Iterator[tuple[RayNodes, Run]]:
    """A cluster, and a run on it."""
    pictures = make_inputs(folder, (96, 128))
    uris = [str(pictures[i % len(pictures)]) for i in range(images)]
    pq.write_table(pa.table({"image_id": range(images), "image_uri": uris}), folder / "manifest.parquet")
    config = {
        "manifest": {"uri": str(folder / "manifest.parquet")},
        "model": {"checkpoint": str(folder / "model.safetensors"), "batch_size": 8},
        "resources": {"images_per_block": BLOCK, "fetch_cpus_per_task": 0.5, **resources},
        "output": {"uri": str(folder / "output"), "images_per_file": 64, "write_interval_s": 5},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    settings = StubSettings(batch_s=0.4, detections=2, log_dir=str(folder))
    stub = {STUB_VARIABLE: json.dumps(asdict(settings)), "PYTHONPATH": str(ROOT)}
    with ray_nodes(folder / "nodes.log", environment=stub, **cluster) as nodes, open(folder / "job.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.support.stub_replica", "--config", str(folder / "config.yaml")],
            cwd=ROOT,
            env={**os.environ, **stub, "RAY_ADDRESS": nodes.address, "RAY_USAGE_STATS_ENABLED": "0"},
            stdout=log,
            stderr=log,
        )
        try:
            yield nodes, Run(folder, process, images)
        finally:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_from_none_to_three_to_one_to_three(tmp_path: Path) -> None:
    # Minutes of work: the next nodes must come before it is done.
    with running(tmp_path, 6400, {"actors": 3, "wait_for_gpus_s": 120}, cpus=1, gpus=1, scaled=3) as (nodes, run):
        run.wait_for(lambda: run.replicas == 3 and run.files > 1)
        nodes.preempt()
        nodes.preempt()
        nodes.add(cpus=1, gpus=1)
        nodes.add(cpus=1, gpus=1)
        run.wait_for(lambda: run.replicas == 5)
        report = run.end()
    assert report["cluster"]["gpus"] >= 1
    assert "waiting for GPUs: 0 of 3 replicas have room" in run.log()


@pytest.mark.slow
def test_a_node_goes_for_good(tmp_path: Path) -> None:
    with running(tmp_path, 1600, {}, num_nodes=2, cpus=1, gpus=1) as (nodes, run):
        run.wait_for(lambda: run.replicas == 2 and run.files > 1)  # all GPUs, without a setting
        nodes.remove(0)
        report = run.end()
    assert (report["cluster"]["gpus"], report["cluster"]["at_end"]["gpus"]) == (2, 1)

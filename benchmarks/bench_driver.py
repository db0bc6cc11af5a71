"""What Ray and the books cost, in CPU time a block of images: ``python -m benchmarks.bench_driver``.

The job's own rounds, graph and monitor, with the stages of `benchmarks.support.trivial_stages` in the place of those
that work; and the graph and the monitor as they were before, in the same Ray session. Measured is the CPU time of each
process of that session while blocks flow, after a round that starts the workers. Processes that start in the meantime
are left out: what they cost is imports. The last line with ``--json`` is an object.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import DataContext, Dataset, TaskPoolStrategy

import pipeline.annotate.replica
from benchmarks.support import trivial_stages
from benchmarks.support.machine import describe
from benchmarks.support.process_cpu import KINDS, CpuTimes
from pipeline.annotate import graph, rounds
from pipeline.annotate.config import AnnotateConfig
from pipeline.annotate.manifest.open import open_manifest
from pipeline.annotate.monitor import start_monitor
from pipeline.annotate.pending.antijoin import Pending, find_pending
from pipeline.annotate.pool import LIGHT_CPUS, Pool
from pipeline.cluster.quiet import quiet
from pipeline.model.settings import TestSettings
from pipeline.storage.uris import Uri

_ROWS_PER_READ_TASK = 4096
WARM_UP, END = 0.35, 0.95  # of the blocks: measured is what comes between them


@dataclass
class Window:
    """What happened between the first and the last block that count."""

    blocks: int
    seconds: float = 0.0
    cpu_s: dict[str, float] = field(default_factory=dict)
    started: int = 0

    def open(self) -> None:
        """Blocks count from here on."""
        self._before, self._began = CpuTimes.of_tree(psutil.Process()), time.monotonic()

    def close(self) -> None:
        """They do not any more."""
        self.seconds = time.monotonic() - self._began
        now = CpuTimes.of_tree(psutil.Process())
        self.cpu_s, self.started = now.since(self._before), now.started_since(self._before)

    def figures(self) -> dict[str, Any]:
        """CPU ms a block by kind of process, and blocks a second."""
        each = {kind: round(1e3 * self.cpu_s[kind] / self.blocks, 2) for kind in KINDS}
        total = round(1e3 * sum(self.cpu_s.values()) / self.blocks, 2)
        rate = round(self.blocks / self.seconds, 1)
        return {**each, "all": total, "blocks_per_s": rate, "blocks": self.blocks, "processes_started": self.started}


class Lock:
    """Takes the place of the output's lock, which costs a look at a clock."""

    def check(self) -> None:
        """It is held."""


def build_before(parts: graph.RunParts, pending: Pending) -> Dataset:
    """A lazy dataset of encoded blocks, by the graph as it was: read, repartition, fetch, segment, encode, each of them
    an operator, and blocks of rows that Ray Data joins and cuts.
    """
    quiet(DataContext.get_current()).target_max_block_size = 128 << 20
    config, pool, client = parts.config, parts.pool, trivial_stages.ClientBefore(parts.monitor)
    block = config.images_per_block
    read = functools.partial(trivial_stages.read_before, manifest=parts.manifest, rows_per_block=block)
    fetch = trivial_stages.FetchBefore(None, None, client, client.report).decode  # type: ignore[arg-type]
    encode: Any = trivial_stages.Encode(None, None, client, client.report)  # type: ignore[arg-type]
    tables: dict[str, Any] = {"batch_format": "pyarrow", "zero_copy_batch": True}
    return (
        ray.data.from_arrow(list(_unit_tables(pending)))
        .map_batches(read, batch_size=None, num_cpus=LIGHT_CPUS, **tables)
        .repartition(target_num_rows_per_block=block)
        .map_batches(
            functools.partial(trivial_stages.call, fetch), batch_size=block, num_cpus=pool.fetch_cpus, **tables
        )
        .map_batches(
            trivial_stages.SegmentBefore,
            fn_constructor_args=(None, config.model, parts.settings, pool, client),
            compute=pool.strategy(),
            batch_size=block,
            num_gpus=pool.gpus,
            num_cpus=pool.cpus,
            **tables,
        )
        .map_batches(
            functools.partial(trivial_stages.call, encode),
            batch_size=None,
            compute=TaskPoolStrategy(size=2 * pool.max_actors),
            num_cpus=LIGHT_CPUS,
            **tables,
        )
    )


def _unit_tables(pending: Pending) -> Iterator[pa.Table]:
    for unit, rows in pending.iter_units():
        for start in range(0, len(rows), _ROWS_PER_READ_TASK):
            part = pa.array([rows[start : start + _ROWS_PER_READ_TASK]], pa.list_(pa.int64()))
            place = {"file": [unit.file.secret_text], "row_group": [unit.row_group], "num_rows": [unit.num_rows]}
            yield pa.table({**place, "rows": part})


def measure(parts: graph.RunParts, pending: Any, total: int, before: bool) -> dict[str, Any]:
    """A round over all blocks; figures of its middle."""
    window = Window(round(END * total) - round(WARM_UP * total))
    seen = 0

    class Writes(graph.Writes):
        def __init__(self, parts: graph.RunParts, store: Any) -> None:
            super().__init__(parts, store)
            if before:
                client = trivial_stages.ClientBefore(parts.monitor)
                stage = ray.put(trivial_stages.Write(None, None, 0, None, client.report))
                task = ray.remote(trivial_stages.write_before).options(num_cpus=LIGHT_CPUS, name="write")
                write = SimpleNamespace(remote=functools.partial(task.remote, stage))
                self._new_writer = lambda: SimpleNamespace(write=write)

        def add(self, block: graph.Block) -> None:
            nonlocal seen
            super().add(block)
            seen += 1
            if seen == round(WARM_UP * total):
                window.open()
            if seen == round(END * total):
                window.close()

    rounds.Writes = Writes  # type: ignore[misc]
    rounds.build = build_before if before else graph.build
    with ExitStack() as work:
        rounds.Rounds(parts, Lock(), time.monotonic()).run(pending, work, None)  # type: ignore[arg-type]
    return window.figures()


def make_parts(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """All of `RunParts` but the monitor."""
    ids = pa.array(range(args.blocks * args.images_per_block), pa.int64())
    uris = pa.array([f"s3://bucket/{i:012d}.jpg" for i in range(len(ids))])
    pq.write_table(pa.table({"image_id": ids, "image_uri": uris}), folder / "manifest.parquet")
    config = make_config(str(folder / "manifest.parquet"), str(folder / "out"), args.images_per_block)
    values: dict[str, Any] = {f.name: None for f in fields(graph.RunParts)}
    manifest = open_manifest(config.manifest, Uri(str(folder / "scratch")))
    pool = Pool(args.actors, args.actors, 1.0, 0.0, 0.99, args.actors)
    named: Any = SimpleNamespace(run_id="bench_driver")
    values |= {"config": config, "manifest": manifest, "settings": TestSettings(), "pool": pool, "identity": named}
    values["checkpoint_bytes"] = 0
    return values


def make_config(manifest: str, output: str, images_per_block: int) -> AnnotateConfig:
    """Of a run in which no model is loaded and nothing is written."""
    return AnnotateConfig.model_validate(
        {
            "manifest": {"uri": manifest},
            "model": {"checkpoint": "none.safetensors", "batch_size": images_per_block // 4},
            "resources": {"images_per_block": images_per_block},
            "output": {"uri": output},
        }
    )


def start_ray(args: argparse.Namespace) -> None:
    """Ray in this process, and stages that do nothing in the graph of today."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    here = str(Path(__file__).resolve().parents[1])
    python_path = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    ray.init(
        num_cpus=args.cpus,
        num_gpus=args.actors,
        object_store_memory=512 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": {"PYTHONPATH": python_path}},
    )
    graph.FetchDecode = trivial_stages.Fetch  # type: ignore[misc,assignment]
    graph.Encode, graph.Write = trivial_stages.Encode, trivial_stages.Write  # type: ignore[misc,assignment]
    pipeline.annotate.replica.SegmentActor = trivial_stages.Segment  # type: ignore[misc,assignment]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=1600, help="of each graph")
    parser.add_argument("--warm-up", type=int, default=200, help="blocks of the round before")
    parser.add_argument("--images-per-block", type=int, default=64)
    parser.add_argument("--actors", type=int, default=2, help="replicas; GPUs are pretended")
    parser.add_argument("--cpus", type=int, default=2, help="that Ray may schedule")
    parser.add_argument("--graphs", nargs="+", choices=["before", "now"], default=["before", "now"])
    parser.add_argument("--json", action="store_true", help="the figures as the last line")
    args = parser.parse_args()
    print(f"{describe()}, ray {ray.__version__}")
    print(f"{args.actors} replicas, {args.blocks} blocks of {args.images_per_block} images; CPU ms a block\n")
    columns = [*KINDS, "all", "blocks_per_s", "processes_started", "load"]
    print(f"| graph | {' | '.join(columns)} |\n|--|" + "--:|" * len(columns), flush=True)
    results = {}
    with tempfile.TemporaryDirectory(prefix="bench-driver-") as name:
        values = make_parts(Path(name), args)
        pending = find_pending(values["manifest"], [])
        ids = pa.array(range(args.warm_up * args.images_per_block, pending.num_rows), pa.int64())
        few = find_pending(values["manifest"], [ids])
        start_ray(args)
        for graph_name in args.graphs:
            before = graph_name == "before"
            monitor_before = ray.remote(trivial_stages.MonitorBefore).options(num_cpus=0)
            values["monitor"] = monitor_before.remote() if before else start_monitor()
            parts = graph.RunParts(**values)
            measure(parts, few, args.warm_up, before)
            gc.collect()  # the pool's actors live as long as somebody knows of them
            figures = measure(parts, pending, args.blocks, before)
            results[graph_name] = figures | {"load": round(os.getloadavg()[0], 1)}
            shown = " | ".join(f"{results[graph_name][column]:g}" for column in columns)
            print(f"| {graph_name} | {shown} |", flush=True)
            ray.kill(values.pop("monitor"))
            gc.collect()
            time.sleep(2)
        ray.shutdown()
    if args.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()

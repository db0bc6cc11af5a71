"""What a replica sets in its process before the model is there, and what it tells of its time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from ray.data import ActorPoolStrategy, DataContext

import pipeline.annotate.monitor
import pipeline.annotate.replica
from pipeline.annotate.config import ModelConfig
from pipeline.annotate.monitor import MonitorClient, start_monitor
from pipeline.annotate.progress import Snapshot
from pipeline.annotate.replica import SegmentActor, use_expandable_segments
from pipeline.cluster.quiet import quiet
from pipeline.model.detections import Detections
from pipeline.tables.packed import packed, unpacked
from tests.annotate.stages.test_segment import decoded_rows

NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


@pytest.mark.parametrize("own", [{}, {NAMES[0]: "max_split_size_mb:64"}, {NAMES[1]: "max_split_size_mb:64"}], ids=str)
def test_gpu_memory_is_taken_as_the_user_says(own: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        # Set first, so that it is taken back also where there was none.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    use_expandable_segments()
    assert {name: os.environ[name] for name in NAMES if name in os.environ} == (
        own or {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    )


def test_pytorch_reads_how_to_take_memory_after_it_was_imported() -> None:
    """Every worker has imported it before it becomes a replica."""
    code = (
        "import os, torch\n"
        "os.environ['PYTORCH_ALLOC_CONF'] = 'expandable_segments:True'\n"
        "print(torch._C._accelerator_getAllocatorSettings())\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "expandable_segments:True", done.stderr


BLOCK, BLOCKS, FATAL = 4, 5, 2
LOADING_S, WORK_S = 0.5, 0.8


class Mortal:
    """A model that kills its process once, in the middle of a block."""

    categories = ()
    precision = "fp32"

    def __init__(self, has_killed: Path) -> None:
        self.has_killed = has_killed

    def attempt(self, images: Sequence[np.ndarray], _: int, sizes: Sequence[tuple[int, int]], __: Any) -> list[Any]:
        time.sleep(0.1)
        if images[0][0, 0, 0] >= FATAL * BLOCK and not self.has_killed.exists():
            self.has_killed.touch()
            time.sleep(WORK_S)
            os.kill(os.getpid(), signal.SIGKILL)
        empty = np.zeros(0, np.float32)
        return [
            Detections(empty.reshape(0, 4), empty, empty.astype(np.int64), empty.reshape(0, 1, 1), s) for s in sizes
        ]


class MortalReplica(SegmentActor):
    """The replica as it is, but for its model."""

    def __init__(self, has_killed: Path, *args: Any) -> None:
        def load_model(*_: Any, **__: Any) -> Mortal:
            time.sleep(LOADING_S)
            return Mortal(has_killed)

        pipeline.annotate.replica.load_model = load_model  # type: ignore[assignment]
        pipeline.annotate.monitor.HEARTBEAT_S = 0.2
        super().__init__(*args)


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_cluster")
def test_the_time_of_a_replica_that_dies_and_of_the_one_in_its_place(tmp_path: Path) -> None:
    quiet(DataContext.get_current())
    handle = start_monitor()
    rows = decoded_rows([np.full((2, 2, 3), i, np.uint8) for i in range(BLOCKS * BLOCK)])
    config = ModelConfig.model_validate({"checkpoint": "/m.safetensors", "batch_size": BLOCK})
    pool: Any = SimpleNamespace(gpus=0.0, cpus=0.5)
    out = ray.data.from_arrow([packed(rows[i : i + BLOCK]) for i in range(0, len(rows), BLOCK)]).map_batches(
        MortalReplica,
        fn_constructor_args=(tmp_path / "killed", ray.put(None), config, None, pool, MonitorClient(handle)),
        compute=ActorPoolStrategy(size=1, max_concurrent_calls_per_actor=2, max_tasks_in_flight_per_actor=4),
        batch_size=1,
        num_cpus=pool.cpus,
        batch_format="pyarrow",
    )
    found = unpacked(pa.concat_tables(ray.get(out.to_arrow_refs())))
    assert sorted(found["image_id"].to_pylist()) == rows["image_id"].to_pylist()
    assert found["error_code"].null_count == len(rows)
    del out
    give_up_at = time.monotonic() + 20
    snapshot: Snapshot = ray.get(handle.snapshot.remote())
    while snapshot.starting and time.monotonic() < give_up_at:  # until Ray Data has let it go
        time.sleep(0.05)
        snapshot = ray.get(handle.snapshot.remote())
    assert (snapshot.starting, snapshot.ready) == (0, 0)
    [(name, used)] = snapshot.by_accelerator.items()
    assert (name, used.images, used.gpus.held) == ("CPU", len(rows), 0.0)
    seconds = used.replicas
    assert seconds.held == pytest.approx(seconds.busy + seconds.idle + seconds.lost)
    assert LOADING_S + WORK_S / 2 < seconds.lost < LOADING_S + 2 * WORK_S
    assert seconds.idle >= LOADING_S  # of the first one
    # Four blocks, and the one that was lost again row by row.
    assert 0.1 * (BLOCKS - 1 + BLOCK) <= seconds.busy <= used.ready_s

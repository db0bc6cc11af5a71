"""Object store of a run whose decoded pictures are many times larger: ``python -m benchmarks.bench_object_store``.

The annotate job as it is, with the stub of `benchmarks.support.stub_replica` as a model that is slower than decoding.
The store's books are read all the time, straight from Ray's node manager (the counters behind `ray memory`; there
is no public call for them). Objects that did not fit would show as spilled or fallback bytes.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._private import internal_api

from benchmarks.support.machine import describe
from benchmarks.support.stub_replica import StubSettings, make_inputs, run_job, start_ray

MIB = 1 << 20


@dataclass
class StorePeak:
    """What was seen of the store; bytes, cumulative for what left it."""

    used: int = 0
    created: int = 0
    spilled: int = 0
    fallback: int = 0
    samples: int = 0

    def add(self, stats: Any) -> None:
        """One more look."""
        self.used = max(self.used, stats.object_store_bytes_used)
        self.created = max(self.created, stats.cumulative_created_bytes)
        self.spilled = max(self.spilled, stats.spilled_bytes_total)
        self.fallback = max(self.fallback, stats.object_store_bytes_fallback)
        self.samples += 1


def store_stats() -> Any:
    """The counters of the one node's store."""
    node = next(node for node in ray.nodes() if node["Alive"])
    address, port = node["NodeManagerAddress"], node["NodeManagerPort"]
    return internal_api.node_stats(address, port, include_memory_info=False).store_stats


@contextmanager
def sampled(interval_s: float) -> Iterator[StorePeak]:
    """Look every ``interval_s`` for the duration."""
    peak, stop = StorePeak(), threading.Event()

    def loop() -> None:
        while not stop.wait(interval_s):
            peak.add(store_stats())

    thread = threading.Thread(target=loop, name="store", daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()
        peak.add(store_stats())


def measure(folder: Path, times_store: float, block: int, args: argparse.Namespace) -> str:
    """One run in a Ray of its own; its row of the table.

    Raises:
        RuntimeError: something was spilled, images were lost, or the pixels did not cross the store.
    """
    picture_bytes = 3 * args.size[0] * args.size[1]
    num_images = round(times_store * args.store_mib * MIB / picture_bytes)
    log_dir = folder / "log"
    log_dir.mkdir(exist_ok=True)
    start_ray(
        StubSettings(args.batch_ms / 1e3, args.detections, str(log_dir)),
        num_cpus=args.cpus,
        num_gpus=1,
        object_store_memory=args.store_mib * MIB,
    )
    try:
        with sampled(args.interval_ms / 1e3) as peak:
            report = run_job(
                folder, args.files, num_images, args.batch_size, actors=1, gpus_per_actor=1, images_per_block=block
            )
    finally:
        ray.shutdown()
    pixels = num_images * picture_bytes
    if peak.spilled or peak.fallback or peak.created < pixels or report.images.annotated != num_images:
        raise RuntimeError(f"{peak}, {report.images} of {num_images} images, {pixels} bytes of pixels")
    return (
        f"| {num_images} | {pixels / MIB:.0f} | {times_store:g}x | {block} | {peak.used / MIB:.1f} | "
        f"{peak.used / (args.store_mib * MIB):.0%} | {peak.spilled / MIB:.0f} | {peak.fallback / MIB:.0f} | "
        f"{peak.created / MIB:.0f} | {peak.samples} | {report.this_run.images_per_second:.0f} | "
        f"{report.this_run.replica_busy_share:.0%} | {os.getloadavg()[0]:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store-mib", type=int, default=100, help="Ray takes no less than 75")
    parser.add_argument("--times-store", type=float, nargs="+", default=[5, 20], help="decoded pictures / store")
    parser.add_argument("--blocks", type=int, nargs="+", default=[16], help="images per block")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--batch-ms", type=float, default=160.0)
    parser.add_argument("--detections", type=int, default=20, help="of each image")
    parser.add_argument("--size", type=int, nargs=2, default=[480, 640], metavar=("H", "W"))
    parser.add_argument("--interval-ms", type=float, default=50.0, help="between two looks at the store")
    parser.add_argument("--cpus", type=int, default=len(os.sched_getaffinity(0)), help="that Ray may schedule")
    args = parser.parse_args()
    print(f"{describe()}, ray {ray.__version__}")
    print(f"object store {args.store_mib} MiB, pictures {args.size[0]}x{args.size[1]}, ", end="")
    print(f"{args.batch_size} images per {args.batch_ms:g} ms\n")
    print(
        "| images | pixels MiB | of the store | images per block | peak MiB | peak share | spilled MiB | "
        "fallback MiB | created MiB | looks | img/s | busy | load |\n|" + "--:|" * 13,
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="bench-store-") as name:
        args.files = make_inputs(Path(name), tuple(args.size))
        for block in args.blocks:
            for times_store in args.times_store:
                print(measure(Path(name), times_store, block, args), flush=True)


if __name__ == "__main__":
    main()

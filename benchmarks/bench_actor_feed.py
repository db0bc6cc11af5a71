"""How much of their ideal throughput the graph lets the replicas reach: ``python -m benchmarks.bench_actor_feed``.

The annotate job as it is, with the model of fixed duration of `benchmarks.support.stub_replica`, which notes when each
batch began and ended.

Two shares, in the steady state (all replicas warm, none dry yet): *throughput* is the images done against what
replicas that never wait would have done; *busy* is the time inside the model, oversleeping included.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import ray

from benchmarks.support.machine import describe
from benchmarks.support.stub_replica import StubSettings, make_inputs, run_job, start_ray

WARM_UP_S = 8.0  # from a replica's first batch to its steady state


def steady_state(log_dir: Path, batch_s: float, batch_size: int) -> tuple[float, float, float]:
    """Throughput share, busy share and seconds of the steady state; deletes the logs it reads."""
    replicas = []
    for path in log_dir.glob("*.jsonl"):
        batches = np.array([json.loads(line) for line in path.read_text().splitlines()])
        path.unlink()
        if len(batches):
            replicas.append(batches)
    start = max(batches[0, 0] for batches in replicas) + WARM_UP_S
    end = min(batches[-1, 1] for batches in replicas)
    window = (end - start) * len(replicas)
    ideal = busy = 0.0
    for began, ended, count in np.concatenate(replicas):
        inside = max(0.0, min(ended, end) - max(began, start))
        busy += inside
        ideal += inside / (ended - began) * count / batch_size * batch_s
    return ideal / window, busy / window, end - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batches-per-block", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--batch-ms", type=float, default=80.0)
    parser.add_argument("--detections", type=int, default=20, help="of each image")
    parser.add_argument("--size", type=int, nargs=2, default=[96, 128], metavar=("H", "W"), help="of the JPEGs")
    parser.add_argument("--seconds", type=float, default=40.0, help="of ideal work in each run, warm-up and all")
    parser.add_argument("--cpus", type=int, default=len(os.sched_getaffinity(0)), help="that Ray may schedule")
    args = parser.parse_args()
    batch_s = args.batch_ms / 1e3
    print(f"{describe()}, ray {ray.__version__}")
    print(f"{args.batch_size} images per {args.batch_ms:g} ms, {args.size[0]}x{args.size[1]} JPEGs, ", end="")
    print(f"{args.detections} detections an image\n")
    print("| actors | images per block | ideal img/s | throughput share | busy share | steady s | run.json | load |")
    print("|--:|--:|--:|--:|--:|--:|--:|--:|", flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-feed-") as name:
        folder, log_dir = Path(name), Path(name, "log")
        log_dir.mkdir()
        files = make_inputs(folder, tuple(args.size))
        settings = StubSettings(batch_s, args.detections, str(log_dir))
        start_ray(settings, num_cpus=args.cpus, num_gpus=max(args.actors), object_store_memory=512 << 20)
        run_job(folder, files, 16 * args.batch_size, args.batch_size, gpus_per_actor=1)  # starts the worker processes
        for path in log_dir.glob("*.jsonl"):
            path.unlink()
        for actors in args.actors:
            for batches in args.batches_per_block:
                ideal = actors * args.batch_size / batch_s
                block = batches * args.batch_size
                report = run_job(
                    folder,
                    files,
                    round(ideal * args.seconds),
                    args.batch_size,
                    actors=actors,
                    gpus_per_actor=1,
                    images_per_block=block,
                )
                share, busy, seconds = steady_state(log_dir, batch_s, args.batch_size)
                own = report.this_run.replica_busy_share
                line = f"| {actors} | {block} | {ideal:.0f} | {share:.1%} | {busy:.1%} | {seconds:.0f} | {own:.1%} "
                print(f"{line}| {os.getloadavg()[0]:.1f} |", flush=True)
        ray.shutdown()


if __name__ == "__main__":
    main()

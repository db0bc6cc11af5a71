"""What a number of GPUs needs of drivers and CPUs, by arithmetic: ``python -m benchmarks.scaling_model``.

A model and no measurement. Its coefficients are CPU milliseconds a block of 64 images; ``--figures`` takes what
``python -m benchmarks.bench_driver --json`` has measured on your machine. It takes costs to grow with the blocks alone,
and the thread that schedules to be the limit: above half of a core replicas would wait for it. GPUs are as fast as
``--images`` says, and all alike. Other nodes, their network and Ray's head at hundreds of nodes are not in it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

BLOCK = 64
LOOP_SHARE = 0.7  # of the driver's CPU time; the rest are threads that receive and send
MAX_LOOP_SHARE = 0.5


@dataclass(frozen=True)
class Costs:
    """CPU milliseconds a block. The defaults were measured on two cores of an AMD EPYC.

    Attributes:
        driver: the driver's process, all threads.
        monitor: the run's monitor.
        servers: Ray's own, on all nodes together.
        workers: what Ray and the monitor's client take in tasks and replicas, beside the stages' work.
    """

    driver: float = 3.9
    monitor: float = 1.6
    servers: float = 0.6
    workers: float = 9.1

    @classmethod
    def measured(cls, figures: Mapping[str, float]) -> Costs:
        """Of a graph in the last line of ``bench_driver --json``."""
        return cls(
            driver=figures["driver"],
            monitor=figures["monitor"],
            servers=figures["raylet"] + figures["gcs"],
            workers=figures["task workers"] + figures["replicas"],
        )


@dataclass(frozen=True)
class Need:
    """What a number of GPUs needs.

    Attributes:
        blocks_per_s: in all.
        drivers: or lanes; each with a monitor.
        loop: share of a core that each one's scheduling thread takes.
        monitor: the same of each monitor.
        driver_cores, server_cores, worker_cores: CPU cores in all, the drivers' with their monitors.
        lost_gpu_s: GPU-seconds that the death of one driver costs: its replicas start anew.
    """

    blocks_per_s: float
    drivers: int
    loop: float
    monitor: float
    driver_cores: float
    server_cores: float
    worker_cores: float
    lost_gpu_s: float


def blocks_per_driver(costs: Costs) -> float:
    """The most blocks a second that one driver and its monitor carry while replicas do not wait for them."""
    return MAX_LOOP_SHARE * 1e3 / max(costs.driver * LOOP_SHARE, costs.monitor)


def need(gpus: int, images_per_s: float, start_s: float, costs: Costs) -> Need:
    """For so many GPUs.

    Args:
        images_per_s: of each GPU.
        start_s: from the start of a replica to its first batch.
    """
    blocks = gpus * images_per_s / BLOCK
    drivers = math.ceil(blocks / blocks_per_driver(costs))
    return Need(
        blocks_per_s=blocks,
        drivers=drivers,
        loop=blocks / drivers * costs.driver * LOOP_SHARE / 1e3,
        monitor=blocks / drivers * costs.monitor / 1e3,
        driver_cores=blocks * (costs.driver + costs.monitor) / 1e3,
        server_cores=blocks * costs.servers / 1e3,
        worker_cores=blocks * costs.workers / 1e3,
        lost_gpu_s=gpus / drivers * start_s,
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 16, 64, 128, 256, 512])
    parser.add_argument("--images", type=float, default=100.0, help="a second, of each GPU")
    parser.add_argument("--start-s", type=float, default=60.0, help="from a replica's start to its first batch")
    parser.add_argument("--figures", type=Path, help="a file of what bench_driver --json printed")
    args = parser.parse_args(argv)
    costs = Costs()
    if args.figures:
        costs = Costs.measured(json.loads(args.figures.read_text().splitlines()[-1])["now"])
    most = blocks_per_driver(costs)
    parts = ", ".join(f"{name} {ms:g}" for name, ms in asdict(costs).items())
    print(f"A model: {args.images:g} images/s a GPU; CPU ms a block of {BLOCK}: {parts}.")
    print(f"One driver: {most:.0f} blocks/s, {most * BLOCK / args.images:.0f} GPUs.\n")
    print("| GPUs | blocks/s | drivers | a core's share of each loop | of each monitor | ", end="")
    print("cores for drivers | for Ray's servers | for Ray in workers | a driver's death, GPU-s |\n|" + "--:|" * 9)
    for gpus in args.gpus:
        n = need(gpus, args.images, args.start_s, costs)
        print(f"| {gpus} | {n.blocks_per_s:.0f} | {n.drivers} | {n.loop:.0%} | {n.monitor:.0%} | ", end="")
        print(f"{n.driver_cores:.1f} | {n.server_cores:.1f} | {n.worker_cores:.1f} | {n.lost_gpu_s:.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())

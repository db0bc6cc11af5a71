"""What the device does while a batch runs: which kernels, how much of the time none, and whether the host waits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.inputs import forward_of
from benchmarks.support.timing import now

_ROUNDS = 5
_SHOWN = 15


def trace(bench: Bench) -> None:
    """First the waits: it is an error to wait for the device in the forward, and the line that does is in the error."""
    for precision in ("fp32", "bf16"):
        forward = forward_of(bench.predictor(precision, cuda_graphs=False), bench, 2)
        forward()
        torch.cuda.set_sync_debug_mode("error")
        try:
            forward()
        except RuntimeError as error:
            bench.report(f"waits in the forward, {precision}", str(error))
        else:
            bench.report(f"waits in the forward, {precision}", 0)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for name, graphs in (("bf16", False), ("bf16 graphs", True)):
        predictor, batch = bench.predictor("bf16", cuda_graphs=graphs), bench.batches[0]
        pictures = bench.pictures(batch)
        for _ in range(3):
            predictor.predict(pictures, batch)
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            start = now(bench.device)
            for _ in range(_ROUNDS):
                predictor.predict(pictures, batch)
            wall_s = now(bench.device) - start
        report_trace(bench, f"{name}, batch {batch}", profiler.events() or [], wall_s, _ROUNDS)


def report_trace(bench: Bench, name: str, events: Sequence[Any], wall_s: float, batches: int) -> None:
    """What a profiler's events say of so many batches, which took so long."""
    work = [event for event in events if event.device_type == DeviceType.CUDA]
    busy_us = _union_us([(event.time_range.start, event.time_range.end) for event in work])
    copies = sum(event.name.startswith(("Memcpy", "Memset")) for event in work)
    bench.report(
        name,
        {
            "kernels a batch": round((len(work) - copies) / batches, 1),
            "copies a batch": round(copies / batches, 1),
            "wall ms a batch": round(wall_s / batches * 1e3, 2),
            "idle share": round(1 - busy_us / 1e6 / wall_s, 3),
        },
    )
    times: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in work:
        times[event.name] += event.time_range.elapsed_us()
        calls[event.name] += 1
    for rank, (kernel, us) in enumerate(times.most_common(_SHOWN), start=1):
        cells = {"share": round(us / 1e6 / wall_s, 3), "calls": calls[kernel] / batches, "name": kernel[:120]}
        bench.report(f"{name}, kernel {rank}", cells)


def _union_us(ranges: list[tuple[float, float]]) -> float:
    """How much of the time at least one is on."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(ranges):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total

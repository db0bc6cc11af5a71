"""What goes wrong on devices: memory that does not suffice, a context that is lost, numbers that overflow."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.record import ROOT
from benchmarks.support.timing import PARTS, now

_FP16_MAX = 65504.0
_SCENES = 4


def memory(bench: Bench) -> None:
    """Peaks by batch; then the device is given too little for a batch, which has to be done in parts."""
    predictor = bench.predictor("bf16")
    bench.report("weights, GiB", round(torch.cuda.memory_allocated(bench.device) / 2**30, 2))
    peaks = {}
    for batch in sorted(bench.batches):
        bench.free()
        predictor.predict(bench.pictures(batch), batch)
        peaks[batch] = torch.cuda.max_memory_allocated(bench.device)
        bench.report(f"peak at batch {batch}, GiB", bench.peak_gib())
    del predictor
    bench.free()
    few, many = sorted(peaks)[-2:]
    total = torch.cuda.get_device_properties(bench.device).total_memory
    # Room for more than the smaller batch needs, counting what the allocator loses between blocks.
    torch.cuda.set_per_process_memory_fraction(min(1.0, (peaks[few] + peaks[many]) / 2 / total), bench.device)
    predictor, pictures = bench.predictor("bf16"), bench.pictures(many)
    for attempt in ("a batch that does not fit", "the same again"):
        start = now(bench.device)
        outcomes = predictor.attempt(pictures, many)
        failed = [f"{type(outcome).__name__}" for outcome in outcomes if isinstance(outcome, Exception)]
        seconds = round(now(bench.device) - start, 3)
        bench.report(attempt, {"pictures": many, "failed": failed, "seconds": seconds})


def lost_device(bench: Bench) -> None:
    """An index out of range poisons the context, as any bad read in a kernel does."""
    from pipeline.model.device import DeviceLost

    predictor = Bench(bench.device, True, bench.out).predictor("fp32")
    picture = Bench(bench.device, True, bench.out).pictures(1)
    bench.report("detections before", len(predictor.predict(picture)[0]))
    try:
        torch.zeros(4, device=bench.device)[torch.tensor([7], device=bench.device)].cpu()
    except RuntimeError as error:
        bench.report("the context is lost by", f"{type(error).__name__}: {str(error).splitlines()[0]}")
    try:
        predictor.attempt([*picture, *picture])
    except DeviceLost as error:
        bench.report("known as lost", True)
        bench.report("in the words", str(error).splitlines()[0])
    else:
        raise AssertionError("a batch on a lost device raised no DeviceLost")
    os._exit(0)  # what holds memory of a lost context cannot be taken down in order


def overflow(bench: Bench) -> None:
    """On the demo's model and scenes: trained weights, but of a small detector. float16 ends at 65504."""
    from pipeline.model.predictor import load_model
    from pipeline.synthetic.scenes import render_scene

    predictor = load_model(ROOT / "jobs" / "demo_model.safetensors", bench.device)
    largest: dict[str, Tensor] = {}

    def watch(part: str) -> Any:
        def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point() and output.numel():
                known = largest.get(part, torch.zeros((), device=output.device))
                largest[part] = torch.maximum(known, output.abs().amax().float())

        return hook

    for part in PARTS:
        for module in getattr(predictor.detector, part).modules():
            module.register_forward_hook(watch(part))
    predictor.predict([render_scene(seed).pixels for seed in range(1 if bench.small else _SCENES)])
    for part, value in largest.items():
        bench.report(part, {"largest": round(float(value), 1), "of float16's": float(value) / _FP16_MAX})

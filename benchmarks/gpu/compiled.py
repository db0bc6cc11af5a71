"""What compiling costs and gives: in a process without a cache, and in one that finds the first one's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.record import ROOT
from benchmarks.support.timing import now, timed

if TYPE_CHECKING:
    from pipeline.model.predictor import Predictor


def compile(bench: Bench) -> None:
    """The same twice, with one cache; first what it is compared with."""
    if bench.small:
        bench.report("left out", "compiling takes a C++ compiler minutes on a CPU")
        return
    bench.report("not compiled", {"images_per_s": _rate(bench, bench.predictor("bf16", cuda_graphs=False))})
    bench.free()
    with tempfile.TemporaryDirectory() as cache:
        for name in ("without a cache", "with the first one's cache"):
            command = [sys.executable, "-m", "benchmarks.gpu.compiled", str(bench.device), cache]
            run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if run.returncode:
                raise RuntimeError(f"{name}: {run.stderr[-2000:]}")
            bench.report(name, json.loads(run.stdout.splitlines()[-1]))


def _one_process(device: str, cache: str) -> None:
    """Print what compiling for one shape and batch took, what another batch and shape took after it, and the rate."""
    import torch

    from benchmarks.support.textures import textured_pictures

    bench = Bench(torch.device(device), False, Path(os.devnull))
    predictor = bench.predictor("bf16", cuda_graphs=False, compile=True, compile_cache=cache)
    batch, pictures = bench.batches[0], bench.pictures(bench.batches[0])
    figures = {}
    others = textured_pictures([(480, 640)] * 3)
    for name, some in (("first", pictures), ("again", pictures), ("another batch", pictures[:5]), ("shape", others)):
        start = now(bench.device)
        predictor.predict(some, batch)
        figures[f"{name}, s"] = round(now(bench.device) - start, 2)
    print(json.dumps({**figures, "images_per_s": _rate(bench, predictor)}))


def _rate(bench: Bench, predictor: Predictor) -> float:
    batch, pictures = bench.batches[0], bench.pictures(bench.batches[0])
    times = timed(lambda: predictor.predict(pictures, batch), bench.device, bench.rounds)
    return round(batch / times.median_s, 2)


if __name__ == "__main__":
    _one_process(*sys.argv[1:])

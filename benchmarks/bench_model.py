"""Time of the model by part, and what each switch buys: ``python -m benchmarks.bench_model``.

Every setting runs on the same pictures, round after round; the median round and the best one are stated. Times by part
are from a round of their own, in which the parts are watched. On a CPU settings take turns, all loaded at once. The
baseline is the plain float32 model, on a CPU with torchvision's RoIAlign, on a GPU at batch 1. Weights are random but
lively (see `benchmarks.support.lively_weights`), so 1000 proposals and up to 100 detections are at work. Needs no Ray.

    python -m benchmarks.bench_model                                  # this CPU, Swin-T and Swin-B, by part
    python -m benchmarks.bench_model --device cuda --batch 1 4 16     # a GPU: images per second, precisions, compile
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import numpy as np
import torch
from torchvision.ops import roi_align

from benchmarks.support.lively_weights import lively_checkpoint
from benchmarks.support.machine import describe
from benchmarks.support.textures import textured_pictures
from benchmarks.support.timing import PARTS, PartTimes, alternating, now, timed
from pipeline.model.cascade_mask_rcnn.variants import PUBLISHED_VARIANTS
from pipeline.model.detections import Detections
from pipeline.model.files.checkpoints import Checkpoint
from pipeline.model.kernels import roi_align as kernels
from pipeline.model.predictor import Predictor, load_model
from pipeline.model.speed import SpeedOptions

PICTURE_SIZE = (427, 640)  # a COCO landscape photograph: 800x1199 at the model's input, padded to 800x1216
# On a GPU batches are full, and of several shapes: padded to 800x1216, 800x1088, 1088x800 and 800x1344.
GPU_SIZES = (PICTURE_SIZE, (480, 640), (640, 480), (375, 640))
VARIANTS = {variant.name: variant for variant in PUBLISHED_VARIANTS}


@dataclass(frozen=True)
class Setting:
    """One column of the comparison."""

    name: str
    precision: str
    speed: SpeedOptions
    torchvision_roi_align: bool = False


CPU_SETTINGS = (
    Setting("fp32 plain", "fp32", SpeedOptions.none(), torchvision_roi_align=True),
    Setting("fp32 default", "fp32", SpeedOptions()),
    Setting("bf16", "bf16", SpeedOptions()),
)
# What takes longest comes last.
CUDA_SETTINGS = (
    Setting("bf16", "bf16", SpeedOptions()),
    Setting("bf16 no graphs", "bf16", SpeedOptions(cuda_graphs=False)),
    Setting("bf16 compile", "bf16", SpeedOptions(compile=True)),
    Setting("fp32 default", "fp32", SpeedOptions()),
)
CUDA_BASELINE = Setting("fp32 plain", "fp32", SpeedOptions.none())


@contextmanager
def roi_align_of(setting: Setting) -> Iterator[None]:
    """Within, a setting that asks for it pools with torchvision's kernel on the CPU too."""
    if not setting.torchvision_roi_align:
        yield
        return
    with mock.patch.object(
        kernels, "roi_align_cpu", lambda f, r, side, scale: roi_align(f, r, side, scale, sampling_ratio=0, aligned=True)
    ):
        yield


def by_part(checkpoint: Checkpoint, rounds: int) -> None:
    """Print seconds per image by part on the CPU, batch 1, for each setting."""
    device = torch.device("cpu")
    images = textured_pictures([PICTURE_SIZE])
    models = {s: load_model(checkpoint, device=device, precision=s.precision, speed=s.speed) for s in CPU_SETTINGS}

    def once(setting: Setting) -> list[Detections]:
        with roi_align_of(setting):
            return models[setting].predict(images)

    times = alternating({s.name: lambda s=s: once(s) for s in CPU_SETTINGS}, device, rounds)  # type: ignore[misc]
    header = [*PARTS, "RLE", "median", "best", "ratio", "detections"]
    print(f"{checkpoint.variant.name:14s}" + "".join(f"{h:>11s}" for h in header))
    baseline = times[CPU_SETTINGS[0].name].median_s
    for setting, model in models.items():
        with PartTimes(model.detector, device) as parts:
            [found] = once(setting)
        start = time.perf_counter()
        found.rle()
        all_s = times[setting.name]
        cells = [*parts.seconds.values(), time.perf_counter() - start, all_s.median_s, all_s.best_s]
        row = "".join(f"{cell:11.3f}" for cell in cells)
        print(f"{setting.name:14s}{row}{baseline / all_s.median_s:10.2f}x{len(found):11.0f}")


def throughput(checkpoint: Checkpoint, batches: list[int], rounds: int) -> None:
    """Print images per second on the GPU for each setting and batch size, and the share of each part."""
    device = torch.device("cuda")
    print(
        f"{checkpoint.variant.name:14s}{'batch':>6s}{'img/s':>9s}{'best':>9s}{'peak GiB':>10s}   share of time by part"
    )
    rates = {}
    for setting in (*CUDA_SETTINGS, CUDA_BASELINE):
        model = load_model(checkpoint, device=device, precision=setting.precision, speed=setting.speed)
        for batch in batches if setting != CUDA_BASELINE else [1]:
            images = textured_pictures(size for size in GPU_SIZES for _ in range(batch))

            def once(model: Predictor = model, images: list[np.ndarray] = images, batch: int = batch) -> None:
                model.predict(images, batch_size=batch)

            torch.cuda.reset_peak_memory_stats(device)
            times = timed(once, device, rounds)
            peak = torch.cuda.max_memory_allocated(device) / 2**30
            rates[setting.name, batch] = len(images) / times.median_s
            # Recorded graphs have no parts to watch.
            shares = "" if setting.speed.cuda_graphs else _shares(model, once)
            best = len(images) / times.best_s
            print(f"{setting.name:14s}{batch:6d}{rates[setting.name, batch]:9.2f}{best:9.2f}{peak:10.2f}   {shares}")
        del model
        torch.cuda.empty_cache()
    plain = rates[CUDA_BASELINE.name, 1]
    print("over the plain one: " + ", ".join(f"{name} {b}: {rate / plain:.2f}x" for (name, b), rate in rates.items()))


def _shares(model: Predictor, once: Callable[[], None]) -> str:
    with PartTimes(model.detector, model.device) as parts:
        start = now(model.device)
        once()
        total = now(model.device) - start
    shares = {name: seconds / total for name, seconds in parts.seconds.items()}
    rest = 1 - sum(shares.values())
    return " ".join(f"{name} {share:.0%}" for name, share in {**shares, "rest": rest}.items())


def main() -> None:
    """Parse the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--variants", nargs="+", default=["swin_t", "swin_b"], choices=sorted(VARIANTS))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 4, 16], help="batch sizes on the GPU")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(describe(args.device))
    for name in args.variants:
        checkpoint = lively_checkpoint(VARIANTS[name])
        if args.device == "cpu":
            by_part(checkpoint, args.rounds)
        else:
            throughput(checkpoint, args.batch, args.rounds)


if __name__ == "__main__":
    main()

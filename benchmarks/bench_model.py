"""Time of the model by part, and what each switch buys: ``python -m benchmarks.bench_model``.

Every setting runs on the same pictures in the same process, round after round, and the best round counts; the
baseline is the plain float32 model with torchvision's RoIAlign. Weights are random but lively (see
`benchmarks.support.lively_weights`), so 1000 proposals and up to 100 detections are at work. Needs no Ray.

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
from torch import nn
from torchvision.ops import roi_align

from benchmarks.support.lively_weights import lively_checkpoint
from benchmarks.support.machine import describe
from pipeline.model.cascade_mask_rcnn.variants import PUBLISHED_VARIANTS
from pipeline.model.files.checkpoints import Checkpoint
from pipeline.model.kernels import roi_align as kernels
from pipeline.model.predictor import Predictor, load_model
from pipeline.model.speed import SpeedOptions

PICTURE_SIZE = (427, 640)  # a COCO landscape photograph: 800x1199 at the model's input, padded to 800x1216
VARIANTS = {variant.name: variant for variant in PUBLISHED_VARIANTS}
PARTS = ("backbone", "neck", "rpn", "box_heads", "mask_heads")


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
CUDA_SETTINGS = (
    Setting("fp32 plain", "fp32", SpeedOptions.none()),
    Setting("fp32 default", "fp32", SpeedOptions()),
    Setting("bf16", "bf16", SpeedOptions()),
    Setting("bf16 compile", "bf16", SpeedOptions(compile=True)),
)


def pictures(count: int) -> list[np.ndarray]:
    """Textured pictures of one size: smooth noise at several scales, different in each."""
    rng = np.random.default_rng(0)
    result = []
    for _ in range(count):
        layers = []
        for cells in (4, 16, 64):
            noise = torch.from_numpy(rng.normal(size=(1, 3, cells, cells)).astype(np.float32))
            layers.append(nn.functional.interpolate(noise, size=PICTURE_SIZE, mode="bilinear"))
        image = torch.stack(layers).sum(0)[0].permute(1, 2, 0) * 45 + 115
        result.append(image.clamp(0, 255).to(torch.uint8).numpy())
    return result


class PartTimes:
    """Wall time of the detector's parts, summed over calls; waits for the device on both sides of each part."""

    def __init__(self, model: Predictor) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._device = model.device
        for name in PARTS:
            part = getattr(model.detector, name)
            part.register_forward_pre_hook(lambda *_, name=name: self._start(name))
            part.register_forward_hook(lambda *_, name=name: self._stop(name))

    def _start(self, name: str) -> None:
        self.seconds[name] -= _now(self._device)

    def _stop(self, name: str) -> None:
        self.seconds[name] += _now(self._device)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


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
    [image] = pictures(1)
    models = {s: load_model(checkpoint, device="cpu", precision=s.precision, speed=s.speed) for s in CPU_SETTINGS}
    timers = {setting: PartTimes(model) for setting, model in models.items()}
    best: dict[Setting, dict[str, float]] = {}
    for _ in range(rounds):
        for setting, model in models.items():
            timers[setting].seconds = dict.fromkeys(PARTS, 0.0)
            with roi_align_of(setting):
                start = time.perf_counter()
                [found] = model.predict([image])
                middle = time.perf_counter()
            found.rle()
            end = time.perf_counter()
            times = {**timers[setting].seconds, "RLE": end - middle, "all": end - start, "detections": len(found)}
            if setting not in best or times["all"] < best[setting]["all"]:
                best[setting] = times
    header = [*PARTS, "RLE", "all", "ratio", "detections"]
    print(f"{checkpoint.variant.name:14s}" + "".join(f"{h:>11s}" for h in header))
    baseline = best[CPU_SETTINGS[0]]["all"]
    for setting, times in best.items():
        cells = [f"{times[h]:11.3f}" for h in (*PARTS, "RLE", "all")]
        print(f"{setting.name:14s}{''.join(cells)}{baseline / times['all']:10.2f}x{times['detections']:11.0f}")


def throughput(checkpoint: Checkpoint, batches: list[int], rounds: int) -> None:
    """Print images per second on the GPU for each setting and batch size, and the share of each part."""
    device = torch.device("cuda")
    print(
        f"{checkpoint.variant.name:14s}{'batch':>6s}{'img/s':>9s}{'ratio':>9s}{'peak GiB':>10s}   share of time by part"
    )
    baseline = 0.0
    for setting in CUDA_SETTINGS:
        model = load_model(checkpoint, device=device, precision=setting.precision, speed=setting.speed)
        for batch in batches:
            images = pictures(batch)

            def once(model: Predictor = model, images: list[np.ndarray] = images, batch: int = batch) -> None:
                model.predict(images, batch_size=batch)

            torch.cuda.reset_peak_memory_stats(device)
            seconds = _best(once, device, rounds)
            rate = batch / seconds
            baseline = baseline or rate
            peak = torch.cuda.max_memory_allocated(device) / 2**30
            print(
                f"{setting.name:14s}{batch:6d}{rate:9.2f}{rate / baseline:8.2f}x{peak:10.2f}   {_shares(model, once)}"
            )
        del model
        torch.cuda.empty_cache()


def _best(once: Callable[[], None], device: torch.device, rounds: int) -> float:
    for _ in range(3):  # compilation, algorithm choice, memory pools
        once()
    times = []
    for _ in range(rounds):
        start = _now(device)
        once()
        times.append(_now(device) - start)
    return min(times)


def _shares(model: Predictor, once: Callable[[], None]) -> str:
    parts = PartTimes(model)
    start = _now(model.device)
    once()
    total = _now(model.device) - start
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

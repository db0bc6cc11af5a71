"""Mask rasterisation against mmdet's two ways of pasting, on one thread: ``python -m benchmarks.bench_masks``.

CPU time, the best of several rounds in which the candidates take turns; every result is compared byte for byte.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from pipeline.masks.rasterise import rasterise
from pipeline.masks.rle import Rle
from testing.mask_reference import reference_full_canvas, reference_per_instance
from testing.soft_masks import Float32Array, random_boxes, soft_masks

Rasteriser = Callable[[Float32Array, Float32Array, tuple[int, int]], list[Rle]]

CASES = (((480, 640), 0.046), ((1080, 1920), 0.035))  # image size, mean share of the image in a box
CANDIDATES: dict[str, Rasteriser] = {
    "ours": rasterise,
    "mmdet, CPU path": reference_per_instance,
    "mmdet, full canvas": reference_full_canvas,
}


def best_cpu_ms(
    masks: Float32Array, boxes: Float32Array, image_size: tuple[int, int], rounds: int
) -> tuple[dict[str, float], dict[str, list[Rle]]]:
    """Per candidate: the least CPU milliseconds of a call, and what it returned."""
    best = dict.fromkeys(CANDIDATES, float("inf"))
    results: dict[str, list[Rle]] = {}
    for _ in range(rounds):
        for name, function in CANDIDATES.items():
            start = time.process_time()
            results[name] = function(masks, boxes, image_size)
            best[name] = min(best[name], (time.process_time() - start) * 1e3)
    return best, results


def cpu_model() -> str:
    """What the processor calls itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--detections", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{cpu_model()}, kernels {torch.backends.cpu.get_cpu_capability()}, one thread")
    print(f"torch {torch.__version__}, numpy {np.__version__}, {args.detections} detections, CPU ms\n")
    print("| image | boxes | candidate | ms | ours is faster by | masks that differ from ours |")
    print("|--|--:|--|--:|--:|--:|")
    for image_size, share in CASES:
        rng = np.random.default_rng(args.seed)
        masks = soft_masks(rng, args.detections)
        boxes = random_boxes(rng, args.detections, image_size, share)
        best, results = best_cpu_ms(masks, boxes, image_size, args.rounds)
        covered = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).mean() / np.prod(image_size)
        for name in CANDIDATES:
            differ = sum(a != b for a, b in zip(results[name], results["ours"], strict=True))
            ratio = best[name] / best["ours"]
            size = f"{image_size[0]}x{image_size[1]}"
            print(f"| {size} | {covered:.1%} | {name} | {best[name]:.2f} | {ratio:.1f} | {differ} |")


if __name__ == "__main__":
    main()

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
from numpy.typing import NDArray

from benchmarks.mask_reference import reference_full_canvas, reference_per_instance
from pipeline.masks.rasterise import Rle, rasterise

Float32Array = NDArray[np.float32]
Rasteriser = Callable[[Float32Array, Float32Array, tuple[int, int]], list[Rle]]

MASK_SIDE = 28
CASES = (((480, 640), 0.046), ((1080, 1920), 0.035))  # image size, mean share of the image in a box
CANDIDATES: dict[str, Rasteriser] = {
    "ours": rasterise,
    "mmdet, CPU path": reference_per_instance,
    "mmdet, full canvas": reference_full_canvas,
}


def soft_masks(rng: np.random.Generator, num_masks: int) -> Float32Array:
    """[N, 28, 28] probabilities like a trained head's: one wobbly blob that fills its box, edges 1-2 cells wide."""
    axis = (np.arange(MASK_SIDE) + 0.5) / MASK_SIDE * 2 - 1
    y, x = np.meshgrid(axis, axis, indexing="ij")
    radius, angle = np.hypot(y, x), np.arctan2(y, x)
    outline = np.full((num_masks, MASK_SIDE, MASK_SIDE), 0.85)
    for waves in (2, 3, 5, 8):
        height, phase = rng.uniform(0, 0.3 / waves, num_masks), rng.uniform(0, 2 * np.pi, num_masks)
        outline += height[:, None, None] * np.cos(waves * angle + phase[:, None, None])
    logits = (outline - radius) * rng.uniform(15, 40, (num_masks, 1, 1))
    logits += rng.normal(0, 0.3, logits.shape)
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


def random_boxes(rng: np.random.Generator, num_boxes: int, image_size: tuple[int, int], share: float) -> Float32Array:
    """[N, 4] xyxy inside the image, of many sizes and shapes, ``share`` of the image on average."""
    height, width = image_size
    area = rng.lognormal(0, 0.8, num_boxes)
    area *= share * height * width / area.mean()
    aspect = np.exp(rng.normal(0, 0.35, num_boxes))
    box_w, box_h = np.minimum(np.sqrt(area * aspect), width), np.minimum(np.sqrt(area / aspect), height)
    x0, y0 = rng.uniform(0, width - box_w), rng.uniform(0, height - box_h)
    return np.stack([x0, y0, x0 + box_w, y0 + box_h], axis=1).astype(np.float32)


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

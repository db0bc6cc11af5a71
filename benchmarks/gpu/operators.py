"""Operators by themselves, at the sizes that Swin-B has at 800x1344: what the time model had to guess.

R RoIs, N boxes of a group, L tokens of a window.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import nms, roi_align

from benchmarks.gpu.bench import Bench
from benchmarks.support.timing import timed
from pipeline.model.kernels.nms import nms_groups
from pipeline.model.kernels.resize import resize_normalise
from pipeline.model.kernels.roi_align import roi_align_levels

_STRIDES = [4, 8, 16, 32]
_POOLED = 7
_WINDOW, _HEADS, _HEAD_WIDTH = 49, 4, 32


@torch.inference_mode()
def operators(bench: Bench) -> None:
    """Ours and what they replace, on the same inputs."""
    torch.manual_seed(0)
    for batch in (1,) if bench.small else (1, 8):
        _roi_align(bench, batch)
        _nms(bench, batch)
        _attention(bench, batch)
        _head_convolutions(bench, batch)
    _resize(bench)


def _report(bench: Bench, name: str, once: Callable[[], object], flop: float = 0.0) -> None:
    seconds = timed(once, bench.device, bench.rounds).best_s
    cells = {"ms": round(seconds * 1e3, 3)}
    bench.report(name, cells | ({"TFLOP/s": round(flop / seconds / 1e12, 1)} if flop else {}))


def _size(bench: Bench) -> tuple[int, int, int]:
    """Height and width of the input, and channels."""
    return (96, 160, 8) if bench.small else (800, 1344, 256)


def _roi_align(bench: Bench, batch: int) -> None:
    height, width, channels = _size(bench)
    count, device = 1000 * batch if not bench.small else 20, bench.device
    maps = [torch.randn(batch, channels, height // stride, width // stride, device=device) for stride in _STRIDES]
    half = [feature.to(torch.bfloat16).to(memory_format=torch.channels_last) for feature in maps]
    whole = [feature.float() for feature in half]
    levels = torch.randint(0, 4, (count,), device=device)
    sides = (2.0**levels * 80)[:, None] * torch.empty(count, 2, device=device).uniform_(0.5, 1.4)
    corner = torch.rand(count, 2, device=device) * torch.tensor([width, height], device=device) * 0.8
    boxes = torch.cat([corner, corner + sides], dim=1)
    images = torch.arange(count, device=device) % batch

    def ours(features: list[Tensor]) -> Tensor:
        return roi_align_levels(features, boxes, levels, images, _POOLED, _STRIDES)

    def theirs() -> Tensor:
        pooled = torch.empty(count, channels, _POOLED, _POOLED, device=device)
        rois = torch.cat([images[:, None].to(boxes), boxes], dim=1)
        for level, (feature, stride) in enumerate(zip(whole, _STRIDES, strict=True)):
            members = (levels == level).nonzero()[:, 0]
            pooled[members] = roi_align(feature, rois[members], _POOLED, 1 / stride, 0, aligned=True)
        return pooled

    _report(bench, f"RoIAlign of {count}, bf16", lambda: ours(half))
    _report(bench, f"RoIAlign of {count}, fp32", lambda: ours(whole))
    _report(bench, f"RoIAlign of {count}, torchvision fp32", theirs)


def _nms(bench: Bench, batch: int) -> None:
    for name, groups, number, iou in (("proposals", 5 * batch, 1000, 0.7), ("detections", batch, 2048, 0.5)):
        corner = torch.rand(groups, number, 2, device=bench.device) * 800
        boxes = torch.cat([corner, corner + torch.rand(groups, number, 2, device=bench.device) * 200], dim=2)
        valid = torch.ones(groups, number, dtype=torch.bool, device=bench.device)
        scores = torch.arange(number, 0, -1, device=bench.device).float()

        def ours(boxes: Tensor = boxes, valid: Tensor = valid, iou: float = iou) -> Tensor:
            return nms_groups(boxes, valid, iou)

        def theirs(boxes: Tensor = boxes, scores: Tensor = scores, iou: float = iou) -> list[Tensor]:
            return [nms(group, scores, iou) for group in boxes]

        _report(bench, f"NMS of {name}, {groups} groups of {number}", ours)
        _report(bench, f"NMS of {name}, {groups} groups of {number}, torchvision", theirs)


def _attention(bench: Bench, batch: int) -> None:
    """Of the first stage, with a bias as a view of rows that are 56 long."""
    height, width, _ = _size(bench)
    windows = batch * (-(-height // 28)) * (-(-width // 28))
    shape = (windows, _HEADS, _WINDOW, _HEAD_WIDTH)
    q, k, v = (torch.randn(shape, device=bench.device, dtype=torch.bfloat16) for _ in range(3))
    bias = torch.randn(1, _HEADS, _WINDOW, 56, device=bench.device, dtype=torch.bfloat16)[..., :_WINDOW]
    bias = bias.expand(windows, -1, -1, -1)
    flop = 4.0 * windows * _HEADS * _WINDOW**2 * _HEAD_WIDTH
    _report(bench, f"attention in {windows} windows", lambda: F.scaled_dot_product_attention(q, k, v, bias), flop)


def _head_convolutions(bench: Bench, batch: int) -> None:
    channels = _size(bench)[2]
    for name, count, side in (("box", 1000 * batch, 7), ("mask", 100 * batch, 14)):
        rois = 10 if bench.small else count
        stack = nn.Sequential(*(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(4)))
        stack = stack.to(bench.device, torch.bfloat16).to(memory_format=torch.channels_last)
        x = torch.randn(rois, channels, side, side, device=bench.device, dtype=torch.bfloat16)
        x = x.to(memory_format=torch.channels_last)
        flop = 4 * 2.0 * rois * side**2 * 9 * channels**2
        _report(bench, f"{name} head's convolutions of {rois}", lambda stack=stack, x=x: stack(x), flop)  # type: ignore[misc]


def _resize(bench: Bench) -> None:
    height = _size(bench)[0]
    batch = 2 if bench.small else 8
    pixels = torch.randint(0, 256, (batch * 480 * 640 * 3,), dtype=torch.uint8, device=bench.device)
    rows = [[i * 480 * 640 * 3, 480, 640, height, height * 4 // 3] for i in range(batch)]
    table = torch.tensor(rows, device=bench.device)
    padded = -(-height * 4 // 3 // 32) * 32
    _report(bench, f"resize of {batch} pictures", lambda: resize_normalise(pixels, table, height, padded))

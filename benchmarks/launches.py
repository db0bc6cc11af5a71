"""What a batch asks of a GPU, counted without one: ``python -m benchmarks.launches``.

The model runs on the pretended device (`testing.pretended_cuda`). For each part of it and each batch size: kernels that
are launched, times that the host waits for the device, casts, bytes moved and floating-point operations, and beside
them the milliseconds an image that a model of an H200 makes of those. **No line of it is a measurement of time.**

    python -m benchmarks.launches              # Swin-B's structure, narrow and on a small picture
    python -m benchmarks.launches --swin-b     # Swin-B itself at 800x1088: minutes of CPU for each image
    python -m benchmarks.launches --json       # and one JSON object as the last line

The number of launches does not depend on widths and sizes; bytes and FLOP do.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.support.lively_weights import lively_checkpoint
from pipeline.model.cascade_mask_rcnn.variants import SWIN_B, CascadeVariant
from pipeline.model.predictor import PRECISIONS, load_model
from pipeline.model.settings import TestSettings
from testing.pretended_cuda import Launch, Transfer, Wait, pretended_cuda
from testing.small_model import picture

BATCHES = (1, 4, 8, 16)
PARTS = ("preprocess", "backbone", "neck", "rpn", "box_heads", "mask_heads", "rest")
FORWARD = "forward"

NARROW_SWIN_B = CascadeVariant(
    "custom",
    embed_dim=16,
    depths=SWIN_B.depths,
    num_heads=(1, 2, 4, 8),
    num_classes=SWIN_B.num_classes,
    fpn_channels=16,
    box_channels=16,
    box_fc=32,
    mask_channels=16,
)
NARROW_SETTINGS = TestSettings(short_side=96, long_side=160, proposals_per_level=200, proposals=100, max_detections=20)
NARROW_PICTURE = (120, 160)
SWIN_B_PICTURE = (480, 640)  # 800x1067 at the model's input, padded to 800x1088

# The model of time. Peaks are an H200's data sheet (dense; float32 without TF32), of which kernels reach a share:
# convolutions and products of these shapes about half of the arithmetic (Swin-B's attention blocks on an A100, as
# FasterTransformer publishes them, reach 29 %; large products 80 %), copies five sixths of the bandwidth.
PEAK_FLOPS = {torch.bfloat16: 989e12, torch.float32: 67e12}
FLOPS_SHARE = 0.5
BANDWIDTH = 4.8e12
BANDWIDTH_SHARE = 5 / 6
SHORTEST_KERNEL_S = 2e-6
LAUNCH_S = 5e-6  # of the host, from Python
WAIT_S = 15e-6  # until the host goes on and the next kernel starts


@dataclass(frozen=True)
class Counts:
    """Of one part and one batch."""

    launches: int
    waits: int
    casts: int
    weight_casts: int
    bytes: int
    flops: int
    kernel_s: float
    host_s: float

    @staticmethod
    def of(launches: Sequence[Launch], waits: Sequence[Wait]) -> Counts:
        kernels = sum(launch.kernels for launch in launches)
        return Counts(
            launches=kernels,
            waits=len(waits),
            casts=sum(launch.cast for launch in launches),
            weight_casts=sum(launch.cast and launch.of_weight for launch in launches),
            bytes=sum(launch.bytes for launch in launches),
            flops=sum(launch.flops for launch in launches),
            kernel_s=sum(map(modelled_s, launches)),
            host_s=sum(launch.kernels for launch in launches if not launch.replayed) * LAUNCH_S + len(waits) * WAIT_S,
        )


@dataclass(frozen=True)
class Batch:
    """What one batch asked for, in all."""

    size: int
    launches: tuple[Launch, ...]
    waits: tuple[Wait, ...]
    transfers: tuple[Transfer, ...]

    def part(self, name: str) -> Counts:
        """One of `PARTS`. What comes before the forward is preprocessing."""
        inside = [i for i, launch in enumerate(self.launches) if FORWARD in launch.part]
        launches = [
            launch for i, launch in enumerate(self.launches) if _part(launch.part, not inside or i < inside[0]) == name
        ]
        return Counts.of(launches, [wait for wait in self.waits if _part(wait.part, False) == name])

    def forward(self) -> Counts:
        """The detector alone."""
        return Counts.of(_inside(self.launches), _inside(self.waits))

    def all(self) -> Counts:
        """The whole of `Predictor.predict`."""
        return Counts.of(self.launches, self.waits)

    def transfers_of(self, direction: str) -> int:
        return sum(transfer.direction == direction for transfer in self.transfers)


def _inside(records: Iterable[Any]) -> list[Any]:
    return [record for record in records if FORWARD in record.part]


def _part(names: tuple[str, ...], before_forward: bool) -> str:
    known = [name for name in names if name in PARTS]
    if known:
        return known[0]
    return "preprocess" if before_forward else "rest"


def modelled_s(launch: Launch) -> float:
    """Seconds of a launch's kernels on the modelled GPU: arithmetic or memory, whichever is the slower."""
    arithmetic = launch.flops / (PEAK_FLOPS.get(launch.dtype, PEAK_FLOPS[torch.float32]) * FLOPS_SHARE)
    memory = launch.bytes / (BANDWIDTH * BANDWIDTH_SHARE)
    return max(arithmetic, memory, launch.kernels * SHORTEST_KERNEL_S)


def count(
    variant: CascadeVariant,
    settings: TestSettings,
    size: tuple[int, int],
    precision: str = "bf16",
    batches: Sequence[int] = BATCHES,
) -> list[Batch]:
    """Count batches of pictures of one size; what a first batch of a size makes and keeps is made before."""
    checkpoint = replace(lively_checkpoint(variant), settings=settings)
    counted = []
    with pretended_cuda() as gpu:
        model = load_model(checkpoint, device="cuda", precision=precision)
        gpu.name_parts({FORWARD: model.detector, **dict(model.detector.named_children())})
        for batch in batches:
            images = [picture(*size, seed=i) for i in range(batch)]
            model.predict(images, batch)
            gpu.forget()
            model.predict(images, batch)
            counted.append(Batch(batch, tuple(gpu.launches), tuple(gpu.waits), tuple(gpu.transfers)))
    return counted


def table(batch: Batch) -> list[str]:
    """One batch by part; milliseconds are the model's, an image."""
    head = ("launches", "waits", "casts", "of weights", "GB", "TFLOP", "kernels ms", "+ host ms")
    lines = [f"{f'batch {batch.size}':12s}" + "".join(f"{name:>12s}" for name in head)]
    for name, counts in [*((name, batch.part(name)) for name in PARTS), ("all", batch.all())]:
        numbers = (counts.launches, counts.waits, counts.casts, counts.weight_casts)
        kernels_ms, host_ms = (1e3 * s / batch.size for s in (counts.kernel_s, counts.host_s))
        lines.append(
            f"{name:12s}"
            + "".join(f"{number:12d}" for number in numbers)
            + f"{counts.bytes / 1e9:12.3f}{counts.flops / 1e12:12.4f}{kernels_ms:12.2f}{kernels_ms + host_ms:12.2f}"
        )
    lines.append(f"transfers: {batch.transfers_of('in')} in, {batch.transfers_of('out')} out")
    return lines


def summary(batches: Sequence[Batch]) -> dict[str, Any]:
    """What ``--json`` prints."""

    def numbers(batch: Batch) -> dict[str, Any]:
        forward = batch.forward()
        return {
            "forward": {
                "waits": forward.waits,
                "launches": forward.launches,
                "casts": forward.casts,
                "weight_casts": forward.weight_casts,
            },
            "predict": {"waits": batch.all().waits, "launches": batch.all().launches},
            "parts": {name: batch.part(name).launches for name in PARTS},
            "transfers_in": batch.transfers_of("in"),
            "transfers_out": batch.transfers_of("out"),
        }

    return {"batches": {str(batch.size): numbers(batch) for batch in batches}}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; returns an exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swin-b", action="store_true", help="Swin-B at 800x1088, by default a batch of 1")
    parser.add_argument("--batch", nargs="+", type=int, help="batch sizes; by default 1 4 8 16")
    parser.add_argument("--precision", choices=sorted(PRECISIONS), default="bf16")
    parser.add_argument("--json", action="store_true", help="print the counts as one JSON object on the last line")
    args = parser.parse_args(argv)
    variant, settings, size, batches = (
        (SWIN_B, TestSettings(), SWIN_B_PICTURE, (1,))
        if args.swin_b
        else (NARROW_SWIN_B, NARROW_SETTINGS, NARROW_PICTURE, BATCHES)
    )
    counted = count(variant, settings, size, args.precision, args.batch or batches)
    print(f"{'Swin-B' if args.swin_b else 'Swin-B, narrow'}, {args.precision}; times are modelled, not measured\n")
    for batch in counted:
        print("\n".join(table(batch)) + "\n")
    if args.json:
        print(json.dumps(summary(counted)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

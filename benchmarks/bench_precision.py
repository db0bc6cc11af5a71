"""What half precision costs in AP: ``python -m benchmarks.bench_precision``, in a minute or two.

The demo's model on the demo's scenes, which it has never seen, rendered, written and read as ``make demo`` does, but
for the one that it damages; in each precision, side by side. Needs no Ray.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass
from tempfile import TemporaryDirectory

import torch

from benchmarks.support.machine import describe
from jobs.demo import DAMAGED, MODEL, SEED
from pipeline.annotations.pictures import PictureSource
from pipeline.model.files.checkpoints import load_checkpoint
from pipeline.model.predictor import PRECISIONS, load_model
from pipeline.storage.uris import Uri
from pipeline.synthetic.scenes import write_scenes
from pipeline.train.data.coco_source import read_coco
from pipeline.train.inputs import ValidationImages
from pipeline.train.loop.validate import validate

BATCH_SIZE = 8
FIGURES = ("segm_mAP", "segm_mAP_50", "segm_mAP_75", "bbox_mAP", "bbox_mAP_50", "bbox_mAP_75")


@dataclass(frozen=True)
class Measured:
    """One precision.

    Attributes:
        figures: mmdet's names, see `validate`.
        seconds: for all scenes, reading and evaluation included.
    """

    figures: Mapping[str, float]
    seconds: float


def measure(scenes: int = DAMAGED, device: str = "cpu") -> dict[str, Measured]:
    """The demo's model on the first of the demo's scenes, in each precision."""
    checkpoint = load_checkpoint(MODEL)
    found = {}
    with TemporaryDirectory() as folder:
        truth, root = Uri(str(write_scenes(folder, scenes, SEED))), Uri(folder)
        images = ValidationImages(read_coco(truth, root, checkpoint.categories)[0], PictureSource())
        for precision in PRECISIONS:
            model = load_model(checkpoint, device, precision)
            model.predict([images[0].pixels])  # memory, and the choice of kernels
            started = time.perf_counter()
            figures = validate(model, images, BATCH_SIZE)
            found[precision] = Measured(figures, time.perf_counter() - started)
    return found


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--scenes", type=int, default=DAMAGED, metavar="N", help=f"default: {DAMAGED}, the demo's")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the maps are small: several only wait for each other
    print(describe(args.device))
    found = measure(args.scenes, args.device)
    exact, half = found["fp32"], found["bf16"]
    print(f"{MODEL.name}, {args.scenes} scenes\n{'':12s}{'fp32':>9s}{'bf16':>9s}{'difference':>12s}")
    for name in FIGURES:
        a, b = exact.figures[name], half.figures[name]
        print(f"{name:12s}{a:9.4f}{b:9.4f}{b - a:+12.4f}")
    print(f"{'seconds':12s}{exact.seconds:9.1f}{half.seconds:9.1f}{half.seconds / exact.seconds:11.2f}x")


if __name__ == "__main__":
    main()

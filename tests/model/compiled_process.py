"""A process of its own that compiles a small detector, for `test_compile`: what it found, and what it had to compile.

python -m tests.model.compiled_process CACHE_FOLDER
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import torch
from torch._dynamo.utils import counters

from pipeline.model.files.checkpoints import Checkpoint
from pipeline.model.predictor import load_model
from pipeline.model.speed import SpeedOptions
from testing.small_model import SMALL_CATEGORIES, TINY, TINY_SETTINGS, picture, random_checkpoint
from tests.model.compare import assert_same

# With a stage of one window, or a level of one row, a shape is a case of its own; and on CPUs so is one whose first map
# has above 20,480 numbers, or a batch with fewer than 16 masks: PyTorch's convolution takes another way then.
SHAPES = ((128, 256), (256, 128), (128, 288), (160, 256), (288, 128))
SETTINGS = replace(TINY_SETTINGS, short_side=128, long_side=256, proposals_per_level=1000, max_detections=20)


def tiny_checkpoint() -> Checkpoint:
    """With shifted windows, which `TINY` has none of, and with maps that need padding and some that need none."""
    variant = replace(TINY, depths=(2, 1, 1, 1), window_size=2)
    return random_checkpoint(variant, SMALL_CATEGORIES[: TINY.num_classes], SETTINGS)


if __name__ == "__main__":
    torch.set_num_threads(1)
    plain = load_model(tiny_checkpoint(), "cpu", speed=SpeedOptions.none())
    speed = replace(SpeedOptions.none(), compile=True, compile_cache=sys.argv[1])
    compiled = load_model(tiny_checkpoint(), "cpu", speed=speed)
    differences = []
    for shape in SHAPES[:2]:
        image = picture(*shape)
        differences += map(assert_same, plain.predict([image]), compiled.predict([image]))
    print(json.dumps({"differences": differences, "counters": {kind: dict(of) for kind, of in counters.items()}}))

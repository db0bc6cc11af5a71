"""What a step is given, and the process that runs one: ``python -m benchmarks.gpu.bench STEP --device ... --out FILE``.

The project's own modules are imported where they are used: the first step says what a machine lacks, so it has to run
where something is lacking.
"""

from __future__ import annotations

import argparse
import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.gpu.steps import STEPS

if TYPE_CHECKING:
    import numpy as np

    from pipeline.model.files.checkpoints import Checkpoint
    from pipeline.model.predictor import Predictor

# 800x1333 at the model's input, 800x1344 padded: the size that the goal is stated for.
PICTURE_SIZE = (600, 1000)


@dataclass(frozen=True)
class Bench:
    """Where a step runs, on which model, and where its figures go.

    Attributes:
        device: the one that is measured.
        small: a model that runs anywhere in milliseconds; its times mean nothing.
        out: a JSON line for each figure, so that those of a step that is ended early are there.
    """

    device: torch.device
    small: bool
    out: Path

    def report(self, name: str, value: Any) -> None:
        """A figure: a number, or a dict or list of them."""
        with self.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps({name: value}) + "\n")

    @property
    def batches(self) -> tuple[int, ...]:
        """Batch sizes: first the one that is used."""
        return (2, 1) if self.small else (8, 1, 16, 4)

    @property
    def rounds(self) -> int:
        """Of a time."""
        return 2 if self.small else 10

    def checkpoint(self) -> Checkpoint:
        """Swin-B with weights that find something; the small model."""
        from benchmarks.support.lively_weights import lively_checkpoint
        from pipeline.model.cascade_mask_rcnn.variants import SWIN_B
        from testing.small_model import SMALL, SMALL_CATEGORIES, SMALL_SETTINGS, random_checkpoint

        return random_checkpoint(SMALL, SMALL_CATEGORIES, SMALL_SETTINGS) if self.small else lively_checkpoint(SWIN_B)

    def predictor(self, precision: str, plain: bool = False, **speed: Any) -> Predictor:
        """A model on the device.

        Args:
            plain: nothing is rewritten for speed but what ``speed`` says.
        """
        from dataclasses import replace

        from pipeline.model.predictor import load_model
        from pipeline.model.speed import SpeedOptions

        options = replace(SpeedOptions.none() if plain else SpeedOptions(), **speed)
        return load_model(self.checkpoint(), self.device, precision, speed=options)

    def pictures(self, count: int) -> list[np.ndarray]:
        """Of one size."""
        from benchmarks.support.textures import textured_pictures

        return textured_pictures([(60, 90) if self.small else PICTURE_SIZE] * count)

    def free(self) -> None:
        """Give the memory of what is no longer used back to the device."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gib(self) -> float | None:
        """The most memory in use since `free`; None on a CPU."""
        return round(torch.cuda.max_memory_allocated(self.device) / 2**30, 2) if self.device.type == "cuda" else None


def main() -> None:
    """Run the step that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=[step.name for step in STEPS])
    parser.add_argument("--device", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    step = next(step for step in STEPS if step.name == args.step)
    if args.device == "cpu" and args.small:
        torch.set_num_threads(1)  # of small tensors several only wait for each other
    measure = getattr(importlib.import_module(step.path), step.function)
    measure(Bench(torch.device(args.device), args.small, args.out))


if __name__ == "__main__":
    main()

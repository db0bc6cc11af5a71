"""The annotate job in a minute, on this machine: ``python -m jobs.demo --out demo-output``.

Renders pictures (and damages one file), makes a small model with random weights, annotates the pictures through
Ray into Parquet as a real run would, and draws what the Parquet files hold. The weights know nothing, so the
detections are decoration.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image, ImageDraw, ImageFilter

from jobs import annotate
from pipeline.drawn_rows import draw_rows
from pipeline.model.categories import Category
from pipeline.model.checkpoints import Checkpoint, save_checkpoint
from pipeline.model.detector import Detector
from pipeline.model.variants import TestSettings, Variant
from pipeline.output_rows import OutputRows
from pipeline.pictures import PictureSource
from pipeline.stages.rows import RowError
from pipeline.visualize import Picture, grid

VARIANT = Variant(
    "demo",
    embed_dim=32,
    depths=(2, 2, 2, 2),
    num_heads=(1, 2, 4, 8),
    num_classes=4,
    fpn_channels=64,
    box_channels=64,
    box_fc=128,
    mask_channels=64,
)
CATEGORIES = tuple(Category(i + 1, name) for i, name in enumerate(("ball", "tile", "kite", "pebble")))
SETTINGS = TestSettings(
    short_side=320, long_side=640, proposals=300, score_threshold=0.3, nms_iou=0.3, max_detections=8
)
MODEL_SEED = 10  # of the first few, one whose guesses are spread over the classes


NUM_SCENES = 24
GRID_SCENES = 12


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns an exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.demo", description="A small run with made-up pictures.")
    parser.add_argument("--out", default="demo-output", metavar="DIR")
    out = Path(parser.parse_args(argv).out)
    images, model, config, results = (
        out / "images",
        out / "random_model.safetensors",
        out / "annotate.yaml",
        out / "run",
    )
    images.mkdir(parents=True, exist_ok=True)
    for i in range(NUM_SCENES):
        Image.fromarray(render_scene(seed=i)).save(images / f"scene_{i:02d}.png")
    (images / "damaged.png").write_bytes((images / "scene_00.png").read_bytes()[:5000])
    save_checkpoint(random_model(MODEL_SEED), model)
    config.write_text(
        yaml.safe_dump(
            {
                "manifest": {"uri": str(images), "format": "folder"},
                "model": {"checkpoint": str(model), "batch_size": 4},
                "output": {"uri": str(results), "max_failed_fraction": 0.1},
                "log_interval_s": 10,
            }
        )
    )
    print(f"python -m jobs.annotate --config {config}", flush=True)
    code = annotate.main(["--config", str(config)])
    if code:
        return code
    Image.fromarray(_contact_sheet(results)).save(out / "contact_sheet.png")
    print(
        f"\nThe model's weights are random: these detections mean nothing. A trained checkpoint gives real ones:\n"
        f"  python -m jobs.predict YOUR_IMAGES --model swin_b_coco --out predictions\n\n"
        f"Pictures       {images} (one of them damaged: its row says so)\nConfig         {config}\n"
        f"Results        {results / 'data'} (Parquet), {results / 'run.json'}\n"
        f"Contact sheet  {out / 'contact_sheet.png'}\n"
        "Run it again: nothing is left to do, and it says so."
    )
    return 0


def _contact_sheet(results: Path) -> Picture:
    """The first rows of the output, drawn on their pictures."""
    names = [f"scene_{i:02d}.png" for i in range(GRID_SCENES)]
    drawn = draw_rows(OutputRows(str(results)).by_id(names), PictureSource())
    pictures = [row.picture for row in drawn if not isinstance(row.picture, RowError)]
    return grid(pictures, 4, (240, 320), names)


def random_model(seed: int) -> Checkpoint:
    """A detector that has learnt nothing, scaled so that something comes out of it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector = Detector(VARIANT)
        for part in (detector.neck, detector.rpn, detector.box_heads, detector.mask_heads):
            for name, weight in part.named_parameters():
                _scale(name, weight)
    return Checkpoint(detector.state_dict(), VARIANT, CATEGORIES, SETTINGS, {"weights": f"random, seed {seed}"})


def _scale(name: str, weight: torch.Tensor) -> None:
    """torch's own initial values let the signal fade from layer to layer, so that all boxes would look the same."""
    if weight.dim() > 1:
        torch.nn.init.kaiming_normal_(weight, nonlinearity="relu")
    with torch.no_grad():
        if "regress" in name or "deltas" in name:
            weight *= 0.1  # boxes stay near their anchors
        elif "classify.weight" in name or "predict.weight" in name:
            weight -= weight.mean(dim=1, keepdim=True)  # else what all features have in common decides
        elif "upsample.weight" in name:
            weight.copy_(weight[..., :1, :1].expand_as(weight))  # else the masks are chequered
        elif "predict.bias" in name:
            weight += 0.5


def render_scene(seed: int, height: int = 240, width: int = 320) -> np.ndarray:
    """Coloured shapes over a soft gradient, RGB uint8 ``(H, W, 3)``; the same for the same seed."""
    random = np.random.default_rng(seed)
    top, bottom = random.integers(150, 250, (2, 1, 1, 3))
    ramp = np.linspace(0, 1, height)[:, None, None]
    image = Image.fromarray((top * (1 - ramp) + bottom * ramp + np.zeros((1, width, 1))).astype(np.uint8))
    for _ in range(random.integers(4, 8)):
        x, y = random.uniform(0, width), random.uniform(0.2 * height, height)
        radius, turn = random.uniform(15, 50), random.uniform(0, 2 * np.pi)
        colour = tuple(int(c) for c in random.integers(30, 230, 3))
        corners = int(random.choice([3, 4, 6, 40]))
        angles = turn + np.arange(corners) * 2 * np.pi / corners
        outline = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)
        shadow = Image.new("L", image.size)
        ImageDraw.Draw(shadow).polygon([tuple(p) for p in outline + 5], fill=90)
        image.paste((0, 0, 0), mask=shadow.filter(ImageFilter.GaussianBlur(5)))
        ImageDraw.Draw(image).polygon([tuple(p) for p in outline], fill=colour)
    return np.array(image)


if __name__ == "__main__":
    sys.exit(main())

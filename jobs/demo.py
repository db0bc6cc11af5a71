"""A run from picture to masks in a minute: ``python -m jobs.demo --out demo-output``.

Renders a few pictures, makes a small model with random weights and segments the pictures with it, through the
same code as a real run. The weights know nothing, so the detections are decoration.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter

from jobs import predict
from pipeline.model.categories import Category
from pipeline.model.checkpoints import Checkpoint, save_checkpoint
from pipeline.model.detector import Detector
from pipeline.model.variants import TestSettings, Variant
from pipeline.visualize import grid

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns an exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.demo", description="A small run with made-up pictures.")
    parser.add_argument("--out", default="demo-output", metavar="DIR")
    out = Path(parser.parse_args(argv).out)
    images, model, results = out / "images", out / "random_model.safetensors", out / "predictions"
    images.mkdir(parents=True, exist_ok=True)
    for i in range(6):
        Image.fromarray(render_scene(seed=i)).save(images / f"scene_{i}.png")
    save_checkpoint(random_model(MODEL_SEED), model)
    command = [str(images), "--model", str(model), "--out", str(results), "--device", "cpu"]
    print("python -m jobs.predict " + " ".join(command))
    code = predict.main(command)
    if code:
        return code
    drawn = sorted(results.glob("scene_*.png"))
    sheet = grid([np.array(Image.open(path)) for path in drawn], 3, (240, 320), [path.name for path in drawn])
    Image.fromarray(sheet).save(out / "contact_sheet.png")
    print(
        f"\nThe model's weights are random: these detections mean nothing. A trained checkpoint gives real ones:\n"
        f"  python -m jobs.predict YOUR_IMAGES --model swin_b_coco --out {results}\n\n"
        f"Pictures       {images}\nModel          {model}\nDetections     {results / 'predictions.json'}\n"
        f"Drawn          {results}\nContact sheet  {out / 'contact_sheet.png'}"
    )
    return 0


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

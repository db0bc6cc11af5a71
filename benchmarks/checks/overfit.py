"""Whether training can learn pictures by heart: ``python -m benchmarks.checks.overfit INSTANCES_JSON IMAGE_ROOT``.

Takes the 8 images of a COCO data set whose smallest objects are the largest (no speck can be learnt in 256 pixels),
trains a small detector on them from random weights with the training job, and measures it on the same 8 images.
Exit code 0 where mask AP exceeds 0.5.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.support.machine import describe
from jobs import train

NUM_IMAGES = 8
SIDE = 256
GOAL = 0.5
STEPS = 400


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("image_root", type=Path)
    parser.add_argument("--out", default=Path("overfit"), type=Path, metavar="DIR")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    subset = args.out / "instances.json"
    chosen = largest_objects(json.loads(args.annotations.read_text()))
    subset.write_text(json.dumps(chosen))
    config = args.out / "train.yaml"
    config.write_text(yaml.safe_dump(settings(subset, args.image_root, args.out / "run"), sort_keys=False))
    started = time.monotonic()
    code = train.main(["--config", str(config)])
    if code:
        return code
    history = json.loads((args.out / "run" / "training.json").read_text())["history"]
    figures = {key: round(history[-1][key], 3) for key in ("segm_mAP", "segm_mAP_50", "bbox_mAP")}
    seconds = round(time.monotonic() - started)
    objects = len(chosen["annotations"])
    print(json.dumps({"machine": describe(), "images": NUM_IMAGES, "objects": objects, "seconds": seconds, **figures}))
    return 0 if figures["segm_mAP"] > GOAL else 1


def largest_objects(dataset: dict[str, Any]) -> dict[str, Any]:
    """The data set of the images whose smallest object covers the largest part; crowds are left out."""
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in dataset["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    images = {image["id"]: image for image in dataset["images"]}

    def smallest(image_id: int) -> float:
        image = images[image_id]
        return min(a["area"] for a in by_image[image_id]) / (image["height"] * image["width"])

    without_crowds = [i for i, found in by_image.items() if not any(a["iscrowd"] for a in found)]
    chosen = sorted(without_crowds, key=smallest, reverse=True)[:NUM_IMAGES]
    annotations = [annotation for image_id in chosen for annotation in by_image[image_id]]
    used = {annotation["category_id"] for annotation in annotations}
    return {
        "images": [images[image_id] for image_id in chosen],
        "annotations": annotations,
        "categories": [category for category in dataset["categories"] if category["id"] in used],
    }


def settings(subset: Path, image_root: Path, output: Path) -> dict[str, Any]:
    """The config: a small detector, no augmentation."""
    source = {"uri": str(subset), "image_root": str(image_root)}
    batch, per_epoch = 4, 40
    return {
        "data": {"train": [source], "validation": source, "batch_size": batch, "epoch_size": batch * per_epoch},
        "model": {
            "sizes": {
                "embed_dim": 24,
                "depths": [2, 2, 2, 1],
                "num_heads": [1, 2, 4, 8],
                "fpn_channels": 48,
                "box_convs": 1,
                "box_channels": 48,
                "box_fc": 128,
                "mask_convs": 2,
                "mask_channels": 32,
            },
            "drop_path": 0.0,
            "short_side": SIDE,
            "long_side": SIDE,
            "proposals": 100,
        },
        "augment": {"scale": "large_scale_jitter", "side": SIDE, "scale_range": [1.0, 1.0], "flip": 0.0},
        "sampling": {"anchors": 64, "proposals": 200, "rois": 64},
        "optimizer": {"lr": 0.001, "max_grad_norm": 10.0, "weight_decay": 0.0, "ema_decay": 0.99},
        "schedule": {"epochs": STEPS // per_epoch, "steps": [STEPS // per_epoch - 4], "warmup_iterations": 50},
        "evaluate_every": 5,
        "log_every": 40,
        "output": {"uri": str(output)},
    }


if __name__ == "__main__":
    sys.exit(main())

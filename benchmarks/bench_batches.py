"""Images a call of the model, through the job's own ordering and no model: ``python -m benchmarks.bench_batches``.

For sizes as COCO has them, made up or those of the images in coco_tiny (drawn again and again): as they come in blocks,
ordered by the sizes that the manifest has, and ordered by the headers of what a fetch task has in memory. The last line
is JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from benchmarks.support.machine import describe
from pipeline.annotate.config import AnnotateConfig
from pipeline.annotate.stages.ordering import ROWS_PER_FETCH, ROWS_PER_WINDOW, BatchOrder, Sizes
from pipeline.messages.counts import counted

BATCHES = (8, 16, 32)
SHORT_SIDE, LONG_SIDE = 800, 1333
IMAGES = 20_480
COCO_TINY = Path(__file__).resolve().parents[2] / "shared/data/coco_tiny"


def mixed_sizes(rng: np.random.Generator, count: int) -> Sizes:
    """Landscapes and portraits of 640 pixels, 4:3, 3:2 and odd ones, in COCO's proportions."""
    kinds = rng.random(count)
    short = rng.integers(330, 641, count)
    near_square = np.where(rng.random(count) < 0.3, 640, rng.choice([360, 361, 478, 481, 500], count))
    short = np.where(kinds < 0.60, near_square, short)
    short = np.where(kinds < 0.52, rng.integers(424, 429, count), short)
    short = np.where(kinds < 0.34, 480, short)
    sizes = np.stack([short, np.full(count, 640)], axis=1)
    return np.where(rng.random(count)[:, None] < 0.7, sizes, sizes[:, ::-1])


def coco_sizes(rng: np.random.Generator, count: int, folder: Path) -> Sizes:
    """Sizes of the images in a folder's COCO files, drawn with replacement."""
    images = [
        image for path in sorted(folder.glob("annotations/*.json")) for image in json.loads(path.read_text())["images"]
    ]
    return rng.choice(np.array([(image["height"], image["width"]) for image in images]), count)


def images_a_call(sizes: Sizes, batch_size: int) -> dict[str, float]:
    """As they come, in blocks; with sizes in the manifest; and without."""
    model = {"checkpoint": "model", "batch_size": batch_size}
    config = AnnotateConfig.model_validate({"manifest": {"uri": "in"}, "model": model, "output": {"uri": "out"}})
    order = BatchOrder(SHORT_SIDE, LONG_SIDE, batch_size, config.images_per_block)
    calls = {
        "unordered": order.num_calls(sizes),
        "sizes_known": order.expected_calls(sizes, sizes),
        "sizes_unknown": order.expected_calls(np.zeros_like(sizes), sizes),
    }
    return {name: round(len(sizes) / count, 2) for name, count in calls.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--coco", type=Path, default=COCO_TINY, help="a folder with annotations/*.json")
    parser.add_argument("--json", action="store_true", help="the last line alone")
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    sets = {"mix": mixed_sizes(rng, args.images)}
    if args.coco.is_dir():
        sets["coco_tiny"] = coco_sizes(rng, args.images, args.coco)
    found = {name: {str(batch): images_a_call(sizes, batch) for batch in BATCHES} for name, sizes in sets.items()}
    if not args.json:
        print(f"{describe()}\n{counted(args.images, 'image')}, windows of {ROWS_PER_WINDOW:,} and {ROWS_PER_FETCH:,}\n")
        print("| sizes of | batch | as they come | without sizes in the manifest | with sizes |\n|--|--:|--:|--:|--:|")
        for name, by_batch in found.items():
            for batch, figures in by_batch.items():
                columns = (figures[kind] for kind in ("unordered", "sizes_unknown", "sizes_known"))
                print(f"| {name} | {batch} | {' | '.join(map(str, columns))} |")
    goals = ("sizes_known", "sizes_unknown")
    line = {name: {batch: {g: f[g] for g in goals} for batch, f in by.items()} for name, by in found.items()}
    print(json.dumps(line))


if __name__ == "__main__":
    main()

"""Whether a class that looks otherwise is found: ``python -m benchmarks.checks.changed_class --out changed-class``.

The demo's model annotates rendered scenes twice as they are, and `maskfleet compare` must find no difference. Then with
all objects of one class taken out, far out of focus or in the dark, and it must name that class first. Each step is a
job as people run it. Prints a table; exit code 0 where each class came first when it was changed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from benchmarks.support.machine import describe
from jobs import annotate, compare
from jobs.demo import MODEL, SEED
from pipeline.annotations.ledger import COMPARISON_NAME
from pipeline.cluster.connect import connect
from pipeline.synthetic.scenes import CATEGORIES, JPEG_QUALITY, render_scene, write_scenes

SIZE = (160, 160)
_NOISE, _SOFT = 4.0, 5

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Region = NDArray[np.bool_]


def taken_out(pixels: Pixels, objects: Region) -> Pixels:
    """What is around them closes over them, as noisy as it is."""
    known = ~_grown(objects, 2)
    filled = _filled(pixels.astype(np.float32), known.astype(np.float32))
    noise = np.random.default_rng(0).normal(0, _NOISE, pixels.shape)
    return np.where(known[..., None], pixels, np.clip(filled + noise, 0, 255)).astype(np.uint8)


def out_of_focus(pixels: Pixels, objects: Region) -> Pixels:
    """Blurred, by a tenth of the picture's side where they are and less and less around them."""
    blurred = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(min(SIZE) / 10))
    share = _near(objects)
    return (share * np.asarray(blurred) + (1 - share) * pixels).astype(np.uint8)


def in_the_dark(pixels: Pixels, objects: Region) -> Pixels:
    """A fiftieth of the light where they are, and more and more around them."""
    return (pixels * (1 - 0.98 * _near(objects))).astype(np.uint8)


CHANGES: dict[str, Callable[[Pixels, Region], Pixels]] = {
    "taken out": taken_out,
    "out of focus": out_of_focus,
    "in the dark": in_the_dark,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Annotate, change, annotate, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=Path("changed-class"), type=Path, metavar="DIR")
    parser.add_argument("--scenes", default=200, type=int)
    parser.add_argument("--classes", nargs="+", default=[c.name for c in CATEGORIES], metavar="NAME")
    args = parser.parse_args(argv)
    scenes, before = args.out / "scenes", args.out / "before"
    write_scenes(scenes, args.scenes, SEED, SIZE)
    rows = []
    with connect(None):
        _annotate(scenes, scenes, before)
        _annotate(scenes, scenes, args.out / "again")
        limits = [f"--fail-if={limit}" for limit in ("psi>0", "js>0", "agreement<1")]
        _succeed(compare.main([str(before), str(args.out / "again"), "--out", str(args.out / "same"), *limits]))
        for change in CHANGES:
            for name in args.classes:
                rows.append(_compared(args.out, args.scenes, change, name))
    print(f"{describe()}\n{args.scenes} scenes; twice the same: no difference\n")
    print("| all objects of | are | named first | detections before, after | PSI | of others at most |")
    print("|--|--|--|--:|--:|--:|")
    for row in rows:
        print("| {name} | {change} | {first} | {before}, {after} | {psi:.2f} | {others:.2f} |".format(**row))
    return 0 if all(row["first"] == row["name"] for row in rows) else 1


def _compared(out: Path, num_scenes: int, change: str, name: str) -> dict[str, Any]:
    """What the comparison says of a class whose objects were changed, and which class it names first."""
    folder = out / f"{change} {name}".replace(" ", "-")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    label = [category.name for category in CATEGORIES].index(name)
    for number in range(num_scenes):
        scene = render_scene((SEED, number), SIZE)
        objects = scene.masks[scene.labels == label].any(axis=0)
        path = Path("images", f"{number:06d}.jpg")
        if objects.any():
            Image.fromarray(CHANGES[change](scene.pixels, objects)).save(folder / path, quality=JPEG_QUALITY)
        else:
            shutil.copyfile(out / "scenes" / path, folder / path)
    _annotate(out / "scenes", folder, folder / "after")
    _succeed(compare.main([str(out / "before"), str(folder / "after"), "--out", str(folder / "comparison")]))
    found = json.loads((folder / "comparison" / COMPARISON_NAME).read_text())
    by_name = {each["name"]: each for each in found["classes"]}
    distances = {each: _distance(by_name[each]) for each in by_name}
    return {
        "change": change,
        "name": name,
        "first": found["classes"][0]["name"],
        **{side: by_name[name][side]["detections"] for side in ("before", "after")},
        "psi": distances.pop(name),
        "others": max(distances.values()),
    }


def _distance(found: dict[str, Any]) -> float:
    """PSI of a class' scores or areas, whichever is larger; 0 where a side has none."""
    return max([each["psi"][1] for each in (found["scores"], found["areas"]) if each["psi"]], default=0.0)


def _annotate(truth: Path, pictures: Path, results: Path) -> None:
    config = {
        "manifest": {"uri": str(truth / "instances.json"), "format": "coco", "image_root": str(pictures)},
        "model": {"checkpoint": str(MODEL), "batch_size": 8},
        "output": {"uri": str(results)},
    }
    path = pictures / "annotate.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    _succeed(annotate.main(["--config", str(path)]))


def _succeed(code: int) -> None:
    if code:
        sys.exit(code)


def _grown(objects: Region, by: int) -> Region:
    picture = Image.fromarray(objects.astype(np.uint8)).filter(ImageFilter.MaxFilter(2 * by + 1))
    return np.asarray(picture) > 0


def _near(objects: Region) -> Floats:
    """``(H, W, 1)``: 1 at the objects, and softly down to 0 around them."""
    around = Image.fromarray(np.uint8(255) * _grown(objects, 2 * _SOFT)).filter(ImageFilter.GaussianBlur(_SOFT))
    return np.asarray(around, np.float32)[..., None] / np.float32(255)


def _filled(values: Floats, known: Floats) -> Floats:
    """Values ``(H, W, 3)``, where ``known`` is 0 those of a picture of half the size, and so on."""
    height, width = known.shape
    if known.all() or min(height, width) < 2:
        return values
    half = (height // 2, width // 2)
    weights = _resized(known, half)
    coarse = np.stack([_resized(channel * known, half) for channel in np.moveaxis(values, 2, 0)], 2)
    coarse /= np.maximum(weights, np.float32(1e-6))[..., None]
    coarse = _filled(coarse, (weights > 0.01).astype(np.float32))
    below = np.stack([_resized(channel, (height, width)) for channel in np.moveaxis(coarse, 2, 0)], 2)
    return np.where(known[..., None] > 0, values, below)


def _resized(values: Floats, size: tuple[int, int]) -> Floats:
    return np.asarray(Image.fromarray(values).resize(size[::-1], Image.Resampling.BILINEAR))


if __name__ == "__main__":
    sys.exit(main())

"""Segment a few pictures on this machine: ``python -m jobs.predict IMAGE... --model MODEL --out DIR``.

Writes DIR/predictions.json (COCO style, all detections) and a drawn picture for each image. The pictures go
through in batches; the annotations alone are held until the end.

Exit code: 0 if every image was segmented, 1 if some failed, 2 if nothing could be started or written.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from pipeline.coco.results import CocoAnnotation, coco_annotations, coco_categories, write_json
from pipeline.drawing.draw import DrawOptions, draw
from pipeline.images.decode import ImageError, decode_image
from pipeline.model.architectures import KNOWN_MODELS
from pipeline.model.detections import Detections
from pipeline.model.files.checkpoints import load_checkpoint
from pipeline.model.files.class_names import read_categories
from pipeline.model.files.resolve import resolve_checkpoint
from pipeline.model.predictor import PRECISIONS, Predictor, load_model
from pipeline.predict.image_files import find_images, output_names

PACKAGES = ("maskfleet", "torchvision", "timm", "numpy", "pillow")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    out = Path(args.out)
    try:
        files = find_images(args.images, skip=out)
        out.mkdir(parents=True, exist_ok=True)
        predictor = _load(args)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"predict: error: {error}", file=sys.stderr)
        return 2
    options = DrawOptions(args.boxes, args.labels, args.scores, args.masks, min_score=args.draw_threshold)
    job = _Job(predictor, options, out)
    try:
        job.run(files, args.batch_size)
        write_json(job.content(args.model), out / "predictions.json")
    except OSError as error:
        print(f"predict: error: {out} cannot be written: {error}", file=sys.stderr)
        return 2
    print(job.summary(), f"{out / 'predictions.json'}", sep="\n")
    return 1 if job.failed else 0


class _Picture(NamedTuple):
    """An image that could be read."""

    id: int
    file: Path
    output_name: str
    pixels: np.ndarray


class _Job:
    """What has been found so far, and where it goes."""

    def __init__(self, predictor: Predictor, options: DrawOptions, out: Path) -> None:
        self.predictor, self.options, self.out = predictor, options, out
        self.images: list[dict[str, Any]] = []
        self.annotations: list[CocoAnnotation] = []
        self.failed: list[dict[str, str]] = []
        self.started = time.monotonic()

    def run(self, files: Sequence[Path], batch_size: int) -> None:
        """Segment all files, ``batch_size`` of them in memory at a time. Failures of single ones are data."""
        names = output_names(files)
        for start in range(0, len(files), batch_size):
            clock = time.monotonic()
            batch = []
            for i, file in enumerate(files[start : start + batch_size], start):
                pixels = self._read(file)
                if pixels is not None:
                    batch.append(_Picture(i + 1, file, names[i], pixels))
            found = self._predict(batch)
            share_s = (time.monotonic() - clock) / max(1, len(batch))
            for picture, detections in zip(batch, found, strict=True):
                if detections is not None:
                    self._keep(picture, detections, share_s)

    def content(self, model: str) -> dict[str, Any]:
        """predictions.json."""
        predictor = self.predictor
        info = {
            "description": "instance masks predicted by maskfleet",
            "date_created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "model": model,
            "variant": asdict(predictor.variant),
            "weights_sha256": predictor.weights_sha256,
            "weights_source": predictor.source,
            "settings": asdict(predictor.settings),
            "precision": predictor.precision,
            "device": str(predictor.device),
            "versions": {"torch": str(torch.__version__)} | {name: _version(name) for name in PACKAGES},
        }
        return {
            "info": info,
            "images": self.images,
            "categories": coco_categories(predictor.categories),
            "annotations": self.annotations,
            "failed": self.failed,
        }

    def summary(self) -> str:
        """One line for people."""
        seconds = time.monotonic() - self.started
        return (
            f"{len(self.images)} images, {len(self.annotations)} detections, {len(self.failed)} failed "
            f"in {seconds:.1f} s ({len(self.images) / seconds:.2f} images/s)"
        )

    def _read(self, file: Path) -> np.ndarray | None:
        try:
            return decode_image(file.read_bytes()).pixels
        except ImageError as error:
            self._fail(file, error.code, str(error))
        except FileNotFoundError:
            self._fail(file, "not_found", "no such file")
        except IsADirectoryError:
            self._fail(file, "not_found", "a folder without images")
        except PermissionError:
            self._fail(file, "access_denied", "permission denied")
        except OSError as error:
            self._fail(file, "read_error", str(error))
        return None

    def _predict(self, batch: Sequence[_Picture]) -> Sequence[Detections | None]:
        """One result for each picture, None where the model failed (most likely for want of memory)."""
        try:
            return self.predictor.predict([picture.pixels for picture in batch], batch_size=max(1, len(batch)))
        except (RuntimeError, ValueError) as error:
            if len(batch) > 1:
                return [self._predict([picture])[0] for picture in batch]
            self._fail(batch[0].file, "model_error", str(error).partition("\n")[0][:300])
            return [None]

    def _keep(self, picture: _Picture, found: Detections, seconds: float) -> None:
        clock = time.monotonic()
        height, width = found.image_size
        categories, rles = self.predictor.categories, found.rle()
        objects = found.boxes, found.labels, found.scores, rles
        drawn = draw(picture.pixels, *objects, categories, options=self.options)
        Image.fromarray(drawn).save(self.out / picture.output_name)
        self.annotations += coco_annotations(found, picture.id, categories, len(self.annotations) + 1, rles)
        self.images.append(
            {
                "id": picture.id,
                "file_name": picture.file.as_posix(),
                "height": height,
                "width": width,
                "picture": picture.output_name,
            }
        )
        seconds += time.monotonic() - clock
        print(f"{picture.file}: {len(found)} detections, {seconds:.2f} s", flush=True)

    def _fail(self, file: Path, code: str, message: str) -> None:
        self.failed.append({"file_name": file.as_posix(), "error_code": code, "error_message": message})
        print(f"{file}: failed: {code}: {message}", file=sys.stderr, flush=True)


def _load(args: argparse.Namespace) -> Predictor:
    categories = read_categories(args.classes) if args.classes else None
    checkpoint = load_checkpoint(resolve_checkpoint(args.model), categories)
    wanted = {"short_side": args.short_side, "long_side": args.long_side}
    settings = replace(checkpoint.settings, **{k: v for k, v in wanted.items() if v is not None})
    return load_model(checkpoint, args.device, args.precision, settings)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.predict", description="Segment pictures: COCO-style JSON and drawn pictures."
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders or glob patterns")
    parser.add_argument(
        "--model", required=True, help=f"a checkpoint file, or one of: {', '.join(KNOWN_MODELS)} (downloaded once)"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="where predictions.json and the pictures go")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the first GPU, else the CPU)")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32")
    parser.add_argument("--batch-size", type=_positive, default=4, help="images in memory at a time (default: 4)")
    parser.add_argument("--short-side", type=_positive, help="input size (default: the checkpoint's)")
    parser.add_argument("--long-side", type=_positive, help="input size at most (default: the checkpoint's)")
    parser.add_argument("--classes", metavar="FILE", help="names, one a line, or a COCO JSON file")
    parser.add_argument(
        "--draw-threshold",
        type=float,
        default=0.3,
        metavar="SCORE",
        help="lowest score that is drawn; the JSON gets all detections (default: 0.3)",
    )
    for part in ("boxes", "labels", "scores", "masks"):
        parser.add_argument(f"--no-{part}", dest=part, action="store_false", help=f"draw no {part}")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


if __name__ == "__main__":
    sys.exit(main())

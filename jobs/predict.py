"""Segment a few pictures on this machine: ``python -m jobs.predict IMAGE... --model MODEL --out DIR``.

Writes DIR/predictions.json (COCO style, all detections) and a drawn picture for each image. The pictures go
through in batches; the annotations alone are held until the end.

Exit codes: 0 every image was segmented, 1 some failed or trying again may help, 2 nothing could be started or written,
130 and 143 stopped by SIGINT and SIGTERM.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.arguments import job_parser, positive, score
from jobs.ending import FAILED, OK, ends_in_order, say, say_end
from pipeline.model.architectures import KNOWN_MODELS
from pipeline.model.files.class_names import read_categories
from pipeline.model.files.resolve import find_model, resolve_checkpoint
from pipeline.model.settings import PRECISION_NAMES, refuse_fp16
from pipeline.storage.uris import UriText

if TYPE_CHECKING:
    from pipeline.model.predictor import Predictor


@ends_in_order("pictures that were drawn are kept, predictions.json was not written")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    out = Path(args.out)
    find_model(UriText(args.model))
    # Here and not above: torch takes seconds to import, and a file that is missing is told before that.
    from pipeline.coco.results import write_json
    from pipeline.drawing.draw import DrawOptions
    from pipeline.predict.run import RESULT, PredictRun, find_images

    files = find_images(args.images, skip=out)
    out.mkdir(parents=True, exist_ok=True)
    predictor = _load(args)
    options = DrawOptions(args.boxes, args.labels, args.scores, args.masks, min_score=args.draw_threshold)
    job = PredictRun(predictor, options, out)
    job.run(files, args.batch_size)
    write_json(job.content(args.model), out / RESULT)
    say(f"{job.summary()}\n{out / RESULT}")
    if job.failed:
        return say_end(FAILED, f"{len(job.failed)} of {len(files)} images failed, each named above")
    return OK


def _load(args: argparse.Namespace) -> Predictor:
    from pipeline.model.files.checkpoints import load_checkpoint
    from pipeline.model.predictor import load_model

    categories = read_categories(args.classes) if args.classes else None
    checkpoint = load_checkpoint(resolve_checkpoint(UriText(args.model)), categories)
    wanted = {"short_side": args.short_side, "long_side": args.long_side}
    settings = checkpoint.settings.changed({k: v for k, v in wanted.items() if v is not None})
    return load_model(checkpoint, args.device, args.precision, settings)


def _precision(text: str) -> str:
    """The name of a precision; others than fp16, which was one, are for the parser to refuse."""
    try:
        return refuse_fp16(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _parser() -> argparse.ArgumentParser:
    parser = job_parser("predict", __doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders or glob patterns")
    parser.add_argument(
        "--model", required=True, help=f"a checkpoint file, or one of: {', '.join(KNOWN_MODELS)} (downloaded once)"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="where predictions.json and the pictures go")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the first GPU, else the CPU)")
    parser.add_argument("--precision", type=_precision, choices=PRECISION_NAMES, default="fp32")
    parser.add_argument("--batch-size", type=positive, default=4, help="images in memory at a time (default: 4)")
    parser.add_argument("--short-side", type=positive, help="input size (default: the checkpoint's)")
    parser.add_argument("--long-side", type=positive, help="input size at most (default: the checkpoint's)")
    parser.add_argument("--classes", metavar="FILE", help="names, one a line, or a COCO JSON file")
    parser.add_argument(
        "--draw-threshold",
        type=score,
        default=0.3,
        metavar="SCORE",
        help="lowest score that is drawn; the JSON gets all detections (default: 0.3)",
    )
    for part in ("boxes", "labels", "scores", "masks"):
        parser.add_argument(f"--no-{part}", dest=part, action="store_false", help=f"draw no {part}")
    return parser


if __name__ == "__main__":
    sys.exit(main())

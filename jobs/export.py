"""Annotations in other tools' formats: ``python -m jobs.export --annotations OUTPUT --format coco --out labels.json``.

Annotated images without objects are exported as such; failed images are left out and counted. The result appears
whole or not at all; a folder in an object store is whole once its export.json says "finished". Exit codes: 0 done,
1 failed, 2 bad input, 130 and 143 stopped by SIGINT and SIGTERM.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Any, get_args

from jobs.arguments import job_parser
from jobs.ending import OK, end, run, say, set_up_log
from pipeline.export.formats.base import Images, Options, flag
from pipeline.export.formats.table import FORMATS, check_options, takers
from pipeline.storage.uris import Uri, UriText

logger = logging.getLogger("jobs.export")

# A signal may come when all is in its place.
ADVICE = "OUT is there whole or not at all (a folder in an object store: as its export.json says); run it again"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, export, print a summary."""
    args = _parser().parse_args(argv)
    set_up_log()
    return run(logger, lambda: _export(args), ADVICE)


def _export(args: argparse.Namespace) -> int:
    options = Options(
        images=args.images,
        val_fraction=args.val_fraction,
        image_prefix=None if args.image_prefix is None else UriText(args.image_prefix),
        images_per_file=args.images_per_file,
        polygons=args.polygons,
    )
    check_options(args.format, options)
    # Here and not above: what reads and writes takes longer to import than all that is said without it.
    from pipeline.export.run import Export, export, read_selection

    thresholds = None if args.class_thresholds is None else UriText(args.class_thresholds)
    selection = read_selection(thresholds, args.min_score)
    annotations, out = Uri(args.annotations), Uri(args.out)
    say(export(Export(annotations, args.format, out, selection, args.overwrite, options)).text())
    return end(logger, OK, f"{args.format}: {out}")


def _parser() -> argparse.ArgumentParser:
    formats = "\n".join(["formats:", *(f"  {format.help_line()}" for format in FORMATS.values())])
    parser = job_parser("export", __doc__, formats)
    parser.add_argument("--annotations", required=True, metavar="URI", help="the annotate job's output")
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--out", required=True, metavar="OUT", help="local path or URI of the result")
    parser.add_argument(
        "--class-thresholds", metavar="FILE", help="YAML {class name: lowest score}, as the annotate config takes it"
    )
    parser.add_argument(
        "--min-score", type=float, default=0.0, metavar="S", help="lowest score of the other classes (default: 0)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    group = parser.add_argument_group("for some formats")

    def add(option: str, about: str, **settings: Any) -> None:
        group.add_argument(flag(option), help=f"{takers(option)}: {about}", **settings)

    add(
        "images",
        "put the images beside their labels, as links to local files or as copies (default: none)",
        choices=get_args(Images),
        default="none",
    )
    add("val_fraction", "share of the images for validation, by a hash of their ids", type=float, metavar="F")
    add("image_prefix", "what stands before an image's path, such as /data/local-files/?d=", metavar="TEXT")
    add("images_per_file", "OUT is a folder of files of at most N images", type=int, metavar="N")
    add("polygons", "masks as polygons, for tools without run lengths; lossy", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())

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

from jobs.arguments import job_parser
from jobs.ending import OK, end, run, set_up_log
from pipeline.export.run import FORMATS, Export, export, read_selection
from pipeline.storage.uris import Uri, UriText

logger = logging.getLogger("jobs.export")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, export, print a summary."""
    args = _parser().parse_args(argv)
    set_up_log()
    return run(logger, lambda: _export(args), "nothing was exported; run it again")


def _export(args: argparse.Namespace) -> int:
    thresholds = None if args.class_thresholds is None else UriText(args.class_thresholds)
    selection = read_selection(thresholds, args.min_score)
    annotations, out = Uri(args.annotations), Uri(args.out)
    print(export(Export(annotations, args.format, out, selection, args.overwrite)).text())
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
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""Join the small files of an annotate job's output into larger ones: ``python -m jobs.compact OUTPUT``.

Its rows stay the same, and who reads it meanwhile finds each of them once. It takes the output's lock, as annotate
does; it may be stopped or killed at any time, and the same command goes on.

Exit codes: 0 done, or nothing to do; 1 another run is at work in the output, or the storage failed: try again; 2 there
is no output, or its files are damaged or do not belong together; 130 and 143 stopped by SIGINT and SIGTERM.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from jobs.arguments import job_parser, positive
from jobs.ending import OK, end, run, say, set_up_log
from pipeline.storage.uris import Uri

logger = logging.getLogger("jobs.compact")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, join files, and say in the last line how it ended."""
    args = _parser().parse_args(argv)
    set_up_log()
    return run(logger, lambda: _compact(args), "no row is lost; the same command goes on")


def _compact(args: argparse.Namespace) -> int:
    # After the arguments are read: who types them wrong need not wait for pyarrow.
    from pipeline.annotations.compact import IMAGES_PER_FILE, compact, look

    uri, images_per_file = Uri(args.output), args.images_per_file or IMAGES_PER_FILE
    done = look(uri, images_per_file) if args.dry_run else compact(uri, images_per_file)
    say(str(done))
    if not done.groups:
        return end(logger, OK, "nothing to do")
    return end(logger, OK, "a dry run: nothing was changed" if args.dry_run else f"finished: {uri}")


def _parser() -> argparse.ArgumentParser:
    parser = job_parser("compact", __doc__)
    parser.add_argument("output", metavar="OUTPUT", help="output folder of an annotate job: local path or URI")
    parser.add_argument(
        "--images-per-file",
        type=positive,
        metavar="N",
        help="the most that a new file holds (2048, as annotate's); files with less than half of it are joined",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be joined; the output stays as it is")
    return parser


if __name__ == "__main__":
    sys.exit(main())

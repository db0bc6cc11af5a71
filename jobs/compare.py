"""Compare two outputs of annotate: ``python -m jobs.compare BEFORE AFTER --out FOLDER``.

Or what a run made with the rest of its output: ``python -m jobs.compare OUTPUT --run RUN_ID --out FOLDER``. Classes,
scores, areas, objects an image, failures and picture sizes, with intervals; for images of both, which objects are the
same. It writes comparison.json and comparison.html.

Exit codes: 0 done, 1 failed, 2 there is no such output, or it is damaged, 3 done, and a limit of --fail-if is broken,
130 and 143 stopped by SIGINT and SIGTERM.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from jobs.arguments import job_parser
from jobs.ending import BAD_INPUT, OK, end, run, say, set_up_log
from pipeline.compare.limits import FIGURES, Limit, not_judged
from pipeline.storage.uris import Uri

BEYOND_LIMITS = 3

logger = logging.getLogger("jobs.compare")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, compare, and say in the last line how it ended."""
    args = _parser().parse_args(argv)
    set_up_log()
    return run(logger, lambda: _compare(args), "nothing was written but the report; the same command begins again")


def _compare(args: argparse.Namespace) -> int:
    limits = [Limit.parse(text) for text in args.fail_if]
    if (args.after is None) == (args.run is None):
        return end(logger, BAD_INPUT, "give two outputs, or one and --run: what is compared with what?")
    # After the arguments are read: who types them wrong need not wait for pyarrow.
    from pipeline.annotations.ledger import COMPARISON_PAGE_NAME
    from pipeline.annotations.reader import open_source
    from pipeline.compare.report import check_free, text, write
    from pipeline.compare.run import Side, compare, sides_of_run

    before, out = Uri(args.before), Uri(args.out)
    check_free(out)  # now, and not when all is read
    if args.run is None:
        sides = Side(open_source(before)), Side(open_source(Uri(args.after)))
    else:
        sides = sides_of_run(before, args.run)
    found = compare(*sides, args.by)
    write(found, out, limits, args.gallery)
    say(text(found))
    if lack := not_judged(limits, found.figures, found.not_judged, found.few_images):
        say(lack)
    say(f"a page to look at: {out / COMPARISON_PAGE_NAME}")
    if broken := [limit.text for limit in limits if limit.is_broken(found.figures)]:
        return end(logger, BEYOND_LIMITS, f"beyond the limits of --fail-if: {', '.join(broken)}")
    return end(logger, OK, f"finished: {out}")


def _parser() -> argparse.ArgumentParser:
    parser = job_parser("compare", __doc__)
    parser.add_argument("before", metavar="BEFORE", help="output folder of an annotate job: local path or URI")
    parser.add_argument("after", metavar="AFTER", nargs="?", help="another one, of the same images or of others")
    parser.add_argument("--run", metavar="RUN_ID", help="compare the rows of this run with all others of the output")
    parser.add_argument("--by", metavar="COLUMN", help="a carried column: compare each of its values as well")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="gets comparison.json and comparison.html")
    parser.add_argument(
        "--gallery",
        type=_up_to_50,
        default=12,
        metavar="N",
        help="so many of the images of both are drawn on the page, those that differ most (default: 12, at most 50); "
        "0: no pictures",
    )
    about = "; ".join(f"{name}: {text}" for name, text in FIGURES.items())
    parser.add_argument(
        "--fail-if",
        action="append",
        default=[],
        metavar="LIMIT",
        help=f"exit code 3 beyond it, e.g. 'psi>0.2'; may come again. {about}",
    )
    return parser


def _up_to_50(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 50:  # as many as are listed
        raise argparse.ArgumentTypeError(f"{value} is not from 0 to 50")
    return value


if __name__ == "__main__":
    sys.exit(main())

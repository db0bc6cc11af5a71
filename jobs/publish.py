"""Register the data files of an annotate job's output in its table: ``python -m jobs.publish OUTPUT``.

A run whose config has output.table does so at its end. This does it later, or again: one commit brings a Delta or
Iceberg table to the files that the output holds now, and nothing new makes none. It takes the output's lock, as
annotate does; files are neither copied nor rewritten.

Exit codes: 0 done, or nothing to do; 1 another run is at work in the output, or the storage or the catalog failed: try
again; 2 there is no output, or the table is another one's; 130 and 143 stopped by SIGINT and SIGTERM.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from jobs.arguments import job_parser
from jobs.ending import OK, end, run, say, set_up_log
from pipeline.storage.uris import Uri

logger = logging.getLogger("jobs.publish")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, publish, and say in the last line how it ended."""
    parser = job_parser("publish", __doc__)
    parser.add_argument("output", metavar="OUTPUT", help="output folder of an annotate job: local path or URI")
    parser.add_argument(
        "--table",
        nargs="+",
        metavar="KEY=VALUE",
        help="which table, by the keys of output.table: kind=delta, or kind=iceberg name=vision.labels catalog=prod "
        "(default: that of the last run's config)",
    )
    args = parser.parse_args(argv)
    set_up_log()
    return run(logger, lambda: _publish(args), "the table has all that is new or nothing of it; run it again")


def _publish(args: argparse.Namespace) -> int:
    # After the arguments are read: who types them wrong need not wait for pyarrow.
    from pipeline.config.loading import parse_settings
    from pipeline.lake.config import TableConfig
    from pipeline.lake.publish import last_table, publish

    uri = Uri(args.output)
    table = parse_settings(TableConfig, "--table", args.table) if args.table else last_table(uri)
    done = publish(uri, table)
    say(str(done))
    return end(logger, OK, f"finished: {uri}" if done.added or done.removed else "nothing to do")


if __name__ == "__main__":
    sys.exit(main())

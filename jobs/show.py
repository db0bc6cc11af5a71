"""What an annotate job's output holds, and how its run is doing: ``python -m jobs.show OUTPUT``.

Shows whether a run is at work, the books, failures, drift, classes, speed, files, the model and its settings. It only
looks: also while a run is at work, and where files are damaged, which are named. Machines read OUTPUT/run.json.

Exit codes: 0 shown, whatever state the output is in; 1 the storage failed, or --failed could not tell all; 2 there is
no output, or FILE is not to be replaced; 130 and 143 stopped by SIGINT and SIGTERM.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.arguments import job_parser
from jobs.ending import FAILED, OK, ends_in_order, say, say_end
from pipeline.errors import UserError
from pipeline.messages.counts import counted
from pipeline.storage.uris import Uri
from pipeline.storage.whole_file import write_whole
from pipeline.tables.csv_text import csv_line

if TYPE_CHECKING:
    from pipeline.annotations.overview import Overview

COLUMNS = ("image_id", "image_uri", "stage", "error_code", "error_message")


@ends_in_order("nothing was changed; run it again")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = _parser().parse_args(argv)
    # After the arguments are read: who types them wrong need not wait for pyarrow.
    from pipeline.annotations.overview import look_over
    from pipeline.annotations.overview_text import overview_text
    from pipeline.compare.earlier import drift_lines

    output = Uri(args.output)
    out = None if args.failed is None else _free_place(args.failed, output)
    overview = look_over(output)
    say(overview_text(overview, drift_lines(output)))
    return OK if out is None else _write_failed(overview, out)


def _free_place(text: str, output: Uri) -> Path:
    """Where the table of failed images may be written: a local file, outside the output, nobody else's.

    Raises:
        UserError: it is not such a place.
    """
    from pipeline.drawing.file_names import check_free

    place = Uri(text)
    if place.local_path is None:
        raise UserError(f"--failed {place}: give a local file")
    if place.absolute().is_below(output.absolute()):
        raise UserError(f"--failed {place} is in the output, where only annotate writes: give another place")
    path = Path(place.local_path)
    check_free(path, csv_line(*COLUMNS))
    return path


def _write_failed(overview: Overview, path: Path) -> int:
    """All failed images as CSV, whole or not at all; the exit code."""
    from pipeline.annotations.overview import failed_rows

    problems: list[str] = []
    num_rows = 0
    with write_whole(path) as temporary, temporary.open("wb") as file:
        file.write(csv_line(*COLUMNS))
        for row in failed_rows(overview, problems):
            file.write(csv_line(row.image_id, row.image_uri, row.stage, row.error_code, row.error_message))
            num_rows += 1
    say(f"\n{counted(num_rows, 'failed image')}: {path}")
    if problems:
        return say_end(FAILED, f"{path} lacks the failed images of {counted(len(problems), 'file')}: {problems[0]}")
    return OK


def _parser() -> argparse.ArgumentParser:
    parser = job_parser("show", __doc__)
    parser.add_argument("output", metavar="OUTPUT", help="output folder of an annotate job: local path or URI")
    parser.add_argument(
        "--failed", metavar="FILE", help="write all failed images there, as CSV; an earlier such file is replaced"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

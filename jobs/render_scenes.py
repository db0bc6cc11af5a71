"""Render scenes with exact masks to train and test on: ``python -m jobs.render_scenes --out scenes --count 1000``.

Writes pictures to ``images/`` and their annotations, COCO's format, to ``instances.json``. Exit codes: 0 done,
1 failed (a full disk), 2 they cannot be written there, 130 and 143 stopped by SIGINT and SIGTERM.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.arguments import job_parser
from jobs.ending import ends_in_order, say


@ends_in_order("instances.json was not written; run it again")
def main(argv: Sequence[str] | None = None) -> int:
    """Render them; returns an exit code."""
    parser = job_parser("render_scenes", __doc__)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument("--count", required=True, type=int, metavar="N", help="scenes")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="sets of other seeds share no scene")
    parser.add_argument("--side", type=int, default=160, metavar="PIXELS", help="of the square scenes")
    args = parser.parse_args(argv)
    from pipeline.synthetic.scenes import SMALLEST_SIDE, write_scenes

    if args.count < 1 or args.seed < 0 or args.side < SMALLEST_SIDE:
        parser.error(f"--count must be at least 1, --seed at least 0, --side at least {SMALLEST_SIDE}")
    path = write_scenes(args.out, args.count, args.seed, (args.side, args.side))
    say(f"{args.count:,} scenes: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Broken inputs: ``python -m benchmarks.fuzz --what images --count 100000 --seed 0``.

Makes cases from the seed, tries each under a limit of time and memory, and prints counts by verdict, the slowest and
the largest, and each fault by its cause with the files of the first ones. ``--only INDEX`` tries one case again. Exit
code 1 if there was a fault, or if the time was over before all cases were tried.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.fuzz.case import Limits, Verdict
from benchmarks.fuzz.child import Tried, load_kind
from benchmarks.fuzz.kinds import KINDS
from benchmarks.fuzz.runner import Campaign, run_cases
from benchmarks.support.machine import describe


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns an exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--what", required=True, choices=KINDS)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="INDEX", help="try this case alone, and keep its files")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes at a time")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no further case after that")
    parser.add_argument("--seconds", type=float, help="limit of a case, instead of the kind's own")
    parser.add_argument("--mib", type=int, help="limit of a case's memory, instead of the kind's own")
    args = parser.parse_args(argv)
    own = load_kind(KINDS[args.what]).limits
    limits = Limits(args.seconds or own.seconds, args.mib << 20 if args.mib else own.memory_bytes)
    folder = Path(tempfile.mkdtemp(prefix=f"maskfleet-fuzz-{args.what}-"))
    print(describe())
    indices = range(args.count) if args.only is None else [args.only]
    campaign = run_cases(KINDS[args.what], indices, args.seed, folder, args.jobs, args.minutes, limits)
    print(report(campaign, args.what, args.seed, limits))
    if args.only is not None:
        print(f"its files: {folder / 'child0' / 'case' if campaign.good else folder / 'faults' / str(args.only)}")
    elif campaign.good:
        shutil.rmtree(folder)
    return 0 if campaign.good else 1


def report(campaign: Campaign, what: str, seed: int, limits: Limits) -> str:
    """What became of a campaign, in lines for people."""
    rate = campaign.tried / max(campaign.seconds, 1e-9)
    lines = [
        f"{what}, seed {seed}: {campaign.tried:,} of {campaign.asked:,} cases in {campaign.seconds:.0f} s "
        f"({rate:.0f} a second), each with {limits.seconds:g} s and {limits.memory_bytes >> 20} MiB",
        f"slowest: {_extremes(campaign.slowest)}",
        f"largest: {_extremes(campaign.largest)}",
        f"libraries wrote {campaign.noise_lines:,} lines to standard error; {campaign.restarts} processes were "
        "replaced because of what they had kept",
    ]
    for (verdict, cause), number in campaign.causes.most_common():
        lines.append(f"{verdict}: {number:,} x {cause}")
        for one in campaign.examples[verdict, cause]:
            lines += [f"    --only {one.index}: {one.story}", f"        {one.kept}"]
        detail = campaign.examples[verdict, cause][0].outcome.detail
        lines += [f"        | {line}" for line in detail.splitlines()[-12:]]
    lines.append(", ".join(f"{campaign.verdicts[verdict]:,} {verdict}" for verdict in Verdict))
    return "\n".join(lines)


def _extremes(cases: Sequence[Tried]) -> str:
    return ", ".join(f"{one.index} ({one.seconds:.2f} s, {one.memory_bytes >> 20} MiB, {one.story})" for one in cases)


if __name__ == "__main__":
    sys.exit(main())

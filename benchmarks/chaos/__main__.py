"""The chaos test: ``python -m benchmarks.chaos --runs 20 --seed 0``.

Each run picks a disturbance by its seed, drives the annotate job on small pictures until it ends with exit code 0,
and compares the output with what the stages give undisturbed. Prints a line a run and the sums; exit code 1 unless
all are 0, and every run was disturbed.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.chaos.kinds import KINDS, run_kind
from benchmarks.chaos.scene import make_scene

# What a stop may cost with the settings as they come, see output.write_interval_s.
MAX_AT_RISK_S = 120.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns an exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=120, help="good ones; a few bad ones come on top")
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"of {', '.join(KINDS)}")
    parser.add_argument("--keep", action="store_true", help="keep the folder with logs and outputs")
    args = parser.parse_args(argv)
    kinds = args.kinds.split(",")
    if unknown := sorted(set(kinds) - set(KINDS)):
        parser.error(f"unknown kinds: {', '.join(unknown)}")
    folder = Path(tempfile.mkdtemp(prefix="maskfleet-chaos-"))
    started = time.monotonic()
    scene = make_scene(folder, args.images)
    print(f"{len(scene.expected)} images, undisturbed: {time.monotonic() - started:.0f} s ({folder})", flush=True)
    losses = duplicates = differences = killed = undisturbed = late = 0
    for run in range(args.runs):
        rng = random.Random(f"{args.seed} {run}")
        # Every kind comes equally often, in an order of its own.
        kind = random.Random(f"{args.seed} {run // len(kinds)}").sample(kinds, len(kinds))[run % len(kinds)]
        started = time.monotonic()
        outcome = run_kind(kind, scene, f"run{run:03d}-{kind}", rng)
        verdict = outcome.verdict
        undisturbed += not outcome.disturbed
        late += outcome.at_risk_s > MAX_AT_RISK_S
        word = (
            "BAD"
            if not verdict.good or outcome.at_risk_s > MAX_AT_RISK_S
            else "ok"
            if outcome.disturbed
            else "undisturbed"
        )
        losses += verdict.losses
        duplicates += verdict.duplicates
        differences += len(verdict.differences)
        killed += len(verdict.killed)
        print(
            f"run {run:2d} {kind:8s} {word:12s} {time.monotonic() - started:4.0f} s, "
            f"{outcome.attempts} attempts ({outcome.story}): "
            f"{verdict.losses} lost, {verdict.duplicates} twice, "
            f"{len(verdict.differences)} different, {len(verdict.killed)} given up, "
            f"at most {outcome.at_risk_s:.0f} s of work lost"
            + "".join(f"\n    {line}" for line in verdict.differences[:5]),
            flush=True,
        )
    print(f"{killed} good images were given up because two processes died on them (legal)")
    print(f"{undisturbed} runs ended before anything could be done to them (they prove nothing)")
    print(f"{late} runs could have lost more than {MAX_AT_RISK_S:.0f} s of work")
    bad = losses or duplicates or differences or undisturbed or late
    if bad or args.keep:
        print(f"kept {folder}")
    else:
        shutil.rmtree(folder)
    print(f"{args.runs} runs, {losses} losses, {duplicates} duplicates, {differences} content differences")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

"""All that is worth knowing of the model on one GPU, in minutes: ``python -m benchmarks.gpu --out FILE``.

Steps come in the order of their worth, each in a process of its own with a limit of its own, so that a device that is
lost or a step that hangs costs that step. A finished step is a JSON line in FILE and is not run again by the same
sources on the same device; one that failed is tried again by the next run. Needs no Ray and no pycocotools.

    python -m benchmarks.gpu --out gpu.jsonl                          # a GPU, Swin-B, 8 minutes
    python -m benchmarks.gpu --out gpu.jsonl --only throughput trace  # these steps
    python -m benchmarks.gpu --out /tmp/cpu.jsonl --device cpu --small  # a rehearsal; its times mean nothing
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.record import Record
from benchmarks.gpu.runner import Runner, device_name
from benchmarks.gpu.steps import STEPS
from benchmarks.gpu.summary import summary


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is not done yet, and print the tables; the exit code is 1 where a step has failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON lines; new ones are appended")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0, help="no step goes on for longer")
    parser.add_argument("--only", nargs="+", metavar="STEP", choices=[step.name for step in STEPS])
    parser.add_argument("--small", action="store_true", help="a small model, to rehearse; its times mean nothing")
    parser.add_argument("--list", action="store_true", help="say what the steps are, and do nothing")
    args = parser.parse_args(argv)
    chosen = [step for step in STEPS if args.only is None or step.name in args.only]
    if args.list:
        print("\n".join(f"{step.name:12s} {step.limit_s:4.0f} s  {step.about}" for step in chosen))
        return 0
    if args.out is None:
        parser.error("--out is needed")
    device = device_name(args.device)
    if device is None:
        parser.error("this machine has no usable GPU; --device cpu --small rehearses")
    record = Record(args.out)
    rows = Runner(record, args.device, device, args.small, args.minutes * 60).run(chosen)
    print(summary(rows, device, args.small))
    return 0 if all(row["status"] == "done" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Evaluate annotations against ground truth: ``python -m jobs.evaluate --config configs/evaluate.yaml``.

Writes metrics.json, report.html, thresholds.yaml and matches/ (Parquet) to ``output.uri``, and prints COCO's figures.
Exit codes: 0 done, 1 failed, 2 bad configuration or input, 130 and 143 stopped by SIGINT and SIGTERM.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from jobs.ending import OK, end, run, set_up_log
from pipeline.config.loading import load_config
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.run import REPORT, evaluate, summary

logger = logging.getLogger("jobs.evaluate")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, evaluate, and say in the last line how it ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file; see configs/")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. metrics.iou_types=[bbox]")
    args = parser.parse_args(argv)
    set_up_log()
    return run(logger, lambda: _evaluate(args), "nothing of it counts; run it again")


def _evaluate(args: argparse.Namespace) -> int:
    config = load_config(EvaluateConfig, args.config, args.set)
    print(summary(evaluate(config)))
    return end(logger, OK, f"finished: {str(config.output.uri).rstrip('/')}/{REPORT}")


if __name__ == "__main__":
    sys.exit(main())

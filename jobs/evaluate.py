"""Evaluate annotations against ground truth: ``python -m jobs.evaluate --config my.yaml``.

Writes metrics.json, report.html, thresholds.yaml and matches/ (Parquet) to ``output.uri``, and prints COCO's figures.
Exit codes: 0 done, 1 failed, 2 bad configuration or input, 130 and 143 stopped by SIGINT and SIGTERM.
What Ray says is in maskfleet-ray-*.log, among the logs of its session.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from jobs.arguments import add_config, job_parser
from jobs.ending import OK, end, run, say, set_up_log

logger = logging.getLogger("jobs.evaluate")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, evaluate, and say in the last line how it ended."""
    parser = job_parser("evaluate", __doc__)
    add_config(parser, "'metrics.iou_types=[bbox]'")
    args = parser.parse_args(argv)
    set_up_log()
    return run(logger, lambda: _evaluate(args), "nothing of it counts; run it again")


def _evaluate(args: argparse.Namespace) -> int:
    # Here and not above: Ray and the report's packages take seconds to import. The help, a config that is wrong and
    # files that are missing are told before that.
    from pipeline.config.loading import load_config
    from pipeline.evaluate.config import EvaluateConfig
    from pipeline.storage.listing import check_there

    config = load_config(EvaluateConfig, args.config, args.set)
    check_there({"ground_truth.uri": config.ground_truth.uri, "predictions.uri": config.predictions.uri})
    from pipeline.evaluate.run import REPORT, evaluate, summary

    say(summary(evaluate(config)))
    return end(logger, OK, f"finished: {str(config.output.uri).rstrip('/')}/{REPORT}")


if __name__ == "__main__":
    sys.exit(main())

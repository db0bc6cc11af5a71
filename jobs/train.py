"""Train a detector: ``python -m jobs.train --config my.yaml``.

Writes best.safetensors and last.safetensors (for ``model.checkpoint`` of the annotate job), training.json and
tensorboard/ to ``output.uri``. Run the same command again after any crash: it goes on from last.safetensors, exactly.
Exit codes: 0 done, 1 failed, 2 bad configuration or input, 130 and 143 stopped by SIGINT and
SIGTERM: the steps since the last checkpoint are done again.
What Ray says is in maskfleet-ray-*.log, among the logs of its session.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from jobs.arguments import add_config, job_parser
from jobs.ending import OK, end, run, say, set_up_log

logger = logging.getLogger("jobs.train")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, train, and say in the last line how it ended."""
    parser = job_parser("train", __doc__)
    add_config(parser, "schedule.epochs=12")
    args = parser.parse_args(argv)
    set_up_log()
    advice = "the same command goes on from the last checkpoint, last.safetensors, if there is one"
    return run(logger, lambda: _train(args), advice)


def _train(args: argparse.Namespace) -> int:
    # Here and not above: the model's packages and Ray take seconds to import. The help, a config that is wrong and
    # files that are missing are told before that.
    from pipeline.config.loading import load_config
    from pipeline.train.checks import check_places
    from pipeline.train.config import TrainConfig

    config = load_config(TrainConfig, args.config, args.set)
    check_places(config)
    from pipeline.train.run import summary, train

    say(summary(config, train(config)))
    return end(logger, OK, f"finished: {config.output.uri}")


if __name__ == "__main__":
    sys.exit(main())

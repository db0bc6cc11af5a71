"""Annotate every image of a manifest: ``python -m jobs.annotate --config configs/annotate_laptop.yaml``.

Run the same command again after any crash: it goes on where it stopped. Exit codes: 0 done, 1 failed, 2 bad
configuration or input (nothing was started), 3 done, with more failed images than allowed.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from jobs.ending import BAD_INPUT, FAILED, OK, end, end_unforeseen, end_with, set_up_log
from pipeline.annotate import RunFailed, annotate, summary
from pipeline.cluster import ClusterError
from pipeline.config import AnnotateConfig
from pipeline.config_loading import ConfigError, load_config
from pipeline.data.antijoin import DuplicateIdError
from pipeline.data.lock import LockHeld, LockLost
from pipeline.data.manifest import ManifestError
from pipeline.data.model_files import UnknownModelError
from pipeline.data.output import OutputError
from pipeline.data.uris import UriError
from pipeline.dry_run import dry_run
from pipeline.model.checkpoints import CheckpointError
from pipeline.storage.download import DownloadError

TOO_MANY_FAILURES = 3

logger = logging.getLogger("jobs.annotate")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run, and say in the last line how it ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file; see configs/")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. model.batch_size=16")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the plan, write nothing")
    parser.add_argument("--retry-failed", action="store_true", help="queue images again that failed in earlier runs")
    args = parser.parse_args(argv)
    set_up_log()
    try:
        config = load_config(AnnotateConfig, args.config, args.set)
        if args.dry_run:
            print(dry_run(config))
            return OK
        report = annotate(config, retry_failed=args.retry_failed)
    except (LockHeld, LockLost, RunFailed) as error:
        return end_with(logger, FAILED, error)
    except (
        ConfigError,
        ManifestError,
        DuplicateIdError,
        CheckpointError,
        DownloadError,
        UnknownModelError,
        UriError,
        ClusterError,
        OutputError,
    ) as error:
        return end_with(logger, BAD_INPUT, error)
    except Exception as error:
        return end_unforeseen(
            logger, error, "the run stopped; what it wrote is kept, and the same command goes on from there"
        )
    print(summary(report))
    if report.state == "too_many_failures":
        allowed = config.output.max_failed_fraction
        return end(
            logger,
            TOO_MANY_FAILURES,
            f"{report.failed_fraction:.2%} of the images failed, more than the {allowed:.2%} of "
            "output.max_failed_fraction; all results were kept",
        )
    return end(logger, OK, f"{report.state}: {config.output.uri}")


if __name__ == "__main__":
    sys.exit(main())

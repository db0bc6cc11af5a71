"""Train a detector: ``python -m jobs.train --config configs/train.yaml``.

Writes best.safetensors and last.safetensors (for ``model.checkpoint`` of the annotate job), training.json and
tensorboard/ to ``output.uri``. Run the same command again after any crash: it goes on from last.safetensors, exactly.
Exit codes: 0 done, 1 failed, 2 bad configuration or input (nothing was started).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from jobs.ending import BAD_INPUT, FAILED, OK, end, end_unforeseen, end_with, set_up_log
from pipeline.annotate.manifest.open import ManifestError
from pipeline.annotations.ledger import OutputError
from pipeline.cluster.connect import ClusterError
from pipeline.config.loading import ConfigError, load_config
from pipeline.evaluate.inputs.books import InputError
from pipeline.model.files.checkpoints import CheckpointError
from pipeline.model.files.resolve import UnknownModelError
from pipeline.storage.download.cache import DownloadError
from pipeline.storage.lock.lease import LockHeld, LockLost
from pipeline.storage.uris import UriError
from pipeline.train.config import TrainConfig
from pipeline.train.data.labelled import DataError
from pipeline.train.loop.finite import NonFiniteLoss
from pipeline.train.run import TrainingFailed, summary, train

logger = logging.getLogger("jobs.train")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, train, and say in the last line how it ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file; see configs/")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. schedule.epochs=12")
    args = parser.parse_args(argv)
    set_up_log()
    try:
        config = load_config(TrainConfig, args.config, args.set)
        trained = train(config)
    except (LockHeld, LockLost, NonFiniteLoss, TrainingFailed) as error:
        return end_with(logger, FAILED, error)
    except (
        ConfigError,
        DataError,
        InputError,
        ManifestError,
        CheckpointError,
        DownloadError,
        UnknownModelError,
        UriError,
        ClusterError,
        OutputError,
    ) as error:
        return end_with(logger, BAD_INPUT, error)
    except Exception as error:
        return end_unforeseen(logger, error, "the training stopped; the same command goes on from the last checkpoint")
    print(summary(config, trained))
    return end(logger, OK, f"finished: {config.resolved()['output']['uri']}")


if __name__ == "__main__":
    sys.exit(main())

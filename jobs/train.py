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

from pipeline.cluster import ClusterError
from pipeline.config_loading import ConfigError, load_config
from pipeline.data.download import DownloadError
from pipeline.data.lock import LockHeld, LockLost
from pipeline.data.manifest import ManifestError
from pipeline.data.model_files import UnknownModelError
from pipeline.data.output import OutputError
from pipeline.data.uris import UriError
from pipeline.evaluation.input_checks import InputError
from pipeline.model.checkpoints import CheckpointError
from pipeline.train import TrainingFailed, summary, train
from pipeline.train_config import TrainConfig
from pipeline.training.detector_loss import NonFiniteLoss
from pipeline.training.labelled import DataError

OK, FAILED, BAD_INPUT = 0, 1, 2

logger = logging.getLogger("jobs.train")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, train, and say in the last line how it ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file; see configs/")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. schedule.epochs=12")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        config = load_config(TrainConfig, args.config, args.set)
        trained = train(config)
    except (LockHeld, LockLost, NonFiniteLoss, TrainingFailed) as error:
        return _end(FAILED, f"{type(error).__name__}: {error}")
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
        return _end(BAD_INPUT, f"{type(error).__name__}: {error}")
    except Exception as error:
        logger.exception("the training stopped; the same command goes on from the last checkpoint")
        return _end(FAILED, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    print(summary(config, trained))
    return _end(OK, f"finished: {config.resolved()['output']['uri']}")


def _end(code: int, message: str) -> int:
    """The last line of the log: `ray job status` knows only success and failure."""
    logger.log(logging.INFO if code == OK else logging.ERROR, "exit code %d: %s", code, message)
    return code


if __name__ == "__main__":
    sys.exit(main())

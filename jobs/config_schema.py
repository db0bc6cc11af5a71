"""Print the JSON schema of a job's config: ``python -m jobs.config_schema annotate > configs/annotate.schema.json``.

Editors that know the YAML language server complete and check the files in configs/ with it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from jobs.arguments import job_parser
from jobs.ending import say
from pipeline.annotate.config import AnnotateConfig
from pipeline.config.base import Section
from pipeline.config.loading import config_schema
from pipeline.evaluate.config import EvaluateConfig
from pipeline.train.config import TrainConfig

JOBS: dict[str, type[Section]] = {"annotate": AnnotateConfig, "evaluate": EvaluateConfig, "train": TrainConfig}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the schema."""
    parser = job_parser("config_schema", __doc__)
    parser.add_argument("job", choices=JOBS)
    say(json.dumps(config_schema(JOBS[parser.parse_args(argv).job]), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())

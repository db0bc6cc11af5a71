"""Print the JSON schema of the annotate config: ``python -m jobs.config_schema > configs/annotate.schema.json``.

Editors that know the YAML language server complete and check the files in configs/ with it.
"""

from __future__ import annotations

import json
import sys

from pipeline.config_loading import config_schema


def main() -> int:
    """Print the schema."""
    print(json.dumps(config_schema(), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.storage.uris import Uri


@pytest.fixture
def scratch(tmp_path: Path) -> Uri:
    return Uri(str(tmp_path / "scratch"))

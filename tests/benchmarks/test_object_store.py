"""A run whose decoded pictures are larger than the object store, on a Ray of its own with a store that is small."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.ray
def test_nothing_is_spilled() -> None:
    command = [sys.executable, "-m", "benchmarks.bench_object_store", "--times-store", "2", "--batch-ms", "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stderr[-3000:]  # it fails where something was spilled
    assert done.stdout.splitlines()[-1].startswith("| 228 | 200 | 2x | 16 |")

"""What a replica sets in its process before the model is there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pipeline.annotate.replica import use_expandable_segments

NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


@pytest.mark.parametrize("own", [{}, {NAMES[0]: "max_split_size_mb:64"}, {NAMES[1]: "max_split_size_mb:64"}], ids=str)
def test_gpu_memory_is_taken_as_the_user_says(own: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        # Set first, so that it is taken back also where there was none.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    use_expandable_segments()
    assert {name: os.environ[name] for name in NAMES if name in os.environ} == (
        own or {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    )


def test_pytorch_reads_how_to_take_memory_after_it_was_imported() -> None:
    """Every worker has imported it before it becomes a replica."""
    code = (
        "import os, torch\n"
        "os.environ['PYTORCH_ALLOC_CONF'] = 'expandable_segments:True'\n"
        "print(torch._C._accelerator_getAllocatorSettings())\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "expandable_segments:True", done.stderr

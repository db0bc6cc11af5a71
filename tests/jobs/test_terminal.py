"""What a person sees of a whole run on a terminal: our lines, and no other; what Ray said lies in a file."""

from __future__ import annotations

import os
import pty
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from testing.small_model import picture

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
_STAMP = r"[\d-]{10} [\d:,]{12} INFO"
_SEEN = [
    rf"{_STAMP} pipeline\.annotate\.run: 8 images in the manifest, 0 done, 8 to do",
    rf"{_STAMP} pipeline\.annotate\.rounds: reading the checkpoint, and connecting to Ray",
    rf"{_STAMP} pipeline\.cluster\.connect: Ray [\d.]+ at .*",
    r"[\d-]{10} [\d:,]{12} WARNING pipeline\.annotate\.rounds: failed: [125]\.png: not_an_image: .*",
    r"waiting for 1 replica of the model to start",
    r"loading the model: 0 of 1 replica ready",
    r"the first images are with the model: 1 of 1 replica ready",
    r"\d/8 images written \(\d segmented, \d failed\) \| .*",
    rf"{_STAMP} pipeline\.annotate\.summary\.page: .*",
    r"8 images = 4 annotated \+ 4 failed \(50\.00%\)",
    r"  4 not_an_image",
    r"      [1257]\.png: .*",
    r"      and 1 more",
    r"  all of them: maskfleet show .*",
    r"\d+ detections.*",
    r"this run: 8 images in .*",
    r".* lost to deaths",
    rf"{_STAMP} jobs\.annotate: exit code 0: finished: .*",
]


def on_a_terminal(arguments: list[str], environment: Mapping[str, str]) -> tuple[int, str]:
    """The exit code of a process, and all that it wrote to its terminal of 200 columns."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(ROOT)
        os.execvpe(sys.executable, [sys.executable, *arguments], dict(environment))
    written = bytearray()
    while True:
        try:
            more = os.read(terminal, 1 << 16)
        except OSError:  # nobody has it open any more
            break
        if not more:
            break
        written += more
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), written.decode()


def lines_of(written: str) -> list[str]:
    """What stood on the terminal at any time, without colours; what stood there again and again is there once."""
    parts = re.split(r"\r\x1b\[K|\r?\n", re.sub(r"\x1b\[[\d;]*m", "", written))
    return list(dict.fromkeys(part for part in parts if part))


@pytest.fixture
def config(tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    """Eight pictures, four of them damaged."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(8):
        if i in (1, 2, 5, 7):
            (pictures / f"{i}.png").write_bytes(b"no picture")
        else:
            Image.fromarray(picture(48, 64, seed=i)).save(pictures / f"{i}.png")
    return {
        "manifest": {"uri": str(pictures), "format": "folder"},
        "model": {"checkpoint": str(tiny_model), "batch_size": 2},
        "output": {"uri": str(tmp_path / "out"), "max_failed_fraction": 0.5},
    }


def test_a_run(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "annotate.yaml").write_text(yaml.safe_dump(config))
    # A short name, as Ray's sockets lie below it.
    with tempfile.TemporaryDirectory(prefix="mf", ignore_cleanup_errors=True) as folder:
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"TMPDIR": folder}
        command = ["-m", "maskfleet", "annotate", "--config", str(tmp_path / "annotate.yaml")]
        code, written = on_a_terminal(command, environment)
        assert code == 0, written
        (log,) = Path(folder).glob("ray/session_2*/logs/maskfleet-ray-*.log")
        assert "has constructor arguments in the object store" in log.read_text()
        assert list(Path(folder).glob("maskfleet*")) == []
    seen = lines_of(written)
    allowed = [re.compile(line) for line in _SEEN]
    assert [line for line in seen if not any(one.fullmatch(line) for one in allowed)] == []
    for one in (0, 1, 2, 7, -1):
        assert any(allowed[one].fullmatch(line) for line in seen), (allowed[one], seen)
    assert sum("failed: " in line for line in seen) == 3

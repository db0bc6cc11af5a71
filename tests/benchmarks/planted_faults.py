"""Cases of which it is known how they end."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from benchmarks.fuzz.case import Limits, Refused, Verdict, Wrong
from pipeline.errors import RunError, UserError

FILE = "planted.txt"

ENDS = {
    "fine": Verdict.OK,
    "refused": Verdict.REFUSED,
    "named": Verdict.REFUSED,
    "unnamed": Verdict.UNNAMED,
    "foreign": Verdict.FOREIGN,
    "no exception": Verdict.FOREIGN,
    "deep": Verdict.FOREIGN,
    "wrong": Verdict.WRONG,
    "sleeps": Verdict.HANG,
    "killed": Verdict.DEATH,
    "exits": Verdict.DEATH,
    "large": Verdict.DEATH,
    "large for a moment": Verdict.DEATH,
    "cannot be made": Verdict.DEATH,
}


class _Panic(BaseException):
    pass


@dataclass(frozen=True)
class PlantedCase:
    """A case that ends as its story says."""

    story: str
    names: Sequence[str] = (FILE,)

    def check(self) -> None:
        match self.story:
            case "refused":
                raise Refused
            case "named":
                raise RunError(f"/a/folder/{FILE} is broken")
            case "unnamed":
                raise UserError("a file is broken")
            case "foreign":
                raise KeyError(FILE)
            case "no exception":
                raise _Panic
            case "deep":
                self.check()
            case "wrong":
                raise Wrong("the oracle disagrees")
            case "sleeps":
                time.sleep(60)
            case "killed":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "exits":
                os._exit(3)
            case "large":
                held = bytearray(200 << 20)
                held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])
                time.sleep(60)
            case "large for a moment":
                bytearray(b"x") * (200 << 20)


class Planted:
    """A kind whose generator decides which."""

    name: ClassVar[str] = "planted"
    limits: ClassVar[Limits] = Limits(seconds=1.0, memory_bytes=100 << 20)

    def __init__(self, folder: Path) -> None:
        pass

    def make(self, rng: random.Random, folder: Path) -> PlantedCase:
        (folder / FILE).write_text(story := rng.choice(sorted(ENDS)))
        if story == "cannot be made":
            raise OSError(story)
        return PlantedCase(story)

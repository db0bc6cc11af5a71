"""What a case is, and how it is judged.

A case is made by a kind from a random generator of its own (``what``, seed and index decide it, and nothing else), lies
in a folder as files, and is tried in a child process. These are the verdicts::

    ok        the input was taken, and what was made of it is right as far as an oracle can tell
    refused   an error of ours that names the file; for pictures, a failure with one of the stages' codes
    death     the process died (a signal), or took more memory than a case may
    hang      it was not done in time
    foreign   an exception of another type
    wrong     an oracle disagrees
    unnamed   an error of ours that does not say which file it is about
"""

from __future__ import annotations

import random
import re
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import ClassVar, Protocol

from pipeline.errors import RunError, UserError

ROOT = Path(__file__).resolve().parents[2]


class Verdict(str, Enum):
    """What became of a case; the values are what is printed."""

    OK = "ok"
    REFUSED = "refused"
    DEATH = "death"
    HANG = "hang"
    FOREIGN = "foreign"
    WRONG = "wrong"
    UNNAMED = "unnamed"

    def __str__(self) -> str:
        return self.value

    @property
    def is_fault(self) -> bool:
        """Whether something has to be mended."""
        return self not in (Verdict.OK, Verdict.REFUSED)


@dataclass(frozen=True)
class Limits:
    """What one case may take.

    Attributes:
        seconds: of wall-clock time.
        memory_bytes: resident, on top of what the process had before.
    """

    seconds: float
    memory_bytes: int


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        cause: the same for faults that one mend would end, as far as can be told: they are counted together.
        detail: for people; a traceback, perhaps.
    """

    verdict: Verdict
    cause: str = ""
    detail: str = ""


class Wrong(Exception):
    """An oracle disagrees. ``cause`` is the same for all cases of the fault."""

    def __init__(self, cause: str, detail: str = "") -> None:
        super().__init__(f"{cause}: {detail}" if detail else cause)
        self.cause = cause


class Refused(Exception):
    """The input was refused in the form that is right for it, where that is not an error of ours."""


class Case(Protocol):
    """An input that lies in its folder, ready to be tried."""

    @property
    def story(self) -> str:
        """How it was made, for people."""

    def check(self) -> None:
        """Try it: returns where the input is taken and the result is right.

        Raises:
            Wrong: the result is not right.
            Refused: see there.
            UserError, RunError: the input is refused; `names` must be in the message.
        """

    @property
    def names(self) -> Sequence[str]:
        """The message of an error must hold one of these."""


class Kind(Protocol):
    """A kind of inputs. Made once in each process, with a folder for what all its cases share."""

    name: ClassVar[str]
    limits: ClassVar[Limits]

    def make(self, rng: random.Random, folder: Path) -> Case:
        """Write a case into an empty folder.

        Args:
            rng: what decides the case.
            folder: where its files go. All that is needed to see the fault again must be there.
        """


def judge(case: Case) -> Outcome:
    """Try a case; exceptions of every kind become verdicts."""
    try:
        case.check()
    except Refused as refusal:
        return Outcome(Verdict.REFUSED, detail=str(refusal))
    except Wrong as wrong:
        return Outcome(Verdict.WRONG, wrong.cause, str(wrong))
    except (UserError, RunError) as error:
        message = f"{type(error).__name__}: {error}"
        if any(name in str(error) for name in case.names):
            return Outcome(Verdict.REFUSED, detail=message)
        return Outcome(Verdict.UNNAMED, f"{type(error).__name__} at {_place(error)}", message)
    except BaseException as error:  # a panic of a Rust library is no Exception
        return Outcome(Verdict.FOREIGN, f"{type(error).__name__} at {_place(error)}", _shown(error))
    return Outcome(Verdict.OK)


def _place(error: BaseException) -> str:
    """Where in the project the error was raised, or left it for a library: ``pipeline/x.py, function``."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT / "pipeline"):
            return f"{path.relative_to(ROOT)}, {frame.name}"
    return "no module of the project"


def _shown(error: BaseException) -> str:
    """The traceback, without the hundreds of frames of a recursion."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    lines = [re.sub(r"(.{300}).+", r"\1 ...", line) for line in lines]
    return "\n".join(lines if len(lines) <= 40 else [*lines[:15], "...", *lines[-15:]])

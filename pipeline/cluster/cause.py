"""What went wrong in a task or actor, without what Ray wraps around it: this module does without Ray itself."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_CHAINED = re.compile(r"\n\s*(?:The above exception was the direct cause of|During handling of the above)[^\n]*\n")
# The line of a traceback that has the error itself; others begin with blanks, "ray::" or words.
_ERROR_LINE = re.compile(r"(?P<name>(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*)(?:: (?P<message>.*))?")


@dataclass(frozen=True)
class Cause:
    """An error as people need it.

    Attributes:
        kind: its class; the nearest that this process knows.
        name: of its class.
        message: without colours and tracebacks.
    """

    kind: type[BaseException]
    name: str
    message: str

    def line(self) -> str:
        """Its name and the first line of its message."""
        first, *_ = self.message.splitlines() or [""]
        return f"{self.name}: {first}"


def cause_of(error: BaseException) -> Cause:
    """What an error that came through Ray says was wrong; of any other, itself.

    Ray keeps the error of a task as an object, but of a chain of errors, and of actors that died, only the text.
    """
    while (inner := _inner(error)) is not None and (not _is_rays(inner) or _inner(inner) is not None):
        error = inner  # but for that of Ray Data, which is about blocks and attempts: what it was raised from is text
    text = _COLOURS.sub("", str(error))
    if not _is_rays(error):
        return Cause(type(error), type(error).__name__, text)
    for part in reversed(_CHAINED.split(text)):
        for line in part.splitlines()[1:]:
            match = _ERROR_LINE.fullmatch(line)
            if match and not match["name"].startswith("ray."):
                return Cause(_class(match["name"]), match["name"].rpartition(".")[2], match["message"] or "")
    return Cause(type(error), type(error).__name__, text)


def _inner(error: BaseException) -> BaseException | None:
    inner = getattr(error, "cause", None) if _is_rays(error) else None
    return inner if isinstance(inner, BaseException) else None


def _is_rays(error: BaseException) -> bool:
    return any(one.__module__.partition(".")[0] == "ray" for one in type(error).__mro__)


def _class(dotted: str) -> type[BaseException]:
    """The class of that name, if this process knows one."""
    module, _, name = dotted.rpartition(".")
    found = getattr(sys.modules.get(module or "builtins"), name, None)
    return found if isinstance(found, type) and issubclass(found, BaseException) else Exception

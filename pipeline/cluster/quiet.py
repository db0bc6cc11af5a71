"""What Ray says, kept from a job's terminal: a job tells of its progress itself, and what looks like an error is one.

Ray's C++ writes to the standard error at the level of errors what is none (that actors get their arguments through the
object store, that a node is gone which comes back); its Python logs and warns of what is for whoever writes it; the
cluster's notices go to the standard output. All of that goes into a file among the logs of Ray's session. What does not
look like a line of Ray's log, as the last words of a process that crashes, is seen.

A second process of a few lines reads what is written to the standard error, because it outlives a crash, and because
nothing that is written there may wait for this process' interpreter. It is this file, run as a script without site
packages, and so Ray is imported in functions only.
"""

from __future__ import annotations

import logging
import os
import re
import select
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from ray.data import DataContext

_STDERR = 2
_GOODBYE = b"\0goodbye\n"
_GOODBYE_S = 60.0
_LOOK_S = 0.5
# Lines of Ray's log below the level of what ends the process, and of gRPC's.
_RAYS = re.compile(
    rb"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [TDIWE] \d+ \d+\] "
    rb"|[IWE]\d{4} \d\d:\d\d:[\d.]+ +\d+ [^ ]+:\d+\] "
    rb"|WARNING: All log messages before absl::InitializeLog"
)
_MAY_BECOME_RAYS = re.compile(rb"[\[IWE].{0,80}", re.DOTALL)
_CONTINUED = re.compile(rb"[ \t\n]")


def quiet(context: DataContext) -> DataContext:
    """The same context, changed: Ray Data without progress bars and without advice to whoever writes stages."""
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.issue_detectors_config.high_memory_detector_config.detection_time_interval_s = -1
    return context


@dataclass
class RaysWords:
    """Where that goes which Ray says.

    Attributes:
        path: the file; ``None`` where it could not be kept apart, and is seen.
        kept: whether the file stays.
    """

    path: Path | None
    kept: bool = False

    def move_to(self, folder: Path) -> None:
        """Among Ray's own logs, where people look for it and where it stays; nothing, if it cannot be moved."""
        if self.path is not None:
            with suppress(OSError):
                self.path = self.path.rename(folder / self.path.name)
                self.kept = True


@contextmanager
def apart() -> Iterator[RaysWords]:
    """What Ray says in the block goes into a file; where that cannot be, all of it is seen: nothing here is worth an
    error. What this process says itself does not pass through the second process.
    """
    with ExitStack() as stack:
        try:
            number, name = tempfile.mkstemp(prefix="maskfleet-ray-", suffix=".log")
        except OSError:
            yield RaysWords(None)
            return
        words = RaysWords(Path(name))
        stack.callback(_remove_unless_kept, words)
        log = stack.enter_context(open(number, "a", encoding="utf-8", errors="replace", buffering=1))
        with suppress(OSError, AttributeError):  # it is closed, or files run out
            stack.enter_context(_sieved(log))
        stack.enter_context(_logged(log))
        stack.enter_context(_warned(log))
        yield words


def _remove_unless_kept(words: RaysWords) -> None:
    if words.path is not None and not words.kept:
        with suppress(OSError):  # who cleans up there was faster
            words.path.unlink()


@contextmanager
def _sieved(log: TextIO) -> Iterator[None]:
    """The standard error is a pipe to the second process; Python's own, and that of loggers, stays what it was."""
    before = sys.stderr
    with ExitStack() as stack:
        terminal = os.dup(_STDERR)
        stack.callback(os.close, terminal)
        read_end, write_end = os.pipe()
        command = [sys.executable, "-I", "-S", os.path.abspath(__file__), str(os.getpid())]
        try:
            # In a session of its own, as it is to outlive what ends the job's group.
            sieve = subprocess.Popen(
                command, stdin=read_end, stdout=terminal, stderr=log, cwd="/", start_new_session=True
            )
        except BaseException:
            os.close(write_end)
            raise
        finally:
            os.close(read_end)
        stack.callback(_end, sieve, terminal, write_end)
        os.dup2(write_end, _STDERR)
        if _number(before) == _STDERR:
            # A descriptor of its own, which is closed when nobody has it any more: who took the stream may keep it.
            own = open(os.dup(terminal), "w", buffering=1, encoding=before.encoding, errors=before.errors)  # noqa: SIM115
            stack.callback(_speak_through, own, before)
            _speak_through(before, own)
        yield


def _number(stream: TextIO) -> int | None:
    with suppress(OSError, ValueError, AttributeError):  # of no file, as in a notebook
        return stream.fileno()
    return None


def _speak_through(old: TextIO, new: TextIO) -> None:
    with suppress(OSError):  # nobody reads it any more
        old.flush()
    if sys.stderr is old:
        sys.stderr = new
    for handler in logging.root.handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is old:
            handler.setStream(new)


def _end(sieve: subprocess.Popen[bytes], terminal: int, write_end: int) -> None:
    os.dup2(terminal, _STDERR)
    with suppress(OSError):  # it has gone already
        os.write(write_end, _GOODBYE)
    os.close(write_end)
    try:
        sieve.wait(_GOODBYE_S)
    except subprocess.TimeoutExpired:
        sieve.kill()
        sieve.wait()


@contextmanager
def _logged(log: TextIO) -> Iterator[None]:
    """Ray's loggers, also those that it makes later, and the notices of the cluster."""
    from ray._private import worker
    from ray._private.log import PlainRayHandler

    def emit(handler: logging.Handler, record: logging.LogRecord) -> None:
        with suppress(OSError, ValueError):  # the disk is full; the block is over
            log.write(handler.format(record) + "\n")

    def notice(data: dict[str, Any], *_: Any, **__: Any) -> None:
        with suppress(OSError, ValueError):
            log.writelines(f"({data.get('pid')}) {line}\n" for line in data.get("lines", ()))

    with _replaced(PlainRayHandler, "emit", emit), _replaced(worker, "print_to_stdstream", notice):
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name, None)
    if before is None:  # of another Ray: then the lines are seen
        yield
        return
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def _warned(log: TextIO) -> Iterator[None]:
    """Warnings that Ray gives, whoever is said to be to blame."""
    before = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *more: Any) -> None:
        if _is_rays_call():
            with suppress(OSError, ValueError):
                log.write(warnings.formatwarning(message, category, filename, lineno))
        else:
            before(message, category, filename, lineno, *more)

    with _replaced(warnings, "showwarning", show):
        yield


def _is_rays_call() -> bool:
    """Whether Ray is at work here: it, or a library that it uses, gives the warning."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] != "ray":
        frame = frame.f_back
    return frame is not None


class Sieve:
    """Tells lines of Ray's log from others, which do not wait for their end where they cannot be Ray's.

    Args:
        rays: takes what is Ray's; a line that begins with blanks belongs to the one before.
        others: takes all else.
    """

    def __init__(self, rays: Callable[[bytes], object], others: Callable[[bytes], object]) -> None:
        self._rays, self._others = rays, others
        self._taker = others  # of the last line, or of the rest of this one
        self._in_line = False
        self._waiting = b""

    def take(self, more: bytes) -> None:
        """What comes next."""
        *lines, self._waiting = (self._waiting + more).split(b"\n")
        for line in lines:
            self._give(line + b"\n")
        if self._in_line or not _MAY_BECOME_RAYS.fullmatch(self._waiting):
            self.flush()

    def flush(self) -> None:
        """No more comes of this line, or not soon."""
        if self._waiting:
            self._give(self._waiting)
            self._waiting = b""

    def _give(self, part: bytes) -> None:
        if not self._in_line:
            goes_on = self._taker is self._rays and _CONTINUED.match(part)
            self._taker = self._rays if goes_on or _RAYS.match(part) else self._others
        self._in_line = not part.endswith(b"\n")
        self._taker(part)


def main() -> None:
    """The second process: from the standard input, what Ray logged to the standard error, the rest to the output."""
    parent = int(sys.argv[1])
    sieve = Sieve(lambda part: _write(2, part), lambda part: _write(1, part))
    held = b""
    while _GOODBYE not in held:
        if not select.select([0], [], [], _LOOK_S)[0]:
            sieve.flush()
            if os.getppid() != parent:  # others may hold the pipe still
                break
            continue
        more = os.read(0, 1 << 16)
        if not more:
            break
        held += more
        at = held.rfind(_GOODBYE[:1])
        whole = at if at >= 0 and _GOODBYE.startswith(held[at:][: len(_GOODBYE)]) else len(held)
        sieve.take(held[:whole])
        held = held[whole:]
    sieve.flush()
    if not held:
        where = os.readlink("/proc/self/fd/2")
        _write(1, f"the process has ended without a word more; what Ray said is in {where}\n".encode())


def _write(number: int, content: bytes) -> None:
    rest = memoryview(content)
    with suppress(OSError):  # nobody reads it any more, or the disk is full
        while rest:
            rest = rest[os.write(number, rest) :]


if __name__ == "__main__":
    main()

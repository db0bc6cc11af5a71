"""A child process that tries one case after the other: what it does, and how its parent watches it.

Children live long, because starting one takes seconds and a case milliseconds. The parent knows at every moment which
case a child is at and since when, looks at its resident memory, and kills it at the limit.
"""

from __future__ import annotations

import faulthandler
import importlib
import multiprocessing
import os
import random
import re
import shutil
import signal
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import psutil

from benchmarks.fuzz.case import ROOT, Kind, Limits, Outcome, Verdict, judge

_START_S = 120.0  # imports on a busy machine
_MAKE_S = 30.0  # more than any case takes to be made
_STACK_S = 0.1  # for a child to write down where it is
_DYING_S = 5.0  # between the end of a process's files and its exit code
_TAIL_BYTES = 4000
_FRAME = re.compile(rf'File "{re.escape(str(ROOT))}/(pipeline/[^"]+)", line \d+ in (\S+)')


@dataclass(frozen=True)
class Tried:
    """A case and what became of it.

    Attributes:
        index: of the case.
        story: how it was made.
        seconds: from its start to its end, or its limit.
        memory_bytes: its peak on top of what the process had before, as far as the system tells.
        kept: its files, where it was a fault.
    """

    index: int
    story: str
    outcome: Outcome
    seconds: float
    memory_bytes: int
    kept: Path | None = None


@dataclass(frozen=True)
class _Ready:
    """Sent once, when the kind is loaded."""


@dataclass(frozen=True)
class _Started:
    """Sent when a case lies ready, right before it is tried."""

    story: str


@dataclass(frozen=True)
class _Done:
    """Sent when a case is over."""

    outcome: Outcome
    seconds: float
    memory_bytes: int


def load_kind(place: str) -> type[Kind]:
    """The class that ``module:class`` names."""
    module, _, name = place.partition(":")
    return cast(type[Kind], getattr(importlib.import_module(module), name))


def case_generator(what: str, seed: int, index: int) -> random.Random:
    """All that decides a case: the kind's name, the campaign's seed, and its index."""
    return random.Random(f"{what} {seed} {index}")


def serve(channel: Connection, place: str, seed: int, folder: Path) -> None:
    """The child: takes indices from the channel, tries these cases, answers; ends when the channel does."""
    log = os.open(folder / "stderr.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    warnings.simplefilter("default")
    shared, own = folder / "shared", folder / "case"
    shutil.rmtree(shared, ignore_errors=True)
    shared.mkdir()
    os.environ["TMPDIR"] = str(shared)
    kind_class = load_kind(place)
    kind = cast(Any, kind_class)(shared)
    channel.send(_Ready())
    while True:
        try:
            index = channel.recv()
        except EOFError:
            return
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir()
        case = kind.make(case_generator(kind.name, seed, index), own)
        channel.send(_Started(case.story))
        before = _restart_peak()
        started = time.perf_counter()
        outcome = judge(case)
        channel.send(_Done(outcome, time.perf_counter() - started, max(0, _peak_bytes() - before)))


def _restart_peak() -> int:
    """Forget the peak of the resident memory so far, where the system can; bytes that are resident now."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak_bytes()


def _peak_bytes() -> int:
    """The largest resident memory since `_restart_peak`; 0 where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) << 10 if found else 0


class Child:
    """A child as its parent sees it.

    Args:
        place: of the kind, as `load_kind` takes it.
        seed: of the campaign.
        folder: for the files of its cases and its standard error; must not exist.
        limits: of a case.
    """

    def __init__(self, place: str, seed: int, folder: Path, limits: Limits) -> None:
        self._place, self._seed, self._folder, self._limits = place, seed, folder, limits
        folder.mkdir(parents=True)
        self._log = folder / "stderr.txt"
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._channel, theirs = context.Pipe()
        arguments = (theirs, self._place, self._seed, self._folder)
        self._process = context.Process(target=serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self._system = psutil.Process(self._process.pid)
        self._index: int | None = None
        self._story, self._trying = "", False
        self._since = time.monotonic()
        self._log_start = self._log.stat().st_size if self._log.exists() else 0
        self._resting_bytes = 0
        self._first_bytes: int | None = None  # resident, when it began to wait for its first case

    @property
    def sources(self) -> list[Connection | int]:
        """What to wait for: something may have happened."""
        return [self._channel, self._process.sentinel]

    @property
    def is_busy(self) -> bool:
        """Whether it has a case."""
        return self._index is not None

    @property
    def is_ready(self) -> bool:
        """Whether it waits for a case.

        Raises:
            RuntimeError: it cannot start.
        """
        if self._first_bytes is None:
            if self._message() is None:
                if self._process.exitcode is not None or time.monotonic() - self._since > _START_S:
                    raise RuntimeError(f"a child process did not start:\n{self._log_tail()}")
                return False
            self._first_bytes = self._resident_bytes()
        return self._index is None

    def begin(self, index: int) -> None:
        """Give it a case."""
        self._index, self._story, self._trying = index, "(it was being made)", False
        self._since = time.monotonic()
        self._log_start = self._log.stat().st_size
        with suppress(BrokenPipeError):  # it died while it waited: `look` finds it dead
            self._channel.send(index)

    def look(self) -> Tried | None:
        """The case that has come to its end, if one has; a child that did not survive it is replaced later."""
        if self._index is None:
            return None
        while (message := self._message()) is not None:
            if isinstance(message, _Done):
                return self._finished(message)
            if isinstance(message, _Started):
                self._story, self._trying, self._since = message.story, True, time.monotonic()
                self._resting_bytes = self._resident_bytes()
        seconds = time.monotonic() - self._since
        if self._process.exitcode is not None:
            return self._dead(seconds)
        if seconds > (self._limits.seconds if self._trying else _MAKE_S):
            return self._killed(Verdict.HANG, f"after {self._limits.seconds:g} s", seconds)
        grown = self._resident_bytes() - self._resting_bytes
        if self._trying and grown > self._limits.memory_bytes:
            return self._killed(Verdict.DEATH, self._too_large, seconds, grown)
        return None

    def keep(self, target: Path) -> Path:
        """Move the files of the case that has come to its end."""
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(self._folder / "case", target)
        return target

    def renew(self) -> int:
        """Start another process where this one is dead, or has kept more than a case may take; 1 for the latter."""
        if self._process.exitcode is None:
            if self._resident_bytes() - (self._first_bytes or 0) <= self._limits.memory_bytes:
                return 0
            self.end()
            self._start()
            return 1
        self.end()
        self._start()
        return 0

    def end(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.join()
        self._channel.close()

    def noise_lines(self) -> int:
        """Lines that came to its standard output and error."""
        return self._log.read_bytes().count(b"\n") if self._log.exists() else 0

    def _message(self) -> _Ready | _Started | _Done | None:
        """The next one, if there is one; none of a dead child's is left when its exit code is known."""
        try:
            return self._channel.recv() if self._channel.poll() else None
        except (EOFError, OSError):  # it has closed its end, by dying
            self._process.join(_DYING_S)
            return None

    def _finished(self, done: _Done) -> Tried:
        outcome = done.outcome
        if done.memory_bytes > self._limits.memory_bytes and not outcome.verdict.is_fault:
            outcome = Outcome(Verdict.DEATH, self._too_large, f"a peak of {done.memory_bytes >> 20} MiB")
        return self._tried(outcome, done.seconds, done.memory_bytes)

    def _dead(self, seconds: float) -> Tried:
        code = self._process.exitcode or 0
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return self._tried(Outcome(Verdict.DEATH, cause + self._where(), self._log_tail()), seconds, 0)

    def _killed(self, verdict: Verdict, cause: str, seconds: float, memory_bytes: int = 0) -> Tried:
        self._system.send_signal(signal.SIGUSR1)  # it writes its stacks down, even within a library's call
        self._process.join(_STACK_S)
        self._process.kill()
        self._process.join()
        return self._tried(Outcome(verdict, cause + self._where(), self._log_tail()), seconds, memory_bytes)

    def _tried(self, outcome: Outcome, seconds: float, memory_bytes: int) -> Tried:
        assert self._index is not None
        index, self._index = self._index, None
        return Tried(index, self._story, outcome, seconds, memory_bytes)

    def _where(self) -> str:
        """The innermost frame of the project in the stacks that the child has written."""
        found = _FRAME.search(self._log_tail())
        return f" at {found[1]}, {found[2]}" if found else ""

    @property
    def _too_large(self) -> str:
        return f"more than {self._limits.memory_bytes >> 20} MiB"

    def _resident_bytes(self) -> int:
        try:
            return int(self._system.memory_info().rss)
        except psutil.Error:
            return 0

    def _log_tail(self) -> str:
        """The last of what the current case has written."""
        return self._log.read_bytes()[self._log_start :][-_TAIL_BYTES:].decode(errors="replace")

"""SIGINT and SIGTERM end a job in order, and a second one ends it at once.

The first raises `KeyboardInterrupt` in the main thread, as Ctrl-C does everywhere in Python: on its way out, contexts
remove what is temporary and release locks. It is that exception and no other because Ray's C++ lets only that one pass;
the `SystemExit` of Ray's own handler for SIGTERM makes it abort the process. Work in hand that is worth finishing is
done under `deferred`.

Ray starts its processes with SIGINT blocked, so a Ctrl-C, which the whole process group gets, ends the driver alone.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Wrappers send to their child and to the group, so that one wish to stop comes twice (GNU timeout does).
_SAME_WISH_S = 1.0


@dataclass
class _State:
    """Of this process, whose handlers are its own.

    Attributes:
        taken_over: whether the handlers are ours.
        received: the first signal, and when it came.
        deferring: whether it waits until the work in hand is done.
    """

    taken_over: bool = False
    received: signal.Signals | None = None
    received_at: float = 0.0
    deferring: bool = False


_state = _State()


@contextmanager
def taken_over() -> Iterator[None]:
    """The signals end this block in order. Within another such block, and in other threads than the main one, nothing.

    A signal that is ignored stays so: whoever started the process wants it to outlive a terminal.
    """
    if _state.taken_over or threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.taken_over, _state.received = True, None
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, _handle)
        yield
    finally:
        _state.deferring = True  # the block is at its end: what comes now would end its caller's clean-up, half done
        _put_back(before)
        _state.taken_over = _state.deferring = False


@contextmanager
def kept() -> Iterator[None]:
    """What the block does to the handlers of `taken_over` is undone at its end; Ray installs its own when it starts."""
    if not _state.taken_over or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    except SystemExit:  # Ray's handler, before it could be undone
        _state.received, _state.received_at = signal.SIGTERM, time.monotonic()
        raise KeyboardInterrupt from None
    finally:
        _put_back(before)


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Within the block the first signal raises nothing; the block asks for it, and ends soon where it was received.

    Raises:
        KeyboardInterrupt: at the end, if a signal was received within the block.
    """
    _state.deferring = True
    try:
        yield lambda: received() is not None
    finally:
        _state.deferring = False
    if received() is not None:
        raise KeyboardInterrupt


def received() -> signal.Signals | None:
    """The signal that asked this process to stop, if one did."""
    return _state.received if _state.taken_over else None


def _handle(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if _state.received is not None:
        if now - _state.received_at < _SAME_WISH_S:
            return
        os._exit(128 + number)
    _state.received, _state.received_at = signal.Signals(number), now
    # Not the log, which may be in the middle of a line.
    with suppress(OSError):
        os.write(2, f"\n{_state.received.name}: ending in order; a second signal ends at once\n".encode())
    if not _state.deferring:
        raise KeyboardInterrupt


def _put_back(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        # None: one that was not installed from Python, and cannot be from here.
        signal.signal(number, signal.SIG_DFL if handler is None else handler)

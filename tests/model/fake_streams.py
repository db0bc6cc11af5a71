"""CUDA's streams, events and pinned memory where there is no GPU: every stream is a thread, with a queue of its work.

So what is not waited for is not done in order, and comes out wrong.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

_PATIENCE_S = 20


class FakeEvent:
    """Set when its stream gets there."""

    def __init__(self) -> None:
        self._reached = threading.Event()

    def synchronize(self) -> None:
        assert self._reached.wait(_PATIENCE_S)

    def query(self) -> bool:
        return self._reached.is_set()

    def reach(self) -> None:
        self._reached.set()


class FakeStream:
    """A queue, and the thread that works through it."""

    def __init__(self, device: Any = None) -> None:
        self._work: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def put(self, work: Callable[[], Any] | None) -> None:
        self._work.put(work)

    def record_event(self) -> FakeEvent:
        event = FakeEvent()
        self.put(event.reach)
        return event

    def wait_event(self, event: FakeEvent) -> None:
        self.put(event.synchronize)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()


class FakeStreams:
    """Patched into torch: tensors that ask for CUDA lie on the CPU, and copies that need not block are queued.

    Attributes:
        pinned: sizes in bytes of all pinned memory that was asked for.
        copies: of each queued copy, whether it was "in" from pinned memory, "out" to it, or "pageable".
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._empty, self._copy = torch.empty, Tensor.copy_
        self._current = self.compute = FakeStream()
        self._streams = [self.compute]
        self._pinned: dict[int, Tensor] = {}
        self.pinned: list[int] = []
        self.copies: list[str] = []
        monkeypatch.setattr(torch, "empty", self._fake_empty)
        monkeypatch.setattr(Tensor, "copy_", lambda to, source, non_blocking=False: self._fake_copy(to, source))
        monkeypatch.setattr(torch.cuda, "Stream", self._fake_stream)
        monkeypatch.setattr(torch.cuda, "stream", self._fake_current)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self._current)

    def queued(self, compute: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """The same as a kernel would: the result has its place at once and its values later."""

        def launch(given: Tensor) -> Tensor:
            result = compute(torch.zeros_like(given))
            self._current.put(lambda: self._copy(result, compute(given)))
            return result

        return launch

    def close(self) -> None:
        for stream in self._streams:
            stream.put(None)

    def _fake_empty(self, *shape: Any, pin_memory: bool = False, device: Any = None, **options: Any) -> Tensor:
        memory = self._empty(*shape, **options)
        if pin_memory:
            self.pinned.append(memory.nbytes)
            self._pinned[memory.untyped_storage().data_ptr()] = memory
        return memory

    def _fake_copy(self, to: Tensor, source: Tensor) -> Tensor:
        ends = [tensor.untyped_storage().data_ptr() in self._pinned for tensor in (source, to)]
        self.copies.append("in" if ends[0] else "out" if ends[1] else "pageable")
        self._current.put(lambda: self._copy(to, source))
        return to

    def _fake_stream(self, device: Any) -> FakeStream:
        self._streams.append(FakeStream())
        return self._streams[-1]

    @contextmanager
    def _fake_current(self, stream: FakeStream) -> Iterator[None]:
        before, self._current = self._current, stream
        try:
            yield
        finally:
            self._current = before

"""Streams and events of the pretended device: all is computed at once, but what would be unordered is an error.

Each stream counts the launches it was given, and knows how far it has waited for the others (a vector clock); so does
the host. A piece of memory remembers who wrote and who read it. So a use that nothing orders behind an earlier one is
found, and what is copied to the host without waiting is rubbish there until the host has waited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Clock = dict[int, int]  # by a stream's number, how many of its launches are known to be done


class UnorderedAccess(RuntimeError):
    """Two streams use the same memory, one of them writes, and nothing makes the later one wait."""


class Memory:
    """Who used a piece of memory, by stream the tick of the last time; shared by all tensors that are views of it."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self.home = streams.current.number
        self.written: Clock = {}
        self.read: Clock = {}
        self.kept_for: set[int] = set()  # streams that PyTorch's allocator was told of by `record_stream`
        self.in_graph = False  # a graph's memory is its own for as long as it lives

    def belong_to(self, streams: Streams) -> None:
        """Begin anew on another device: a cache may have kept the tensor."""
        if self._streams is not streams:
            self._streams, self.home, self.written, self.read = streams, streams.default.number, {}, {}

    def __del__(self) -> None:
        # The allocator gives freed memory to the next tensor of the stream it came from, at once.
        others = {s: t for s, t in {**self.read, **self.written}.items() if s not in (self.home, *self.kept_for)}
        if not self.in_graph and not self._streams.covers(self.home, others):
            self._streams.unsafe_frees.append(f"memory of stream {self.home}, used by {sorted(others)}")


@dataclass
class _Pending:
    """What the host sees later."""

    clock: Clock
    show: Callable[[], object]


class Streams:
    """All streams of the device, and what the host has waited for.

    Args:
        on_wait: called with its kind when the host is about to wait for a stream or an event.

    Attributes:
        current: the stream that the next launch goes to.
        unsafe_frees: memory that was freed while another stream than its own may have been using it.
    """

    def __init__(self, on_wait: Callable[[str], None]) -> None:
        self.on_wait = on_wait
        self.host: Clock = {}
        self.unsafe_frees: list[str] = []
        self._all: list[Stream] = []
        self._pending: list[_Pending] = []
        self.current = self.default = self.new()

    def new(self, device: Any = None, priority: int = 0) -> Stream:
        """As ``torch.cuda.Stream(...)``."""
        self._all.append(Stream(self, len(self._all)))
        return self._all[-1]

    @contextmanager
    def on(self, stream: Stream | None) -> Iterator[None]:
        """As ``torch.cuda.stream(...)``."""
        before = self.current
        self.current = stream or before
        try:
            yield
        finally:
            self.current = before

    def covers(self, stream: int, uses: Mapping[int, int]) -> bool:
        """Whether what a stream is given now starts after all of these uses by others."""
        known = self._all[stream].clock
        return all(tick <= max(known.get(s, 0), self.host.get(s, 0)) for s, tick in uses.items() if s != stream)

    def launch(self, reads: list[Memory], writes: list[Memory], op: str) -> None:
        """An op on the current stream.

        Raises:
            UnorderedAccess: another stream's use of its memory may be under way.
        """
        stream = self.current
        for memory in (*reads, *writes):
            memory.belong_to(self)
        for memory in reads:
            self._check(memory.written, f"{op} reads")
        for memory in writes:
            self._check({**memory.read, **memory.written}, f"{op} writes")
        tick = stream.advance()
        for memory in reads:
            memory.read[stream.number] = tick
        for memory in writes:
            memory.written, memory.read = {stream.number: tick}, {}

    def _check(self, uses: Clock, what: str) -> None:
        if not self.covers(self.current.number, uses):
            raise UnorderedAccess(f"{what} on stream {self.current.number} what others use: {sorted(uses)}")

    def show_later(self, show: Callable[[], object]) -> None:
        """What the host sees once it has waited for all that the current stream was given."""
        self._pending.append(_Pending(dict(self.current.clock), show))

    def host_waits(self, clock: Mapping[int, int]) -> None:
        """For all that a clock counts."""
        merge(self.host, clock)
        waiting, self._pending = self._pending, []
        for pending in waiting:
            done = all(self.host.get(s, 0) >= tick for s, tick in pending.clock.items())
            if done:
                pending.show()
            else:
                self._pending.append(pending)

    def host_waits_for_all(self) -> None:
        """As ``torch.cuda.synchronize()``."""
        for stream in self._all:
            self.host_waits(stream.clock)

    def check_frees(self) -> None:
        """Raise if memory was freed too early.

        Raises:
            UnorderedAccess: it was.
        """
        if self.unsafe_frees:
            raise UnorderedAccess(f"freed while another stream may have used it: {self.unsafe_frees[:3]}")


class Stream:
    """In the place of ``torch.cuda.Stream``."""

    def __init__(self, streams: Streams, number: int) -> None:
        self._streams = streams
        self._before: list[Stream] = []
        self.number = number
        self.clock: Clock = {number: 0}

    def advance(self) -> int:
        """Count one launch; it starts after all that the host has waited for."""
        merge(self.clock, self._streams.host)
        self.clock[self.number] += 1
        return self.clock[self.number]

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event(self._streams)
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        merge(self.clock, event.clock)

    def wait_stream(self, stream: Stream) -> None:
        merge(self.clock, stream.clock)

    def synchronize(self) -> None:
        if not self.query():
            self._streams.on_wait("stream")
        self._streams.host_waits(self.clock)

    def query(self) -> bool:
        return self._streams.host.get(self.number, 0) >= self.clock[self.number]

    def __enter__(self) -> Stream:
        self._before.append(self._streams.current)
        self._streams.current = self
        return self

    def __exit__(self, *error: object) -> None:
        self._streams.current = self._before.pop()


@dataclass
class Event:
    """In the place of ``torch.cuda.Event``; no time passes on the pretended device."""

    streams: Streams
    enable_timing: bool = False
    blocking: bool = False
    interprocess: bool = False
    external: bool = False
    clock: Clock = field(default_factory=dict)

    def record(self, stream: Stream | None = None) -> None:
        self.clock = dict((stream or self.streams.current).clock)

    def wait(self, stream: Stream | None = None) -> None:
        (stream or self.streams.current).wait_event(self)

    def synchronize(self) -> None:
        if not self.query():
            self.streams.on_wait("event")
        self.streams.host_waits(self.clock)

    def query(self) -> bool:
        return all(self.streams.host.get(s, 0) >= tick for s, tick in self.clock.items())

    def elapsed_time(self, end: Event) -> float:
        return 0.0


def merge(clock: Clock, other: Mapping[int, int]) -> None:
    """Let a clock know what another one knows."""
    for stream, tick in other.items():
        clock[stream] = max(clock.get(stream, 0), tick)

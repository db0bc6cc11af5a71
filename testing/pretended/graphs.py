"""CUDA graphs of the pretended device: what was launched while a graph was captured, to be run again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from testing.pretended.records import Launch
from testing.pretended.streams import Memory

_RUBBISH = 0xFF  # in each byte: NaN as a float, -1 as an integer


class Owner(Protocol):
    """The device that a graph is captured on."""

    def begin_capture(self, graph: Graph) -> None: ...

    def end_capture(self) -> None: ...

    def replayed(self, graph: Graph, reads: list[Memory], writes: list[Memory]) -> None: ...


class _Step(NamedTuple):
    compute: Callable[[], Any]
    results: list[Tensor]  # those that are not written in place


class Graph:
    """In the place of ``torch.cuda.CUDAGraph``: replays what was captured, into the same memory.

    Attributes:
        launches: what a replay launches.
    """

    def __init__(self, owner: Owner, keep_graph: bool = False) -> None:
        self._owner = owner
        self._steps: list[_Step] = []
        self._reads: dict[int, Memory] = {}
        self._writes: dict[int, Memory] = {}
        self.launches: list[Launch] = []

    def use(self, reads: Sequence[Memory], writes: Sequence[Memory]) -> None:
        """What one step reads and writes."""
        for memory in writes:
            memory.in_graph = True
            self._writes[id(memory)] = memory
        self._reads.update((id(memory), memory) for memory in reads)

    def keep(self, compute: Callable[[], Any], results: Sequence[Tensor], in_place: Mapping[int, Any]) -> None:
        """One step: its results go into the tensors that the capture gave, unless it worked in place."""
        self._steps.append(_Step(compute, [t if id(t) not in in_place else t.new_empty(0) for t in results]))

    def capture_begin(self, *args: Any, **kwargs: Any) -> None:
        if self._steps:
            raise RuntimeError("this graph was captured already")
        self._owner.begin_capture(self)

    def capture_end(self) -> None:
        self._owner.end_capture()
        for step in self._steps:  # nothing has run yet
            for result in step.results:
                spoil(result)

    def replay(self) -> None:
        """All steps again; for the host one call."""
        for step in self._steps:
            again = [t for t in tree_leaves(step.compute()) if isinstance(t, Tensor)]
            for old, new in zip(step.results, again, strict=True):
                if old.numel():
                    old.copy_(new)
        reads = [memory for key, memory in self._reads.items() if key not in self._writes]
        self._owner.replayed(self, reads, list(self._writes.values()))

    def reset(self) -> None:
        self._steps, self._reads, self._writes, self.launches = [], {}, {}, []

    def pool(self) -> tuple[int, int]:
        return (0, 1)


def spoil(tensor: Tensor) -> None:
    """Fill a tensor on the CPU with rubbish."""
    if tensor.numel():
        tensor.copy_(torch.full((tensor.element_size(),), _RUBBISH, dtype=torch.uint8).view(tensor.dtype)[0])

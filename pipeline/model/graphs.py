"""CUDA graphs: the work on a batch is recorded once for each of the common shapes, and then replayed in one launch.

The forward of a detector is a thousand small launches, and launching them takes the host as long as computing them
takes the GPU. A recorded graph holds the same kernels with the same arguments, down to the addresses of its tensors.
So everything here is about memory: what is recorded reads its inputs where they lay, its temporary tensors and its
output lie in a pool that all graphs share, and one replay overwrites what another left there.

B images, H W padded input size.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Images ``(B, 3, H, W)``, their sizes ``(B, 2)`` and scale factors ``(B, 2)``, all float32, and the plan of the shape
# to one tensor.
Forward = Callable[..., Tensor]

# With COCO's mix of sizes, 41 shapes, the 24 commonest pairs of shape and batch are most of the batches. Each costs an
# output and a record of its launches, megabytes; temporary tensors and inputs are shared.
MAX_GRAPHS = 24
# Recording costs a forward on the host and waits for the device, so what comes once is not worth it. That a pair was
# run before is needed as well: kernels are compiled and chosen, and libraries load, where they are first called,
# and none of that may happen while a graph is recorded.
_USES_BEFORE = 1
# A graph gives way only to a pair that came so many times as often. So a pair is recorded a few times at most, however
# long the job, also where more pairs are equally common than there is room for. The least recently used one instead
# would be recorded again and again there.
_MORE_OFTEN = 2

logger = logging.getLogger(__name__)


class GraphedForward:
    """A forward that replays CUDA graphs where it can, and else runs as it is. The results are its own either way.

    Batches are not filled up to a few sizes: an image of padding costs as much of the GPU as any other in each
    replay, and a batch of a size that is too rare for a graph is run as it is.

    To be called from one thread and on one stream, under the same modes (inference, precision) each time.

    Args:
        forward: depends on nothing but its arguments and weights that stay where they are; waits for the device
            nowhere. The plan is a function of the images' shape.
        device: a CUDA device.
    """

    def __init__(self, forward: Forward, device: torch.device) -> None:
        self._forward = forward
        self._device = device
        self._room = MAX_GRAPHS
        self._uses: Counter[torch.Size] = Counter()
        self._graphs: dict[torch.Size, _Graph] = {}
        self._inputs = torch.empty(0, device=device)
        self._stream: torch.cuda.Stream | None = None

    def __call__(self, images: Tensor, image_sizes: Tensor, scale_factors: Tensor, plan: Any) -> Tensor:
        """What the forward gives, in memory of its own: no later call changes it."""
        shape = images.shape
        graph = self._graphs.get(shape)
        if graph is None and self._is_due(shape):
            graph = self._record(images, image_sizes, scale_factors, plan)
        if graph is not None:
            result = graph.replay(images, image_sizes, scale_factors)
        else:
            result = self._forward(images, image_sizes, scale_factors, plan)
        self._uses[shape] += 1  # here, as what failed half-way has not made everything ready
        return result

    def make_room(self) -> bool:
        """Drop all graphs, for work that has no memory beside them; there will be half as many at most from now on.

        Returns:
            False: there are none.
        """
        if not self._graphs:
            return False
        logger.warning("out of memory beside %d CUDA graphs: they are dropped", len(self._graphs))
        self._room = len(self._graphs) // 2
        self._drop(*self._graphs)
        return True

    def _is_due(self, shape: torch.Size) -> bool:
        """Whether to record this one now. Makes room for it."""
        uses = self._uses[shape]
        if uses < _USES_BEFORE:
            return False
        if len(self._graphs) < self._room:
            return True
        rarest = min(self._graphs, key=self._uses.__getitem__, default=None)
        if rarest is None or uses < _MORE_OFTEN * self._uses[rarest]:
            return False
        self._drop(rarest)
        return True

    def _record(self, images: Tensor, image_sizes: Tensor, scale_factors: Tensor, plan: Any) -> _Graph | None:
        """Record the forward on inputs like these; None where that cannot be done."""
        with torch.cuda.device(self._device):
            try:
                inputs = self._place(images, image_sizes, scale_factors)
                self._stream = self._stream or torch.cuda.Stream()
                graph = torch.cuda.CUDAGraph()
                # A pool is done with when its last graph goes, so the first graph after that needs another.
                others = next(iter(self._graphs.values()), None)
                pool = torch.cuda.graph_pool_handle() if others is None else others.graph.pool()
                # The outer `stream` is for a recording that fails: older versions leave the inner one current.
                # Thread-local: other threads may use the device meanwhile, as those that stage the next batch do.
                with (
                    torch.cuda.stream(torch.cuda.current_stream()),
                    torch.cuda.graph(graph, pool, self._stream, capture_error_mode="thread_local"),
                ):
                    output = self._forward(*inputs, plan)
            except RuntimeError as error:
                # Memory is full, or the forward cannot be recorded: there is no room for more than there are. A device
                # that is lost shows again in the forward that comes next.
                logger.warning("no CUDA graph of %s, and no more of others: %s", tuple(images.shape), error)
                self._room = len(self._graphs)
                return None
        self._graphs[images.shape] = _Graph(graph, inputs, output, plan)
        return self._graphs[images.shape]

    def _place(self, *tensors: Tensor) -> list[Tensor]:
        """Tensors like these, next to each other in the inputs' memory, which all graphs share.

        They may share it as each replay copies its inputs there first. Where it is too small, graphs from now on have
        a larger one; earlier ones keep theirs.
        """
        if sum(map(torch.numel, tensors)) > len(self._inputs):
            self._inputs = torch.empty(sum(map(torch.numel, tensors)), device=self._device)
        placed, start = [], 0
        for tensor in tensors:
            placed.append(self._inputs[start : start + tensor.numel()].view(tensor.shape))
            start += tensor.numel()
        return placed

    def _drop(self, *shapes: torch.Size) -> None:
        # One of them may be at work.
        torch.cuda.synchronize(self._device)
        for shape in shapes:
            del self._graphs[shape]


class _Graph(NamedTuple):
    """A recorded forward, with what it reads and where it writes.

    Attributes:
        inputs: images, sizes and factors; memory outside of the pool.
        output: memory of the pool, right until the next replay of any graph.
        plan: its tensors are read where they lie, so they must stay.
    """

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    output: Tensor
    plan: Any

    def replay(self, *inputs: Tensor) -> Tensor:
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        self.graph.replay()
        return self.output.clone()

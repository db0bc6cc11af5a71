"""Batches on their way to a device and their detections on the way back, in one copy each.

`CudaFeed` keeps a GPU busy: while it computes one batch, the next is written into pinned memory and copied to it, and
the results of the one before are copied back. `HostFeed` is the same for a CPU, on which there is nowhere to go.

B images of a batch, D slots for detections, S side of a mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.model.detections import BatchDetections

# Of an image: how many, whether its numbers are finite, and whether they are final; as int64 each.
_HEAD = ("counts", "finite", "final")
# Of a slot, its mask left aside: label, box and score.
_SLOT_BYTES = 8 + 4 * 4 + 4


# --------------------------------------------------------------------------------------------- detections as one tensor
def pack_detections(found: BatchDetections) -> Tensor:
    """All that was found in a batch as one tensor on its device, a row of words for each image: int32 ``(B, W)``."""
    head = torch.stack([getattr(found, name).to(torch.int64) for name in _HEAD], dim=1)
    # The longest words first, so that all of them are aligned.
    parts = [head, found.labels, found.boxes.float(), found.scores.float(), found.masks.float()]
    return torch.cat([part.reshape(len(head), -1).view(torch.int32) for part in parts], dim=1)


def unpack_detections(words: np.ndarray, slots: int) -> np.ndarray:
    """Views of what `pack_detections` packed.

    Args:
        words: int32 ``(B, W)``.
        slots: D.

    Returns:
        ``(B,)`` records with the fields of `BatchDetections`.
    """
    mask_bytes = (words.itemsize * words.shape[1] - 8 * len(_HEAD)) // slots - _SLOT_BYTES
    side = math.isqrt(mask_bytes // 4)
    record = np.dtype(
        [
            *((name, np.int64) for name in _HEAD),
            ("labels", np.int64, (slots,)),
            ("boxes", np.float32, (slots, 4)),
            ("scores", np.float32, (slots,)),
            ("masks", np.float32, (slots, side, side)),
        ]
    )
    return np.ascontiguousarray(words).view(record)[:, 0]


# ----------------------------------------------------------------------------------------------------------- the feeds
class Feed(Protocol):
    """One batch at a time is run; the next may be sent before, and the one before be fetched after."""

    def send(self, size: int, fill: Callable[[np.ndarray], None]) -> Any:
        """Bring bytes to the device.

        Args:
            size: how many.
            fill: writes them into the array that it is given.

        Returns:
            For `run`.
        """

    def run(self, sent: Any, compute: Callable[[Tensor], Tensor]) -> Any:
        """Begin to compute on what was sent, and to bring the result back.

        Args:
            sent: of the `send` before the last, or the last.
            compute: makes one tensor of the bytes ``(size,)`` on the device.

        Returns:
            For `wait` and `fetch`.
        """

    def wait(self, running: Any) -> None:
        """Until the result has been computed."""

    def fetch(self, running: Any) -> np.ndarray:
        """The result, in memory that the next but one `run` writes to again."""


class HostFeed:
    """Of a CPU: everything is done where and when it is asked for."""

    def send(self, size: int, fill: Callable[[np.ndarray], None]) -> Tensor:
        """See `Feed`."""
        memory = np.empty(size, np.uint8)
        fill(memory)
        return torch.from_numpy(memory)

    def run(self, sent: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """See `Feed`."""
        return compute(sent)

    def wait(self, running: Tensor) -> None:
        """See `Feed`."""

    def fetch(self, running: Tensor) -> np.ndarray:
        """See `Feed`."""
        return running.numpy()


class CudaFeed:
    """Of a GPU: copies go through pinned memory, on a stream for each way.

    Two batches are on their way at most, so there are two slots of memory for what is sent and two for results, each
    used in turn. They are not tied to each other: a batch that could not be sent has no result. Sending waits until
    nobody reads what the slot held before; in the order that `Feed` asks for, that is so already.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._in, self._out = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self._slots = cycle([_Slot(), _Slot()])
        self._fetched: list[Tensor | None] = [None, None]  # pinned; the next result's first

    def send(self, size: int, fill: Callable[[np.ndarray], None]) -> _Sent:
        """See `Feed`."""
        slot = next(self._slots)
        if slot.free is not None:
            slot.free.synchronize()
        slot.staged = _grown(slot.staged, size, pin_memory=True)
        fill(slot.staged[:size].numpy())
        with torch.cuda.stream(self._in):
            slot.inputs = _grown(slot.inputs, size, device=self._device)
            inputs = slot.inputs[:size]
            inputs.copy_(slot.staged[:size], non_blocking=True)
            slot.free = self._in.record_event()
        return _Sent(slot, inputs, slot.free)

    def run(self, sent: _Sent, compute: Callable[[Tensor], Tensor]) -> _Running:
        """See `Feed`. What is computed, is on the stream that is current."""
        slot, stream = sent.slot, torch.cuda.current_stream(self._device)
        stream.wait_event(sent.arrived)
        try:
            result = compute(sent.inputs)
        finally:  # what failed half-way may have begun to read
            slot.free = computed = stream.record_event()
        with torch.cuda.stream(self._out):
            self._out.wait_event(computed)
            self._fetched[0] = memory = _grown(self._fetched[0], result.nbytes, pin_memory=True)
            words = memory[: result.nbytes].view(result.dtype).view(result.shape)
            words.copy_(result, non_blocking=True)
            running = _Running(result, words, computed, self._out.record_event())
        self._fetched.reverse()
        return running

    def wait(self, running: _Running) -> None:
        """See `Feed`."""
        running.computed.synchronize()

    def fetch(self, running: _Running) -> np.ndarray:
        """See `Feed`."""
        running.copied.synchronize()
        return running.words.numpy()


@dataclass
class _Slot:
    """Memory of what is sent: bytes that were used before by another batch, or none yet.

    Attributes:
        staged: pinned.
        inputs: on the device.
        free: from then on nobody reads what was sent.
    """

    staged: Tensor | None = None
    inputs: Tensor | None = None
    free: torch.cuda.Event | None = None


class _Sent(NamedTuple):
    slot: _Slot
    inputs: Tensor
    arrived: torch.cuda.Event


class _Running(NamedTuple):
    """Attributes: the result on the device, held until it has been copied; where it is copied to; both events."""

    result: Tensor
    words: Tensor
    computed: torch.cuda.Event
    copied: torch.cuda.Event


def _grown(memory: Tensor | None, size: int, **where: Any) -> Tensor:
    """Memory of at least so many bytes: the same if it suffices, else new one of the next power of two."""
    if memory is not None and len(memory) >= size:
        return memory
    return torch.empty(1 << (size - 1).bit_length(), dtype=torch.uint8, **where)

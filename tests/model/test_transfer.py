"""Detections as one tensor; and a GPU's feed, on the pretended one, for which what nothing orders is an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.model.detections import BatchDetections
from pipeline.model.transfer import CudaFeed, Feed, HostFeed, pack_detections, unpack_detections
from testing.pretended_cuda import ForbiddenWait, PretendedGpu, pretended_cuda

CUDA = torch.device("cuda")


# ----------------------------------------------------------------------------------------------------------- detections
@given(
    batch=st.integers(1, 3),
    slots=st.integers(1, 7),
    side=st.integers(1, 6),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=80)
def test_what_is_packed_comes_out(batch: int, slots: int, side: int, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    found = BatchDetections(
        boxes=torch.randn(batch, slots, 4, generator=generator),
        scores=torch.rand(batch, slots, generator=generator),
        labels=torch.randint(-(2**40), 2**40, (batch, slots), generator=generator),
        masks=torch.rand(batch, slots, side, side, generator=generator).to(dtype),
        counts=torch.randint(0, slots + 1, (batch,), generator=generator),
        finite=torch.rand(batch, generator=generator) < 0.5,
        final=torch.rand(batch, generator=generator) < 0.5,
    )
    words = pack_detections(found)
    assert words.dtype == torch.int32
    rows = unpack_detections(words.numpy(), slots)
    for name in ("boxes", "scores", "labels", "masks", "counts", "finite", "final"):
        expected = getattr(found, name)
        np.testing.assert_array_equal(rows[name], expected.float() if name == "masks" else expected)


def test_tensors_that_are_not_contiguous() -> None:
    boxes = torch.arange(24.0).view(4, 3, 2).permute(2, 1, 0)
    masks = torch.arange(54.0).view(3, 2, 3, 3).transpose(0, 1)
    zeros, ones = torch.zeros(2, 3), torch.ones(2, dtype=torch.bool)
    found = BatchDetections(boxes, zeros, zeros.long(), masks, torch.tensor([3, 1]), ones, ones)
    rows = unpack_detections(pack_detections(found).numpy(), 3)
    np.testing.assert_array_equal(rows["boxes"], boxes)
    np.testing.assert_array_equal(rows["masks"], masks)


# ------------------------------------------------------------------------------------------------------------ the feeds
@pytest.fixture
def gpu() -> Iterator[PretendedGpu]:
    with pretended_cuda() as gpu:
        yield gpu


def writing(value: int) -> Callable[[np.ndarray], None]:
    return lambda memory: memory.fill(value)


def total(sent: Tensor) -> Tensor:
    return sent.sum(dtype=torch.int32)[None, None]


def rounds(feed: Feed, count: int) -> list[int]:
    """As the predictor does it: the next is sent while one is computed, and the one before fetched."""
    found, ahead, behind = [], feed.send(5, writing(0)), None
    for i in range(1, count + 1):
        running = feed.run(ahead, total)
        if behind is not None:
            found.append(feed.fetch(behind).item())
        ahead = feed.send(5 + i, writing(i))
        feed.wait(running)
        behind = running
    return [*found, feed.fetch(behind).item()]


def test_results_come_back_in_order(gpu: PretendedGpu) -> None:
    expected = [i * (5 + i) for i in range(20)]
    assert rounds(HostFeed(), 20) == expected
    gpu.forget()
    assert rounds(CudaFeed(CUDA), 20) == expected
    # Of each batch the host waits for its end and for its result, and for nothing else.
    assert [wait.kind for wait in gpu.waits] == ["event"] * 2 * 20


def test_the_next_batch_travels_while_one_is_computed(gpu: PretendedGpu) -> None:
    feed = CudaFeed(CUDA)
    with gpu.no_waits():
        running = feed.run(feed.send(3, writing(1)), total)
        second = feed.send(4, writing(2))
        assert not running.computed.query()
    second.arrived.synchronize()
    assert not running.computed.query()
    following = feed.run(second, total)
    assert feed.fetch(running).item() == 3
    assert feed.fetch(following).item() == 8


def sends_without_a_wait(gpu: PretendedGpu, feed: CudaFeed) -> bool:
    try:
        with gpu.no_waits():
            feed.send(4, writing(3))
    except ForbiddenWait:
        return False
    return True


@pytest.mark.parametrize("is_run", [True, False])
def test_memory_is_not_written_before_its_readers_are_done(is_run: bool, gpu: PretendedGpu) -> None:
    """Neither where more is sent than there are slots, nor where what was sent is never run."""
    feed = CudaFeed(CUDA)
    first = feed.send(4, writing(1))
    running = feed.run(first, total) if is_run else None
    feed.send(4, writing(2))
    assert not sends_without_a_wait(gpu, feed)
    assert first.slot.staged[:4].tolist() == [1] * 4
    # The next slot is the second one, which is waited for as well; once that is done, both are free.
    assert not sends_without_a_wait(gpu, feed)
    torch.cuda.synchronize()
    assert sends_without_a_wait(gpu, feed)
    assert running is None or feed.fetch(running).item() == 4


def test_what_failed_half_way_may_still_read(gpu: PretendedGpu) -> None:
    feed = CudaFeed(CUDA)

    def fail(buffer: Tensor) -> Tensor:
        total(buffer)
        raise torch.OutOfMemoryError

    sent = feed.send(4, writing(1))
    with pytest.raises(torch.OutOfMemoryError):
        feed.run(sent, fail)
    sent.arrived.synchronize()
    assert not sent.slot.free.query()
    sent.slot.free.synchronize()
    assert rounds(feed, 3) == [0, 6, 14]


def test_memory_stays_from_batch_to_batch_and_grows_where_it_must(gpu: PretendedGpu) -> None:
    feed, staged, inputs = CudaFeed(CUDA), set(), set()
    for size in (100, 90, 128, 100, 60, 128):
        sent = feed.send(size, writing(1))
        assert len(sent.inputs) == size
        feed.fetch(feed.run(sent, total))
        staged.add(sent.slot.staged.data_ptr())
        inputs.add(id(sent.slot.inputs))
    assert len(staged) == len(inputs) == 2
    larger = feed.send(129, writing(1))
    assert len(larger.inputs) == 129
    assert larger.slot.staged.data_ptr() not in staged


def test_a_batch_that_could_not_be_sent_leaves_results_alone(gpu: PretendedGpu) -> None:
    """One that waits to be fetched, that is: the next batch must not be given its memory."""

    def fail(memory: np.ndarray) -> None:
        raise torch.OutOfMemoryError

    feed = CudaFeed(CUDA)
    first = feed.run(feed.send(4, writing(1)), total)
    with pytest.raises(torch.OutOfMemoryError):
        feed.send(4, fail)
    second = feed.run(feed.send(4, writing(2)), total)
    second.copied.synchronize()
    assert [feed.fetch(running).item() for running in (first, second)] == [4, 8]

"""Detections as one tensor; and a GPU's feed on streams that note what was waited for, as no GPU is needed for that."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.model.detections import BatchDetections
from pipeline.model.transfer import CudaFeed, Feed, HostFeed, pack_detections, unpack_detections
from tests.model.fake_streams import FakeStreams

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
def streams(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeStreams]:
    streams = FakeStreams(monkeypatch)
    yield streams
    streams.close()


def writing(value: int) -> Callable[[np.ndarray], None]:
    return lambda memory: memory.fill(value)


def total(sent: Tensor) -> Tensor:
    return sent.sum(dtype=torch.int32)[None, None]


def rounds(feed: Feed, compute: Callable[[Tensor], Tensor], count: int) -> list[int]:
    """As the predictor does it: the next is sent while one is computed, and the one before fetched."""
    found, ahead, behind = [], feed.send(5, writing(0)), None
    for i in range(1, count + 1):
        running = feed.run(ahead, compute)
        if behind is not None:
            found.append(feed.fetch(behind).item())
        ahead = feed.send(5 + i, writing(i))
        feed.wait(running)
        behind = running
    return [*found, feed.fetch(behind).item()]


def test_results_come_back_in_order(streams: FakeStreams) -> None:
    expected = [i * (5 + i) for i in range(20)]
    assert rounds(HostFeed(), total, 20) == expected
    assert rounds(CudaFeed(CUDA), streams.queued(total), 20) == expected


def test_the_next_batch_travels_while_one_is_computed(streams: FakeStreams) -> None:
    feed, go_on = CudaFeed(CUDA), threading.Event()
    first = feed.send(3, writing(1))
    streams.compute.put(lambda: go_on.wait(20))
    running = feed.run(first, streams.queued(total))
    second = feed.send(4, writing(2))
    second.arrived.synchronize()
    assert second.inputs.tolist() == [2] * 4
    assert not running.computed.query()
    go_on.set()
    feed.wait(running)
    following = feed.run(second, streams.queued(total))
    assert feed.fetch(running).item() == 3
    assert feed.fetch(following).item() == 8


def test_memory_is_not_written_before_its_readers_are_done(streams: FakeStreams) -> None:
    """Also where more is sent than there are slots, and what is sent is never run."""
    feed, go_on = CudaFeed(CUDA), threading.Event()
    first = feed.send(4, writing(1))
    streams.compute.put(lambda: go_on.wait(20))
    running = feed.run(first, streams.queued(total))
    feed.send(4, writing(2))
    third = threading.Thread(target=feed.send, args=(4, writing(3)), daemon=True)
    third.start()
    third.join(0.2)
    assert third.is_alive()  # waits for the first slot
    assert first.slot.staged[:4].tolist() == first.inputs.tolist() == [1] * 4
    go_on.set()
    third.join(20)
    assert not third.is_alive()
    assert feed.fetch(running).item() == 4


def test_a_copy_that_is_not_done_keeps_its_staging_memory(streams: FakeStreams) -> None:
    feed, go_on = CudaFeed(CUDA), threading.Event()
    feed._in.put(lambda: go_on.wait(20))  # type: ignore[attr-defined]
    first, second = feed.send(4, writing(1)), feed.send(4, writing(2))
    third = threading.Thread(target=feed.send, args=(4, writing(3)), daemon=True)
    third.start()
    third.join(0.2)
    assert third.is_alive()
    assert (first.slot.staged[:4].tolist(), second.slot.staged[:4].tolist()) == ([1] * 4, [2] * 4)
    go_on.set()
    third.join(20)
    assert first.slot.staged[:4].tolist() == [3] * 4


def test_what_failed_half_way_may_still_read(streams: FakeStreams) -> None:
    feed, go_on = CudaFeed(CUDA), threading.Event()

    def fail(buffer: Tensor) -> Tensor:
        streams.compute.put(lambda: go_on.wait(20))
        streams.queued(total)(buffer)
        raise torch.OutOfMemoryError

    sent = feed.send(4, writing(1))
    with pytest.raises(torch.OutOfMemoryError):
        feed.run(sent, fail)
    sent.arrived.synchronize()
    assert not sent.slot.free.query()
    go_on.set()
    sent.slot.free.synchronize()
    assert rounds(feed, streams.queued(total), 3) == [0, 6, 14]


def test_memory_stays_from_batch_to_batch_and_grows_where_it_must(streams: FakeStreams) -> None:
    feed, places = CudaFeed(CUDA), set()
    for size in (100, 90, 128, 100, 60, 128):
        sent = feed.send(size, writing(1))
        assert len(sent.inputs) == size
        feed.fetch(feed.run(sent, streams.queued(total)))
        places.add((sent.slot.staged.data_ptr(), sent.inputs.data_ptr()))
    assert len(places) == 2
    assert len(feed.send(129, writing(1)).inputs) == 129
    assert sorted(streams.pinned) == [4, 4, 128, 128, 256]


def test_each_batch_is_one_copy_each_way_and_none_is_of_pageable_memory(streams: FakeStreams) -> None:
    feed = CudaFeed(CUDA)
    for _ in range(3):
        feed.fetch(feed.run(feed.send(9, writing(1)), streams.queued(total)))
    assert streams.copies == ["in", "out"] * 3


def test_a_batch_that_could_not_be_sent_leaves_results_alone(streams: FakeStreams) -> None:
    """One that waits to be fetched, that is: the next batch must not be given its memory."""

    def fail(memory: np.ndarray) -> None:
        raise torch.OutOfMemoryError

    feed = CudaFeed(CUDA)
    first = feed.run(feed.send(4, writing(1)), streams.queued(total))
    with pytest.raises(torch.OutOfMemoryError):
        feed.send(4, fail)
    second = feed.run(feed.send(4, writing(2)), streams.queued(total))
    second.copied.synchronize()
    assert [feed.fetch(running).item() for running in (first, second)] == [4, 8]

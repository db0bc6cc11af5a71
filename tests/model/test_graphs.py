"""Recorded forwards give what the forward gives, whatever memory they share, and are as many as there is room for.

No GPU is needed: `RecordingCuda` stands in for what of torch.cuda is used. It records each operation with the very
tensors, replays into these tensors, and spoils whatever CUDA would let others overwrite: stale results show as NaN.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.model import graphs
from pipeline.model import predictor as predictor_module
from pipeline.model.detections import DETECTION_ARRAYS
from pipeline.model.files.checkpoints import Checkpoint
from pipeline.model.graphs import MAX_GRAPHS, GraphedForward
from pipeline.model.predictor import load_model
from pipeline.model.speed import SpeedOptions
from testing.pretended_cuda import pretended_cuda
from testing.small_model import picture

CPU = torch.device("cpu")
# A wait of the host, which may not be recorded.
WAITS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)


def tensors_of(values: Any) -> list[Tensor]:
    return [v for v in torch.utils._pytree.tree_leaves(values) if isinstance(v, Tensor)]


class RecordedGraph(TorchDispatchMode):
    """What `torch.cuda.CUDAGraph` is, and the mode in which it is recorded."""

    def __init__(self, cuda: RecordingCuda) -> None:
        super().__init__()
        self.cuda = cuda
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.made: dict[int, Tensor] = {}
        self.pool_id = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in WAITS:
            raise RuntimeError("operation not permitted when stream is capturing")
        result = func(*args, **(kwargs or {}))
        before = {t.untyped_storage().data_ptr() for t in tensors_of((args, kwargs))}
        self.calls.append((func, args, kwargs or {}, tensors_of(result)))
        for tensor in tensors_of(result):
            if tensor.untyped_storage().data_ptr() not in before:
                self.made[tensor.untyped_storage().data_ptr()] = tensor
        return result

    def pool(self) -> int:
        return self.pool_id

    def spoil(self) -> None:
        for tensor in self.made.values():
            tensor.fill_(float("nan") if tensor.is_floating_point() else 77)

    def replay(self) -> None:
        self.cuda.log.append("replay")
        for graph in self.cuda.alive:
            if graph.pool_id == self.pool_id:
                graph.spoil()
        for func, args, kwargs, results in self.calls:
            for old, new in zip(results, tensors_of(func(*args, **kwargs)), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class RecordingCuda:
    """Stands in for what `GraphedForward` uses of torch.cuda.

    Attributes:
        alive: graphs that are held on to.
        failure: what the next recordings raise, if anything.
    """

    def __init__(self) -> None:
        self.log: list[str] = []
        self.alive: list[RecordedGraph] = []
        self.ended: set[int] = set()
        self.failure: Exception | None = None
        self.stream_now: object = "compute"
        self.pools = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        replaced = {
            "CUDAGraph": lambda: RecordedGraph(self),
            "graph": self.graph,
            "graph_pool_handle": self.graph_pool_handle,
            "synchronize": lambda device=None: self.log.append("synchronize"),
            "device": lambda device: nullcontext(),
            "Stream": lambda: f"stream {self.log.append('stream')}",
            "stream": self.stream,
            "current_stream": lambda: self.stream_now,
        }
        for name, value in replaced.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def graph_pool_handle(self) -> int:
        self.pools += 1
        return self.pools

    @contextmanager
    def stream(self, stream: object) -> Iterator[None]:
        before, self.stream_now = self.stream_now, stream
        try:
            yield
        finally:
            self.stream_now = before

    @contextmanager
    def graph(self, graph: RecordedGraph, pool: int, stream: object, capture_error_mode: str) -> Iterator[None]:
        """As in torch: a pool whose graphs are all gone is dead, and a recording that fails leaves its stream."""
        assert capture_error_mode == "thread_local"
        assert pool not in self.ended, "use_count > 0 INTERNAL ASSERT FAILED"
        assert self.stream_now == "compute"
        self.stream_now = stream
        self.log.append("record")
        if self.failure is not None:
            raise self.failure
        graph.pool_id = pool
        with graph:
            yield
        self.stream_now = "compute"
        # Nothing was computed, and temporary tensors of earlier graphs may have been handed out again.
        graph.spoil()
        self.alive.append(graph)


class Watched(GraphedForward):
    """Tells the fake which graphs are gone, as their destructor tells torch."""

    def __init__(self, forward: Any, cuda: RecordingCuda) -> None:
        super().__init__(forward, CPU)
        self.cuda = cuda

    def _drop(self, *shapes: torch.Size) -> None:
        super()._drop(*shapes)
        held = [g.graph for g in self._graphs.values()]
        gone = {g.pool_id for g in self.cuda.alive} - {g.pool_id for g in held}
        self.cuda.alive = held
        self.cuda.ended |= gone

    @property
    def shapes(self) -> set[tuple[int, ...]]:
        """Those that have a graph."""
        return {tuple(shape) for shape in self._graphs}


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> RecordingCuda:
    fake = RecordingCuda()
    fake.install(monkeypatch)
    return fake


def forward(images: Tensor, image_sizes: Tensor, scale_factors: Tensor, plan: Tensor) -> Tensor:
    """Reads all it is given, makes temporary tensors and views, writes in place, gives one row an image."""
    rows = (images * 2).relu().flatten(1)[:, :6].clone()
    rows[:, :2].add_(image_sizes)
    return torch.cat([rows + plan, scale_factors.repeat(1, 2)], dim=1).to(torch.float64)


def batch(count: int, side: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images of this side, with their plan."""
    random = torch.Generator().manual_seed(seed)
    images, sizes, factors = torch.randn(count, 3, side, side, generator=random), count * [[side, 9.0]], torch.ones
    return images, torch.tensor(sizes) + seed, factors(count, 2) * (seed + 1), torch.full((6,), float(side))


def test_second_batch_of_a_shape_is_recorded_and_the_next_are_replayed(cuda: RecordingCuda) -> None:
    run = Watched(forward, cuda)
    for seed in range(4):
        assert torch.equal(run(*batch(2, 8, seed)), forward(*batch(2, 8, seed)))
    assert cuda.log == ["stream", "record", "replay", "replay", "replay"]


@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from([4, 8, 12])), max_size=40), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_results_are_the_forwards_and_stay(shapes: list[tuple[int, int]], room: int) -> None:
    """However shapes and batch sizes follow on each other, with room for all or for few of them."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        cuda = RecordingCuda()
        cuda.install(monkeypatch)
        monkeypatch.setattr(graphs, "MAX_GRAPHS", room)
        run = Watched(forward, cuda)
        found = [run(*batch(*shape, seed)) for seed, shape in enumerate(shapes)]
        assert len(run.shapes) <= room
    for seed, (shape, result) in enumerate(zip(shapes, found, strict=True)):
        assert torch.equal(result, forward(*batch(*shape, seed)))


def test_what_is_recorded_has_run_in_the_same_thread(cuda: RecordingCuda) -> None:
    """Another has no handles of cuBLAS and cuDNN yet, and they must not be made while a graph is recorded."""
    run = Watched(forward, cuda)
    run(*batch(1, 8))
    records = []
    with ThreadPoolExecutor(1) as other:
        for seed in range(3):
            found = other.submit(run, *batch(1, 8, seed)).result()
            assert torch.equal(found, forward(*batch(1, 8, seed)))
            records.append(cuda.log.count("record"))
    assert records == [0, 1, 1]
    run(*batch(1, 8))
    assert cuda.log.count("replay") == 3


def test_graph_holds_on_to_the_plan_that_it_reads(cuda: RecordingCuda) -> None:
    run = Watched(forward, cuda)
    plans = [batch(1, 8)[3] for _ in range(3)]
    for plan in plans:
        run(*batch(1, 8)[:3], plan)
    (graph,) = run._graphs.values()
    assert graph.plan is plans[1]


def test_graphs_share_a_pool_and_their_inputs(cuda: RecordingCuda) -> None:
    run = Watched(forward, cuda)
    for side in (16, 8, 12):
        for seed in range(2):
            run(*batch(2, side, seed))
    assert {graph.pool_id for graph in cuda.alive} == {1}
    inputs = {graph.inputs[0].untyped_storage().data_ptr() for graph in run._graphs.values()}
    assert len(inputs) == 1


def test_only_so_many_graphs_and_the_common_ones_stay(cuda: RecordingCuda) -> None:
    run = Watched(forward, cuda)
    for _ in range(3):
        for side in range(4, 4 + MAX_GRAPHS):
            run(*batch(1, side))
    assert len(run.shapes) == MAX_GRAPHS
    for _ in range(6):
        run(*batch(1, 2))
    assert (1, 3, 2, 2) not in run.shapes
    run(*batch(1, 2))
    assert (1, 3, 2, 2) in run.shapes
    assert len(run.shapes) == MAX_GRAPHS


def test_shapes_that_are_all_as_common_are_not_recorded_again_and_again(
    cuda: RecordingCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "MAX_GRAPHS", 3)
    run = Watched(forward, cuda)
    for _ in range(50):
        for side in (4, 8, 12, 16):
            run(*batch(1, side))
    assert cuda.log.count("record") == 3


def out_of_memory() -> torch.OutOfMemoryError:
    return torch.OutOfMemoryError("CUDA out of memory")


FAILURES = {
    "memory": out_of_memory(),
    "not permitted": RuntimeError("operation not permitted"),
    "a compiler": TypeError("no such type"),  # Triton's errors are of no one kind
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES.keys())
def test_where_recording_fails_the_forward_runs_as_it_is(
    failure: Exception, cuda: RecordingCuda, caplog: pytest.LogCaptureFixture
) -> None:
    run = Watched(forward, cuda)
    run(*batch(1, 4)), run(*batch(1, 4))
    cuda.failure = failure
    with caplog.at_level(logging.WARNING):
        for seed in range(4):
            for side in (8, 12):
                assert torch.equal(run(*batch(1, side, seed)), forward(*batch(1, side, seed)))
    assert cuda.log.count("record") == 2
    assert len(caplog.records) == 1
    assert cuda.stream_now == "compute"
    assert torch.equal(run(*batch(1, 4, 5)), forward(*batch(1, 4, 5)))
    assert cuda.log[-1] == "replay"


def test_forward_that_waits_is_not_recorded(cuda: RecordingCuda) -> None:
    run = Watched(lambda images, *_: images * images.sum().item(), cuda)
    for seed in range(3):
        images, *rest = batch(1, 4, seed)
        assert torch.equal(run(images, *rest), images * images.sum())
    assert not run.shapes


def test_graphs_make_room_for_what_does_not_fit_beside_them(cuda: RecordingCuda) -> None:
    run = Watched(forward, cuda)
    assert not run.make_room()
    for side in (4, 8, 12, 16):
        run(*batch(1, side)), run(*batch(1, side))
    assert len(run.shapes) == 4
    assert run.make_room()
    assert not run.shapes
    assert not run.make_room()
    for seed in range(3):
        for side in (4, 8, 12, 16):
            assert torch.equal(run(*batch(1, side, seed)), forward(*batch(1, side, seed)))
    assert len(run.shapes) == 2


def test_batch_that_does_not_fit_without_graphs_either_is_the_callers(cuda: RecordingCuda) -> None:
    def never(*args: Tensor) -> Tensor:
        raise out_of_memory()

    run = Watched(never, cuda)
    for _ in range(3):
        with pytest.raises(torch.OutOfMemoryError):
            run(*batch(1, 4))
    # Nothing is ready for recording before it has worked.
    assert not cuda.log


def test_pictures_are_found_the_same_in_replays(cuda: RecordingCuda, small_checkpoint: Checkpoint) -> None:
    """The detector itself, which is recorded only as long as it waits for nothing."""
    pictures = [picture(60, 90, seed) for seed in range(7)] + [picture(90, 60, seed) for seed in range(3)]
    # What oneDNN packs has no address.
    predictor = load_model(small_checkpoint, "cpu", speed=replace(SpeedOptions(), packed_linear=False))
    predictor.detector.compact = False
    expected = predictor.predict(pictures, batch_size=2)
    predictor._detect = run = Watched(predictor._forward, cuda)
    found = predictor.predict(pictures, batch_size=2)
    assert run.shapes == {(2, 3, 96, 160)}
    assert cuda.log.count("replay") == 2
    assert sum(map(len, found)) > 50
    for ours, reference in zip(found, expected, strict=True):
        for name in DETECTION_ARRAYS:
            np.testing.assert_array_equal(getattr(ours, name), getattr(reference, name))


@pytest.mark.parametrize("part", ["pack", "preprocess", "pack_detections"])
def test_nothing_is_refused_for_the_memory_that_graphs_hold(
    part: str, cuda: RecordingCuda, small_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is that memory runs out beside them, on the device or on its way there."""
    pictures = [picture(60, 90, seed) for seed in range(7)]
    predictor = load_model(small_checkpoint, "cpu", speed=replace(SpeedOptions(), packed_linear=False))
    predictor.detector.compact = False
    predictor._detect = run = Watched(predictor._forward, cuda)
    predictor.predict(pictures[:4], batch_size=2)
    assert run.shapes
    real = getattr(predictor_module, part)

    def beside_graphs(*args: Any) -> Any:
        if run.shapes:
            raise out_of_memory()
        return real(*args)

    monkeypatch.setattr(predictor_module, part, beside_graphs)
    # What does not fit of every candidate, which is never recorded, does not fit of a batch that was not recorded yet.
    found = predictor.predict(pictures, batch_size=3 if part == "pack_detections" else 2)
    assert sum(map(len, found)) > 50
    assert not run.shapes
    assert not predictor._most


@pytest.mark.parametrize(("device", "switch"), [("cuda", True), ("cuda", False), ("cpu", True)])
def test_graphs_are_of_gpus_and_can_be_switched_off(device: str, switch: bool, small_checkpoint: Checkpoint) -> None:
    with pretended_cuda():
        predictor = load_model(small_checkpoint, device, speed=replace(SpeedOptions(), cuda_graphs=switch))
    assert isinstance(predictor._detect, GraphedForward) == (device == "cuda" and switch)


def test_replays_on_the_pretended_gpu(small_checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture) -> None:
    """With its streams and the transfers beside them."""
    pictures = [picture(60, 90, seed) for seed in range(6)]
    with pretended_cuda(), caplog.at_level(logging.WARNING):
        predictor = load_model(small_checkpoint, "cuda")
        found = predictor.predict(pictures, batch_size=2)
        run = predictor._detect
        assert isinstance(run, GraphedForward)
        assert [tuple(shape) for shape in run._graphs] == [(2, 3, 96, 160)]
        predictor.settings = replace(predictor.settings, max_detections=2)
        assert [len(one) for one in predictor.predict(pictures, batch_size=2)] == [2] * 6
    assert not caplog.records
    speed = replace(SpeedOptions(), cuda_graphs=False)
    with pretended_cuda():
        expected = load_model(small_checkpoint, "cuda", speed=speed).predict(pictures, batch_size=2)
    for ours, reference in zip(found, expected, strict=True):
        assert len(ours) > 0
        for name in DETECTION_ARRAYS:
            np.testing.assert_array_equal(getattr(ours, name), getattr(reference, name))

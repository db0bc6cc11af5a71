"""The whole way of a picture through `Predictor` on a pretended GPU, and what the pretended GPU itself must find."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import nms, roi_align

from pipeline.model.detections import DETECTION_ARRAYS, Detections
from pipeline.model.files.checkpoints import Checkpoint
from pipeline.model.predictor import load_model
from testing.pretended_cuda import (
    DeviceMismatch,
    DtypeMismatch,
    ForbiddenWait,
    PretendedGpu,
    PretendedTensor,
    UnorderedAccess,
    pretended_cuda,
)
from testing.small_model import picture
from tests.model.compare import assert_same
from tests.model.golden_cases import golden

CUDA = torch.device("cuda")
MIXED = [(60, 90), (111, 50), (60, 90), (30, 200), (60, 88), (60, 90)]


@pytest.fixture
def gpu() -> Iterator[PretendedGpu]:
    with pretended_cuda() as gpu:
        yield gpu


# ------------------------------------------------------------------------------------------------------- the predictor
def detect(checkpoint: Checkpoint, images: list[np.ndarray], device: str, precision: str) -> list[Detections]:
    return load_model(checkpoint, device=device, precision=precision).predict(images, batch_size=2)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return [picture(*size, seed=i) for i, size in enumerate(MIXED)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_finds_what_the_cpu_finds(precision: str, small_checkpoint: Checkpoint, images: list[np.ndarray]) -> None:
    """But for rounding: kernels get other numbers of rows, as empty slots are computed too."""
    with pretended_cuda() as gpu:
        found = detect(small_checkpoint, images, "cuda", precision)
    assert gpu.launches
    for here, there in zip(found, detect(small_checkpoint, images, "cpu", precision), strict=True):
        assert len(here) > 0
        for name in DETECTION_ARRAYS:
            # Of boxes some thousandths of a pixel.
            atol = 5e-3 if name == "boxes" else 1e-4
            np.testing.assert_allclose(getattr(here, name), getattr(there, name), atol=atol, err_msg=name)


def test_batches_overlap_in_order(small_checkpoint: Checkpoint, images: list[np.ndarray]) -> None:
    """Often enough for graphs to be recorded and replayed, with memory of each stream used by others."""
    with pretended_cuda() as gpu:
        model = load_model(small_checkpoint, device="cuda", precision="bf16")
        first = model.predict(images, batch_size=2)
        gpu.forget()
        again = [model.predict(images, batch_size=2) for _ in range(2)]
        assert gpu.replays
    for found in again:
        for here, there in zip(found, first, strict=True):
            np.testing.assert_array_equal(here.masks, there.masks)


def test_bfloat16_runs_in_bfloat16(small_checkpoint: Checkpoint, images: list[np.ndarray]) -> None:
    with pretended_cuda() as gpu:
        model = load_model(small_checkpoint, device="cuda", precision="bf16")
        model.predict(images)
    products = [launch for launch in gpu.launches if launch.flops]
    in_half = sum(launch.flops for launch in products if launch.dtype == torch.bfloat16)
    assert in_half > 0.9 * sum(launch.flops for launch in products)


def test_golden_case(golden_checkpoint: Checkpoint) -> None:
    case = golden("tiny_small_333x200")
    with pretended_cuda():
        model = load_model(golden_checkpoint, device="cuda", settings=case.settings)
        [found] = model.predict([case.image])
    difference = assert_same(case.found, found)
    assert difference.box_px < 0.01
    assert difference.score < 1e-4


# --------------------------------------------------------------------------------------------------- mixes that fail
def cuda(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype, device=CUDA)


HALF = torch.bfloat16
MIXES: dict[str, tuple[Callable[[], object], type[Exception]]] = {
    "sum with the CPU": (lambda: cuda(3) + torch.ones(3), DeviceMismatch),
    "sum with one number of one axis": (lambda: cuda(3) + torch.ones(1), DeviceMismatch),
    "product with the CPU": (lambda: cuda(3, 3) @ torch.ones(3, 3), DeviceMismatch),
    "CPU indexed by the device": (lambda: torch.ones(3)[cuda(2, dtype=torch.int64)], DeviceMismatch),
    "rows of the CPU": (lambda: torch.ones(3).index_select(0, cuda(2, dtype=torch.int64)), DeviceMismatch),
    "joined with the CPU": (lambda: torch.cat([cuda(3), torch.ones(3)]), DeviceMismatch),
    "weight on the CPU": (lambda: F.linear(cuda(2, 3), torch.ones(4, 3)), DeviceMismatch),
    "norm of another dtype": (lambda: F.layer_norm(cuda(2, 8, dtype=HALF), (8,), cuda(8), cuda(8)), DtypeMismatch),
    "product of integers": (lambda: cuda(2, 2, dtype=torch.int64) @ cuda(2, 2, dtype=torch.int64), DtypeMismatch),
    "attention bias in float32": (
        lambda: F.scaled_dot_product_attention(*[cuda(1, 2, 8, 8, dtype=HALF)] * 3, attn_mask=cuda(1, 2, 8, 8)),
        DtypeMismatch,
    ),
    "RoIs of another dtype": (lambda: roi_align(cuda(1, 2, 8, 8).double(), cuda(1, 5), 2), DtypeMismatch),
    "RoIAlign in bfloat16": (lambda: roi_align(cuda(1, 2, 8, 8, dtype=HALF), cuda(1, 5, dtype=HALF), 2), DtypeMismatch),
}


@pytest.mark.parametrize(("run", "error"), MIXES.values(), ids=MIXES.keys())
def test_what_cuda_refuses_is_an_error(run: Callable[[], object], error: type[Exception], gpu: PretendedGpu) -> None:
    with pytest.raises(error, match=r"test_pretended_cuda\.py:"):
        run()


def test_numbers_of_the_cpu_join_in(gpu: PretendedGpu) -> None:
    values = cuda(3) * torch.tensor(2.0)
    values[values > 9] = 5.0
    assert values.tolist() == [2, 2, 2]


def test_numpy_is_refused(gpu: PretendedGpu) -> None:
    with pytest.raises(TypeError, match="cuda:0"):
        cuda(3).numpy()


# ---------------------------------------------------------------------------------------------------------- the waits
WAITS: dict[str, tuple[str, Callable[[Tensor], object]]] = {
    "item": ("item", lambda x: x.sum().item()),
    "truth": ("item", lambda x: bool(x.any())),
    "list": ("copy to the host", lambda x: x.tolist()),
    "cpu": ("copy to the host", lambda x: x.cpu()),
    "cpu, not blocking, into pageable memory": (
        "copy to the host",
        lambda x: torch.empty(x.shape).copy_(x, non_blocking=True),
    ),
    "tensor": ("copy to the device", lambda x: torch.tensor([1, 2], device=x.device)),
    "new_tensor": ("copy to the device", lambda x: x.new_tensor([1, 2])),
    "to": ("copy to the device", lambda x: torch.ones(3).to(x.device)),
    "nonzero": ("nonzero", lambda x: x.nonzero()),
    "where": ("nonzero", lambda x: torch.where(x > 0)),
    "mask": ("mask as an index", lambda x: x[x > 0]),
    "mask of several": ("mask as an index", lambda x: x.index_put_((x > 0,), x + 1)),
    "masked_select": ("masked_select", lambda x: x.masked_select(x > 0)),
    "unique": ("unique", lambda x: x.unique()),
    "unique rows": ("unique", lambda x: x[:, None].unique(dim=0)),
    "equal": ("equal", lambda x: torch.equal(x, x + 1)),
    "repeat_interleave": (
        "repeat_interleave without output_size",
        lambda x: x.repeat_interleave(torch.ones_like(x).long()),
    ),
    "index on the CPU": ("copy to the device", lambda x: x[torch.tensor([0, 1])]),
    "nms": ("nms", lambda x: nms(x.new_ones(2, 4), x[:2], 0.5)),
    "synchronize": ("synchronize", lambda x: torch.cuda.synchronize()),
    "stream": ("stream", lambda x: [x + 1, torch.cuda.current_stream().synchronize()]),
    "event": ("event", lambda x: [x + 1, torch.cuda.current_stream().record_event().synchronize()]),
}


@pytest.mark.parametrize(("kind", "run"), WAITS.values(), ids=WAITS.keys())
def test_waits(kind: str, run: Callable[[Tensor], object], gpu: PretendedGpu) -> None:
    x = cuda(4)
    gpu.forget()
    run(x)
    assert [wait.kind for wait in gpu.waits] == [kind]
    assert "tests/model/test_pretended_cuda.py:" in gpu.waits[0].where
    with gpu.no_waits(), pytest.raises(ForbiddenWait, match=kind):
        run(x)


NO_WAITS: dict[str, Callable[[Tensor], object]] = {
    "arithmetic": lambda x: (x + 1).clamp(0, 1).sort().values.topk(2),
    "a number where a mask is": lambda x: x.masked_fill(x > 0, 0).index_put_((x > 0,), x[0]),
    "repeat_interleave of a known size": lambda x: x.repeat_interleave(torch.ones_like(x).long(), output_size=4),
    "to a pinned place": lambda x: torch.empty(4, pin_memory=True).copy_(x, non_blocking=True),
    "to the host, later": lambda x: x.to("cpu", non_blocking=True),
    "from a pinned place": lambda x: x.copy_(torch.ones(4).pin_memory(), non_blocking=True),
    "made there": lambda x: torch.arange(4, device=x.device) + torch.zeros(4, device=x.device),
}


@pytest.mark.parametrize("run", NO_WAITS.values(), ids=NO_WAITS.keys())
def test_no_waits(run: Callable[[Tensor], object], gpu: PretendedGpu) -> None:
    x = cuda(4)
    with gpu.no_waits():
        run(x)
    assert gpu.waits == []


# ------------------------------------------------------------------------------------------------------------- costs
def test_launches(gpu: PretendedGpu) -> None:
    image, weight, bias = cuda(2, 3, 8, 8, dtype=HALF), cuda(5, 3, 3, 3, dtype=HALF), cuda(5, dtype=HALF)
    gpu.forget()
    result = F.conv2d(image, weight, bias, padding=1)
    result.flatten(2).transpose(1, 2)  # views cost nothing
    result.float()
    (convolution, cast) = gpu.launches
    assert (convolution.op, convolution.kernels, convolution.dtype) == ("convolution", 2, HALF)
    assert convolution.flops == 2 * 2 * 5 * 8 * 8 * 3 * 3 * 3
    assert convolution.bytes == 2 * (2 * 3 * 64 + 5 * 27 + 5 + 3 * 2 * 5 * 64)
    assert (cast.op, cast.cast, cast.of_weight, cast.bytes) == ("_to_copy", True, False, 6 * 2 * 5 * 64)


def test_casts_of_weights(gpu: PretendedGpu) -> None:
    linear = torch.nn.Linear(4, 4).to(CUDA).requires_grad_(False)
    gpu.forget()
    with torch.autocast("cuda", HALF):
        linear(cuda(2, 4))
    assert [launch.of_weight for launch in gpu.launches if launch.cast] == [True, True, False]


def test_a_bias_of_aligned_rows_is_not_copied(gpu: PretendedGpu) -> None:
    query, bias = cuda(1, 2, 9, 8, dtype=HALF), cuda(1, 2, 9, 16, dtype=HALF)
    gpu.forget()
    F.scaled_dot_product_attention(query, query, query, bias[..., :9])
    assert len(gpu.launches) == 1
    F.scaled_dot_product_attention(query, query, query, bias[..., :9].contiguous())
    assert len(gpu.launches) == 4  # a packed bias, its padding, attention


def test_attention_with_heads_that_its_kernel_does_not_take(gpu: PretendedGpu) -> None:
    query, bias = torch.rand(3, 2, 9, 6), torch.rand(1, 2, 9, 9)
    expected = F.scaled_dot_product_attention(query, query, query, bias)
    gpu.forget()
    query, bias = query.to(CUDA), bias.to(CUDA)
    found = F.scaled_dot_product_attention(query, query, query, bias)
    assert [launch.op for launch in gpu.launches].count("bmm") == 2
    torch.testing.assert_close(found.cpu(), expected)


def test_parts(gpu: PretendedGpu) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()).to(CUDA)
    gpu.name_parts({"all": model, "first": model[0]})
    gpu.forget()
    model(cuda(1, 2)) + 1
    assert [launch.part for launch in gpu.launches] == [(), ("all", "first"), ("all",), ()]


# ------------------------------------------------------------------------------------------- streams, copies and graphs
def test_a_copy_that_is_not_waited_for_is_rubbish(gpu: PretendedGpu) -> None:
    place = torch.empty(3, pin_memory=True)
    place.copy_(cuda(3), non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    assert place.isnan().all()
    event.synchronize()
    assert place.tolist() == [1, 1, 1]


def test_what_is_done_is_not_waited_for(gpu: PretendedGpu) -> None:
    cuda(3)
    event = torch.cuda.current_stream().record_event()
    assert not event.query()
    event.synchronize()
    event.synchronize()
    assert len(gpu.waits) == 1


def test_streams_must_be_ordered(gpu: PretendedGpu) -> None:
    side = torch.cuda.Stream()
    x = cuda(3)
    with torch.cuda.stream(side), pytest.raises(UnorderedAccess, match="reads"):
        x + 1
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        y = x + 1
    with pytest.raises(UnorderedAccess, match="writes"):
        x.zero_()
    side.synchronize()
    assert (x.zero_() + y).tolist() == [2, 2, 2]


def test_memory_of_another_stream_is_not_given_back_too_early() -> None:
    def use(keep: bool) -> None:
        with pretended_cuda():
            x, side = cuda(3), torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                y = x + 1
            if keep:
                x.record_stream(side)
            del x
            side.synchronize()
            assert y.tolist() == [2, 2, 2]

    use(keep=True)
    with pytest.raises(UnorderedAccess, match="freed"):
        use(keep=False)


def test_graph(gpu: PretendedGpu) -> None:
    x = cuda(3)
    graph = torch.cuda.CUDAGraph()
    gpu.forget()
    with torch.cuda.device(CUDA), torch.cuda.graph(graph):
        y = (x * 2).add_(1)
        with pytest.raises(ForbiddenWait, match="captured"):
            y.sum().item()
    assert gpu.launches == []
    assert isinstance(y, PretendedTensor)
    assert y.held.isnan().all()  # nothing has run yet
    for value in (1, 5):
        x.fill_(value)
        graph.replay()
        assert y.tolist() == [2 * value + 1] * 3
    assert [launch.op for launch in gpu.launches] == ["fill_", "mul", "add_", "sum"] * 2
    assert [launch.replayed for launch in gpu.launches] == [False, True, True, True] * 2
    assert gpu.replays == 2

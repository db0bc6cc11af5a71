"""What an op costs on a GPU: kernels, bytes and floating-point operations, from its arguments and its result.

A count, not a measurement. Bytes are what a kernel must at least move: each input read and each output written once, an
expanded input at the size it has in memory, of a gathered input only what is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

from torch import Tensor
from torch._ops import OpOverload


class Cost(NamedTuple):
    """Of one op."""

    kernels: int
    bytes: int
    flops: int


# More than one kernel where PyTorch's source, or ours, says so. Everything else counts as one: sorting, topk and
# nonzero are several on a real GPU, how many depends on the sizes.
_KERNELS = {
    "maskfleet::nms_groups": 2,  # the bit mask of overlaps, then one program for each group
}
# Neither a kernel nor memory traffic.
_FREE = {
    "aten::empty",
    "aten::empty_like",
    "aten::empty_strided",
    "aten::empty_permuted",
    "aten::new_empty",
    "aten::new_empty_strided",
    "aten::_unsafe_view",
    "aten::_reshape_alias",
    "aten::lift_fresh",
    "aten::detach_",
    "aten::is_same_size",
    "aten::is_pinned",
    "aten::record_stream",
    "aten::_fused_sdp_choice",
}
# These read of their first tensor only what they give back.
_GATHERS = {"aten::index", "aten::gather", "aten::index_select", "aten::embedding", "aten::take_along_dim"}
# These write into their first tensor only what their last one holds.
_SCATTERS = {"aten::index_put_", "aten::index_put", "aten::index_copy_", "aten::index_copy", "aten::scatter_"}
_FILLS = {"aten::fill_", "aten::zero_", "aten::copy_"}  # they write their first tensor without reading it


def is_free(func: OpOverload, results: Sequence[Tensor]) -> bool:
    """Whether an op launches nothing: views, memory without content, results without elements."""
    return func.is_view or func.name().split(".")[0] in _FREE or (bool(results) and not any(r.numel() for r in results))


def cost_of(func: OpOverload, inputs: Sequence[Tensor], results: Sequence[Tensor], args: Sequence[Any]) -> Cost:
    """The cost of one op.

    Args:
        func: the op.
        inputs: the tensors among its arguments, in order.
        results: its tensors.
        args: its positional arguments, for what is no tensor.
    """
    name = func.name().split(".")[0]
    flops = _FLOPS[name](inputs, results, args) if name in _FLOPS and inputs else 0
    # cuDNN's convolutions have no bias: PyTorch adds it in a kernel of its own.
    bias = name == "aten::convolution" and len(inputs) > 2
    kernels = _KERNELS.get(name, 1) + bias
    moved = _bytes(name, inputs, results) + (2 * stored_bytes(results[0]) if bias else 0)
    return Cost(kernels, moved, flops)


def stored_bytes(tensor: Tensor) -> int:
    """Bytes of the elements that differ in their place in memory."""
    distinct = prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or size == 0)
    return distinct * tensor.element_size()


def _bytes(name: str, inputs: Sequence[Tensor], results: Sequence[Tensor]) -> int:
    read, written = sum(map(stored_bytes, inputs)), sum(map(stored_bytes, results))
    if name in _GATHERS:
        return 2 * written + sum(map(stored_bytes, inputs[1:]))
    if name in _SCATTERS:
        return 2 * stored_bytes(inputs[-1]) + sum(map(stored_bytes, inputs[1:-1]))
    if name in _FILLS:
        return read
    return read + written


def _matrix_product(inputs: Sequence[Tensor], results: Sequence[Tensor], args: Sequence[Any]) -> int:
    return 2 * results[0].numel() * inputs[-1].shape[-2]


def _convolution(inputs: Sequence[Tensor], results: Sequence[Tensor], args: Sequence[Any]) -> int:
    image, weight = inputs[0], inputs[1]
    transposed = bool(args[6])
    positions = prod(image.shape[2:]) if transposed else prod(results[0].shape[2:])
    return 2 * len(image) * positions * weight.numel()


def _attention(inputs: Sequence[Tensor], results: Sequence[Tensor], args: Sequence[Any]) -> int:
    query, key = inputs[0], inputs[1]
    return 4 * query.numel() * key.shape[-2]


_FLOPS: Mapping[str, Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Any]], int]] = {
    "aten::mm": _matrix_product,
    "aten::bmm": _matrix_product,
    "aten::addmm": _matrix_product,
    "aten::baddbmm": _matrix_product,
    "aten::convolution": _convolution,
    "aten::_scaled_dot_product_efficient_attention": _attention,
}

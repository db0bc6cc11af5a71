"""What CUDA makes of an op that a CPU does not: tensors and dtypes that it refuses, results that the host waits for.

From the sources of PyTorch and torchvision. Dtypes are checked where the CPU's kernel is the more tolerant one, or
might become it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from testing.pretended.records import DeviceMismatch, DtypeMismatch, where

# Ops whose result, or whose result's shape, the host has to know.
_WAITING = {
    "aten::_local_scalar_dense": "item",
    "aten::nonzero": "nonzero",
    "aten::masked_select": "masked_select",
    "aten::equal": "equal",
    "aten::_unique": "unique",
    "aten::_unique2": "unique",
    "aten::unique_dim": "unique",
    "aten::unique_consecutive": "unique",
    "aten::bincount": "bincount",
    "torchvision::nms": "nms",
}
# Ops whose CUDA kernels read all floating-point arguments as one dtype, and take no integers.
_ONE_FLOAT_DTYPE = {
    "aten::mm",
    "aten::bmm",
    "aten::addmm",
    "aten::baddbmm",
    "aten::convolution",
    "aten::native_layer_norm",
    "aten::embedding_bag",
    "aten::_embedding_bag",
    "aten::_embedding_bag_forward_only",
    "aten::grid_sampler_2d",
    "aten::_scaled_dot_product_efficient_attention",
    "torchvision::roi_align",
    "torchvision::nms",
}
_NO_BFLOAT16 = {"torchvision::roi_align", "torchvision::nms"}
# Ops in which a tensor of no axes on the CPU stands for a number; so it does in all that PyTorch calls pointwise.
_TAKES_CPU_NUMBERS = {
    "aten::copy_",
    "aten::fill_",
    "aten::masked_fill",
    "aten::masked_fill_",
    "aten::index_put",
    "aten::index_put_",
}
# Ops that bring their indices to the device themselves.
INDEXED = {"aten::index", "aten::index_put", "aten::index_put_"}


def refuse_mixture(name: str, func: OpOverload, ours: Sequence[Tensor], hosts: Sequence[Tensor]) -> None:
    """Raise where CUDA would.

    Args:
        name: of the op, without an overload.
        func: the op.
        ours: its tensors on the device, at least one unless the op makes a tensor of nothing.
        hosts: its tensors on the CPU.

    Raises:
        DeviceMismatch: tensors on the CPU that it does not take.
        DtypeMismatch: dtypes that its kernel does not take.
    """
    numbers = torch.Tag.pointwise in func.tags or name in _TAKES_CPU_NUMBERS
    strangers = [tuple(t.shape) for t in hosts if t.dim() or not numbers]
    if strangers:
        raise DeviceMismatch(f"{name} with tensors on the CPU, of shapes {strangers}, at {where()}")
    floats = {t.dtype for t in ours if t.dtype.is_floating_point}
    if name in _ONE_FLOAT_DTYPE and (len(floats) != 1 or not ours[0].dtype.is_floating_point):
        raise DtypeMismatch(f"{name} with {[t.dtype for t in ours]} at {where()}")
    if name in _NO_BFLOAT16 and torch.bfloat16 in floats:
        raise DtypeMismatch(f"{name} has no kernel for bfloat16, at {where()}")


def wait_of(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Why the host waits for an op, or None."""
    if name == "aten::repeat_interleave":
        return "repeat_interleave without output_size" if kwargs.get("output_size") is None else None
    if name in INDEXED and any(_is_mask(i) for i in args[1]):
        # A mask that a single number is put into is a masked_fill, which waits for nothing.
        return "mask as an index" if name == "aten::index" or args[2].numel() != 1 else None
    return _WAITING.get(name)


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)

"""Rewrites of a loaded detector that make it faster: all but half precision leave its detections as they are."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.model.architectures import network_of
from pipeline.model.detections import BatchDetections
from pipeline.model.detector import Detector, Plan
from pipeline.model.host_memory import keep_freed_memory


@dataclass(frozen=True)
class SpeedOptions:
    """What may be rewritten. ``SpeedOptions.none()`` is the plain model.

    Attributes:
        fold_batch_norm: BatchNorm becomes part of the convolution before it.
        fused_attention: PyTorch's fused attention kernels in the backbone, with biases made once.
        channels_last: memory layout of the convolutions.
        packed_linear: on a CPU, linear layers in float32 by oneDNN (see `PackedLinear`).
        reuse_memory: on a CPU, the *process* keeps the memory it frees (see `host_memory`).
        compile: ``torch.compile`` of the forward; costs minutes, twice: for one image and for several.
        compile_cache: a folder for what is compiled, see `keep_compiled`; ``None``: wherever PyTorch keeps it.
        cuda_graphs: on a CUDA device, `pipeline.model.graphs`.
    """

    fold_batch_norm: bool = True
    fused_attention: bool = True
    channels_last: bool = True
    packed_linear: bool = True
    reuse_memory: bool = True
    compile: bool = False
    compile_cache: str | None = None
    cuda_graphs: bool = True

    @staticmethod
    def none() -> SpeedOptions:
        """Nothing is rewritten."""
        return SpeedOptions(False, False, False, False, False, False, None, False)


def speed_up(detector: Detector, options: SpeedOptions, dtype: torch.dtype = torch.float32) -> Detector:
    """Apply the options to a detector in eval mode, in place; it can no longer be trained or saved.

    Args:
        detector: float32, on its device.
        options: what may be rewritten.
        dtype: what its weights are held in, see `hold_in`; norms are folded before.
    """
    network = network_of(detector.variant)
    if options.fold_batch_norm:
        network.fold_batch_norm(detector)
    hold_in(detector, dtype)
    if options.fused_attention:
        network.fuse_attention(detector)
    on_cpu = next(detector.parameters()).device.type == "cpu"
    # What is compiled has no place for a wait, and wants fixed shapes.
    detector.compact = on_cpu and not options.compile
    if options.reuse_memory and on_cpu:
        keep_freed_memory()
    if options.channels_last:
        detector.to(memory_format=torch.channels_last)
    if options.compile_cache is not None:
        keep_compiled(options.compile_cache)
    # A compiler arranges weights as it needs them itself.
    if options.packed_linear and on_cpu and not options.compile:
        pack_linear(detector)
    if options.compile:
        compile_forward(detector)
    return detector


def compile_forward(detector: Detector, backend: str | Callable[..., Any] = "inductor") -> None:
    """Have a detector's forward compiled as a whole, in place: for one image and for several, of any shapes.

    As a whole, because it can be: nothing in it depends on the host, and what has a kernel of its own is opaque. Of
    parts, each would be looked up by itself in every call, and what lies between them would stay many small kernels.

    Args:
        detector: on its device.
        backend: of ``torch.compile``.
    """
    compiled = torch.compile(detector.forward, backend=backend)

    def forward(
        images: Tensor, image_sizes: Tensor, scale_factors: Tensor, plan: Plan, *rest: Any, **named: Any
    ) -> BatchDetections:
        # What is not said to vary is taken to be constant until it does vary, and compiled again then.
        _say_varies(images, (0, 2, 3))
        for tensor in (image_sizes, scale_factors):
            _say_varies(tensor, (0,))
        for tensor in _tensors(plan):
            _say_varies(tensor, range(tensor.dim()))
        return compiled(images, image_sizes, scale_factors, plan, *rest, **named)

    detector.forward = forward  # type: ignore[method-assign]


def _say_varies(tensor: Tensor, axes: Iterable[int]) -> None:
    # A side of 1 is always a case of its own, as it may mean that numbers are repeated.
    torch._dynamo.maybe_mark_dynamic(tensor, [axis for axis in axes if tensor.shape[axis] != 1])


def _tensors(value: Any) -> Iterator[Tensor]:
    """Those of a plan, which is made of dataclasses and sequences."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for f in fields(value):
            yield from _tensors(getattr(value, f.name))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def hold_in(detector: Detector, dtype: torch.dtype) -> None:
    """Hold the weights in this type, in place, so that nothing is cast while it computes.

    Two kinds stay float32: the layers that the architecture names (`Network.float32`), and BatchNorms that were not
    folded, whose kernels take float32 statistics with maps of any type.
    """
    kept = {part for layer in network_of(detector.variant).float32(detector) for part in layer.modules()}
    kept |= {module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)}
    for module in detector.modules():
        if module in kept:
            continue
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.to(dtype), requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_floating_point():
                setattr(module, name, buffer.to(dtype))


class PackedLinear(nn.Module):
    """A linear layer in float32 on a CPU, by oneDNN and with its weights in the order that oneDNN wants.

    Of itself PyTorch has such products done by MKL, which uses AVX-512 on Intel's processors alone; on AMD's oneDNN
    takes 0.4 to 0.7 of the time. It sums in another order, so that results differ by rounding.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.out_features = layer.out_features
        self.bias = layer.bias
        # No buffer: it has no memory that anything else could move or copy.
        self._weight = _packed(layer.weight.detach())

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: the weights in their plain order, which any processor can read."""
        return {**super().__getstate__(), "_weight": self._weight.to_dense()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """What `__getstate__` gave, packed for the processor that this runs on."""
        super().__setstate__({**state, "_weight": _packed(state["_weight"])})

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C'), float32."""
        if x.numel() == 0:
            return x.new_empty((*x.shape[:-1], self.out_features))
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self.bias, "none", [], "")


def _packed(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight)


def pack_linear(module: nn.Module) -> None:
    """Replace the linear layers of float32 below a module by `PackedLinear`, in place, where PyTorch has oneDNN."""
    if not torch.backends.mkldnn.is_available():
        return
    # Parent by parent, and no list of all: it would keep the plain weights until the last layer is packed.
    for name, layer in module.named_children():
        if isinstance(layer, nn.Linear) and layer.weight.dtype == torch.float32:
            setattr(module, name, PackedLinear(layer))
        else:
            pack_linear(layer)


def keep_compiled(folder: str) -> None:
    """Have this process keep what it compiles in a folder, and look there first: what `compile` makes, and kernels.

    Processes and nodes may share the folder. PyTorch finds a program by all that it was made from: the graph, its own
    version and Triton's, the kind of GPU. It is kept as compiled libraries and pickles, so that whoever writes to the
    folder runs code in the processes that read it. Therefore nobody else may reach it; it is made so if it is missing.

    Raises:
        UserError: somebody else may, or it cannot be made or written to.
    """
    try:
        Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"compile cache {folder}: {error.strerror}") from error
    check_compile_cache(folder)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    os.environ["TRITON_CACHE_DIR"] = os.path.join(folder, "triton")


def check_compile_cache(folder: str) -> None:
    """Whether a folder that is there will do for `keep_compiled`.

    Raises:
        UserError: it will not.
    """
    try:
        found = os.stat(folder)
    except OSError as error:
        raise UserError(f"compile cache {folder}: {error.strerror}") from error
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UserError(
            f"compile cache {folder}: programs are run from there, and it is not this user's alone "
            f"({stat.filemode(found.st_mode)}, owner {found.st_uid}): give another, or `chmod 700` one of your own"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"compile cache {folder}: cannot be written to")

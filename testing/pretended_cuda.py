"""A GPU for machines without one: tensors that say ``cuda:0`` and compute on the CPU, with the real values.

    with pretended_cuda() as gpu:
        model = load_model(checkpoint, device="cuda", precision="bf16")
        found = model.predict(images)
    gpu.waits      # where the host waited for the device, and why
    gpu.launches   # each op: kernels, bytes, floating-point operations, the part of the model, the line
    gpu.transfers  # each copy between host and device

Code that runs here has taken the branches it takes on CUDA, and has mixed no devices and no dtypes that CUDA's kernels
refuse and the CPU's take. Control flow that depends on data goes its real way, which is why the values are real.
What the host reads before it has waited for it is rubbish, as are a graph's results before it is replayed; streams
that use the same memory in no order are an error.

What differs from a GPU: kernels are the CPU's, so rounding is; nothing takes time and no memory runs out; inference
mode is only ``no_grad``, since a tensor of a subclass cannot be an inference tensor. An op of ours (``maskfleet::``)
computes by its CPU implementation. Caches of device tensors that outlive the context keep pretended ones.

It rests on parts of PyTorch without a promise: ``torch._C._ensureCUDADeviceGuardSet``,
``_set_only_lift_cpu_tensors`` and ``_InferenceMode``, ``Tensor._make_wrapper_subclass``, the names in ``torch.cuda``
that `_stand_ins` lists, and that ``F.scaled_dot_product_attention`` is looked up in its module at each call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from testing.pretended.device import ACTIVE, PretendedGpu, PretendedTensor, real_attention
from testing.pretended.graphs import Graph
from testing.pretended.records import DeviceMismatch, DtypeMismatch, ForbiddenWait, Launch, Transfer, Wait
from testing.pretended.streams import Event, UnorderedAccess

__all__ = [
    "DeviceMismatch",
    "DtypeMismatch",
    "ForbiddenWait",
    "Launch",
    "PretendedGpu",
    "PretendedTensor",
    "Transfer",
    "UnorderedAccess",
    "Wait",
    "pretended_cuda",
]


@contextmanager
def pretended_cuda() -> Iterator[PretendedGpu]:
    """Within, PyTorch has one CUDA device, which is pretended.

    Raises:
        UnorderedAccess: at the end, if memory was freed while a stream other than its own may have used it.
    """
    torch._C._ensureCUDADeviceGuardSet()
    gpu = PretendedGpu()
    lifts_cpu_only = torch._C._only_lift_cpu_tensors()
    replaces = torch.__future__.get_overwrite_module_params_on_conversion()
    with ExitStack() as stack:
        for holder, name, value in _stand_ins(gpu):
            stack.enter_context(mock.patch.object(holder, name, value))
        # torch.tensor(..., device="cuda") is made on the CPU and copied; a moved parameter is a new one.
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifts_cpu_only)
        torch._C._set_only_lift_cpu_tensors(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, replaces)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        ACTIVE.append(gpu)
        stack.callback(ACTIVE.remove, gpu)
        stack.enter_context(gpu)
        yield gpu
    gpu.streams.check_frees()


def _stand_ins(gpu: PretendedGpu) -> list[tuple[Any, str, Any]]:
    """What takes the place of what while the device is pretended."""
    streams, cuda = gpu.streams, torch.cuda
    properties = SimpleNamespace(name="pretended", total_memory=141 << 30, major=9, minor=0, multi_processor_count=132)

    def synchronize(device: Any = None) -> None:
        gpu.wait("synchronize")
        streams.host_waits_for_all()

    def attention(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        run = gpu.attention if isinstance(query, PretendedTensor) else real_attention
        return run(query, *args, **kwargs)

    values: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "init": lambda: None,
        "_lazy_init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "_exchange_device": lambda device: 0,  # what torch.cuda.device(...) calls
        "_maybe_exchange_device": lambda device: 0,
        "get_device_name": lambda device=None: properties.name,
        "get_device_properties": lambda device=None: properties,
        "get_device_capability": lambda device=None: (properties.major, properties.minor),
        "is_bf16_supported": lambda including_emulation=True: True,
        "mem_get_info": lambda device=None: (properties.total_memory, properties.total_memory),
        "memory_allocated": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 0,
        "memory_reserved": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "empty_cache": lambda: None,
        "synchronize": synchronize,
        "Stream": streams.new,
        "Event": partial(Event, streams),
        "stream": streams.on,
        "current_stream": lambda device=None: streams.current,
        "default_stream": lambda device=None: streams.default,
        "CUDAGraph": partial(Graph, gpu),
        "graph": gpu.capture,
        "graph_pool_handle": lambda: (0, 1),
        "is_current_stream_capturing": lambda: gpu.is_capturing,
    }
    return [
        *((cuda, name, value) for name, value in values.items()),
        (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        (torch._C, "_InferenceMode", lambda mode=True: torch.set_grad_enabled(False)),
        (F, "scaled_dot_product_attention", attention),
    ]

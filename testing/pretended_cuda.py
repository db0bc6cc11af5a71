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

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import FrameType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from testing.pretended_costs import cost_of, is_free, stored_bytes
from testing.pretended_streams import Event, Memory, Stream, Streams

aten = torch.ops.aten
DEVICE = torch.device("cuda", 0)
_CPU = torch.device("cpu")
_RUBBISH = 0xFF  # in each byte: NaN as a float, -1 as an integer
_ALIGNMENT = 8  # elements; memory-efficient attention copies a bias whose strides are no multiple of it

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
# Ops in which a tensor on the CPU with one element stands for a number.
_TAKES_CPU_SCALARS = {
    "aten::copy_",
    "aten::fill_",
    "aten::masked_fill",
    "aten::masked_fill_",
    "aten::index_put",
    "aten::index_put_",
}
_INDEXED = {"aten::index", "aten::index_put", "aten::index_put_"}


class DeviceMismatch(RuntimeError):
    """Tensors of several devices in one op."""


class DtypeMismatch(RuntimeError):
    """Dtypes in one op that its CUDA kernel refuses."""


class ForbiddenWait(RuntimeError):
    """The host waits for the device where it must not."""


@dataclass(frozen=True)
class Launch:
    """One op on the device.

    Attributes:
        op: its name, without an overload.
        part: the names of the parts of the model that were running, outermost first.
        dtype: of its result.
        kernels: how many kernels CUDA starts for it, at least.
        bytes: read and written.
        flops: of matrix products and convolutions; others count as none.
        cast: it changes a dtype and nothing else.
        of_weight: its first argument is a parameter.
        where: file and line of the innermost frame of the project.
    """

    op: str
    part: tuple[str, ...]
    dtype: torch.dtype
    kernels: int
    bytes: int
    flops: int
    cast: bool
    of_weight: bool
    where: str


@dataclass(frozen=True)
class Wait:
    """The host waits until the device has done all that it was given."""

    kind: str
    part: tuple[str, ...]
    where: str


@dataclass(frozen=True)
class Transfer:
    """A copy between host and device; ``direction`` is ``in`` (to the device) or ``out``."""

    direction: str
    bytes: int
    pinned: bool
    part: tuple[str, ...]
    where: str


class PretendedTensor(torch.Tensor):
    """A tensor on ``cuda:0`` whose numbers are those of `held`, which lies on the CPU."""

    held: Tensor
    memory: Memory

    @staticmethod
    def __new__(cls, inner: Tensor, memory: Memory) -> PretendedTensor:
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=DEVICE,
            requires_grad=False,
        )
        self.held, self.memory = inner, memory
        return self

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # the stub of torch's own is no classmethod
        cls, func: OpOverload, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _gpu().run(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"PretendedTensor({self.held!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> PretendedTensor:
        copied = self.detach().clone()
        copied = nn.Parameter(copied, self.requires_grad) if isinstance(self, nn.Parameter) else copied
        return memo.setdefault(id(self), copied)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.cpu().numpy()
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() first.")

    def record_stream(self, stream: Any) -> None:
        """Memory that another stream uses is not given away before that stream is done."""
        self.memory.kept_for.add(stream.number)


_active: list[PretendedGpu] = []


def _gpu() -> PretendedGpu:
    if not _active:
        raise RuntimeError("a tensor of the pretended device is used outside of pretended_cuda()")
    return _active[-1]


class PretendedGpu(TorchDispatchMode):
    """The device: runs each op on the CPU, and keeps the records.

    Attributes:
        launches: ops that start kernels; one entry for each replay of a graph.
        waits: of the host, in order.
        transfers: copies between host and device.
        streams: who runs what after whom.
    """

    def __init__(self) -> None:
        super().__init__()
        self.streams = Streams()
        self.launches: list[Launch] = []
        self.waits: list[Wait] = []
        self.transfers: list[Transfer] = []
        self._parts: list[str] = []
        self._pinned: list[torch.UntypedStorage] = []
        self._waits_are_errors = False
        self._capturing: Graph | None = None

    # ---------------------------------------------------------------------------------------------------- for callers
    def forget(self) -> None:
        """Start all records anew."""
        self.launches, self.waits, self.transfers = [], [], []

    def name_parts(self, parts: Mapping[str, nn.Module]) -> None:
        """Let records say which of these modules was running, by its name."""
        for name, module in parts.items():
            module.register_forward_pre_hook(lambda *_, name=name: self._parts.append(name))
            module.register_forward_hook(lambda *_: self._parts.pop() and None, always_call=True)

    @contextmanager
    def no_waits(self) -> Iterator[None]:
        """Within, the host must not wait: `ForbiddenWait` is raised where it does."""
        before, self._waits_are_errors = self._waits_are_errors, True
        try:
            yield
        finally:
            self._waits_are_errors = before

    def wait(self, kind: str) -> None:
        """Record that the host waits for all that the current stream was given."""
        if self._waits_are_errors or self._capturing:
            reason = "while a graph is captured" if self._capturing else "where it must not"
            raise ForbiddenWait(f"the host waits for the device {reason}: {kind} at {_where()}")
        self.waits.append(Wait(kind, tuple(self._parts), _where()))
        self.streams.host_waits(self.streams.current.clock)

    # -------------------------------------------------------------------------------------------------------- running
    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """One op: refuse what CUDA refuses, compute, record."""
        name = func.name().split(".")[0]
        args = self._bring_indices(name, args)
        leaves = tree_leaves((args, kwargs))
        ours = [t for t in leaves if isinstance(t, PretendedTensor)]
        hosts = [t for t in leaves if isinstance(t, Tensor) and not isinstance(t, PretendedTensor)]
        device = kwargs.get("device")
        if not ours and (device is None or torch.device(device).type != "cuda"):
            return self._on_host(func, name, args, kwargs)
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if name == "aten::_to_copy" and (hosts or (device is not None and torch.device(device).type == "cpu")):
            return self._convert(func, args[0], kwargs)
        if name == "aten::copy_" and isinstance(args[0], PretendedTensor) != isinstance(args[1], PretendedTensor):
            return self._copy_across(*args, **kwargs)
        if name == "aten::is_pinned":
            return False
        self._refuse(name, func, ours, hosts)
        self._record_wait(name, args, kwargs)
        return self._compute(func, args, kwargs, ours)

    def _compute(
        self, func: OpOverload, args: Sequence[Any], kwargs: dict[str, Any], ours: list[PretendedTensor]
    ) -> Any:
        inner_args, inner_kwargs = tree_map(_held, args), tree_map(_held, kwargs)
        if "device" in inner_kwargs:
            inner_kwargs["device"] = _CPU
        inner_kwargs.pop("pin_memory", None)
        result = func(*inner_args, **inner_kwargs)
        results = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        known = {id(t.held): t for t in ours}
        shared = {t.held.untyped_storage().data_ptr(): t.memory for t in ours if t.held.numel()}

        def wrap(t: Any) -> Any:
            if not isinstance(t, Tensor):
                return t
            if (same := known.get(id(t))) is not None:
                if same.shape != t.shape or same.stride() != t.stride():
                    raise NotImplementedError(f"{func.name()} changes the shape of a tensor in place")
                return same
            memory = shared.get(t.untyped_storage().data_ptr()) if t.numel() else None
            return PretendedTensor(t, memory or Memory(self.streams))

        wrapped = tree_map(wrap, result)
        if not is_free(func, results):
            self._record(func, args, ours, results, [t for t in tree_leaves(wrapped) if isinstance(t, PretendedTensor)])
            if self._capturing:
                self._capturing.keep(partial(func, *inner_args, **inner_kwargs), results, known)
        return wrapped

    def _record(
        self,
        func: OpOverload,
        args: Sequence[Any],
        ours: list[PretendedTensor],
        results: list[Tensor],
        wrapped: list[PretendedTensor],
    ) -> None:
        name = func.name().split(".")[0]
        writes = [t.memory for t in wrapped]
        reads = [t.memory for t in ours if t.memory not in writes]
        if self._capturing:
            self._capturing.use(reads, writes)
        else:
            self.streams.launch(reads, writes, name)
        cost = cost_of(func, [t.held for t in ours], results, args)
        of_weight = bool(ours) and isinstance(ours[0], nn.Parameter)
        cast = name == "aten::_to_copy" and ours[0].dtype != results[0].dtype
        dtype = results[0].dtype if results else torch.int64
        self._launched(Launch(name.removeprefix("aten::"), tuple(self._parts), dtype, *cost, cast, of_weight, _where()))

    def _launched(self, launch: Launch) -> None:
        (self._capturing.launches if self._capturing else self.launches).append(launch)

    def _refuse(self, name: str, func: OpOverload, ours: list[PretendedTensor], hosts: list[Tensor]) -> None:
        scalars = torch.Tag.pointwise in func.tags or name in _TAKES_CPU_SCALARS
        strangers = [tuple(t.shape) for t in hosts if t.dim() or not scalars]
        if strangers:
            raise DeviceMismatch(f"{name} with tensors on the CPU, of shapes {strangers}, at {_where()}")
        floats = {t.dtype for t in ours if t.dtype.is_floating_point}
        if name in _ONE_FLOAT_DTYPE and (len(floats) != 1 or not ours[0].dtype.is_floating_point):
            raise DtypeMismatch(f"{name} with {[t.dtype for t in ours]} at {_where()}")
        if name in _NO_BFLOAT16 and torch.bfloat16 in floats:
            raise DtypeMismatch(f"{name} has no kernel for bfloat16, at {_where()}")

    def _record_wait(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        if name in _WAITING:
            self.wait(_WAITING[name])
        if name == "aten::repeat_interleave" and kwargs.get("output_size") is None:
            self.wait("repeat_interleave without output_size")
        # A mask that a single number is put into is a masked_fill, which waits for nothing.
        one_number = name != "aten::index" and name in _INDEXED and args[2].numel() == 1
        if name in _INDEXED and any(_is_mask(i) for i in args[1]) and not one_number:
            self.wait("mask as an index")

    def _bring_indices(self, name: str, args: Sequence[Any]) -> Sequence[Any]:
        """Indices on the CPU are the one thing that ops bring to the device themselves."""
        if name not in _INDEXED or not isinstance(args[0], PretendedTensor):
            return args
        indices = [i if i is None or isinstance(i, PretendedTensor) else self._bring(i) for i in args[1]]
        return [args[0], indices, *args[2:]]

    # ------------------------------------------------------------------------------------------------------ transfers
    def _on_host(self, func: OpOverload, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if name == "aten::is_pinned":
            return self._is_pinned(args[0])
        if name in ("aten::_pin_memory", "aten::pin_memory"):
            return self._pin(args[0].clone())
        if kwargs.get("pin_memory"):
            return self._pin(func(*args, **{**kwargs, "pin_memory": False}))
        return func(*args, **kwargs)

    def _pin(self, tensor: Tensor) -> Tensor:
        self._pinned.append(tensor.untyped_storage())  # kept, so that no other memory gets its address
        return tensor

    def _is_pinned(self, tensor: Tensor) -> bool:
        place = tensor.data_ptr()
        return any(s.data_ptr() <= place < s.data_ptr() + max(1, s.nbytes()) for s in self._pinned)

    def _convert(self, func: OpOverload, source: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """``.to`` of the other device."""
        kwargs = {**kwargs, "device": _CPU}
        non_blocking = kwargs.pop("non_blocking", False)
        if not isinstance(source, PretendedTensor):
            return self._bring(func(source, **kwargs), non_blocking, self._is_pinned(source))
        kept = func(source.held, **kwargs)
        if kept.untyped_storage().data_ptr() == source.held.untyped_storage().data_ptr():
            kept = kept.clone()
        # PyTorch gives a copy that does not block a pinned place to go to.
        return self._fetch(source, self._pin(kept) if non_blocking else kept, non_blocking)

    def _copy_across(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        if isinstance(target, PretendedTensor):
            brought = self._bring(source, non_blocking, self._is_pinned(source), target.memory)
            target.held.copy_(brought.held)
            return target
        assert isinstance(source, PretendedTensor)
        target.copy_(source.held)
        return self._fetch(source, target, non_blocking and self._is_pinned(target))

    def _bring(
        self, source: Tensor, non_blocking: bool = False, pinned: bool = False, memory: Memory | None = None
    ) -> PretendedTensor:
        memory = memory or Memory(self.streams)
        brought = PretendedTensor(source.clone(), memory)
        if source.numel():
            self._refuse_in_graph()
            self.transfers.append(Transfer("in", stored_bytes(source), pinned, tuple(self._parts), _where()))
            self.streams.launch([], [memory], "copy to the device")
            if not non_blocking:
                self.wait("copy to the device")
        return brought

    def _fetch(self, source: PretendedTensor, target: Tensor, non_blocking: bool) -> Tensor:
        """`target` on the host holds what was computed; the host may see it after it has waited."""
        if not target.numel():
            return target
        self._refuse_in_graph()
        pinned = self._is_pinned(target)
        self.transfers.append(Transfer("out", stored_bytes(target), pinned, tuple(self._parts), _where()))
        self.streams.launch([source.memory], [], "copy to the host")
        if non_blocking:
            content = target.clone()
            _spoil(target)
            self.streams.show_later(partial(target.copy_, content))
        else:
            self.wait("copy to the host")
        return target

    def _refuse_in_graph(self) -> None:
        if self._capturing:
            raise ForbiddenWait(f"a copy between host and device while a graph is captured, at {_where()}")

    # ------------------------------------------------------------------------------------------------------ attention
    def attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """``F.scaled_dot_product_attention`` as CUDA does it with a bias: the memory-efficient kernel.

        PyTorch's own choice of a kernel does not know the pretended device.
        """
        tensors = [query, key, value] if attn_mask is None else [query, key, value, attn_mask]
        if torch.is_autocast_enabled("cuda"):
            tensors = [t.to(torch.get_autocast_dtype("cuda")) for t in tensors]
        ours = [t for t in tensors if isinstance(t, PretendedTensor)]
        func = aten._scaled_dot_product_efficient_attention.default
        self._refuse("aten::_scaled_dot_product_efficient_attention", func, ours, _strangers(tensors))
        if len(ours) > 3 and any(s % _ALIGNMENT for s in ours[3].stride()[:-1]):
            width = ours[3].shape[-1]
            ours[3] = F.pad(ours[3], (0, -width % _ALIGNMENT))[..., :width]  # type: ignore[call-overload]

        def compute() -> Tensor:
            held = [t.held for t in ours]
            return _real_attention(held[0], held[1], held[2], held[3] if len(held) > 3 else None, **kwargs)

        result = compute()
        wrapped = PretendedTensor(result, Memory(self.streams))
        self._record(func, (), ours, [result], [wrapped])
        if self._capturing:
            self._capturing.keep(compute, [result], {})
        return wrapped

    # --------------------------------------------------------------------------------------------------------- graphs
    @contextmanager
    def capture(self, graph: Graph, pool: Any = None, stream: Stream | None = None, **kwargs: Any) -> Iterator[None]:
        """As ``torch.cuda.graph(...)``: what is launched within becomes the graph's."""
        self.streams.host_waits_for_all()
        with self.streams.on(stream or self.streams.new()):
            graph.capture_begin()
            try:
                yield
            finally:
                graph.capture_end()


class Graph:
    """In the place of ``torch.cuda.CUDAGraph``: replays what was captured, into the same memory."""

    def __init__(self, gpu: PretendedGpu) -> None:
        self._gpu = gpu
        self._steps: list[tuple[Callable[[], Any], list[Tensor], set[int]]] = []
        self._reads: dict[int, Memory] = {}
        self._writes: dict[int, Memory] = {}
        self.launches: list[Launch] = []

    def use(self, reads: Sequence[Memory], writes: Sequence[Memory]) -> None:
        """What one step reads and writes."""
        for memory in writes:
            memory.in_graph = True
            self._writes[id(memory)] = memory
        self._reads.update((id(memory), memory) for memory in reads)

    def keep(self, compute: Callable[[], Any], results: list[Tensor], known: Mapping[int, Any]) -> None:
        """One step: its results go into the tensors that the capture gave, unless it works in place."""
        self._steps.append((compute, results, set(known)))

    def capture_begin(self, *args: Any, **kwargs: Any) -> None:
        if self._gpu._capturing or self._steps:
            raise RuntimeError("a graph is captured once, and one at a time")
        self._gpu._capturing = self

    def capture_end(self) -> None:
        self._gpu._capturing = None
        for _, results, known in self._steps:
            for result in results:
                if id(result) not in known:
                    _spoil(result)

    def replay(self) -> None:
        """All steps again, as one launch."""
        for compute, results, known in self._steps:
            again = [t for t in tree_leaves(compute()) if isinstance(t, Tensor)]
            for old, new in zip(results, again, strict=True):
                if id(old) not in known:
                    old.copy_(new)
        reads = [memory for key, memory in self._reads.items() if key not in self._writes]
        self._gpu.streams.launch(reads, list(self._writes.values()), "graph")
        if self.launches:
            total = {name: sum(getattr(launch, name) for launch in self.launches) for name in ("bytes", "flops")}
            parts = tuple(self._gpu._parts)
            self._gpu._launched(replace(self.launches[-1], op="graph", part=parts, kernels=1, where=_where(), **total))

    def reset(self) -> None:
        self._steps, self._reads, self._writes, self.launches = [], {}, {}, []

    def pool(self) -> tuple[int, int]:
        return (0, 1)


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
        _active.append(gpu)
        stack.callback(_active.remove, gpu)
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
        run = gpu.attention if isinstance(query, PretendedTensor) else _real_attention
        return run(query, *args, **kwargs)

    values: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "init": lambda: None,
        "_lazy_init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
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
        "is_current_stream_capturing": lambda: gpu._capturing is not None,
    }
    return [
        *((cuda, name, value) for name, value in values.items()),
        (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        (torch._C, "_InferenceMode", lambda mode=True: torch.set_grad_enabled(False)),
        (F, "scaled_dot_product_attention", attention),
    ]


_real_attention = F.scaled_dot_product_attention


def _held(value: Any) -> Any:
    return value.held if isinstance(value, PretendedTensor) else value


def _strangers(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t for t in tensors if not isinstance(t, PretendedTensor)]


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


def _spoil(tensor: Tensor) -> None:
    """Fill a tensor's elements with rubbish."""
    if tensor.numel():
        tensor.copy_(torch.full((tensor.element_size(),), _RUBBISH, dtype=torch.uint8).view(tensor.dtype)[0])


def _where() -> str:
    """File and line of the innermost frame that is the project's, this folder left out."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if _ROOT in path and "/site-packages/" not in path and "/testing/" not in path:
            return f"{path[path.index(_ROOT) + len(_ROOT) :]}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


_ROOT = __file__.removesuffix("testing/pretended_cuda.py")

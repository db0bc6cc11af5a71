"""The pretended device: its tensors, and how it runs an op. See `testing.pretended_cuda`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from testing.pretended.checks import INDEXED, refuse_mixture, wait_of
from testing.pretended.costs import cost_of, is_free, stored_bytes
from testing.pretended.graphs import Graph, spoil
from testing.pretended.records import ForbiddenWait, Launch, Transfer, Wait, where
from testing.pretended.streams import Memory, Stream, Streams

DEVICE = torch.device("cuda", 0)
_CPU = torch.device("cpu")
# Elements. Memory-efficient attention copies a bias whose strides are no multiple of it, and takes no heads of half
# precision whose width is none (of float32, no multiple of half of it).
_ALIGNMENT = 8
_ATTENTION = torch.ops.aten._scaled_dot_product_efficient_attention.default


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


ACTIVE: list[PretendedGpu] = []  # the innermost last


def _gpu() -> PretendedGpu:
    if not ACTIVE:
        raise RuntimeError("a tensor of the pretended device is used outside of pretended_cuda()")
    return ACTIVE[-1]


class PretendedGpu(TorchDispatchMode):
    """The device: runs each op on the CPU, and keeps the records.

    Attributes:
        launches: ops that start kernels, those of a graph each time that it is replayed.
        replays: of graphs.
        waits: of the host, in order.
        transfers: copies between host and device.
        streams: who runs what after whom.
    """

    def __init__(self) -> None:
        super().__init__()
        self.streams = Streams(self.wait)
        self.launches: list[Launch] = []
        self.waits: list[Wait] = []
        self.transfers: list[Transfer] = []
        self.replays = 0
        self._parts: list[str] = []
        self._pinned: list[torch.UntypedStorage] = []
        self._waits_are_errors = False
        self._capturing: Graph | None = None

    # ---------------------------------------------------------------------------------------------------- for callers
    def forget(self) -> None:
        """Start all records anew."""
        self.launches, self.waits, self.transfers, self.replays = [], [], [], 0

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
        """Record that the host waits, or refuse."""
        if self._waits_are_errors or self._capturing:
            reason = "while a graph is captured" if self._capturing else "where it must not"
            raise ForbiddenWait(f"the host waits for the device {reason}: {kind} at {where()}")
        self.waits.append(Wait(kind, tuple(self._parts), where()))

    def _wait(self, kind: str) -> None:
        """For all that the current stream was given."""
        self.wait(kind)
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
        refuse_mixture(name, func, ours, hosts)
        if kind := wait_of(name, args, kwargs):
            self._wait(kind)
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
        self._launched(Launch(name.removeprefix("aten::"), tuple(self._parts), dtype, *cost, cast, of_weight, where()))

    def _launched(self, launch: Launch) -> None:
        (self._capturing.launches if self._capturing else self.launches).append(launch)

    def _bring_indices(self, name: str, args: Sequence[Any]) -> Sequence[Any]:
        """Indices on the CPU are the one thing that ops bring to the device themselves."""
        if name not in INDEXED or not isinstance(args[0], PretendedTensor):
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
            self.transfers.append(Transfer("in", stored_bytes(source), pinned, tuple(self._parts), where()))
            self.streams.launch([], [memory], "copy to the device")
            if not non_blocking:
                self._wait("copy to the device")
        return brought

    def _fetch(self, source: PretendedTensor, target: Tensor, non_blocking: bool) -> Tensor:
        """`target` on the host holds what was computed; the host may see it after it has waited."""
        if not target.numel():
            return target
        self._refuse_in_graph()
        pinned = self._is_pinned(target)
        self.transfers.append(Transfer("out", stored_bytes(target), pinned, tuple(self._parts), where()))
        self.streams.launch([source.memory], [], "copy to the host")
        if non_blocking:
            content = target.clone()
            spoil(target)
            self.streams.show_later(partial(target.copy_, content))
        else:
            self._wait("copy to the host")
        return target

    def _refuse_in_graph(self) -> None:
        if self._capturing:
            raise ForbiddenWait(f"a copy between host and device while a graph is captured, at {where()}")

    # ------------------------------------------------------------------------------------------------------ attention
    def attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """``F.scaled_dot_product_attention`` as CUDA does it with a bias: the memory-efficient kernel where it fits.

        PyTorch's own choice of a kernel does not know the pretended device.
        """
        tensors = [query, key, value] if attn_mask is None else [query, key, value, attn_mask]
        if torch.is_autocast_enabled("cuda"):
            tensors = [t.to(torch.get_autocast_dtype("cuda")) for t in tensors]
        ours = [t for t in tensors if isinstance(t, PretendedTensor)]
        hosts = [t for t in tensors if not isinstance(t, PretendedTensor)]
        refuse_mixture("aten::_scaled_dot_product_efficient_attention", _ATTENTION, ours, hosts)
        if query.shape[-1] % (_ALIGNMENT if ours[0].dtype.itemsize == 2 else _ALIGNMENT // 2):
            q, k, v = tensors[:3]
            return torch._scaled_dot_product_attention_math(q, k, v, tensors[3] if tensors[3:] else None, **kwargs)[0]
        if len(ours) > 3 and any(s % _ALIGNMENT for s in ours[3].stride()[:-1]):
            width = ours[3].shape[-1]
            ours[3] = F.pad(ours[3], (0, -width % _ALIGNMENT))[..., :width]  # type: ignore[call-overload]

        def compute() -> Tensor:
            held = [t.held for t in ours]
            return real_attention(held[0], held[1], held[2], held[3] if len(held) > 3 else None, **kwargs)

        result = compute()
        wrapped = PretendedTensor(result, Memory(self.streams))
        self._record(_ATTENTION, (), ours, [result], [wrapped])
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

    def begin_capture(self, graph: Graph) -> None:
        if self._capturing:
            raise RuntimeError("graphs are captured one at a time")
        self._capturing = graph

    def end_capture(self) -> None:
        self._capturing = None

    def replayed(self, graph: Graph, reads: list[Memory], writes: list[Memory]) -> None:
        self.streams.launch(reads, writes, "graph")
        self.replays += 1
        self.launches += [replace(launch, replayed=True) for launch in graph.launches]

    @property
    def is_capturing(self) -> bool:
        return self._capturing is not None


real_attention = F.scaled_dot_product_attention


def _held(value: Any) -> Any:
    return value.held if isinstance(value, PretendedTensor) else value

"""The device that a model runs on: found, kept to float32, freed of memory, and known to be lost when it is."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch

from pipeline.errors import RunError, UserError

_tf32_lock = Lock()
_tf32_forbidden = 0  # by how many
_tf32_before = True

_CUDA_ERROR_MEMORY_ALLOCATION = 2  # of CUDA's runtime


class DeviceLost(RunError):
    """The device answers no more; only a new process gets a working one."""


def usable_device(device: str | torch.device) -> torch.device:
    """The device of this name.

    Raises:
        UserError: it has no such name, or is not there.
    """
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device {device!r}: expected cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {device}: this machine has {torch.cuda.device_count()} usable CUDA devices")
    return device


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory did not suffice, of any kind: what PyTorch does not take by way of its allocator for GPUs (pinned
    memory of the host, recorded graphs, streams) is refused as an error of the device with CUDA's own number.
    """
    of_device = isinstance(error, torch.AcceleratorError)
    code = getattr(error, "error_code", None) if of_device else None
    return isinstance(error, torch.OutOfMemoryError) or code == _CUDA_ERROR_MEMORY_ALLOCATION


def raise_if_lost(device: torch.device, error: Exception) -> None:
    """Ask the device whether it lives, after an error in work that it was given.

    What went wrong in a kernel is told by whatever call comes next, in the words of whatever library made that call,
    and from then on by every call: so it is the device that is asked, and not the message. An error of the device's
    own kind counts as its loss in any case, unless it is that of a lack of memory: taking a living device for a lost
    one costs a restart, and the other way round each image of the replica would be refused.

    Raises:
        DeviceLost: it does not, with ``error`` as the cause.
    """
    if device.type != "cuda":
        return
    if _loss(device, error) is not None:
        raise DeviceLost(f"device {device} is lost: {type(error).__name__}: {error}") from error


def free_memory(device: torch.device, error: Exception) -> None:
    """After an error, let go of the tensors in the frames that it passed, and give cached memory back to the device.

    Raises:
        DeviceLost: the device is, with ``error`` as the cause.
    """
    forget_locals(error)
    if device.type != "cuda":
        return
    try:
        torch.cuda.empty_cache()
    except Exception as second:
        # A living device may refuse, too: once a graph could not be recorded because of what it contains, PyTorch
        # takes the recording to be under way for ever, and while one is, no memory is given back.
        if (lost := _loss(device, second)) is not None:
            raise DeviceLost(f"device {device} is lost: {type(lost).__name__}: {lost}") from error


def forget_locals(error: BaseException | None) -> None:
    """Empty the frames that an error and those before it passed: what is kept of it is text and line numbers."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


@contextmanager
def true_float32(device: torch.device) -> Iterator[None]:
    """Within, convolutions of float32 are that: cuDNN rounds what it multiplies to TF32 unless told not to.

    It is told by a flag of the whole process, so those who forbid it are counted: threads with a model each end in any
    order, and the first must not allow it to the others.
    """
    global _tf32_forbidden, _tf32_before
    if device.type != "cuda":
        yield
        return
    with _tf32_lock:
        if not _tf32_forbidden:
            _tf32_before = torch.backends.cudnn.allow_tf32
            torch.backends.cudnn.allow_tf32 = False
        _tf32_forbidden += 1
    try:
        yield
    finally:
        with _tf32_lock:
            _tf32_forbidden -= 1
            if not _tf32_forbidden:
                torch.backends.cudnn.allow_tf32 = _tf32_before


def _loss(device: torch.device, error: Exception) -> Exception | None:
    """What shows that the device is lost, after an error in work that it was given."""
    if isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error):
        return error
    try:
        torch.cuda.synchronize(device)
    except Exception as second:
        return second
    return None

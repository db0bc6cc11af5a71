"""What the pretended device keeps a record of, and what it refuses."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

_ROOT = f"{Path(__file__).parents[2]}/"
_NOT_SHOWN = ("/testing/pretended", "/site-packages/")


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
        replayed: by a graph, so that the host spent nothing on it.
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
    replayed: bool = False


@dataclass(frozen=True)
class Wait:
    """The host waits until the device has done what it was given."""

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


def where() -> str:
    """File and line of the innermost frame that is the project's, the pretended device left out."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(_ROOT) and not any(part in path for part in _NOT_SHOWN):
            return f"{path.removeprefix(_ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"

"""Makes two pictures deadly for the process that works on them; imported by ``sitecustomize`` in the job's processes.

The product knows nothing of it: two of its functions are wrapped while their modules are imported.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from benchmarks.chaos import hooks

DEADLY_TO_DECODE = b"deadly to decode"  # anywhere in the file
DEADLY_TO_SEGMENT = (52, 68)  # height and width


def _die_on_decode(module: ModuleType) -> None:
    decode: Callable[..., Any] = module.decode_image

    def decode_image(data: bytes, **options: Any) -> Any:
        if DEADLY_TO_DECODE in data:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(data, **options)

    module.__dict__["decode_image"] = decode_image


def _die_on_segment(module: ModuleType) -> None:
    attempt: Callable[..., Any] = module.Predictor.attempt

    def deadly(self: Any, images: Sequence[Any], *args: Any, **options: Any) -> Any:
        if any(image.shape[:2] == DEADLY_TO_SEGMENT for image in images):
            os.kill(os.getpid(), signal.SIGKILL)
        return attempt(self, images, *args, **options)

    module.Predictor.attempt = deadly


def install() -> None:
    """Wrap the functions when their modules are imported."""
    hooks.install({"pipeline.images.decode": _die_on_decode, "pipeline.model.predictor": _die_on_segment})

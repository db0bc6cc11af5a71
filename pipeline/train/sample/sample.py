"""What flows through training: one image with its objects, and batches of them.

Legend: B images, G objects of an image, H W pixels; sizes are (height, width), boxes xyxy in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """An image and its objects, as read or as augmented.

    Attributes:
        image_id: of the data set, for messages.
        pixels: RGB uint8 ``(H, W, 3)``.
        boxes: float32 ``(G, 4)`` xyxy in pixels of ``pixels``.
        labels: int64 ``(G,)``.
        masks: bool ``(G, H, W)``.
        ignored: bool ``(G,)``: crowds and uncertain pseudo-labels. Proposals and anchors on them are neither
            positive nor negative.
    """

    image_id: int | str
    pixels: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_]
    ignored: NDArray[np.bool_]


@dataclass(frozen=True)
class Target:
    """The objects of one image of a batch, as tensors on the model's device.

    Attributes:
        boxes: float32 ``(G, 4)`` xyxy in pixels of the input.
        labels: int64 ``(G,)``.
        masks: bool ``(G, H, W)`` in the frame of the input before padding.
        ignored: bool ``(G,)``.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor
    ignored: Tensor


@dataclass(frozen=True)
class Batch:
    """Images of one padded shape with their objects.

    Attributes:
        image_ids: B.
        images: float32 ``(B, 3, H, W)``, normalised, zero-padded right and below to multiples of 32.
        image_sizes: float32 ``(B, 2)`` before padding.
        targets: B.
    """

    image_ids: tuple[int | str, ...]
    images: Tensor
    image_sizes: Tensor
    targets: tuple[Target, ...]

"""What a detector's loss is given: images of one padded shape with their objects, as tensors.

Legend: B images, G objects of an image, H W pixels; sizes are (height, width), boxes xyxy in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Target:
    """The objects of one image of a batch, as tensors on the model's device.

    Attributes:
        boxes: float32 ``(G, 4)`` xyxy in pixels of the input.
        labels: int64 ``(G,)``, index into the model's categories.
        masks: bool ``(G, H, W)`` in the frame of the input before padding.
        ignored: bool ``(G,)``: neither to be found nor background.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor
    ignored: Tensor


@dataclass(frozen=True)
class Batch:
    """Images of one padded shape with their objects.

    Attributes:
        image_ids: B, ids in the data set, for messages.
        images: float32 ``(B, 3, H, W)``, normalised, zero-padded right and below to multiples of 32.
        image_sizes: float32 ``(B, 2)`` before padding.
        targets: B, the objects of each image.
    """

    image_ids: tuple[int | str, ...]
    images: Tensor
    image_sizes: Tensor
    targets: tuple[Target, ...]

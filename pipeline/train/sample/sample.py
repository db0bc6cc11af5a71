"""What flows through training up to the batches that `pipeline.model.batch` describes: one image with its objects.

Legend: G objects of an image, H W pixels; sizes are (height, width), boxes xyxy in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sample:
    """An image and its objects, as read or as augmented.

    Attributes:
        image_id: of the data set, for messages.
        pixels: RGB uint8 ``(H, W, 3)``.
        boxes: float32 ``(G, 4)`` xyxy in pixels of ``pixels``.
        labels: int64 ``(G,)`` positions in the list of classes.
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

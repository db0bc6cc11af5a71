"""The values that leave the model: a batch's detections on its device, and one image's on the CPU. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

import numpy as np

from pipeline.masks.rasterise import rasterise
from pipeline.masks.rle import Rle

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Detections:
    """The detections of one image, best score first. A field of its arrays says the type in which it travels.

    Attributes:
        boxes: float32 ``(N, 4)``, xyxy in pixels of the original image, clipped to it.
        scores: float32 ``(N,)`` in ``(0, 1]``.
        labels: int64 ``(N,)``, index into the model's categories.
        masks: float ``(N, S, S)`` mask probabilities, stretched over their box (not over the image); S is 28 in what
            was published.
        image_size: ``(H, W)`` of the original image.
    """

    boxes: np.ndarray = field(metadata={"dtype": np.float32})
    scores: np.ndarray = field(metadata={"dtype": np.float32})
    labels: np.ndarray = field(metadata={"dtype": np.int64})
    masks: np.ndarray = field(metadata={"dtype": np.float32})
    image_size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.scores)

    def where(self, chosen: np.ndarray) -> Detections:
        """Those that a boolean mask ``(N,)`` chooses."""
        return replace(self, **{name: getattr(self, name)[chosen] for name in DETECTION_ARRAYS})

    def rle(self) -> list[Rle]:
        """The masks at the original image's resolution, thresholded at 0.5, as compressed COCO RLE."""
        return rasterise(self.masks, self.boxes, self.image_size)


# The arrays, one entry a detection: name and type.
DETECTION_ARRAYS = {f.name: f.metadata["dtype"] for f in fields(Detections) if "dtype" in f.metadata}


@dataclass(frozen=True)
class BatchDetections:
    """The detections of a batch of B images, each image's best first in D slots; empty slots are zero.

    Attributes:
        boxes: float32 ``(B, D, 4)`` xyxy in pixels of each one's original image.
        scores: float32 ``(B, D)`` in ``(0, 1]``.
        labels: int64 ``(B, D)``, index into the model's categories.
        masks: ``(B, D, S, S)`` probabilities over each box, S the same for all.
        counts: int64 ``(B,)``, detections of each image.
        finite: bool ``(B,)``; of an image whose numbers are NaN or infinite nothing else means anything. It would seem
            to be empty: of NaN no threshold is exceeded.
        final: bool ``(B,)``; where it is not, the detector left out what may belong to the best D: it has to be asked
            again, for every candidate.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor
    counts: Tensor
    finite: Tensor
    final: Tensor

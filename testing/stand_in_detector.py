"""A detector that finds the same in every picture, and fails on those that a test names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pipeline.model.detections import BatchDetections
from pipeline.model.detector import Detector, Plan
from pipeline.model.predictor import Predictor
from pipeline.model.settings import PIXEL_MEAN, PIXEL_STD, TestSettings
from testing.small_model import SMALL, SMALL_CATEGORIES, SMALL_SETTINGS, random_checkpoint

SETTINGS = replace(SMALL_SETTINGS, short_side=16, long_side=32)
_CHECKPOINT = random_checkpoint(SMALL, SMALL_CATEGORIES, SETTINGS)  # its weights are not used

Fail = Callable[[Sequence[int]], Exception | None]


def plain(number: int, height: int = 6, width: int = 8) -> np.ndarray:
    """A picture that is known by its colour, and by its height, which is larger by its number."""
    return np.full((height + number, width, 3), number, np.uint8)


class StandInDetector(Detector):
    """Finds label 0 with 0.9, label 1 with 0.5 and label 2 with 0.1 all over any picture.

    Args:
        fail: given the numbers of a batch's pictures, what to raise.
        not_finite, not_final: numbers of pictures that are not, the latter unless it looks at every candidate.

    Attributes:
        calls: the numbers of each batch's pictures.
    """

    def __init__(self, fail: Fail, not_finite: frozenset[int], not_final: frozenset[int]) -> None:
        super().__init__()
        self._fail, self._not_finite, self._not_final = fail, not_finite, not_final
        self.calls: list[list[int]] = []

    def plan(self, shape: tuple[int, int]) -> Plan:
        return Plan()

    def forward(
        self,
        images: Tensor,
        image_sizes: Tensor,
        scale_factors: Tensor,
        plan: Plan,
        settings: TestSettings,
        every_candidate: bool = False,
    ) -> BatchDetections:
        numbers = [round(red) for red in (images[:, 0, 0, 0] * PIXEL_STD[0] + PIXEL_MEAN[0]).tolist()]
        self.calls.append(numbers)
        if (error := self._fail(numbers)) is not None:
            raise error
        batch, slots, device = len(images), settings.max_detections, images.device

        def flags(marked: Collection[int]) -> Tensor:
            return torch.tensor([number not in marked for number in numbers], device=device)

        final = flags(() if every_candidate else self._not_final)
        boxes, masks = torch.zeros(batch, slots, 4, device=device), torch.zeros(batch, slots, 28, 28, device=device)
        scores, labels = torch.zeros(slots, device=device), torch.arange(slots, device=device) % 3
        boxes[:, :3, 2:] = (image_sizes.flip(1) / scale_factors).round()[:, None]
        masks[:, :3] = 0.75
        scores[:3] = torch.tensor([0.9, 0.5, 0.1], device=device)
        counts = final * 3  # what is not final must not be taken
        spread = (batch, slots)
        return BatchDetections(
            boxes, scores.expand(spread), labels.expand(spread), masks, counts, flags(self._not_finite), final
        )


def stand_in(
    fail: Fail = lambda numbers: None,
    precision: str = "fp32",
    not_finite: Collection[int] = (),
    not_final: Collection[int] = (),
    device: str = "cpu",
) -> Predictor:
    """A predictor with such a network."""
    detector = StandInDetector(fail, frozenset(not_finite), frozenset(not_final))
    return Predictor(detector, _CHECKPOINT, SETTINGS, precision, torch.device(device))


def calls(predictor: Predictor) -> list[list[int]]:
    """The numbers of each batch's pictures that the predictor's network was given."""
    assert isinstance(predictor.detector, StandInDetector)
    return predictor.detector.calls

"""What overlaps what in a block, as one list: analysis becomes array work on the block, not a loop over its images.

Legend: N images, D detections, G objects (crowd regions among them), P overlaps, by detection, then by object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.blocks import DetectionBlock
from pipeline.tables.arrays import Bools, Float64s, Int64s
from pipeline.tables.ragged import image_indices


@dataclass(frozen=True)
class Overlaps:
    """A detection and an object of the same image that overlap, P times.

    Attributes:
        detections: [P] index in the block.
        objects: [P] index in the block.
        ious: [P] above 0; with a crowd region, the share of the detection that lies in it.
    """

    detections: Int64s
    objects: Int64s
    ious: Float64s

    def take(self, chosen: NDArray[Any]) -> Overlaps:
        """The overlaps at these indices, or where a mask [P] is true."""
        return Overlaps(self.detections[chosen], self.objects[chosen], self.ious[chosen])


@dataclass(frozen=True)
class Partners:
    """At most one object for each detection.

    Attributes:
        objects: [D] index in the block, -1 for none.
        ious: [D] 0 for none.
    """

    objects: Int64s
    ious: Float64s

    @property
    def present(self) -> Bools:
        """[D] which detections have one."""
        return self.objects >= 0


def best_partners(overlaps: Overlaps, num_detections: int) -> Partners:
    """For each detection the object that it overlaps most, the first of equals; several may share one."""
    best = np.zeros(num_detections)
    np.maximum.at(best, overlaps.detections, overlaps.ious)
    objects = np.full(num_detections, -1, np.int64)
    first = overlaps.take(np.flatnonzero(overlaps.ious == best[overlaps.detections])[::-1])
    objects[first.detections] = first.objects  # where a detection has several, the last written stays
    return Partners(objects, best)


def match_in_order(overlaps: Overlaps, num_detections: int, num_objects: int) -> Partners:
    """Greedy one-to-one matching: a pair counts if neither its detection nor its object was in an earlier one.

    Args:
        overlaps: the candidates, in the order in which they choose.
        num_detections: D, of the block.
        num_objects: G, of the block.
    """
    objects, taken, ious = [-1] * num_detections, bytearray(num_objects), [0.0] * num_detections
    triples = zip(overlaps.detections.tolist(), overlaps.objects.tolist(), overlaps.ious.tolist(), strict=True)
    for detection, candidate, iou in triples:
        if objects[detection] < 0 and not taken[candidate]:
            objects[detection], ious[detection], taken[candidate] = candidate, iou, 1
    return Partners(np.array(objects, np.int64), np.array(ious, np.float64))


def score_positions(detections: DetectionBlock) -> Int64s:
    """[D] each detection's place when every image's are put in descending order, equal scores in the given one.

    Those of image ``i`` have the places ``offsets[i]`` to ``offsets[i + 1]``.
    """
    places = np.empty(len(detections.scores), np.int64)
    places[np.lexsort((-detections.scores, image_indices(detections.offsets)))] = np.arange(places.size)
    return places

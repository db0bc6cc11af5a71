"""The records of AP -> what calibration and thresholds look at: score, and right or wrong."""

from __future__ import annotations

import numpy as np

from pipeline.metrics.ap.records import Records
from pipeline.tables.arrays import Bools, Float64s

HIT_IOU = 0.5  # the first of the IoU thresholds: bit 0


def scored_hits(records: Records) -> tuple[Float64s, Bools]:
    """Scores [n] and whether each is a true positive at `HIT_IOU` [n], for objects of any size.

    Detections that COCO ignores, those in crowd regions, are left out.
    """
    true, false = (records[name][:, 0] & 1 for name in ("tp", "fp"))
    counted = (true | false) > 0
    return np.ascontiguousarray(records["score"][counted]), true[counted] > 0

"""Records of one category written by hand, for what goes through them in descending score."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from hypothesis import strategies as st

from pipeline.metrics.ap.records import RECORD, Records

Detection = tuple[float, str]  # score; "t" right, "f" wrong, "i" ignored, at an IoU of 0.5


def records_of(detections: Sequence[Detection]) -> Records:
    """In this order. The other thresholds and area ranges say the contrary."""
    records = np.zeros(len(detections), RECORD)
    for record, (score, kind) in zip(records, detections, strict=True):
        record["score"] = score
        record["tp"], record["fp"] = (0b1110, 0b10001) if kind == "f" else (0b10001, 0b1110)
        record["tp"][0], record["fp"][0] = 0b1110 | (kind == "t"), 0b10000 | (kind == "f")
    return records


@st.composite
def sorted_detections(draw: st.DrawFn) -> list[Detection]:
    """Up to 30, best score first, with ties."""
    found = st.tuples(st.sampled_from([n / 8 for n in range(9)]), st.sampled_from("ttffi"))
    return sorted(draw(st.lists(found, max_size=30)), key=lambda d: -d[0])


@st.composite
def chunked(draw: st.DrawFn) -> tuple[list[Detection], list[list[Detection]]]:
    """Sorted detections, and the same cut into chunks, empty ones among them."""
    detections = draw(sorted_detections())
    cuts = sorted(draw(st.lists(st.integers(0, len(detections)), max_size=4)))
    bounds = [0, *cuts, len(detections)]
    return detections, [detections[a:b] for a, b in pairwise(bounds)]

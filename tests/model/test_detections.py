from __future__ import annotations

from dataclasses import fields

import numpy as np

from pipeline.model.detections import DETECTION_ARRAYS, Detections


def test_where_chooses_from_every_array() -> None:
    arrays = {name: np.arange(3).astype(dtype) for name, dtype in DETECTION_ARRAYS.items()}
    assert [*arrays, "image_size"] == [field.name for field in fields(Detections)]
    chosen = Detections(**arrays, image_size=(4, 5)).where(np.array([True, False, True]))
    for name, dtype in DETECTION_ARRAYS.items():
        values = getattr(chosen, name)
        assert values.dtype == dtype
        np.testing.assert_array_equal(values, [0, 2])
    assert chosen.image_size == (4, 5)
    assert len(chosen) == 2

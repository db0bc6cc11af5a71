"""The model of fixed duration works in the stage in whose place of a model it stands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from benchmarks.support.stub_replica import StubPredictor, StubSettings
from pipeline.annotate.stages.guard import InProcessGuard
from pipeline.annotate.stages.segment import Segment
from pipeline.model.categories import Category
from tests.annotate.stages.test_segment import decoded_rows

CATEGORIES = tuple(Category(i, name) for i, name in enumerate(("cat", "dog", "owl")))


def test_it_stands_for_a_model_in_the_stage(tmp_path: Path) -> None:
    predictor = StubPredictor(StubSettings(batch_s=0.0, detections=5, log_dir=str(tmp_path)), CATEGORIES)
    stage = Segment(predictor, 2, (0, 0, 0), InProcessGuard(), lambda counts: None, 60)  # type: ignore[arg-type]
    rows = stage(decoded_rows([np.zeros((20, 30, 3), np.uint8)] * 3))
    assert rows["error_code"].null_count == 3
    assert [len(scores) // np.float32().nbytes for scores in rows["scores"].to_pylist()] == [5, 5, 5]
    [log] = tmp_path.glob("*.jsonl")
    assert [json.loads(line)[2] for line in log.read_text().splitlines()] == [2, 1]

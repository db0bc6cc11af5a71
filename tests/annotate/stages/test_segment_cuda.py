"""The model's stage on a pretended GPU: a block of rows goes the way it goes on CUDA."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pipeline.model.cascade_mask_rcnn.layouts import to_native
from pipeline.model.files.checkpoints import Checkpoint
from pipeline.model.predictor import load_model
from testing.pretended_cuda import pretended_cuda
from testing.small_model import SMALL, SMALL_CATEGORIES, SMALL_SETTINGS
from tests.annotate.stages.test_fetch_decode import photo
from tests.annotate.stages.test_segment import as_rows, found, segment
from tests.model.golden_weights import official_weights

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = [(64, 90), (96, 64), (64, 90), (50, 50), (64, 90), (64, 88)]


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    return as_rows([photo(*size, seed) for seed, size in enumerate(SIZES)])


def segmented(rows: pa.Table, device: str, precision: str) -> pa.Table:
    settings = replace(SMALL_SETTINGS, short_side=64, long_side=96, max_detections=6)
    weights = to_native(official_weights(SMALL), "official")
    model = load_model(Checkpoint(weights, SMALL, SMALL_CATEGORIES, settings), device, precision)
    return segment(rows, model, thresholds=[0.0] * SMALL.num_classes)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_finds_what_it_finds_on_the_cpu(precision: str, rows: pa.Table) -> None:
    with pretended_cuda() as gpu:
        here = segmented(rows, "cuda", precision)
    assert gpu.launches
    assert here["error_code"].null_count == len(SIZES)
    for ours, expected in zip(found(here), found(segmented(rows, "cpu", precision)), strict=True):
        assert ours is not None
        assert expected is not None
        assert len(ours["scores"]) > 0
        for name, values in expected.items():
            atol = 5e-3 if name == "boxes" else 1e-4
            np.testing.assert_allclose(ours[name], values, atol=atol, err_msg=name)

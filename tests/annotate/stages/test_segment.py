"""The model's stage: with a stand-in that fails on demand, and with a small real model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.annotate.stages.fetch_decode import FetchDecode
from pipeline.annotate.stages.guard import MAX_DEATHS, TIMEOUT_EXIT_CODE, InProcessGuard
from pipeline.annotate.stages.ordering import BatchOrder
from pipeline.annotate.stages.rows import DECODED, error_arrays
from pipeline.annotate.stages.segment import ModelNotFinite, Segment
from pipeline.annotate.stages.stage import StageCounts
from pipeline.annotations.failure import ImageFailure
from pipeline.annotations.pictures import PictureSource
from pipeline.annotations.schema import OBJECT_COLUMNS
from pipeline.model.cascade_mask_rcnn.layouts import to_native
from pipeline.model.detections import DETECTION_ARRAYS, Detections
from pipeline.model.detector import NotFinite
from pipeline.model.device import DeviceLost
from pipeline.model.files.checkpoints import Checkpoint
from pipeline.model.predictor import Predictor, load_model
from pipeline.tables.binary import binary_array, binary_views
from testing.small_model import SMALL, SMALL_CATEGORIES, SMALL_SETTINGS
from testing.stand_in_detector import calls, plain, stand_in
from tests.annotate.stages.test_fetch_decode import encoded, manifest_rows, photo
from tests.model.fake_cuda import LOST, FakeCuda, Lost
from tests.model.golden_weights import official_weights

FIELDS = list(DETECTION_ARRAYS)
OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def decoded_rows(
    pixels: Sequence[np.ndarray | None], errors: Sequence[ImageFailure | None] | None = None, **carried: list[Any]
) -> pa.Table:
    """Rows as fetch_decode makes them; the originals are said to be twice as large."""

    def column(get: Callable[[np.ndarray], int], name: str) -> pa.Array:
        return pa.array([None if p is None else get(p) for p in pixels], DECODED.field(name).type)

    columns = [
        binary_array(pixels),
        column(lambda p: p.shape[0], "pixels_height"),
        column(lambda p: p.shape[1], "pixels_width"),
        column(lambda p: 2 * p.shape[0], "height"),
        column(lambda p: 2 * p.shape[1], "width"),
        column(lambda p: 1, "exif_orientation"),
        *(pa.nulls(len(pixels), field.type) for field in OBJECT_COLUMNS),
        *error_arrays(errors or [None] * len(pixels)),
    ]
    ids = {"image_id": list(range(100, 100 + len(pixels))), "image_uri": [f"/{i}.png" for i in range(len(pixels))]}
    return pa.table({**ids, **carried, **dict(zip(DECODED.names, columns, strict=True))})


def segment(
    rows: pa.Table, predictor: Any, thresholds: Sequence[float] = (0, 0, 0), guard: InProcessGuard | None = None
) -> pa.Table:
    return Segment(predictor, 4, thresholds, guard or InProcessGuard(), lambda counts: None)(rows)


def found(rows: pa.Table) -> Iterator[dict[str, np.ndarray] | None]:
    """The detections of each row, None where there are none."""
    views = {name: binary_views(rows[name]) for name in FIELDS}
    for i in range(len(rows)):
        values = {
            name: np.frombuffer(view, dtype)
            for name, dtype in DETECTION_ARRAYS.items()
            if (view := views[name][i]) is not None
        }
        assert len(values) in (0, len(FIELDS))
        yield values or None


class TestRows:
    def test_columns(self) -> None:
        rows = decoded_rows([plain(0), plain(1)], split=["train", None], weight=[1.5, 2.5])
        out = segment(rows, stand_in())
        kept = [
            "image_id",
            "image_uri",
            "split",
            "weight",
            "height",
            "width",
            "exif_orientation",
            *OBJECT_COLUMNS.names,
        ]
        assert out.column_names == [*kept, "stage", "error_code", "error_message", *FIELDS]
        for name in kept:
            assert out[name].equals(rows[name]), name
        assert out["height"].to_pylist() == [12, 14]
        assert {out.schema.field(name).type for name in FIELDS} == {pa.large_binary()}

    def test_each_row_gets_its_own(self) -> None:
        predictor = stand_in()
        out = list(found(segment(decoded_rows([plain(i) for i in range(6)]), predictor)))
        assert calls(predictor) == [[0, 1, 2, 3], [4, 5]]
        for i, values in enumerate(out):
            assert values is not None
            np.testing.assert_array_equal(values["boxes"].reshape(-1, 4), [[0, 0, 16, 12 + 2 * i]] * 3)
            np.testing.assert_array_equal(values["labels"], [0, 1, 2])
            np.testing.assert_array_equal(values["scores"], np.array([0.9, 0.5, 0.1], np.float32))
            assert values["masks"].shape == (3 * 28 * 28,)

    def test_failed_rows_pass_by(self) -> None:
        error = ImageFailure("fetch", "not_found", "gone")
        predictor = stand_in()
        out = segment(decoded_rows([plain(0), None, plain(2), None], [None, error, None, error]), predictor)
        assert calls(predictor) == [[0, 2]]
        assert [values is not None for values in found(out)] == [True, False, True, False]
        for column, text in (("stage", "fetch"), ("error_code", "not_found"), ("error_message", "gone")):
            assert out[column].to_pylist() == [None, text, None, text]

    def test_only_failed_rows(self) -> None:
        predictor = stand_in()
        out = segment(decoded_rows([None, None], [ImageFailure("decode", "corrupt_image", "cut")] * 2), predictor)
        assert calls(predictor) == []
        assert out["error_code"].to_pylist() == ["corrupt_image"] * 2
        assert list(found(out)) == [None, None]

    @pytest.mark.parametrize(("start", "length"), [(1, 3), (4, 1), (2, 0)])
    def test_slices(self, start: int, length: int) -> None:
        error = ImageFailure("fetch", "not_found", "gone")
        rows = decoded_rows([plain(0), plain(1), None, plain(3), plain(4)], [None, None, error, None, None])
        expected = segment(rows, stand_in()).slice(start, length)
        assert segment(rows.slice(start, length), stand_in()).to_pylist() == expected.to_pylist()

    def test_chunks(self) -> None:
        rows = decoded_rows([plain(i) for i in range(5)])
        chunked = pa.concat_tables([rows.slice(0, 2), rows.slice(2)])
        assert chunked["pixels"].num_chunks == 2
        assert segment(chunked, stand_in()).to_pylist() == segment(rows, stand_in()).to_pylist()

    def test_report(self) -> None:
        reports: list[StageCounts] = []
        error, guard = ImageFailure("fetch", "not_found", "gone"), InProcessGuard()
        rows = decoded_rows([plain(0), None, plain(1)], [None, error, None])
        for _ in range(MAX_DEATHS):
            guard.retry("segment", rows["image_id"][2].as_py())
        Segment(stand_in(), 4, (0, 0, 0), guard, reports.append)(rows)
        (counts,) = reports
        assert counts.segment_s > 0
        failed = Counter(not_found=1, process_killed=1)
        died = f"the process died {MAX_DEATHS} times on this image"
        ids = rows["image_id"].to_pylist()
        first = (f"{ids[1]}: not_found: gone", f"{ids[2]}: process_killed: {died}")
        told = StageCounts(segmented=3, batches=1, batched=1, failed=failed, first_failed=first)
        assert counts == told + StageCounts(segment_s=counts.segment_s)


@pytest.mark.parametrize(
    ("thresholds", "labels"),
    [
        pytest.param((0.0, 0.0, 0.0), [0, 1, 2], id="none"),
        pytest.param((0.0, 0.6, 0.0), [0, 2], id="one label"),
        pytest.param((0.9, 0.5, 0.2), [0, 1], id="reached exactly is kept"),
        pytest.param((0.91, 0.0, 0.0), [1, 2], id="the best one goes"),
        pytest.param((1.0, 1.0, 1.0), [], id="all go"),
    ],
)
def test_thresholds(thresholds: tuple[float, ...], labels: list[int]) -> None:
    out = segment(decoded_rows([plain(0), plain(1)]), stand_in(), thresholds)
    assert out["error_code"].to_pylist() == [None, None]
    for values in found(out):
        assert values is not None  # none found is not failed
        assert values["labels"].tolist() == labels
        assert len(values["boxes"]) == 4 * len(labels)
        assert len(values["masks"]) == 28 * 28 * len(labels)
        np.testing.assert_array_equal(values["scores"], np.array([0.9, 0.5, 0.1], np.float32)[labels])


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


class TestFailures:
    @pytest.mark.parametrize(
        ("error", "code", "message"),
        [
            pytest.param(OUT_OF_MEMORY, "out_of_memory", "OutOfMemoryError: CUDA out of memory", id="memory"),
            pytest.param(RuntimeError("shapes differ"), "model_error", "RuntimeError: shapes differ", id="model"),
            pytest.param(ValueError("x" * 5000), "model_error", "ValueError: xxx", id="long message"),
        ],
    )
    def test_one_bad_image_fails_alone(self, error: Exception, code: str, message: str) -> None:
        rows = decoded_rows([plain(i) for i in range(4)])
        out = segment(rows, stand_in(lambda numbers: error if 2 in numbers else None))
        assert out["error_code"].to_pylist() == [None, None, code, None]
        assert out["stage"].to_pylist() == [None, None, "segment", None]
        assert out["error_message"][2].as_py().startswith(message)
        assert len(out["error_message"][2].as_py()) <= 500
        assert [values is None for values in found(out)] == [False, False, True, False]
        good = segment(rows, stand_in())
        assert out.take([0, 1, 3]).to_pylist() == good.take([0, 1, 3]).to_pylist()

    def test_a_lost_device_is_raised_and_the_images_stay_in_flight(self, on_cuda: FakeCuda) -> None:
        guard = InProcessGuard()
        with pytest.raises(DeviceLost, match="cuDNN error"):
            segment(decoded_rows([plain(0), plain(1)]), stand_in(on_cuda.lose("cuDNN error", {0, 1})), guard=guard)
        assert guard.begin("segment", [100, 101]) == [1, 1]

    def test_an_image_that_loses_the_device_again_and_again_is_refused(self, on_cuda: FakeCuda) -> None:
        guard, rows = InProcessGuard(), decoded_rows([plain(0), plain(1), plain(2)])
        for _ in range(MAX_DEATHS):
            with pytest.raises(DeviceLost):
                segment(rows, stand_in(on_cuda.lose("device-side assert", {1})), guard=guard)
            on_cuda.restart()
        out = segment(rows, stand_in(on_cuda.lose("device-side assert", {1})), guard=guard)
        assert out["error_code"].to_pylist() == [None, "process_killed", None]
        assert out["stage"].to_pylist() == [None, "segment", None]

    @pytest.mark.parametrize("count", [1, 2])
    @pytest.mark.parametrize("kind", LOST, ids=str)
    def test_however_the_device_is_lost_the_replica_restarts_and_no_image_is_refused(
        self, kind: Lost, count: int, on_cuda: FakeCuda
    ) -> None:
        """By whatever library the error is told, and whichever call is the next one to fail."""
        guard, rows = InProcessGuard(), decoded_rows([plain(i) for i in range(count)])
        with pytest.raises(DeviceLost):
            segment(rows, stand_in(on_cuda.lose(kind.message, {0}, kind.error)), guard=guard)
        on_cuda.restart()
        out = segment(rows, stand_in(), guard=guard)
        assert out["error_code"].to_pylist() == [None] * count
        assert out.to_pylist() == segment(rows, stand_in()).to_pylist()

    def test_running_out_of_memory_is_not_losing_the_device(self, on_cuda: FakeCuda) -> None:
        error = torch.OutOfMemoryError("CUDA error: out of memory")
        out = segment(decoded_rows([plain(0), plain(1)]), stand_in(lambda numbers: error if 0 in numbers else None))
        assert out["error_code"].to_pylist() == ["out_of_memory", None]

    @pytest.mark.parametrize("text", ["CUDA error: invalid argument", "cuDNN error: CUDNN_STATUS_BAD_PARAM"])
    def test_an_error_of_a_device_that_lives_is_a_failed_row(self, text: str, on_cuda: FakeCuda) -> None:
        out = segment(
            decoded_rows([plain(0), plain(1)]), stand_in(lambda numbers: RuntimeError(text) if 0 in numbers else None)
        )
        assert out["error_code"].to_pylist() == ["model_error", None]

    def test_the_images_of_a_batch_that_never_ends_are_named(self) -> None:
        """And the others of the block are not; neither those that are on their way meanwhile nor those that were."""
        run = subprocess.run([sys.executable, "-c", ENDLESS], capture_output=True, text=True, timeout=100)
        assert run.returncode == 0, run.stderr
        of_network, of_device = map(json.loads, run.stdout.splitlines())
        assert of_network == of_device == ["segment", [102, 103], [100, 101, 104], TIMEOUT_EXIT_CODE]


# The second batch never ends: its network does not return, as on a CPU, or the device does not get there.
ENDLESS = """
import json, os, time
from pipeline.annotate.stages.guard import InProcessGuard
from pipeline.annotate.stages.segment import Segment
from pipeline.model.transfer import HostFeed
from testing.stand_in_detector import calls, plain, stand_in
from tests.annotate.stages.test_segment import decoded_rows

class Telling(InProcessGuard):
    def expire(self, stage, ids, others):
        os.write(told, json.dumps([stage, list(ids), list(others)]).encode())

class Device(HostFeed):
    sent = 0
    def send(self, size, fill):
        self.sent += 1
        return super().send(size, fill)
    def wait(self, running):
        if calls(predictor)[-1] == [2, 3]:
            assert self.sent == 3
            time.sleep(100)

rows = decoded_rows([plain(i) for i in range(5)])
for hangs_in_network in (True, False):
    heard, told = os.pipe()
    if os.fork() == 0:
        predictor = stand_in(lambda numbers: time.sleep(100) if hangs_in_network and 3 in numbers else None)
        if not hangs_in_network:
            predictor._feed = Device()
        Segment(predictor, 2, (0, 0, 0), Telling(), lambda counts: None, timeout_s=1.0)(rows)
    _, status = os.wait()
    print(json.dumps([*json.loads(os.read(heard, 999)), os.waitstatus_to_exitcode(status)]))
"""


@pytest.fixture(scope="module")
def model() -> Predictor:
    settings = replace(SMALL_SETTINGS, short_side=64, long_side=96, max_detections=6)
    weights = to_native(official_weights(SMALL), "official")
    return load_model(Checkpoint(weights, SMALL, SMALL_CATEGORIES, settings), "cpu")


def as_rows(images: Sequence[np.ndarray]) -> pa.Table:
    """Through the stage before: pictures much larger than the input come shrunk."""
    fetch_decode = FetchDecode(PictureSource(), BatchOrder(64, 96, 1, 64), InProcessGuard(), lambda counts: None)
    (rows,) = fetch_decode(manifest_rows([None] * len(images), [encoded(image) for image in images]))
    return rows


def assert_same(values: dict[str, np.ndarray] | None, expected: Detections) -> None:
    assert values is not None
    assert len(expected) > 0
    np.testing.assert_array_equal(values["labels"], expected.labels)
    np.testing.assert_allclose(values["scores"], expected.scores, atol=1e-5)
    np.testing.assert_allclose(values["boxes"].reshape(-1, 4), expected.boxes, atol=1e-3)
    np.testing.assert_allclose(values["masks"].reshape(-1, 28, 28), expected.masks, atol=1e-4)


class TestRealModel:
    def test_equals_predict(self, model: Predictor) -> None:
        images = [photo(64, 90, 0), photo(96, 64, 1), photo(64, 90, 2), photo(50, 50, 3)]
        rows = as_rows(images)
        assert rows["pixels_height"].to_pylist() == [64, 96, 64, 50]
        out = segment(rows, model, [0.0] * 5)
        expected = [model.predict([image])[0] for image in images]
        for values, detections_of_image in zip(found(out), expected, strict=True):
            assert_same(values, detections_of_image)

    def test_shrunk_rows_give_what_the_originals_give(self, model: Predictor) -> None:
        images = [photo(200, 300, 0), photo(333, 250, 1), photo(128, 192, 2)]
        rows = as_rows(images)
        assert rows["pixels_height"].to_pylist() == [64, 85, 64]
        assert rows["height"].to_pylist() == [200, 333, 128]
        out = segment(rows, model, [0.0] * 5)
        for values, image in zip(found(out), images, strict=True):
            expected = model.predict([image])[0]
            assert_same(values, expected)
            assert expected.boxes.max() > 96  # in the original's pixels

    def test_thresholds_by_class(self, model: Predictor) -> None:
        image = photo(64, 90, 0)
        everything = model.predict([image])[0]
        best, least = everything.scores.max(), everything.scores.min()
        assert least < best
        threshold = float((best + least) / 2)
        (values,) = found(segment(as_rows([image]), model, [threshold] * 5))
        assert values is not None
        assert 0 < len(values["scores"]) == (everything.scores >= threshold).sum() < len(everything)


class TestNotFinite:
    def test_the_first_images_stop_the_run(self) -> None:
        predictor = stand_in(not_finite=[0, 1], precision="bf16")
        with pytest.raises(ModelNotFinite, match=r"model\.precision bf16 may be too coarse .* model\.precision=fp32"):
            segment(decoded_rows([plain(0), plain(1)]), predictor)

    def test_float32_is_not_advised_where_it_was_used(self) -> None:
        predictor = stand_in(not_finite=[0])
        with pytest.raises(ModelNotFinite, match=r"run with another checkpoint$") as caught:
            segment(decoded_rows([plain(0)]), predictor)
        assert "model.precision" not in str(caught.value)

    @pytest.mark.parametrize("bad", [0, 1])
    def test_one_among_others_is_a_failed_row(self, bad: int) -> None:
        predictor = stand_in(not_finite=[bad])
        out = segment(decoded_rows([plain(0), plain(1), plain(2)]), predictor)
        assert out["error_code"].to_pylist() == ["not_finite" if i == bad else None for i in range(3)]

    def test_a_later_one_is_a_failed_row(self) -> None:
        stage = Segment(stand_in(not_finite=[1]), 4, (0, 0, 0), InProcessGuard(), lambda counts: None)
        assert stage(decoded_rows([plain(0)]))["error_code"].to_pylist() == [None]
        assert stage(decoded_rows([plain(1)]))["error_code"].to_pylist() == ["not_finite"]

    @pytest.mark.parametrize(
        "weight", ["backbone.patch_embed.proj.weight", "rpn.deltas.weight", "box_heads.stages.2.classify.bias"]
    )
    def test_a_network_that_computes_nan_says_so(self, weight: str) -> None:
        """It would find nothing, and exit code 0 would say that all is well."""
        weights = to_native(official_weights(SMALL), "official")
        predictor = load_model(Checkpoint(weights, SMALL, SMALL_CATEGORIES, SMALL_SETTINGS), "cpu")
        predictor.predict([np.zeros((40, 60, 3), np.uint8)])
        predictor.detector.get_parameter(weight).data.fill_(float("nan"))
        with pytest.raises(NotFinite):
            predictor.predict([np.zeros((40, 60, 3), np.uint8)])

"""The model's stage: pixels in, boxes, scores, labels and soft masks out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np
import pyarrow as pa

from pipeline.annotate.stages.guard import Deadline, Guard, run_guarded
from pipeline.annotate.stages.rows import ERROR_COLUMNS, error_arrays, read_errors
from pipeline.annotate.stages.stage import Report, StageCounts, failures
from pipeline.annotations.failure import ImageFailure
from pipeline.errors import RunError
from pipeline.model.detections import DETECTION_ARRAYS, Detections
from pipeline.model.detector import NotFinite
from pipeline.model.predictor import Predictor, failure_code
from pipeline.tables.binary import binary_array, binary_views

SEGMENT = "segment"


class ModelNotFinite(RunError):
    """The model computes NaN or infinity from the first image on."""


class Segment:
    """The stage: pixels in, detections out. Holds one replica of the model.

    Args:
        predictor: the replica, on its device.
        batch_size: images per model call.
        thresholds: for each label, the least score that a detection of it must have.
        guard: counts the deaths of processes over an image that is segmented.
        report: takes what was done.
        timeout_s: of one call of the model; ``None`` for no limit.
    """

    def __init__(
        self,
        predictor: Predictor,
        batch_size: int,
        thresholds: Sequence[float],
        guard: Guard,
        report: Report,
        timeout_s: float | None = None,
    ) -> None:
        self._predictor = predictor
        self._batch_size = batch_size
        self._guard = guard
        self._report = report
        self._deadline = Deadline(timeout_s, "model.timeout_s")
        self._thresholds = np.array(thresholds, np.float32)
        self._has_worked = False

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Decoded rows become rows with the detection fields in the place of the pixels."""
        started = time.perf_counter()
        errors = read_errors(rows)
        waiting = [i for i, error in enumerate(errors) if error is None]
        views = binary_views(rows["pixels"])
        shapes = list(zip(rows["pixels_height"].to_pylist(), rows["pixels_width"].to_pylist(), strict=True))
        sizes = list(zip(rows["height"].to_pylist(), rows["width"].to_pylist(), strict=True))
        ids = rows["image_id"].to_pylist()
        calls: list[Sequence[int]] = []

        def work(members: list[int]) -> list[Detections | ImageFailure]:
            chosen = [waiting[m] for m in members]
            images = [np.frombuffer(views[i], np.uint8).reshape(*shapes[i], 3) for i in chosen]  # type: ignore[arg-type]
            return self._predict(images, [sizes[i] for i in chosen], members, calls)

        found = run_guarded(self._guard, SEGMENT, [ids[i] for i in waiting], work, self._deadline)
        work_s = time.perf_counter() - started if waiting else 0.0
        results: list[Detections | None] = [None] * len(rows)
        for i, result in zip(waiting, found, strict=True):
            if isinstance(result, ImageFailure):
                errors[i] = result
            else:
                results[i] = result
        failed = [(image_id, error) for image_id, error in zip(ids, errors, strict=True) if error is not None]
        did = StageCounts(segment_s=work_s, segmented=len(rows), batches=len(calls), batched=sum(map(len, calls)))
        self._report(did + StageCounts(**failures(failed)))
        return _segmented_rows(rows, results, errors)

    def _predict(
        self,
        images: list[np.ndarray],
        sizes: list[tuple[int, int]],
        members: Sequence[int],
        calls: list[Sequence[int]],
    ) -> list[Detections | ImageFailure]:
        def during(batch: Sequence[int]) -> AbstractContextManager[None]:
            if not calls or calls[-1] is not batch:  # the last one is entered again when its results are taken
                calls.append(batch)
            return self._deadline.step([members[i] for i in batch])

        outcomes = self._predictor.attempt(images, self._batch_size, sizes, during)
        if not self._has_worked:
            self._has_worked = any(isinstance(outcome, Detections) for outcome in outcomes)
        return [self._result(outcome) for outcome in outcomes]

    def _result(self, outcome: Detections | Exception) -> Detections | ImageFailure:
        if isinstance(outcome, Detections):
            chosen = outcome.scores >= self._thresholds[outcome.labels]
            return outcome if chosen.all() else outcome.where(chosen)
        if isinstance(outcome, NotFinite) and not self._has_worked:
            raise model_not_finite(outcome, self._predictor.precision) from outcome
        return ImageFailure(SEGMENT, failure_code(outcome), f"{type(outcome).__name__}: {outcome}")


def model_not_finite(error: NotFinite, precision: str) -> ModelNotFinite:
    """The error of a model that works on none of the first images, with what to do."""
    cure = (
        "no precision of the model is finer: run with another checkpoint"
        if precision == "fp32"
        else f"model.precision {precision} may be too coarse for these weights; run with "
        "model.precision=fp32, or with another checkpoint"
    )
    return ModelNotFinite(f"{error}, the first that this replica got: {cure}")


def _segmented_rows(
    rows: pa.Table, results: Sequence[Detections | None], errors: Sequence[ImageFailure | None]
) -> pa.Table:
    rows = rows.drop_columns(["pixels", "pixels_height", "pixels_width", *ERROR_COLUMNS])
    for name, values in zip(ERROR_COLUMNS, error_arrays(errors), strict=True):
        rows = rows.append_column(name, values)
    for name, dtype in DETECTION_ARRAYS.items():
        arrays = [None if d is None else getattr(d, name).astype(dtype, copy=False) for d in results]
        rows = rows.append_column(name, binary_array(arrays))
    return rows

"""Soft masks to COCO RLE, and rows to the schema of the output."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pycocotools import mask as mask_api

from pipeline.annotate.stages.guard import Guard, run_guarded
from pipeline.annotate.stages.rows import ERROR_COLUMNS, error_arrays, read_errors
from pipeline.annotate.stages.stage import Report, StageCounts, failures
from pipeline.annotations.failure import ImageFailure
from pipeline.annotations.schema import ANNOTATED, FAILED, ImageDetections, detections_array
from pipeline.masks.rasterise import rasterise
from pipeline.masks.rle import Rle
from pipeline.model.categories import Category
from pipeline.model.detections import DETECTION_ARRAYS
from pipeline.tables.binary import binary_views

ENCODE = "encode"


@dataclass(frozen=True)
class Encode:
    """The stage: detections in, rows of the output out.

    Attributes:
        schema: columns of what comes out, those of the output's files.
        categories: what the labels stand for.
        guard: counts the deaths of processes over an image whose masks are encoded.
        report: takes what was done.
    """

    schema: pa.Schema
    categories: tuple[Category, ...]
    guard: Guard
    report: Report

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Segmented rows become rows of the output's schema."""
        started = time.perf_counter()
        errors = read_errors(rows)
        fields = {name: binary_views(rows[name]) for name in DETECTION_ARRAYS}
        sizes = list(zip(rows["height"].to_pylist(), rows["width"].to_pylist(), strict=True))
        waiting = [i for i, error in enumerate(errors) if error is None]
        ids = rows["image_id"].to_pylist()

        def work(members: list[int]) -> list[ImageDetections | ImageFailure]:
            return [self._image({n: fields[n][waiting[m]] for n in fields}, sizes[waiting[m]]) for m in members]

        failed: list[tuple[Hashable, ImageFailure]] = []
        found: list[ImageDetections | None] = [None] * len(rows)
        for i, result in zip(waiting, run_guarded(self.guard, ENCODE, [ids[i] for i in waiting], work), strict=True):
            if isinstance(result, ImageFailure):
                errors[i] = result
                failed.append((ids[i], result))
            else:
                found[i] = result
        table = self._output_rows(rows, found, errors)
        self.report(
            StageCounts(
                encode_s=time.perf_counter() - started,
                encoded=len(rows),
                detections=sum(len(d.scores) for d in found if d is not None),
                **failures(failed),
            )
        )
        return table

    def _image(self, raw: dict[str, memoryview | None], size: tuple[int, int]) -> ImageDetections | ImageFailure:
        arrays: dict[str, np.ndarray] = {
            name: np.frombuffer(raw[name] or b"", dtype) for name, dtype in DETECTION_ARRAYS.items()
        }
        boxes: np.ndarray = arrays["boxes"].reshape(-1, 4)
        count = len(arrays["scores"])
        side = int((arrays["masks"].size / max(1, count)) ** 0.5)
        try:
            rles = rasterise(arrays["masks"].reshape(count, side, side), boxes, size) if count else []
        except ValueError as bad:  # masks that are not finite: the model's fault, and this image's alone
            return ImageFailure(ENCODE, "bad_mask", str(bad))
        return ImageDetections(
            boxes=np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1),
            scores=arrays["scores"],
            labels=arrays["labels"],
            areas=mask_areas(rles),
            image_size=size,
            counts=[rle["counts"] for rle in rles],
        )

    def _output_rows(
        self, rows: pa.Table, found: list[ImageDetections | None], errors: list[ImageFailure | None]
    ) -> pa.Table:
        made = dict(zip(ERROR_COLUMNS, error_arrays(errors), strict=True))
        made["status"] = pa.array([ANNOTATED if e is None else FAILED for e in errors], pa.string())
        ids, names = [c.id for c in self.categories], [c.name for c in self.categories]
        made["detections"] = detections_array(found, ids, names)
        made["run_id"] = pa.nulls(len(rows), pa.string())  # who writes the file knows the run
        columns = [made.get(f.name) if f.name in made else rows[f.name].cast(f.type) for f in self.schema]
        return pa.table(columns, schema=self.schema)


def mask_areas(rles: Sequence[Rle]) -> np.ndarray:
    """Pixels of each mask, float32."""
    # One at a time: with numpy 2, pycocotools takes no list of more than 255 masks.
    return np.array([mask_api.area(rle) for rle in rles], np.float32)

"""What a disturbed run's output holds, compared with the manifest and with what the stages give undisturbed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

KILLED = "process_killed"

Rows = Mapping[str, Mapping[str, Any]]

# The model runs in batches whose make-up depends on what was redone; kernels may round differently then.
BOX_TOLERANCE_PX = 1e-3
SCORE_TOLERANCE = 1e-5
_EXACT = ("status", "height", "width", "exif_orientation", "object_size", "stage", "error_code")
_EXACT_OF_DETECTION = ("category_id", "category_name", "area", "segmentation")


@dataclass(frozen=True)
class Verdict:
    """What is wrong with one output.

    Attributes:
        losses: images of the manifest that are not in the output.
        duplicates: rows more than one per image.
        differences: what does not equal the stages' own rows, or does not belong, in words.
        killed: images given up because two processes died on them, though there is nothing wrong with them;
            legal, and not counted as a difference.
    """

    losses: int
    duplicates: int
    differences: tuple[str, ...] = ()
    killed: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.losses or self.duplicates or self.differences)


def read_output(filesystem: pafs.FileSystem, folder: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All rows of an output and its ``run.json``, read with nothing but pyarrow."""
    selector = pafs.FileSelector(f"{folder}/data", allow_not_found=True)
    files = [f.path for f in filesystem.get_file_info(selector) if f.base_name.startswith("part-")]
    tables = [pq.ParquetFile(filesystem.open_input_file(path)).read() for path in sorted(files)]
    rows = pa.concat_tables(tables).to_pylist() if tables else []
    try:
        with filesystem.open_input_stream(f"{folder}/run.json") as stream:
            return rows, json.loads(stream.read())
    except FileNotFoundError:
        return rows, {}


def judge(rows: Collection[Mapping[str, Any]], report: Mapping[str, Any], expected: Rows, exit_code: int) -> Verdict:
    """Compare an output with what it should hold.

    Args:
        rows: of the output, in any order.
        report: the output's ``run.json``, parsed.
        expected: the rows that the stages give undisturbed, by image id.
        exit_code: of the last run on the output.
    """
    times = Counter(row["image_id"] for row in rows)
    differences = [f"{image_id}: not in the manifest" for image_id in times if image_id not in expected]
    killed = []
    for row in rows:
        wanted = expected.get(row["image_id"])
        if wanted is None:
            continue
        if row["error_code"] == KILLED and wanted["error_code"] != KILLED:
            killed.append(row["image_id"])
        elif difference := _difference(row, wanted):
            differences.append(f"{row['image_id']}: {difference}")
    codes = Counter(row["error_code"] for row in rows if row["status"] == "failed")
    failed = codes.total()
    books = {"manifest": len(expected), "annotated": len(rows) - failed, "failed": failed, "deleted": 0}
    said = (report.get("images"), report.get("failures"))
    if said != (books, codes):
        differences.append(f"run.json says {said}, the rows {(books, dict(codes))}")
    if exit_code:
        differences.append(f"the last run ended with {exit_code}")
    return Verdict(
        losses=sum(image_id not in times for image_id in expected),
        duplicates=len(rows) - len(times),
        differences=tuple(differences),
        killed=tuple(killed),
    )


def _difference(row: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    for name in _EXACT:
        if row[name] != wanted[name]:
            return f"{name} is {row[name]!r}, not {wanted[name]!r}"
    found, should = row["detections"], wanted["detections"]
    if found is None or should is None:
        return "" if found is should else f"detections are {found}, not {should}"
    if len(found) != len(should):
        return f"{len(found)} detections, not {len(should)}"
    for index, (one, other) in enumerate(zip(found, should, strict=True)):
        for name in _EXACT_OF_DETECTION:
            if one[name] != other[name]:
                return f"{name} of detection {index} is {one[name]!r}, not {other[name]!r}"
        if not np.allclose(one["bbox"], other["bbox"], rtol=0, atol=BOX_TOLERANCE_PX):
            return f"box of detection {index} is {one['bbox']}, not {other['bbox']}"
        if abs(one["score"] - other["score"]) > SCORE_TOLERANCE:
            return f"score of detection {index} is {one['score']}, not {other['score']}"
    return ""

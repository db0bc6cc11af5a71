"""One export: from an output of the annotate job to a file or folder of another format, and what was left out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import BinaryIO

from pipeline.annotations.class_thresholds import Selection
from pipeline.annotations.reader import Source, open_source
from pipeline.export.errors import ExportError
from pipeline.export.formats.coco import write_coco, write_coco_results
from pipeline.export.formats.cvat import write_cvat
from pipeline.export.formats.label_studio import write_label_studio
from pipeline.export.formats.yolo import write_yolo
from pipeline.export.labels import Labels, Tally
from pipeline.export.target import Folder, whole_file, whole_folder
from pipeline.storage.uris import redact, split_uri

RESULTS = "coco-results"
FILES: Mapping[str, Callable[[Labels, BinaryIO], None]] = {
    "coco": write_coco,
    RESULTS: write_coco_results,
    "cvat": write_cvat,
}
FOLDERS: Mapping[str, Callable[[Labels, Folder], Sequence[str]]] = {
    "yolo-seg": write_yolo,
    "label-studio": write_label_studio,
}
FORMATS = (*FILES, *FOLDERS)


@dataclass(frozen=True)
class Export:
    """What to export, and to where.

    Attributes:
        annotations: URI of the annotate job's output.
        format: one of `FORMATS`.
        out: path or URI of a file (`FILES`) or of a folder (`FOLDERS`).
        selection: which detections become labels.
        overwrite: replace what is there.
    """

    annotations: str
    format: str
    out: str
    selection: Selection
    overwrite: bool = False


@dataclass(frozen=True)
class Summary:
    """What was exported, and what one should know about it."""

    tally: Tally
    notes: tuple[str, ...]

    def text(self) -> str:
        """Some lines for people."""
        tally = self.tally
        return "\n".join(
            [
                f"{tally.images:,} images, {tally.labels:,} labels; left out: {tally.failed_images:,} failed images, "
                f"{tally.below_threshold:,} detections below their threshold",
                *self.notes,
            ]
        )


def export(job: Export) -> Summary:
    """Write the export, whole or not at all.

    Raises:
        ExportError, OutputError, UriError: it cannot be made as asked for.
        OSError: a storage fails.
    """
    _check_place(job)
    # Results are for evaluation, which counts a detection without a pixel; for labels it is no object.
    keep_empty = job.format == RESULTS
    source = open_source(job.annotations)
    labels = Labels(source, job.selection, keep_empty)
    remarks = _write_file(labels, job) if job.format in FILES else _write_folder(labels, job)
    return Summary(labels.tally, (*_notes(source, labels, job), *remarks))


def _write_file(labels: Labels, job: Export) -> Sequence[str]:
    target: AbstractContextManager[BinaryIO] = whole_file(job.out, job.overwrite)
    with target as file:
        FILES[job.format](labels, file)
    return ()


def _write_folder(labels: Labels, job: Export) -> Sequence[str]:
    with whole_folder(job.out, job.overwrite) as folder:
        remarks = FOLDERS[job.format](labels, folder)
        folder.finish({"format": job.format, **labels.report(), **asdict(labels.tally), "remarks": list(remarks)})
    return remarks


def _check_place(job: Export) -> None:
    """An export inside the output would count as part of it."""
    out, annotations = _place(job.out), _place(job.annotations)
    if out[: len(annotations)] == annotations:
        raise ExportError(f"{redact(job.out)} lies in the annotations themselves: choose another place")


def _place(uri: str) -> tuple[str, ...]:
    scheme, host, path = split_uri(uri)
    path = os.path.realpath(path) if scheme == "file" else path
    return scheme, host, *(part for part in path.split("/") if part)


def _notes(source: Source, labels: Labels, job: Export) -> list[str]:
    notes = []
    if labels.tally.empty_masks:
        fate = "kept" if job.format == RESULTS else "left out"
        notes.append(f"{labels.tally.empty_masks:,} detections with masks without a pixel were {fate}")
    if job.format != RESULTS and not job.selection.min_score and not job.selection.class_thresholds:
        notes.append("no score threshold was given (--class-thresholds, --min-score): every detection is a label")
    if not source.all_categories and job.format != RESULTS:
        notes.append(
            f"run.json lists no categories: the {len(source.categories)} of which something was found are used"
        )
    if source.string_ids and job.format == "coco":
        notes.append("image ids are strings: the images are numbered from 1, with the string in maskfleet_image_id")
    if not source.finished:
        notes.append("the annotate run has not finished: images are missing")
    return notes

"""One export: from an output of the annotate job to a file or folder of another format, and what was left out."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from pipeline.annotations.class_thresholds import Selection, read_class_thresholds
from pipeline.annotations.reader import open_source
from pipeline.export.errors import ExportError
from pipeline.export.formats.base import Format, Options
from pipeline.export.formats.table import FORMATS, check_options
from pipeline.export.labels import ExportCounts, Labels
from pipeline.messages.counts import counted
from pipeline.storage.uris import Uri, UriText


@dataclass(frozen=True)
class Export:
    """What to export, and to where.

    Attributes:
        annotations: of the annotate job's output.
        format: name of one of `FORMATS`.
        out: the file or folder.
        selection: which detections become labels.
        overwrite: replace what is there.
        options: what else is asked for.
    """

    annotations: Uri
    format: str
    out: Uri
    selection: Selection
    overwrite: bool = False
    options: Options = field(default_factory=Options)


@dataclass(frozen=True)
class Summary:
    """What was exported, and what one should know about it."""

    tally: ExportCounts
    notes: tuple[str, ...]

    def text(self) -> str:
        """Some lines for people."""
        tally = self.tally
        unread = tally.unread_pictures
        pictures = f", {counted(unread, 'image')} whose pictures cannot be read" if unread else ""
        return "\n".join(
            [
                f"{counted(tally.images, 'image')}, {counted(tally.labels, 'label')}; left out: "
                f"{counted(tally.failed_images, 'failed image')}, "
                f"{counted(tally.below_threshold, 'detection')} below their threshold{pictures}",
                *self.notes,
            ]
        )


def export(job: Export) -> Summary:
    """Write the export, whole or not at all.

    Raises:
        ExportError, OutputError, UriError: it cannot be made as asked for.
        OSError: a storage fails.
    """
    check_options(job.format, job.options)
    _check_place(job)
    format = FORMATS[job.format]
    source = open_source(job.annotations)
    _check_kept(job, source.image_root)
    labels = Labels(source, job.selection, keep_empty=format.is_results)
    remarks = format.write_whole(labels, job.out, job.overwrite, job.options)
    return Summary(labels.tally, (*_notes(labels, format), *remarks))


def read_selection(thresholds_file: UriText | None, min_score: float) -> Selection:
    """Which detections become labels, as the command line says it.

    Args:
        thresholds_file: YAML ``{name: score}``, as the annotate config's ``class_thresholds_file``.
        min_score: of the other classes, 0 to 1.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
        ExportError: ``min_score`` is no score.
    """
    if not 0 <= min_score <= 1:
        raise ExportError(f"a minimum score must be from 0 to 1, not {min_score}")
    return Selection(min_score, read_class_thresholds(thresholds_file) if thresholds_file is not None else {})


def _check_place(job: Export) -> None:
    """An export inside the output would count as part of it, one around it replace it; only disks have links."""
    if job.out.is_below(job.annotations):
        raise ExportError(f"{job.out} lies in the annotations themselves: choose another place")
    if job.overwrite and job.annotations.is_below(job.out):
        raise ExportError(f"{job.out} is a folder that holds the annotations: choose another place")
    if job.options.images == "link" and job.out.local_path is None:
        raise ExportError(f"{job.out} is no local folder, and has no links: --images copy puts the pictures there")


def _check_kept(job: Export, image_root: Uri | None) -> None:
    """The pictures may be those that an earlier export copied."""
    if not job.overwrite or image_root is None or not image_root.is_below(job.out):
        return
    if image_root.local_path is None or os.path.exists(image_root.local_path):
        raise ExportError(f"{job.out} holds the annotated images, in {image_root}: choose another place")


def _notes(labels: Labels, format: Format) -> list[str]:
    notes, source, selection = [], labels.source, labels.selection
    if labels.tally.empty_masks:
        fate = "kept" if format.is_results else "left out"
        notes.append(f"{labels.tally.empty_masks:,} detections with masks without a pixel were {fate}")
    if not format.is_results and not selection.min_score and not selection.class_thresholds:
        notes.append("no score threshold was given (--class-thresholds, --min-score): every detection is a label")
    if not format.is_results and not source.all_categories:
        notes.append(
            f"run.json lists no categories: the {len(source.categories)} of which something was found are used"
        )
    if not source.finished:
        notes.append("the annotate run has not finished: images are missing")
    return notes

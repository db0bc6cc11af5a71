"""An output at a glance, whatever state it is in: how far its run has come, its books, failures, classes and files.

It only looks. The lock is neither taken nor broken, so a run may be at work meanwhile; and what is damaged is named and
passed over. Counts come from the footers of the data files, so they are those of this moment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum

import pyarrow.compute as pc

from pipeline.annotations.data_file import Counts, Footer, Identity, OutputError
from pipeline.annotations.data_folder import DATA_FOLDER, DataFolder, Survey, map_files, no_output
from pipeline.annotations.run_json import NAME as REPORT_NAME
from pipeline.annotations.run_json import RunJson, RunState
from pipeline.annotations.schema import FAILED
from pipeline.messages.examples import Examples
from pipeline.storage.lock.holder import LOCK_NAME, Holder, is_dead, read_holder
from pipeline.storage.objects.base import Entry, ObjectFolder, TooLarge
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri

NUM_EXAMPLES = 3

_CONCURRENCY = 32
_LOOKS = 3  # at an output whose files are being replaced
_FAILURE_COLUMNS = ("image_id", "image_uri", "status", "stage", "error_code", "error_message")


class Standing(str, Enum):
    """Whether a run is at work in an output."""

    RUNNING = "running"
    DIED = "died"  # without a word: killed, or cut off from the output
    ENDED = "ended"  # ``run.json`` says how
    UNREPORTED = "unreported"  # no run is at work, and no readable ``run.json`` says how the last one ended


@dataclass(frozen=True)
class Lock:
    """What the lock of an output shows.

    Attributes:
        holder: of the lock, or who released it.
        silent_s: seconds since its last sign of life, as the clocks of the storage and of this machine agree; ``None``
            where the storage does not tell.
        dead: the process that holds it is known to have ended.
    """

    holder: Holder
    silent_s: float | None
    dead: bool

    @property
    def held(self) -> bool:
        """It was not released; see `stale`."""
        return not self.holder.released

    @property
    def stale(self) -> bool:
        """Nobody is behind it any more: the holder was silent for longer than it may be."""
        return self.held and (self.dead or (self.silent_s is not None and self.silent_s > self.holder.lease_s))


@dataclass(frozen=True)
class FailureKind:
    """Failed images with one error code.

    Attributes:
        code: their ``error_code``.
        count: how many there are.
        examples: ids and messages of the first ones, in the order of the files.
    """

    code: str
    count: int
    examples: tuple[tuple[int | str, str], ...] = ()


@dataclass(frozen=True)
class FailedRow:
    """A failed row; texts are ``""`` where it has none."""

    image_id: int | str
    image_uri: str
    stage: str
    error_code: str
    error_message: str


@dataclass(frozen=True)
class Overview:
    """An output at a glance.

    Attributes:
        uri: of the output folder.
        looked_at: when, by this machine's clock, UTC.
        run: what ``run.json`` says; ``None`` if there is none, or it cannot be read.
        reported_at: when that was written, by the storage's clock; ``None`` where that does not tell.
        lock: ``None`` if there is none, or it makes no sense.
        survey: of the data files.
        counts: rows by kind in all files that count.
        written: of these, those that the run wrote that ``run`` speaks of.
        failures: by error code, most frequent first.
        classes: detections by category name, most frequent first.
        problems: what cannot be read, or should not be there: why, and what to do.
    """

    uri: Uri
    looked_at: datetime
    run: RunJson | None
    reported_at: datetime | None
    lock: Lock | None
    survey: Survey
    counts: Counts
    written: int
    failures: tuple[FailureKind, ...]
    classes: Mapping[str, int]
    problems: tuple[str, ...]

    @property
    def standing(self) -> Standing:
        """Whether a run is at work, as its lock shows; or else what it left."""
        if self.lock is not None and self.lock.held and (self.is_unheard or self._has_state(RunState.RUNNING)):
            return Standing.DIED if self.lock.stale else Standing.RUNNING
        if self.run is None:
            return Standing.UNREPORTED
        return Standing.DIED if self._has_state(RunState.RUNNING) else Standing.ENDED

    @property
    def is_unheard(self) -> bool:
        """Whether the run that holds the lock has not yet written a ``run.json``: the one there is an earlier run's."""
        if self.lock is None or not self.lock.held:
            return False
        return self.run is None or self.run.run_id != self.lock.holder.run_id

    @property
    def run_id(self) -> str:
        """Of the run that is at work, or of the last one; ``""`` if nothing tells."""
        if self.lock is not None and (self.is_unheard or self.run is None):
            return self.lock.holder.run_id
        return self.run.run_id if self.run else ""

    @property
    def ended_at(self) -> datetime | None:
        """When the run of ``run.json`` ended; ``None``: it has not, or nothing tells."""
        run = self.run
        if run is None or run.state is RunState.RUNNING:
            return None
        # Older reports do not say. They were written at the end, or again by a later run that found nothing to do.
        is_of_later = run.looked_again or run.state is RunState.NOTHING_TO_DO
        return run.ended or (None if is_of_later else self.reported_at)

    @property
    def pending(self) -> int | None:
        """Images of the manifest without a row, as far as the last run has counted them; ``None``: it has not."""
        if self.run is None or self.is_unheard:
            return None
        if self.run.state.closed:  # rows that the books had, and that files no longer hold
            return max(0, self.run.images.annotated + self.run.images.failed - self.counts.images)
        todo = self.run.this_run.images
        return max(0, todo - self.written) if todo else None

    @property
    def manifest(self) -> int | None:
        """Images in the manifest, as far as the last run has counted them; ``None``: it has not."""
        if self.run is not None and self.run.images.manifest and not self.is_unheard:
            return self.run.images.manifest
        if self.run is not None and not self.is_unheard and (changes := self.run.changes).compared:
            return changes.new + changes.changed + changes.unchanged
        return None if self.pending is None else self.counts.images + self.pending

    @property
    def identities(self) -> tuple[Identity, ...]:
        """What made the rows: one for each run and code version that wrote some."""
        return tuple(dict.fromkeys(footer.identity for footer in self.survey.footers.values()))

    @property
    def num_unknown_origin(self) -> int:
        """Rows of an earlier release, which cannot say which version of a picture they were made from."""
        return sum(f.counts.rows for f in self.survey.footers.values() if not f.knows_versions)

    @property
    def num_files(self) -> int:
        """Data files that count."""
        return len(self.survey.footers)

    @property
    def num_kept(self) -> int:
        """Replaced files that stay for the earlier versions of the output's table."""
        return len(self.survey.replaced) if self.run is not None and self.run.keeps_replaced else 0

    @property
    def num_bytes(self) -> int:
        """Of all data files, damaged ones and those that do not count too, on the disk or in the store."""
        files = (*self.survey.footers, *self.survey.replaced, *self.survey.doubled, *self.survey.problems)
        return sum(entry.size_bytes for entry in files)

    def _has_state(self, state: RunState) -> bool:
        return self.run is not None and self.run.state is state


def look_over(uri: Uri, num_examples: int = NUM_EXAMPLES, folder: DataFolder | None = None) -> Overview:
    """Look an output over.

    Args:
        uri: of the output folder.
        num_examples: how many failed images to name for each error code.
        folder: its data files, where somebody has looked at them before: footers that it knows are not read again.

    Raises:
        OutputError: it is no output of an annotate job.
        UriError: it cannot be opened.
        OSError: it cannot be listed.
    """
    folder = folder or DataFolder(uri, _CONCURRENCY)
    for _ in range(_LOOKS - 1):
        overview = _look_over(uri, num_examples, folder)
        if not overview.problems:
            break
        there = {entry.name for entry in open_objects(uri).list(DATA_FOLDER).files}
        if all(entry.name in there for entry in overview.survey.footers):
            break  # else what is wrong may be that files were replaced meanwhile
    else:
        overview = _look_over(uri, num_examples, folder)
    return overview


def _look_over(uri: Uri, num_examples: int, folder: DataFolder) -> Overview:
    objects = open_objects(uri)
    try:
        lock = _read_lock(uri, objects)
    except NotADirectoryError:
        raise OutputError(no_output(uri, "has no data")) from None
    problems: list[str] = []
    run = _read_report(uri, problems)
    if run is not None and run.state is RunState.RUNNING and (lock is None or lock.holder.run_id != run.run_id):
        lock = _read_lock(uri, objects)  # a run that began between the two looks
    survey = folder.survey(objects)
    if not survey.footers and not survey.problems and run is None and lock is None:
        raise OutputError("; ".join([no_output(uri, "has no data"), *problems]))
    problems += survey.problems.values()
    keeps_replaced = run is not None and run.keeps_replaced
    too_many = survey.doubled if keeps_replaced else (*survey.replaced, *survey.doubled)
    if too_many and not _is_at_work(_read_lock(uri, objects)):  # which may be what replaces them
        problems.append(
            f"rows of {Examples.of(entry.name for entry in too_many)} are in other files as well; the next "
            "run of annotate removes what is too much"
        )
    if survey.foreign:
        problems.append(
            f"{uri}/{DATA_FOLDER} holds files that this pipeline did not write: {Examples.of(survey.foreign)}. "
            "Move them away"
        )
    if survey.disagreement:
        problems.append(survey.disagreement)
    counts = Counts.total(footer.counts for footer in survey.footers.values())
    rows = _Rows(survey.folder, objects, survey.footers, counts, problems)
    return Overview(
        uri=uri,
        looked_at=datetime.now(timezone.utc),
        run=run,
        reported_at=_reported_at(objects) if run else None,
        lock=lock,
        survey=survey,
        counts=counts,
        written=_written_by(run, survey.footers),
        failures=rows.failures(num_examples),
        classes=rows.classes(run),
        problems=tuple(dict.fromkeys(problems)),
    )


def failed_rows(overview: Overview, problems: list[str]) -> Iterator[FailedRow]:
    """All failed rows of the files that were looked over, a file at a time, in the order of the file names.

    Args:
        overview: of the output.
        problems: gets why files cannot be read, whose rows are left out.
    """
    objects, folder = open_objects(overview.uri), overview.survey.folder
    problems += overview.survey.problems.values()
    with_failures = [entry for entry, footer in overview.survey.footers.items() if footer.counts.failed]
    for rows in _read_failed(folder, objects, with_failures, problems):
        yield from rows


def _read_failed(
    folder: DataFolder, objects: ObjectFolder, entries: Sequence[Entry], problems: list[str]
) -> Iterator[list[FailedRow]]:
    def read(entry: Entry) -> list[FailedRow] | str:
        try:
            return _failed_rows(folder, objects, entry)
        except (OutputError, OSError) as error:
            return str(error)

    for rows in map_files(read, entries, _CONCURRENCY):
        if isinstance(rows, str):
            problems.append(rows)
        else:
            yield rows


def _failed_rows(folder: DataFolder, objects: ObjectFolder, entry: Entry) -> list[FailedRow]:
    table = folder.read(objects, entry, _FAILURE_COLUMNS)
    # Not pc.equal: where Arrow is given a text to compare with, it loads pandas.
    rows = table.filter(pc.starts_with(table["status"], FAILED)).to_pylist()
    return [
        FailedRow(
            row["image_id"], *(row.get(name) or "" for name in ("image_uri", "stage", "error_code", "error_message"))
        )
        for row in rows
    ]


def _read_report(uri: Uri, problems: list[str]) -> RunJson | None:
    try:
        return RunJson.read(uri)
    except (OutputError, TooLarge) as error:
        problems.append(str(error))
        return None


def _reported_at(objects: ObjectFolder) -> datetime | None:
    with suppress(FileNotFoundError):
        return objects.modified_at(REPORT_NAME)
    return None


def _read_lock(uri: Uri, objects: ObjectFolder) -> Lock | None:
    try:
        holder = read_holder(uri)
        if holder is None:
            return None
        at = objects.modified_at(LOCK_NAME)
    except (TooLarge, FileNotFoundError, IsADirectoryError):
        return None
    silent_s = None if at is None else max(0.0, (datetime.now(timezone.utc) - at).total_seconds())
    return Lock(holder, silent_s, not holder.released and is_dead(holder))


def _is_at_work(lock: Lock | None) -> bool:
    return lock is not None and lock.held and not lock.stale


def _written_by(run: RunJson | None, footers: Mapping[Entry, Footer]) -> int:
    if run is None:
        return 0
    return sum(footer.runs.get(run.run_id, 0) for footer in footers.values())


@dataclass(frozen=True)
class _Rows:
    """What the footers do not tell. Where rows cannot be read, it stays unknown, and ``problems`` says why."""

    folder: DataFolder
    objects: ObjectFolder
    footers: Mapping[Entry, Footer]
    counts: Counts
    problems: list[str]

    def failures(self, num_examples: int) -> tuple[FailureKind, ...]:
        """The first failures of each kind, from no more files than hold them."""
        wanted = dict.fromkeys(self.counts.failures_by_code, num_examples)
        chosen = []
        for entry, footer in self.footers.items():
            here = {code: n for code, n in footer.counts.failures_by_code.items() if wanted[code] > 0}
            if here:
                chosen.append(entry)
                wanted.update({code: wanted[code] - n for code, n in here.items()})
        found: dict[str, list[tuple[int | str, str]]] = {code: [] for code in wanted}
        for rows in _read_failed(self.folder, self.objects, chosen, self.problems):
            for row in rows:
                found.setdefault(row.error_code, []).append((row.image_id, row.error_message))
        counts = self.counts.failures_by_code.items()
        return tuple(FailureKind(code, n, tuple(found[code][:num_examples])) for code, n in counts)

    def classes(self, run: RunJson | None) -> dict[str, int]:
        """By name: as the report lists the names, or else as they stand in the rows."""
        counts = self.counts.detections_by_category
        names = {category.id: category.name for category in run.categories} if run else {}
        if not counts.keys() <= names.keys():
            try:
                names = {**self.folder.category_names(self.objects, self.footers), **names}
            except (OutputError, OSError) as error:
                self.problems.append(str(error))
        by_name: dict[str, int] = {}
        for category_id, n in counts.items():
            name = names.get(category_id, f"category {category_id}")
            by_name[name] = by_name.get(name, 0) + n
        return by_name

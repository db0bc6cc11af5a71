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
from pipeline.annotations.data_folder import DATA_FOLDER, DATA_NAME, DataFolder, map_files
from pipeline.annotations.run_json import RunJson, RunState
from pipeline.annotations.schema import FAILED
from pipeline.messages.examples import Examples
from pipeline.storage.lock.holder import LOCK_NAME, Holder, is_dead, read_holder
from pipeline.storage.objects.base import Entry, ObjectFolder, TooLarge
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri

NUM_EXAMPLES = 3

_CONCURRENCY = 32
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
        renewed_at: its last sign of life, by the storage's clock; ``None`` where that does not tell.
        stale: it is held by a process that is known to be dead, or that was silent for longer than its lease.
    """

    holder: Holder
    renewed_at: datetime | None
    stale: bool


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
        lock: ``None`` if there is none, or it makes no sense.
        counts: rows by kind in all files that count.
        written: of these, those that the run wrote that ``run`` speaks of.
        failures: by error code, most frequent first.
        classes: detections by category name, most frequent first.
        identities: what made the rows: one for each run and code version that wrote some.
        num_files: data files that count.
        num_bytes: of all data files, on the disk or in the store.
        problems: what cannot be read, or should not be there: why, and what to do.
    """

    uri: Uri
    looked_at: datetime
    run: RunJson | None
    lock: Lock | None
    counts: Counts
    written: int
    failures: tuple[FailureKind, ...]
    classes: Mapping[str, int]
    identities: tuple[Identity, ...]
    num_files: int
    num_bytes: int
    problems: tuple[str, ...]

    @property
    def standing(self) -> Standing:
        """Whether a run is at work, as its lock shows; or else what it left."""
        run, lock = self.run, self.lock
        has_said = run is not None and lock is not None and run.run_id == lock.holder.run_id
        if lock is not None and not lock.holder.released and (not has_said or run.state is RunState.RUNNING):
            return Standing.DIED if lock.stale else Standing.RUNNING
        if run is None:
            return Standing.UNREPORTED
        return Standing.DIED if run.state is RunState.RUNNING else Standing.ENDED

    @property
    def pending(self) -> int | None:
        """Images of the manifest without a row; ``None`` where only the run's log tells."""
        if self.run is None:
            return None
        if self.run.state.closed:
            return 0
        todo = self.run.this_run.images
        return max(0, todo - self.written) if todo else None


def look_over(uri: Uri, num_examples: int = NUM_EXAMPLES) -> Overview:
    """Look an output over.

    Args:
        uri: of the output folder.
        num_examples: how many failed images to name for each error code.

    Raises:
        OutputError: it is no output of an annotate job.
        UriError: it cannot be opened.
        OSError: it cannot be listed.
    """
    objects = open_objects(uri)
    names = _names(uri, objects)
    lock = _read_lock(uri, objects, names)
    problems: list[str] = []
    run = _read_report(uri, problems)
    if run is not None and run.state is RunState.RUNNING and (lock is None or lock.holder.run_id != run.run_id):
        lock = _read_lock(uri, objects, names)  # a run that began between the two looks
    folder = DataFolder(uri, _CONCURRENCY)
    survey = folder.survey(objects)
    if not survey.footers and not survey.problems and run is None and lock is None:
        raise OutputError(_no_output(uri, names, problems))
    problems += survey.problems.values()
    if survey.superfluous:
        problems.append(
            f"rows of {Examples.of(entry.name for entry in survey.superfluous)} are in other files as well; the next "
            "run of annotate removes what is too much"
        )
    if survey.foreign:
        problems.append(
            f"{uri}/{DATA_FOLDER} holds files that this pipeline did not write: {Examples.of(survey.foreign)}. "
            "Move them away"
        )
    counts = Counts.total(footer.counts for footer in survey.footers.values())
    entries = (*survey.footers, *survey.superfluous, *survey.problems)
    return Overview(
        uri=uri,
        looked_at=datetime.now(timezone.utc),
        run=run,
        lock=lock,
        counts=counts,
        written=_written_by(run, survey.footers),
        failures=_failures(folder, objects, survey.footers, counts, num_examples),
        classes=_classes(folder, objects, survey.footers, counts, run),
        identities=tuple(dict.fromkeys(footer.identity for footer in survey.footers.values())),
        num_files=len(survey.footers),
        num_bytes=sum(entry.size_bytes for entry in entries),
        problems=tuple(problems),
    )


def failed_rows(uri: Uri) -> Iterator[FailedRow]:
    """All failed rows of an output, a file at a time, in the order of the file names.

    Raises:
        OutputError: a file is damaged, or not ours.
        OSError: one cannot be read.
    """
    objects, folder = open_objects(uri), DataFolder(uri, _CONCURRENCY)
    with_failures = [entry for entry, footer in folder.settled(objects).items() if footer.counts.failed]
    for rows in map_files(lambda entry: _failed_rows(folder, objects, entry), with_failures, _CONCURRENCY):
        yield from rows


def _failed_rows(folder: DataFolder, objects: ObjectFolder, entry: Entry) -> list[FailedRow]:
    table = folder.read(objects, entry, _FAILURE_COLUMNS)
    rows = table.filter(pc.equal(table["status"], FAILED)).to_pylist()
    return [
        FailedRow(
            row["image_id"], *(row.get(name) or "" for name in ("image_uri", "stage", "error_code", "error_message"))
        )
        for row in rows
    ]


def _names(uri: Uri, objects: ObjectFolder) -> frozenset[str]:
    try:
        files, folders = objects.list("")
    except NotADirectoryError:
        raise OutputError(f"{uri} is a file: give the output folder of an annotate job") from None
    return frozenset([entry.name for entry in files] + [f"{name}/" for name in folders])


def _no_output(uri: Uri, names: frozenset[str], problems: Sequence[str]) -> str:
    if not names:
        return f"{uri} does not exist, or is empty: it is no output of an annotate job"
    if any(DATA_NAME.fullmatch(name) for name in names):
        return f"{uri} is the folder of an output's data files: give the folder that it is in"
    return "; ".join([f"{uri} is no output of an annotate job: it holds {Examples.of(sorted(names))}", *problems])


def _read_report(uri: Uri, problems: list[str]) -> RunJson | None:
    try:
        return RunJson.read(uri)
    except (OutputError, TooLarge) as error:
        problems.append(str(error))
        return None


def _read_lock(uri: Uri, objects: ObjectFolder, names: frozenset[str]) -> Lock | None:
    try:
        holder = read_holder(uri)
        renewed_at = objects.modified_at(LOCK_NAME) if holder else None
    except (TooLarge, FileNotFoundError):
        return None
    if holder is None:
        return None
    silent_s = (datetime.now(timezone.utc) - renewed_at).total_seconds() if renewed_at else 0.0
    return Lock(holder, renewed_at, not holder.released and (is_dead(holder) or silent_s > holder.lease_s))


def _written_by(run: RunJson | None, footers: Mapping[Entry, Footer]) -> int:
    if run is None:
        return 0
    return sum(footer.counts.rows for footer in footers.values() if footer.identity.run_id == run.run_id)


def _failures(
    folder: DataFolder, objects: ObjectFolder, footers: Mapping[Entry, Footer], counts: Counts, num_examples: int
) -> tuple[FailureKind, ...]:
    """The first failures of each kind, from no more files than hold them."""
    wanted = dict.fromkeys(counts.failures_by_code, num_examples)
    chosen = []
    for entry, footer in footers.items():
        here = {code: n for code, n in footer.counts.failures_by_code.items() if wanted[code] > 0}
        if here:
            chosen.append(entry)
            wanted.update({code: wanted[code] - n for code, n in here.items()})

    def read(entry: Entry) -> list[FailedRow]:
        with suppress(OutputError, OSError):  # its footer is whole; whoever reads its rows is told
            return _failed_rows(folder, objects, entry)
        return []

    found: dict[str, list[tuple[int | str, str]]] = {code: [] for code in wanted}
    for rows in map_files(read, chosen, _CONCURRENCY):
        for row in rows:
            found.setdefault(row.error_code, []).append((row.image_id, row.error_message))
    return tuple(FailureKind(code, n, tuple(found[code][:num_examples])) for code, n in counts.failures_by_code.items())


def _classes(
    folder: DataFolder,
    objects: ObjectFolder,
    footers: Mapping[Entry, Footer],
    counts: Counts,
    run: RunJson | None,
) -> dict[str, int]:
    """By name: as the report lists the names, or else as they stand in the rows."""
    names = {category.id: category.name for category in run.categories} if run else {}
    by_name: dict[str, int] = {}
    for category_id, n in counts.detections_by_category.items():
        name = names.get(category_id, f"category {category_id}")
        by_name[name] = by_name.get(name, 0) + n
    return by_name

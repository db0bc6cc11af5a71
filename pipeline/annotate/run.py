"""The annotate job: from a manifest and a model to a ledger that closes.

The output is the ledger. A run leaves out what the output holds already, appends whole files, and at the end
compares manifest and output once more; what is missing is queued again, what is there twice is an error.
"""

from __future__ import annotations

import logging
import socket
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotate.config import AnnotateConfig
from pipeline.annotate.manifest.open import Manifest, open_manifest
from pipeline.annotate.pending.antijoin import (
    MARKED_BEFORE,
    Audit,
    Comparison,
    Pending,
    check_doubled,
    check_listing,
    rows_by_file,
)
from pipeline.annotate.pending.exchange import Deleted, Exchange
from pipeline.annotate.prepare import check_against, choose_model, make_identity
from pipeline.annotate.summary.page import page_at_end
from pipeline.annotations.data_file import Counts, Footer, Identity, OutputError
from pipeline.annotations.ledger import ANNOTATIONS, DataFiles, OutputStore
from pipeline.annotations.overview import look_over
from pipeline.annotations.overview_text import changes_line, costs, failure_lines, printable
from pipeline.annotations.pictures import PictureSource
from pipeline.annotations.run_json import Changes, ImageCounts, RunJson, RunState, ThisRun
from pipeline.annotations.schema import output_schema
from pipeline.cluster.cause import cause_of
from pipeline.errors import RunError
from pipeline.lake.base import TableError, TableFailed
from pipeline.lake.publish import check_table, publish_files
from pipeline.messages.counts import counted
from pipeline.messages.timing import duration
from pipeline.model.files.header import Header
from pipeline.provenance import code_version, new_run_id, package_versions
from pipeline.storage.lock.claim import check_own
from pipeline.storage.lock.lease import Fence, LockLost, OutputLock
from pipeline.storage.lock.scratch import scratch_of
from pipeline.storage.objects.base import Entry

if TYPE_CHECKING:
    from pipeline.annotate.rounds import Rounds

logger = logging.getLogger(__name__)

# A round redoes what the one before lost, as often as nodes come and go. Three that write nothing mean that something
# else is wrong.
MAX_EMPTY_ROUNDS = 3


class RunFailed(RunError):
    """The run ended without closing its books; what it wrote is kept."""


def annotate(config: AnnotateConfig, retry_failed: bool = False, store: OutputStore | None = None) -> RunJson:
    """Run the job until every image of the manifest is annotated or failed with a reason.

    Args:
        retry_failed: queue the images again that failed in earlier runs.
        store: the config's output, for whoever looks at it afterwards: what the run has read is not read again.

    Returns:
        The report, also written to ``run.json``. Its ``state`` is ``finished``, ``nothing_to_do``,
        ``too_many_failures`` or ``stopped_by_failures``.

    Raises:
        UserError: before anything was started.
        RunError: another run holds the output, or the books do not close.
        KeyboardInterrupt: a signal came; what was ready is written, and ``run.json`` says ``stopped``.
    """
    run_id, started = new_run_id(), time.monotonic()
    store = store or OutputStore(config.output.uri, keep_replaced=config.output.keeps_replaced)
    check_own(store.uri, ANNOTATIONS)
    model = choose_model(config)
    identity = make_identity(config, model.header, run_id)
    with ExitStack() as stack:
        lock = stack.enter_context(OutputLock(config.output.uri, run_id, config.output.lease_s))
        fence = lock.fence()
        stack.enter_context(page_at_end(store, run_id, fence))
        recovery = store.recover(fence)
        if recovery:
            logger.info("recovered the output: %s", recovery)
        recovery.files.check_identity(identity)
        exchange = Exchange(store, fence, config.output.compression_level)
        # What failed in a run that was cut off may have failed because of what ended it: it is tried again.
        if placed := exchange.put_in_place(identity, only_annotated=True):
            logger.info("new rows of %s, which an earlier run made, are in place", counted(placed, "changed picture"))
        scratch = stack.enter_context(scratch_of(store.uri, run_id, fence))
        fetcher = PictureSource.of_config(config.images).fetcher
        manifest = open_manifest(config.manifest, scratch, fetcher, store.uri)
        check_against(config.drift, manifest.id_type)
        schema = output_schema(manifest.id_type, manifest.carried)
        files = store.files()
        files.check_identity(identity, schema)
        if config.output.table is not None:
            check_table(store.uri, config.output.table, schema)
        run = _Run(config, model.header, identity, store, manifest, fence, run_id, exchange)
        redo = run.to_redo(files, schema, retry_failed)
        if redo and config.manifest.deleted != "keep":
            run.pending(files)  # a listing may be cut off: that is told before anything is removed
        pending = None if redo else run.pending(files)
        if pending is not None and not pending.num_to_do:
            return run.published(run.nothing_to_do(files, pending))
        # Here and not above: Ray and the model's packages take ten seconds to import, and Ray as long to start.
        from pipeline.annotate.rounds import connected

        rounds = stack.enter_context(connected(config, model, manifest, schema, identity, lock, started))
        return run.published(run.execute(rounds, redo, pending))


@dataclass(frozen=True)
class _Redo:
    """Rows that are removed before the run looks at what is pending, so that their images are.

    Attributes:
        in_the_way: see `DataFiles.in_the_way`.
        failed: all that failed.
    """

    in_the_way: dict[Entry, Footer]
    failed: bool

    def __bool__(self) -> bool:
        return bool(self.in_the_way or self.failed)


@dataclass
class _Run:
    config: AnnotateConfig
    model: Header
    identity: Identity
    store: OutputStore
    manifest: Manifest
    fence: Fence
    run_id: str
    exchange: Exchange
    begun: bool = False  # run.json says that this run is at work
    changes: Changes = field(default_factory=Changes)
    _has_marked_rows: bool = False
    _gone: dict[Entry, NDArray[np.bool_]] = field(default_factory=dict)  # rows of pictures that are gone

    @cached_property
    def _comparison(self) -> Comparison | None:
        """See `Comparison.of`."""
        return Comparison.of(self.config.manifest, self.manifest, self._has_marked_rows, self.run_id)

    @cached_property
    def _audit(self) -> Audit:
        return Audit(self.manifest, self.store, self._comparison)

    def to_redo(self, files: DataFiles, schema: pa.Schema, retry_failed: bool) -> _Redo:
        """What is to be removed; nothing is, before Ray is there for doing it again."""
        return _Redo(files.in_the_way(self.identity, schema), retry_failed and bool(files.counts.failed))

    def nothing_to_do(self, files: DataFiles, pending: Pending) -> RunJson:
        """The books of an output in which each picture has its row."""
        report = self._new_report({})
        if self._gone:
            self._begin(report)
            self._put_in_place()
            files = self.store.files()
            self._close_books(report, files.counts, self._find_pending(files))
            self._end(report)
            return report
        report.state = RunState.NOTHING_TO_DO
        self._close_books(report, files.counts, pending)
        logger.info("the output is complete; nothing to do")
        self._finish_report(report)
        return report

    def published(self, report: RunJson) -> RunJson:
        """The same report, when the table of the config has what the output holds: if its books are closed."""
        if self.config.output.table is not None and report.state.closed:
            try:
                publish_files(self.store.files(), self.config.output.table, self.fence)
            except (TableError, TableFailed) as error:
                cure = f"all results are in {self.store.uri}: python -m jobs.publish {self.store.uri} publishes them"
                raise type(error)(f"{error}; {cure}") from None
        return report

    def execute(self, rounds: Rounds, redo: _Redo, pending: Pending | None) -> RunJson:
        """Annotate what is pending, and report; a run that fails or is stopped says so in run.json.

        Args:
            redo: is removed first.
            pending: ``None`` where that decides.
        """
        report = self._new_report(rounds.cluster)
        with ExitStack() as work:  # left when the report is written: ending work takes seconds
            try:
                if pending is None:
                    self._begin(report)
                    self._queue_again(redo)
                    files = self.store.files()
                    pending = self.pending(files)
                    if not pending.num_to_do:  # what failed was none of the manifest's any more
                        return self.nothing_to_do(files, pending)
                rounds.todo = pending.num_to_do
                report.this_run = ThisRun(images=rounds.todo)
                self._begin(report)
                self._annotate_all(rounds, pending, report, work)
                self._end(report)
            except (KeyboardInterrupt, Exception) as error:
                if self.begun:
                    self._report_end(rounds, report, error)
                raise
        return report

    def _begin(self, report: RunJson) -> None:
        self.begun = True
        report.changes = self.changes
        self._write_report(report)

    def _end(self, report: RunJson) -> None:
        report.ended = datetime.now(timezone.utc).replace(microsecond=0)  # as exact as when it began, in its id
        self._write_report(report)

    def _write_report(self, report: RunJson) -> None:
        self.fence()  # without the lock, the report is another run's
        report.write(self.store.uri)

    def _queue_again(self, redo: _Redo) -> None:
        """Remove rows of images that are to be done again; the report said before that the run is at work."""
        if corrected := self.store.make_way(redo.in_the_way, self.fence):
            logger.info("all %s there had failed under other settings; queued again", counted(corrected, "image"))
        if redo.failed:
            logger.info("queued again: %s", counted(self.store.strip_failed(self.fence), "failed image"))

    def _report_end(self, rounds: Rounds, report: RunJson, error: BaseException) -> None:
        """After an error; a run that had closed its books when a signal came has finished all the same."""
        if not (isinstance(error, KeyboardInterrupt) and report.state.closed):
            report.state = RunState.STOPPED if isinstance(error, KeyboardInterrupt) else RunState.FAILED
            self._take_figures(report, rounds)
        if report.state is RunState.FAILED:
            report.this_run.error = str(error) if isinstance(error, (RunFailed, OutputError)) else cause_of(error).name
        with suppress(OSError, LockLost):
            self._end(report)

    def _annotate_all(self, rounds: Rounds, pending: Pending, report: RunJson, work: ExitStack) -> None:
        """Rounds until nothing is pending; then the books."""
        num_empty = 0
        while pending.num_to_do:
            if num_empty == MAX_EMPTY_ROUNDS:
                raise RunFailed(f"{_are(pending.num_to_do)} still missing, and {num_empty} rounds wrote none of them")
            rounds.num += 1
            if rounds.num > 1:
                logger.warning("the audit found %s missing; queued again", counted(pending.num_to_do, "image"))
            before = pending.num_to_do
            reason = self._round(rounds, pending, work)
            files = self.store.files()
            pending = self._find_pending(files)
            num_empty = num_empty + 1 if pending.num_to_do == before else 0
            if reason and pending.num_to_do:  # else it came too late to save anything
                report.state = RunState.STOPPED_BY_FAILURES
                self._take_figures(report, rounds)
                report.this_run.error = reason
                return
        self._take_figures(report, rounds)
        self._close_books(report, files.counts, pending)

    def _round(self, rounds: Rounds, pending: Pending, work: ExitStack) -> str:
        """What is new, then what has changed, whose rows are put in place at once; why the run should end, or "".

        Both have a graph of their own: what is written of changed pictures is kept apart until their old rows can go.
        """
        reason = rounds.run(pending, work, self.store) if pending.num_pending else ""
        if pending.num_changed and not reason:
            reason = rounds.run(pending.changed_alone(), work, self.exchange.changed)
        if pending.num_changed or self._gone:
            self._put_in_place(only_annotated=bool(reason))
        return reason

    def _put_in_place(self, only_annotated: bool = False) -> None:
        gone = {} if only_annotated else self._gone
        deleted: Deleted = "drop" if self.config.manifest.deleted == "drop" else "mark"
        self.exchange.put_in_place(self.identity, gone, deleted, only_annotated)
        if not only_annotated:
            self._gone = {}

    def _take_changes(self, files: DataFiles, pending: Pending) -> None:
        """What is found, for the books, and which rows are of pictures that are gone; nothing is touched yet.

        Raises:
            ManifestError: there are too many of them.
        """
        config = self.config.manifest
        check_listing(pending, config, self.store.uri, files.counts)
        num_gone = 0
        if config.deleted != "keep" and pending.gone is not None:
            num_gone = pending.unknown_done.count
            self._gone = rows_by_file(files, pending.gone)
        new, changed, unchanged = pending.num_pending, pending.num_changed, pending.num_done
        if self._comparison is not None:
            self.changes = Changes(new, changed, unchanged, num_gone, pending.num_unknown)

    def _take_figures(self, report: RunJson, rounds: Rounds) -> None:
        report.this_run = rounds.figures()
        report.cluster |= rounds.changes()

    def _finish_report(self, report: RunJson) -> None:
        """A run that died after its last file left a report that says otherwise; else the old one stays.

        What the earlier run made and cost, and when, stays in any case; what this one compared and where it publishes
        is said, and that it looked.
        """
        try:
            old = RunJson.read(self.store.uri)
        except OutputError:
            old = None  # damaged: written anew
        if old is None or not old.state.closed:
            self._end(report)
        elif report.changes.compared or (old.changes, old.table) != (report.changes, report.table):
            names = ("state", "config", "manifest_version", "images", "changes")
            found = {name: getattr(report, name) for name in names}
            self._write_report(replace(old, looked_again=self.run_id, **found))

    def pending(self, files: DataFiles) -> Pending:
        """What there is to do, said aloud."""
        self._has_marked_rows = bool(files.counts.deleted)
        found = self._find_pending(files)
        self._take_changes(files, found)
        changes = self.changes
        more = [
            (changes.changed, "changed"),
            (changes.deleted, "gone"),
            (found.num_marked * (self.config.manifest.deleted == "drop"), MARKED_BEFORE),
            (changes.unknown_version, "of unknown version"),
        ]
        logger.info(
            "%s in the manifest, %s done, %s to do%s",
            counted(found.num_rows, "image"),
            *(f"{n:,}" for n in (found.num_done, found.num_to_do)),
            "".join(f", {count:,} {what}" for count, what in more if count),
        )
        return found

    def _find_pending(self, files: DataFiles) -> Pending:
        """The anti-join of manifest and output; the closing audit is the same question asked again."""
        pending = self._audit.look(files)
        check_doubled(pending, self.store, files)
        unknown = pending.unknown_done
        if unknown.count and self.config.manifest.deleted == "keep":
            logger.warning(
                "%s in the output and not in the manifest, which changes nothing: %s",
                _are(unknown.count),
                unknown,
            )
        return pending

    def _new_report(self, cluster: dict[str, Any]) -> RunJson:
        return RunJson(
            run_id=self.run_id,
            state=RunState.RUNNING,
            config=self.config.model_dump(mode="json"),
            identity={**asdict(self.identity), "source": self.model.source},
            code={"version": code_version(), "packages": package_versions(), "python": sys.version.split()[0]},
            cluster={"driver": socket.gethostname(), **cluster},
            categories=self.model.categories,
            image_root=self.manifest.image_root,
            manifest_version=self.manifest.version,
        )

    def _close_books(self, report: RunJson, counts: Counts, pending: Pending) -> None:
        report.images = ImageCounts(pending.num_rows, counts.annotated, counts.failed, counts.deleted)
        report.changes = self.changes
        report.failures = dict(counts.failures_by_code)
        names = {c.id: c.name for c in self.model.categories}
        report.detections_per_category = {names[i]: n for i, n in sorted(counts.detections_by_category.items())}
        extra = pending.unknown_done.count
        if counts.images - extra != pending.num_rows:
            raise RunFailed(f"the books do not close: {asdict(report.images)}, {extra} of them not in the manifest")
        if report.state is not RunState.NOTHING_TO_DO:
            report.state = RunState.FINISHED
        if report.failed_fraction > self.config.output.max_failed_fraction:
            report.state = RunState.TOO_MANY_FAILURES


def _are(images: int) -> str:
    return f"{counted(images, 'image')} {'is' if images == 1 else 'are'}"


def summary(report: RunJson, store: OutputStore) -> str:
    """The closing words: the books, failures with examples, detections per category, speed, cost.

    Args:
        store: the output.
    """
    images = report.images
    lines = [
        f"{counted(images.manifest, 'image')} = {images.annotated:,} annotated + {images.failed:,} failed "
        f"({report.failed_fraction:.2%})"
    ]
    if images.failed:
        lines += failed_lines(store)
    if report.changes.compared:
        lines.append(changes_line(report.changes))
    if images.deleted:
        lines.append(f"{counted(images.deleted, 'row')} beside these, marked as deleted")
    top = sorted(report.detections_per_category.items(), key=lambda x: -x[1])
    total = counted(sum(count for _, count in top), "detection")
    lines.append(total + (": " + ", ".join(f"{name} {n:,}" for name, n in top[:12]) if top else ""))
    run = report.this_run
    if run.rounds:
        time = f"{duration(run.seconds)} with start-up"
        line = f"this run: {counted(run.images, 'image')} in {time}, {run.images_per_second:.2f} img/s"
        # Nothing where the model was never called.
        line += f", replicas busy {run.replica_busy_share:.0%}" if run.replica_busy_share else ""
        lines.append(line + (f", batches {run.batch_fill:.0%} full" if run.batch_fill else ""))
        lines += [f"{name}: {value}" for name, value in costs(run).items()]
    return "\n".join(lines)


def failed_lines(store: OutputStore) -> list[str]:
    """How many images of an output failed by error code, the first of each with their messages, and how to get all.

    Args:
        store: the output.
    """
    with suppress(OSError):  # the run is over, whatever the storage says now
        failures = look_over(store.uri, folder=store.folder).failures
        lines = [f"  {printable(line)}" for line in failure_lines(failures)]
        return [*lines, f"  all of them: maskfleet show {store.uri} --failed failed.csv"] if lines else []
    return []

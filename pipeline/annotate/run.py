"""The annotate job: from a manifest and a model to a ledger that closes.

The output is the ledger. A run leaves out what the output holds already, appends whole files, and at the end
compares manifest and output once more; what is missing is queued again, what is there twice is an error.
"""

from __future__ import annotations

import logging
import math
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace

import ray
from ray.exceptions import RayError

from pipeline.annotate.config import AnnotateConfig
from pipeline.annotate.graph import MAX_WRITES, Running, RunParts, Writes, build
from pipeline.annotate.manifest.open import Manifest, open_manifest
from pipeline.annotate.monitor import start_monitor
from pipeline.annotate.pending.antijoin import Pending, find_pending
from pipeline.annotate.pool import choose_pool
from pipeline.annotate.prepare import make_identity, model_settings
from pipeline.annotate.progress import FailureWatch, Progress, Snapshot
from pipeline.annotate.summary.page import page_at_end
from pipeline.annotations.data_file import Counts, Identity, OutputError
from pipeline.annotations.ledger import ANNOTATIONS, OutputStore
from pipeline.annotations.run_json import ImageCounts, RunJson, RunState, ThisRun
from pipeline.annotations.schema import output_schema
from pipeline.cluster.cause import cause_of
from pipeline.cluster.connect import check_address, connect, describe_cluster
from pipeline.cluster.shared import check_shared
from pipeline.cluster.signals import deferred
from pipeline.errors import RunError
from pipeline.messages.timing import duration
from pipeline.model.files.checkpoints import Checkpoint, load_checkpoint
from pipeline.model.files.resolve import resolve_checkpoint
from pipeline.provenance import code_version, new_run_id, package_versions
from pipeline.storage.lock.claim import check_own
from pipeline.storage.lock.lease import LockLost, OutputLock
from pipeline.storage.lock.scratch import scratch_of

logger = logging.getLogger(__name__)

# A round redoes what the one before lost. Rows do not get lost in rounds without crashes; a third empty-handed
# one means something else is wrong.
MAX_ROUNDS = 3
# How often the driver looks whether rows have waited long enough, and whether it is to stop.
_POLL_S = 0.5
_SNAPSHOT_TIMEOUT_S = 5.0
# Rows that have come out of the last stage may be on their way to the driver when a run is stopped.
_ARRIVAL_S = 1.0
# What is ready when a run fails is written, unless the same cause forbids that.
_SAVE_S = 120.0
_SAVE_ERRORS = 2 * MAX_WRITES


class RunFailed(RunError):
    """The run ended without closing its books; what it wrote is kept."""


def annotate(config: AnnotateConfig, retry_failed: bool = False) -> RunJson:
    """Run the job until every image of the manifest is annotated or failed with a reason.

    Args:
        retry_failed: queue the images again that failed in earlier runs.

    Returns:
        The report, also written to ``run.json``. Its ``state`` is ``finished``, ``nothing_to_do``,
        ``too_many_failures`` or ``stopped_by_failures``.

    Raises:
        UserError: before anything was started.
        RunError: another run holds the output, or the books do not close.
        KeyboardInterrupt: a signal came; what was ready is written, and ``run.json`` says ``stopped``.
    """
    run_id = new_run_id()
    check_address(config.resources.ray_address)
    store = OutputStore(config.output.uri)
    check_own(store.uri, ANNOTATIONS)
    checkpoint = load_checkpoint(resolve_checkpoint(config.model.checkpoint))
    settings = model_settings(config, checkpoint)
    identity = make_identity(config, checkpoint, run_id)
    with ExitStack() as stack:
        lock = stack.enter_context(OutputLock(config.output.uri, run_id, config.output.lease_s))
        fence = lock.fence()
        stack.enter_context(page_at_end(store.uri, run_id, fence))
        recovery = store.recover(fence)
        if recovery:
            logger.info("recovered the output: %s", recovery)
        store.check_identity(identity)
        manifest = open_manifest(config.manifest, stack.enter_context(scratch_of(store.uri, run_id, fence)))
        schema = output_schema(manifest.id_type, manifest.carried)
        store.check_identity(identity, schema)
        stack.enter_context(connect(config.resources.ray_address))
        check_shared({"output.uri": config.output.uri}, config.manifest.read_by_workers())
        pool = choose_pool(config.resources)
        run = _Run(config, checkpoint, identity, store, manifest, lock, run_id)
        parts = RunParts(
            config=config,
            manifest=manifest,
            settings=settings,
            categories=checkpoint.categories,
            checkpoint=ray.put(checkpoint),
            schema=schema,
            store=store,
            identity=identity,
            fence=fence,
            monitor=start_monitor(),
            pool=pool,
        )
        return run.execute(parts, retry_failed)


@dataclass
class _Run:
    config: AnnotateConfig
    checkpoint: Checkpoint
    identity: Identity
    store: OutputStore
    manifest: Manifest
    lock: OutputLock
    run_id: str
    started: float = field(default_factory=time.monotonic)
    rounds: int = 0
    written: int = 0
    begun: bool = False  # run.json says that this run is at work

    def execute(self, parts: RunParts, retry_failed: bool) -> RunJson:
        """Annotate what is pending, and report; a run that fails or is stopped says so in run.json."""
        report, todo = self._new_report(), 0
        with ExitStack() as work:  # left when the report is written: ending work takes seconds
            try:
                self._queue_again(parts, report, retry_failed)
                pending = self._pending()
                todo = pending.num_pending
                logger.info(
                    "%s images in the manifest, %s done, %s to do",
                    *(f"{n:,}" for n in (pending.num_rows, pending.num_done, todo)),
                )
                if todo == 0:
                    report.state = RunState.NOTHING_TO_DO
                    self._close_books(report, self.store.counts(), pending)
                    logger.info("the output is complete; nothing to do")
                    self._finish_report(parts, report)
                    return report
                report.this_run = ThisRun(images=todo)
                self._begin(parts, report)
                self._annotate_all(parts, pending, report, work)
                self._write_report(parts, report)
            except (KeyboardInterrupt, Exception) as error:
                if self.begun:
                    self._report_end(parts, report, todo, error)
                raise
        return report

    def _begin(self, parts: RunParts, report: RunJson) -> None:
        self.begun = True
        self._write_report(parts, report)

    def _write_report(self, parts: RunParts, report: RunJson) -> None:
        parts.fence()  # without the lock, the report is another run's
        report.write(self.store.uri)

    def _queue_again(self, parts: RunParts, report: RunJson, retry_failed: bool) -> None:
        """Remove rows of images that are to be done again, of which an earlier report says that they are done."""
        failed = retry_failed and self.store.counts().failed
        if failed or self.store.in_the_way(parts.identity, parts.schema):
            self._begin(parts, report)
        if corrected := self.store.make_way(parts.identity, parts.schema, parts.fence):
            logger.info("all %d images there had failed under other settings; they are queued again", corrected)
        if retry_failed:
            logger.info("%d failed images are queued again", self.store.strip_failed(parts.fence))

    def _report_end(self, parts: RunParts, report: RunJson, todo: int, error: BaseException) -> None:
        """After an error; a run that had closed its books when a signal came has finished all the same."""
        if not (isinstance(error, KeyboardInterrupt) and report.state.closed):
            report.state = RunState.STOPPED if isinstance(error, KeyboardInterrupt) else RunState.FAILED
            report.this_run = self._figures(parts, todo)
        if report.state is RunState.FAILED:
            report.this_run.error = str(error) if isinstance(error, RunFailed) else cause_of(error).name
        with suppress(OSError, LockLost):
            self._write_report(parts, report)

    def _annotate_all(self, parts: RunParts, pending: Pending, report: RunJson, work: ExitStack) -> None:
        """Rounds until nothing is pending; then the books."""
        todo = pending.num_pending
        while pending.num_pending:
            self.rounds += 1
            if self.rounds > MAX_ROUNDS:
                raise RunFailed(f"{pending.num_pending} images are still missing after {MAX_ROUNDS} rounds")
            if self.rounds > 1:
                logger.warning("the audit found %d images missing; they are queued again", pending.num_pending)
            reason = self._work(parts, pending, work)
            pending = self._pending()
            if reason and pending.num_pending:  # else it came too late to save anything
                report.state = RunState.STOPPED_BY_FAILURES
                report.this_run = replace(self._figures(parts, todo), error=reason)
                return
        report.this_run = self._figures(parts, todo)
        self._close_books(report, self.store.counts(), pending)

    def _figures(self, parts: RunParts, todo: int) -> ThisRun:
        seconds = time.monotonic() - self.started
        snapshot = Snapshot()
        with suppress(RayError):  # a Ray that is gone knows no figures
            snapshot = ray.get(parts.monitor.snapshot.remote(), timeout=_SNAPSHOT_TIMEOUT_S)
        progress = Progress(todo, snapshot, seconds, parts.pool.max_actors)
        return ThisRun(
            images=todo,
            written=self.written,
            rounds=self.rounds,
            seconds=round(seconds, 3),
            images_per_second=round(self.written / seconds, 3),
            replica_busy_share=round(progress.busy_share, 4),
            time_split_s={name: round(s, 3) for name, s in progress.time_split().items()},
        )

    def _finish_report(self, parts: RunParts, report: RunJson) -> None:
        """A run that died after its last file left a report that says otherwise; else the old one stays."""
        try:
            old = RunJson.read(self.store.uri)
        except OutputError:
            old = None  # damaged: written anew
        if old is None or not old.state.closed:
            self._write_report(parts, report)

    def _pending(self) -> Pending:
        """The anti-join of manifest and output; the closing audit is the same question asked again."""
        done = (table["image_id"] for table in self.store.iter_ids())
        pending = find_pending(self.manifest, done)
        twice, unknown = pending.duplicate_done, pending.unknown_done
        if twice.count:
            raise RunFailed(
                f"{twice.count} images are more than once in {self.config.output.uri} ({twice}): "
                "something else wrote there as well. Nothing was changed; move the doubled files away and run again."
            )
        if unknown.count:
            logger.warning(
                "%d images of the output are not in the manifest, and stay as they are: %s",
                unknown.count,
                unknown,
            )
        return pending

    def _work(self, parts: RunParts, pending: Pending, work: ExitStack) -> str:
        """A round; why it ended early, or "". However it ends, what is ready is written.

        Args:
            work: takes what ends the work that is still going on then.

        Raises:
            KeyboardInterrupt: a signal ended it early.
        """
        reason = ""
        with (
            deferred() as stopping,
            _progress(parts, pending.num_pending, self.started, self.config) as failing,
        ):
            running, writes = Running(build(parts, pending)), Writes(parts)
            work.callback(running.stop)
            try:
                while not (running.ended or stopping() or (reason := failing())):
                    if writes.full:
                        writes.wait(_POLL_S)
                    elif (block := running.take(_POLL_S)) is not None:
                        writes.add(block)
                    writes.go_on()
                    self.lock.check()
                self._write_rest(running, writes)
            except (KeyboardInterrupt, Exception):
                self._save_rest(running, writes)
                raise
            finally:
                self.written += writes.num_written
        return reason

    def _write_rest(self, running: Running, writes: Writes, give_up_at: float = math.inf) -> None:
        """Write all that came out and waits, and what is on its way here: it may count as done already."""
        arrived_at = time.monotonic() + _ARRIVAL_S
        while block := running.take(0 if running.ended or time.monotonic() > arrived_at else _POLL_S):
            writes.add(block)
        writes.go_on(everything=True)
        while writes.num_open and time.monotonic() < give_up_at:
            writes.wait(_POLL_S)
            writes.go_on(everything=True)
            self.lock.check()

    def _save_rest(self, running: Running, writes: Writes) -> None:
        """The same after an error, which counts more than any that comes now: each of these costs a file at most."""
        give_up_at = time.monotonic() + _SAVE_S
        for _ in range(_SAVE_ERRORS):
            try:
                self.lock.check()
                self._write_rest(running, writes, give_up_at)
                return
            except LockLost:
                return
            except Exception as error:
                logger.warning("the run has failed, and some of its last rows are lost: %s", cause_of(error).line())

    def _new_report(self) -> RunJson:
        return RunJson(
            run_id=self.run_id,
            state=RunState.RUNNING,
            config=self.config.model_dump(mode="json"),
            identity={**asdict(self.identity), "source": self.checkpoint.source},
            code={"version": code_version(), "packages": package_versions(), "python": sys.version.split()[0]},
            cluster={"driver": socket.gethostname(), **describe_cluster()},
            categories=self.checkpoint.categories,
            image_root=self.manifest.image_root,
        )

    def _close_books(self, report: RunJson, counts: Counts, pending: Pending) -> None:
        report.images = ImageCounts(pending.num_rows, counts.annotated, counts.failed)
        report.failures = dict(counts.failures_by_code)
        names = {c.id: c.name for c in self.checkpoint.categories}
        report.detections_per_category = {names[i]: n for i, n in sorted(counts.detections_by_category.items())}
        extra = pending.unknown_done.count
        if counts.annotated + counts.failed - extra != pending.num_rows:
            raise RunFailed(f"the books do not close: {asdict(report.images)}, {extra} of them not in the manifest")
        if report.state is not RunState.NOTHING_TO_DO:
            report.state = RunState.FINISHED
        if report.failed_fraction > self.config.output.max_failed_fraction:
            report.state = RunState.TOO_MANY_FAILURES


@contextmanager
def _progress(parts: RunParts, total: int, started: float, config: AnnotateConfig) -> Iterator[Callable[[], str]]:
    """A line when the first images are read, and then every so often; on a terminal it replaces the one before.

    Gives a function that says why it is not worth going on, or "".
    """
    live = sys.stderr.isatty()
    stop = threading.Event()
    failures = FailureWatch(config.output.stop)
    reason = ""

    def loop() -> None:
        nonlocal reason
        said_at = -math.inf
        while not stop.wait(1.0):
            try:
                snapshot: Snapshot = ray.get(parts.monitor.snapshot.remote())
            except RayError:  # of a keeper that is being started anew, or whose node is gone
                continue
            reason = reason or failures.see(snapshot.counts)
            now = time.monotonic()
            line = Progress(total, snapshot, now - started, parts.pool.max_actors).line()
            if live:
                print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
            elif snapshot.counts.decoded and now - said_at >= config.log_interval_s:
                said_at = now
                logger.info(line)

    thread = threading.Thread(target=loop, name="progress", daemon=True)
    thread.start()
    try:
        yield lambda: reason
    finally:
        stop.set()
        thread.join(timeout=5)
        if live:
            print(file=sys.stderr)


def summary(report: RunJson) -> str:
    """The closing words: the books, failures by code, detections per category, speed."""
    images = report.images
    lines = [
        f"{images.manifest:,} images = {images.annotated:,} annotated + {images.failed:,} failed "
        f"({report.failed_fraction:.2%})"
    ]
    lines += [f"  failed {code}: {count:,}" for code, count in sorted(report.failures.items(), key=lambda x: -x[1])]
    top = sorted(report.detections_per_category.items(), key=lambda x: -x[1])
    total = sum(count for _, count in top)
    lines.append(f"{total:,} detections" + (": " + ", ".join(f"{name} {n:,}" for name, n in top[:12]) if top else ""))
    run = report.this_run
    if run.rounds:
        lines.append(
            f"this run: {run.images:,} images in {duration(run.seconds)}, {run.images_per_second:.2f} img/s, "
            f"replicas busy {run.replica_busy_share:.0%}"
        )
    return "\n".join(lines)

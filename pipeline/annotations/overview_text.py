"""An overview as people read it on a terminal: plain text, names on the left, lines of at most 80 characters."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from typing import Any

from pipeline.annotations.overview import FailureKind, Lock, Overview, Standing
from pipeline.annotations.run_json import Changes, RunJson, RunState, ThisRun
from pipeline.messages.counts import counted, size
from pipeline.messages.timing import duration
from pipeline.provenance import begun_at
from pipeline.storage.uris import hide_secrets

WIDTH = 80

_LABEL_WIDTH = 11
_MAX_CODES, _MAX_CLASSES = 12, 12
_DIGEST_LENGTH = 12
_MAX_LENGTH = 2000
_GO_ON = "the same command goes on where it ended"
_ENDED = {
    RunState.FINISHED: "finished",
    RunState.NOTHING_TO_DO: "finished; the last run found nothing to do",
    RunState.STOPPED: f"stopped by a signal; {_GO_ON}",
}


def overview_text(overview: Overview, drift: Sequence[str] = ()) -> str:
    """All of it, section by section; what is not known is left out or said to be so.

    Args:
        drift: what was found of it, in lines.
    """
    sections = {
        "output": [str(overview.uri)],
        "state": list(_state(overview)),
        "images": list(_books(overview)),
        "failures": list(failure_lines(overview.failures)),
        "drift": list(drift),
        "classes": list(_classes(overview)),
        "speed": list(_speed(overview)),
        "files": list(_files(overview)),
        "model": list(_model(overview)),
        "settings": list(_settings(overview)),
        "code": list(_code(overview)),
        "problems": list(overview.problems),
    }
    return "\n".join(line for label, lines in sections.items() for line in _section(label, lines))


def _section(label: str, lines: Sequence[str]) -> Iterator[str]:
    """Lines beside their label; a long one goes on below, a little further in than it begins."""
    for line in lines:
        begins = f"{label:<{_LABEL_WIDTH}}"
        indent = len(line) - len(line.lstrip())
        yield from textwrap.wrap(
            printable(line.lstrip()),
            WIDTH,
            initial_indent=begins + " " * indent,
            subsequent_indent=" " * (_LABEL_WIDTH + indent + 2),
            break_long_words=False,
            break_on_hyphens=False,
        )
        label = ""


def _state(overview: Overview) -> Iterator[str]:
    began_at = begun_at(overview.run_id)
    since = f" {_at(began_at)}" if began_at else " (when is not known)"
    standing, lock, run = overview.standing, overview.lock, overview.run
    if standing is Standing.RUNNING and lock is not None:
        for_s = f" ({duration((overview.looked_at - began_at).total_seconds())})" if began_at else ""
        yield f"running since{since}{for_s}"
        yield f"run {overview.run_id} on {lock.holder.host}, pid {lock.holder.pid}"
        yield _sign_of_life(lock)
        if overview.is_unheard:
            yield "it is looking for what there is to do" + ("" if run is None else "; below, the run before it")
        return
    if standing is Standing.DIED:
        yield f"died: {_why_dead(lock)}; {_GO_ON}"
    elif standing is Standing.UNREPORTED or run is None:
        has_rows = overview.counts.rows > 0
        yield "not known: no run.json says how it was made" if has_rows else "a run began here, and wrote nothing"
    else:
        yield how_it_ended(run)
    if overview.run_id:
        yield f"run {overview.run_id}, begun{since}"
    if standing is Standing.ENDED and overview.ended_at is not None:
        yield f"ended {_at(overview.ended_at)}"
    if run is not None and (looked_at := begun_at(run.looked_again)) and standing is Standing.ENDED:
        yield f"looked at again {_at(looked_at)}, nothing to do"


def how_it_ended(run: RunJson) -> str:
    """In words, of a run that is no longer at work."""
    error = run.this_run.error
    if run.state is RunState.TOO_MANY_FAILURES:
        return f"finished, with more failed images than output.max_failed_fraction allows: {run.failed_fraction:.2%}"
    if run.state is RunState.STOPPED_BY_FAILURES:
        return f"stopped by failures, as output.stop says: {error or 'almost all of the last images failed'}"
    if run.state is RunState.FAILED:
        return f"failed: {error or 'its log says why'}"
    return _ENDED[run.state]


def _sign_of_life(lock: Lock) -> str:
    if lock.silent_s is None:
        return "when it last gave a sign of life, this storage does not tell"
    return f"last sign of life {duration(lock.silent_s)} ago"


def _why_dead(lock: Lock | None) -> str:
    if lock is None or not lock.stale:
        return "run.json says that a run is at work, but none holds the lock"
    holder = f"on {lock.holder.host} (pid {lock.holder.pid})"
    if lock.dead:
        return f"its process {holder} has ended without a word"
    silent = duration(lock.silent_s or 0.0)
    return f"no sign of life for {silent} of the run {holder}, which gives one every {lock.holder.lease_s / 3:g} s"


def _books(overview: Overview) -> Iterator[str]:
    counts, pending, manifest = overview.counts, overview.pending, overview.manifest
    if manifest is not None:
        yield f"{manifest:,} in the manifest"
    else:
        at_work = overview.standing is Standing.RUNNING
        yield "the manifest is being counted" if at_work else "how many are in the manifest is not known"
    rows = [(counts.annotated, "annotated"), (counts.failed, f"failed{_share(counts.failed, counts.images)}")]
    if pending is not None:
        rows.append((pending, f"pending{_share(pending, counts.images + pending)}"))
    if counts.deleted:
        rows.append((counts.deleted, "deleted, beside these: their pictures are gone"))
    yield from _table(rows)
    run = None if overview.is_unheard else overview.run
    has_ended = run is not None and run.state.closed  # until then old rows of changed pictures count as well
    if has_ended and pending is not None and manifest is not None and counts.images + pending > manifest:
        yield f"of these, {counts.images + pending - manifest:,} not in the manifest (any more)"
    if has_ended and pending and overview.standing is Standing.ENDED:
        yield "their rows are in no file that can be read: the next run makes them anew"
    if run is not None and run.changes.compared:
        changes = run.changes
        yield f"{changes.new:,} new" if changes.all_new else f"since the run before: {changes_line(changes)}"


def changes_line(changes: Changes) -> str:
    """What a run found that compared manifest and output."""
    parts = {"new": changes.new, "changed": changes.changed, "deleted": changes.deleted, "unchanged": changes.unchanged}
    unknown = f", of which {changes.unknown_version:,} of unknown version" if changes.unknown_version else ""
    return ", ".join(f"{number:,} {what}" for what, number in parts.items()) + unknown


def _share(n: int, total: int) -> str:
    return f" ({n / total:.2%})" if n else ""


def failure_lines(kinds: Sequence[FailureKind]) -> Iterator[str]:
    """How many images failed by error code, and the first ones of each."""
    width = max((len(f"{kind.count:,}") for kind in kinds), default=0)
    for kind in kinds[:_MAX_CODES]:
        yield f"{kind.count:>{width},} {kind.code}"
        for image_id, message in kind.examples:
            yield f"    {image_id}: {message}"
        if kind.examples and kind.count > len(kind.examples):
            yield f"    and {kind.count - len(kind.examples):,} more"
    if len(kinds) > _MAX_CODES:
        rest = kinds[_MAX_CODES:]
        yield f"{sum(kind.count for kind in rest):,} of {counted(len(rest), 'more code')}"


def _classes(overview: Overview) -> Iterator[str]:
    if not overview.counts.annotated:
        return
    found = list(overview.classes.items())
    total = sum(overview.classes.values())
    known = len(overview.run.categories) if overview.run else 0
    classes = (
        f"{len(found)} of {counted(known, 'class', 'classes')}" if known else counted(len(found), "class", "classes")
    )
    yield f"{counted(total, 'detection')}, {classes}"
    rows = [(n, name) for name, n in found[:_MAX_CLASSES]]
    if rest := found[_MAX_CLASSES:]:
        rows.append((sum(n for _, n in rest), f"of {counted(len(rest), 'more class', 'more classes')}"))
    yield from _table(rows)


def _table(rows: Sequence[tuple[int, str]]) -> list[str]:
    width = max((len(f"{n:,}") for n, _ in rows), default=0)
    return [f"  {n:>{width},} {text}" for n, text in rows]


def _speed(overview: Overview) -> Iterator[str]:
    run = overview.run
    if run is None:
        return
    if overview.standing is Standing.RUNNING and not overview.is_unheard:
        began_at = begun_at(overview.run_id)
        seconds = (overview.looked_at - began_at).total_seconds() if began_at else 0.0
        if seconds > 0 and overview.written:
            rate = overview.written / seconds
            to_go = f", {duration(overview.pending / rate)} to go" if overview.pending else ""
            yield f"{counted(overview.written, 'image')} written by this run, {rate:.2f} img/s{to_go}"
    elif run.this_run.rounds:
        yield from _figures(run.this_run, "the run before" if overview.is_unheard else "this run")


def _figures(figures: ThisRun, whose: str) -> Iterator[str]:
    # Reports of earlier releases do not tell what was written.
    whole = figures.written == figures.images or (figures.written == 0 and figures.images_per_second > 0)
    images = counted(figures.images, "image") if whole else f"{figures.written:,} of {counted(figures.images, 'image')}"
    rounds = f", {figures.rounds} rounds" if figures.rounds > 1 else ""
    time = f"{duration(figures.seconds)} with start-up"
    yield f"{whose}: {images} in {time}, {figures.images_per_second:.2f} img/s{rounds}"
    yield from (f"{name}: {value}" for name, value in costs(figures).items())
    split = figures.time_split_s
    if work := sum(split.values()):
        shares = ", ".join(f"{name} {seconds / work:.0%}" for name, seconds in split.items())
        yield f"work: {shares}; replicas busy {figures.replica_busy_share:.0%}"


def costs(figures: ThisRun) -> dict[str, str]:
    """What the replicas of a run took, and what they gave for it, by what it is called; nothing if not known."""
    has_gpus = figures.gpu_seconds.held > 0
    seconds = figures.gpu_seconds if has_gpus else figures.replica_seconds
    if not seconds.held:
        return {}
    parts = {"busy": seconds.busy, "idle": seconds.idle, "lost to deaths": seconds.lost}
    told = ", ".join(f"{duration(s)} {name}" for name, s in parts.items())
    words = {"GPU time" if has_gpus else "replica time": f"{duration(seconds.held)} held: {told}"}
    uses = figures.by_accelerator.items()
    rates = [f"{use.images_per_gpu_hour:,.0f} on {name}" for name, use in uses if use.images_per_gpu_hour is not None]
    if rates:
        words["images a GPU-hour"] = ", ".join(rates)
    if figures.cost is not None:
        words["cost"] = f"{figures.cost:,.2f}"
    return words


def _files(overview: Overview) -> Iterator[str]:
    kept = f", {overview.num_kept:,} more for the table's earlier versions" if overview.num_kept else ""
    files, rows = counted(overview.num_files, "file"), counted(overview.counts.rows, "row")
    yield f"{files}, {rows}{kept}, {size(overview.num_bytes)}"
    if overview.num_unknown_origin:
        rows = counted(overview.num_unknown_origin, "row")
        yield f"{rows} of an earlier release, which do not say which version of a picture they were made from"


def _model(overview: Overview) -> Iterator[str]:
    says = overview.run.identity if overview.run else {}
    made = {(identity.model_name, identity.weights_sha256) for identity in overview.identities}
    if not made and says.get("model_name"):
        made = {(str(says["model_name"]), str(says.get("weights_sha256")))}
    for name, digest in sorted(made):
        yield f"{name}, weights {digest[:_DIGEST_LENGTH]}"
    source = says.get("source")
    if isinstance(source, dict) and source.get("file"):
        known = [f"{key} {str(source[key])[:_DIGEST_LENGTH]}" for key in ("layout", "sha256") if source.get(key)]
        yield f"from {source['file']}" + (f" ({', '.join(known)})" if known else "")


def _settings(overview: Overview) -> Iterator[str]:
    config = overview.run.config if overview.run else {}
    manifest, model, output = (_part(config, name) for name in ("manifest", "model", "output"))
    if "uri" in manifest:
        yield f"manifest {manifest['uri']} ({manifest.get('format')})"
    if overview.run and overview.run.image_root is not None:
        yield f"images below {overview.run.image_root}"
    if "checkpoint" in model:
        yield f"checkpoint {model['checkpoint']}"
    if content := _part(_content(overview), "model"):
        settings = {"precision": content.get("precision"), **_part(content, "settings")}
        thresholds = len(_part(content, "class_thresholds"))
        more = [counted(thresholds, "class threshold")] if thresholds else []
        yield ", ".join([f"{name} {value}" for name, value in settings.items() if value is not None] + more)
    if "max_failed_fraction" in output:
        yield f"max_failed_fraction {output['max_failed_fraction']}"


def _content(overview: Overview) -> Any:
    """The settings that decide what is in the rows, as the files have them."""
    says = overview.run.identity.get("content_config") if overview.run else None
    text = overview.identities[0].content_config if overview.identities else says
    try:
        return json.loads(text) if isinstance(text, str) else {}
    except (ValueError, RecursionError):
        return {}


def _part(values: Any, name: str) -> dict[str, Any]:
    """A section of settings; empty where there is none, whatever stands there."""
    found = values.get(name) if isinstance(values, dict) else None
    return found if isinstance(found, dict) else {}


def _code(overview: Overview) -> Iterator[str]:
    versions = sorted({identity.code_version for identity in overview.identities})
    ran = overview.run.code.get("version") if overview.run else None
    if versions or ran:
        yield f"maskfleet {', '.join(versions or [str(ran)])}"
    runs = len({identity.run_id for identity in overview.identities})
    if runs > 1:
        yield f"rows of {runs:,} runs"


def _at(moment: datetime) -> str:
    return f"{moment.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def printable(text: str) -> str:
    """A line without secrets, without characters that a terminal would obey, and no longer than a person reads."""
    text = hide_secrets(text)
    text = text if len(text) <= _MAX_LENGTH else text[: _MAX_LENGTH - 1] + "…"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)

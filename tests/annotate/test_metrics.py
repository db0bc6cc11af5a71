"""What of a run is counted and what is set, without Ray; tests/deploy/test_monitoring.py sees it on the endpoint."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.annotate import metrics
from pipeline.annotate.metrics import METRICS, RunMetrics
from pipeline.annotate.progress import Progress, Snapshot
from pipeline.annotate.replica_time import Used
from pipeline.annotate.stages.stage import StageCounts
from pipeline.annotations.run_json import Seconds

Series = tuple[str, tuple[tuple[str, str], ...]]


class FakeMetric:
    """Remembers values by name and labels; a second metric of the same name is an error, as in Ray."""

    series: dict[Series, float] = {}  # noqa: RUF012 as a registry
    labels: dict[str, tuple[str, ...]] = {}  # noqa: RUF012

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        assert name not in self.labels
        assert description
        self.name = name
        self.labels[name] = tag_keys

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert value > 0  # Ray refuses anything else
        self._set(self.series.get(self._key(tags), 0.0) + value, tags)

    def set(self, value: float, tags: dict[str, str]) -> None:
        self._set(value, tags)

    def _key(self, tags: dict[str, str]) -> Series:
        assert tuple(tags) == self.labels[self.name]
        return self.name, tuple(tags.items())

    def _set(self, value: float, tags: dict[str, str]) -> None:
        self.series[self._key(tags)] = value


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[Series, float]]:
    FakeMetric.series, FakeMetric.labels = {}, {}
    monkeypatch.setattr(metrics, "Counter", FakeMetric)
    monkeypatch.setattr(metrics, "Gauge", FakeMetric)
    metrics._made.cache_clear()
    yield FakeMetric.series
    metrics._made.cache_clear()


def value(name: str, **labels: str) -> float | None:
    return FakeMetric.series.get((f"maskfleet_{name}", (("run", labels.pop("run", "r")), *labels.items())))


def moment(total: int = 100, actors: int = 2, ready: int = 2, segmenting_s: float = 10.0, **counts: Any) -> Progress:
    used = {"CPU": Used(replicas=Seconds.of(24.0, 15.0, 0.0), ready_s=20.0)}
    return Progress(total, Snapshot(StageCounts(**counts), segmenting_s, ready, ready, used), 30.0, actors, 8)


def test_what_the_terminal_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000.0)
    run = RunMetrics("r")
    counts = {
        "decoded": 60,
        "segmented": 50,
        "written": 40,
        "segment_s": 15.0,
        "fetch_s": 6.0,
        "batches": 8,
        "batched": 48,
    }
    run.set(moment(ready=1, **counts, failed=Counter(timeout=3)))
    assert value("images_written_total") == 40
    assert value("images_failed_total", code="timeout") == 3
    assert value("stage_seconds_total", stage="segment") == 15.0
    assert value("stage_seconds_total", stage="fetch") == 6.0
    assert value("stage_seconds_total", stage="write") is None
    assert (value("images_due"), value("images_pending")) == (100, 60)
    assert (value("images_per_second"), value("eta_seconds")) == (5.0, 10.0)
    assert value("batch_fill_ratio") == 0.75
    assert (value("replicas_wanted"), value("replicas_ready"), value("replicas_busy_ratio")) == (2, 1, 0.75)
    assert value("progress_timestamp_seconds") == 1_800_000_000.0


def test_counters_grow_by_what_came_since() -> None:
    run = RunMetrics("r")
    for written, failed in ((0, 0), (10, 1), (10, 1), (25, 4)):
        run.set(moment(written=written, failed=Counter(not_found=failed)))
    assert (value("images_written_total"), value("images_failed_total", code="not_found")) == (25, 4)


def test_a_monitor_that_begins_anew_takes_nothing_back() -> None:
    run = RunMetrics("r")
    for written, seconds in ((30, 3.0), (0, 0.0), (5, 0.25)):
        run.set(moment(written=written, segment_s=seconds, failed=Counter(not_found=written)))
    assert value("images_written_total") == 35
    assert value("images_failed_total", code="not_found") == 35
    assert value("stage_seconds_total", stage="segment") == 3.25


def test_time_to_go_is_unknown_before_the_first_image() -> None:
    run = RunMetrics("r")
    run.set(moment(segmenting_s=0.0))
    assert value("eta_seconds") is None
    assert (value("images_pending"), value("images_per_second")) == (100, 0)


def test_the_time_of_the_last_progress_stands_still_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    run, clock = RunMetrics("r"), iter((1000.0, 1002.0))
    monkeypatch.setattr(time, "time", lambda: next(clock))
    run.set(moment())
    for images, expected in ((0, 1000.0), (4, 1002.0), (4, 1002.0)):
        run.set(moment(decoded=images))
        assert value("progress_timestamp_seconds") == expected


@pytest.mark.parametrize("pending", [0, 60])
def test_at_the_end_nothing_moves_and_what_is_left_is_pending(pending: int) -> None:
    run = RunMetrics("r")
    run.end(moment(segmented=100, written=100 - pending, segment_s=5.0, batches=20, batched=100), pending)
    assert value("images_pending") == pending
    still = [value(name) for name in ("images_per_second", "eta_seconds", "replicas_ready", "replicas_busy_ratio")]
    assert still == [0, 0, 0, 0]
    assert value("images_written_total") == 100 - pending
    names = {name for name, _ in FakeMetric.series}
    assert names == {metric.name for metric in METRICS} - {"maskfleet_images_failed_total"}


def test_runs_of_one_process_are_apart() -> None:
    for run, written in (("a", 3), ("b", 5)):
        RunMetrics(run).set(moment(written=written))
    assert (value("images_written_total", run="a"), value("images_written_total", run="b")) == (3, 5)

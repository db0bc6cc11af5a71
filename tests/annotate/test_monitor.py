"""The run's monitor: as a plain class, and as the actor that workers talk to."""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import Any

import pytest
import ray

from pipeline.annotate.monitor import MonitorClient, RunMonitor, start_monitor
from pipeline.annotate.progress import Snapshot
from pipeline.annotate.stages.guard import Deadline, run_guarded
from pipeline.annotate.stages.stage import StageCounts


class TestPlainClass:
    def test_counts_add_up(self) -> None:
        run = RunMonitor()
        run.add(StageCounts(decoded=4, fetch_s=0.5))
        run.add(StageCounts(decoded=3, failed=Counter(not_found=1)))
        assert run.snapshot() == Snapshot(StageCounts(decoded=7, fetch_s=0.5, failed=Counter(not_found=1)), 0.0)

    def test_time_runs_from_the_begin_of_the_first_model_call(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: now)
        run = RunMonitor()
        run.add(StageCounts(decoded=4))
        now = 110.0
        assert run.snapshot().segmenting_s == 0.0
        run.add(StageCounts(segmented=4, segment_s=2.0))
        assert run.snapshot().segmenting_s == pytest.approx(2.0)
        now = 115.0
        run.add(StageCounts(segmented=4, segment_s=3.0))
        assert run.snapshot().segmenting_s == pytest.approx(7.0)
        assert run.snapshot().counts.segment_s == pytest.approx(5.0)

    def test_a_snapshot_stays_as_it_is(self) -> None:
        run = RunMonitor()
        run.add(StageCounts(decoded=1, failed=Counter(not_found=1)))
        before = run.snapshot()
        run.add(StageCounts(decoded=98, failed=Counter(not_found=1)))
        assert before.counts == StageCounts(decoded=1, failed=Counter(not_found=1))

    def test_is_a_guard(self) -> None:
        run = RunMonitor()
        assert run.begin("decode", [1, 2]) == [0, 0]
        run.end("decode", [1])
        assert run.begin("decode", [1, 2]) == [0, 1]


@pytest.mark.ray
@pytest.mark.timeout(120)
@pytest.mark.usefixtures("ray_cluster")
class TestActor:
    def test_report(self) -> None:
        handle = start_monitor()
        client = MonitorClient(handle)
        client.report(StageCounts(encoded=5, fetch_s=0.0, failed=Counter(not_found=2)))
        client.report(StageCounts(encoded=1, decode_s=0.5))
        counts = StageCounts(encoded=6, decode_s=0.5, failed=Counter(not_found=2))
        assert ray.get(handle.snapshot.remote()) == Snapshot(counts, 0.0)

    def test_guards_across_processes(self) -> None:
        handle = start_monitor()

        @ray.remote(num_cpus=0.1, max_retries=2)
        def stage(ids: list[int], monitor_handle: Any) -> list[Any]:
            def work(members: list[int]) -> list[Any]:
                if any(ids[m] == 13 for m in members):
                    os._exit(1)
                return [f"done {ids[m]}" for m in members]

            done = run_guarded(MonitorClient(monitor_handle), "decode", ids, work)
            ray.get(monitor_handle.snapshot.remote())  # what came before it has arrived, the rows' end too
            return done

        first, culprit, last = ray.get(stage.remote([1, 13, 2], handle))
        assert (first, last) == ("done 1", "done 2")
        assert (culprit.stage, culprit.code) == ("decode", "process_killed")
        assert "2 times" in culprit.message
        assert MonitorClient(handle).begin("decode", [1, 2]) == [0, 0]

    def test_a_row_that_takes_too_long_ends_its_process_twice_and_then_fails(self) -> None:
        handle = start_monitor()

        @ray.remote(num_cpus=0.1, max_retries=2)
        def stage(ids: list[int], monitor_handle: Any) -> list[Any]:
            deadline = Deadline(0.5, "images.decode_timeout_s")

            def work(members: list[int]) -> list[Any]:
                for m in members:
                    with deadline.step([m]):
                        time.sleep(100 if ids[m] == 13 else 0)
                return [f"done {ids[m]}" for m in members]

            done = run_guarded(MonitorClient(monitor_handle), "decode", ids, work, deadline)
            ray.get(monitor_handle.snapshot.remote())
            return done

        first, slow, last = ray.get(stage.remote([1, 13, 2], handle))
        assert (first, last) == ("done 1", "done 2")
        assert (slow.stage, slow.code) == ("decode", "timeout")
        assert MonitorClient(handle).begin("decode", [1, 2]) == [0, 0]

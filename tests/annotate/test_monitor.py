"""The run's monitor: as a plain class, as the actor that workers talk to, and in how many messages they do."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from pipeline.annotate import monitor
from pipeline.annotate.monitor import TELL_AFTER_S, MonitorClient, RunMonitor, Told, start_monitor
from pipeline.annotate.progress import Snapshot
from pipeline.annotate.replica_time import ReplicaClock
from pipeline.annotate.stages.guard import Deadline, run_guarded
from pipeline.annotate.stages.stage import StageCounts


def told(**counts: Any) -> Told:
    return Told(StageCounts(**counts))


def until(asked: Any, wanted: Any, timeout_s: float = 20.0) -> None:
    """Wait for what is told a little later."""
    give_up_at = time.monotonic() + timeout_s
    while (found := asked()) != wanted and time.monotonic() < give_up_at:
        time.sleep(0.02)
    assert found == wanted


class TestPlainClass:
    def test_counts_add_up(self) -> None:
        run = RunMonitor()
        run.hear("p", told(decoded=4, fetch_s=0.5))
        run.hear("p", told(decoded=3, failed=Counter(not_found=1)))
        assert run.snapshot() == Snapshot(StageCounts(decoded=7, fetch_s=0.5, failed=Counter(not_found=1)), 0.0)

    def test_time_runs_from_the_begin_of_the_first_model_call(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: now)
        run = RunMonitor()
        run.hear("p", told(decoded=4))
        now = 110.0
        assert run.snapshot().segmenting_s == 0.0
        run.hear("p", told(segmented=4, segment_s=2.0))
        assert run.snapshot().segmenting_s == pytest.approx(2.0)
        now = 115.0
        run.hear("p", told(segmented=4, segment_s=3.0))
        assert run.snapshot().segmenting_s == pytest.approx(7.0)
        assert run.snapshot().counts.segment_s == pytest.approx(5.0)

    def test_orders_outlive_it_up_to_one_that_was_cut_off(self, tmp_path: Path) -> None:
        journal = tmp_path / "orders"
        run = RunMonitor(str(journal))
        assert run.settle("a/0", b"\n 0") == b"\n 0"
        assert run.settle("a/0", b"other") == b"\n 0"
        assert run.settle("a/1", b"") == b""
        journal.write_bytes(journal.read_bytes() + b"a/1 Y3V0")
        run = RunMonitor(str(journal))
        assert run.settle("a/0", b"other") == b"\n 0"
        assert run.settle("a/1", b"second") == b"second"
        assert RunMonitor(str(journal)).settle("a/1", b"other") == b"second"
        run.end()
        assert not journal.exists()

    def test_orders_are_settled_where_none_can_be_written_down(self, tmp_path: Path) -> None:
        run = RunMonitor(str(tmp_path / "no folder" / "orders"))
        assert [run.settle("a/0", order) for order in (b"first", b"other")] == [b"first", b"first"]

    def test_a_snapshot_stays_as_it_is(self) -> None:
        run = RunMonitor()
        run.hear("p", told(decoded=1, failed=Counter(not_found=1)))
        before = run.snapshot()
        run.hear("p", told(decoded=98, failed=Counter(not_found=1)))
        assert before.counts == StageCounts(decoded=1, failed=Counter(not_found=1))

    def test_is_a_guard(self) -> None:
        run = RunMonitor()
        assert run.begin("p", Told(), "decode", [1, 2]) == [0, 0]
        assert run.begin("p", Told(ends=(("decode", [1]),)), "decode", [1, 2]) == [0, 1]


class FakeHandle:
    """A monitor in this process, and what it was called for."""

    def __init__(self) -> None:
        self.run = RunMonitor()
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def remote(*args: Any) -> Any:
            self.calls.append(name)
            return getattr(self.run, name)(*args)

        return SimpleNamespace(remote=remote)


@pytest.fixture
def handle(monkeypatch: pytest.MonkeyPatch) -> FakeHandle:
    monkeypatch.setattr(monitor, "ray", SimpleNamespace(get=lambda answer, timeout=None: answer))
    return FakeHandle()


class TestMessages:
    """What a process adds up, and when it tells it."""

    def test_a_block_is_one_call_while_others_follow(self, handle: FakeHandle) -> None:
        client = MonitorClient(handle)
        for block in range(10):
            run_guarded(client, "segment", [2 * block, 2 * block + 1], lambda members: members)
            client.report(StageCounts(segmented=2, failed=Counter(bad=1)))
        assert handle.calls == ["begin"] * 10
        until(lambda: handle.run.snapshot().counts, StageCounts(segmented=20, failed=Counter(bad=10)))
        assert handle.calls == ["begin"] * 10 + ["hear"]
        assert handle.run.begin("another", Told(), "segment", list(range(20))) == [0] * 20
        time.sleep(2 * TELL_AFTER_S)  # nothing to tell: nothing is told
        assert handle.calls == ["begin"] * 10 + ["hear"]

    def test_all_clients_and_threads_of_a_process_share_what_is_told(self, handle: FakeHandle) -> None:
        clients = [MonitorClient(handle) for _ in range(8)]

        def work(client: MonitorClient) -> None:
            for _ in range(100):
                client.report(StageCounts(decoded=1))

        threads = [threading.Thread(target=work, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        until(lambda: handle.run.snapshot().counts.decoded, 800)
        assert len(handle.calls) <= 2

    def test_what_is_to_be_told_outlives_the_stage(self, handle: FakeHandle) -> None:
        MonitorClient(handle).report(StageCounts(written=7))
        until(lambda: handle.run.snapshot().counts.written, 7)

    def test_nothing_is_kept_of_a_run_that_is_over(self, handle: FakeHandle) -> None:
        before = len(monitor._SENDERS)
        client = MonitorClient(handle)
        client.begin("segment", [1])
        assert len(monitor._SENDERS) == before + 1
        del client
        assert len(monitor._SENDERS) == before

    def test_a_process_that_may_be_ended_tells_all_before(self, handle: FakeHandle) -> None:
        client = MonitorClient(handle)
        run_guarded(client, "encode", [1, 2], lambda members: members)
        client.report(StageCounts(encoded=2))
        client.report_now(StageCounts(written=2))
        assert handle.calls == ["begin", "hear"]
        assert handle.run.snapshot().counts == StageCounts(encoded=2, written=2)
        assert handle.run.begin("next", Told(), "encode", [1, 2]) == [0, 0]

    def test_that_a_row_was_survived_alone_is_told_at_once(self, handle: FakeHandle) -> None:
        handle.run.begin("dead", Told(), "decode", [1, 2])
        run_guarded(MonitorClient(handle), "decode", [1, 2, 3], lambda members: members)
        assert handle.calls == ["begin", "retry", "survive", "retry", "survive"]
        assert handle.run.begin("next", Told(), "decode", [1, 2, 3]) == [0, 0, 0]

    def test_the_last_words_come_after_all_else(self, handle: FakeHandle) -> None:
        client = MonitorClient(handle)
        client.begin("decode", [1])
        client.end("decode", [1])
        client.begin("decode", [2, 3])
        client.expire("decode", [2], [3])
        assert handle.run.begin("next", Told(), "decode", [1, 2, 3]) == [0, 1, 0]
        assert client.has_expired("decode", 2)

    def test_a_replica_is_told_of_with_all_else_and_now_and_then(
        self, handle: FakeHandle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(monitor, "HEARTBEAT_S", 0.3)
        client, replica = MonitorClient(handle), ReplicaClock("a", "CPU", 0.0)
        client.follow(replica)
        until(lambda: handle.run.snapshot().starting, 1)
        replica.loaded()
        with replica.working(7):
            client.begin("segment", [1])
            assert handle.run.snapshot().ready == 1
            held = handle.run.snapshot().used.replicas.held
            give_up_at = time.monotonic() + 20
            while handle.run.snapshot().used.replicas.held == held and time.monotonic() < give_up_at:
                time.sleep(0.02)
            assert handle.calls == ["hear", "begin", "hear"]
        replica.end()
        client.say_goodbye()
        assert (handle.run.snapshot().starting, handle.run.snapshot().used.images) == (0, 7)
        said = len(handle.calls)
        time.sleep(0.7)
        assert len(handle.calls) == said

    def test_an_order_is_settled_once(self, handle: FakeHandle) -> None:
        client = MonitorClient(handle)
        assert [client.settle("7:0"), client.settle("7:0", b"ba"), client.settle("7:0", b"ab")] == [b"", b"ba", b"ba"]


class Kills:
    """Remembers how many processes are to die yet."""

    def __init__(self, count: int) -> None:
        self.count = count

    def wants_one(self) -> bool:
        self.count -= 1
        return self.count >= 0


@pytest.mark.ray
@pytest.mark.timeout(120)
@pytest.mark.usefixtures("ray_cluster")
class TestActor:
    def test_report_from_another_process(self) -> None:
        handle = start_monitor()

        @ray.remote(num_cpus=0.1)
        def stage(client: MonitorClient) -> None:
            client.report(StageCounts(encoded=5, failed=Counter(not_found=2)))
            client.report(StageCounts(encoded=1, decode_s=0.5))

        ray.get(stage.remote(MonitorClient(handle)))  # told when the task is over
        counts = StageCounts(encoded=6, decode_s=0.5, failed=Counter(not_found=2))
        until(lambda: ray.get(handle.snapshot.remote()), Snapshot(counts, 0.0))

    def test_what_is_bound_to_a_client_shares_its_messages_there_too(self) -> None:
        @ray.remote(num_cpus=0.1)
        def stage(client: MonitorClient, bound: list[Any]) -> bool:
            return bound[0].__self__._sender is client._sender

        client = MonitorClient(start_monitor())
        assert ray.get(stage.remote(client, [client.report]))

    def test_a_kill_when_the_work_is_done_costs_no_image(self) -> None:
        """Twice, before it is told that the rows were survived: they come back, and not one is refused."""
        handle = start_monitor()
        kills = ray.remote(num_cpus=0)(Kills).remote(2)

        @ray.remote(num_cpus=0.1, max_retries=4)
        def stage(ids: list[int], client: MonitorClient) -> list[Any]:
            done = run_guarded(client, "decode", ids, lambda members: [f"done {ids[m]}" for m in members])
            if ray.get(kills.wants_one.remote()):
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        ids = list(range(6))
        assert ray.get(stage.remote(ids, MonitorClient(handle))) == [f"done {i}" for i in ids]

    def test_a_monitor_that_is_killed_begins_again(self) -> None:
        handle = start_monitor()
        client = MonitorClient(handle)
        assert client.begin("decode", [1]) == [0]
        client.report(StageCounts(decoded=1))
        until(lambda: ray.get(handle.snapshot.remote()).counts.decoded, 1)
        ray.kill(handle, no_restart=False)
        until(lambda: ray.get(handle.snapshot.remote()).counts.decoded, 0)  # the kill is not waited for
        assert client.begin("decode", [1]) == [0]  # its books are empty, and the run goes on
        client.report(StageCounts(decoded=2))
        until(lambda: ray.get(handle.snapshot.remote()).counts.decoded, 2)

    def test_guards_across_processes(self) -> None:
        handle = start_monitor()

        @ray.remote(num_cpus=0.1, max_retries=2)
        def stage(ids: list[int], monitor_handle: Any) -> list[Any]:
            def work(members: list[int]) -> list[Any]:
                if any(ids[m] == 13 for m in members):
                    os._exit(1)
                return [f"done {ids[m]}" for m in members]

            return run_guarded(MonitorClient(monitor_handle), "decode", ids, work)

        first, culprit, last = ray.get(stage.remote([1, 13, 2], handle))
        assert (first, last) == ("done 1", "done 2")
        assert (culprit.stage, culprit.code) == ("decode", "process_killed")
        assert "2 times" in culprit.message
        time.sleep(2 * TELL_AFTER_S)  # until the ends of the other rows are told
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

            return run_guarded(MonitorClient(monitor_handle), "decode", ids, work, deadline)

        first, slow, last = ray.get(stage.remote([1, 13, 2], handle))
        assert (first, last) == ("done 1", "done 2")
        assert (slow.stage, slow.code) == ("decode", "timeout")
        time.sleep(2 * TELL_AFTER_S)  # until the ends of the other rows are told
        assert MonitorClient(handle).begin("decode", [1, 2]) == [0, 0]

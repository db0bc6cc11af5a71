"""What a person sees of a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from pipeline.annotate.config import StopConfig
from pipeline.annotate.progress import FailureWatch, Progress, Snapshot
from pipeline.annotate.replica_time import Used
from pipeline.annotate.stages.stage import StageCounts
from pipeline.annotations.run_json import Seconds

HALFWAY = Snapshot(
    StageCounts(
        segmented=50,
        encoded=46,
        written=40,
        failed=Counter({"not_found": 3, "corrupt_image": 2}),
        batches=8,
        batched=51,
        segment_s=15.0,
        fetch_s=6.0,
        decode_s=3.0,
        encode_s=4.5,
        write_s=1.5,
    ),
    segmenting_s=10.0,
    starting=2,
    ready=2,
    by_accelerator={
        "NVIDIA H100": Used(30, Seconds.of(20.0, 11.0, 4.0), Seconds.of(20.0, 11.0, 4.0), ready_s=15.0),
        "CPU": Used(20, Seconds.of(6.0, 4.0, 0.0), Seconds(), ready_s=5.0),
    },
)


def test_by_hand() -> None:
    progress = Progress(100, HALFWAY, 30.0, 2, 8)
    assert (progress.done, progress.segmented, progress.failed) == (40, 50, 5)
    assert progress.rate == pytest.approx(5.0)
    assert progress.busy_share == pytest.approx(0.75)
    assert progress.time_split() == {"fetch": 6.0, "decode": 3.0, "segment": 15.0, "encode": 4.5, "write": 1.5}
    assert progress.line() == (
        "40/100 images written (50 segmented, 5 failed) | 5.0 img/s | "
        "fetch 20% decode 10% segment 50% encode 15% write 5% | batches 80% full | 2 replicas busy 75% | 10.0 s to go"
    )


def test_replicas_that_are_missing_are_said() -> None:
    assert "| 2 of 4 replicas busy 75% |" in Progress(100, HALFWAY, 30.0, 4, 8).line()
    assert "| 2 replicas busy " in Progress(100, replace(HALFWAY, starting=9), 30.0, 1, 8).line()


@pytest.mark.parametrize(
    ("so_far", "line"),
    [
        (Snapshot(), "waiting for 4 replicas of the model to start"),
        (Snapshot(StageCounts(decoded=8, fetch_s=1.0)), "waiting for 4 replicas of the model to start"),
        (Snapshot(starting=2), "loading the model: 0 of 4 replicas ready, waiting for 2 of 4 to start"),
        (Snapshot(starting=4), "loading the model: 0 of 4 replicas ready"),
        (Snapshot(starting=4, ready=2), "the first images are with the model: 2 of 4 replicas ready"),
        (
            Snapshot(starting=3, ready=2),
            "the first images are with the model: 2 of 4 replicas ready, waiting for 1 of 4 to start",
        ),
        (Snapshot(starting=6, ready=5), "the first images are with the model: 5 of 6 replicas ready"),
    ],
)
def test_before_the_first_image_what_is_waited_for(so_far: Snapshot, line: str) -> None:
    progress = Progress(1234, so_far, 12.0, 4, 8)
    assert (progress.done, progress.failed, progress.rate, progress.busy_share) == (0, 0, 0.0, 0.0)
    assert progress.waiting
    assert progress.line() == line


def test_a_run_in_which_no_image_reached_the_model_has_no_figures_of_it() -> None:
    counts = StageCounts(segmented=1, encoded=1, written=1, failed=Counter(not_found=1))
    progress = Progress(1, Snapshot(counts, starting=1, ready=1), 12.0, 1, 8)
    assert progress.line() == "1/1 image written (1 segmented, 1 failed) | none for the model so far"
    assert progress.busy_share == 0.0


def test_retried_tasks_do_not_count_beyond_the_total() -> None:
    progress = Progress(30, HALFWAY, 30.0, 1, 8)
    assert (progress.done, progress.segmented) == (30, 30)
    assert progress.busy_share == pytest.approx(0.75)  # of the replicas that were there, however many are wanted
    assert progress.line().endswith("0.0 s to go")


def so_far(images: int, **failed: int) -> StageCounts:
    return StageCounts(segmented=images, failed=Counter(failed))


class TestFailureWatch:
    def test_a_run_in_which_all_fails_ends_once_enough_images_came_out(self) -> None:
        watch = FailureWatch(StopConfig(failed_fraction=0.9, after=100))
        assert watch.see(so_far(99, not_found=99)) == ""
        assert watch.see(so_far(100, not_found=90, timeout=1)) == (
            "91 of the last 100 images failed (most often: not_found, timeout)"
        )

    def test_only_the_last_images_count(self) -> None:
        """Credentials that are revoked after a million good images end the run as soon as those on the first day do."""
        watch = FailureWatch(StopConfig(failed_fraction=0.9, after=100))
        for images in range(0, 1_000_000, 5000):
            assert watch.see(so_far(images)) == ""
        for more in range(0, 90, 10):
            assert watch.see(so_far(1_000_000 + more, access_denied=more)) == ""
        assert watch.see(so_far(1_000_100, access_denied=100))
        assert len(watch._seen) <= 12

    def test_a_bad_stretch_that_is_over_is_forgotten(self) -> None:
        watch = FailureWatch(StopConfig(failed_fraction=0.5, after=10))
        assert watch.see(so_far(9, not_found=9)) == ""
        assert watch.see(so_far(20, not_found=9)) == ""
        assert watch.see(so_far(30, not_found=9)) == ""

    def test_codes(self) -> None:
        watch = FailureWatch(StopConfig(after=10, codes=("access_denied",)))
        assert watch.see(so_far(50, not_found=50)) == ""
        assert watch.see(so_far(60, not_found=50, access_denied=10))

    def test_switched_off(self) -> None:
        assert FailureWatch(None).see(so_far(10**6, not_found=10**6)) == ""

    def test_a_keeper_that_died_begins_at_nothing(self) -> None:
        watch = FailureWatch(StopConfig(after=10))
        assert watch.see(so_far(1000)) == ""
        assert watch.see(so_far(5, not_found=5)) == ""
        assert watch.see(so_far(12, not_found=12))

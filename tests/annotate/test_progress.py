"""What a person sees of a run."""

from __future__ import annotations

from collections import Counter

import pytest

from pipeline.annotate.progress import Progress, Snapshot
from pipeline.annotate.stages.stage import StageCounts

HALFWAY = Snapshot(
    StageCounts(
        encoded=50,
        failed=Counter({"not_found": 3, "corrupt_image": 2}),
        segment_s=15.0,
        fetch_s=6.0,
        decode_s=3.0,
        encode_s=4.5,
        write_s=1.5,
    ),
    segmenting_s=10.0,
)


def test_by_hand() -> None:
    progress = Progress(100, HALFWAY, 30.0, 2)
    assert (progress.done, progress.failed) == (50, 5)
    assert progress.rate == pytest.approx(5.0)
    assert progress.busy_share == pytest.approx(0.75)
    assert progress.time_split() == {"fetch": 6.0, "decode": 3.0, "segment": 15.0, "encode": 4.5, "write": 1.5}
    assert progress.line() == (
        "50/100 images (5 failed) | 5.0 img/s | fetch 20% decode 10% segment 50% encode 15% write 5% | "
        "replicas busy 75% | 10.0 s to go"
    )


@pytest.mark.parametrize("counts", [StageCounts(), StageCounts(decoded=8, fetch_s=1.0)])
def test_before_the_first_model_call(counts: StageCounts) -> None:
    progress = Progress(1234, Snapshot(counts), 12.0, 1)
    assert (progress.done, progress.failed, progress.rate, progress.busy_share) == (0, 0, 0.0, 0.0)
    assert progress.line().startswith("0/1,234 images (0 failed) | 0.0 img/s")
    assert progress.line().endswith("starting")


def test_retried_tasks_do_not_count_beyond_the_total() -> None:
    progress = Progress(40, HALFWAY, 30.0, 1)
    assert progress.done == 40
    assert progress.busy_share == 1.0
    assert progress.line().endswith("0.0 s to go")

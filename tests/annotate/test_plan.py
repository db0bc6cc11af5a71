from __future__ import annotations

from typing import Any

import pytest

from pipeline.annotate.plan import DRIVER_BLOCKS_PER_SECOND, Plan, assumed_seconds_per_image, make_plan

DEFAULTS: dict[str, Any] = {
    "images": 1000,
    "pending": 1000,
    "batch_size": 8,
    "batch_fill": 1.0,
    "sizes_from": "",
    "images_per_block": 32,
    "images_per_file": 500,
    "actors": (2, 2),
    "gpus_per_actor": 1.0,
    "seconds_per_image": 3.6,
    "measured": True,
}


def plan(**changes: Any) -> Plan:
    return make_plan(**{**DEFAULTS, **changes})


def test_counts_and_hours_by_hand() -> None:
    made = plan()
    assert (made.batches, made.blocks, made.files) == (125, 32, 2)
    assert made.hours == pytest.approx(0.5)  # 1000 x 3.6 s = 1 hour, on two replicas
    assert made.gpu_hours == pytest.approx(1.0)
    assert made.images_per_second == pytest.approx(2 / 3.6)
    assert made.warnings == ()


def test_batches_are_as_full_as_the_sizes_allow() -> None:
    made = plan(batch_fill=0.5, sizes_from="the sizes in the manifest")
    assert made.batches == 250
    assert "work       about 250 batches, 50% full by the sizes in the manifest, in 32 blocks, " in made.text()
    assert "work       at least 125 batches in 32 blocks, " in plan().text()


def test_only_pending_images_cost() -> None:
    made = plan(pending=1)
    assert (made.batches, made.blocks, made.files) == (1, 1, 1)
    assert made.gpu_hours == pytest.approx(0.001)


def test_finished_output() -> None:
    made = plan(pending=0, cluster_cpus=0)
    assert (made.batches, made.blocks, made.files, made.hours, made.gpu_hours) == (0, 0, 0, 0, 0)
    assert made.warnings == ()
    assert "1,000 done, 0 to do" in made.text()


def test_growing_pool_has_two_ends() -> None:
    made = plan(actors=(1, 4))
    assert made.hours == pytest.approx(0.25)
    assert made.longest_hours == pytest.approx(1.0)
    assert made.gpu_hours == pytest.approx(1.0)
    assert "15 min 00 s (1 h 00 min if the pool stays at 1)" in made.text()


def test_what_it_costs_where_a_price_is_known() -> None:
    assert plan().cost is None
    priced = plan(price_per_gpu_hour=2.5, gpus_per_actor=0.5)
    assert priced.cost == pytest.approx(1.25)
    assert "cost       0.5 GPU-hours for 1.25, " in priced.text()


def test_shared_gpus_and_cpus() -> None:
    assert plan(gpus_per_actor=0.5).gpu_hours == pytest.approx(0.5)
    assert plan(gpus_per_actor=0).gpu_hours == 0
    assert "on CPUs" in plan(gpus_per_actor=0).text()


def test_replicas_without_work_do_not_speed_up() -> None:
    made = plan(pending=64, actors=(8, 8))
    assert made.images_per_second == pytest.approx(2 / 3.6)
    assert "6 of them get no work" in made.warnings[0]
    assert made.warnings[0] in made.text()


def test_warns_when_one_driver_cannot_schedule_enough() -> None:
    made = plan(images=10**6, pending=10**6, seconds_per_image=0.01, actors=(8, 8), images_per_block=32)
    assert DRIVER_BLOCKS_PER_SECOND < 8 / 0.01 / 32
    assert any("one driver" in warning for warning in made.warnings)


def test_warns_when_cpus_cannot_feed_the_replicas() -> None:
    fast = {"seconds_per_image": 0.01, "images": 10**6, "pending": 10**6}
    assert any("3.0 CPU cores and 2 are free" in warning for warning in plan(cluster_cpus=2, **fast).warnings)
    assert plan(cluster_cpus=4, **fast).warnings == ()


def test_text_says_whether_the_speed_was_measured() -> None:
    assert "measured" in plan().text()
    assert "assumed" in plan(measured=False).text()
    assert all(len(line) < 120 for line in plan(images=10**9, pending=10**9, measured=False).text().splitlines())


@pytest.mark.parametrize(
    "changes",
    [
        {"pending": 1001},
        {"pending": -1},
        {"batch_size": 0},
        {"actors": (2, 1)},
        {"actors": (0, 1)},
        {"seconds_per_image": 0.0},
        {"seconds_per_image": float("nan")},
        {"gpus_per_actor": -1},
    ],
    ids=str,
)
def test_nonsense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        plan(**changes)


def test_assumed_speeds_agree_with_published_ones() -> None:
    # 10.7 to 13 images/s for Swin-B are published; 12 s an image on two cores were measured for Swin-T.
    swin_b = assumed_seconds_per_image("swin_b", 800, 1333, gpu=True)
    swin_t = assumed_seconds_per_image("swin_t", 800, 1333, gpu=False, cpus=2)
    assert swin_b is not None
    assert swin_t is not None
    assert 10.7 <= 1 / swin_b <= 13
    assert 10 <= swin_t <= 14


def test_assumed_speed_follows_size_and_cores() -> None:
    def seconds(short_side: int, cpus: float = 1) -> float:
        found = assumed_seconds_per_image("swin_t", short_side, 10_000, gpu=False, cpus=cpus)
        assert found is not None
        return found

    assert seconds(400) < seconds(800) < seconds(1600)
    assert seconds(800, cpus=4) == pytest.approx(seconds(800) / 4)
    assert seconds(800, cpus=0) == seconds(800)


def test_unknown_variants_have_no_assumed_speed() -> None:
    assert assumed_seconds_per_image("tiny", 64, 64, gpu=False) is None

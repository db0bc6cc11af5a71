"""Samples through a real Ray Data: what a worker gets is what the draws say, in order, from any step on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from numpy.typing import NDArray
from ray.data import DataContext

from pipeline.annotations.failure import ImageFailure
from pipeline.annotations.pictures import PictureSource
from pipeline.model.batch import Batch
from pipeline.storage.uris import Uri, UriText
from pipeline.train.augment import AugmentConfig
from pipeline.train.data.coco_source import read_coco
from pipeline.train.data.draws import Draws, epoch_order
from pipeline.train.data.labelled import DataError, LabelledTable
from pipeline.train.feed import Feed, collate
from testing.s3_server import S3Server
from tests.train.data_cases import annotation, empty_images, write_coco

pytestmark = pytest.mark.ray

CPU = torch.device("cpu")


def _feed(draws: Draws, batch: int = 2, rank: int = 0, world: int = 1) -> Feed:
    return Feed(ray.put(draws), draws.steps_of(batch * world), batch, rank, world, 0.5, CPU)


def _same(one: Batch, other: Batch) -> bool:
    pairs = [(one.images, other.images), (one.image_sizes, other.image_sizes)]
    for a, b in zip(one.targets, other.targets, strict=True):
        pairs += [(a.boxes, b.boxes), (a.labels, b.labels), (a.masks, b.masks), (a.ignored, b.ignored)]
    return one.image_ids == other.image_ids and all(torch.equal(*pair) for pair in pairs)


@pytest.fixture
def draws(tmp_path: Path) -> Draws:
    objects = [annotation(n, n, [n % 7, 2, 12, 9], 7 if n % 2 else 3) for n in range(1, 40)]
    images, _, _ = read_coco(Uri(write_coco(tmp_path, objects, num_images=43)), Uri(str(tmp_path)))
    augment = AugmentConfig(scale="large_scale_jitter", side=64, scale_range=(0.8, 1.2), copy_paste=0.5)
    return Draws([LabelledTable.of(images)], None, PictureSource(), augment, seed=3)


def test_batches_are_those_of_the_draws(ray_cluster: None, draws: Draws) -> None:
    """43 images in several tasks; the last step is filled up."""
    batches = list(_feed(draws, batch=4).batches(2, 0))
    assert len(batches) == draws.steps_of(4) == 11
    for step, batch in enumerate(batches):
        assert _same(batch, collate([draws.draw(2, 4 * step + at).sample for at in range(4)], CPU))
    rest = list(_feed(draws, batch=4).batches(2, 7))
    assert len(rest) == 4
    assert all(_same(*pair) for pair in zip(rest, batches[7:], strict=True))


def test_a_slow_task_does_not_change_the_order(ray_cluster: None, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class SlowFor(PictureSource):
        """One picture takes longer than all others together. Defined here: workers need not import this file."""

        slow: UriText | None = None

        def read_many(self, uris: Sequence[UriText | None]) -> list[NDArray[np.uint8] | ImageFailure]:
            if self.slow in uris:
                time.sleep(3)
            return super().read_many(uris)

    images, order = empty_images(tmp_path, 64), epoch_order([64], None, 0, 3)
    pictures = SlowFor(slow=images[order[0]].uri)
    draws = Draws([LabelledTable.of(images)], None, pictures, AugmentConfig(scale="none", flip=0), seed=3)
    found = [image_id for batch in _feed(draws, batch=4).batches(0, 0) for image_id in batch.image_ids]
    assert found == (order + 1).tolist()
    assert not DataContext.get_current().execution_options.preserve_order, "other datasets keep their settings"


def test_two_workers_see_together_what_one_sees_with_twice_the_batch(ray_cluster: None, draws: Draws) -> None:
    whole = list(_feed(draws, batch=4).batches(1, 9))
    parts = [list(_feed(draws, batch=2, rank=rank, world=2).batches(1, 9)) for rank in range(2)]
    for step, batch in enumerate(whole):
        assert batch.image_ids == parts[0][step].image_ids + parts[1][step].image_ids
        assert torch.equal(batch.images, torch.cat([part[step].images for part in parts]))


def test_pictures_in_s3(ray_s3: S3Server, tmp_path: Path) -> None:
    uri = write_coco(tmp_path, [annotation(1, 1, [4, 5, 10, 8])], num_images=3)
    for number in (1, 2, 3):
        ray_s3.put("pictures", f"feed/{number}.png", (tmp_path / f"{number}.png").read_bytes())
    images, _, _ = read_coco(Uri(uri), Uri("s3://pictures/feed"))
    draws = Draws([LabelledTable.of(images)], None, PictureSource(), AugmentConfig(scale="none", flip=0), seed=3)
    (batch,) = _feed(draws, batch=3).batches(0, 0)
    assert sorted(batch.image_ids) == [1, 2, 3]
    assert torch.cat([target.boxes for target in batch.targets]).tolist() == [[4, 5, 14, 13]]


def test_what_cannot_be_read_is_said_once(ray_cluster: None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = empty_images(tmp_path, 6)
    (tmp_path / "4.png").write_bytes(b"no picture")
    draws = Draws([LabelledTable.of(images)], None, PictureSource(), AugmentConfig(scale="none"), seed=3)
    feed = _feed(draws, batch=3)
    for epoch in range(2):
        assert all(4 not in batch.image_ids for batch in feed.batches(epoch, 0))
    (said,) = [line for line in caplog.messages if "skipped" in line]
    assert said.startswith("image 4 is skipped: ")
    assert "no known image format" in said


def test_bad_data_stop_the_worker_with_their_own_error(ray_cluster: None, tmp_path: Path) -> None:
    images = [replace(image, size=(30, 20)) for image in empty_images(tmp_path, 3)]
    draws = Draws([LabelledTable.of(images)], None, PictureSource(), AugmentConfig(scale="none"), seed=3)
    with pytest.raises(DataError, match=r"^image \d: the picture is 20 x 30"):
        list(_feed(draws).batches(0, 0))


def test_less_than_a_whole_cpu_is_enough(ray_cluster: None, draws: Draws) -> None:
    """What workers leave free may be the half CPU that a task asks for, and nothing else may be waited for."""

    class Holder:
        """Defined here: its worker need not import this file."""

        def ready(self) -> None:
            """Answers once the CPUs are held."""

    holder = ray.remote(Holder).options(num_cpus=2.5).remote()
    ray.get(holder.ready.remote())
    try:
        assert len(list(_feed(draws, batch=4).batches(0, 9))) == 2
    finally:
        ray.kill(holder)

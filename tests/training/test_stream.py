from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.pictures import PictureSource
from pipeline.training.augment import Augment
from pipeline.training.labelled import DataError, LabelledImage
from pipeline.training.samples import Sample
from pipeline.training.scale_jitter import ScaleJitter
from pipeline.training.stream import SampleStream
from tests.training.data_cases import empty_images, write_picture
from tests.training.sample_cases import assert_equal

AUGMENT = Augment(ScaleJitter(32), copy_paste=0.5)


def _stream(images: list[LabelledImage], **options: object) -> SampleStream:
    defaults = {"sources": [images], "weights": None, "pictures": PictureSource(), "augment": AUGMENT}
    return SampleStream(**{**defaults, "batch": 2, "seed": 5, **options})


def _flat(stream: SampleStream, epoch: int = 0, start: int = 0) -> list[Sample]:
    return [sample for batch in stream.epoch(epoch, start) for sample in batch]


def test_an_epoch_has_every_image_in_batches_of_one_size(tmp_path: Path) -> None:
    stream = _stream(empty_images(tmp_path, 7))
    batches = list(stream.epoch(0))
    assert [len(batch) for batch in batches] == [2] * stream.num_steps == [2] * 4
    assert {sample.image_id for sample in _flat(stream)} == set(range(1, 8))


def test_a_run_that_begins_in_the_middle_goes_on_as_the_other_one_did(tmp_path: Path) -> None:
    images = empty_images(tmp_path, 9)
    whole = _flat(_stream(images), epoch=3)
    rest = _flat(_stream(images, num_threads=4), epoch=3, start=2)
    for first, second in zip(whole[4:], rest, strict=True):
        assert_equal(first, second)


def test_two_workers_see_together_what_one_with_twice_the_batch_sees(tmp_path: Path) -> None:
    images = empty_images(tmp_path, 8)
    whole = list(_stream(images, batch=4).epoch(1))
    parts = [list(_stream(images, rank=rank, world=2).epoch(1)) for rank in range(2)]
    for step, batch in enumerate(whole):
        for first, second in zip(batch, parts[0][step] + parts[1][step], strict=True):
            assert_equal(first, second)


def test_sources_are_mixed_by_weight(tmp_path: Path) -> None:
    images = empty_images(tmp_path, 12)
    stream = _stream([], sources=[images[:2], images[2:]], weights=[1, 3], epoch_size=24, batch=8)
    seen = Counter(sample.image_id for sample in _flat(stream))
    assert (seen[1], seen[2], sum(seen.values())) == (3, 3, 24)


def test_an_unreadable_image_is_replaced_by_the_next_of_its_source_and_counted(tmp_path: Path) -> None:
    images = empty_images(tmp_path, 6)
    (tmp_path / "3.png").unlink()
    (tmp_path / "4.png").write_bytes(b"no picture")
    stream = _stream(images, augment=Augment(flip=0), batch=3)
    seen = Counter(int(sample.pixels[0, 0, 0]) for sample in _flat(stream))
    assert seen == {1: 1, 2: 1, 5: 3, 6: 1}
    assert set(stream.unreadable) == {3, 4}
    assert "no known image format" in stream.unreadable[4]


def test_no_readable_image_at_all_is_an_error(tmp_path: Path) -> None:
    images = [replace(image, uri=str(tmp_path / "gone.png")) for image in empty_images(tmp_path, 3)]
    with pytest.raises(DataError, match=r"source 1: 3 images in a row cannot be read.*image root"):
        _flat(_stream(images))


def test_a_picture_of_another_size_stops_the_run_and_names_the_image(tmp_path: Path) -> None:
    images = empty_images(tmp_path, 3)
    write_picture(tmp_path, 2, (30, 20))
    with pytest.raises(DataError, match="image 2: the picture is 30 x 20"):
        _flat(_stream(images))


def test_copies_come_from_the_same_mix(tmp_path: Path) -> None:
    images = empty_images(tmp_path, 6)
    asked: list[int] = []

    class Recording(Augment):
        def __call__(self, sample: Sample, second: object, rng: np.random.Generator) -> Sample:
            asked.append(int(second().image_id))  # type: ignore[operator]
            return sample

    _flat(_stream([], sources=[images[:1], images[1:]], weights=[9, 1], epoch_size=60, augment=Recording()))
    assert asked.count(1) > 40

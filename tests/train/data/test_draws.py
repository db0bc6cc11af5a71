from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.annotations.pictures import PictureSource
from pipeline.storage.uris import UriText
from pipeline.train.augment import AugmentConfig
from pipeline.train.data.draws import Drawn, Draws, positions
from pipeline.train.data.labelled import DataError, LabelledImage
from pipeline.train.sample.sample import Sample
from tests.train.data_cases import empty_images, write_picture
from tests.train.sample_cases import assert_equal

AUGMENT = AugmentConfig(scale="large_scale_jitter", side=32, copy_paste=0.5)


def _draws(images: list[LabelledImage], **options: object) -> Draws:
    defaults = {"sources": [images], "weights": None, "pictures": PictureSource(), "augment": AUGMENT, "seed": 5}
    return Draws(**{**defaults, **options})  # type: ignore[arg-type]


def _epoch(draws: Draws, epoch: int = 0, batch: int = 2) -> list[Drawn]:
    return [draws.draw(epoch, place) for place in positions(0, draws.steps_of(batch), batch, 0, 1).tolist()]


def test_an_epoch_has_every_image_and_fills_up_its_last_step(tmp_path: Path) -> None:
    draws = _draws(empty_images(tmp_path, 7))
    drawn = _epoch(draws)
    assert len(drawn) == 2 * draws.steps_of(2) == 8
    assert {one.sample.image_id for one in drawn} == set(range(1, 8))
    assert drawn[7].sample.image_id == drawn[0].sample.image_id


def test_a_set_smaller_than_a_step_is_repeated(tmp_path: Path) -> None:
    drawn = _epoch(_draws(empty_images(tmp_path, 3)), batch=8)
    assert sorted(Counter(one.sample.image_id for one in drawn).values()) == [2, 3, 3]


def test_a_sample_does_not_depend_on_what_was_drawn_before(tmp_path: Path) -> None:
    images = empty_images(tmp_path, 9)
    whole = _epoch(_draws(images), epoch=3)
    for place in (7, 2, 5):
        assert_equal(_draws(images).draw(3, place).sample, whole[place].sample)


@given(st.integers(0, 20), st.integers(1, 9), st.integers(1, 4))
def test_workers_share_each_step_as_one_worker_with_a_larger_batch_has_it(start: int, batch: int, world: int) -> None:
    whole = positions(start, start + 3, batch * world, 0, 1).reshape(3, -1)
    parts = [positions(start, start + 3, batch, rank, world).reshape(3, -1) for rank in range(world)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    assert whole.ravel().tolist() == list(range(start * batch * world, (start + 3) * batch * world))


@pytest.mark.parametrize(("batch", "rank", "world"), [(0, 0, 1), (1, 1, 1), (1, -1, 2)])
def test_workers_are_checked(batch: int, rank: int, world: int) -> None:
    with pytest.raises(ValueError, match="no batches"):
        positions(0, 5, batch, rank, world)


def test_sources_are_mixed_by_weight(tmp_path: Path) -> None:
    images = empty_images(tmp_path, 12)
    draws = _draws([], sources=[images[:2], images[2:]], weights=(1, 3), epoch_size=24)
    seen = Counter(one.sample.image_id for one in _epoch(draws, batch=8))
    assert (seen[1], seen[2], sum(seen.values())) == (3, 3, 24)


def test_an_unreadable_image_is_replaced_by_the_next_of_its_source_and_named(tmp_path: Path) -> None:
    images = empty_images(tmp_path, 6)
    (tmp_path / "3.png").unlink()
    (tmp_path / "4.png").write_bytes(b"no picture")
    drawn = _epoch(_draws(images, augment=AugmentConfig(scale="none", flip=0)), batch=3)
    assert Counter(int(one.sample.pixels[0, 0, 0]) for one in drawn) == {1: 1, 2: 1, 5: 3, 6: 1}
    unreadable = dict(pair for one in drawn for pair in one.unreadable)
    assert set(unreadable) == {3, 4}
    assert "no known image format" in unreadable[4]


def test_no_readable_image_at_all_is_an_error(tmp_path: Path) -> None:
    images = [replace(image, uri=UriText(str(tmp_path / "gone.png"))) for image in empty_images(tmp_path, 3)]
    with pytest.raises(DataError, match=r"source 1: 3 images in a row cannot be read.*image root"):
        _epoch(_draws(images))


def test_a_picture_of_another_size_stops_the_run_and_names_the_image(tmp_path: Path) -> None:
    images = empty_images(tmp_path, 3)
    write_picture(tmp_path, 2, (30, 20))
    with pytest.raises(DataError, match="image 2: the picture is 30 x 20"):
        _epoch(_draws(images))


def test_copies_come_from_the_same_mix(tmp_path: Path) -> None:
    images = empty_images(tmp_path, 6)
    asked: list[int] = []

    class Recording(AugmentConfig):
        def __call__(self, sample: Sample, second: object, rng: np.random.Generator) -> Sample:
            asked.append(int(second().image_id))  # type: ignore[operator]
            return sample

    _epoch(_draws([], sources=[images[:1], images[1:]], weights=(9, 1), epoch_size=60, augment=Recording()))
    assert asked.count(1) > 40

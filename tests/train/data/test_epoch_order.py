from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.train.data.draws import epoch_order, image_rng

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=3)


@given(SIZES, st.integers(0, 5), st.integers(0, 1 << 20))
def test_without_weights_an_epoch_visits_every_image_once(sizes: list[int], epoch: int, seed: int) -> None:
    order = epoch_order(sizes, None, epoch, seed)
    assert sorted(order.tolist()) == list(range(sum(sizes)))
    np.testing.assert_array_equal(order, epoch_order(sizes, None, epoch, seed))


def test_epochs_and_seeds_differ() -> None:
    orders = [tuple(epoch_order([50], None, epoch, seed)) for epoch in range(3) for seed in range(3)]
    assert len(set(orders)) == 9


def test_weights_are_shares_of_what_is_visited() -> None:
    order = epoch_order([1000, 50], [3, 1], 0, 0, epoch_size=400)
    assert (len(order), (order >= 1000).sum()) == (400, 100)
    assert np.bincount(order[order >= 1000] - 1000).tolist() == [2] * 50  # none a third time before all came twice


@given(st.integers(1, 30), st.integers(1, 50), st.integers(2, 6))
def test_over_the_epochs_every_image_of_a_source_comes_as_often_as_the_others(
    size: int, visits: int, epochs: int
) -> None:
    orders = [epoch_order([size, 5], [1, 1], epoch, 3, 2 * visits) for epoch in range(epochs)]
    first = np.concatenate(orders)
    counts = np.bincount(first[first < size], minlength=size)
    assert counts.sum() == visits * epochs
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("total", [1, 2, 7, 100])
def test_shares_that_do_not_divide_add_up(total: int) -> None:
    order = epoch_order([10, 10, 10], [1, 1, 1], 0, 0, epoch_size=total)
    assert len(order) == max(3, total)  # no source is forgotten altogether


@pytest.mark.parametrize(
    ("sizes", "weights"), [([], None), ([4, 0], None), ([4], [0.0]), ([4], [float("nan")]), ([4], [1.0, 1.0])]
)
def test_sources_and_weights_are_checked(sizes: list[int], weights: list[float] | None) -> None:
    with pytest.raises(ValueError, match=r"every source|positive weights"):
        epoch_order(sizes, weights, 0, 0)


def test_images_have_random_numbers_of_their_own() -> None:
    drawn = {image_rng(*key).integers(1 << 60) for key in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))}
    assert len(drawn) == 4

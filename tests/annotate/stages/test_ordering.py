"""Orders of images are permutations that take no more calls of the model than the order they came in, mostly fewer."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.annotate.stages.ordering import BatchOrder, count_calls, order_by_shape
from pipeline.images.sizes import input_size

Shapes = NDArray[np.int64]


@st.composite
def batches_and_blocks(draw: st.DrawFn) -> tuple[int, int]:
    batch = draw(st.integers(1, 16))
    block = draw(st.one_of(st.integers(1, 4).map(lambda n: n * batch), st.integers(batch, 64)))
    return batch, block


shapes_in_any_order = st.lists(st.integers(0, 7), max_size=200).map(lambda values: np.array(values, np.int64))


def calls_of_blocks(shapes: Shapes, batch: int, block: int, start: int) -> int:
    """By the predictor's rule, block after block."""
    first = block - start % block
    edges = [0, *range(first, len(shapes), block), len(shapes)]
    parts = [shapes[a:b] for a, b in pairwise(edges)]
    return sum(-(-n // batch) for part in parts for shape, n in Counter(part.tolist()).items() if shape)


@given(shapes_in_any_order, batches_and_blocks(), st.integers(0, 300))
def test_a_permutation_that_never_costs_more(shapes: Shapes, sizes: tuple[int, int], start: int) -> None:
    order = order_by_shape(shapes, *sizes, start)
    assert sorted(order.tolist()) == list(range(len(shapes)))
    before, after = (calls_of_blocks(s, *sizes, start) for s in (shapes, shapes[order]))
    assert (count_calls(shapes, *sizes, start), count_calls(shapes[order], *sizes, start)) == (before, after)
    assert after <= before
    np.testing.assert_array_equal(order, order_by_shape(shapes.copy(), *sizes, start))
    if after == before:
        np.testing.assert_array_equal(order, np.arange(len(shapes)))


@given(shapes_in_any_order, st.integers(1, 16), st.integers(1, 4), st.data())
def test_close_to_what_is_possible(shapes: Shapes, batch: int, batches: int, data: st.DataObject) -> None:
    """No order takes less than full batches and one for the rest of each shape; a block's end cuts one at most."""
    block = batch * batches
    start = block * data.draw(st.integers(0, 3))
    least = sum(-(-n // batch) for shape, n in Counter(shapes.tolist()).items() if shape)
    blocks = -(-len(shapes) // block)
    calls = count_calls(shapes[order_by_shape(shapes, batch, block, start)], batch, block, start)
    assert least <= calls <= least + max(0, blocks - 1)


@given(shapes_in_any_order, batches_and_blocks(), st.randoms(use_true_random=False))
def test_what_was_ordered_stays(shapes: Shapes, sizes: tuple[int, int], random: object) -> None:
    once = shapes[order_by_shape(shapes, *sizes)]
    assert count_calls(once[order_by_shape(once, *sizes)], *sizes) <= count_calls(once, *sizes)


class TestByHand:
    def test_full_batches_come_first_and_the_rest_by_shape(self) -> None:
        shapes = np.array([2, 1, 1, 2, 3, 1, 2, 1, 2, 3, 1], np.int64)
        order = order_by_shape(shapes, 2, 4)
        assert shapes[order].tolist() == [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 1]

    def test_what_is_left_over_is_not_cut_by_the_end_of_a_block(self) -> None:
        # Blocks of 4: sorted as they are, 1 1 1 2 | 2 2 3 would take a call more than 1 1 1 3 | 2 2 2.
        shapes = np.array([1, 2, 1, 2, 3, 1, 2], np.int64)
        order = order_by_shape(shapes, 4, 4)
        assert count_calls(shapes[order], 4, 4) == 3

    def test_the_first_block_may_have_begun(self) -> None:
        shapes = np.array([1, 2, 1, 2, 1, 1], np.int64)
        assert shapes[order_by_shape(shapes, 4, 4, start=2)].tolist() == [2, 2, 1, 1, 1, 1]

    def test_unknown_ones_come_last_in_their_order(self) -> None:
        shapes = np.array([0, 2, 0, 1, 2, 0, 1], np.int64)
        order = order_by_shape(shapes, 2, 2)
        assert order.tolist() == [3, 6, 1, 4, 0, 2, 5]

    def test_none_at_all(self) -> None:
        assert order_by_shape(np.zeros(0, np.int64), 2, 4).tolist() == []
        assert count_calls(np.zeros(0, np.int64), 2, 4) == 0

    def test_an_order_that_is_as_good_is_kept(self) -> None:
        assert order_by_shape(np.array([9, 9, 1, 1], np.int64), 2, 4).tolist() == [0, 1, 2, 3]


class TestSizes:
    ORDER = BatchOrder(800, 1333, batch_size=2, images_per_block=2)

    def test_shapes_are_those_at_which_the_model_pads(self) -> None:
        sizes = np.array([(480, 640), (427, 640), (481, 641), (428, 640), (0, 640), (-1, 5), (640, 480)], np.int64)
        padded = [input_size((h, w), 800, 1333) for h, w in sizes.tolist() if min(h, w) > 0]
        assert padded[0] == padded[2] != padded[1] == padded[3]
        ordered = sizes[self.ORDER.permutation(sizes)].tolist()
        assert ordered == [[480, 640], [481, 641], [427, 640], [428, 640], [640, 480], [0, 640], [-1, 5]]
        assert self.ORDER.num_calls(sizes) == 4 + 1
        assert self.ORDER.num_calls(np.array(ordered)) == 3

    @pytest.mark.parametrize("known", [True, False])
    def test_a_long_manifest(self, known: bool) -> None:
        rng = np.random.default_rng(0)
        actual = rng.choice(np.array([(480, 640), (640, 480), (427, 640), (333, 500)]), 10_000)
        calls = self.ORDER.expected_calls(actual if known else np.zeros_like(actual), actual)
        assert 5000 <= calls <= 5000 + (4 * 3 if known else 4 * 15)
        assert self.ORDER.num_calls(actual) > 6000

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from pycocotools import mask as coco_mask

from pipeline.masks.rle import DamagedRle, RleColumn, decode_runs, encode_toggles, joined_texts, toggle_stride


def encode_pixels(masks: np.ndarray) -> list:
    """[N, H, W] bool through its toggles."""
    num_masks, height, width = masks.shape
    stream = np.zeros((num_masks, height * width + 2), np.int8)
    stream[:, 1:-1] = masks.transpose(0, 2, 1).reshape(num_masks, -1)
    mask, position = np.nonzero(np.diff(stream, axis=1))
    return encode_toggles(mask * toggle_stride(height, width) + position, num_masks, height, width)


@pytest.mark.parametrize("density", [0, 0.001, 0.1, 0.5, 0.9, 1])
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (13, 17), (300, 400)])
def test_equals_pycocotools(density, shape):
    masks = np.random.default_rng(0).random((7, *shape)) < density
    expected = [coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]
    assert encode_pixels(masks) == expected


def test_run_lengths_of_many_digits():
    # Lengths and differences of 1 to 6 five-bit groups, both signs; pycocotools decodes what was put in.
    lengths = [0, 1, 15, 16, 511, 512, 16383, 16384, 524287, 524288, 3, 16777216, 5, 2, 900_000_000, 1]
    rle = encode_toggles(np.cumsum(lengths)[:-1], 1, sum(lengths), 1)[0]
    again = coco_mask.frPyObjects({"size": rle["size"], "counts": lengths}, *rle["size"])
    assert rle == again
    assert coco_mask.area(rle) == sum(lengths[1::2])


def test_toggles_come_in_any_order_and_cancel_in_pairs():
    toggles = np.array([9, 2, 5, 5, 7, 3, 3, 3, 2 + 13, 12, 12 + 13])  # two masks of 12 pixels
    first, second = encode_toggles(toggles, 2, 3, 4)
    column_major = coco_mask.decode([first, second]).transpose(2, 1, 0).reshape(2, -1).tolist()
    assert column_major == [[0, 0, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0], [0] * 2 + [1] * 10]


def test_no_masks():
    assert encode_toggles(np.empty(0, np.int64), 0, 3, 4) == []


# ------------------------------------------------------------------------------------------------------------ decoding
any_masks = st.lists(npst.arrays(np.bool_, npst.array_shapes(min_dims=2, max_dims=2, max_side=12)), max_size=6)


def string_of(mask: np.ndarray) -> bytes:
    return coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]


def runs_of(mask: np.ndarray) -> list[int]:
    """By hand: a run of zeros first."""
    stream = mask.reshape(-1, order="F")
    edges = np.flatnonzero(np.diff(stream, prepend=False))
    return np.diff([0, *edges, stream.size]).tolist()


@given(any_masks)
@settings(deadline=None)
def test_runs_of_what_pycocotools_encodes(masks):
    runs, runs_per_mask = decode_runs([string_of(mask) for mask in masks], np.array([mask.shape for mask in masks]))
    assert [part.tolist() for part in np.split(runs, np.cumsum(runs_per_mask))[:-1]] == list(map(runs_of, masks))


def test_long_runs_as_pycocotools_encodes_them():
    lengths = [0, 1, 15, 16, 511, 512, 16383, 16384, 524287, 524288, 3, 16777216, 5, 2, 900_000_000, 1]
    rle = coco_mask.frPyObjects({"size": [sum(lengths), 1], "counts": lengths}, sum(lengths), 1)
    assert decode_runs([rle["counts"]], np.array(rle["size"]))[0].tolist() == lengths


def test_runs_by_hand():
    # 5, 3, 4 as they are; then 1 as the difference 1 - 3 = -2, and 2 as 2 - 4 = -2: 5-bit numbers from "0" on.
    assert decode_runs([b"534NN"], np.array([[3, 5]]))[0].tolist() == [5, 3, 4, 1, 2]


@given(any_masks.filter(len), st.data())
@settings(deadline=None)
def test_a_damaged_string_is_refused_or_fills_its_mask(masks, data):
    """By pycocotools: its C code reads what was let through, and every pixel of it is of a run."""
    texts, sizes = [string_of(mask) for mask in masks], [mask.shape for mask in masks]
    index = data.draw(st.integers(0, len(masks) - 1))
    text = bytearray(texts[index])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        new = data.draw(st.binary(max_size=2) | st.text("0123OPQo`nN", max_size=2).map(str.encode))
        text[at : at + data.draw(st.integers(0, 2))] = new
    texts[index] = bytes(text)
    try:
        runs, runs_per_mask = decode_runs(texts, np.array(sizes))
    except DamagedRle as error:
        refused = error.index
    else:
        refused = None
    if refused is not None:
        assert refused == index
        return
    own = np.split(runs, np.cumsum(runs_per_mask))[index]
    assert own.sum() == np.prod(sizes[index])
    assert own.min() >= 0
    pixels = coco_mask.decode({"size": list(sizes[index]), "counts": texts[index]})
    ones = np.repeat(np.arange(own.size) % 2, own)
    np.testing.assert_array_equal(pixels.reshape(-1, order="F"), ones)


def text_of(numbers):
    """As COCO writes numbers, whatever they stand for."""
    text = bytearray()
    for number in numbers:
        more = True
        while more:
            group, number = number & 31, number >> 5
            more = number != (-1 if group & 16 else 0)
            text.append(48 + group + 32 * more)
    return bytes(text)


edges = st.sampled_from([1 << 4, 1 << 28, 1 << 29, 1 << 30, 1 << 31, 1 << 32, 1 << 40])
numbers = st.builds(lambda edge, step, sign: sign * edge + step, edges, st.integers(-2, 2), st.sampled_from([0, 1, -1]))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.lists(numbers, min_size=1, max_size=24), st.booleans())
@settings(deadline=None, max_examples=300)
def test_numbers_of_any_size_are_those_of_a_mask_or_refused(first, rest, wraps):
    """Beside a good mask, so that sums may wrap around; by whole numbers of Python's."""
    values = first + rest
    runs = values[:3]
    for value in values[3:]:
        runs.append(runs[-2] + value)
    pixels = sum(runs) % (1 << 32) if wraps else sum(runs)  # as sums of 32 bits would have it
    size, good = [1, max(1, min(pixels, (1 << 62) - 1))], string_of(np.eye(3, 5))
    is_mask = min(runs) >= 0 and sum(runs) == size[1]
    texts, sizes = [good, text_of(values), good], np.array([[3, 5], size, [3, 5]])
    if is_mask:
        found, runs_per_mask = decode_runs(texts, sizes)
        assert np.split(found, np.cumsum(runs_per_mask))[1].tolist() == runs
        return
    with pytest.raises(DamagedRle) as caught:
        decode_runs(texts, sizes)
    assert caught.value.index == 1


DAMAGED = {
    "nothing": (b"", "not a compressed string"),
    "a blank": (b"5 3", "not a compressed string"),
    "beyond the alphabet": (b"5\x7f", "not a compressed string"),
    "not ASCII": ("\u4e2d".encode(), "not a compressed string"),
    "a NUL": (b"5\x003", "not a compressed string"),
    "cut off": (b"5P", "cut off"),
    "negative": (b"00N8", "a run of -2 pixels"),
    "too few": (b"53", r"run lengths of 8 pixels in all for a mask of 3 x 5 \(height x width\)"),
    "too many": (b"5333", "run lengths of 17 pixels"),
    "negative ones that cancel out": (b"?NN?", "a run of -2 pixels"),
    "longer than the mask": (b"`0000", "a run of 16 pixels"),
    "sums that wrap around": (b"ooooooooooo7" * 2 + b"20", "a run of"),
    "endless digits": (b"`" * 100 + b"0", "too many digits"),
}


@pytest.mark.parametrize(("text", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_strings(text, message):
    good = string_of(np.eye(3, 5))
    for texts in ([text], [good, good, text, good]):
        with pytest.raises(DamagedRle, match=message) as caught:
            decode_runs(texts, np.array([[3, 5]] * len(texts)))
        assert caught.value.index == texts.index(text)


def test_one_damaged_string_among_many():
    texts = [string_of(np.eye(3, 5))] * 1000
    assert RleColumn.of([{"size": [3, 5], "counts": text} for text in texts]).areas.tolist() == [3] * 1000
    texts[700] = b"00N8"
    with pytest.raises(DamagedRle, match="a run of -2 pixels") as caught:
        RleColumn.of([{"size": [3, 5], "counts": text} for text in texts])
    assert caught.value.index == 700


def test_a_column_gives_back_what_was_put_in():
    """By index, slice and choice; also where the strings are a part of a longer text."""
    rles = encode_pixels(np.random.default_rng(0).random((5, 13, 17)) < 0.3)
    column = RleColumn.of(rles)
    assert list(column) == column[:] == rles
    chosen = column.take(np.array([3, 0, 3]))
    assert (len(chosen), chosen[:], chosen[-1]) == (3, [rles[3], rles[0], rles[3]], rles[3])
    assert chosen.counts == [chosen[index]["counts"] for index in range(3)]
    assert chosen.areas.tolist() == coco_mask.area([rles[3], rles[0], rles[3]]).tolist()
    text, offsets = joined_texts([b"?", *column.counts, b"?"])
    part = RleColumn.read(text, offsets[1:-1], column.sizes)
    assert part[:] == rles
    assert part.areas.tolist() == column.areas.tolist()

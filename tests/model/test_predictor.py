"""Images of any size in, detections in their own pixels out; one image never changes another's result."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.images.resize import resize_bilinear_uint8
from pipeline.images.sizes import scaled_size
from pipeline.model.detections import DETECTION_ARRAYS, Detections
from pipeline.model.detector import NotFinite
from pipeline.model.device import free_memory
from pipeline.model.files.checkpoints import Checkpoint, CheckpointError, save_checkpoint
from pipeline.model.predictor import Predictor, load_model
from pipeline.model.preprocess import input_shape
from pipeline.model.settings import TestSettings
from testing.pretended_cuda import pretended_cuda
from testing.small_model import SMALL, SMALL_CATEGORIES, SMALL_SETTINGS, picture
from testing.stand_in_detector import calls, plain, stand_in
from tests.model.compare import assert_same
from tests.model.fake_cuda import FakeCuda

# Kernels may sum in another order for another batch size, so a result depends on the batch in the last digits.
ROUNDING_PX, ROUNDING = 1e-2, 1e-4


@pytest.fixture(scope="module")
def predictor(small_checkpoint: Checkpoint) -> Predictor:
    return load_model(small_checkpoint, device="cpu")


def check(found: Detections, image: np.ndarray, settings: TestSettings = SMALL_SETTINGS) -> None:
    """What is promised of every result."""
    n, (height, width) = len(found), image.shape[:2]
    assert found.image_size == (height, width)
    assert (found.boxes.shape, found.scores.shape, found.labels.shape) == ((n, 4), (n,), (n,))
    assert found.masks.shape == (n, 28, 28)
    assert (found.boxes.dtype, found.scores.dtype, found.labels.dtype) == (np.float32, np.float32, np.int64)
    assert n <= settings.max_detections
    assert np.isfinite(found.boxes).all()
    assert (found.boxes[:, :2] <= found.boxes[:, 2:]).all()
    assert (found.boxes >= 0).all()
    assert (found.boxes[:, 2:] <= np.array([width, height]) * (1 + 1e-6)).all()
    assert (np.diff(found.scores) <= 0).all()
    assert ((found.scores > settings.score_threshold) & (found.scores <= 1)).all()
    assert ((found.labels >= 0) & (found.labels < SMALL.num_classes)).all()
    assert ((found.masks >= 0) & (found.masks <= 1)).all()
    assert [tuple(rle["size"]) for rle in found.rle()] == [(height, width)] * n


def same(a: Detections, b: Detections) -> None:
    difference = assert_same(a, b)
    assert difference.box_px < ROUNDING_PX
    assert difference.score < ROUNDING
    assert a.image_size == b.image_size


# -------------------------------------------------------------------------------------------------------------- copies
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])  # noqa: S301
def test_copies_find_the_same_and_live_by_themselves(
    small_checkpoint: Checkpoint, copied: Callable[[Predictor], Predictor], precision: str
) -> None:
    first, image = load_model(small_checkpoint, "cpu", precision), picture(60, 90)
    (expected,) = first.predict([image])
    second, detector = copied(first), weakref.ref(first.detector)
    del first
    gc.collect()
    assert detector() is None, "a copy holds the weights of the one it was made from"
    (found,) = second.predict([image])
    assert len(found) > 0
    for name in DETECTION_ARRAYS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


# -------------------------------------------------------------------------------------------------------------- images
SIZES = {
    "landscape": (60, 90),
    "portrait": (111, 50),
    "one pixel": (1, 1),
    "one row": (1, 5000),
    "one column": (5000, 1),
    "sliver": (7, 3000),
    "larger than the input": (400, 300),
    "as large as the input": (96, 160),
}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_any_size(size: tuple[int, int], predictor: Predictor) -> None:
    image = picture(*size)
    found = predictor.predict([image])
    assert len(found) == 1
    assert len(found[0]) > 0
    check(found[0], image)


# name: (what is no image, error, part of the message)
NO_IMAGES: dict[str, tuple[Any, type[Exception], str]] = {
    "grey, two axes": (picture(20, 30)[..., 0], ValueError, r"shape \(20, 30\): expected \(H, W, 3\)"),
    "grey, one channel": (picture(20, 30)[..., :1], ValueError, r"shape \(20, 30, 1\)"),
    "RGBA": (np.zeros((20, 30, 4), np.uint8), ValueError, r"shape \(20, 30, 4\)"),
    "a batch": (np.zeros((2, 20, 30, 3), np.uint8), ValueError, r"shape \(2, 20, 30, 3\)"),
    "channels first": (np.zeros((3, 20, 30), np.uint8), ValueError, r"shape \(3, 20, 30\)"),
    "no rows": (np.zeros((0, 30, 3), np.uint8), ValueError, r"shape \(0, 30, 3\)"),
    "float": (picture(20, 30).astype(np.float32) / 255, TypeError, "is float32: expected uint8"),
    "16 bit": (picture(20, 30).astype(np.uint16), TypeError, "is uint16: expected uint8"),
    "bool": (picture(20, 30) > 9, TypeError, "is bool: expected uint8"),
    "tensor": (torch.zeros(20, 30, 3, dtype=torch.uint8), TypeError, "is a Tensor: expected a numpy array"),
    "path": ("image.jpg", TypeError, "is a str: expected a numpy array"),
    "nothing": (None, TypeError, "is a NoneType: expected a numpy array"),
}


@pytest.mark.parametrize(("value", "error", "message"), NO_IMAGES.values(), ids=NO_IMAGES.keys())
def test_what_is_no_image_is_named_by_index(
    value: Any, error: type[Exception], message: str, predictor: Predictor
) -> None:
    with pytest.raises(error, match=f"image 1 (has )?{message}"):
        predictor.predict([picture(20, 30), value, picture(20, 30)])


def test_no_images(predictor: Predictor) -> None:
    assert predictor.predict([]) == []


ARRAYS = {
    "mirrored view": lambda image: image[:, ::-1],
    "every second pixel": lambda image: np.repeat(np.repeat(image, 2, 0), 2, 1)[::2, ::2],
    "BGR view": lambda image: np.ascontiguousarray(image[..., ::-1])[..., ::-1],
    "Fortran order": np.asfortranarray,
    "channels first in memory": lambda image: np.ascontiguousarray(image.transpose(2, 0, 1)).transpose(1, 2, 0),
}


@pytest.mark.parametrize("view", ARRAYS.values(), ids=ARRAYS.keys())
def test_memory_layout_does_not_matter(view: Any, predictor: Predictor) -> None:
    image = view(picture(60, 90))
    same(predictor.predict([image])[0], predictor.predict([image.copy(order="C")])[0])


@pytest.mark.filterwarnings("error")
def test_read_only_images_are_read_only(predictor: Predictor) -> None:
    image = picture(60, 90)
    before = image.copy()
    expected = predictor.predict([image])[0]
    image.flags.writeable = False
    same(predictor.predict([image])[0], expected)
    assert (image == before).all()


# ------------------------------------------------------------------------------------------------------------- batches
MIXED = [(60, 90), (111, 50), (60, 90), (30, 200), (60, 88), (111, 50), (60, 90), (96, 160)]


@pytest.fixture(scope="module")
def mixed() -> list[np.ndarray]:
    return [picture(*size, seed=i) for i, size in enumerate(MIXED)]


@pytest.fixture(scope="module")
def alone(predictor: Predictor, mixed: list[np.ndarray]) -> list[Detections]:
    """Each image's result by itself."""
    return [predictor.predict([image])[0] for image in mixed]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_results_do_not_depend_on_batch_mates(
    batch_size: int, predictor: Predictor, mixed: list[np.ndarray], alone: list[Detections]
) -> None:
    found = predictor.predict(mixed, batch_size=batch_size)
    assert len(found) == len(mixed)
    for together, single, image in zip(found, alone, mixed, strict=True):
        check(together, image)
        same(together, single)
        np.testing.assert_allclose(together.masks, single.masks, atol=1e-3)


def test_order_of_images_is_order_of_results(
    predictor: Predictor, mixed: list[np.ndarray], alone: list[Detections]
) -> None:
    for together, single in zip(predictor.predict(mixed[::-1]), alone[::-1], strict=True):
        same(together, single)


def test_images_of_one_padded_shape_share_a_batch(predictor: Predictor, mixed: list[np.ndarray]) -> None:
    """And images of different ones never do: padding further would change the result."""
    batches: list[tuple[int, ...]] = []
    hook = predictor.detector.register_forward_pre_hook(lambda _, inputs: batches.append(tuple(inputs[0].shape)))
    predictor.predict(mixed, batch_size=2)
    hook.remove()
    counts = Counter(input_shape(image.shape[:2], SMALL_SETTINGS) for image in mixed)
    assert max(counts.values()) > 2
    expected = [(n, 3, *shape) for shape, count in counts.items() for n in [2] * (count // 2) + [1] * (count % 2)]
    assert sorted(batches) == sorted(expected)


def test_images_resized_before_give_the_same(
    predictor: Predictor, mixed: list[np.ndarray], alone: list[Detections]
) -> None:
    """Brought to the input size elsewhere, with the original size told, and mixed with others that were not."""
    originals = [image.shape[:2] for image in mixed]
    given = [at_input_size(image) if i % 3 else image for i, image in enumerate(mixed)]
    for before, single in zip(predictor.predict(given, image_sizes=originals), alone, strict=True):
        same(before, single)


def at_input_size(image: np.ndarray) -> np.ndarray:
    size = scaled_size(image.shape[:2], SMALL_SETTINGS.short_side, SMALL_SETTINGS.long_side)
    return resize_bilinear_uint8(torch.from_numpy(image).permute(2, 0, 1), size).permute(1, 2, 0).numpy()


def test_every_image_needs_its_original_size(predictor: Predictor) -> None:
    with pytest.raises(ValueError, match="1 image_sizes for 2 images"):
        predictor.predict([picture(20, 30), picture(20, 30)], image_sizes=[(20, 30)])


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_size_must_be_positive(batch_size: int, predictor: Predictor) -> None:
    with pytest.raises(ValueError, match=f"batch_size={batch_size}: expected at least 1"):
        predictor.predict([picture(20, 30)], batch_size=batch_size)


# ------------------------------------------------------------------------------------------------------------ failures
OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
EQUAL = [(60, 90)] * 8  # their padded shape is (96, 160)


class Room:
    """A network in whose memory a few images find room; of each batch that it is given it notes the size."""

    def __init__(self, predictor: Predictor, most: int) -> None:
        self.detector, self.most = predictor.detector, most
        self.batches: list[int] = []
        self.forward = self.detector.forward

    def __call__(self, images: torch.Tensor, *args: Any, **options: Any) -> Any:
        self.batches.append(len(images))
        if len(images) > self.most and images.shape[-1] == 160:
            activations = torch.zeros(3)
            self.kept = weakref.ref(activations)
            raise OUT_OF_MEMORY
        return self.forward(images, *args, **options)


@pytest.fixture
def room(small_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], tuple[Predictor, Room]]:
    def make(most: int) -> tuple[Predictor, Room]:
        predictor = load_model(small_checkpoint, "cpu")
        room = Room(predictor, most)
        monkeypatch.setattr(predictor.detector, "forward", room)
        return predictor, room

    return make


def test_a_batch_too_large_for_the_memory_is_halved_and_that_is_remembered(
    room: Any, alone: list[Detections], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cuda = FakeCuda(monkeypatch)
    predictor, narrow = room(2)
    images = [picture(*size, seed=i) for i, size in enumerate(EQUAL)]
    found = predictor.predict(images, batch_size=8)
    assert narrow.batches == [8, 4, 2, 2, 2, 2]
    assert cuda.emptied == 2
    same(found[0], alone[0])
    narrow.batches.clear()
    assert len(predictor.predict([*images, picture(111, 50), picture(111, 50)], batch_size=8)) == 10
    assert narrow.batches == [2, 2, 2, 2, 2]
    predictor.predict(images[:3] + [picture(111, 50)] * 3, batch_size=8)
    assert narrow.batches[5:] == [2, 1, 3]  # of another shape, which has room
    (record,) = caplog.records
    assert record.getMessage() == (
        "the memory of cpu does not suffice for 8 images of 96 x 160 at once: batches of this size are halved"
    )


def test_what_a_failed_batch_held_is_let_go_before_the_next_try(room: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, narrow = room(1)
    given_back: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append(narrow.kept() is None))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    cuda = torch.device("cuda")
    monkeypatch.setattr("pipeline.model.predictor.free_memory", lambda _, error: free_memory(cuda, error))
    predictor.predict([picture(60, 90)] * 2)
    assert given_back == [True]


def test_an_image_that_does_not_fit_by_itself_fails_alone(room: Any, alone: list[Detections]) -> None:
    predictor, _ = room(0)
    outcomes = predictor.attempt([picture(60, 90), picture(*MIXED[1], seed=1), picture(60, 90)])
    assert [outcomes[i] for i in (0, 2)] == [OUT_OF_MEMORY] * 2
    same(outcomes[1], alone[1])
    with pytest.raises(torch.OutOfMemoryError):
        predictor.predict([picture(60, 90)])


def test_other_errors_leave_the_batch_size_as_it_is(room: Any) -> None:
    predictor, narrow = room(8)
    narrow.forward = failing_once(narrow.forward)
    predictor.predict([picture(60, 90)] * 4, batch_size=2)
    assert narrow.batches == [2, 1, 1, 2]


def failing_once(forward: Any) -> Any:
    errors = [RuntimeError("shapes differ")]

    def call(*args: Any, **options: Any) -> Any:
        if errors:
            raise errors.pop()
        return forward(*args, **options)

    return call


HEIGHTS = (6, 14, 30)  # three padded shapes


def outcome(result: Detections | Exception) -> Any:
    return type(result) if isinstance(result, Exception) else (result.image_size, result.boxes[0].tolist(), len(result))


PICTURES = st.sets(st.integers(0, 11), max_size=3)


@given(
    shapes=st.lists(st.sampled_from(HEIGHTS), max_size=12),
    batch_size=st.integers(1, 5),
    room=st.integers(0, 5),
    bad=PICTURES,
    not_finite=PICTURES,
    not_final=PICTURES,
)
@example(shapes=[6, 6, 14, 6], batch_size=2, room=5, bad={1}, not_finite={2}, not_final={0, 3})
@example(shapes=[6, 6, 6, 6], batch_size=4, room=1, bad=set(), not_finite={3}, not_final={3, 2})
@settings_of_hypothesis(deadline=None, max_examples=60)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_whatever_fails_costs_the_others_nothing(
    device: str,
    shapes: list[int],
    batch_size: int,
    room: int,
    bad: set[int],
    not_finite: set[int],
    not_final: set[int],
) -> None:
    """On a GPU too, where others are on their way when one fails: a pretended one says where order is missing."""

    def fail(numbers: Sequence[int]) -> Exception | None:
        if len(numbers) > room:
            return OUT_OF_MEMORY
        return ValueError("bad") if not bad.isdisjoint(numbers) else None

    def expected(number: int, height: int) -> Any:
        if room == 0:
            return torch.OutOfMemoryError
        if number in bad:
            return ValueError
        size = (height + number, 8)
        return NotFinite if number in not_finite else (size, [0, 0, size[1], size[0]], 3)

    images = [plain(number, height) for number, height in enumerate(shapes)]
    with pretended_cuda() if device == "cuda" else nullcontext():
        predictor = stand_in(fail, not_finite=not_finite, not_final=not_final, device=device)
        outcomes = predictor.attempt(images, batch_size)
    assert [outcome(result) for result in outcomes] == [expected(*image) for image in enumerate(shapes)]
    sizes = [len(batch) for batch in calls(predictor)]
    assert all(size <= batch_size for size in sizes)
    # The memory did not suffice once for each size of batch and shape, on the way down.
    assert sum(size > max(room, 1) for size in sizes) <= 3 * len(HEIGHTS)


def test_only_what_is_not_final_is_done_again() -> None:
    predictor = stand_in(not_final={1, 2})
    found = predictor.predict([plain(i) for i in range(5)], batch_size=2)
    assert [len(each) for each in found] == [3] * 5
    assert calls(predictor) == [[0, 1], [2, 3], [1], [2], [4]]


class Noting:
    """A feed that notes what it is asked to do, in order; it computes when it is waited for, as a device would."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.batches = count()

    def send(self, size: int, fill: Any) -> Any:
        memory = np.empty(size, np.uint8)
        fill(memory)
        number = next(self.batches)
        self.notes.append(f"send {number}")
        return number, torch.from_numpy(memory)

    def run(self, sent: Any, compute: Any) -> Any:
        self.notes.append(f"run {sent[0]}")
        return sent, compute

    def wait(self, running: Any) -> None:
        self.notes.append(f"wait {running[0][0]}")

    def fetch(self, running: Any) -> np.ndarray:
        (number, memory), compute = running
        self.notes.append(f"fetch {number}")
        return compute(memory).numpy()


def test_a_device_is_kept_busy_and_waited_for_under_the_name_of_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next batch is sent, and the one before fetched, while one is computed; it is begun before anything else."""
    predictor, feed = stand_in(), Noting()
    monkeypatch.setattr(predictor, "_feed", feed)

    @contextmanager
    def during(batch: Sequence[int]) -> Iterator[None]:
        feed.notes.append(f"({list(batch)}")
        yield
        feed.notes.append(")")

    predictor.predict([plain(i) for i in range(5)], 2, during=during)
    assert " ".join(feed.notes) == (
        "send 0 "
        "([0, 1] run 0 send 1 wait 0 ) "
        "([2, 3] run 1 fetch 0 send 2 wait 1 ) "
        "([4] run 2 fetch 1 wait 2 ) "
        "([4] fetch 2 )"
    )


class Failing(Noting):
    """Fails wherever the plan says so, call by call of any kind; with nothing once the plan is done."""

    def __init__(self, plan: Sequence[Exception | None]) -> None:
        super().__init__()
        self.plan = iter(plan)

    def _next(self) -> None:
        if (error := next(self.plan, None)) is not None:
            raise error

    def send(self, size: int, fill: Any) -> Any:
        self._next()
        return super().send(size, fill)

    def run(self, sent: Any, compute: Any) -> Any:
        self._next()
        return super().run(sent, compute)

    def wait(self, running: Any) -> None:
        self._next()
        super().wait(running)

    def fetch(self, running: Any) -> np.ndarray:
        self._next()
        return super().fetch(running)


ERRORS = st.sampled_from([None, None, OUT_OF_MEMORY, ValueError("bad")])


@given(
    shapes=st.lists(st.sampled_from(HEIGHTS), max_size=8),
    batch_size=st.integers(1, 10),
    plan=st.lists(ERRORS, max_size=40),
    not_final=PICTURES,
)
@example(shapes=[6], batch_size=1, plan=[None, None, OUT_OF_MEMORY], not_final=set())
@example(shapes=[6, 6], batch_size=2, plan=[None, None, OUT_OF_MEMORY], not_final=set())  # the last batch, waited for
@settings_of_hypothesis(deadline=None, max_examples=150)
def test_each_image_has_its_outcome_however_a_device_fails(
    shapes: list[int], batch_size: int, plan: list[Exception | None], not_final: set[int]
) -> None:
    predictor = stand_in(not_final=not_final)
    predictor._feed = Failing(plan)
    images = [plain(number, height) for number, height in enumerate(shapes)]
    outcomes = predictor.attempt(images, batch_size)
    assert len(outcomes) == len(images)
    for image, result in zip(images, outcomes, strict=True):
        if isinstance(result, Exception):
            assert result in plan
        else:
            assert outcome(result) == (image.shape[:2], [0, 0, 8, len(image)], 3)


def test_one_copy_each_way_for_a_batch_and_no_wait_but_for_its_end(small_checkpoint: Checkpoint) -> None:
    images = [picture(60, 90, seed=i) for i in range(6)]
    with pretended_cuda() as gpu:
        predictor = load_model(small_checkpoint, "cuda")
        predictor.predict(images, batch_size=2)  # makes the plan
        gpu.forget()
        predictor.predict(images, batch_size=2)
    assert sorted(transfer.direction for transfer in gpu.transfers) == ["in"] * 3 + ["out"] * 3
    assert all(transfer.pinned for transfer in gpu.transfers)
    # 56 bytes of numbers for each image, and the pixels; each is aligned.
    bytes_in = 128 + 2 * (60 * 90 * 3 + 8)
    assert [transfer.bytes for transfer in gpu.transfers if transfer.direction == "in"] == [bytes_in] * 3
    assert {(wait.kind, wait.where.partition(":")[0]) for wait in gpu.waits} == {
        ("event", "pipeline/model/transfer.py")
    }


# ------------------------------------------------------------------------------------------------------------ settings
def test_settings_come_from_the_checkpoint_unless_given(small_checkpoint: Checkpoint) -> None:
    assert load_model(small_checkpoint, "cpu").settings == SMALL_SETTINGS
    other = replace(SMALL_SETTINGS, max_detections=3)
    predictor = load_model(small_checkpoint, "cpu", settings=other)
    assert predictor.settings == other
    assert len(predictor.predict([picture(60, 90)])[0]) == 3


def test_score_threshold(small_checkpoint: Checkpoint) -> None:
    image = picture(60, 90)
    every = load_model(small_checkpoint, "cpu", settings=replace(SMALL_SETTINGS, max_detections=1000))
    high = load_model(small_checkpoint, "cpu", settings=replace(SMALL_SETTINGS, score_threshold=0.5))
    expected = [score for score in every.predict([image])[0].scores if score > 0.5]
    np.testing.assert_allclose(high.predict([image])[0].scores, expected[:30], atol=ROUNDING)
    assert 0 < len(expected) < len(every.predict([image])[0])


def test_nothing_found(small_checkpoint: Checkpoint) -> None:
    settings = replace(SMALL_SETTINGS, score_threshold=1.0)
    images = [picture(60, 90), picture(1, 1), picture(60, 90, seed=1)]
    for found, image in zip(
        load_model(small_checkpoint, "cpu", settings=settings).predict(images), images, strict=True
    ):
        assert len(found) == 0
        check(found, image, settings)
        assert found.rle() == []


# ------------------------------------------------------------------------------------------------------------- loading
def test_from_a_file(small_checkpoint: Checkpoint, predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(small_checkpoint, path)
    image, loaded = picture(60, 90), load_model(str(path), "cpu")
    same(loaded.predict([image])[0], predictor.predict([image])[0])
    assert loaded.categories == SMALL_CATEGORIES
    assert loaded.variant == SMALL
    assert loaded.weights_sha256 == small_checkpoint.weights_sha256


def test_a_file_that_does_not_name_its_classes(small_state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(small_state, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="give their names"):
        load_model(tmp_path / "model.pth", "cpu")
    assert load_model(tmp_path / "model.pth", "cpu", categories=SMALL_CATEGORIES).categories == SMALL_CATEGORIES


@pytest.mark.parametrize("precision", ["int8", "float32", "FP32", ""])
def test_unknown_precision(precision: str, small_checkpoint: Checkpoint) -> None:
    with pytest.raises(ValueError, match=f"precision '{precision}': expected one of fp32, bf16$"):
        load_model(small_checkpoint, "cpu", precision=precision)


def test_a_precision_that_there_was_once(small_checkpoint: Checkpoint) -> None:
    with pytest.raises(UserError, match=r"^precision: fp16 is no option any more: .* Write bf16"):
        load_model(small_checkpoint, "cpu", precision="fp16")


# name: (device, part of the message)
NO_DEVICES = {
    "no such kind": ("gpu", "device 'gpu': expected cpu, cuda or cuda:N"),
    "no such number": ("cuda:99", "device cuda:99: this machine has"),
}


@pytest.mark.parametrize(("device", "message"), NO_DEVICES.values(), ids=NO_DEVICES.keys())
def test_no_such_device(device: str, message: str, small_checkpoint: Checkpoint) -> None:
    with pytest.raises(ValueError, match=message):
        load_model(small_checkpoint, device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_gpu(small_checkpoint: Checkpoint) -> None:
    with pytest.raises(ValueError, match="device cuda: this machine has 0 usable CUDA devices"):
        load_model(small_checkpoint, "cuda")
    assert load_model(small_checkpoint).device == torch.device("cpu")


def test_half_precision_keeps_what_is_promised(small_checkpoint: Checkpoint) -> None:
    predictor = load_model(small_checkpoint, "cpu", precision="bf16")
    image = picture(60, 90)
    found = predictor.predict([image, picture(1, 1)])
    assert len(found[0]) > 0
    check(found[0], image)

"""The jobs' way in: `load_model` gives a `Predictor`, which turns decoded images of any size into detections."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.model.architectures import build
from pipeline.model.categories import Category
from pipeline.model.detections import DETECTION_ARRAYS, Detections
from pipeline.model.detector import Detector, NotFinite, Plan
from pipeline.model.device import free_memory, is_out_of_memory, raise_if_lost, true_float32, usable_device
from pipeline.model.files.checkpoints import Checkpoint, load_checkpoint
from pipeline.model.graphs import GraphedForward
from pipeline.model.preprocess import input_shape, pack, packed_size, preprocess
from pipeline.model.settings import TestSettings, refuse_fp16
from pipeline.model.speed import SpeedOptions, speed_up
from pipeline.model.transfer import CudaFeed, Feed, HostFeed, pack_detections, unpack_detections

logger = logging.getLogger(__name__)

# Plans of padded shapes that are kept, each some megabytes on the device.
_PLANS = 64

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load_model(
    checkpoint: str | Path | Checkpoint,
    device: str | torch.device | None = None,
    precision: str = "fp32",
    settings: TestSettings | None = None,
    categories: Sequence[Category] | None = None,
    speed: SpeedOptions | None = None,
) -> Predictor:
    """A detector ready to predict.

    Args:
        checkpoint: a file in any layout that `load_checkpoint` reads, or what it returned.
        device: where to run; the first GPU if there is one, else the CPU.
        precision: ``fp32`` gives the published results; ``bf16`` holds the weights so, and computes everything in it
            but the last layers of the heads and what follows them (logits, boxes, scores, NMS: float32).
        settings: input size, thresholds and counts, where they should differ from the checkpoint's own.
        categories: what the labels stand for, where the file does not say.
        speed: what may be rewritten for speed; by default all that keeps the results.

    Raises:
        CheckpointError: the file cannot be used.
        UserError: unknown precision or device.
        DeviceLost: the device answers no more.
    """
    check_precision(precision)
    device = usable_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = load_checkpoint(checkpoint, categories)
    detector = build(checkpoint.variant)
    detector.load_state_dict(checkpoint.weights)
    detector.eval().requires_grad_(False)
    speed = speed or SpeedOptions()
    try:
        detector = speed_up(detector.to(device), speed, PRECISIONS[precision])
    except Exception as error:
        raise_if_lost(device, error)
        raise
    graphs = speed.cuda_graphs and device.type == "cuda"
    return Predictor(detector, checkpoint, settings or checkpoint.settings, precision, device, graphs)


def check_precision(name: str) -> None:
    """Refuse what is no precision: before a checkpoint is read, or fetched.

    Raises:
        UserError: it is not, or no more.
    """
    try:
        refuse_fp16(name)
    except ValueError as error:
        raise UserError(f"precision: {error}") from None
    if name not in PRECISIONS:
        raise UserError(f"precision {name!r}: expected one of {', '.join(PRECISIONS)}")


class _Batch(NamedTuple):
    """Images that go through the model together.

    Attributes:
        shape: padded ``(H, W)`` of all of them.
        members: their indices.
        every_candidate: see `Detector.forward`.
    """

    shape: tuple[int, int]
    members: Sequence[int]
    every_candidate: bool = False

    def parts(self, size: int) -> list[_Batch]:
        """The same images in batches of at most ``size``."""
        return [self._replace(members=self.members[i : i + size]) for i in range(0, len(self.members), size)]


class _InFlight(NamedTuple):
    """A batch and what the feed knows of it."""

    batch: _Batch
    state: Any


class _Work(NamedTuple):
    """One call of the predictor: images and their original sizes, batches that wait, and what has come out."""

    images: Sequence[np.ndarray]
    originals: Sequence[tuple[int, int]]
    waiting: deque[_Batch]
    outcomes: dict[int, Detections | Exception]

    def put_back(self, batches: Sequence[_Batch]) -> None:
        """These are the next ones."""
        self.waiting.extendleft(reversed(batches))


class Predictor:
    """A detector with its preprocessing, on one device, which it keeps busy: see `pipeline.model.transfer`.

    Attributes:
        categories: label ``i`` of a detection stands for ``categories[i]``.
        weights_sha256: digest of the weights, whatever file they came from.
    """

    _detect: Callable[..., Tensor]

    def __init__(
        self,
        detector: Detector,
        checkpoint: Checkpoint,
        settings: TestSettings,
        precision: str,
        device: torch.device,
        cuda_graphs: bool = False,
    ) -> None:
        self.detector = detector
        self.precision = precision
        self.categories = checkpoint.categories
        self.variant = checkpoint.variant
        self.source = checkpoint.source
        self.weights_sha256 = checkpoint.weights_sha256
        self.device = device
        self._cuda_graphs = cuda_graphs
        self._settings = settings
        # By padded shape, where the memory did not suffice for more.
        self._most: dict[tuple[int, int], int] = {}
        self._start()

    def _start(self) -> None:
        """Make what stands for the device, or is bound to this very object: a copy gets its own."""
        self._feed: Feed = CudaFeed(self.device) if self.device.type == "cuda" else HostFeed()
        self._plan = lru_cache(maxsize=_PLANS)(self.detector.plan)
        self._record_anew()

    def _record_anew(self) -> None:
        """Forget the graphs: one holds the numbers with which it was recorded."""
        self._detect = GraphedForward(self._forward, self.device) if self._cuda_graphs else self._forward

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_feed", "_detect", "_plan")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """What `__getstate__` gave."""
        self.__dict__.update(state)
        self._start()

    @property
    def settings(self) -> TestSettings:
        """Input size, thresholds and counts; others may be set, for all that is predicted from then on."""
        return self._settings

    @settings.setter
    def settings(self, settings: TestSettings) -> None:
        self._settings = settings
        self._record_anew()

    def predict(
        self,
        images: Sequence[np.ndarray],
        batch_size: int = 8,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        during: Callable[[Sequence[int]], AbstractContextManager[None]] = lambda batch: nullcontext(),
    ) -> list[Detections]:
        """Detect objects in images of any sizes.

        Images of equal padded input shape share a batch, others never do: padding to a common shape would
        change what windows and convolutions at the border see. So a result does not depend on the other
        images given (beyond the rounding of the device's kernels, which may depend on the batch's size).

        Args:
            images: RGB uint8 arrays ``(H, W, 3)``.
            batch_size: at most this many images on the device at once.
            image_sizes: the original ``(H, W)`` of each image. Needed only where some were already brought to
                the model's input size (`scaled_size` of the original, by `resize_bilinear_uint8`).
            during: entered for each batch, with the indices of its images, while the device is waited for because of
                them.

        Returns:
            One `Detections` per image, in the order given, in each original image's own pixels.

        Raises:
            TypeError, ValueError: an image is no RGB uint8 array; the message gives its index.
            NotFinite: of one of the images the network computed NaN or infinity.
            DeviceLost: the device answers no more.
        """
        found = []
        for outcome in self.attempt(images, batch_size, image_sizes, during):
            if isinstance(outcome, Exception):
                raise outcome
            found.append(outcome)
        return found

    def attempt(
        self,
        images: Sequence[np.ndarray],
        batch_size: int = 8,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        during: Callable[[Sequence[int]], AbstractContextManager[None]] = lambda batch: nullcontext(),
    ) -> list[Detections | Exception]:
        """As `predict`; an image that the model fails on has its error in its place, and costs the others nothing.

        A batch that fails is done again image by image. One for which the memory does not suffice is halved, and
        from then on no batch of its shape is larger.

        Raises:
            TypeError, ValueError: an image is no RGB uint8 array; the message gives its index.
            DeviceLost: the device answers no more.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected at least 1")
        for i, image in enumerate(images):
            _check_image(i, image)
        originals = [image.shape[:2] for image in images] if image_sizes is None else list(image_sizes)
        if len(originals) != len(images):
            raise ValueError(f"{len(originals)} image_sizes for {len(images)} images")
        work = _Work(images, originals, self._batches(originals, batch_size), {})
        with torch.inference_mode():
            ahead, behind = self._send(work), None
            while current := ahead or behind:
                # What is ahead has been sent, and is begun only when the one before has been computed, not queued
                # behind it: that costs the device some microseconds a batch. For it, the host never waits for another
                # batch than this one here, and so a deadline that ends the process names the right images.
                with during(current.batch.members):
                    running = None if ahead is None else self._run(work, ahead)
                    if behind is not None:
                        self._take(work, behind)
                    ahead, behind = self._send(work), self._wait(work, running)
                ahead = ahead or self._send(work)  # what failed while it was waited for may be the last
        return [work.outcomes[i] for i in range(len(images))]

    def _batches(self, originals: Sequence[tuple[int, int]], batch_size: int) -> deque[_Batch]:
        groups: dict[tuple[int, int], list[int]] = {}
        for i, original in enumerate(originals):
            groups.setdefault(input_shape(original, self.settings), []).append(i)
        return deque(part for shape, members in groups.items() for part in _Batch(shape, members).parts(batch_size))

    def _send(self, work: _Work) -> _InFlight | None:
        """Bring the next batch on its way to the device; None where there is no other."""
        while work.waiting:
            batch = work.waiting.popleft()
            most = self._most.get(batch.shape, len(batch.members))
            if len(batch.members) > most:
                work.put_back(batch.parts(most))
                continue
            images, originals = [work.images[i] for i in batch.members], [work.originals[i] for i in batch.members]
            with self._failures(work, batch):
                fill = partial(pack, images, originals, self.settings)
                return _InFlight(batch, self._feed.send(packed_size(images), fill))
        return None

    def _run(self, work: _Work, sent: _InFlight) -> _InFlight | None:
        """Begin to compute; None where that failed."""
        with self._failures(work, sent.batch):
            return _InFlight(sent.batch, self._feed.run(sent.state, partial(self._compute, sent.batch)))
        return None

    def _wait(self, work: _Work, running: _InFlight | None) -> _InFlight | None:
        """Until it has been computed; None where that failed."""
        if running is not None:
            with self._failures(work, running.batch):
                self._feed.wait(running.state)
                return running
        return None

    def _take(self, work: _Work, running: _InFlight) -> None:
        """What was computed becomes the images' outcomes; those that are not final are to be done again."""
        batch, again = running.batch, []
        with self._failures(work, batch):
            rows = unpack_detections(self._feed.fetch(running.state), self.settings.max_detections)
            for i, row in zip(batch.members, rows, strict=True):
                if not row["finite"]:
                    work.outcomes[i] = NotFinite("the network's numbers are NaN or infinite on this image")
                elif row["final"] or batch.every_candidate:
                    # Copies: of empty slots nothing is kept, and on a GPU the next batches are written there.
                    arrays = {name: row[name][: row["counts"]].copy() for name in DETECTION_ARRAYS}
                    work.outcomes[i] = Detections(**arrays, image_size=work.originals[i])
                else:
                    again.append(i)
        if again:
            work.put_back([_Batch(batch.shape, again, every_candidate=True)])

    @contextmanager
    def _failures(self, work: _Work, batch: _Batch) -> Iterator[None]:
        """An error is the image's outcome, where it came of one; else the batch is done again, mostly in parts."""
        try:
            yield
        except Exception as error:
            raise_if_lost(self.device, error)
            again = is_out_of_memory(error) and self._make_room()
            free_memory(self.device, error)
            if again:
                work.put_back([batch])
            elif len(batch.members) == 1:
                work.outcomes[batch.members[0]] = error
            else:
                work.put_back(batch.parts(self._part_of(batch, error)))

    def _make_room(self) -> bool:
        """Graphs go first: whatever had no memory beside them is done again as it was. False where there are none."""
        return isinstance(self._detect, GraphedForward) and self._detect.make_room()

    def _part_of(self, batch: _Batch, error: Exception) -> int:
        """How many images of a batch that failed are tried at once."""
        if not is_out_of_memory(error):
            return 1
        if batch.shape not in self._most:
            height, width = batch.shape
            logger.warning(
                "the memory of %s does not suffice for %d images of %d x %d at once: batches of this size are halved",
                *(self.device, len(batch.members), height, width),
            )
        self._most[batch.shape] = (len(batch.members) + 1) // 2
        return self._most[batch.shape]

    def _compute(self, batch: _Batch, buffer: Tensor) -> Tensor:
        """From what `pack` packed to what `unpack_detections` unpacks, on the device."""
        inputs = preprocess(buffer, len(batch.members), batch.shape)
        plan = self._plan(batch.shape)
        if batch.every_candidate:
            return self._forward(*inputs, plan, every_candidate=True)
        return self._detect(*inputs, plan)

    def _forward(
        self, images: Tensor, image_sizes: Tensor, scale_factors: Tensor, plan: Plan, every_candidate: bool = False
    ) -> Tensor:
        """All of the work whose tensors have the same shapes for all batches of one shape."""
        with true_float32(self.device):  # in half precision too: its last layers are float32
            found = self.detector(images, image_sizes, scale_factors, plan, self.settings, every_candidate)
        return pack_detections(found)


def failure_code(error: Exception) -> str:
    """The code of an image that `Predictor.attempt` gives this error for."""
    if is_out_of_memory(error):
        return "out_of_memory"
    return "not_finite" if isinstance(error, NotFinite) else "model_error"


def _check_image(index: int, image: np.ndarray) -> None:
    if not isinstance(image, np.ndarray):
        raise TypeError(f"image {index} is a {type(image).__name__}: expected a numpy array")
    if image.dtype != np.uint8:
        raise TypeError(f"image {index} is {image.dtype}: expected uint8, RGB in 0..255")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(
            f"image {index} has shape {image.shape}: expected (H, W, 3); repeat a greyscale channel three times"
        )

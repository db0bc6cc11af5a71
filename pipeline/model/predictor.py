"""The jobs' way in: `load_model` gives a `Predictor`, which turns decoded images of any size into detections."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from pipeline.errors import UserError
from pipeline.model.architectures import build
from pipeline.model.categories import Category
from pipeline.model.detections import DETECTION_ARRAYS, BatchDetections, Detections
from pipeline.model.detector import Detector, NotFinite
from pipeline.model.files.checkpoints import Checkpoint, load_checkpoint
from pipeline.model.preprocess import input_shape, preprocess
from pipeline.model.settings import TestSettings, refuse_fp16
from pipeline.model.speed import SpeedOptions, speed_up

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
    """
    try:
        refuse_fp16(precision)
    except ValueError as error:
        raise UserError(f"precision: {error}") from None
    if precision not in PRECISIONS:
        raise UserError(f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
    device = _usable_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = load_checkpoint(checkpoint, categories)
    detector = build(checkpoint.variant)
    detector.load_state_dict(checkpoint.weights)
    detector.eval().requires_grad_(False)
    detector = speed_up(detector.to(device), speed or SpeedOptions(), PRECISIONS[precision])
    return Predictor(detector, checkpoint, settings or checkpoint.settings, precision, device)


class Predictor:
    """A detector with its preprocessing, on one device.

    Attributes:
        categories: label ``i`` of a detection stands for ``categories[i]``.
        weights_sha256: digest of the weights, whatever file they came from.
    """

    def __init__(
        self,
        detector: Detector,
        checkpoint: Checkpoint,
        settings: TestSettings,
        precision: str,
        device: torch.device,
    ) -> None:
        self.detector = detector
        self.settings = settings
        self.precision = precision
        self.categories = checkpoint.categories
        self.variant = checkpoint.variant
        self.source = checkpoint.source
        self.weights_sha256 = checkpoint.weights_sha256
        self.device = device
        self._plan = lru_cache(maxsize=_PLANS)(detector.plan)

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
            during: entered for each batch that the model takes, with the indices of its images.

        Returns:
            One `Detections` per image, in the order given, in each original image's own pixels.

        Raises:
            TypeError, ValueError: an image is no RGB uint8 array; the message gives its index.
            NotFinite: the network's numbers are NaN or infinite on an image.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected at least 1")
        for i, image in enumerate(images):
            _check_image(i, image)
        originals = [image.shape[:2] for image in images] if image_sizes is None else list(image_sizes)
        if len(originals) != len(images):
            raise ValueError(f"{len(originals)} image_sizes for {len(images)} images")
        groups: dict[tuple[int, int], list[int]] = {}
        for i, original in enumerate(originals):
            groups.setdefault(input_shape(original, self.settings), []).append(i)
        results: dict[int, Detections] = {}
        for shape, members in groups.items():
            for start in range(0, len(members), batch_size):
                batch = members[start : start + batch_size]
                with during(batch):
                    found = self._predict_batch([images[i] for i in batch], [originals[i] for i in batch], shape)
                results.update(zip(batch, found, strict=True))
        return [results[i] for i in range(len(images))]

    @torch.inference_mode()
    def _predict_batch(
        self, images: list[np.ndarray], originals: list[tuple[int, int]], shape: tuple[int, int]
    ) -> list[Detections]:
        inputs = torch.empty((len(images), 3, *shape), device=self.device)
        sizes, factors = [], []
        for row, image, (original_h, original_w) in zip(inputs, images, originals, strict=True):
            pixels, (height, width) = preprocess(image, self.settings, self.device, (original_h, original_w))
            row.copy_(pixels)
            sizes.append((height, width))
            factors.append((width / original_w, height / original_h))
        image_sizes = torch.tensor(sizes, dtype=torch.float32, device=self.device)
        scale_factors = torch.tensor(factors, dtype=torch.float32, device=self.device)
        with self._arithmetic():
            plan = self._plan(shape)
            found = self.detector(inputs, image_sizes, scale_factors, plan, self.settings)
            if not found.finite.all():
                raise NotFinite("the network's numbers are NaN or infinite on this image")
            if not found.final.all():
                found = self.detector(inputs, image_sizes, scale_factors, plan, self.settings, every_candidate=True)
        return list(_to_host(found, originals))

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        """True float32: cuDNN rounds its inputs to TF32 unless told not to."""
        with _without_tf32() if self.device.type == "cuda" else nullcontext():
            yield


def _usable_device(device: str | torch.device) -> torch.device:
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device {device!r}: expected cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {device}: this machine has {torch.cuda.device_count()} usable CUDA devices")
    return device


def _without_tf32() -> AbstractContextManager[None]:
    return torch.backends.cudnn.flags(
        enabled=True, benchmark=torch.backends.cudnn.benchmark, deterministic=False, allow_tf32=False
    )


def _check_image(index: int, image: np.ndarray) -> None:
    if not isinstance(image, np.ndarray):
        raise TypeError(f"image {index} is a {type(image).__name__}: expected a numpy array")
    if image.dtype != np.uint8:
        raise TypeError(f"image {index} is {image.dtype}: expected uint8, RGB in 0..255")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(
            f"image {index} has shape {image.shape}: expected (H, W, 3); repeat a greyscale channel three times"
        )


def _to_host(found: BatchDetections, originals: list[tuple[int, int]]) -> Iterator[Detections]:
    """Split a batch's detections by image, in one transfer for each field."""
    arrays = {name: getattr(found, name).cpu().numpy() for name in DETECTION_ARRAYS}
    for i, (count, original) in enumerate(zip(found.counts.tolist(), originals, strict=True)):
        # A copy: a view would keep the empty slots in memory.
        yield Detections(**{name: values[i, :count].copy() for name, values in arrays.items()}, image_size=original)

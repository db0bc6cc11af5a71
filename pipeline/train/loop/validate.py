"""The figures of a model on a validation set, by our own evaluation, the images shared among the workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Protocol

import numpy as np
from pycocotools import mask as coco_mask

from pipeline.masks.rle import Rle, RleColumn
from pipeline.metrics.ap.figures import coco_stats, evaluate_blocks, mmdet_metrics
from pipeline.metrics.blocks import DetectionBlock, TruthBlock
from pipeline.metrics.protocol import IOU_TYPES, CocoProtocol
from pipeline.model.detections import Detections
from pipeline.model.detector import NotFinite
from pipeline.model.predictor import Predictor
from pipeline.storage.map_ahead import map_ahead
from pipeline.tables.ragged import offsets_of, positions_in
from pipeline.train.distributed import from_first, gather_to_first, num_workers, worker_rank
from pipeline.train.loop.finite import NonFiniteLoss
from pipeline.train.sample.sample import Sample

_THREADS = 4  # that read pictures while the device computes


class ValidationSet(Protocol):
    """Images with their objects; an ignored object is a crowd. Read one by one, they need not fit into memory."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def validate(predictor: Predictor, images: ValidationSet, batch_size: int) -> dict[str, float]:
    """Predict and evaluate; the images are dealt to the workers in turn, and every worker gets the figures.

    Objects' areas are the pixels of their masks; a COCO file's own ``area`` differs by a few pixels, which can move an
    object over the border between small, medium and large.

    Args:
        predictor: of this worker, with the same weights on all.
        images: the whole set, the same on all workers.
        batch_size: images on the device at once.

    Returns:
        mmdet's names (``segm_mAP``, ``bbox_mAP_50``, ...); -1 where nothing is defined.

    Raises:
        ValueError: the set is empty.
    """
    if len(images) == 0:
        raise ValueError("there are no images to validate on")
    blocks = gather_to_first(list(_blocks(predictor, images, batch_size)))
    return from_first(None if blocks is None else _figures(blocks, len(predictor.categories)))


def _figures(blocks: list[list[tuple[TruthBlock, DetectionBlock]]], num_classes: int) -> dict[str, float]:
    protocol = CocoProtocol()
    every = [block for part in blocks for block in part]
    figures: dict[str, float] = {}
    for kind in IOU_TYPES:
        stats = coco_stats(evaluate_blocks(every, kind, num_classes, protocol), protocol.max_dets)
        figures |= mmdet_metrics(stats, kind, protocol.max_dets)
    return figures


def _blocks(
    predictor: Predictor, images: ValidationSet, batch_size: int
) -> Iterator[tuple[TruthBlock, DetectionBlock]]:
    own = range(worker_rank(), len(images), num_workers())
    ahead = map_ahead(images.__getitem__, own, _THREADS, 2 * batch_size)
    for start in range(0, len(own), batch_size):
        part = own[start : start + batch_size]
        samples = list(islice(ahead, len(part)))
        try:
            detections = predictor.predict([sample.pixels for sample in samples], batch_size)
        except NotFinite as error:
            raise NonFiniteLoss(f"validation: {error}: the training diverged; lower optimizer.lr") from error
        yield truth_block(samples, list(part)), detection_block(detections)


def truth_block(samples: Sequence[Sample], orders: Sequence[int]) -> TruthBlock:
    """Samples as ground truth; ``orders`` are their positions in the whole set."""
    rles = RleColumn.of([rle for sample in samples for rle in _encode(sample)])
    boxes = np.concatenate([np.zeros((0, 4)), *(sample.boxes for sample in samples)]).astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    return TruthBlock(
        image_ids=list(orders),
        orders=np.array(orders, np.int64),
        image_sizes=np.array([sample.pixels.shape[:2] for sample in samples], np.int64).reshape(-1, 2),
        offsets=offsets_of(np.array([len(sample.labels) for sample in samples], np.int64)),
        ids=np.arange(1, len(rles) + 1),
        categories=np.concatenate([sample.labels for sample in samples]),
        boxes=boxes,
        areas=rles.areas.astype(np.float64),
        crowd=np.concatenate([sample.ignored for sample in samples]),
        rles=rles,
    )


def detection_block(detections: Sequence[Detections]) -> DetectionBlock:
    """Detections of the same images."""
    rles = RleColumn.of([rle for each in detections for rle in each.rle()])
    boxes = np.concatenate([np.zeros((0, 4)), *(each.boxes for each in detections)]).astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    counts = np.array([len(each) for each in detections], np.int64)
    return DetectionBlock(
        offsets=offsets_of(counts),
        positions=positions_in(counts),
        categories=np.concatenate([each.labels for each in detections]),
        boxes=boxes,
        scores=np.concatenate([each.scores for each in detections]).astype(np.float64),
        rles=rles,
    )


def _encode(sample: Sample) -> list[Rle]:
    if len(sample.masks) == 0:
        return []
    return coco_mask.encode(np.asfortranarray(sample.masks.transpose(1, 2, 0).astype(np.uint8)))

"""The detector's forward with lists as long as what was found, image by image: what the padded one has to equal.

It is the code that the golden data were first reached with. Layers are the detector's own; all that decides which boxes
live, where RoIs are pooled and in which order things come stands here once more.

B images, R RoIs, K classes, N detections of an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import nms

from pipeline.model.cascade_mask_rcnn.boxes import MAX_LOG_RATIO
from pipeline.model.cascade_mask_rcnn.detector import CascadeMaskRCNN
from pipeline.model.kernels.roi_align import roi_align_cpu
from pipeline.model.settings import TestSettings

ROI_STRIDES = (4, 8, 16, 32)
STAGE_STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
UNIT_STDS = (1.0, 1.0, 1.0, 1.0)
# Above this many boxes NMS runs group by group: its work grows with the square of what it gets at once.
NMS_SPLIT = 10_000


@dataclass(frozen=True)
class ImageDetections:
    """One image's, best first: boxes ``(N, 4)`` in image pixels, scores ``(N,)``, labels ``(N,)``, masks."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor


def forward(
    detector: CascadeMaskRCNN, images: Tensor, image_sizes: Tensor, scale_factors: Tensor, settings: TestSettings
) -> list[ImageDetections]:
    """What `CascadeMaskRCNN.forward` finds in each image."""
    plan = detector.plan((images.shape[2], images.shape[3]))
    features = detector.neck(detector.backbone(images, plan.windows))
    proposals = [boxes for boxes, _ in propose(detector.rpn.head(features), plan.anchors, image_sizes, settings)]
    pyramid = [feature.float() for feature in features[: len(ROI_STRIDES)]]
    found = box_heads(detector, pyramid, proposals, image_sizes, scale_factors, settings)
    index = image_index([len(scores) for _, scores, _ in found])
    boxes = torch.cat([image[0] for image in found]) * scale_factors[index].repeat(1, 2)
    masks = mask_heads(detector, pyramid, boxes, index, torch.cat([labels for *_, labels in found]))
    parts = masks.split([len(scores) for _, scores, _ in found])
    return [ImageDetections(*image, part) for image, part in zip(found, parts, strict=True)]


def image_index(counts: list[int]) -> Tensor:
    """For boxes laid end to end, image after image, the image each belongs to."""
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


def propose(
    outputs: list[tuple[Tensor, Tensor]], grids: list[Tensor], image_sizes: Tensor, settings: TestSettings
) -> list[tuple[Tensor, Tensor]]:
    """Of each image, proposals ``(n, 4)`` and their scores ``(n,)``, best first."""
    boxes, scores, levels = [], [], []
    for level, ((logits, deltas), grid) in enumerate(zip(outputs, grids, strict=True)):
        top, index = logits.sigmoid().topk(min(settings.proposals_per_level, logits.shape[1]))
        deltas = deltas.gather(1, index[..., None].expand(-1, -1, 4))
        boxes.append(decode(grid[index], deltas, UNIT_STDS, image_sizes[:, None]))
        scores.append(top)
        levels.append(torch.full_like(index[0], level))
    all_boxes, all_scores, all_levels = torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(levels)
    proposals = []
    for image_boxes, image_scores in zip(all_boxes, all_scores, strict=True):
        keep = nms_by_group(image_boxes, image_scores, all_levels, settings.rpn_nms_iou)[: settings.proposals]
        proposals.append((image_boxes[keep], image_scores[keep]))
    return proposals


def box_heads(
    detector: CascadeMaskRCNN,
    features: list[Tensor],
    proposals: list[Tensor],
    image_sizes: Tensor,
    scale_factors: Tensor,
    settings: TestSettings,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of each image, boxes, scores and labels."""
    counts = [len(p) for p in proposals]
    index = image_index(counts)
    boxes, sizes, rows = torch.cat(proposals), image_sizes[index], torch.arange(len(index))
    total = boxes.new_zeros(())
    for stage, (head, stds) in enumerate(zip(detector.box_heads.stages, STAGE_STDS, strict=True)):
        logits, deltas = head(pool(features, boxes, index, 7))
        total = total + logits
        if stage + 1 < len(STAGE_STDS):
            boxes = decode(boxes, deltas[rows, logits[:, :-1].argmax(dim=1)], stds, sizes)
    scores = (total / len(STAGE_STDS)).softmax(dim=1)[:, :-1]
    parts = (boxes.split(counts), deltas.split(counts), scores.split(counts), image_sizes, scale_factors)
    return [select(*image, settings) for image in zip(*parts, strict=True)]


def select(
    boxes: Tensor, deltas: Tensor, scores: Tensor, image_size: Tensor, scale_factor: Tensor, settings: TestSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """Of one image, the final boxes ``(N, 4)``, scores ``(N,)`` and labels ``(N,)``."""
    roi, label = (scores > settings.score_threshold).nonzero(as_tuple=True)
    score = scores[roi, label]
    boxes_image = decode(boxes[roi], deltas[roi, label], STAGE_STDS[-1], image_size) / scale_factor.repeat(2)
    keep = nms_by_group(boxes_image, score, label, settings.nms_iou)[: settings.max_detections]
    return boxes_image[keep], score[keep], label[keep]


def mask_heads(
    detector: CascadeMaskRCNN, features: list[Tensor], boxes: Tensor, index: Tensor, labels: Tensor
) -> Tensor:
    """Mask probabilities ``(R, 28, 28)``."""
    if len(boxes) == 0:
        return boxes.new_zeros((0, 28, 28))
    pooled = pool(features, boxes, index, 14)
    total = sum(stage(pooled, labels).sigmoid() for stage in detector.mask_heads.stages)
    return torch.as_tensor(total) / len(detector.mask_heads.stages)


def decode(boxes: Tensor, deltas: Tensor, stds: tuple[float, ...], sizes: Tensor) -> Tensor:
    """Deltas applied, then clipped to the image."""
    deltas = deltas * deltas.new_tensor(stds)
    shift, log_scale = deltas[..., :2], deltas[..., 2:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    centre = (boxes[..., :2] + boxes[..., 2:]) * 0.5
    side = boxes[..., 2:] - boxes[..., :2]
    centre = centre + side * shift
    half = side * log_scale.exp() * 0.5
    moved = torch.cat([centre - half, centre + half], dim=-1).clamp(min=0)
    limit = sizes.flip(-1)
    return torch.minimum(moved, torch.cat([limit, limit], dim=-1))


def nms_by_group(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """NMS in which only boxes of one group suppress each other: indices kept, best first."""
    if boxes.numel() == 0:
        return torch.zeros(0, dtype=torch.int64)
    moved = boxes + (groups.to(boxes) * (boxes.max() + 1))[:, None]
    if len(boxes) < NMS_SPLIT:
        return nms(moved, scores, iou_threshold)
    kept = torch.cat(
        [
            members[nms(moved[members], scores[members], iou_threshold)]
            for members in ((groups == g).nonzero()[:, 0] for g in groups.unique())
        ]
    )
    return kept[scores[kept].argsort(descending=True, stable=True)]


def pool(features: list[Tensor], boxes: Tensor, index: Tensor, side: int) -> Tensor:
    """RoIAlign, each RoI from the level that fits its size: ``(R, C, side, side)``."""
    rois = torch.cat([index[:, None].to(boxes), boxes], dim=1)
    sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    levels = torch.floor(torch.log2(sides / 56 + 1e-6)).clamp(0, len(features) - 1).long()
    shape = (len(boxes), features[0].shape[1], side, side)
    pooled = torch.zeros(shape).contiguous(memory_format=torch.channels_last)
    for level, (feature, stride) in enumerate(zip(features, ROI_STRIDES, strict=True)):
        members = (levels == level).nonzero()[:, 0]
        if len(members):
            pooled[members] = roi_align_cpu(feature, rois[members], side, 1 / stride)
    return pooled

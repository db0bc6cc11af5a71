"""Which boxes a loss looks at: some positives, and negatives up to a fixed number (mmdet's `RandomSampler`).

For a stage of the cascade also what becomes of its RoIs for the next. R RoIs of the whole batch, image after image; K
object classes, background is class K.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from pipeline.model.cascade_mask_rcnn.boxes import Stds, decode_deltas
from pipeline.model.cascade_mask_rcnn.losses.assign import NEGATIVE, ImageTargets, Rule, assign
from pipeline.model.settings import Quota

NO_LABEL = -100  # what `cross_entropy` leaves out


def sample(assigned: Tensor, quota: Quota, generator: Generator) -> tuple[Tensor, Tensor]:
    """Draw positives and negatives at random; negatives fill up what positives leave free.

    Args:
        assigned: int64 ``(N,)`` from `assign`.
        quota: how many boxes in all, and how many of them positive.
        generator: decides which; used only where there are more than wanted.

    Returns:
        Indices of the positives and of the negatives, each ascending.
    """
    positives = _draw(assigned >= 0, int(quota.count * quota.positive_fraction), generator)
    return positives, _draw(assigned == NEGATIVE, quota.count - len(positives), generator)


def _draw(candidates: Tensor, count: int, generator: Generator) -> Tensor:
    index = candidates.nonzero()[:, 0]
    if len(index) <= count:
        return index
    order = torch.randperm(len(index), generator=generator, device=generator.device)[:count]
    return index[order.sort().values.to(index.device)]


def image_generators(image_ids: Sequence[int | str], generator: Generator) -> list[Generator]:
    """One generator for each image, on the device of the one given, which moves on by one draw.

    What is sampled of an image depends on the generator's state and on the image's id, and not on the other
    images beside it: a batch spread over workers whose generators agree samples what one worker would.
    """
    base = torch.randint(2**62, (), generator=generator, device=generator.device).item()
    return [Generator(generator.device).manual_seed(_seed(f"{base} {image_id}")) for image_id in image_ids]


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


@dataclass(frozen=True)
class StageSamples:
    """RoIs and what is known of them.

    Attributes:
        boxes: ``(R, 4)`` xyxy in input pixels; never empty: a batch that has nothing to sample is one RoI with
            the label `NO_LABEL`, so that every head runs, and every worker takes part in synchronised norms.
        images: int64 ``(R,)``, the image each belongs to.
        labels: int64 ``(R,)``, the class of its object, K for background.
        owners: int64 ``(R,)``, the object among those of its image; negative for background.
        is_object: bool ``(R,)``: the RoI is an object's own box, not a proposal.
    """

    boxes: Tensor
    images: Tensor
    labels: Tensor
    owners: Tensor
    is_object: Tensor

    @property
    def positive(self) -> Tensor:
        """Which RoIs have an object: bool ``(R,)``."""
        return self.owners >= 0


def draw_samples(
    proposals: Sequence[Tensor],
    objects: Sequence[ImageTargets],
    min_iou: float,
    num_classes: int,
    generators: Sequence[Generator],
    quota: Quota,
) -> StageSamples:
    """Assign the proposals, add the objects' own boxes, each its own object's, and sample.

    Args:
        proposals: per image ``(n, 4)`` xyxy in input pixels.
        objects: of each image, what its RoIs are to find.
        min_iou: at this IoU or above a RoI belongs to an object, below it is background.
        num_classes: K, the label of background.
        generators: one an image, which decides what is sampled of it.
        quota: RoIs of each image.
    """
    rule = Rule(positive=min_iou, negative=min_iou)
    parts = []
    for i, image in enumerate(zip(proposals, objects, generators, strict=True)):
        parts.append(_draw_image(i, *image, rule, quota, num_classes))
    names = ("boxes", "images", "labels", "owners", "is_object")
    samples = StageSamples(*(torch.cat([getattr(part, name) for part in parts]) for name in names))
    return samples if len(samples.boxes) else _nothing(samples)


def _draw_image(
    index: int,
    proposals: Tensor,
    objects: ImageTargets,
    generator: Generator,
    rule: Rule,
    quota: Quota,
    num_classes: int,
) -> StageSamples:
    boxes = torch.cat([objects.boxes, proposals])
    # An object's own box is its own, whatever else lies there: of several with the same box each is learnt (mmdet's
    # AssignResult.add_gt_).
    themselves = torch.arange(len(objects.boxes), device=boxes.device)
    assigned = torch.cat([themselves, assign(proposals, objects, rule)])
    positives, negatives = sample(assigned, quota, generator)
    chosen = torch.cat([positives, negatives])
    owners = assigned[chosen]
    labels = torch.full_like(owners, num_classes)
    labels[: len(positives)] = objects.labels[owners[: len(positives)]]
    return StageSamples(boxes[chosen], torch.full_like(owners, index), labels, owners, chosen < len(objects.boxes))


def _nothing(samples: StageSamples) -> StageSamples:
    """One RoI that no loss counts, in place of none."""
    box = samples.boxes.new_tensor([[0.0, 0.0, 1.0, 1.0]])
    zero = samples.images.new_zeros(1)
    return StageSamples(box, zero, zero + NO_LABEL, zero - 1, zero.bool())


def refine(
    samples: StageSamples,
    logits: Tensor,
    deltas: Tensor,
    stds: Stds,
    image_sizes: Tensor,
) -> list[Tensor]:
    """The proposals of the next stage: what this one made of its RoIs, the objects' own boxes left out.

    A positive moves as its own class says, a negative as its best class other than background.

    Args:
        samples: RoIs that this stage looked at.
        logits: ``(R, K + 1)`` of the classes and background.
        deltas: ``(R, K, 4)`` for each class.
        stds: what this stage's deltas are divided by.
        image_sizes: ``(B, 2)``, ``(H, W)`` before padding, to which boxes are clipped.

    Returns:
        Per image ``(n, 4)``.
    """
    label = torch.where(samples.positive, samples.labels, logits[:, :-1].argmax(dim=1))
    rows = torch.arange(len(label), device=label.device)
    boxes = decode_deltas(samples.boxes, deltas[rows, label], stds, image_sizes[samples.images])
    keep = ~samples.is_object & (samples.labels != NO_LABEL)
    return [boxes[keep & (samples.images == i)] for i in range(len(image_sizes))]

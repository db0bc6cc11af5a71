"""Which boxes a loss looks at: some positives, and negatives up to a fixed number (mmdet's `RandomSampler`)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from pipeline.train.losses.assign import NEGATIVE


@dataclass(frozen=True)
class Quota:
    """How many boxes of an image to sample: ``count`` in all, positives up to ``positive_fraction`` of them."""

    count: int
    positive_fraction: float


@dataclass(frozen=True)
class Sampling:
    """How much of an image the losses look at; the defaults are the published numbers.

    Attributes:
        anchors: of the RPN.
        proposals: that the RPN hands to the first stage, of each level and then of the image.
        rois: of each stage of the cascade.
    """

    anchors: Quota = Quota(256, positive_fraction=0.5)
    proposals: int = 2000
    rois: Quota = Quota(512, positive_fraction=0.25)


PUBLISHED = Sampling()


def sample(assigned: Tensor, quota: Quota, generator: Generator) -> tuple[Tensor, Tensor]:
    """Draw positives and negatives at random; negatives fill up what positives leave free.

    Args:
        assigned: int64 ``(N,)`` from `assign`.
        quota: how many.
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

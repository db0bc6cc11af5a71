"""Simple copy-paste: Ghiasi et al., Simple Copy-Paste is a Strong Data Augmentation Method (2021).

Without the blending of edges, which the paper finds to make no difference.
"""

from __future__ import annotations

import numpy as np

from pipeline.train.sample.geometry import window, with_masks
from pipeline.train.sample.sample import Sample


def copy_paste(sample: Sample, source: Sample, rng: np.random.Generator) -> Sample:
    """Paste a random subset of another image's objects over this image, where they lie there.

    Any number of objects is as likely as any other, none included. Pasted objects hide what is behind them:
    masks lose the hidden pixels, boxes shrink with them, and objects that vanish are dropped. Ignored objects
    of the source are never pasted; what of them lies within a pasted object comes with it as pixels only.

    Args:
        sample: pasted onto; its objects come first in the result.
        source: pasted from; cut or extended to the sample's size at its upper left corner.
        rng: chooses.
    """
    height, width = sample.pixels.shape[:2]
    if source.pixels.shape[:2] != (height, width):
        source = window(source, 0, 0, (height, width))
    candidates = np.flatnonzero(~source.ignored)
    chosen = np.sort(rng.permutation(candidates)[: rng.integers(0, len(candidates) + 1)])
    pasted = source.masks[chosen]
    front = pasted.any(axis=0)
    together = Sample(
        image_id=sample.image_id,
        pixels=sample.pixels,
        boxes=np.concatenate([sample.boxes, source.boxes[chosen]]),
        labels=np.concatenate([sample.labels, source.labels[chosen]]),
        masks=np.concatenate([sample.masks & ~front, pasted]),
        ignored=np.concatenate([sample.ignored, source.ignored[chosen]]),
    )
    return with_masks(together, np.where(front[..., None], source.pixels, sample.pixels), together.masks)

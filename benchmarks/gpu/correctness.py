"""Whether the device computes what it should: against the reference, against other ways, against other kernels."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.bench import Bench
from pipeline.model.categories import COCO_CATEGORIES
from pipeline.model.files.checkpoints import Checkpoint
from pipeline.model.predictor import load_model
from pipeline.model.settings import TestSettings
from tests.model import golden_cases
from tests.model.compare import match
from tests.model.golden_weights import GOLDEN_VARIANT, golden_weights

# A pair of detections: in float32 as the tests of the golden cases have it, in bf16 the same object by and large.
_ALIKE = {"fp32": (0.99, 1e-3), "bf16": (0.8, 0.1)}


def golden(bench: Bench) -> None:
    """Each precision's detections beside those of the reference implementation."""
    from pipeline.model.cascade_mask_rcnn.layouts import to_native

    weights = to_native(golden_weights(), "official")
    checkpoint = Checkpoint(weights, GOLDEN_VARIANT, COCO_CATEGORIES, TestSettings())
    for precision, (min_iou, max_score) in _ALIKE.items():
        predictor = load_model(checkpoint, bench.device, precision)
        for case in golden_cases.CASES[: 1 if bench.small else None]:
            data = golden_cases.golden(case)
            predictor.settings = data.settings
            [found], reference = predictor.predict([data.image]), data.found
            pairs = match(reference, found, min_iou, max_score)
            theirs, ours = np.array(pairs, int).reshape(-1, 2).T
            known = dict(pairs)
            masks = [
                np.abs(found.masks[known[i]] - mask).max()
                for i, mask in enumerate(data.arrays["mask_prob_top"])
                if i in known
            ]
            bench.report(
                f"{case}, {precision}",
                {
                    "matched": len(pairs),
                    "of": len(reference.scores),
                    "found": len(found),
                    "box px": _largest(reference.boxes[theirs] - found.boxes[ours]),
                    "score": _largest(reference.scores[theirs] - found.scores[ours]),
                    "mask": _largest(np.array(masks)),
                },
            )


def _largest(differences: np.ndarray) -> float | None:
    return float(np.abs(differences).max()) if differences.size else None


def exactness(bench: Bench) -> None:
    """The forward beside the one in which every candidate counts, then operators beside torchvision and OpenCV."""
    from benchmarks.gpu.inputs import forward_of

    for precision in ("fp32", "bf16"):
        predictor = bench.predictor(precision, cuda_graphs=False)
        found, every = (forward_of(predictor, bench, 2, every_candidate)() for every_candidate in (False, True))
        differ = [
            field.name
            for field in fields(found)
            if field.name != "final" and not torch.equal(getattr(found, field.name), getattr(every, field.name))
        ]
        bench.report(
            f"every candidate, {precision}",
            {"differ": differ, "detections": found.counts.tolist(), "final": found.final.tolist()},
        )
    for name, difference in _operators(bench.device).items():
        bench.report(name, difference)


def _operators(device: torch.device) -> dict[str, Any]:
    from pipeline.model.kernels.nms import nms_groups
    from pipeline.model.kernels.resize import resize_normalise
    from pipeline.model.kernels.roi_align import roi_align_levels
    from tests.model.kernels import cases

    def there(tensors: list[Tensor]) -> list[Tensor]:
        return [tensor.to(device) for tensor in tensors]

    found: dict[str, Any] = {}
    features = cases.maps(channels=256)
    boxes, levels, images = cases.boxes_of_all_kinds()
    expected = cases.torchvision_levels(features, boxes, levels, images, 7)
    pooled = roi_align_levels(there(features), *there([boxes, levels, images]), 7, cases.STRIDES).cpu()
    found["roi_align_levels"] = {"largest difference": float((pooled - expected).abs().max())}
    differ = 0
    for seed in range(5):
        crowd, valid = cases.crowd(6, 1000, seed)
        keep = nms_groups(crowd.to(device), valid.to(device), 0.5).cpu()
        differ += int((keep != cases.torchvision_nms(crowd, valid, 0.5)).sum())
    found["nms_groups"] = {"decisions that differ": differ, "of": 5 * 6 * 1000}
    targets = [(96, 128), (150, 100), (37, 160)]
    pictures = cases.pictures_of([(60, 80), (211, 140), (30, 130)])
    inputs = resize_normalise(*there(list(cases.packed(pictures, targets))), 160, 160).cpu()
    numbers = int((inputs != cases.opencv_inputs(pictures, targets, 160, 160)).sum())
    found["resize_normalise"] = {"numbers that differ": numbers, "of": inputs.numel()}
    return found

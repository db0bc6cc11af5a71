"""Adapter of the parity kit: ``check_parity.py --adapter tests/parity_adapter.py`` (from the project root)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.model.cascade_mask_rcnn.layouts import infer_variant, to_native
from pipeline.model.categories import COCO_CATEGORIES
from pipeline.model.files.checkpoints import Checkpoint
from pipeline.model.predictor import Predictor
from pipeline.model.predictor import load_model as load
from pipeline.model.preprocess import input_shape, pack, packed_size
from pipeline.model.preprocess import preprocess as preprocess_batch
from pipeline.model.settings import TestSettings


def load_model(state_dict: dict[str, torch.Tensor], variant: dict[str, Any]) -> Predictor:
    native = to_native(state_dict, "official")
    return load(Checkpoint(native, infer_variant(native), COCO_CATEGORIES, TestSettings()), device="cpu")


def load_checkpoint(path: str, variant: dict[str, Any]) -> Predictor:
    return load(path, device="cpu")


def predict(model: Predictor, image_path: str, scale: tuple[int, int]) -> tuple[Any, ...]:
    model.settings = _settings(scale)
    found = model.predict([_read(image_path)])[0]
    return found.boxes, found.scores, found.labels, found.rle()


def preprocess(image_path: str, scale: tuple[int, int]) -> torch.Tensor:
    # By what is installed alone: the kit runs this file outside of the project's folder.
    image, settings = _read(image_path), _settings(scale)
    buffer = np.empty(packed_size([image]), np.uint8)
    pack([image], [image.shape[:2]], settings, buffer)
    return preprocess_batch(torch.from_numpy(buffer), 1, input_shape(image.shape[:2], settings)).images


def features(model: Predictor, tensor: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    with torch.inference_mode():
        maps = _backbone(model, tensor)
        return maps, model.detector.neck(maps)


def proposals(model: Predictor, tensor: torch.Tensor, img_shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        plan = model.detector.plan(tensor.shape[-2:])
        pyramid = model.detector.neck(_backbone(model, tensor))
        sizes = torch.tensor([img_shape], dtype=torch.float32)
        boxes, scores, valid = model.detector.rpn(pyramid, plan.anchors, sizes, model.settings)
        return boxes[valid], scores[valid]


def _backbone(model: Predictor, tensor: torch.Tensor) -> list[torch.Tensor]:
    return model.detector.backbone(tensor, model.detector.backbone.windows(tensor.shape[-2:]))


def _read(path: str | Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def _settings(scale: tuple[int, int]) -> TestSettings:
    return TestSettings(short_side=min(scale), long_side=max(scale))

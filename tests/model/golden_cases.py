"""What the reference made of two images: see golden/README.md for where the numbers come from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from pipeline.model.settings import TestSettings
from tests.model.compare import Found
from tests.model.golden_weights import GOLDEN_DIR

CASES = ("tiny_small_333x200", "tiny_tall_333x200")


@dataclass(frozen=True)
class Golden:
    """What the reference made of one image."""

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]
    image: np.ndarray

    @property
    def settings(self) -> TestSettings:
        long_side, short_side = self.meta["scale"]
        return TestSettings(short_side=short_side, long_side=long_side)

    @property
    def found(self) -> Found:
        return Found(self.arrays["boxes"], self.arrays["scores"], self.arrays["labels"])

    @property
    def rles(self) -> list[dict[str, Any]]:
        return [json.loads(text) for text in self.arrays["rles"]]


@lru_cache
def golden(case: str) -> Golden:
    with np.load(GOLDEN_DIR / f"{case}.npz") as file:
        arrays = dict(file)
    meta = json.loads(str(arrays["meta"]))
    path = GOLDEN_DIR / meta["image"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == meta["image_sha256"]
    return Golden(arrays, meta, np.asarray(Image.open(path).convert("RGB")))

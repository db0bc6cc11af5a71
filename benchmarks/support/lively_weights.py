"""A detector whose random weights behave like trained ones: signals neither vanish nor explode, objects are found.

With PyTorch's default initialisation nothing passes the score threshold and the mask heads, a sixth of the
work, stand idle. Benchmarks need the shapes of real work, not real detections.
"""

from __future__ import annotations

import torch
from torch import nn

from pipeline.model.cascade_mask_rcnn.detector import CascadeMaskRCNN
from pipeline.model.cascade_mask_rcnn.variants import CascadeVariant
from pipeline.model.categories import Category
from pipeline.model.files.checkpoints import Checkpoint
from pipeline.model.settings import TestSettings

RELU_GAIN = 2**0.5
# Logits of several units: a few hundred of the 80,000 (RoI, class) pairs pass the threshold, as on photographs.
CLASSIFIER_GAIN = 5.0


def lively_checkpoint(variant: CascadeVariant, seed: int = 0) -> Checkpoint:
    """Seeded weights for a variant, with 1000 proposals and up to 100 detections on any picture with texture."""
    torch.manual_seed(seed)
    detector = CascadeMaskRCNN(variant)
    for name, module in detector.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and not name.startswith("backbone"):
            fan_in = module.weight[0].numel() if not isinstance(module, nn.ConvTranspose2d) else module.weight.shape[0]
            gain = CLASSIFIER_GAIN if name.endswith("classify") else RELU_GAIN
            nn.init.normal_(module.weight, std=gain / fan_in**0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if name.endswith(("regress", "rpn.deltas")):
            nn.init.normal_(module.weight, std=0.01)
    categories = tuple(Category(i + 1, f"class {i + 1}") for i in range(variant.num_classes))
    return Checkpoint(detector.state_dict(), variant, categories, TestSettings(), {"file": "random weights"})

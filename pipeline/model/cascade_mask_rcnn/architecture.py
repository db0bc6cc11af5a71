"""What the rest of the project knows of Cascade Mask R-CNN (Cai & Vasconcelos 2018; He et al. 2017). No torch.

URLs and figures of the official models are from the tables in the README of
github.com/SwinTransformer/Swin-Transformer-Object-Detection; ModelScope's figures from its model card. None
of the files could be fetched where this table was written, so no URL is tested and no checksum is known:
the download records the sha256 of what it got beside the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.model.architecture import Architecture, KnownModel, Network
from pipeline.model.cascade_mask_rcnn.variants import (
    PUBLISHED_VARIANTS,
    CascadeVariant,
    giga_macs,
    published_drop_path,
)

if TYPE_CHECKING:
    from pipeline.model.cascade_mask_rcnn.detector import CascadeMaskRCNN

_STORAGE = "https://github.com/SwinTransformer/storage/releases/download"
_MODELS = (
    KnownModel(
        "swin_t_coco_1x",
        f"{_STORAGE}/v1.0.3/cascade_mask_rcnn_swin_tiny_patch4_window7_1x.pth",
        48.1,
        41.7,
        "Apache-2.0",
    ),
    KnownModel(
        "swin_t_coco",
        f"{_STORAGE}/v1.0.2/cascade_mask_rcnn_swin_tiny_patch4_window7.pth",
        50.4,
        43.7,
        "Apache-2.0",
    ),
    KnownModel(
        "swin_s_coco",
        f"{_STORAGE}/v1.0.2/cascade_mask_rcnn_swin_small_patch4_window7.pth",
        51.9,
        45.0,
        "Apache-2.0",
    ),
    KnownModel(
        "swin_b_coco",
        f"{_STORAGE}/v1.0.2/cascade_mask_rcnn_swin_base_patch4_window7.pth",
        51.9,
        45.0,
        "Apache-2.0",
    ),
    KnownModel(
        "swin_b_coco_modelscope",
        "https://modelscope.cn/api/v1/models/damo/cv_swin-b_image-instance-segmentation_coco/repo"
        "?Revision=master&FilePath=pytorch_model.pt",
        52.7,
        46.1,
        "Apache-2.0",
    ),
)


def _network() -> Network[CascadeVariant, CascadeMaskRCNN]:
    # Here, so that a config that asks for the names of variants does not load torch.
    from pipeline.model.cascade_mask_rcnn.network import NETWORK

    return NETWORK


CASCADE_MASK_RCNN = Architecture(
    name="cascade_mask_rcnn_swin",
    title="Cascade Mask R-CNN",
    variant_type=CascadeVariant,
    variant_from_dict=CascadeVariant.from_dict,
    network=_network,
    variants=PUBLISHED_VARIANTS,
    models=_MODELS,
    drop_path=published_drop_path,
    giga_macs=giga_macs,
)

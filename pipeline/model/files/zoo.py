"""Published checkpoints this project can use, by name. Data only; `pipeline.storage.download` fetches them.

URLs and figures of the official models are from the tables in the README of
github.com/SwinTransformer/Swin-Transformer-Object-Detection; ModelScope's figures from its model card. None
of the files could be fetched where this table was written, so no URL is tested and no checksum is known:
the download records the sha256 of what it got beside the file.
"""

from __future__ import annotations

from dataclasses import dataclass

_STORAGE = "https://github.com/SwinTransformer/storage/releases/download"


@dataclass(frozen=True)
class KnownModel:
    """A published detector.

    Attributes:
        name: what users write.
        url: where the file lies.
        box_map: COCO val2017 box mAP, percent, as published.
        mask_map: COCO val2017 mask mAP, percent, as published.
        licence: of the repository it comes from; none of them states another one for the weights.
        sha256: of the file, or None where nobody here has seen it.
    """

    name: str
    url: str
    box_map: float
    mask_map: float
    licence: str
    sha256: str | None = None

    @property
    def file_name(self) -> str:
        """What the file is called in the cache: unique, with the published suffix."""
        return self.name + "." + self.url.rsplit(".", 1)[-1]


KNOWN_MODELS: dict[str, KnownModel] = {
    model.name: model
    for model in (
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
}

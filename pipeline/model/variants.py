"""The sizes of the model: the published variants, and the knobs that make smaller ones.

A variant is data. It holds everything that decides the shape of a weight; `TestSettings` holds what a user
may change on a trained model (input size, thresholds, proposal counts).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Variant:
    """The architecture. Defaults are those of the published configs; the backbone sizes have none.

    Attributes:
        name: for people and for metadata.
        embed_dim: channels of the first Swin stage; stage ``i`` has ``embed_dim * 2**i``.
        depths: blocks per stage.
        num_heads: attention heads per stage.
        window_size: side of an attention window, in tokens.
        num_classes: object classes, background not counted.
        fpn_channels: channels of every pyramid level.
        box_convs: 3x3 convolutions in each box head.
        box_channels: their channels.
        box_fc: width of the fully connected layer of each box head.
        mask_convs: 3x3 convolutions in each mask head.
        mask_channels: their channels.
    """

    name: str
    embed_dim: int
    depths: tuple[int, int, int, int]
    num_heads: tuple[int, int, int, int]
    window_size: int = 7
    num_classes: int = 80
    fpn_channels: int = 256
    box_convs: int = 4
    box_channels: int = 256
    box_fc: int = 1024
    mask_convs: int = 4
    mask_channels: int = 256

    def __post_init__(self) -> None:
        for key, value in asdict(self).items():
            if key == "name":
                continue
            values = value if isinstance(value, tuple) else (value,)
            if not all(isinstance(v, int) and v >= (0 if key.endswith("_convs") else 1) for v in values):
                raise ValueError(f"variant {self.name!r}: {key}={value!r} must be positive integers")
        if len(self.depths) != 4 or len(self.num_heads) != 4:
            raise ValueError(f"variant {self.name!r}: depths and num_heads need one value for each of 4 stages")
        for i, heads in enumerate(self.num_heads):
            if (self.embed_dim * 2**i) % heads:
                raise ValueError(
                    f"variant {self.name!r}: stage {i} has {self.embed_dim * 2**i} channels, "
                    f"which do not split over {heads} heads"
                )

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Variant:
        """The variant that ``dataclasses.asdict`` wrote (lists, as JSON has them, are accepted)."""
        return Variant(**_checked(Variant, values))


@dataclass(frozen=True)
class TestSettings:
    """What happens at test time; the defaults are the published ones.

    Attributes:
        short_side: the shorter image side is scaled to this, in pixels.
        long_side: unless the longer one would exceed this.
        proposals_per_level: proposals kept per pyramid level before NMS.
        proposals: proposals kept per image after NMS.
        rpn_nms_iou: IoU above which the lesser of two proposals goes.
        score_threshold: detections need a score above this.
        nms_iou: IoU above which the lesser of two detections of one class goes.
        max_detections: detections kept per image.
    """

    __test__ = False  # pytest: not a test class

    short_side: int = 800
    long_side: int = 1333
    proposals_per_level: int = 1000
    proposals: int = 1000
    rpn_nms_iou: float = 0.7
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_detections: int = 100

    def __post_init__(self) -> None:
        for name in ("short_side", "long_side", "proposals_per_level", "proposals", "max_detections"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"test settings: {name}={value!r} must be a positive integer")
        for name in ("rpn_nms_iou", "score_threshold", "nms_iou"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"test settings: {name}={value!r} must lie in [0, 1]")

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> TestSettings:
        """The settings that ``dataclasses.asdict`` wrote."""
        return TestSettings(**_checked(TestSettings, values))


def _checked(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    unknown = set(values) - {f.name for f in fields(cls)}
    if unknown:
        raise ValueError(f"unknown {cls.__name__} keys: {', '.join(sorted(unknown))}")
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


SWIN_T = Variant("swin_t", embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24))
SWIN_S = Variant("swin_s", embed_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24))
SWIN_B = Variant("swin_b", embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32))

VARIANTS: dict[str, Variant] = {v.name: v for v in (SWIN_T, SWIN_S, SWIN_B)}

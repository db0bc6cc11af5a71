"""The sizes of the model: the published variants, and the knobs that make smaller ones. No torch.

A variant is data. It holds everything that decides the shape of a weight; `pipeline.model.settings.TestSettings` holds
what a user may change on a trained model (input size, thresholds, proposal counts).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import Field, Strict

from pipeline.config.base import Count, PositiveInt, Section
from pipeline.model.settings import checked_fields

# Far above all that is in use: a file that says more is damaged, and what it says is not built.
_LARGEST = {"depths": 128, "window_size": 32, "box_convs": 64, "mask_convs": 64}
_LARGEST_WIDTH = 1 << 16


@dataclass(frozen=True)
class CascadeVariant:
    """The architecture. Defaults are those of the published configs; the backbone sizes have none.

    Attributes:
        name: for people and for metadata.
        embed_dim: channels of the first Swin stage; stage ``i`` has ``embed_dim * 2**i``.
        depths: blocks in each Swin stage.
        num_heads: attention heads in each Swin stage.
        window_size: side of an attention window, in tokens.
        num_classes: object classes, background not counted.
        fpn_channels: channels of every pyramid level.
        box_convs: 3x3 convolutions in each box head.
        box_channels: channels of these convolutions.
        box_fc: width of the fully connected layer of each box head.
        mask_convs: 3x3 convolutions in each mask head.
        mask_channels: channels of these convolutions.
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
            values = value if key in ("depths", "num_heads") and isinstance(value, tuple) else (value,)
            least, most = (0 if key.endswith("_convs") else 1), _LARGEST.get(key, _LARGEST_WIDTH)
            if not all(type(v) is int and least <= v <= most for v in values):
                raise ValueError(f"variant: {key} must be whole numbers from {least} to {most:,}, not {value!r:.60}")
        if len(self.depths) != 4 or len(self.num_heads) != 4:
            raise ValueError(f"variant {self.name!r}: depths and num_heads need one value for each of 4 stages")
        for i, heads in enumerate(self.num_heads):
            if (self.embed_dim * 2**i) % heads:
                raise ValueError(
                    f"variant {self.name!r}: stage {i} has {self.embed_dim * 2**i} channels, "
                    f"which do not split over {heads} heads"
                )

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> CascadeVariant:
        """The variant that ``dataclasses.asdict`` wrote (lists, as JSON has them, are accepted)."""
        return CascadeVariant(**checked_fields(CascadeVariant, values))

    def sizes(self) -> str:
        """Those of the backbone, after the name."""
        return (
            f"{self.name} (embed_dim {self.embed_dim}, depths {self.depths}, heads {self.num_heads}, "
            f"window {self.window_size})"
        )


class CascadeSizes(Section):
    """A detector of other sizes than the published ones."""

    embed_dim: PositiveInt = Field(description="Channels of the first Swin stage; each further one has twice as many.")
    depths: Annotated[tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt], Strict(False)] = Field(
        description="Blocks of each stage."
    )
    num_heads: Annotated[tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt], Strict(False)] = Field(
        description="Attention heads of each stage."
    )
    window_size: PositiveInt = Field(default=7, description="Side of an attention window, in tokens.")
    fpn_channels: PositiveInt = Field(default=256, description="Channels of every pyramid level.")
    box_convs: Count = Field(default=4, description="3x3 convolutions in each box head.")
    box_channels: PositiveInt = Field(default=256, description="Their channels.")
    box_fc: PositiveInt = Field(default=1024, description="Width of each box head's fully connected layer.")
    mask_convs: Count = Field(default=4, description="3x3 convolutions in each mask head.")
    mask_channels: PositiveInt = Field(default=256, description="Their channels.")

    def variant(self) -> CascadeVariant:
        """Of these sizes, with any number of classes."""
        return CascadeVariant(name="custom", **self.model_dump())


SWIN_T = CascadeVariant("swin_t", embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24))
SWIN_S = CascadeVariant("swin_s", embed_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24))
SWIN_B = CascadeVariant("swin_b", embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32))
PUBLISHED_VARIANTS = (SWIN_T, SWIN_S, SWIN_B)

# Multiply-adds in billions for 1280 x 800, as published. The box and mask heads work on a fixed number of regions of
# fixed size, whatever the picture's size; the rest grows with the area.
_GIGA_MACS = {"swin_t": 745.0, "swin_s": 838.0, "swin_b": 982.0}
_HEADS_GIGA_MACS = 545.0
_REFERENCE_AREA = 800 * 1280


def giga_macs(variant: CascadeVariant, area: float) -> float | None:
    """Multiply-adds in billions of a published variant for an input of this many pixels."""
    total = _GIGA_MACS.get(variant.name)
    return None if total is None else _HEADS_GIGA_MACS + (total - _HEADS_GIGA_MACS) * area / _REFERENCE_AREA


def published_drop_path(variant: CascadeVariant) -> float:
    """The rate that the published detector of this size was trained with."""
    return 0.3 if variant.embed_dim >= 128 else 0.2

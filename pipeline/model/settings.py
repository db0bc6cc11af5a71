"""What a user may change about a detector without changing its weights, and what every detector is fed. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field

from pipeline.config.base import ConfigError, PositiveInt, Section

# ImageNet statistics of RGB in 0..255, as in every published config.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


def refuse_fp16(name: str) -> str:
    """The same name of a precision, known or not.

    Raises:
        ValueError: it is fp16, which was an option once; the message says what to write instead.
    """
    if name == "fp16":
        raise ValueError(
            "fp16 is no option any more: its numbers end at 65,504, and what exceeds them makes an image's result NaN. "
            "Write bf16, which takes as little time and memory, or fp32. Results made in fp16 stay readable; a run in "
            "another precision needs an output of its own"
        )
    return name


_PrecisionName = Literal["fp32", "bf16"]
PRECISION_NAMES: tuple[str, ...] = get_args(_PrecisionName)
Precision = Annotated[_PrecisionName, BeforeValidator(refuse_fp16)]

_LARGEST_SETTING = 1 << 20  # of sides and counts: more is a slip of the pen, or a damaged file
# A hundred times the published number. A mask is 28 x 28 floats on its way, so that this many on each image of a block
# of 32 are 1 GB; and a detector with a thousand proposals has little more to say.
MAX_DETECTIONS = 10_000


@dataclass(frozen=True)
class TestSettings:
    """What happens at test time; the defaults are the published ones. A detector leaves aside what it has no part for.

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
            if type(value) is not int or not 1 <= value <= _LARGEST_SETTING:
                raise ValueError(
                    f"test settings: {name} must be a whole number from 1 to {_LARGEST_SETTING:,}, not {value!r:.60}"
                )
        if self.max_detections > MAX_DETECTIONS:
            raise ValueError(f"test settings: max_detections={self.max_detections} must be at most {MAX_DETECTIONS}")
        for name in ("rpn_nms_iou", "score_threshold", "nms_iou"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value <= 1:
                raise ValueError(f"test settings: {name} must lie in [0, 1], not {value!r:.60}")

    def changed(self, changes: Mapping[str, Any]) -> TestSettings:
        """These with some that a user gave.

        Raises:
            ConfigError: one of them cannot be.
        """
        try:
            return replace(self, **changes)
        except ValueError as error:
            raise ConfigError(str(error)) from None

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> TestSettings:
        """The settings that ``dataclasses.asdict`` wrote."""
        return TestSettings(**checked_fields(TestSettings, values))


@dataclass(frozen=True)
class Quota:
    """How many boxes of an image to sample: ``count`` in all, positives up to ``positive_fraction`` of them."""

    count: int
    positive_fraction: float


class SamplingConfig(Section):
    """How much of each image the losses look at. Defaults are the published numbers."""

    anchors: PositiveInt = Field(default=256, description="Anchors of the RPN, half positive.")
    proposals: PositiveInt = Field(default=2000, description="Proposals that the first stage is given.")
    rois: PositiveInt = Field(
        default=512, description="RoIs of each stage, a quarter positive. Small pictures need fewer."
    )

    @property
    def anchor_quota(self) -> Quota:
        """Of the proposal network."""
        return Quota(self.anchors, positive_fraction=0.5)

    @property
    def roi_quota(self) -> Quota:
        """Of each stage."""
        return Quota(self.rois, positive_fraction=0.25)


PUBLISHED_SAMPLING = SamplingConfig()


def checked_fields(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a dataclass that JSON brought back, lists as tuples.

    Raises:
        ValueError: a key that the class has no field for.
    """
    unknown = set(values) - {f.name for f in fields(cls)}
    if unknown:
        raise ValueError(f"unknown {cls.__name__} keys: {', '.join(sorted(unknown))}")
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}

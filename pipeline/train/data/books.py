"""The books of training data: every image and every annotation is counted in exactly one place."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class DataReport:
    """What became of the images and annotations (detections, for pseudo-labels) of a source. Reports add up.

    ``images = usable + failed + without_uri + left_out`` and ``annotations = objects + ignored + no_area + outside +
    tiny + below_threshold + foreign``.

    Attributes:
        images: that the source lists.
        usable: of them, that are trained on.
        negatives: of the usable ones, those without objects, ignored ones included.
        failed: that the annotate job gave up on.
        without_uri: of which nobody knows where they are.
        left_out: without objects, where such images are not wanted.
        annotations: that the source lists, failed images and those without a URI excepted.
        objects: annotations to be found.
        ignored: crowds and uncertain detections: neither to be found nor background.
        clipped: of objects and ignored ones, those whose box went beyond the image; the rest of it counts.
        no_area: dropped: their box has no width or no height.
        outside: dropped: their box lies outside of the image.
        tiny: dropped: their mask has fewer pixels than ``geometry.MIN_PIXELS``.
        below_threshold: dropped: scores below the lower threshold.
        foreign: dropped: detections of classes that are not trained.
    """

    images: int = 0
    usable: int = 0
    negatives: int = 0
    failed: int = 0
    without_uri: int = 0
    left_out: int = 0
    annotations: int = 0
    objects: int = 0
    ignored: int = 0
    clipped: int = 0
    no_area: int = 0
    outside: int = 0
    tiny: int = 0
    below_threshold: int = 0
    foreign: int = 0

    def __add__(self, other: DataReport) -> DataReport:
        return DataReport(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    @property
    def balanced(self) -> bool:
        """Whether the sums above hold."""
        images = self.usable + self.failed + self.without_uri + self.left_out
        dropped = self.no_area + self.outside + self.tiny + self.below_threshold + self.foreign
        return self.images == images and self.annotations == self.objects + self.ignored + dropped

    def __str__(self) -> str:
        """All counts that are not 0, in one line."""
        counts = ((f.name.replace("_", " "), getattr(self, f.name)) for f in fields(self))
        return ", ".join(f"{count:,} {name}" for name, count in counts if count) or "no images"

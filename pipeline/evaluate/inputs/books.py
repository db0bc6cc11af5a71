"""What is wrong or noteworthy about ground truth and predictions, counted where it is found and added up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

from pipeline.messages.examples import Examples

SAME_IDS = "An output has the ids of a ground truth that annotate was given as its manifest (manifest.format: coco)"

_NONE = Examples()

WhichImages = Literal["all", "annotated"]


@dataclass(frozen=True)
class InputReport:
    """The books of both inputs. Reports of parts add up to the report of the whole.

    Attributes:
        images: of the ground truth.
        objects: annotations of the ground truth.
        rows: images of the predictions.
        common: images that both have.
        detections: by category name, of all rows, also of images that the ground truth lacks.
        without_box: detections whose box is the smallest one about their mask, for want of another.
        missing: images of the ground truth without predictions.
        failed: images of the ground truth that the annotation gave up on.
        unknown: images of the predictions that the ground truth lacks.
        foreign: detections of categories that the ground truth lacks, by the category's name.
        other_size: images whose sizes differ in both.
        renamed: categories with one id and two names.
        repeated_images: image ids that the ground truth has more than once.
        repeated_rows: images that the predictions have more than once.
        repeated_objects: annotation ids that the ground truth has more than once.
        orphans: annotations of images that the ground truth lacks.
    """

    images: int = 0
    objects: int = 0
    rows: int = 0
    common: int = 0
    detections: int = 0
    without_box: int = 0
    missing: Examples = _NONE
    failed: Examples = _NONE
    unknown: Examples = _NONE
    foreign: Mapping[str, int] = field(default_factory=dict)
    other_size: Examples = _NONE
    renamed: Examples = _NONE
    repeated_images: Examples = _NONE
    repeated_rows: Examples = _NONE
    repeated_objects: Examples = _NONE
    orphans: Examples = _NONE

    def __add__(self, other: InputReport) -> InputReport:
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self) if f.name != "foreign"}
        names = sorted({*self.foreign, *other.foreign})
        foreign = {name: self.foreign.get(name, 0) + other.foreign.get(name, 0) for name in names}
        return InputReport(**sums, foreign=foreign)

    def problems(self) -> list[str]:
        """Why the inputs cannot be evaluated, and what to do; empty if they can."""
        found = [
            (
                self.repeated_images,
                "images of the ground truth have an id that another one has, too: {}; give each its own",
            ),
            (
                self.repeated_objects,
                "annotations of the ground truth have an id that another one has, too: {}; number them anew",
            ),
            (self.orphans, "annotations belong to images that the ground truth lacks: {}; remove them or add these"),
            (
                self.repeated_rows,
                "images have more than one row of predictions: {}; annotate puts its output right when it runs again",
            ),
            (
                self.other_size,
                "images have another size (height x width) in the predictions than in the ground truth: {}; where the "
                "sides are swapped, one of them ignores the orientation that EXIF gives, or swaps height and width",
            ),
            (
                self.renamed,
                "categories have one id and two names: {}; the predictions are of another model, or the ground truth "
                "numbers its categories in another way",
            ),
        ]
        texts = [f"{cases.count:,} {text.format(cases)}" for cases, text in found if cases.count]
        if self.images and self.rows and not self.common:
            texts.append(
                f"no image is in both: the predictions have {self.unknown}, the ground truth {self.missing}; "
                f"are they of the same images, with the same ids? {SAME_IDS}"
            )
        return texts

    def decisions(self, images: WhichImages) -> list[str]:
        """How the evaluation deals with what one might want to know about: a sentence each.

        Args:
            images: which images of the ground truth count.
        """
        counts_as = "count as images without detections" if images == "all" else "are left out"
        foreign = ", ".join(f"{name} ({count:,})" for name, count in self.foreign.items())
        found = [
            (not self.images, "the ground truth has no images: every figure is -1"),
            (self.images and not self.objects, "the ground truth has no annotations: every figure is -1"),
            (not self.detections, "there are no detections"),
            (
                self.missing.count,
                f"images of the ground truth without predictions {counts_as}: {self.missing.count:,} ({self.missing})",
            ),
            (
                self.failed.count,
                f"images that could not be annotated {counts_as}: {self.failed.count:,} ({self.failed})",
            ),
            (
                self.unknown.count,
                "images with predictions and without ground truth are left out: "
                f"{self.unknown.count:,} ({self.unknown})",
            ),
            (
                self.foreign,
                "detections of categories that the ground truth lacks are left out: "
                f"{sum(self.foreign.values()):,}: {foreign}",
            ),
            (
                self.without_box,
                "results without a box get the smallest one about their mask; whether it is small, medium or large is "
                f"then decided by the box (pycocotools takes the mask's area): {self.without_box:,}",
            ),
        ]
        return [text for applies, text in found if applies]

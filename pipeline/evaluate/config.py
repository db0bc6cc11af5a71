"""The settings of the evaluation job. `pipeline.config.loading` reads them from YAML."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, Strict, model_validator

from pipeline.config.base import (
    Place,
    PositiveInt,
    RayAddress,
    Score,
    Section,
    check_writable,
    is_local_folder,
    unique,
)
from pipeline.config.images import ImagesConfig
from pipeline.metrics.protocol import COCO_MAX_DETS, IOU_TYPES, CocoProtocol, IouType
from pipeline.storage.uris import Uri


class PredictionsConfig(Section):
    """What is evaluated."""

    uri: Place = Field(description="Output folder of the annotate job, or a COCO results file (.json).")

    def read_by_workers(self) -> dict[str, Uri | None]:
        """What is read where the work is done, by the setting; a results file is read once, where the job runs."""
        return {"predictions.uri": self.uri} if is_local_folder(self.uri) else {}


class GroundTruthConfig(Section):
    """What it is compared with."""

    uri: Place = Field(description="A COCO JSON file with images, annotations and categories.")
    images: Literal["all", "annotated"] = Field(
        default="all",
        description="Which images count. all: an image without a result, or a failed one, has found nothing. "
        "annotated: such images are left out. Either way they are counted and named.",
    )


class MetricsConfig(Section):
    """How it is measured."""

    iou_types: Annotated[tuple[IouType, ...], Strict(False), AfterValidator(unique), Field(min_length=1)] = Field(
        default=IOU_TYPES, description="bbox: boxes are compared; segm: masks are."
    )
    max_dets: Annotated[tuple[PositiveInt, PositiveInt, PositiveInt], Strict(False)] = Field(
        default=COCO_MAX_DETS,
        description="Limits of detections per image and category. [1, 10, 100] is COCO's; mmdet and ModelScope report "
        "with [100, 300, 1000].",
    )

    @model_validator(mode="after")
    def _limits_ascend(self) -> MetricsConfig:
        self.protocol()
        return self

    def protocol(self) -> CocoProtocol:
        """The limits as the evaluation takes them."""
        return CocoProtocol(self.max_dets)

    @property
    def main_iou_type(self) -> IouType:
        """What the analysis looks at: masks where they are compared."""
        return "segm" if "segm" in self.iou_types else "bbox"


class AnalysisConfig(Section):
    """What is worked out beyond AP."""

    enabled: bool = Field(default=True, description="false: COCO's numbers only, in about half the time.")
    wanted_precision: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.9, description="thresholds.yaml gets for each class the lowest score that reaches this precision."
    )
    score_threshold: Score = Field(
        default=0.3, description="Detections below it do not count in the confusion matrix and the gallery."
    )


class GalleryConfig(Section):
    """The pictures of the report."""

    images_per_class: Annotated[int, Field(ge=0, le=20)] = Field(
        default=3, description="Worst and best images of each class that are shown; 0: no pictures."
    )
    image_root: Place | None = Field(
        default=None,
        description="Folder or URI prefix that relative image URIs are relative to. null: as the annotate job had it.",
    )
    images: ImagesConfig = Field(default=ImagesConfig(), description="How the pictures are fetched and decoded.")


class EvaluateResourcesConfig(Section):
    """What the job takes of the cluster. None of it changes results."""

    ray_address: RayAddress | None = Field(
        default=None,
        description="Address of a Ray cluster (host:port, ray://host:10001, auto). "
        "null: RAY_ADDRESS where it is set, else Ray in this process.",
    )


class ReportConfig(Section):
    """Where the report goes."""

    uri: Place = Field(
        description="Folder or prefix of metrics.json, report.html, thresholds.yaml and matches/. "
        "What an earlier evaluation left there is replaced."
    )


class EvaluateConfig(Section):
    """The evaluation job: the annotate job's output against ground truth."""

    predictions: PredictionsConfig = Field(description="What is evaluated.")
    ground_truth: GroundTruthConfig = Field(description="What it is compared with.")
    metrics: MetricsConfig = Field(default=MetricsConfig(), description="How it is measured.")
    analysis: AnalysisConfig = Field(default=AnalysisConfig(), description="What is worked out beyond AP.")
    gallery: GalleryConfig = Field(default=GalleryConfig(), description="The pictures of the report.")
    resources: EvaluateResourcesConfig = Field(
        default=EvaluateResourcesConfig(), description="What the job takes of the cluster."
    )
    output: ReportConfig = Field(description="Where the report goes.")

    @model_validator(mode="after")
    def _places_differ(self) -> EvaluateConfig:
        output, predictions = self.output.uri, self.predictions.uri
        check_writable(output)
        if output.is_at(predictions) or output.is_below(predictions / "data"):
            raise ValueError("output.uri is where the predictions lie: give the evaluation a folder of its own")
        return self

"""The settings of the training job. `pipeline.config.loading` reads them from YAML."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, Strict, model_validator

from pipeline.config.base import (
    ConfigError,
    Place,
    PositiveFloat,
    PositiveInt,
    RayAddress,
    Score,
    Section,
    Text,
    check_writable,
    unique,
)
from pipeline.config.images import ImagesConfig
from pipeline.model.architecture import Variant
from pipeline.model.architectures import KNOWN_MODELS, VARIANTS, Sizes, VariantName, architecture_of
from pipeline.model.settings import TestSettings
from pipeline.storage.uris import Uri, UriText
from pipeline.train.augment import AugmentConfig
from pipeline.train.loop.settings import Fraction, LoopConfig

_DROP_PATHS = ", ".join(f"{name} {architecture_of(variant).drop_path(variant)}" for name, variant in VARIANTS.items())


class SourceConfig(Section):
    """Images to learn from: COCO ground truth, or what the annotate job found."""

    uri: Uri = Field(
        description="A COCO JSON file, or an output folder of the annotate job, whose detections are then the labels."
    )
    image_root: Uri | None = Field(
        default=None,
        description="Folder or URI prefix that file names are relative to; needed for COCO. null: as the annotate job "
        "had it.",
    )
    weight: PositiveFloat | None = Field(
        default=None,
        description="Share of this source in what is seen, in any unit; for all sources or none. null: by its size.",
    )
    keep_empty: bool = Field(default=True, description="Images without objects are background to learn from.")
    object_score: Score = Field(
        default=0.7, description="Annotations of the annotate job: from this score on a detection is an object."
    )
    ignored_score: Score = Field(
        default=0.3,
        description="Likewise: from this score on, and below that of an object, it is neither object nor background.",
    )
    class_thresholds_file: UriText | None = Field(
        default=None,
        description="A YAML file {name: score}, as the evaluation job writes it, in place of object_score per class.",
    )

    @property
    def is_coco(self) -> bool:
        """A file, and no folder."""
        return str(self.uri).lower().endswith((".json", ".json.gz"))  # without a query

    @model_validator(mode="after")
    def _kinds_fit(self) -> SourceConfig:
        if self.is_coco and self.image_root is None:
            raise ValueError("image_root is missing: a COCO file names its pictures relative to a folder")
        if self.ignored_score > self.object_score:
            raise ValueError("ignored_score must be at most object_score")
        return self


class ValidationConfig(Section):
    """Images that are never learnt from."""

    uri: Uri = Field(description="A COCO JSON file.")
    image_root: Uri = Field(description="Folder or URI prefix that file names are relative to.")


class DataConfig(Section):
    """What is learnt from, and how it is read."""

    train: Annotated[tuple[SourceConfig, ...], Strict(False), Field(min_length=1)] = Field(
        description="Sources, which are mixed."
    )
    validation: ValidationConfig | None = Field(
        default=None, description="What best is chosen by. null: no validation, and no best."
    )
    images: ImagesConfig = Field(default=ImagesConfig(), description="How pictures are fetched and decoded.")
    batch_size: PositiveInt = Field(default=2, description="Images of a step on each worker.")
    epoch_size: PositiveInt | None = Field(
        default=None, description="Images of an epoch, all workers together. null: as many as the sources have."
    )

    @model_validator(mode="after")
    def _weights_for_all(self) -> DataConfig:
        given = [source.weight is not None for source in self.train]
        if any(given) and not all(given):
            raise ValueError("train: give a weight to all sources or to none")
        return self

    def read_by_workers(self) -> dict[str, Uri | None]:
        """The folders of pictures, which are read where the work is done, by the setting."""
        learnt = {f"data.train.{i}.image_root": source.image_root for i, source in enumerate(self.train)}
        return {**learnt, "data.validation.image_root": self.validation.image_root if self.validation else None}


class TrainModelConfig(Section):
    """What is trained. Test settings left null are those of the file it starts from, else the published ones."""

    start: UriText | None = Field(
        default=None,
        description="A detector or an ImageNet backbone to start from: a file, or the name of a published model "
        f"({', '.join(KNOWN_MODELS)}). "
        "null: from scratch. An output that holds a run already is gone on with in any case.",
    )
    variant: VariantName | None = Field(default=None, description="The architecture. null: that of start, or of sizes.")
    sizes: Sizes | None = Field(default=None, description="An architecture of one's own, in place of variant.")
    classes: Annotated[tuple[Text, ...], Strict(False), AfterValidator(unique), Field(min_length=1)] | None = Field(
        default=None, description="Names, in the order of the labels. null: those of the first COCO source."
    )
    drop_path: Fraction | None = Field(
        default=None, description=f"Chance that the last block is left out. null: as published ({_DROP_PATHS})."
    )
    short_side: PositiveInt | None = Field(
        default=None, description="For testing: the shorter image side is scaled to this, in pixels."
    )
    long_side: PositiveInt | None = Field(
        default=None, description="For testing: unless the longer one would exceed this, in pixels."
    )
    proposals: PositiveInt | None = Field(default=None, description="For testing: proposals of an image.")
    max_detections: PositiveInt | None = Field(default=None, description="For testing: detections of an image.")

    @model_validator(mode="after")
    def _one_architecture(self) -> TrainModelConfig:
        if self.variant is not None and self.sizes is not None:
            raise ValueError("variant and sizes are two architectures: make one of them null")
        if self.start is None and self.variant is None and self.sizes is None:
            raise ValueError("training from scratch needs variant or sizes; or give a start")
        if self.short_side and self.long_side and self.short_side > self.long_side:
            raise ValueError("short_side must be at most long_side")
        self.architecture()
        return self

    def architecture(self) -> Variant | None:
        """The variant that was asked for, whatever its number of classes."""
        if self.sizes is not None:
            return self.sizes.variant()
        return None if self.variant is None else VARIANTS[self.variant]

    def settings(self, base: TestSettings) -> TestSettings:
        """The test settings that the trained model gets.

        Raises:
            ConfigError: the two do not go together.
        """
        keys = ("short_side", "long_side", "proposals", "max_detections")
        given = {key: value for key in keys if (value := getattr(self, key)) is not None}
        if self.proposals is not None:
            given["proposals_per_level"] = self.proposals
        settings = base.changed(given)
        if settings.short_side > settings.long_side:
            raise ConfigError(f"short_side {settings.short_side} exceeds long_side {settings.long_side}: set both")
        return settings


class TrainResourcesConfig(Section):
    """What the job takes of the cluster. Workers are part of what is computed; the rest changes no result."""

    ray_address: RayAddress | None = Field(
        default=None,
        description="Address of a Ray cluster (host:port, ray://host:10001, auto). "
        "null: RAY_ADDRESS where it is set, else Ray in this process.",
    )
    workers: PositiveInt = Field(default=1, description="Processes that train together, a batch of their own each.")
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] | None = Field(
        default=None, description="0 or 1. null: 1 where the cluster has GPUs, else 0."
    )
    cpus_per_worker: PositiveFloat = Field(default=1.0, description="CPUs that each worker reserves and computes with.")
    data_cpus_per_task: PositiveFloat = Field(
        default=1.0, description="CPUs that a task reserves which reads and augments pictures."
    )


class TrainOutputConfig(Section):
    """Where checkpoints and curves go."""

    uri: Place = Field(
        description="Folder or prefix of last.safetensors, best.safetensors, training.json and tensorboard/. "
        "It is also what a run goes on from."
    )
    save_every: PositiveInt | None = Field(
        default=None, description="Steps between two last.safetensors within an epoch. null: one an epoch."
    )


class TrainConfig(LoopConfig):
    """The training job: images with masks to a checkpoint that annotate takes."""

    data: DataConfig = Field(description="What is learnt from, and how it is read.")
    model: TrainModelConfig = Field(description="What is trained.")
    augment: AugmentConfig = Field(default=AugmentConfig(), description="What happens to a picture before.")
    resources: TrainResourcesConfig = Field(
        default=TrainResourcesConfig(), description="What the job takes of the cluster."
    )
    output: TrainOutputConfig = Field(description="Where checkpoints and curves go.")

    @model_validator(mode="after")
    def _output_is_apart(self) -> TrainConfig:
        check_writable(self.output.uri)
        if any(source.uri.is_at(self.output.uri) for source in self.data.train):
            raise ValueError("output.uri is one of data.train: give the training a folder of its own")
        return self

    def content(self) -> dict[str, Any]:
        """What a run that goes on must have in common with the one that began; JSON-able and without secrets.

        Left out: resources but for the workers, how often it is validated, saved and logged, and where things lie.
        """
        values = self.model_dump(mode="json")
        for key in ("evaluate_every", "log_every", "output", "activation_checkpointing"):
            del values[key]
        values["resources"] = {"workers": self.resources.workers}
        del values["data"]["images"]
        return values

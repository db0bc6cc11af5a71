"""The settings of the annotate job. `pipeline.config.loading` reads them from YAML."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, Strict, field_validator, model_validator

from pipeline.annotations.class_thresholds import read_class_thresholds
from pipeline.config.base import (
    ConfigError,
    LimitSeconds,
    Place,
    PositiveFloat,
    PositiveInt,
    RayAddress,
    Score,
    Section,
    Text,
    check_writable,
    did_you_mean,
    is_local_folder,
    unique,
)
from pipeline.config.images import ImagesConfig
from pipeline.lake.config import CATALOG_SCHEME, TableConfig
from pipeline.model.architectures import KNOWN_MODELS
from pipeline.model.settings import MAX_DETECTIONS, Precision, TestSettings
from pipeline.storage.uris import Uri, UriText

# A block crosses the object store as a whole: 128 MiB are about 40 pictures of 1333 x 800. Larger blocks were measured
# to leave the actors idle (too few in flight), far smaller ones to make the driver's scheduling loop the limit.
MAX_IMAGES_PER_BLOCK = 64
_BATCHES_PER_BLOCK = 4
TABLE_FORMATS = ("delta", "iceberg")
IN_A_TABLE = "output.uri lies in the table manifest.uri, whose upkeep removes files not its own: keep them apart"
_COMPILE_S = 1800.0


def _local(folder: Uri) -> Uri:
    if folder.local_path is None:
        raise ValueError("compiled programs are loaded from local paths only: give a folder, one that is mounted")
    return folder


class ManifestConfig(Section):
    """Which images: a table with one row an image, a list of paths, a COCO file, or a folder."""

    uri: Place = Field(description="The manifest: a local path, s3:// or another URI. A file, or a folder of files.")
    format: Literal[
        "auto",
        "parquet",
        "csv",
        "tsv",
        "list",
        "jsonl",
        "coco",
        "folder",
        "inventory",
        "delta",
        "iceberg",
        "webdataset",
    ] = Field(
        default="auto",
        description="How to read it. auto: by the suffix; 'list' has a path or URI a line (.txt), 'folder' takes every "
        "image file below the URI, 'inventory' those that an S3 Inventory lists (its manifest.json, or the folder in "
        "which S3 writes one after the other; CSV or Parquet). 'delta' is the folder of a table with its _delta_log; "
        "'iceberg' is iceberg://CATALOG/NAMESPACE.TABLE, the catalog as pyiceberg's configuration calls it, or a "
        "metadata file; 'webdataset' is a tar shard, a folder of them, or shard-{000000..000099}.tar.",
    )
    image_root: Uri | None = Field(
        default=None,
        description="Folder or URI prefix that relative image URIs are relative to. null: the manifest's own.",
    )
    id_column: Text = Field(
        default="image_id", description="Column with the unique id. If missing, ids come from the URIs."
    )
    uri_column: Text = Field(default="image_uri", description="Column with the image's path or URI.")
    bytes_column: Text = Field(
        default="image_bytes",
        description="Column with encoded images, used instead of URIs; or with structs of bytes and path, as Hugging "
        "Face's datasets write them.",
    )
    etag_column: Text = Field(
        default="etag", description="Column with the picture's ETag, as a listing of its bucket has it. May be missing."
    )
    size_column: Text = Field(
        default="size", description="Column with the encoded picture's size in bytes. May be missing."
    )
    mtime_column: Text = Field(
        default="last_modified",
        description="Column with the time of the picture's last change: a timestamp, ISO 8601, or seconds since 1970; "
        "UTC where it has no zone. May be missing.",
    )
    carry: Annotated[tuple[Text, ...], Strict(False), AfterValidator(unique)] = Field(
        default=(), description="Further columns to copy into the output, in this order."
    )

    compare: Literal["none", "etag", "size_mtime"] = Field(
        default="none",
        description="How a picture that was replaced under its name is noticed, to be annotated again: by its ETag, or "
        "by its size and the time of its last change; none: not at all. What the manifest or its listing does not tell "
        "is taken for unchanged.",
    )
    deleted: Literal["keep", "mark", "drop"] = Field(
        default="keep",
        description="What becomes of rows whose images the manifest has no more: kept as they are, marked (status "
        "'deleted'), or dropped.",
    )
    max_deleted_fraction: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5,
        description="Images that are gone / images in the output above which nothing is marked or dropped and the run "
        "is refused: the listing may be incomplete.",
    )

    @model_validator(mode="after")
    def _columns_differ(self) -> ManifestConfig:
        own = {"id_column": self.id_column, "uri_column": self.uri_column, "bytes_column": self.bytes_column}
        if len(set(own.values())) < len(own):
            raise ValueError("id_column, uri_column and bytes_column must name three different columns")
        for key, name in own.items():
            if name in self.carry:
                raise ValueError(f"carry holds {name!r}, which is {key} and in the output anyway: leave it out")
        return self

    @property
    def place(self) -> Uri | None:
        """Where something must be: of the pattern of shards their folder; ``None`` where only opening it tells."""
        if self.uri.scheme == CATALOG_SCHEME:
            return None
        if "{" not in self.uri.path or not self._is("webdataset", ".tar", ".tar.gz", ".tgz"):
            return self.uri
        folder = self.uri.secret_text.partition("{")[0].rpartition("/")[0]
        return None if self.uri.is_http else Uri(folder or "/")

    def read_by_workers(self) -> dict[str, Uri | None]:
        """What is read where the work is done, by the setting; other manifests are copied into the output first."""
        is_read = self._is("parquet", ".parquet", ".pq") or self._is("webdataset", ".tar") or is_local_folder(self.uri)
        read = {"manifest.uri": self.place} if is_read else {}
        return {**read, "manifest.image_root": self.image_root}

    def _is(self, kind: str, *suffixes: str) -> bool:
        return self.format == kind or (self.format == "auto" and self.uri.path.lower().endswith(suffixes))


class ModelConfig(Section):
    """Which model, and how it is run. Sizes and thresholds left null are the checkpoint's own."""

    checkpoint: UriText = Field(
        description=f"A checkpoint file, or the name of a published model ({', '.join(KNOWN_MODELS)})."
    )
    precision: Precision = Field(
        default="fp32", description="fp32 gives the published results; bf16 is faster on GPUs."
    )
    compile: bool = Field(default=False, description="Compile the model: slower to start, faster to run.")
    compile_cache: Annotated[Place, AfterValidator(_local)] | None = Field(
        default=None,
        description="A folder for what is compiled, at the same path on all nodes: replicas load what one of them has "
        "compiled. It holds programs, so it must be this user's alone (drwx------). null: one on each node.",
    )
    cuda_graphs: bool = Field(
        default=True, description="On a GPU, record the work on a batch of a common shape once, and replay it."
    )
    short_side: PositiveInt | None = Field(
        default=None, description="The shorter image side is scaled to this, in pixels."
    )
    long_side: PositiveInt | None = Field(
        default=None, description="Unless the longer one would exceed this, in pixels."
    )
    score_threshold: Score | None = Field(default=None, description="Detections need a score above this, 0 to 1.")
    max_detections: Annotated[int, Field(ge=1, le=MAX_DETECTIONS)] | None = Field(
        default=None,
        description="Detections kept per image, best scores first. At most 10,000: the masks of all images of a block "
        "are in memory together.",
    )
    class_thresholds: dict[Text, Score] = Field(
        default={}, description="Category name: lowest score of a detection of it that is kept, 0 to 1."
    )
    class_thresholds_file: UriText | None = Field(
        default=None,
        description="A YAML file {name: score}, read when the config is loaded; class_thresholds overrule it.",
    )
    batch_size: Annotated[int, Field(ge=1, le=MAX_IMAGES_PER_BLOCK)] = Field(
        default=8, description="Images the model takes at once. Raise it until the GPU is busy or its memory full."
    )
    timeout_s: LimitSeconds = Field(
        default=600.0,
        description="Time limit of one call of the model, a batch, in seconds; half an hour more with compile. The "
        "replica is restarted and takes the batch's images one by one; one that exceeds it alone too is a failed row.",
    )

    @field_validator("class_thresholds_file")
    @classmethod
    def _can_be_read(cls, file: UriText | None) -> UriText | None:
        """Here and not where the thresholds are taken in, so that an error has the place of this key."""
        if file is not None:
            read_class_thresholds(file)
        return file

    @model_validator(mode="after")
    def _thresholds_apply(self) -> ModelConfig:
        if self.class_thresholds_file is not None:
            # A config is frozen for everybody else: what the file holds becomes thresholds; those given directly win.
            thresholds = {**read_class_thresholds(self.class_thresholds_file), **self.class_thresholds}
            self.__dict__.update(class_thresholds=thresholds, class_thresholds_file=None)
        if self.short_side and self.long_side and self.short_side > self.long_side:
            raise ValueError("short_side must be at most long_side")
        if self.score_threshold is not None:
            self._check_thresholds(self.score_threshold)
        return self

    @property
    def compile_folder(self) -> str | None:
        """``compile_cache`` as the operating system knows it."""
        return None if self.compile_cache is None else self.compile_cache.local_path

    @property
    def call_timeout_s(self) -> float:
        """``timeout_s``, and time to compile, which happens in the first call with one image and with several."""
        return self.timeout_s + (_COMPILE_S if self.compile else 0.0)

    def settings(self, base: TestSettings) -> TestSettings:
        """The checkpoint's own settings with those of this config that are set.

        Raises:
            ConfigError: the two do not go together.
        """
        settings = base.changed(self._overrides())
        if settings.short_side > settings.long_side:
            raise ConfigError(f"short_side {settings.short_side} exceeds long_side {settings.long_side}: set both")
        self._check_thresholds(settings.score_threshold)
        return settings

    def label_thresholds(self, names: Sequence[str]) -> tuple[float, ...]:
        """For each label the lowest score to keep; 0 where none is set (the model's own threshold came before).

        Args:
            names: the model's category names, in the order of its labels.

        Raises:
            ConfigError: a threshold names a category that the model does not have.
        """
        for name in self.class_thresholds:
            if name not in names:
                raise ConfigError(f"class_thresholds: the model has no category {name!r}{did_you_mean(name, names)}")
        return tuple(self.class_thresholds.get(name, 0.0) for name in names)

    def _overrides(self) -> dict[str, Any]:
        keys = ("short_side", "long_side", "score_threshold", "max_detections")
        return {key: value for key in keys if (value := getattr(self, key)) is not None}

    def _check_thresholds(self, score_threshold: float) -> None:
        for name, threshold in self.class_thresholds.items():
            if threshold < score_threshold:
                raise ConfigError(
                    f"class_thresholds: {threshold} for {name!r} has no effect, because the model itself drops "
                    f"scores up to {score_threshold}: lower score_threshold"
                )


class ResourcesConfig(Section):
    """What the job takes of the cluster. None of it changes results."""

    ray_address: RayAddress | None = Field(
        default=None,
        description="Address of a Ray cluster (host:port, ray://host:10001, auto). "
        "null: RAY_ADDRESS where it is set, else Ray in this process.",
    )
    actors: PositiveInt | None = Field(
        default=None,
        description="Replicas of the model, fixed. null with no min_actors and max_actors either: as many as there is "
        "room for on the GPUs of the cluster, all of them; 1 without GPUs.",
    )
    min_actors: PositiveInt | None = Field(default=None, description="Fewest replicas of a pool that grows.")
    max_actors: PositiveInt | None = Field(
        default=None,
        description="Most replicas of a pool that grows. It begins with those that there is room for.",
    )
    wait_for_gpus_s: Annotated[float, Field(ge=0)] = Field(
        default=0.0,
        description="Seconds to wait for the GPUs of actors, of min_actors, or of one replica, which the cluster's "
        "autoscaler is asked for: it may start from none. Then the job begins with what came, and more replicas start "
        "as nodes come. 0: what is there must be enough.",
    )
    gpus_per_actor: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None,
        description="GPUs a replica takes, 0 to 1; 0.5: two share one. null: 1 where the cluster has GPUs or is waited "
        "for, else 0.",
    )
    cpus_per_actor: Annotated[float, Field(ge=0)] | None = Field(
        default=None,
        description="CPUs a replica reserves; without a GPU, the threads of its model too. null: none beside a GPU, "
        "else 1.",
    )
    images_per_block: Annotated[int, Field(ge=1, le=MAX_IMAGES_PER_BLOCK)] | None = Field(
        default=None,
        description="Images that travel and are redone together. null: 4 batches, at most 64. Fewer than four "
        "batches leave replicas waiting. Blocks are smaller where the object store has no room for such ones.",
    )
    fetch_cpus_per_task: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="CPUs a fetch-and-decode task reserves; below 1 where fetching is mostly waiting."
    )
    object_store_limit_bytes: PositiveInt | None = Field(
        default=None,
        description="Most bytes of the object store the job fills. null: half of the store, Ray's own rule.",
    )
    price_per_gpu_hour: PositiveFloat | None = Field(
        default=None,
        description="What a GPU costs an hour, in your currency, for the reports; all GPUs count the same, and CPUs "
        "nothing. null: costs are told in GPU-hours.",
    )

    @model_validator(mode="after")
    def _one_kind_of_pool(self) -> ResourcesConfig:
        if self.actors is not None and (self.min_actors is not None or self.max_actors is not None):
            raise ValueError("set either actors (fixed) or min_actors and max_actors: make the other ones null")
        if (self.min_actors is None) != (self.max_actors is None):
            raise ValueError("min_actors and max_actors belong together: set both")
        if self.min_actors is not None and self.max_actors is not None and self.min_actors > self.max_actors:
            raise ValueError("min_actors must be at most max_actors")
        if self.wait_for_gpus_s and self.gpus_per_actor == 0:
            raise ValueError("wait_for_gpus_s waits for GPUs, and gpus_per_actor is 0: set one of them to null")
        return self

    @property
    def actor_range(self) -> tuple[int, int] | None:
        """Fewest and most replicas, equal for a fixed pool; ``None`` if the cluster decides."""
        if self.min_actors is not None and self.max_actors is not None:
            return self.min_actors, self.max_actors
        return None if self.actors is None else (self.actors, self.actors)


class StopConfig(Section):
    """When a run in which almost nothing succeeds any more ends early: a wrong image root, revoked credentials."""

    failed_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.9, description="Failed images / images, of the last ones that came out, from which on the run ends."
    )
    after: PositiveInt = Field(
        default=1000, description="How many last images that is; a run of fewer never ends early."
    )
    codes: Annotated[tuple[Text, ...], Strict(False), AfterValidator(unique)] | None = Field(
        default=None, description="Only failures with these error codes count, such as access_denied. null: all."
    )


class OutputConfig(Section):
    """Where results go, and how they are written."""

    uri: Place = Field(description="Folder or prefix of the Parquet files and run.json. It is also what a run resumes.")
    images_per_file: PositiveInt = Field(default=2048, description="Rows of a full Parquet file.")
    write_interval_s: PositiveFloat = Field(
        default=120.0,
        description="Seconds after which finished images are written though their file is not full. It is what a kill "
        "costs, beside the blocks that are at work; shorter means more and smaller files.",
    )
    stop: StopConfig | None = Field(
        default=StopConfig(),
        description="When almost all images fail, the run ends with exit code 4; the results stay. null: never.",
    )
    max_failed_fraction: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.01, description="Failed images / all images above which the run ends with an error; the results stay."
    )
    lease_s: Annotated[float, Field(ge=1, le=86_400)] = Field(
        default=60.0, description="Seconds after which the lock of a run that died is taken over by the next."
    )
    compression_level: Annotated[int, Field(ge=1, le=22)] = Field(
        default=3, description="zstd level of the Parquet files."
    )
    table: TableConfig | None = Field(
        default=None,
        description="A Delta or Iceberg table over the data files: a run that closes its books registers them in one "
        "commit, and takes out what was replaced. null: none.",
    )

    @property
    def keeps_replaced(self) -> bool:
        """Whether files that were replaced stay, for earlier versions of the table."""
        return self.table is not None and self.table.keep_replaced


class DriftConfig(Section):
    """What a run made, compared with what was there before, when its books are closed."""

    against: Literal["previous"] | Place = Field(
        default="previous",
        description="previous: the rows of all earlier runs in this output; or another output, of an annotate job.",
    )
    fail_if: Annotated[tuple[Text, ...], Strict(False), AfterValidator(unique)] = Field(
        default=(),
        description="Limits like 'psi>0.2', as `maskfleet compare --fail-if` takes them. Beyond one the run ends with "
        "exit code 3; the results stay.",
    )


class AnnotateConfig(Section):
    """The annotate job: every image of a manifest to one row of instance masks."""

    manifest: ManifestConfig = Field(description="Which images.")
    images: ImagesConfig = Field(default=ImagesConfig(), description="How images are fetched and decoded.")
    model: ModelConfig = Field(description="Which model, and how it is run.")
    resources: ResourcesConfig = Field(default=ResourcesConfig(), description="What the job takes of the cluster.")
    output: OutputConfig = Field(description="Where results go, and how they are written.")
    drift: DriftConfig | None = Field(default=None, description="Compare what the run made. null: no.")
    log_interval_s: PositiveFloat = Field(
        default=30.0, description="Seconds between two progress lines in a job's log."
    )

    @model_validator(mode="after")
    def _sections_fit(self) -> AnnotateConfig:
        block, batch = self.resources.images_per_block, self.model.batch_size
        if block is not None and block < batch:
            raise ValueError(f"resources.images_per_block ({block}) must be at least model.batch_size ({batch})")
        output, manifest = self.output.uri, self.manifest.uri
        check_writable(output)
        if manifest.is_below(output):
            raise ValueError("manifest.uri lies in output.uri, whose files all count as results: keep them apart")
        if self.manifest.format in TABLE_FORMATS and output.is_below(manifest):
            raise ValueError(IN_A_TABLE)
        if self.drift and self.drift.against != "previous" and self.drift.against.is_at(output):
            raise ValueError("drift.against is output.uri: 'previous' compares with what earlier runs left there")
        return self

    @property
    def images_per_block(self) -> int:
        """``resources.images_per_block``, or four batches; no more than a file holds, as blocks are written whole."""
        four_batches = min(MAX_IMAGES_PER_BLOCK, _BATCHES_PER_BLOCK * self.model.batch_size)
        return min(self.resources.images_per_block or four_batches, self.output.images_per_file)

    def content(self, base: TestSettings | None = None) -> dict[str, Any]:
        """What decides the content of an output row, and nothing else; JSON-able and without secrets.

        Left out: where the manifest lies (it may grow or move), resources, time limits, how the output is
        laid out, batch size and compilation (rounding only), and the checkpoint's path (its weights have a
        digest of their own). Nor do limits count: they decide which images fail, not what is found in the
        others, so that a raised limit goes together with ``--retry-failed``.

        Args:
            base: the checkpoint's settings. With them the model's settings are complete, so that a default
                written out or not, or changed in the checkpoint, is told apart correctly.
        """
        # That of an inventory chooses keys, as the URI of a folder does: either goes on with what the other made.
        root = None if self.manifest.format == "inventory" else self.manifest.image_root
        return {
            "manifest": {
                "image_root": root and (str(root).rstrip("/") or "/"),
                "id_column": self.manifest.id_column,
                "uri_column": self.manifest.uri_column,
                "bytes_column": self.manifest.bytes_column,
                "carry": list(self.manifest.carry),
            },
            "images": {"apply_exif": self.images.apply_exif},
            "model": {
                "precision": self.model.precision,
                "settings": self.model._overrides() if base is None else asdict(self.model.settings(base)),
                "class_thresholds": dict(sorted(self.model.class_thresholds.items())),
            },
        }

    def content_digest(self, base: TestSettings | None = None) -> str:
        """sha256 (hexadecimal) of :meth:`content` as canonical JSON; takes what that takes."""
        canonical = json.dumps(self.content(base), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

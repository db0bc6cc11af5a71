"""``run.json``, the report of an output's last run: the one writer and the one reader.

::

    run_id, state                        the run, and how it ended: see `RunState`
    ended                                when, UTC; null while it is at work
    looked_again                         the latest run after it that compared manifest and output and found nothing to
                                         do, by its id, which begins with the time; "" if there was none
    config                               all settings, defaults included; URIs without their secrets
    identity, code, cluster              the model and the content settings; versions; machines, the driver alone where
                                         nothing was to do and Ray not started; at_end if they were others then
    categories                           what the model tells apart, in the order of its labels
    image_root                           what the manifest's relative image URIs were joined to, absolute; null: nothing
    manifest_version                     of a manifest that is a table: Delta's version, Iceberg's snapshot; else ""
    images                               how many: manifest = annotated + failed, and deleted ones beside them; {} until
                                         the run has closed its books
    changes                              how many images were new, changed, deleted, unchanged; {} where neither
                                         manifest.compare nor manifest.deleted asks for it
    failures, detections_per_category    failed images by error code; detections by category name
    this_run                             speed and cost of the images of this run alone, {} if there were none, how many
                                         they are until it has ended; the error, if any

A run that finds nothing to do leaves the report of the one that did something, run_id and ended with it, but for what
it found itself: state, config, manifest_version, images and changes, where it compares or the table is another, and
looked_again, which names it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from enum import Enum
from typing import Annotated, Any

from pydantic import AfterValidator, TypeAdapter, ValidationError

from pipeline.annotations.data_file import OutputError
from pipeline.config.images import ImagesConfig
from pipeline.model.categories import Category
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri

NAME = "run.json"

_MAX_BYTES = 64 << 20  # a thousand times what one of a model with 10,000 classes and as many thresholds has


class RunState(str, Enum):
    """How far a run has come. The values are those of the file, and what jobs print."""

    RUNNING = "running"  # or it was killed
    FINISHED = "finished"
    NOTHING_TO_DO = "nothing_to_do"  # finished by an earlier run
    TOO_MANY_FAILURES = "too_many_failures"  # finished, with more failed images than the config allows
    STOPPED = "stopped"  # by a signal; the same command goes on
    STOPPED_BY_FAILURES = "stopped_by_failures"  # almost all of the last images failed
    FAILED = "failed"

    def __str__(self) -> str:
        return self.value

    @property
    def closed(self) -> bool:
        """Whether the run closed its books: each image of the manifest has its row."""
        return self in (RunState.FINISHED, RunState.NOTHING_TO_DO, RunState.TOO_MANY_FAILURES)


@dataclass(frozen=True)
class ImageCounts:
    """Images of the manifest and what became of them; all 0 until the run has closed its books.

    Attributes:
        deleted: rows beside these, marked as of pictures that are gone.
    """

    manifest: int = 0
    annotated: int = 0
    failed: int = 0
    deleted: int = 0


@dataclass(frozen=True)
class Changes:
    """What the run found when it compared manifest and output; manifest = new + changed + unchanged.

    Attributes:
        new: images that the output did not have.
        changed: pictures that were replaced under their names.
        unchanged: the others.
        deleted: images that the manifest has no more, and that were marked or dropped.
        unknown_version: of the unchanged ones, those of which the manifest or the output does not say which they are.
    """

    new: int = 0
    changed: int = 0
    unchanged: int = 0
    deleted: int = 0
    unknown_version: int = 0

    @property
    def compared(self) -> bool:
        """Whether there are any: a manifest is never empty."""
        return self != Changes()

    @property
    def all_new(self) -> bool:
        """Whether the output had none of the images, nor others that are gone: as in a first run."""
        return self.compared and self == Changes(new=self.new)


@dataclass(frozen=True)
class Seconds:
    """Time of replicas of the model; ``held`` is the sum of the others.

    Attributes:
        held: from when each began to load the model until it was last heard from, two seconds ago at most.
        busy: in their stage, on blocks that they finished or are at.
        idle: the rest: loading the model, and waiting for images.
        lost: to deaths: work on blocks that a replica did not live to finish, and loading the model in its place.
    """

    held: float = 0.0
    busy: float = 0.0
    idle: float = 0.0
    lost: float = 0.0

    @classmethod
    def of(cls, held: float, busy: float, lost: float) -> Seconds:
        """What is neither is idle."""
        return cls(held, busy, held - busy - lost, lost)

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def times(self, factor: float) -> Seconds:
        """GPU-seconds of replicas that hold so many GPUs."""
        return Seconds(*(factor * getattr(self, f.name) for f in fields(self)))

    def rounded(self, digits: int) -> Seconds:
        """For the file; the sum holds to that many digits."""
        held, busy, lost = (round(s, digits) for s in (self.held, self.busy, self.lost))
        return Seconds(held, busy, round(held - busy - lost, digits), lost)


@dataclass(frozen=True)
class AcceleratorUse:
    """What replicas on one kind of device did.

    Attributes:
        images: of the blocks that they finished; more than were written where some were done again.
        replica_seconds, gpu_seconds: that they held; no GPU-seconds on CPUs.
        images_per_gpu_hour: of the GPU-seconds held; null on CPUs.
    """

    images: int = 0
    replica_seconds: float = 0.0
    gpu_seconds: float = 0.0
    images_per_gpu_hour: float | None = None


@dataclass
class ThisRun:
    """The images that this run worked on, without those of earlier runs; no rounds if there were none, or not yet.

    Attributes:
        images: that were pending when it began.
        written: of them, those whose rows it wrote.
        rounds: passes over what was pending; more than one if the audit found images missing.
        seconds: from when the run began, before Ray is started or GPUs are waited for, to the last round's audit.
        images_per_second: ``written`` divided by ``seconds``.
        replica_busy_share: of the replicas' time with the model loaded, the share spent in their stage, 0 to 1.
        batch_fill: of the room in the model's calls, the share that images took, 0 to 1; 0 if there was no call.
        time_split_s: seconds of work by stage, added up over all tasks.
        error: why the run failed or was stopped, or "".
        replica_seconds, gpu_seconds: of all replicas; no GPU-seconds on CPUs.
        by_accelerator: by the name of the device; "CPU" where there was none.
        cost: of the GPU-seconds held, in the currency of ``resources.price_per_gpu_hour``; null where that is not set.
    """

    images: int = 0
    written: int = 0
    rounds: int = 0
    seconds: float = 0.0
    images_per_second: float = 0.0
    replica_busy_share: float = 0.0
    batch_fill: float = 0.0
    time_split_s: dict[str, float] = field(default_factory=dict)
    error: str = ""
    replica_seconds: Seconds = Seconds()
    gpu_seconds: Seconds = Seconds()
    by_accelerator: dict[str, AcceleratorUse] = field(default_factory=dict)
    cost: float | None = None


def _as_utc(moment: datetime | None) -> datetime | None:
    try:
        return moment and moment.astimezone(timezone.utc)
    except OverflowError:  # at the ends of the calendar
        raise ValueError("no moment of UTC") from None


@dataclass(kw_only=True)
class RunJson:
    """What ``run.json`` says; the module's docstring describes its keys."""

    run_id: str = ""
    state: RunState
    ended: Annotated[datetime | None, AfterValidator(_as_utc)] = None
    looked_again: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    identity: dict[str, Any] = field(default_factory=dict)
    code: dict[str, Any] = field(default_factory=dict)
    cluster: dict[str, Any] = field(default_factory=dict)
    categories: tuple[Category, ...] = ()
    image_root: Uri | None = None
    manifest_version: str = ""
    images: ImageCounts = ImageCounts()
    changes: Changes = Changes()
    failures: dict[str, int] = field(default_factory=dict)
    detections_per_category: dict[str, int] = field(default_factory=dict)
    this_run: ThisRun = field(default_factory=ThisRun)

    @classmethod
    def read(cls, uri: Uri) -> RunJson | None:
        """The report of an output's last run; ``None`` if there is none.

        A file of before the key ``image_root`` has the root as it was typed, in ``config.manifest``: the folder of
        images, or what ``image_root`` was set to. The rows hold absolute URIs all the same, so a relative root is
        taken as relative to the current directory, which is right where that is the directory that annotate ran in.
        Keys that older code did not write have their defaults; unknown ones are passed over.

        Args:
            uri: of the output folder.

        Raises:
            OutputError: the file is damaged, or another program's.
            UriError: the folder cannot be opened.
        """
        try:
            content, _ = open_objects(uri).read(NAME, _MAX_BYTES)
            return _parse(content)
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError, IsADirectoryError) as error:
            raise OutputError(
                f"{uri}/{NAME} is damaged, or not an annotate job's ({_reason(error)}): move it away; the next "
                "run of annotate on this output writes it anew"
            ) from None

    def write(self, uri: Uri) -> None:
        """Put it into an output folder, whole or not at all; what JSON does not know is written as text."""
        values = asdict(self)
        values["ended"] = self.ended and self.ended.isoformat()
        if not self.images.manifest:
            values["images"] = {}
        if not self.changes.compared:
            values["changes"] = {}
        figures = values["this_run"]
        error = figures.pop("error")
        if not self.this_run.rounds:
            figures = {"images": self.this_run.images} if self.this_run.images else {}
        values["this_run"] = {**figures, **({"error": error} if error else {})}
        open_objects(uri).put(NAME, json.dumps(values, indent=2, default=str).encode())

    @property
    def failed_fraction(self) -> float:
        """Failed images over all images of the manifest."""
        return self.images.failed / max(1, self.images.manifest)

    @property
    def table(self) -> dict[str, Any] | None:
        """``output.table`` of its config, where that has one."""
        output = self.config.get("output")
        table = output.get("table") if isinstance(output, dict) else None
        return table if isinstance(table, dict) else None

    @property
    def keeps_replaced(self) -> bool:
        """Whether files that were replaced stay in the output."""
        return self.table is not None and self.table.get("keep_replaced") is True

    @property
    def apply_exif(self) -> bool | None:
        """Whether pictures were turned as their EXIF orientation says, where the config tells."""
        images = self.config.get("images")
        return images.get("apply_exif") if isinstance(images, dict) else None

    def images_config(self) -> ImagesConfig:
        """How images were fetched and decoded.

        Raises:
            OutputError: it does not say so in a form that this code knows.
        """
        try:
            return ImagesConfig.model_validate(self.config["images"])
        except (KeyError, ValueError):
            raise OutputError(
                f"{NAME} does not say how images were read (config.images): it is not an annotate job's"
            ) from None


_RUN_JSON = TypeAdapter(RunJson)


def _parse(content: bytes) -> RunJson:
    values = json.loads(content)
    run = _RUN_JSON.validate_python(values)
    if any(not -(2**31) <= category.id < 2**31 for category in run.categories):
        raise ValueError("categories: an id has more than 32 bits")
    if "image_root" not in values:
        run.image_root = _older_image_root(run.config)
    return run


def _older_image_root(config: dict[str, Any]) -> Uri | None:
    manifest = config.get("manifest")
    if not isinstance(manifest, dict):
        return None
    is_folder = manifest.get("format") in ("folder", "auto")  # of "auto", the URI of a table is no image's prefix
    root = manifest.get("image_root") or (manifest.get("uri") if is_folder else None)
    return Uri(root).absolute() if isinstance(root, str) and root else None


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "values inside values without an end"
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"]

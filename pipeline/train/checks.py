"""What is wrong, or most likely not meant, told before anything starts: missing files and pictures, odd schedules.

Neither Ray nor torch is imported here, so that a job asks `check_places` before it spends seconds on them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from pipeline.annotations.failure import ImageFailure
from pipeline.annotations.pictures import FETCH, PictureSource
from pipeline.messages.examples import Examples
from pipeline.model.files.resolve import UnknownModelError, find_model
from pipeline.storage.map_ahead import map_ahead
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri
from pipeline.train.config import TrainConfig
from pipeline.train.data.labelled import DataError, LabelledImage, LabelledTable, load_sample
from pipeline.train.inputs import Inputs, picture_source
from pipeline.train.loop.settings import BEST, LAST, PUBLISHED_LR, PUBLISHED_STEP_SIZE, ScheduleConfig

# Of each set of pictures: enough to tell a wrong folder from a few that are gone.
_PICTURES_DRAWN = 16
_THREADS = 8
# A learning rate is some decades wide: half or twice of what a rule gives is no mistake.
_LR_TOLERANCE = 2.0


def check_places(config: TrainConfig) -> None:
    """Return if the local files that the config names are there, in milliseconds; nothing is opened.

    Raises:
        DataError: annotations, or a file of thresholds, are not there.
        UnknownModelError: ``model.start`` is neither a file nor a known model, and is needed.
    """
    data = config.data
    for i, source in enumerate(data.train):
        _check_there(f"data.train.{i}.uri", source.uri, is_folder=not source.is_coco)
        if source.class_thresholds_file is not None:
            _check_there(f"data.train.{i}.class_thresholds_file", Uri(source.class_thresholds_file.secret_text))
    if data.validation is not None:
        _check_there("data.validation.uri", data.validation.uri)
    if config.model.start is not None:
        try:
            find_model(config.model.start)
        except UnknownModelError:
            # What a training goes on from has all its weights.
            if not any(entry.name == LAST for entry in open_objects(config.output.uri).list("").files):
                raise


def _check_there(setting: str, uri: Uri, is_folder: bool = False) -> None:
    path = uri.local_path
    if path is None:
        return
    if not os.path.exists(path):
        raise DataError(f"{setting}: {uri.absolute()} does not exist")
    if os.path.isdir(path) is not is_folder:
        is_, wanted = ("a file", "a folder that annotate wrote, or *.json") if is_folder else ("a folder", "a file")
        raise DataError(f"{setting}: {uri.absolute()} is {is_}, and must be {wanted}")


def check_pictures(config: TrainConfig, inputs: Inputs, read_elsewhere: bool) -> list[str]:
    """Read a few pictures of each set, as the tasks will.

    Args:
        config: of the training.
        inputs: what was read with it.
        read_elsewhere: whether other machines read the pictures, which may see what this one does not.

    Returns:
        What people should know, a line each.

    Raises:
        DataError: all drawn ones of a source are missing, or one of the validation set, without which there are no
            figures; or one has another size than its annotations.
    """
    data = config.data
    pictures = picture_source(data)
    found = [
        (f"data.train.{i}", _Missing.of(table, pictures), source.image_root)
        for i, (source, table) in enumerate(zip(data.train, inputs.sources, strict=True))
    ]
    some = [f"{_cannot(*one)}; others take the places of such pictures" for one in found if one[1].are_some]
    none = [_cannot(*one) for one in found if one[1].are_all]
    if data.validation is not None and inputs.validation is not None:
        missing = _Missing.of(inputs.validation, pictures)
        if missing.failures:
            problem = _cannot("data.validation", missing, data.validation.image_root)
            none.append(f"{problem}, and figures need all of them")
    if none and not read_elsewhere:
        raise DataError(f"{none[0]}. Is image_root right, and the storage within reach?")
    return [*some, *(f"{problem}; from this machine, perhaps not from those that read them" for problem in none)]


def _cannot(setting: str, missing: _Missing, image_root: Uri | None) -> str:
    """How many, out of how many, an example, and the setting that it depends on."""
    out_of = f" of {missing.num_images:,}" if missing.num_images > missing.num_drawn else ""
    root = "" if image_root is None else f" (image_root is {image_root})"
    return (
        f"{setting}: {len(missing.failures)} of {missing.num_drawn} pictures tried{out_of} cannot be read, such as "
        f"{missing.failures[0]}{root}"
    )


@dataclass(frozen=True)
class _Missing:
    """What cannot be read of the pictures that were drawn from all over a set.

    Attributes:
        failures: why not, with the place, of each.
        num_drawn: how many were tried.
        num_images: how many there are.
    """

    failures: Sequence[str]
    num_drawn: int
    num_images: int

    @classmethod
    def of(cls, table: LabelledTable, pictures: PictureSource) -> _Missing:
        """Try some of a set."""
        places = np.linspace(0, len(table) - 1, min(_PICTURES_DRAWN, len(table))).round().astype(int).tolist()
        reasons = map_ahead(partial(_failure, pictures=pictures), (table[i] for i in places), _THREADS, _THREADS)
        return cls([reason for reason in reasons if reason], len(places), len(table))

    @property
    def are_all(self) -> bool:
        """Whether not one picture could be read."""
        return len(self.failures) == self.num_drawn

    @property
    def are_some(self) -> bool:
        """Whether some could not, and others could."""
        return 0 < len(self.failures) < self.num_drawn


def _failure(image: LabelledImage, pictures: PictureSource) -> str | None:
    loaded = load_sample(image, pictures)
    if not isinstance(loaded, ImageFailure):
        return None
    return loaded.message if loaded.stage == FETCH else f"{image.uri}: {loaded.message}"


def oddities(config: TrainConfig, inputs: Inputs, steps_per_epoch: int) -> list[str]:
    """What is allowed and most likely not meant, a line each.

    Raises:
        DataError: there is not one object to learn from.
    """
    return [
        *_of_schedule(config.schedule, config.optimizer.lr, steps_per_epoch),
        *_of_step_size(config, sum(map(len, inputs.sources))),
        *_of_classes(inputs),
        *_of_both_sets(inputs),
    ]


def _of_schedule(schedule: ScheduleConfig, lr: float, steps_per_epoch: int) -> Iterator[str]:
    total, warmup = schedule.epochs * steps_per_epoch, schedule.warmup_iterations
    effective = [epoch for epoch in schedule.steps if epoch < schedule.epochs]
    if warmup >= total:
        reached = lr * schedule.factor(total - 1, steps_per_epoch)
        yield (
            f"the warm-up is longer than the training: schedule.warmup_iterations is {warmup:,}, and there are "
            f"{total:,} steps, in the last of which the learning rate is {reached:.2g} instead of {lr:g}; lower it"
        )
    elif effective and effective[0] * steps_per_epoch < warmup:
        yield (
            f"the learning rate drops before the warm-up ends: after epoch {effective[0]} of schedule.steps "
            f"{effective[0] * steps_per_epoch:,} steps are done, and schedule.warmup_iterations is {warmup:,}"
        )
    if late := [str(epoch) for epoch in schedule.steps if epoch >= schedule.epochs]:
        yield (
            f"schedule.steps has {', '.join(late)}, and schedule.epochs is {schedule.epochs}: the learning rate does "
            "not drop there"
        )


def _of_step_size(config: TrainConfig, num_images: int) -> Iterator[str]:
    lr, batch, workers = config.optimizer.lr, config.data.batch_size, config.resources.workers
    step_size = batch * workers
    made_of = f"data.batch_size {batch} x resources.workers {workers}"
    if step_size > num_images:
        yield f"a step takes {step_size:,} images ({made_of}), of {num_images:,} that there are: some come twice in it"
    scaled = lr * step_size / PUBLISHED_STEP_SIZE
    if lr == PUBLISHED_LR and not 1 / _LR_TOLERANCE <= scaled / lr <= _LR_TOLERANCE:
        yield (
            f"optimizer.lr is the published {lr:g}, for {PUBLISHED_STEP_SIZE} images a step, and here a step takes "
            f"{step_size} ({made_of}): by the linear scaling rule it would be {scaled:.3g}"
        )


def _of_classes(inputs: Inputs) -> Iterator[str]:
    names = [category.name for category in inputs.categories]
    of_sources = [table.objects_of_classes(len(names)) for table in inputs.sources]
    learnt = [sum(counts) for counts in zip(*of_sources, strict=True)]
    if not any(learnt):
        raise DataError("data.train: not one object to learn from is left, as the books above say")
    validated = [0] * len(names)
    if inputs.validation is None:
        yield f"without data.validation there are no figures, and no {BEST}: the model is {LAST}"
    else:
        validated = inputs.validation.objects_of_classes(len(names))
        if absent := [name for name, a, b in zip(names, learnt, validated, strict=True) if a and not b]:
            yield f"no object to validate with, of {_some(absent, names)}: they are in no figure"
    if absent := [name for name, a, b in zip(names, learnt, validated, strict=True) if not a and not b]:
        yield f"no object to learn from, of {_some(absent, names)}: model.classes with the other names leaves them out"
    if absent := [name for name, a, b in zip(names, learnt, validated, strict=True) if b and not a]:
        yield f"no object to learn from, of {_some(absent, names)}: the validation set has some, and none will be found"


def _of_both_sets(inputs: Inputs) -> Iterator[str]:
    if inputs.validation is None:
        return
    learnt = {uri for table in inputs.sources for uri in table.rows["image_uri"].to_pylist()}
    both = [Uri(uri) for uri in inputs.validation.rows["image_uri"].to_pylist() if uri in learnt]
    if both:
        yield (
            f"{len(both):,} of {len(inputs.validation):,} pictures to validate with are learnt from, too "
            f"({Examples.of(both)}): the figures are too good"
        )


def _some(some: Sequence[str], classes: Sequence[str]) -> str:
    return f"{len(some):,} of {len(classes):,} classes ({Examples.of(some)})"

"""From the config of a training to what is learnt from and what is validated on, checked before anything starts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.annotations.class_thresholds import Selection, read_class_thresholds
from pipeline.annotations.failure import ImageFailure
from pipeline.annotations.pictures import PictureSource
from pipeline.model.categories import Category
from pipeline.storage.uris import Uri
from pipeline.train.augment import AugmentConfig
from pipeline.train.config import DataConfig, SourceConfig
from pipeline.train.data.books import DataReport
from pipeline.train.data.coco_source import read_coco
from pipeline.train.data.draws import Draws
from pipeline.train.data.labelled import DataError, LabelledImage, LabelledTable, load_sample
from pipeline.train.data.pseudo_labels import ScoreBands, read_pseudo_labels
from pipeline.train.sample.sample import Sample

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """Everything that is known of the data before a picture is read.

    Attributes:
        sources: images of each source.
        validation: images; ``None``: there is no such set.
        categories: what labels are positions in.
        reports: the books of the sources, then of the validation set.
    """

    sources: tuple[LabelledTable, ...]
    validation: LabelledTable | None
    categories: tuple[Category, ...]
    reports: tuple[DataReport, ...]


def read_inputs(config: DataConfig, classes: Sequence[str] | None) -> Inputs:
    """Read all annotations.

    Args:
        config: the config's ``data`` section.
        classes: names in the order of the labels; ``None``: those of the first COCO source.

    Raises:
        DataError, InputError: data that cannot be used, or without a source that names the classes.
        OutputError, OSError: a source cannot be read.
    """
    categories = None if classes is None else tuple(Category(i + 1, name) for i, name in enumerate(classes))
    read: dict[int, LabelledTable] = {}
    reports: dict[int, DataReport] = {}
    # COCO files first: they name the classes.
    for at, source in sorted(enumerate(config.train), key=lambda item: not item[1].is_coco):
        if source.is_coco:
            images, categories, report = read_coco(source.uri, source.image_root, categories, source.keep_empty)
        elif categories is None:
            raise DataError("no COCO source names the classes: give them in model.classes")
        else:
            bands = _bands(source)
            images, report = read_pseudo_labels(source.uri, bands, categories, source.image_root, source.keep_empty)
        read[at], reports[at] = _table(images), report
    assert categories is not None
    books = [reports[at] for at in range(len(read))]
    validation = None
    if config.validation is not None:
        images, _, report = read_coco(config.validation.uri, config.validation.image_root, categories)
        validation = _table(images)
        books.append(report)
    return Inputs(tuple(read[at] for at in range(len(read))), validation, categories, tuple(books))


def _table(images: Sequence[LabelledImage]) -> LabelledTable:
    """Local paths made absolute: tasks and workers have folders of their own."""
    return LabelledTable.of(replace(image, uri=Uri(image.uri.secret_text).absolute()) for image in images)


def _bands(source: SourceConfig) -> ScoreBands:
    thresholds = {} if source.class_thresholds_file is None else read_class_thresholds(source.class_thresholds_file)
    # A class that needs less than the common lower bound has no uncertain detections.
    uncertain = {name: score for name, score in thresholds.items() if score < source.ignored_score}
    return ScoreBands(Selection(source.object_score, thresholds), Selection(source.ignored_score, uncertain))


@dataclass(frozen=True)
class ValidationImages:
    """A `pipeline.train.loop.validate.ValidationSet` that reads its pictures when they are asked for."""

    images: Sequence[LabelledImage]
    pictures: PictureSource

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        """The sample.

        Raises:
            DataError: its picture cannot be read: figures over what is left would not be those of the set.
        """
        sample = load_sample(self.images[index], self.pictures)
        if isinstance(sample, ImageFailure):
            raise DataError(f"validation image {self.images[index].image_id!r} cannot be read: {sample.message}")
        return sample


def picture_source(config: DataConfig) -> PictureSource:
    """Reads the pictures of all sources; their image roots may be read from, whatever ``allowed_roots`` says."""
    images = config.images
    if images.allowed_roots is not None:
        roots = [source.image_root for source in (*config.train, config.validation) if source and source.image_root]
        allowed = tuple(root.absolute() for root in (*images.allowed_roots, *roots))
        images = images.model_copy(update={"allowed_roots": allowed})
    return PictureSource.of_config(images)


def draws_of(config: DataConfig, inputs: Inputs, augment: AugmentConfig, seed: int) -> Draws:
    """What is learnt from, in which order."""
    weights = tuple(source.weight for source in config.train if source.weight is not None)
    return Draws(inputs.sources, weights or None, picture_source(config), augment, seed, config.epoch_size)


def validation_of(config: DataConfig, inputs: Inputs) -> ValidationImages | None:
    """What is validated on, if anything."""
    return None if inputs.validation is None else ValidationImages(inputs.validation, picture_source(config))

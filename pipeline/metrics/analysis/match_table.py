"""Every detection and every missed object as a row of a table, for questions that no summary answers.

====================  ==================  ==========================================================
column                type                meaning
====================  ==================  ==========================================================
``image_id``          int64 or string     the ground truth's
``detection``         int32               place in the image's list as it was given, from 0; null for
                                          missed objects
``annotation_id``     int64               the object that the detection matched, or that its error is
                                          about; of background, the object that it touches most, if
                                          any; of ignored ones, the crowd region; the missed object
``category_id``       int64               of the detection; of the missed object
``category_name``     string              the same, for people
``score``             float64             null for missed objects
``outcome``           string              ``true_positive``, ``classification``, ``localisation``,
                                          ``both``, ``duplicate``, ``background``, ``missed``,
                                          ``ignored`` (in a crowd region) or ``not_judged`` (the image
                                          has 100 better ones); see ``outcomes``
``iou``               float64             with that object; for a crowd region the share of the
                                          detection that lies in it; null without an object, and for
                                          missed objects
``bbox``              4 x float64         x, y, width, height in pixels of the detection, or of the
                                          missed object
====================  ==================  ==========================================================

Objects that are neither matched nor missed are those with a classification or localisation error about them. Rows
are ordered by image: first the detections as they were given, then the missed objects as annotated.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipeline.metrics.analysis.outcomes import Judgement, Outcome
from pipeline.metrics.blocks import DetectionBlock, TruthBlock
from pipeline.tables.arrays import Bools
from pipeline.tables.ragged import image_indices

_BOX = pa.list_(pa.field("element", pa.float64()), 4)


def match_schema(id_type: pa.DataType) -> pa.Schema:
    """The schema of the table above; ids of images are int64 or string."""
    return pa.schema(
        [
            ("image_id", id_type),
            ("detection", pa.int32()),
            ("annotation_id", pa.int64()),
            ("category_id", pa.int64()),
            ("category_name", pa.string()),
            ("score", pa.float64()),
            ("outcome", pa.string()),
            ("iou", pa.float64()),
            ("bbox", _BOX),
        ]
    )


def match_table(
    truth: TruthBlock,
    detections: DetectionBlock,
    judgement: Judgement,
    category_ids: Sequence[int],
    category_names: Sequence[str],
    id_type: pa.DataType,
) -> pa.Table:
    """The rows of one block.

    Args:
        truth: objects of N images.
        detections: on the same images.
        judgement: what became of their detections and objects.
        category_ids: [K] of the categories, ascending.
        category_names: [K] of the categories, in the same order.
        id_type: of ``image_id``: int64 or string.
    """
    missed = np.flatnonzero(judgement.missed | ~(truth.crowd | _named(judgement, len(truth.crowd))))
    images = np.concatenate([image_indices(detections.offsets), image_indices(truth.offsets)[missed]])
    order = np.argsort(images, kind="stable")
    of_missed = np.arange(len(images)) >= len(detections.scores)
    padding = np.zeros(len(missed))
    categories = np.concatenate([detections.categories, truth.categories[missed]])[order]
    objects = np.concatenate([judgement.partners.objects, missed])[order]
    outcomes = np.concatenate([judgement.outcomes, np.full(len(missed), Outcome.MISSED, np.uint8)])[order]
    # Nothing to look up where there are no objects at all.
    annotation_ids = np.append(truth.ids, 0)[objects]
    blank = of_missed[order]
    columns = [
        pa.array(truth.image_ids, id_type).take(pa.array(images[order])),
        pa.array(np.concatenate([detections.positions, padding])[order].astype(np.int32), mask=blank),
        pa.array(annotation_ids, pa.int64(), mask=objects < 0),
        pa.array(np.asarray(category_ids, np.int64)[categories]),
        pa.array(category_names, pa.string()).take(pa.array(categories)),
        pa.array(np.concatenate([detections.scores, padding])[order], mask=blank),
        pa.array([outcome.label for outcome in Outcome], pa.string()).take(pa.array(outcomes)),
        pa.array(np.concatenate([judgement.partners.ious, padding])[order], mask=blank | (objects < 0)),
        _boxes(np.concatenate([detections.boxes, truth.boxes[missed]])[order]),
    ]
    return pa.Table.from_arrays(columns, schema=match_schema(id_type))


def _named(judgement: Judgement, num_objects: int) -> Bools:
    """[G] the objects that some detection's row names.

    TIDE also accounts for an object by an error on it that is not shown: of a detection in a crowd region.
    """
    named = np.zeros(num_objects, np.bool_)
    named[judgement.partners.objects[judgement.partners.present]] = True
    return named


def _boxes(values: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=_BOX)

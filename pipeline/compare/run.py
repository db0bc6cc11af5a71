"""The comparison of two outputs, or of what a run made with the rest of its output: ``comparison.json``.

::

    version                       1
    before, after                 output, run (null: all), model, weights_sha256, images, failed, detections
    figures                       what may be limited, see `pipeline.compare.limits`; null where it cannot be told
    limits                        that were asked for: limit, is_broken
    not_judged                    names of the classes that a figure leaves out for want of objects, by the figure
    few_images                    whether figures leave out what is counted by images, for want of these: share_change,
                                  and of psi and js the objects an image and the picture sizes
    objects_per_image, image_sizes  distances of images: see below
    classes                       the largest change first: id, name; before, after: images and their share, detections;
                                  share_change and count_change (of the objects an image, relative: -1 where the class
                                  is gone) [low, value, high]; p_value (two-proportion z-test), q_value (corrected for
                                  the number of classes by Benjamini and Hochberg); distances of scores and areas
    failures                      failed images by code: before, after
    by, slices                    a carried column, and for each value of it the same but for what is of all images
    agreement                     images of both sides, see `pipeline.compare.agreement`, null where there are none:
                                  images by what became of them; share, mean_iou and the number of objects; AP of the
                                  later side with the earlier one as the truth, by boxes (bbox) and masks (segm);
                                  classes, the lowest AP first; relabelled; most_changed: images, the most changed first

A distance is ``{"psi": [low, value, high], "js": [low, value, high]}``: the value, and between which it lies in 95 % of
the times that the images are drawn again; null where a side has nothing. Rows marked as deleted count on neither side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.annotations.data_file import OutputError
from pipeline.annotations.reader import Source, open_source
from pipeline.compare import agreement, profile
from pipeline.compare.agreement import Agreement, Disagreement, Tables, agree
from pipeline.compare.limits import MIN_IMAGES, MIN_OBJECTS, Figure
from pipeline.compare.profile import Profile
from pipeline.compare.statistics import benjamini_hochberg, js_distance, psi, two_proportions
from pipeline.messages.examples import Examples
from pipeline.metrics.blocks import Categories
from pipeline.storage.uris import Uri

VERSION = 1
MOST_SLICES = 100

_BATCHES_TOGETHER = 8
_DETECTIONS_OF_ROW = 8  # with more of them, rows are large
_IMAGE_COUNTS = (
    "images",
    "identical",
    "only_before",
    "only_after",
    "newly_failed",
    "newly_annotated",
    "replaced",
)
_CHANGES = ("weight", "gained", "lost", "relabelled", "matched")

Json = dict[str, Any]


@dataclass(frozen=True)
class Side:
    """Some rows of an output.

    Attributes:
        source: the output.
        run_id: of the rows' run; ``None`` for all.
        others: the rows of all other runs in the place of this one's.
    """

    source: Source
    run_id: str | None = None
    others: bool = False

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Columns of its rows, some thousand at a time; none that is marked as deleted."""
        wanted = list(dict.fromkeys([*columns, *(["run_id"] if self.run_id else [])]))
        waiting: list[pa.RecordBatch] = []
        for batch in self.source.batches(wanted):
            waiting.append(batch)
            if len(waiting) == _BATCHES_TOGETHER:
                yield self._chosen(waiting)
                waiting = []
        if waiting:
            yield self._chosen(waiting)

    def _chosen(self, batches: Sequence[pa.RecordBatch]) -> pa.Table:
        rows = pa.Table.from_batches(batches)
        if self.run_id is None:
            return rows
        own = pc.equal(rows["run_id"], self.run_id)
        return rows.filter(pc.invert(own) if self.others else own)

    def describe(self) -> Json:
        """What it is, for the report."""
        made = {key: self.source.provenance[key] for key in ("model", "weights_sha256")}
        return {"output": str(self.source.uri), "run": self.run_id, "others": self.others, **made}


@dataclass(frozen=True)
class Comparison:
    """What was found.

    Attributes:
        before, after: what was compared.
        content: of ``comparison.json``.
        most_changed: images of both sides with what was found on them, those that differ most first.
    """

    before: Side
    after: Side
    content: Json
    most_changed: Sequence[Disagreement] = ()

    @property
    def figures(self) -> Mapping[str, Figure]:
        """By the names of `pipeline.compare.limits.FIGURES`."""
        found: Mapping[str, Figure] = self.content["figures"]
        return found

    @property
    def not_judged(self) -> Mapping[str, Sequence[str]]:
        """Classes that a figure leaves out, by its name."""
        found: Mapping[str, Sequence[str]] = self.content["not_judged"]
        return found

    @property
    def few_images(self) -> bool:
        """Whether figures leave out what is counted by images."""
        return bool(self.content["few_images"])


def sides_of_run(uri: Uri, run_id: str) -> tuple[Side, Side]:
    """All other rows of an output, and those of a run.

    Raises:
        OutputError: there is no such output, or it has no row of this run.
    """
    source = open_source(uri)
    if run_id not in source.provenance["run_ids"]:
        known = Examples.of(source.provenance["run_ids"][::-1])
        raise OutputError(f"{uri} has no row of run {run_id}: those that it has rows of are {known}")
    return Side(source, run_id, others=True), Side(source, run_id)


def compare(before: Side, after: Side, by: str | None = None) -> Comparison:
    """Compare two sides; each file is read twice.

    Args:
        by: a carried column: each of its values is compared on its own as well.

    Raises:
        OutputError, InputError: a file is damaged; ids of two types; the column is not there, or has too many values.
    """
    if before.source.string_ids != after.source.string_ids:
        raise OutputError(
            f"the image ids of {before.source.uri} and {after.source.uri} are of two types: nothing can be compared"
        )
    for side in (before, after):
        if by is not None and by not in side.source.columns:
            raise OutputError(f"{side.source.uri} has no column {by!r}: manifest.carry names those to carry")
    names = {c.id: c.name for side in (after, before) for c in side.source.categories}
    classes = profile.categories_of([_class_ids(side) for side in (before, after)])
    whole = _profiles(before, classes, None)[None], _profiles(after, classes, None)[None]
    content: Json = {"version": VERSION}
    for name, side, counts in zip(("before", "after"), (before, after), whole, strict=True):
        content[name] = {**side.describe(), **_totals(counts)}
    body = _compared(whole[0], whole[1], names)
    found = _agreement(before, after, Categories(classes, tuple(names.get(i, str(i)) for i in classes)))
    figures, not_judged = _figures(body, whole)
    content["figures"] = {**figures, "agreement": found and found.share}
    content["not_judged"] = not_judged
    content["few_images"] = _few_images(whole)
    content |= body
    content["by"] = by
    content["slices"] = [] if by is None else _slices(before, after, by, classes, names)
    content["agreement"] = found and _described(found)
    return Comparison(before, after, content, found.most_changed if found else ())


def _class_ids(side: Side) -> list[int]:
    return [c.id for c in side.source.categories] + list(side.source.counts.detections_by_category)


def _profiles(side: Side, classes: tuple[int, ...], by: str | None) -> dict[str | None, Profile]:
    """By the value of the column; of all rows under ``None`` without one."""
    replicates = profile.replicates_of(len(classes), 1 if by is None else MOST_SLICES)
    found: dict[str | None, Profile] = {} if by else {None: Profile(classes, replicates)}  # null is a value too
    columns = profile.COLUMNS if by is None else (*profile.COLUMNS, by)
    for rows in side.tables(columns):
        if by is None:
            found[None].add(rows)
            continue
        values = _texts(side, rows, by)
        for value in pc.unique(values).to_pylist():
            if value not in found and len(found) == MOST_SLICES:
                raise OutputError(f"column {by!r} of {side.source.uri} has more than {MOST_SLICES} values: too many")
            own = pc.is_null(values) if value is None else pc.equal(values, value)
            found.setdefault(value, Profile(classes, replicates)).add(rows.filter(own))
    return found


def _texts(side: Side, rows: pa.Table, by: str) -> pa.ChunkedArray:
    try:
        return rows[by].cast(pa.string())
    except pa.ArrowException:
        raise OutputError(f"column {by!r} of {side.source.uri} is {rows[by].type}: nothing to sort images by") from None


def _slices(before: Side, after: Side, by: str, classes: tuple[int, ...], names: Mapping[int, str]) -> list[Json]:
    left, right = (_profiles(side, classes, by) for side in (before, after))
    empty = Profile(classes, profile.replicates_of(len(classes), MOST_SLICES))
    slices = []
    for value in sorted(left.keys() | right.keys(), key=lambda value: (value is not None, value or "")):
        sides = left.get(value, empty), right.get(value, empty)
        body = _compared(*sides, names)
        totals = {"before": _totals(sides[0]), "after": _totals(sides[1])}
        slices.append({"value": value, **totals, "figures": _figures(body, sides)[0], **body})
    return slices


def _totals(side: Profile) -> Json:
    return {
        "images": int(side.images[0] + side.failed[0]),
        "failed": int(side.failed[0]),
        "detections": int(side.scores[0].sum(dtype=np.float64)),
    }


def _compared(before: Profile, after: Profile, names: Mapping[int, str]) -> Json:
    shares = [side.with_class / np.maximum(side.images, 1)[:, None] for side in (before, after)]
    change = shares[1] - shares[0]
    counts = [side.scores.sum(axis=-1, dtype=np.float64) for side in (before, after)]
    rates = [count / np.maximum(side.images, 1)[:, None] for count, side in zip(counts, (before, after), strict=True)]
    # Of a class that was not there before, as if there had been one object: a change is a number, and a large one.
    growth = rates[1] / (np.maximum(counts[0], 1) / np.maximum(before.images, 1)[:, None]) - 1
    p_values = two_proportions(before.with_class[0], before.images[0], after.with_class[0], after.images[0])
    q_values = benjamini_hochberg(p_values)
    scores, areas = (_distances(getattr(before, n), getattr(after, n)) for n in ("scores", "areas"))
    has_both = bool(before.images[0] and after.images[0])
    classes = []
    for i, category in enumerate(before.classes):
        sides = {}
        for name, side, share in zip(("before", "after"), (before, after), shares, strict=True):
            detections = int(side.scores[0, i].sum(dtype=np.float64))
            sides[name] = {"images": int(side.with_class[0, i]), "share": float(share[0, i]), "detections": detections}
        if not any(side["detections"] for side in sides.values()):
            continue
        classes.append(
            {
                "id": category,
                "name": names.get(category, str(category)),
                **sides,
                "share_change": _interval(change[:, i]) if has_both else None,
                "count_change": _interval(growth[:, i]) if has_both else None,
                "p_value": float(p_values[i]),
                "q_value": float(q_values[i]),
                "scores": {name: _interval(values[:, i]) for name, values in scores.items()},
                "areas": {name: _interval(values[:, i]) for name, values in areas.items()},
            }
        )
    classes.sort(key=_size_of_change, reverse=True)
    codes = sorted(before.failures.keys() | after.failures.keys())
    return {
        "objects_per_image": _distance(before.objects, after.objects),
        "image_sizes": _distance(before.sides, after.sides),
        "classes": classes,
        "failures": {code: {"before": before.failures[code], "after": after.failures[code]} for code in codes},
        "failed_change": _failed_change(before, after),
    }


def _failed_change(before: Profile, after: Profile) -> list[float] | None:
    shares = [side.failed / np.maximum(side.images + side.failed, 1) for side in (before, after)]
    has_both = all(side.images[0] + side.failed[0] for side in (before, after))
    return _interval(shares[1] - shares[0]) if has_both else None


def _size_of_change(each: Json) -> tuple[float, float, float]:
    """A class that is gone or came before all others; then by how much of the images it is on, and by its scores."""
    before, after = each["before"], each["after"]
    least, most = sorted((before["share"], after["share"]))
    relative = 0.0 if most == 0 else 1 - least / most
    psis = [value["psi"][1] for value in (each["scores"], each["areas"]) if value["psi"]]
    # A relative change counts as far as it is none of chance.
    sure = 1 - each["q_value"]
    return (
        max(relative * sure, max(psis, default=0.0) if before["detections"] and after["detections"] else 0.0),
        most,
        0.0,
    )


def _distances(before: NDArray[Any], after: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    left, right = before.astype(np.float64), after.astype(np.float64)
    return {"psi": psi(left, right), "js": js_distance(left, right)}


def _distance(before: NDArray[np.float64], after: NDArray[np.float64]) -> Json:
    return {name: _interval(values) for name, values in _distances(before, after).items()}


def _interval(values: NDArray[np.float64]) -> list[float] | None:
    """Low, value and high; ``None`` where the value cannot be told."""
    value, drawn = values[0], values[1:][np.isfinite(values[1:])]
    if not np.isfinite(value):
        return None
    low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) else (value, value)
    return [float(low), float(value), float(high)]


def _figures(body: Json, sides: Sequence[Profile]) -> tuple[dict[str, Figure], dict[str, list[str]]]:
    """What may be limited, and names of the classes that are left out of it."""
    images = [int(side.images[0]) for side in sides]
    left_out = {name: [e["name"] for e in body["classes"] if _has_too_few(name, e, images)] for name in MIN_OBJECTS}
    judged = {name: [e for e in body["classes"] if not _has_too_few(name, e, images)] for name in MIN_OBJECTS}
    found: dict[str, Figure] = {}
    few = _few_images(sides)
    for name in ("psi", "js"):
        distances = [] if few else [body["objects_per_image"], body["image_sizes"]]
        distances += [each[of] for each in judged[name] for of in ("scores", "areas")]
        found[name] = max((each[name][1] for each in distances if each[name]), default=None)
    changes = [abs(each["share_change"][1]) for each in body["classes"] if each["share_change"] and not few]
    found["share_change"] = max(changes, default=None)
    counts = [each["count_change"][1] for each in judged["count_change"] if each["count_change"]]
    found["count_change"] = [min(counts), max(counts)] if counts else None
    found["failed_change"] = body["failed_change"] and body["failed_change"][1]
    return found, left_out


def _few_images(sides: Sequence[Profile]) -> bool:
    """Whether what is counted by images would be chance: see `MIN_IMAGES`."""
    return min(int(side.images[0]) for side in sides) < MIN_IMAGES


def _has_too_few(figure: str, each: Json, images: Sequence[int]) -> bool:
    """Whether what a figure says of a class would be chance: see `MIN_OBJECTS`."""
    counts = [each[side]["detections"] for side in ("before", "after")]
    if figure != "count_change":
        return bool(min(counts) < MIN_OBJECTS[figure])
    rate = max(count / max(1, of) for count, of in zip(counts, images, strict=True))
    return bool(rate * min(images) < MIN_OBJECTS[figure])


def _agreement(before: Side, after: Side, categories: Categories) -> Agreement | None:
    if before.source is after.source:
        return None  # of one output, no image is on both sides
    first, second = (Tables(str(side.source.uri), side.tables(agreement.COLUMNS)) for side in (before, after))
    counts = [side.source.counts for side in (before, after)]
    num_rows = max(count.rows for count in counts)
    num_detections = max(sum(count.detections_by_category.values()) for count in counts)
    found = agree(first, second, categories, max(num_rows, num_detections // _DETECTIONS_OF_ROW))
    return found if found.images + found.replaced else None


def _described(found: Agreement) -> Json:
    names, ids = found.categories.names, found.categories.ids
    pairs = sorted(found.relabelled.items(), key=lambda pair: -pair[1])
    renamed = {k for pair in found.relabelled for k in pair}
    occurring = np.flatnonzero(found.matched + found.gained + found.lost).tolist()
    classes = [
        {
            "id": ids[k],
            "name": names[k],
            **{name: int(getattr(found, name)[k]) for name in ("matched", "gained", "lost")},
            **{iou_type: rows[k] for iou_type, rows in found.precision.items()},
        }
        for k in sorted({*occurring, *renamed})
    ]
    classes.sort(key=lambda each: [2.0 if each[t]["AP"] is None else each[t]["AP"] for t in ("segm", "bbox")])
    return {
        **{name: getattr(found, name) for name in _IMAGE_COUNTS},
        "share": found.share,
        "mean_iou": found.mean_iou,
        "objects": {
            **{name: int(getattr(found, name).sum()) for name in ("matched", "gained", "lost")},
            "relabelled": sum(found.relabelled.values()),
        },
        "precision": {iou_type: found.mean_precision(iou_type) for iou_type in found.precision},
        "classes": classes,
        "relabelled": [{"before": names[a], "after": names[b], "objects": count} for (a, b), count in pairs],
        "most_changed": [
            {"image_id": each.image_id, **{name: getattr(each, name) for name in _CHANGES}}
            for each in found.most_changed
        ],
    }

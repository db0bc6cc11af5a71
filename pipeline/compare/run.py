"""The comparison of two outputs, or of what a run made with the rest of its output: ``comparison.json``.

::

    version                       1
    before, after                 output, run (null: all), model, weights_sha256, images, failed, detections
    figures                       what may be limited, see `pipeline.compare.limits`; null where it cannot be told
    objects_per_image, image_sizes  distances of images: see below
    classes                       the largest change first: id, name; before, after: images and their share, detections;
                                  share_change [low, value, high], p_value (two-proportion z-test), q_value (corrected
                                  for the number of classes by Benjamini and Hochberg); distances of scores and areas
    failures                      failed images by code: before, after
    slices                        the same but for ``slices`` and ``agreement``, by the value of a carried column
    agreement                     images of both sides: see `pipeline.compare.agreement`; null where there are none

A distance is ``{"psi": [low, value, high], "js": [low, value, high]}``: the value, and between which it lies in 95 % of
the times that the images are drawn again; null where a side has nothing. Rows marked as deleted count on neither side.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.annotations.data_file import OutputError
from pipeline.annotations.ledger import COMPARISON_NAME, COMPARISON_PAGE_NAME
from pipeline.annotations.reader import Source, open_source
from pipeline.compare import agreement, profile
from pipeline.compare.agreement import Agreement, agree
from pipeline.compare.profile import Profile
from pipeline.compare.statistics import benjamini_hochberg, js_distance, psi, two_proportions
from pipeline.messages.examples import Examples
from pipeline.page.shell import environment, rendered
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri

VERSION = 1
_MOST_CLASSES = 200  # of the page
MOST_SLICES = 100

_BATCHES_TOGETHER = 8

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
    """What ``comparison.json`` says."""

    content: Json

    @property
    def figures(self) -> Mapping[str, float | None]:
        """By the names of `pipeline.compare.limits.FIGURES`."""
        found: Mapping[str, float | None] = self.content["figures"]
        return found

    def write(self, folder: Uri) -> None:
        """The file, and the page beside it; earlier ones are replaced."""
        objects = open_objects(folder)
        objects.put(COMPARISON_NAME, json.dumps(self.content, indent=2).encode())
        objects.put(COMPARISON_PAGE_NAME, self._page().encode())

    def _page(self) -> str:
        classes = self.content["classes"][:_MOST_CLASSES]
        context = {"title": "Two outputs compared", "found": self.content, "classes": classes}
        templates = environment("pipeline.compare")
        return rendered(templates, "comparison.html.jinja", {**context, "most_classes": _MOST_CLASSES})

    def text(self) -> str:
        """Some lines for people: the figures, and the classes that changed most."""
        figures = self.figures.items()
        lines = [", ".join(f"{name} {value:.4g}" for name, value in figures if value is not None)]
        for each in self.content["classes"][:5]:
            if each["scores"]["psi"] is not None or each["before"] != each["after"]:
                before, after = each["before"], each["after"]
                lines.append(
                    f"  {each['name']}: {before['detections']:,} -> {after['detections']:,} detections, on "
                    f"{before['share']:.2%} -> {after['share']:.2%} of the images (q {each['q_value']:.2g})"
                )
        return "\n".join(lines)


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
    """Compare two sides; each file is read twice, its masks not at all.

    Args:
        by: a carried column: each of its values is compared on its own as well.

    Raises:
        OutputError: a file is damaged; ids of two types; the column is not there, or has too many values.
    """
    if before.source.string_ids != after.source.string_ids:
        raise OutputError(
            f"the image ids of {before.source.uri} and {after.source.uri} are of two types: nothing can be compared"
        )
    names = {c.id: c.name for side in (after, before) for c in side.source.categories}
    classes = profile.categories_of([_class_ids(side) for side in (before, after)])
    whole = _profiles(before, classes, None)[None], _profiles(after, classes, None)[None]
    content: Json = {"version": VERSION}
    for name, side, counts in zip(("before", "after"), (before, after), whole, strict=True):
        content[name] = {**side.describe(), **_totals(counts)}
    body = _compared(whole[0], whole[1], names)
    shared = _agreement(before, after, names)
    content["figures"] = {**_figures(body), "agreement": shared and shared["share"]}
    content |= body
    content["by"] = by
    content["slices"] = {} if by is None else _slices(before, after, by, classes, names)
    content["agreement"] = shared
    return Comparison(content)


def _class_ids(side: Side) -> list[int]:
    return [c.id for c in side.source.categories] + list(side.source.counts.detections_by_category)


def _profiles(side: Side, classes: tuple[int, ...], by: str | None) -> dict[str | None, Profile]:
    """By the value of the column; of all rows under ``None`` without one."""
    replicates = profile.replicates_of(len(classes), 1 if by is None else MOST_SLICES)
    found: dict[str | None, Profile] = {} if by else {None: Profile(classes, replicates)}
    columns = profile.COLUMNS if by is None else (*profile.COLUMNS, by)
    for rows in side.tables(columns):
        if by is None:
            found[None].add(rows)
            continue
        values = rows[by].cast(pa.string()).fill_null("null")
        for value in pc.unique(values).to_pylist():
            if value not in found and len(found) == MOST_SLICES:
                raise OutputError(f"column {by!r} of {side.source.uri} has more than {MOST_SLICES} values: too many")
            found.setdefault(value, Profile(classes, replicates)).add(rows.filter(pc.equal(values, value)))
    return found


def _slices(
    before: Side, after: Side, by: str, classes: tuple[int, ...], names: Mapping[int, str]
) -> dict[str | None, Json]:
    for side in (before, after):
        if by not in side.source.columns:
            raise OutputError(f"{side.source.uri} has no column {by!r}: manifest.carry names those to carry")
    left, right = (_profiles(side, classes, by) for side in (before, after))
    empty = Profile(classes, profile.replicates_of(len(classes), MOST_SLICES))
    slices = {}
    for value in sorted(left.keys() | right.keys(), key=str):
        sides = left.get(value, empty), right.get(value, empty)
        body = _compared(*sides, names)
        slices[value] = {"before": _totals(sides[0]), "after": _totals(sides[1]), "figures": _figures(body), **body}
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


def _figures(body: Json) -> dict[str, float | None]:
    distances = [body["objects_per_image"], body["image_sizes"]]
    distances += [each[name] for each in body["classes"] for name in ("scores", "areas")]
    found: dict[str, float | None] = {}
    for name in ("psi", "js"):
        found[name] = max((each[name][1] for each in distances if each[name]), default=None)
    changes = [abs(each["share_change"][1]) for each in body["classes"] if each["share_change"]]
    found["share_change"] = max(changes, default=None)
    found["failed_change"] = body["failed_change"] and body["failed_change"][1]
    return found


def _agreement(before: Side, after: Side, names: Mapping[int, str]) -> Json | None:
    if before.source is after.source:
        return None  # of one output, no image is on both sides
    found: Agreement = agree(*(side.tables(agreement.COLUMNS) for side in (before, after)))
    if not found.images:
        return None

    def named(counts: Mapping[int, int]) -> list[Json]:
        ordered = sorted(counts.items(), key=lambda pair: -pair[1])
        return [{"name": names.get(key, str(key)), "objects": count} for key, count in ordered]

    pairs = sorted(found.relabelled.items(), key=lambda pair: -pair[1])
    return {
        "images": found.images,
        "identical": found.identical,
        "only_before": found.only_before,
        "only_after": found.only_after,
        "newly_failed": found.newly_failed,
        "newly_annotated": found.newly_annotated,
        "share": found.share,
        "mean_iou": found.mean_iou,
        "matched": named(found.matched),
        "gained": named(found.gained),
        "lost": named(found.lost),
        "relabelled": [
            {"before": names.get(a, str(a)), "after": names.get(b, str(b)), "objects": count} for (a, b), count in pairs
        ],
        "most_changed": [{"image_id": name, "objects": count} for count, name in found.most_changed],
    }

"""``summary.html``: books, failures, classes, scores and sizes, a few pictures and the figures of the run.

Books, failures and classes are those of the footers, exact however large the output is. Scores, sizes and pictures come
from a sample of bounded cost, and the page says of how many images.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from jinja2 import Environment

from pipeline.annotate.summary.sample import SHOWN_SCORE, Sample, SampleCard, draw_sample
from pipeline.annotations.ledger import PAGE_NAME, OutputStore
from pipeline.annotations.overview import FailureKind, Overview, look_over
from pipeline.annotations.overview_text import changes_line, costs, how_it_ended
from pipeline.annotations.rows import evenly, first_rows
from pipeline.annotations.run_json import RunJson, RunState
from pipeline.annotations.schema import ANNOTATED, there
from pipeline.messages.counts import counted, size
from pipeline.messages.timing import duration
from pipeline.page.shell import environment, rendered
from pipeline.provenance import begun_at
from pipeline.storage.lock.lease import LockLost
from pipeline.storage.objects.base import Entry
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri, hide_secrets

logger = logging.getLogger(__name__)

NUM_PICTURES = 12
PICTURES_TIMEOUT_S = 20.0
_FILES_SAMPLED, _FILES_AT_ONCE = 64, 8
_MOST_CLASSES = 300
_MOST_FAILURES = 50
_MOST_LETTERS = 300
_GENERATOR = "maskfleet annotate"
_MARK = f'<meta name="generator" content="{_GENERATOR}">'.encode()  # by which a page of ours is known
_HEAD_BYTES = 1024

_SCORE_EDGES = np.linspace(0, 1, 21)
_SIDE_EDGES = 2.0 ** np.arange(1, 13.5, 0.5)  # pixels; what is beyond counts in the outermost bins
_COCO_SIDES = (32, 96)
_SCORE, _AREA = (f"detections.list.element.{name}" for name in ("score", "area"))


@contextmanager
def page_at_end(store: OutputStore, run_id: str, fence: Callable[[], None]) -> Iterator[None]:
    """However a run ends in this block by itself, its page is drawn then, if ``run.json`` says how it did.

    A run that ends well also draws the page of an earlier one that has none. Whatever goes wrong is a warning: the rows
    are what counts. After a signal no page is drawn: whoever sends one waits for the end, and may not wait for long.

    Args:
        store: the output.
        run_id: of the run.
        fence: called right before the page is written; raises if this run must not write any more.
    """
    try:
        yield
    except Exception:
        _draw_if_due(store, run_id, fence, if_missing=False)
        raise
    _draw_if_due(store, run_id, fence, if_missing=True)


def _draw_if_due(store: OutputStore, run_id: str, fence: Callable[[], None], if_missing: bool) -> None:
    uri = store.uri
    try:
        if not _is_due(uri, run_id, if_missing):
            return
        logger.info("drawing the page of the output")
        overview = look_over(uri, folder=store.folder)
        files = _some_files(overview, NUM_PICTURES)
        sample = draw_sample(uri, files, NUM_PICTURES, PICTURES_TIMEOUT_S)
        page = render_summary(overview, read_shapes(overview), sample)
        fence()
        open_objects(uri).put(PAGE_NAME, page.encode())
    except LockLost:
        return
    except Exception as error:
        logger.warning("no page was drawn: %s: %s", type(error).__name__, hide_secrets(str(error)))
        return
    logger.info("a page to look at: %s", uri / PAGE_NAME)


def _is_due(uri: Uri, run_id: str, if_missing: bool) -> bool:
    run = RunJson.read(uri)
    if run is None or run.state is RunState.RUNNING or (run.run_id != run_id and not if_missing):
        return False
    objects = open_objects(uri)
    there = next((entry for entry in objects.list("").files if entry.name == PAGE_NAME), None)
    if there is None:
        return True
    if run.run_id != run_id:
        return False
    is_ours = _MARK in objects.read_range(PAGE_NAME, 0, min(_HEAD_BYTES, there.size_bytes))
    if not is_ours:
        logger.warning("no page is drawn: %s is not of an earlier run", uri / PAGE_NAME)
    return is_ours


@dataclass(frozen=True)
class Shapes:
    """How detections of a sample of images are distributed.

    Attributes:
        images: annotated ones in the sample.
        scores: number of detections by score, in 20 equal bins from 0 to 1.
        sides: by the root of the mask's area in pixels, in bins of half a doubling from 2 on.
        sizes: small, medium and large by COCO's borders, 32² and 96² pixels.
    """

    images: int = 0
    scores: tuple[int, ...] = (0,) * (len(_SCORE_EDGES) - 1)
    sides: tuple[int, ...] = (0,) * (len(_SIDE_EDGES) - 1)
    sizes: tuple[int, ...] = (0, 0, 0)

    def __add__(self, other: Shapes) -> Shapes:
        pairs = ((self.scores, other.scores), (self.sides, other.sides), (self.sizes, other.sizes))
        sums = (tuple(a + b for a, b in zip(*pair, strict=True)) for pair in pairs)
        return Shapes(self.images + other.images, *sums)

    @classmethod
    def of(cls, table: pa.Table) -> Shapes:
        """Of rows with ``status`` and the detections' ``score`` and ``area``."""
        table = there(table)
        found = pc.list_flatten(table["detections"])
        scores, areas = (pc.struct_field(found, name).to_numpy() for name in ("score", "area"))
        sides = np.sqrt(areas.astype(np.float64))
        return cls(
            pc.sum(pc.equal(table["status"], ANNOTATED)).as_py() or 0,
            _binned(scores, _SCORE_EDGES),
            _binned(sides, _SIDE_EDGES),
            tuple(np.bincount(np.digitize(sides, _COCO_SIDES), minlength=3).tolist()),
        )


def _binned(values: np.ndarray, edges: np.ndarray) -> tuple[int, ...]:
    inside = np.clip(values, edges[0], edges[-1])
    return tuple(np.histogram(inside, edges)[0].tolist())


def read_shapes(overview: Overview) -> Shapes:
    """Of the first rows of some files of an output.

    Raises:
        OutputError: a file is damaged.
    """
    files = _some_files(overview, _FILES_SAMPLED)
    columns = ["status", _SCORE, _AREA]
    return sum(first_rows(overview.survey.folder, files, columns, Shapes.of, _FILES_AT_ONCE), Shapes())


def _some_files(overview: Overview, most: int) -> list[Entry]:
    """Always the same ones, so few that what they cost does not grow with the output.

    A file's name is a digest of its ids, so the order of the names has nothing to do with what is on the images.
    """
    return evenly(list(overview.survey.footers), most)


class ClassRow(NamedTuple):
    """A class: its detections, their share of all, and the length of its bar, 0 to 1."""

    name: str
    number: int
    share: float
    length: float


class StageRow(NamedTuple):
    """A stage: seconds of work summed over all tasks, and their share."""

    name: str
    seconds: str
    share: float


def render_summary(overview: Overview, shapes: Shapes, sample: Sample) -> str:
    """The page, with whatever there is."""
    run = overview.run
    counts = overview.counts
    context = {
        "title": "Annotations",
        "generator": _GENERATOR,
        "uri": str(overview.uri),
        "ending": _clipped(how_it_ended(run)) if run else "not known: no run.json says how it was made",
        "begun": begun_at(run.run_id) if run else None,
        "drawn": overview.looked_at,
        "counts": counts,
        "pending": overview.pending,
        "detections": sum(overview.classes.values()),
        "books": _books(overview),
        "failures": [_failure(kind) for kind in overview.failures[:_MOST_FAILURES]],
        "num_failures": len(overview.failures),
        "classes": _class_rows(overview.classes),
        "num_classes": len(overview.classes),
        "known_classes": len(run.categories) if run else 0,
        "shapes": shapes,
        "sample": replace(sample, cards=tuple(map(_card, sample.cards))),
        "shown_score": SHOWN_SCORE,
        "manifest": overview.manifest,
        "changes": changes_line(run.changes) if run and run.changes.compared and not run.changes.all_new else "",
        "files": f"{counted(overview.num_files, 'file')}, {size(overview.num_bytes)}",
        "problems": [_clipped(problem) for problem in overview.problems],
        "run": run,
        "speed": _speed(run) if run else {},
        "stages": _stages(run) if run else [],
        "model": _model(overview),
        "settings": hide_secrets(yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)) if run else "",
        "versions": _versions(run) if run else "",
    }
    return rendered(_templates(), "summary.html.jinja", context)


@cache
def _templates() -> Environment:
    return environment("pipeline.annotate.summary", {"score_plot": _score_plot, "side_plot": _side_plot})


def _score_plot(shapes: Shapes) -> str:
    return _histogram(_SCORE_EDGES.tolist(), shapes.scores, over="score")


def _side_plot(shapes: Shapes) -> str:
    """Only the bins from the first to the last with a detection."""
    filled = [i for i, number in enumerate(shapes.sides) if number] or [0]
    first, last = filled[0] // 2 * 2, filled[-1] // 2 * 2 + 2
    edges, sides = _SIDE_EDGES[first : last + 1].tolist(), shapes.sides[first:last]
    inside = [side for side in _COCO_SIDES if edges[0] < side < edges[-1]]
    return _histogram(edges, sides, over="root of the mask's area, pixels", doubling=True, borders=inside)


def _histogram(edges: Sequence[float], counts: Sequence[int], over: str, **options: Any) -> str:
    from pipeline.page.plots import histogram  # matplotlib takes a second, and many a run draws no page

    return histogram(edges, counts, over=over, of="detections", **options)


def _clipped(text: str) -> str:
    text = hide_secrets(text)
    return text if len(text) <= _MOST_LETTERS else text[:_MOST_LETTERS] + "…"


def _books(overview: Overview) -> list[tuple[str, str, int, float]]:
    """CSS class, label, number and share of what became of the images; parts without one are left out."""
    counts = overview.counts
    parts = [
        ("annotated", "annotated", counts.annotated),
        ("failed", "failed", counts.failed),
        ("without_result", "to do", overview.pending or 0),
    ]
    total = max(1, sum(number for *_, number in parts))
    return [(kind, label, number, number / total) for kind, label, number in parts if number]


def _failure(kind: FailureKind) -> FailureKind:
    examples = tuple((_clipped(str(image_id)), _clipped(message)) for image_id, message in kind.examples)
    return FailureKind(_clipped(kind.code), kind.count, examples)


def _card(card: SampleCard) -> SampleCard:
    return replace(card, image_id=_clipped(card.image_id), reason=_clipped(card.reason))


def _class_rows(classes: Mapping[str, int]) -> list[ClassRow]:
    total, longest = max(1, sum(classes.values())), max(1, *classes.values(), 0)
    shown = islice(classes.items(), _MOST_CLASSES)
    return [ClassRow(_clipped(name), number, number / total, number / longest) for name, number in shown]


def _speed(run: RunJson) -> dict[str, str]:
    figures = run.this_run
    if not figures.rounds:
        return {}
    return {
        "Images of this run": f"{figures.images:,}, of which it wrote {figures.written:,}",
        "Time": f"{duration(figures.seconds)}, start-up included",
        "Speed": f"{figures.images_per_second:,.2f} images/s",
        "Replicas busy": f"{figures.replica_busy_share:.0%}",
        **({"Batches full": f"{figures.batch_fill:.0%}"} if figures.batch_fill else {}),
        **{name[0].upper() + name[1:]: _clipped(value) for name, value in costs(figures).items()},
    }


def _stages(run: RunJson) -> list[StageRow]:
    split = run.this_run.time_split_s
    total = sum(split.values()) or 1.0
    return [StageRow(name, duration(seconds), seconds / total) for name, seconds in split.items()]


def _model(overview: Overview) -> dict[str, str]:
    if overview.identities:
        identity = overview.identities[-1]
        found: dict[str, Any] = {"Model": identity.model_name, "Digest of its weights": identity.weights_sha256}
    else:
        says = overview.run.identity if overview.run else {}
        found = {"Model": says.get("model_name"), "Digest of its weights": says.get("weights_sha256")}
    source = overview.run.identity.get("source") if overview.run else None
    if isinstance(source, dict):
        found["File"] = source.get("file")
    return {name: hide_secrets(value) for name, value in found.items() if isinstance(value, str) and value}


def _versions(run: RunJson) -> str:
    packages = run.code.get("packages")
    parts = [f"{name} {version}" for name, version in packages.items()] if isinstance(packages, dict) else []
    return ", ".join([str(run.code.get("version", "")), *parts])

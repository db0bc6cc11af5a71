"""The evaluation job: predictions and ground truth in; metrics, match table, thresholds and report out."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.annotations.ledger import OutputStore
from pipeline.annotations.overview_text import printable
from pipeline.evaluate.analysis import AnalysisPlan
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.gallery import gallery_images
from pipeline.evaluate.inputs.annotations import AnnotatedOutput
from pipeline.evaluate.inputs.predictions import Predictions
from pipeline.evaluate.measure import Analysis, Item, Measured, Request, Result, TaskRunner, measure
from pipeline.evaluate.metrics_file import analysis_figures, figures
from pipeline.evaluate.report.page import render_report
from pipeline.evaluate.report.sections import worst_first
from pipeline.evaluate.thresholds_file import thresholds_yaml
from pipeline.messages.timing import NowAndThen
from pipeline.metrics.analysis.thresholds import ThresholdFigures
from pipeline.metrics.ap.figures import coco_summary_lines
from pipeline.page.numbers import ratio
from pipeline.provenance import code_version, new_run_id, package_versions
from pipeline.storage.lock.claim import OutputKind, check_own
from pipeline.storage.lock.lease import Fence, OutputLock
from pipeline.storage.lock.scratch import scratch_of
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri

logger = logging.getLogger(__name__)

METRICS, REPORT, THRESHOLDS, MATCHES = "metrics.json", "report.html", "thresholds.yaml", "matches"
_LOG_INTERVAL_S = 10.0
_AP_NAMES = {"segm": "mask AP", "bbox": "box AP"}
_MOST_CLASSES, _NAME_WIDTH = 30, 32  # on a terminal
_MAX_METRICS_BYTES = 1 << 30
_MATCH_FILE = re.compile(r"part-\d{5,}\.parquet")


def _holds_evaluation(uri: Uri, names: frozenset[str]) -> bool | None:
    if METRICS not in names:
        return None
    try:
        metrics = json.loads(open_objects(uri).read(METRICS, _MAX_METRICS_BYTES)[0])
    except (ValueError, RecursionError):
        return False
    return isinstance(metrics, dict) and {"sources", "decisions", "run"} <= metrics.keys()


_OWN_NAMES = re.compile("|".join(map(re.escape, (METRICS, REPORT, THRESHOLDS, f"{MATCHES}/"))))
_EVALUATION = OutputKind("the evaluation job", _OWN_NAMES, _holds_evaluation)


@dataclass(frozen=True)
class Evaluation:
    """What came out.

    Attributes:
        metrics: the content of metrics.json.
        measured: the figures behind it.
    """

    metrics: dict[str, Any]
    measured: Measured


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Evaluate, and write the results; those of an earlier evaluation are replaced.

    Raises:
        ForeignFolder: the output folder is not empty, and no evaluation's.
        InputError: the inputs cannot be evaluated; no results were written. Those of an earlier evaluation are still
            there unless the reason was found in a picture's annotations, late.
        UserError, RunError, OSError: likewise.
    """
    run_id = new_run_id()
    output = config.output.uri
    check_own(output, _EVALUATION)
    started = time.monotonic()
    with ExitStack() as stack:
        fence = stack.enter_context(OutputLock(output, run_id)).fence()
        scratch = stack.enter_context(scratch_of(output, run_id, fence))
        report = _reporter()
        on_ray = _OnRay(config, stack, report)
        measured = measure(_request(config, scratch), on_ray, report, before_results=lambda: _remove_old(output, fence))
        metrics = _metrics(config, measured)
        metrics["run"] = {
            "run_id": run_id,
            "seconds": round(time.monotonic() - started, 3),
            "code": code_version(),
            "packages": package_versions(),
            "config": config.model_dump(mode="json"),
        }
        _write(config, measured, metrics, fence)
    return Evaluation(metrics, measured)


class _OnRay:
    """A `pipeline.evaluate.measure.TaskRunner` that starts Ray for the first tasks: the inputs are read before it.

    Args:
        stack: takes what ends it.
        report: see `RayTasks`.
    """

    def __init__(self, config: EvaluateConfig, stack: ExitStack, report: Callable[[str], None]) -> None:
        self._config, self._stack, self._report = config, stack, report
        self._tasks: TaskRunner | None = None

    def __call__(self, work: Callable[[Item], Result], items: Sequence[Item], verb: str) -> Iterator[Result]:
        if self._tasks is None:
            from pipeline.cluster.connect import connect
            from pipeline.cluster.shared import check_shared
            from pipeline.cluster.tasks import RayTasks

            self._stack.enter_context(connect(self._config.resources.ray_address))
            check_shared({"output.uri": self._config.output.uri}, self._config.predictions.read_by_workers())
            self._tasks = RayTasks(self._report)
        return self._tasks(work, items, verb)


def _remove_old(output: Uri, fence: Fence) -> None:
    """What an earlier evaluation wrote, and nothing else. metrics.json first: where it is, everything is."""
    objects = open_objects(output)
    matches = [entry for entry in objects.list(MATCHES).files if _MATCH_FILE.fullmatch(entry.name)]
    old = {entry.name: entry for entry in objects.list("").files if entry.name in (METRICS, REPORT, THRESHOLDS)}
    for name in sorted(old, key=[METRICS, REPORT, THRESHOLDS].index):
        fence()
        objects.delete(name, old[name])
    for entry in matches:
        fence()
        objects.delete(f"{MATCHES}/{entry.name}", entry)
    objects.delete_empty_folder(MATCHES)


def _request(config: EvaluateConfig, scratch: Uri) -> Request:
    analysis = AnalysisPlan(
        config.analysis,
        config.metrics.main_iou_type,
        config.gallery.images_per_class,
        config.output.uri / MATCHES,
    )
    return Request(
        predictions_uri=config.predictions.uri,
        truth_uri=config.ground_truth.uri,
        images=config.ground_truth.images,
        iou_types=config.metrics.iou_types,
        protocol=config.metrics.protocol(),
        analysis=analysis if config.analysis.enabled else None,
        scratch_uri=scratch,
    )


def _metrics(config: EvaluateConfig, measured: Measured) -> dict[str, Any]:
    predictions, truth = str(config.predictions.uri), str(config.ground_truth.uri)
    return {
        "title": "Evaluation",
        "sources": {"predictions": predictions, "ground_truth": truth, "model": _model(measured.predictions)},
        "decisions": measured.inputs.decisions(config.ground_truth.images),
        **figures(measured, config.metrics.max_dets),
        **analysis_figures(measured),
    }


def _model(predictions: Predictions) -> dict[str, str]:
    """What made the predictions, where they say it."""
    if not isinstance(predictions, AnnotatedOutput):
        return {}
    identity = OutputStore(predictions.uri).files().identity()
    if identity is None:
        return {}
    keys = ("model_name", "weights_sha256", "config_digest", "code_version")
    return {key: getattr(identity, key) for key in keys}


def _write(config: EvaluateConfig, measured: Measured, metrics: dict[str, Any], fence: Fence) -> None:
    objects = open_objects(config.output.uri)
    fence()
    if measured.analysis is not None:
        try:
            objects.put(THRESHOLDS, _thresholds(measured, measured.analysis).encode())
        except ValueError as error:  # several categories of one name: no reason to lose the figures
            metrics["decisions"].append(f"{THRESHOLDS} was not written: {error}")
    logger.info("drawing the report")
    gallery = gallery_images(config.gallery, measured)
    page = render_report(metrics, gallery).encode()  # it fetches the pictures
    content = json.dumps(metrics, indent=1, ensure_ascii=False, allow_nan=False).encode()
    for name, written in ((REPORT, page), (METRICS, content)):
        fence()
        objects.put(name, written)


def _thresholds(measured: Measured, analysis: Analysis) -> str:
    """Of the categories that the model has: the annotate job refuses others."""
    at = analysis.figures["thresholds"]
    assert isinstance(at, ThresholdFigures)
    ids, names = measured.categories.ids, measured.categories.names
    by_id = _model_categories(measured.predictions) or dict(zip(ids, names, strict=True))
    kept = [k for k, category_id in enumerate(ids) if category_id in by_id]
    return thresholds_yaml([by_id[ids[k]] for k in kept], [at.categories[k] for k in kept], at.wanted_precision)


def _model_categories(predictions: Predictions) -> dict[int, str]:
    """Id to name as the model has it; empty where the predictions do not say."""
    if not isinstance(predictions, AnnotatedOutput):
        return {}
    run = predictions.run
    return {category.id: category.name for category in run.categories} if run else {}


def summary(evaluation: Evaluation) -> str:
    """The closing words: the books, decisions, COCO's lines for each kind of IoU, and the classes."""
    metrics = evaluation.metrics
    images = metrics["images"]
    lines = [
        f"images: {images['ground_truth']:,} in the ground truth = {images['annotated']:,} annotated + "
        f"{images['failed']:,} failed + {images['without_result']:,} without result; {images['evaluated']:,} evaluated"
    ]
    lines += [f"note: {text}" for text in metrics["decisions"]]
    for kind, values in metrics["summary"].items():
        lines.append({"bbox": "boxes", "segm": "masks"}[kind])
        lines += coco_summary_lines(np.array(values["stats"]), metrics["max_dets"])
    return "\n".join(lines + class_lines(metrics["per_class"]))


def class_lines(per_class: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """A table of the classes, lowest AP first, of which a terminal has room for some.

    Args:
        per_class: by kind of IoU the classes in one order, as in metrics.json.
    """
    kinds = [kind for kind in _AP_NAMES if kind in per_class]
    if not kinds:
        return []
    ap = {kind: {row["category_id"]: row["AP"] for row in per_class[kind]} for kind in kinds}
    rows = worst_first(per_class[kinds[0]])
    shown = rows[:_MOST_CLASSES]
    names = [printable(row["name"]) for row in shown]
    names = [name if len(name) <= _NAME_WIDTH else name[: _NAME_WIDTH - 1] + "…" for name in names]
    width = max(map(len, [*names, "class"]))
    heads = "".join(f"{_AP_NAMES[kind]:>9}" for kind in kinds)
    lines = ["classes, lowest AP first", f" {'class':<{width}}{heads}{'objects':>11}{'detections':>12}"]
    for name, row in zip(names, shown, strict=True):
        values = "".join(f"{ratio(ap[kind][row['category_id']]):>9}" for kind in kinds)
        lines.append(f" {name:<{width}}{values}{row['objects']:>11,}{row['detections']:>12,}")
    if len(rows) > len(shown):
        lines.append(f" and {len(rows) - len(shown):,} more in {METRICS} and {REPORT}")
    return lines


def _reporter() -> Callable[[str], None]:
    """A line every few seconds, and not one for each part."""
    now_and_then = NowAndThen(_LOG_INTERVAL_S)

    def report(line: str) -> None:
        if now_and_then.is_due():
            logger.info(line)

    return report

"""The stages of the evaluation, one after the other; where their tasks run is for others to say.

    ground truth ── deal by image id ──┐
    predictions ── list images ────────┴─► pair a hash part ─► evaluate a group ─► reduce a category
                   a range of groups       each a task         each a task         each a task

What passes between the stages lies on scratch storage; tasks return where it lies, and sums. A task that is run
again writes the same files again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np

from pipeline.evaluate.inputs.annotations import open_annotated_output
from pipeline.evaluate.inputs.books import InputError, InputReport, WhichImages
from pipeline.evaluate.inputs.coco_results import deal_results
from pipeline.evaluate.inputs.ground_truth import Categories, deal_truth
from pipeline.evaluate.inputs.pairing import check_sides, pair_part, truth_chunks
from pipeline.evaluate.inputs.predictions import Predictions, group_ranges, list_images
from pipeline.evaluate.map_groups import AnalysisPlan, AnalysisSums, GroupPlan, GroupResult, evaluate_group
from pipeline.evaluate.reduce_categories import CategoryWork, Reduced, reduce_category
from pipeline.evaluate.shuffle.chunks import ChunkStore
from pipeline.evaluate.shuffle.sorted_runs import ERRORS_STREAM, SortedRun
from pipeline.metrics.analysis.tide import ErrorTotals
from pipeline.metrics.analysis.top_images import TopImages
from pipeline.metrics.protocol import CocoProtocol, IouType
from pipeline.tables.arrays import Int64s

Item = TypeVar("Item")
Result = TypeVar("Result")

_RESULTS_SUFFIXES = (".json", ".json.gz", ".json.bz2", ".json.zst")
_REDUCE_TASKS = 128


class TaskRunner(Protocol):
    """Runs tasks somewhere, each by itself."""

    def __call__(self, work: Callable[[Item], Result], items: Sequence[Item], verb: str) -> Iterator[Result]:
        """``work`` of each item, results in any order; what it raises as InputError is raised here.

        Args:
            work: picklable, as are items and results.
            items: at least one.
            verb: what is done, in the past tense, for progress.
        """


def in_this_process(work: Callable[[Item], Result], items: Sequence[Item], verb: str) -> Iterator[Result]:
    """A `TaskRunner` without others."""
    return map(work, items)


@dataclass(frozen=True)
class Request:
    """What to evaluate, and how.

    Attributes:
        predictions_uri: an output of the annotate job, or a COCO results file.
        truth_uri: a COCO JSON file.
        images: which images of the ground truth count.
        iou_types: what is compared.
        protocol: the limits.
        analysis: ``None``: COCO's figures only.
        wanted_precision: of the thresholds per class, with the analysis.
        scratch_uri: a folder that all nodes reach; whoever gives it removes it.
    """

    predictions_uri: str
    truth_uri: str
    images: WhichImages
    iou_types: tuple[IouType, ...]
    protocol: CocoProtocol
    analysis: AnalysisPlan | None
    wanted_precision: float
    scratch_uri: str


@dataclass(frozen=True)
class Measured:
    """What all tasks came to.

    Attributes:
        categories: K of the ground truth.
        predictions: as they were opened.
        inputs: the books of both sides.
        num_images: that count.
        num_detections: [K].
        num_crowd: [K] crowd regions.
        num_objects: by what was compared, [K, A] objects that count.
        reduced: by stream, K categories.
        analysis: sums over all images; ``None`` without.
        num_records: that went from the map to the reduce.
        record_bytes: of them, packed.
        scratch_uri: where the examples of the analysis lie.
    """

    categories: Categories
    predictions: Predictions
    inputs: InputReport
    num_images: int
    num_detections: Int64s
    num_crowd: Int64s
    num_objects: dict[IouType, Int64s]
    reduced: dict[str, list[Reduced]]
    analysis: AnalysisSums | None
    num_records: int
    record_bytes: int
    scratch_uri: str


def measure(request: Request, run_tasks: TaskRunner, report: Callable[[str], None]) -> Measured:
    """Evaluate.

    Args:
        request: see there.
        run_tasks: where the tasks run.
        report: takes a line for people now and then.

    Raises:
        InputError: the inputs cannot be evaluated; every reason is in the message.
    """
    plan, chunks, inputs = _pair(request, run_tasks, report)
    evaluate = functools.partial(_evaluate, plan)
    groups = list(run_tasks(evaluate, list(enumerate(chunks)), "evaluated"))
    num_objects = {kind: np.sum([group.num_objects[kind] for group in groups], axis=0) for kind in request.iou_types}
    analysis = _add_up([group.analysis for group in groups if group.analysis])
    works = _reduce_works(request, groups, num_objects, analysis)
    reduce = functools.partial(_reduce, protocol=request.protocol, scratch_uri=plan.store.uri)
    reduced: dict[str, list[Reduced]] = {}
    for batch in run_tasks(reduce, _balanced(works), "reduced"):
        for each in batch:
            reduced.setdefault(each.stream, []).append(each)
    chunks = [chunk for work in works for run in work.runs for chunk in run.chunks]
    return Measured(
        categories=plan.truth.categories,
        predictions=plan.predictions,
        inputs=inputs,
        num_images=sum(group.num_images for group in groups),
        num_detections=np.sum([group.num_detections for group in groups], axis=0),
        num_crowd=np.sum([group.num_crowd for group in groups], axis=0),
        num_objects=num_objects,
        reduced={stream: sorted(parts, key=lambda each: each.category) for stream, parts in reduced.items()},
        analysis=analysis,
        num_records=sum(chunk.num_records for chunk in chunks),
        record_bytes=sum(chunk.stop - chunk.start for chunk in chunks),
        scratch_uri=plan.store.uri,
    )


def _pair(
    request: Request, run_tasks: TaskRunner, report: Callable[[str], None]
) -> tuple[GroupPlan, list[Any], InputReport]:
    """Deal, list and join: the plan, the ground truth of each group, and the books."""
    masks = "segm" in request.iou_types
    store = ChunkStore(f"{request.scratch_uri}/truth")
    truth = deal_truth(request.truth_uri, store, masks)
    report(f"ground truth: {truth.num_images:,} images, {truth.num_objects:,} objects")
    predictions = _open_predictions(request, masks)
    listing = functools.partial(_list, predictions, store=store, num_parts=truth.num_parts)
    listed = list(run_tasks(listing, group_ranges(predictions), "listed"))
    inputs = check_sides(truth, predictions, listed, request.images)
    pair = functools.partial(pair_part, truth, listed, store, num_groups=predictions.num_groups, images=request.images)
    paired = list(run_tasks(pair, list(range(truth.num_parts)), "paired"))
    inputs = sum((part.report for part in paired), inputs)
    if "bbox" not in request.iou_types:
        inputs = replace(inputs, without_box=0)  # which matters to nobody then
    if problems := inputs.problems():
        raise InputError("; ".join(problems))
    plan = GroupPlan(truth, predictions, store, request.iou_types, request.protocol, request.analysis)
    chunks = [truth_chunks(paired, group) for group in range(predictions.num_groups)]
    return plan, chunks, inputs


def _open_predictions(request: Request, masks: bool) -> Predictions:
    if request.predictions_uri.lower().endswith(_RESULTS_SUFFIXES):
        return deal_results(request.predictions_uri, ChunkStore(f"{request.scratch_uri}/results"), masks)
    return open_annotated_output(request.predictions_uri)


def _reduce_works(
    request: Request,
    groups: Sequence[GroupResult],
    num_objects: Mapping[IouType, Int64s],
    analysis: AnalysisSums | None,
) -> list[CategoryWork]:
    """Every category of every stream, also those without records."""
    objects: dict[str, Int64s] = dict(num_objects.items())
    if analysis and analysis.errors:
        objects[ERRORS_STREAM] = analysis.errors.num_objects
    main = request.analysis.iou_type if request.analysis else None
    return [
        CategoryWork(
            category,
            stream,
            tuple(_runs(groups, stream, category)),
            counts[category],
            request.wanted_precision if stream == main else None,
        )
        for stream, counts in objects.items()
        for category in range(len(counts))
    ]


def _runs(groups: Sequence[GroupResult], stream: str, category: int) -> Iterator[SortedRun]:
    for group in groups:
        run = group.runs.get(stream, {}).get(category)
        if run is not None:
            yield run


def _add_up(parts: Sequence[AnalysisSums]) -> AnalysisSums | None:
    if not parts:
        return None
    errors: ErrorTotals | None = None
    top = TopImages(parts[0].top.per_category)
    for part in parts:
        errors = part.errors if errors is None else errors + part.errors if part.errors else errors
        top.merge(part.top)
    shown = top.image_orders()
    examples = {order: example for part in parts for order, example in part.examples.items() if order in shown}
    return AnalysisSums(errors, np.sum([part.confusion for part in parts], axis=0), top, examples)


def _balanced(works: Sequence[CategoryWork]) -> list[list[CategoryWork]]:
    """Batches of about equal numbers of records, the longest work first."""
    batches: list[list[CategoryWork]] = [[] for _ in range(min(_REDUCE_TASKS, len(works)))]
    sizes = [0] * len(batches)
    for work in sorted(works, key=lambda work: -work.num_records):
        lightest = sizes.index(min(sizes))
        batches[lightest].append(work)
        sizes[lightest] += work.num_records + 1
    return batches


def _list(predictions: Predictions, groups: range, **where: Any) -> Any:
    return list_images(predictions, groups, **where)


def _evaluate(plan: GroupPlan, numbered: tuple[int, Any]) -> GroupResult:
    group, chunks = numbered
    return evaluate_group(plan, group, chunks)


def _reduce(batch: Sequence[CategoryWork], **how: Any) -> list[Reduced]:
    return [reduce_category(work, **how) for work in batch]

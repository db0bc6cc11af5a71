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

import pyarrow as pa

from pipeline.coco.errors import InputError
from pipeline.evaluate.analysis import AnalysisPlan, sorted_metrics
from pipeline.evaluate.examples import PickedExamples
from pipeline.evaluate.inputs.annotations import open_annotated_output
from pipeline.evaluate.inputs.books import InputReport, WhichImages
from pipeline.evaluate.inputs.coco_results import deal_results, have_string_ids
from pipeline.evaluate.inputs.ground_truth import deal_truth
from pipeline.evaluate.inputs.pairing import check_sides, pair_part, truth_chunks
from pipeline.evaluate.inputs.predictions import Predictions, group_ranges, list_images
from pipeline.evaluate.map_groups import AnalysisSums, GroupPlan, GroupSums, evaluate_group
from pipeline.evaluate.reduce_categories import CURVES, CategoryWork, Reduced, ReducePlan, reduce_category
from pipeline.evaluate.shuffle.chunks import ChunkStore
from pipeline.metrics.ap.accumulate import CategoryResult
from pipeline.metrics.blocks import Categories
from pipeline.metrics.metric import Figures
from pipeline.metrics.protocol import CocoProtocol, IouType
from pipeline.metrics.streams import ERRORS_STREAM, RecordStream
from pipeline.storage.uris import Uri
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
            items: what there is to do, at least one.
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
        iou_types: what is compared: masks, boxes or both.
        protocol: how many detections count.
        analysis: ``None``: COCO's figures only.
        scratch_uri: a folder that all nodes reach; whoever gives it removes it.
    """

    predictions_uri: Uri
    truth_uri: Uri
    images: WhichImages
    iou_types: tuple[IouType, ...]
    protocol: CocoProtocol
    analysis: AnalysisPlan | None
    scratch_uri: Uri


@dataclass(frozen=True)
class Analysis:
    """What the analysis came to.

    Attributes:
        figures: by their sections of metrics.json, in the order of these.
        examples: worst and best images; they lie in ``Measured.scratch_uri``.
    """

    figures: Mapping[str, Figures]
    examples: PickedExamples


@dataclass(frozen=True)
class Measured:
    """What all tasks came to.

    Attributes:
        categories: K of the ground truth.
        predictions: as they were opened.
        inputs: the books of both sides.
        num_images: images that count.
        num_detections: [K] detections that were compared.
        num_crowd: [K] objects that are crowd regions.
        num_objects: [K] objects that count, of any size.
        curves: by what was compared, of K categories.
        analysis: ``None`` where only COCO's figures were wanted.
        num_records: records that went from the map to the reduce.
        record_bytes: size of these records as files, packed.
        scratch_uri: where the examples of the analysis lie.
    """

    categories: Categories
    predictions: Predictions
    inputs: InputReport
    num_images: int
    num_detections: Int64s
    num_crowd: Int64s
    num_objects: Int64s
    curves: dict[IouType, list[CategoryResult]]
    analysis: Analysis | None
    num_records: int
    record_bytes: int
    scratch_uri: Uri


def measure(
    request: Request,
    run_tasks: TaskRunner,
    report: Callable[[str], None],
    before_results: Callable[[], None] = lambda: None,
) -> Measured:
    """Evaluate.

    Args:
        run_tasks: where the tasks run.
        report: takes a line for people now and then.
        before_results: called once the inputs are known to go together, right before the first result is written.

    Raises:
        InputError: the inputs cannot be evaluated; every reason is in the message.
    """
    plan, chunks, inputs = _pair(request, run_tasks, report)
    before_results()
    sums = GroupSums(plan)
    for group in run_tasks(functools.partial(_evaluate, plan), list(enumerate(chunks)), "evaluated"):
        sums.merge(group)
    works = _reduce_works(sums)
    results = _reduce_all(ReducePlan(request.protocol, request.analysis, plan.store.uri), works, run_tasks)
    records = [chunk for work in works for run in work.runs for chunk in run.chunks]
    return Measured(
        categories=plan.truth.categories,
        predictions=plan.predictions,
        inputs=inputs,
        num_images=sums.num_images,
        num_detections=sums.num_detections,
        num_crowd=sums.num_crowd,
        num_objects=sums.streams[request.iou_types[0]].num_objects[:, 0],
        curves={iou_type: results[iou_type, CURVES] for iou_type in request.iou_types},
        analysis=_analysis(request.analysis, sums.analysis, results),
        num_records=sum(chunk.num_records for chunk in records),
        record_bytes=sum(chunk.stop - chunk.start for chunk in records),
        scratch_uri=plan.store.uri,
    )


def _pair(
    request: Request, run_tasks: TaskRunner, report: Callable[[str], None]
) -> tuple[GroupPlan, list[Any], InputReport]:
    """Deal, list and join: the plan, the ground truth of each group, and the books."""
    masks = "segm" in request.iou_types
    store = ChunkStore(request.scratch_uri / "truth")
    found = request.predictions_uri
    output = None if str(found).lower().endswith(_RESULTS_SUFFIXES) else open_annotated_output(found)
    # Images go by strings where both sides have them: numbers are those of one export.
    string_ids = have_string_ids(found) if output is None else _are_strings(output.id_type)
    truth = deal_truth(request.truth_uri, store, masks, string_ids)
    report(f"ground truth: {truth.num_images:,} images, {truth.num_objects:,} objects")
    predictions: Predictions = output or deal_results(
        found, ChunkStore(request.scratch_uri / "results"), masks, _are_strings(truth.id_type)
    )
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


def _are_strings(id_type: pa.DataType) -> bool:
    return bool(pa.types.is_large_string(id_type))


def _reduce_works(sums: GroupSums) -> list[CategoryWork]:
    """Every category of every stream, also those without records."""
    streams: dict[str, RecordStream] = dict(sums.streams.items())
    if sums.analysis:
        streams[ERRORS_STREAM] = sums.analysis.errors
    return [
        CategoryWork(category, name, tuple(runs), stream.num_objects[category])
        for name, stream in streams.items()
        for category, runs in enumerate(stream.runs)
    ]


def _reduce_all(
    plan: ReducePlan, works: Sequence[CategoryWork], run_tasks: TaskRunner
) -> dict[tuple[str, str], list[Any]]:
    """By stream and metric, the results of all categories in their order."""
    reduced = [
        each for some in run_tasks(functools.partial(_reduce, plan), _balanced(works), "reduced") for each in some
    ]
    results: dict[tuple[str, str], list[Any]] = {}
    for each in sorted(reduced, key=lambda each: each.category):
        for name, result in each.results.items():
            results.setdefault((each.stream, name), []).append(result)
    return results


def _analysis(
    plan: AnalysisPlan | None, sums: AnalysisSums | None, results: Mapping[tuple[str, str], list[Any]]
) -> Analysis | None:
    if plan is None or sums is None:
        return None
    figures = {name: metric.result() for name, metric in sums.metrics.items()}
    for name, each in sorted_metrics(plan).items():
        figures[name] = each.join(results[each.stream, name])
    return Analysis(figures, sums.examples.result())


def _balanced(works: Sequence[CategoryWork]) -> list[list[CategoryWork]]:
    """The works of each task: about equal numbers of records, the longest work first."""
    tasks: list[list[CategoryWork]] = [[] for _ in range(min(_REDUCE_TASKS, len(works)))]
    sizes = [0] * len(tasks)
    for work in sorted(works, key=lambda work: -work.num_records):
        lightest = sizes.index(min(sizes))
        tasks[lightest].append(work)
        sizes[lightest] += work.num_records + 1
    return tasks


def _list(predictions: Predictions, groups: range, **where: Any) -> Any:
    return list_images(predictions, groups, **where)


def _evaluate(plan: GroupPlan, numbered: tuple[int, Any]) -> GroupSums:
    group, chunks = numbered
    return evaluate_group(plan, group, chunks)


def _reduce(plan: ReducePlan, works: Sequence[CategoryWork]) -> list[Reduced]:
    return [reduce_category(plan, work) for work in works]

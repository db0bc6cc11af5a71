"""COCO evaluation against pycocotools and faster-coco-eval, on one thread: ``python -m benchmarks.bench_evaluation``.

CPU time from the parsed JSON to the twelve figures, one after the other in one process; the figures must be equal.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import pickle
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks.evaluation_set import EvaluationSet, evaluation_set
from benchmarks.machine import describe
from pipeline.evaluation.local import evaluate_blocks
from pipeline.evaluation.metrics import coco_stats
from pipeline.evaluation.protocol import IOU_TYPES, IouType, Protocol
from tests.evaluation.coco_cases import blocks_of

Stats = NDArray[np.float64]
Timed = tuple[Stats, dict[str, float]]  # the twelve figures, and CPU seconds by step
Engine = Callable[[EvaluationSet, IouType], Timed]


def ours(case: EvaluationSet, iou_type: IouType) -> Timed:
    """Blocks from the dicts, then the evaluation proper."""
    protocol = Protocol()
    start = time.process_time()
    blocks = blocks_of(*case, iou_type)
    built = time.process_time()
    arrays = evaluate_blocks(blocks, iou_type, len(case.dataset["categories"]), protocol)
    stats = coco_stats(arrays, protocol.max_dets)
    return stats, {"load": built - start, "evaluate": time.process_time() - built}


def pycocotools_engine(case: EvaluationSet, iou_type: IouType) -> Timed:
    """``COCO``, ``loadRes``, ``evaluate``, ``accumulate``, ``summarize``."""
    start = time.process_time()
    truth = COCO()
    truth.dataset = case.dataset
    truth.createIndex()
    return _coco_eval(COCOeval, truth, case.results, iou_type, start)


def faster_coco_eval_engine(case: EvaluationSet, iou_type: IouType) -> Timed:
    """The same calls of faster-coco-eval."""
    faster_coco_eval = importlib.import_module("faster_coco_eval")
    start = time.process_time()
    truth = faster_coco_eval.COCO(case.dataset)
    return _coco_eval(faster_coco_eval.COCOeval_faster, truth, case.results, iou_type, start)


def _coco_eval(evaluator: Any, truth: Any, results: list[dict[str, Any]], iou_type: IouType, start: float) -> Timed:
    evaluation = evaluator(truth, truth.loadRes(results), iou_type)
    loaded = time.process_time()
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    stats = np.asarray(evaluation.stats, np.float64)[:12]
    return stats, {"load": loaded - start, "evaluate": time.process_time() - loaded}


def without(case: EvaluationSet, key: str) -> EvaluationSet:
    """Results with masks only or with boxes only: pycocotools takes areas from boxes where it finds some."""
    return case._replace(results=[{name: row[name] for name in row if name != key} for row in case.results])


def engines() -> dict[str, Engine]:
    """Those that are installed; the first is the reference."""
    found: dict[str, Engine] = {"pycocotools": pycocotools_engine}
    if importlib.util.find_spec("faster_coco_eval"):
        found["faster-coco-eval"] = faster_coco_eval_engine
    return {**found, "ours": ours}


def compare(case: EvaluationSet, iou_type: IouType) -> bool:
    """Print one table; whether ours are the reference's figures to the last bit."""
    # pycocotools and faster-coco-eval write into what they are given, so each gets a copy.
    frozen = pickle.dumps(without(case, "bbox" if iou_type == "segm" else "segmentation"))
    num_images = len(case.dataset["images"])
    reference, base = np.empty(0), {"load": 0.0, "evaluate": 0.0}
    print(f"\n{iou_type:<18}{'load s':>9}{'evaluate s':>12}{'total s':>9}{'ms/image':>10}{'ratio':>8}{'evaluate':>10}")
    same = False
    for name, engine in engines().items():
        copy = pickle.loads(frozen)  # noqa: S301  made three lines above
        with contextlib.redirect_stdout(io.StringIO()):
            stats, seconds = engine(copy, iou_type)
        total = sum(seconds.values())
        if not reference.size:
            reference, base = stats, seconds
        same = np.array_equal(stats, reference)
        verdict = "equal" if same else f"differ by up to {np.abs(stats - reference).max():.1e}"
        print(
            f"{name:<18}{seconds['load']:>9.2f}{seconds['evaluate']:>12.2f}{total:>9.2f}"
            f"{total / num_images * 1e3:>10.2f}{sum(base.values()) / total:>7.1f}x"
            f"{base['evaluate'] / seconds['evaluate']:>9.1f}x  {verdict}"
        )
    return same


def main() -> None:
    """Time every engine on boxes and on masks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    case = evaluation_set(args.images, args.seed)
    crowds = sum(item["iscrowd"] for item in case.dataset["annotations"])
    print(describe())
    print(
        f"{args.images} images, {len(case.dataset['annotations'])} objects ({crowds} crowds), "
        f"{len(case.dataset['categories'])} categories, {len(case.results)} detections, seed {args.seed}; CPU time"
    )
    same = [compare(case, iou_type) for iou_type in IOU_TYPES]
    if not all(same):
        raise SystemExit("the figures are not those of pycocotools")


if __name__ == "__main__":
    main()

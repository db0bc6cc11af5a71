"""The evaluation job from files to figures: ``python -m benchmarks.bench_evaluation``.

A set like val2017 is written as COCO JSON and as the Parquet output of the annotate job. Measured in one run:

- CPU time of the job's stages, all in one process, scratch files and all, against pycocotools, faster-coco-eval and
  hotcoco on the same JSON files, load included;
- the time on Ray with one CPU and with more;
- bytes between map and reduce;
- the peak memory of each process on Ray, for the set and for larger ones.

From these an evaluation of ten million images is estimated.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import ray
from pycocotools import mask as coco_mask

from benchmarks.support.evaluation_set import EvaluationSet, evaluation_set
from benchmarks.support.machine import describe
from pipeline.annotations.data_file import Identity
from pipeline.annotations.ledger import OutputStore
from pipeline.annotations.schema import ANNOTATED, ImageDetections, detections_array
from pipeline.cluster.tasks import RayTasks
from pipeline.evaluate.analysis import AnalysisPlan
from pipeline.evaluate.config import AnalysisConfig
from pipeline.evaluate.measure import Measured, Request, in_this_process, measure
from pipeline.evaluate.metrics_file import arrays_of
from pipeline.metrics.ap.figures import coco_stats
from pipeline.metrics.protocol import CocoProtocol, IouType
from pipeline.storage.uris import Uri
from testing.output_rows import output_rows as made_rows

PACKAGES = {
    "pycocotools": (("pycocotools.coco", "COCO"), ("pycocotools.cocoeval", "COCOeval")),
    "faster-coco-eval": (("faster_coco_eval", "COCO"), ("faster_coco_eval", "COCOeval_faster")),
    "hotcoco": (("hotcoco", "COCO"), ("hotcoco", "COCOeval")),
}
OURS = ("ours", "ours, with the analysis")
WARM = "warm"
IMAGES_PER_FILE = 2048
TEN_MILLION = 10_000_000
MIB = 1 << 20

Json = dict[str, Any]


def write_files(folder: Path, case: EvaluationSet, copies: int) -> None:
    """``truth.json`` and ``run/``, of as many copies of the set under new ids; results of the set itself for others.

    These would take the areas for the masks from the boxes of results that have both.
    """
    for iou_type, left_out in (("bbox", "segmentation"), ("segm", "bbox")):
        rows = [{key: value for key, value in row.items() if key not in (left_out, "area")} for row in case.results]
        (folder / f"results-{iou_type}.json").write_text(json.dumps(rows))
    by_image: dict[int, list[dict[str, Any]]] = {}
    for row in case.results:
        by_image.setdefault(row["image_id"], []).append(row)
    images, annotations = case.dataset["images"], case.dataset["annotations"]
    step, object_step = len(images), len(annotations)
    with open(folder / "truth.json", "w") as file:
        file.write('{"categories": ' + json.dumps(case.dataset["categories"]))
        for key, rows, fields in (
            ("images", images, {"id": step}),
            ("annotations", annotations, {"id": object_step, "image_id": step}),
        ):
            file.write(f', "{key}": [')
            for copy in range(copies):
                for number, row in enumerate(rows):
                    comma = "," if copy or number else ""
                    file.write(comma + json.dumps({**row, **{f: row[f] + copy * s for f, s in fields.items()}}))
            file.write("]")
        file.write("}")
    store = OutputStore(Uri(str(folder / "run")))
    identity = Identity("made up", "0" * 64, "0" * 64, "{}", "0", "bench")
    for copy in range(copies):
        for start in range(0, len(images), IMAGES_PER_FILE):
            some = images[start : start + IMAGES_PER_FILE]
            store.write_rows(_output_rows(some, by_image, copy * step, case.dataset["categories"]), identity)


def _output_rows(
    images: list[dict[str, Any]], by_image: dict[int, list[dict[str, Any]]], shift: int, categories: list[Any]
) -> pa.Table:
    found = []
    for image in images:
        rows = by_image.get(image["id"], [])
        found.append(
            ImageDetections(
                boxes=np.array([row["bbox"] for row in rows], np.float32).reshape(-1, 4),
                scores=np.array([row["score"] for row in rows], np.float32),
                labels=np.array([row["category_id"] - 1 for row in rows], np.int64),
                areas=np.zeros(len(rows), np.float32) + [row["area"] for row in rows],
                image_size=(image["height"], image["width"]),
                counts=[row["segmentation"]["counts"].encode() for row in rows],
            )
        )
    ids = [image["id"] + shift for image in images]
    names = [category["name"] for category in categories]
    columns = [
        pa.array(ids, pa.int64()),
        pa.array([image["file_name"] for image in images]),
        pa.array([image["height"] for image in images], pa.int32()),
        pa.array([image["width"] for image in images], pa.int32()),
        pa.array([1] * len(ids), pa.int8()),
        pa.array([ANNOTATED] * len(ids)),
        detections_array(found, [category["id"] for category in categories], names),
        *(pa.nulls(len(ids), pa.string()) for _ in range(3)),
    ]
    return made_rows(columns)


def request(folder: Path, predictions: str, iou_type: IouType, analysis: bool) -> Request:
    """What the job asks for, with scratch and match table in a folder of their own."""
    scratch = Uri(tempfile.mkdtemp(dir=folder, prefix="scratch-"))
    plan = AnalysisPlan(AnalysisConfig(), iou_type, 3, scratch / "matches") if analysis else None
    return Request(
        predictions_uri=Uri(str(folder / predictions)),
        truth_uri=Uri(str(folder / "truth.json")),
        images="all",
        iou_types=(iou_type,),
        protocol=CocoProtocol(),
        analysis=plan,
        scratch_uri=scratch,
    )


def ours(folder: Path, iou_type: IouType, analysis: bool = False) -> Measured:
    """All stages in this process."""
    return measure(request(folder, "run", iou_type, analysis), in_this_process, lambda line: None)


def reference(folder: Path, iou_type: IouType, package: str) -> np.ndarray:
    """The twelve figures of another package."""
    dataset, evaluator = (getattr(importlib.import_module(module), name) for module, name in PACKAGES[package])
    with contextlib.redirect_stdout(io.StringIO()):
        truth = dataset(str(folder / "truth.json"))
        evaluation = evaluator(truth, truth.loadRes(str(folder / f"results-{iou_type}.json")), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.asarray(evaluation.stats, np.float64)[:12]


def alone(folder: Path, iou_type: IouType, way: str) -> Json:
    """CPU seconds of one way after a warm-up on a few images, the twelve figures, and our records."""
    run = partial(_run, iou_type=iou_type, way=way)
    run(folder.parent / WARM)  # what it imports is imported, and its first memory is there
    gc.collect()
    gc.freeze()
    start = time.process_time()
    found = run(folder)
    seconds = time.process_time() - start
    if not isinstance(found, Measured):
        return {"seconds": seconds, "stats": found.tolist()}
    stats = coco_stats(arrays_of(found, iou_type), CocoProtocol().max_dets)
    records = {"num_records": found.num_records, "record_bytes": found.record_bytes}
    return {"seconds": seconds, "stats": stats.tolist(), **records}


def _run(folder: Path, iou_type: IouType, way: str) -> np.ndarray | Measured:
    return reference(folder, iou_type, way) if way in PACKAGES else ours(folder, iou_type, way == OURS[1])


def compare(folder: Path, iou_type: IouType, num_images: int, rounds: int) -> Json:
    """A table of CPU times; what `alone` says of ours with the analysis.

    Each has a process of its own, so that none pays for what others leave in memory. All take turns, round after round,
    and the shortest time of each counts: what else the machine does only adds.

    Raises:
        RuntimeError: the figures are not pycocotools'.
    """
    best: dict[str, Json] = {}
    for _ in range(rounds):
        for way in (*PACKAGES, *OURS):
            command = [sys.executable, "-m", "benchmarks.bench_evaluation", "--alone", str(folder), iou_type, way]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
            best[way] = min(best.get(way, found), found, key=lambda each: each["seconds"])
    print(f"\n| {iou_type}, a process each | CPU s | ms/image | ratio | stats |\n|--|--:|--:|--:|--|")
    wanted = best["pycocotools"]
    for way, found in best.items():
        name = f"{way} {version(way)}" if way in PACKAGES else way
        _row(name, found["seconds"], num_images, wanted["seconds"], found["stats"] == wanted["stats"])
        if way in OURS and found["stats"] != wanted["stats"]:
            raise RuntimeError(f"{found['stats']}, not {wanted['stats']}")
    return best[OURS[1]]


def _row(name: str, seconds: float, num_images: int, base: float, same: bool) -> None:
    per_image = seconds / num_images * 1e3
    print(
        f"| {name} | {seconds:.2f} | {per_image:.2f} | {base / seconds:.1f}x | {'equal' if same else 'differ'} |",
        flush=True,
    )


def write_warm_up(folder: Path) -> None:
    """The files of a few images."""
    folder.mkdir()
    case = evaluation_set(8, 1)
    _add_areas(case)
    write_files(folder, case, 1)


@contextmanager
def sampled_memory() -> Iterator[dict[int, int]]:
    """Peak resident bytes by process: this one and all that it has started."""
    peaks: dict[int, int] = {}
    stop = threading.Event()

    def loop() -> None:
        me = psutil.Process()
        while not stop.wait(0.2):
            for process in (me, *me.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    if process == me or process.cmdline()[:1] == [] or "ray::" in " ".join(process.cmdline()):
                        memory = process.memory_info()
                        peaks[process.pid] = max(peaks.get(process.pid, 0), memory.rss - memory.shared)

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        stop.set()
        thread.join()


def on_ray(folder: Path, num_cpus: int, num_images: int) -> None:
    """One evaluation of masks with the analysis in a Ray of its own: a row of the table."""
    options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    ray.init(num_cpus=num_cpus, object_store_memory=512 * MIB, **options)
    try:
        list(RayTasks(lambda line: None)(str, list(range(num_cpus)), "warmed up"))
        with sampled_memory() as peaks:
            started = time.monotonic()
            measure(request(folder, "run", "segm", True), RayTasks(lambda line: None), lambda line: None)
            seconds = time.monotonic() - started
    finally:
        ray.shutdown()
    driver, workers = peaks.pop(os.getpid()) / MIB, max(peaks.values()) / MIB
    print(f"| {num_images} | {num_cpus} | {seconds:.1f} | {driver:.0f} | {workers:.0f} |", flush=True)


def _on_ray_apart(folder: Path, num_cpus: int, num_images: int) -> None:
    """In a process that does not hold the set."""
    command = [sys.executable, "-m", "benchmarks.bench_evaluation", "--on-ray", str(folder)]
    subprocess.run([*command, "--cpus", str(num_cpus), "--images", str(num_images)], check=True)


def main() -> None:
    """Measure all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--on-ray", type=Path, help="measure only this: files that a run of this command has written")
    parser.add_argument("--alone", nargs=3, metavar=("FOLDER", "IOU_TYPE", "WAY"), help="measure only this, likewise")
    parser.add_argument("--cpus", type=int, help="of Ray, with --on-ray")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3, help="of the comparison; the shortest time of each counts")
    parser.add_argument("--grow", type=int, nargs="*", default=[5, 50], help="copies of the set in larger ones")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.on_ray:
        on_ray(args.on_ray, args.cpus, args.images)
        return
    if args.alone:
        print(json.dumps(alone(Path(args.alone[0]), *args.alone[1:])))
        return
    case = evaluation_set(args.images, args.seed)
    _add_areas(case)
    print(f"{describe()}\n{args.images} images, {len(case.dataset['annotations'])} objects, ", end="")
    print(f"{len(case.results)} detections, seed {args.seed}")
    with tempfile.TemporaryDirectory(prefix="bench-evaluation-") as name:
        small = Path(name, "small")
        small.mkdir()
        write_files(small, case, 1)
        write_warm_up(Path(name, WARM))
        compare(small, "bbox", args.images, args.rounds)
        found = compare(small, "segm", args.images, args.rounds)
        state = found["record_bytes"] / args.images
        print(
            f"\nbetween map and reduce, with the analysis: {found['num_records']} records, {state:.0f} bytes an image"
        )
        print("\n| images | CPUs | s on Ray | driver MiB | largest worker MiB |\n|--:|--:|--:|--:|--:|")
        num_cpus = len(os.sched_getaffinity(0))
        for cpus in sorted({1, num_cpus}):
            _on_ray_apart(small, cpus, args.images)
        for copies in args.grow:
            large = Path(name, f"large-{copies}")
            large.mkdir()
            write_files(large, case, copies)
            _on_ray_apart(large, num_cpus, copies * args.images)
            shutil.rmtree(large)
    hours = found["seconds"] / args.images * TEN_MILLION / 3600
    print(
        f"\nten million such images: {hours:.1f} CPU hours with the analysis, {state * TEN_MILLION / 1e9:.0f} GB of "
        "records on scratch storage"
    )


def _add_areas(case: EvaluationSet) -> None:
    """The results as the annotate job would hold them: with areas, and float32 boxes."""
    for row in case.results:
        segmentation = {**row["segmentation"], "counts": row["segmentation"]["counts"].encode()}
        row["area"] = float(coco_mask.area(segmentation))
        row["bbox"] = np.float32(row["bbox"]).tolist()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    main()

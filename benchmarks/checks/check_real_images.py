"""Real pictures through S3 against `predict`: ``python -m benchmarks.checks.check_real_images FOLDER``.

The pictures below FOLDER go to an S3 server process on this machine; the annotate job reads them there and writes
its output there, with each number of replicas asked for. Every row is compared with what the same checkpoint finds
on the same file by `Predictor.predict`, one picture at a time. Exit code 1 if a row differs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import torch

from benchmarks.support.lively_weights import lively_checkpoint
from benchmarks.support.machine import describe
from benchmarks.support.random_model import MODEL_SEED, random_model
from pipeline.annotate.config import AnnotateConfig
from pipeline.annotate.run import annotate
from pipeline.images.decode import decode_image
from pipeline.model.cascade_mask_rcnn.variants import SWIN_T
from pipeline.model.detections import Detections
from pipeline.model.files.checkpoints import Checkpoint, save_checkpoint
from pipeline.model.predictor import load_model
from pipeline.predict.run import find_images
from testing.s3_server import S3Server, s3_server

BUCKET = "real"
# A batch of several pictures may use other kernels than one picture does.
BOX_TOLERANCE_PX, SCORE_TOLERANCE = 1e-2, 1e-4


def difference(row: Mapping[str, Any], found: Detections, checkpoint: Checkpoint) -> str:
    """``equal``, ``rounding`` (within the tolerances), or what differs."""
    detections, rles = row["detections"], found.rle()
    if (row["height"], row["width"]) != found.image_size:
        return f"size {row['height']} x {row['width']}, not {found.image_size}"
    if len(detections) != len(found):
        return f"{len(detections)} detections, not {len(found)}"
    boxes = np.array([d["bbox"] for d in detections], np.float32).reshape(-1, 4)
    wanted = np.concatenate([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]], axis=1)
    scores = np.array([d["score"] for d in detections], np.float32)
    if [d["category_id"] for d in detections] != [checkpoint.categories[label].id for label in found.labels]:
        return "categories"
    if not np.allclose(boxes, wanted, rtol=0, atol=BOX_TOLERANCE_PX):
        return f"boxes by {np.abs(boxes - wanted).max():.3f} px"
    if not np.allclose(scores, found.scores, rtol=0, atol=SCORE_TOLERANCE):
        return f"scores by {np.abs(scores - found.scores).max():.2g}"
    same_masks = [d["segmentation"]["counts"].encode() for d in detections] == [rle["counts"] for rle in rles]
    exact = same_masks and np.array_equal(boxes, wanted) and np.array_equal(scores, found.scores)
    return "equal" if exact else "rounding"


def annotated_rows(server: S3Server, checkpoint_path: Path, actors: int, batch_size: int) -> list[dict[str, Any]]:
    """The job's rows."""
    output = f"s3://{BUCKET}/output-{actors}-actors"
    config = AnnotateConfig.model_validate(
        {
            "manifest": {"uri": f"s3://{BUCKET}/images", "format": "folder"},
            "model": {"checkpoint": str(checkpoint_path), "batch_size": batch_size},
            "resources": {"actors": actors, "cpus_per_actor": 0.5},
            "output": {"uri": output},
        }
    )
    report = annotate(config)
    print(f"{actors} actors: {report.images}, {report.this_run.seconds:.0f} s", flush=True)
    filesystem = pafs.S3FileSystem(endpoint_override=server.endpoint, region="us-east-1")
    return ds.dataset(f"{BUCKET}/output-{actors}-actors/data", filesystem=filesystem).to_table().to_pylist()


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns an exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="with pictures, searched to any depth")
    parser.add_argument("--limit", type=int, help="only the first pictures")
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--swin-t", action="store_true", help="Swin-T at full size in the place of a small variant")
    args = parser.parse_args(argv)
    files = find_images([args.folder])[: args.limit]
    checkpoint = lively_checkpoint(SWIN_T) if args.swin_t else random_model(MODEL_SEED)
    if args.swin_t:
        checkpoint = replace(checkpoint, settings=replace(checkpoint.settings, max_detections=20))
    print(f"{describe()}\n{len(files)} pictures, {checkpoint.variant.name}")
    with tempfile.TemporaryDirectory() as folder, s3_server() as server:
        path = Path(folder, "model.safetensors")
        save_checkpoint(checkpoint, path)
        server.create_bucket(BUCKET)
        names = {f"{number:04d}{file.suffix}": file for number, file in enumerate(files)}
        for name, file in names.items():
            server.put(BUCKET, f"images/{name}", file.read_bytes())
        rows = {actors: annotated_rows(server, path, actors, args.batch_size) for actors in args.actors}
    torch.set_num_threads(1)  # as in a replica of one CPU
    started = time.monotonic()
    predictor = load_model(checkpoint, "cpu")
    found = {name: predictor.predict([decode_image(file.read_bytes()).pixels])[0] for name, file in names.items()}
    print(f"predict: {sum(map(len, found.values()))} detections, {time.monotonic() - started:.0f} s")
    good = True
    for actors, some in rows.items():
        verdicts = Counter(difference(row, found[row["image_id"]], checkpoint) for row in some)
        print(f"{actors} actors, {len(some)} rows: {dict(verdicts)}")
        good &= sorted(row["image_id"] for row in some) == sorted(names) and verdicts.keys() <= {"equal", "rounding"}
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

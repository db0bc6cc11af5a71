"""The annotate job's work as one would write it in an afternoon: a Ray Data script, and a loop over a DataLoader.

Same rows, same masks, same files as the job's; no resume, no failed rows, no guard, no lock, nothing counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps
from pycocotools import mask as mask_api

from pipeline.annotations.schema import ANNOTATED, output_schema
from pipeline.masks.rasterise import rasterise

if TYPE_CHECKING:
    from benchmarks.support.stub_replica import StubSettings

SCHEMA = output_schema(pa.int64())


def load(path: str) -> np.ndarray:
    """RGB uint8 ``(H, W, 3)``."""
    with Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


class Model:
    """The stub, as a model that takes a list of pictures.

    Args:
        checkpoint: says what the categories are.
        stub: what the model does.
        batch_size: pictures that it takes at once.
    """

    def __init__(self, checkpoint: Path, stub: StubSettings, batch_size: int) -> None:
        from benchmarks.support.stub_replica import StubPredictor
        from pipeline.model.files.checkpoints import load_checkpoint

        self.categories = load_checkpoint(str(checkpoint)).categories
        self.batch_size = batch_size
        self.predictor = StubPredictor(stub, self.categories)

    def rows(self, ids: Sequence[int], uris: Sequence[str], images: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """A row of the output for each picture."""
        sizes = [image.shape[:2] for image in images]
        found = self.predictor.attempt(images, self.batch_size, sizes, lambda members: nullcontext())
        rows = []
        for image_id, uri, (height, width), result in zip(ids, uris, sizes, found, strict=True):
            detections = []
            rles = rasterise(result.masks, result.boxes, (height, width))
            boxes = np.concatenate([result.boxes[:, :2], result.boxes[:, 2:] - result.boxes[:, :2]], axis=1)
            columns = boxes.tolist(), result.scores.tolist(), result.labels.tolist(), rles
            for box, score, label, rle in zip(*columns, strict=True):
                category = self.categories[label]
                detections.append(
                    {
                        "bbox": box,
                        "score": score,
                        "category_id": category.id,
                        "category_name": category.name,
                        "area": float(mask_api.area(rle)),
                        "segmentation": {"size": (height, width), "counts": rle["counts"].decode()},
                    }
                )
            row = {"image_id": image_id, "image_uri": uri, "height": height, "width": width, "exif_orientation": 1}
            rows.append({**row, "status": ANNOTATED, "detections": detections})
        return rows

    def table(self, batch: dict[str, np.ndarray]) -> pa.Table:
        """The same of what `fetch` gives."""
        rows = self.rows(batch["image_id"].tolist(), batch["image_uri"].tolist(), list(batch["image"]))
        return pa.Table.from_pylist(rows, schema=SCHEMA)


def fetch(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Ray Data's task: URIs to pictures."""
    images = np.empty(len(batch["image_uri"]), object)
    for i, uri in enumerate(batch["image_uri"]):
        images[i] = load(uri)
    return {**batch, "image": images}


class Annotator(Model):
    """Ray Data's actor."""

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        """A block of pictures to a block of the output."""
        return self.table(batch)


def with_ray_data(
    manifest: Path, out: Path, model: tuple[Path, StubSettings, int], block: int, rows_per_file: int
) -> None:
    """Arguments of `Model` in a tuple. One replica, whose next block is fetched while it works on this one."""
    import ray

    pool = ray.data.ActorPoolStrategy(size=1, max_concurrent_calls_per_actor=2, max_tasks_in_flight_per_actor=4)
    (
        ray.data.read_parquet(str(manifest), columns=["image_id", "image_uri"])
        .repartition(target_num_rows_per_block=block)
        .map_batches(fetch, batch_size=block)
        .map_batches(
            Annotator,
            fn_constructor_args=model,
            batch_size=block,
            num_gpus=1,
            num_cpus=0,
            compute=pool,
        )
        .write_parquet(str(out), min_rows_per_file=rows_per_file, compression="zstd")
    )


def with_data_loader(
    manifest: Path, out: Path, model: tuple[Path, StubSettings, int], workers: int, rows_per_file: int
) -> None:
    """The loop of mmdet's ``tools/test.py``: workers decode, this process does the rest."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    table = pq.read_table(manifest, columns=["image_id", "image_uri"])
    ids, uris = table["image_id"].to_pylist(), table["image_uri"].to_pylist()

    class Pictures(Dataset[Any]):
        def __len__(self) -> int:
            return len(uris)

        def __getitem__(self, index: int) -> tuple[int, str, torch.Tensor]:
            return ids[index], uris[index], torch.from_numpy(load(uris[index]).copy())

    annotator = Model(*model)
    loader = iter(DataLoader(Pictures(), annotator.batch_size, num_workers=workers, collate_fn=list))
    out.mkdir(parents=True)
    for number in range(-(-len(ids) // rows_per_file)):
        rows: list[dict[str, Any]] = []
        for batch in islice(loader, rows_per_file // annotator.batch_size):
            some_ids, some_uris, tensors = zip(*batch, strict=True)
            rows += annotator.rows(some_ids, some_uris, [tensor.numpy() for tensor in tensors])
        file = out / f"part-{number:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), file, compression="zstd")

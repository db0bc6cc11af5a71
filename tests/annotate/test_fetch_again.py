"""A fetch task whose process is killed in the middle, in Ray: the second attempt meets other failures."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray

from pipeline.annotate.graph import _fetch
from pipeline.annotate.monitor import MonitorClient, start_monitor
from pipeline.annotate.stages.fetch_decode import FetchDecode
from pipeline.annotate.stages.ordering import BatchOrder
from pipeline.annotations.failure import ImageFailure
from pipeline.annotations.pictures import PictureSource
from pipeline.images.decode import DecodedImage
from pipeline.storage.fetch.rules import Fetched
from pipeline.storage.uris import UriText
from pipeline.storage.versions import ObjectVersion
from pipeline.tables.packed import packed, unpacked

SIZES = ((64, 96), (96, 64), (60, 60))
NUM_IMAGES = 60


@dataclass(frozen=True)
class DyingPictures(PictureSource):
    """Nothing but sizes; the first process that has decoded half of them ends, and in the next one some do not come.

    Attributes:
        died: a file that is there once a process has ended.
        takes_along: another process that is killed then; 0 for none.
    """

    died: str = ""
    takes_along: int = 0

    def fetch_turns(self, uris: Sequence[UriText | None]) -> Iterator[dict[int, Fetched | ImageFailure]]:
        images = [int(uri.secret_text) for uri in uris if uri is not None]
        gone = ImageFailure("fetch", "timeout", "")
        is_second = os.path.exists(self.died)
        yield {
            i: gone if is_second and image % 7 == 0 else Fetched(b"%d" % image, ObjectVersion())
            for i, image in enumerate(images)
        }

    def size(self, data: bytes | ImageFailure) -> tuple[int, int] | None:
        return None if isinstance(data, ImageFailure) else SIZES[int(data) % len(SIZES)]

    def decode(self, data: bytes | ImageFailure) -> DecodedImage | ImageFailure:
        if isinstance(data, ImageFailure):
            return data
        if int(data) == NUM_IMAGES // 2 and not os.path.exists(self.died):
            Path(self.died).touch()
            if self.takes_along:
                os.kill(self.takes_along, signal.SIGKILL)
            os._exit(1)
        size = SIZES[int(data) % len(SIZES)]
        return DecodedImage(np.zeros((*size, 3), np.uint8), 1, size)


@pytest.mark.ray
@pytest.mark.parametrize("with_monitor", [False, True])
def test_nothing_is_lost_and_nothing_twice(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_monitor: bool
) -> None:
    # As the job has it: each block is handed on at once, so that some are there already when the process ends.
    monkeypatch.setattr(ray.data.DataContext.get_current(), "target_max_block_size", 1)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    died = tmp_path / "died"
    numbers = [str(i) for i in range(NUM_IMAGES)]
    missing = pa.nulls(NUM_IMAGES, pa.binary())
    rows = pa.table({"image_id": numbers, "image_uri": numbers, "image_bytes": missing})
    monitor = start_monitor()
    client = MonitorClient(monitor)
    its_process = ray.get(monitor.__ray_call__.remote(lambda _: os.getpid())) if with_monitor else 0
    stage = FetchDecode(
        DyingPictures(died=str(died), takes_along=its_process), BatchOrder(64, 96, 3, 6), client, client.report
    )
    dataset = ray.data.from_arrow([packed(rows)]).map_batches(
        functools.partial(_fetch, stage=stage), batch_size=None, batch_format="pyarrow", zero_copy_batch=True
    )
    blocks = [unpacked(ray.get(block)) for block in dataset.to_arrow_refs()]
    assert died.exists()
    ids = [image_id for block in blocks for image_id in block["image_id"].to_pylist()]
    assert sorted(ids, key=int) == numbers
    failed = {i for block in blocks for i in block.filter(block["error_code"].is_valid())["image_id"].to_pylist()}
    assert failed < {number for number in numbers if int(number) % 7 == 0}  # of the blocks that were not there yet
    assert failed

"""Records of several groups, and where they lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.metrics.ap.records import BlockRecords
from pipeline.metrics.ap.sorted_runs import merge_runs
from pipeline.metrics.streams import RecordStream, stream_dtype
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri


def block(image: int, *scores: float) -> BlockRecords:
    """Of category 1 of 2."""
    records = np.zeros(len(scores), stream_dtype("bbox"))
    records["score"], records["image"], records["rank"] = scores, image, np.arange(len(scores))
    return BlockRecords(np.ones(len(scores), np.int64), records, np.array([[0] * 4, [len(scores)] * 4]))


def test_groups_are_merged_by_category(tmp_path: Path) -> None:
    objects, total = open_objects(Uri(str(tmp_path))), RecordStream("bbox", 2)
    for group, blocks in enumerate([[block(0, 0.9, 0.3), block(1, 0.5)], [], [block(2, 0.7)]]):
        stream = RecordStream("bbox", 2)
        for each in blocks:
            stream.update(each)
        stream.write(objects, f"bbox-{group}.runs")
        total.merge(stream)
    assert total.num_objects.tolist() == [[0] * 4, [4] * 4]
    assert [len(runs) for runs in total.runs] == [0, 2]
    merged = np.concatenate(list(merge_runs(objects, total.runs[1], stream_dtype("bbox"))))
    assert merged["score"].tolist() == [0.9, 0.7, 0.5, 0.3]
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("._")) == [
        "bbox-0.runs",
        "bbox-2.runs",
    ]

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipeline.annotations.ledger import OutputStore
from pipeline.annotations.schema import (
    DETECTIONS,
    RESERVED_NAMES,
    ImageDetections,
    check_output_schema,
    detections_array,
    output_schema,
)
from pipeline.storage.uris import Uri
from tests.annotations.output_cases import CATEGORY_IDS, CATEGORY_NAMES, IDENTITY, image_detections, output_table


class TestOutputSchema:
    def test_order_and_carried_columns(self) -> None:
        carried = pa.schema([pa.field("split", pa.string(), metadata={"k": "v"}), ("tags", pa.list_(pa.int16()))])
        schema = output_schema(pa.string(), carried)
        assert schema.names == [*RESERVED_NAMES, "split", "tags"]
        assert schema.field("image_id").type == pa.string()
        assert schema.field("split").metadata is None
        check_output_schema(schema)

    @pytest.mark.parametrize("name", ["image_id", "status", "detections"])
    def test_reserved_names_cannot_be_carried(self, name: str) -> None:
        with pytest.raises(ValueError, match=name):
            output_schema(pa.int64(), pa.schema([(name, pa.string())]))

    def test_twice_the_same_name(self) -> None:
        with pytest.raises(ValueError, match="split"):
            output_schema(pa.int64(), pa.schema([("split", pa.string()), ("split", pa.int8())]))

    def test_other_id_types(self) -> None:
        with pytest.raises(ValueError, match="double"):
            output_schema(pa.float64())

    def test_check_names_what_differs(self) -> None:
        schema = output_schema(pa.int64())
        wrong = schema.set(schema.names.index("height"), pa.field("height", pa.int64()))
        with pytest.raises(ValueError, match="height is int64, not int32"):
            check_output_schema(wrong)
        with pytest.raises(ValueError, match="must begin with"):
            check_output_schema(schema.remove(0))


class TestDetectionsArray:
    def test_values(self) -> None:
        image = ImageDetections(
            boxes=np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32),
            scores=np.array([0.75, 0.5]),
            labels=np.array([2, 0]),
            areas=np.array([12, 56]),
            image_size=(480, 640),
            counts=[b"abc", b"d`1"],
        )
        array = detections_array([None, image], CATEGORY_IDS, CATEGORY_NAMES)
        array.validate(full=True)
        assert array.type == DETECTIONS
        assert str(array.type) == str(DETECTIONS)
        assert array.to_pylist() == [
            None,
            [
                {
                    "bbox": [1.0, 2.0, 3.0, 4.0],
                    "score": 0.75,
                    "category_id": 90,
                    "category_name": "toothbrush",
                    "area": 12.0,
                    "segmentation": {"size": [480, 640], "counts": "abc"},
                },
                {
                    "bbox": [5.0, 6.0, 7.0, 8.0],
                    "score": 0.5,
                    "category_id": 1,
                    "category_name": "person",
                    "area": 56.0,
                    "segmentation": {"size": [480, 640], "counts": "d`1"},
                },
            ],
        ]

    @pytest.mark.parametrize(
        ("images", "lists"),
        [([], []), ([None, None], [None, None]), ([image_detections(0), None], [[], None])],
        ids=["no rows", "failed", "nothing found"],
    )
    def test_nothing_found_is_an_empty_list_and_a_failure_none(
        self, images: list[ImageDetections | None], lists: list[list[Any] | None]
    ) -> None:
        array = detections_array(images, CATEGORY_IDS, CATEGORY_NAMES)
        array.validate(full=True)
        assert array.type == DETECTIONS
        assert array.to_pylist() == lists

    def test_lengths_must_agree(self) -> None:
        image = image_detections(3)
        short = ImageDetections(image.boxes, image.scores, image.labels, image.areas[:2], (480, 640), image.counts)
        with pytest.raises(ValueError, match="row 1"):
            detections_array([image, short], CATEGORY_IDS, CATEGORY_NAMES)

    def test_64_images_of_100_detections_take_milliseconds(self) -> None:
        images = [image_detections(100, seed) for seed in range(64)]
        detections_array(images, CATEGORY_IDS, CATEGORY_NAMES)  # imports what is imported at first use
        times_s = []
        for _ in range(5):
            started = time.perf_counter()
            detections_array(images, CATEGORY_IDS, CATEGORY_NAMES)
            times_s.append(time.perf_counter() - started)
        assert min(times_s) < 0.02  # 1 ms on an idle core


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files: mixed, only failures, string-carrying rows without detections."""
    root = tmp_path_factory.mktemp("output")
    store = OutputStore(Uri(str(root)))
    for ids, failed in (([1, 2, 3, 4], {3}), ([5], {5}), ([6], set())):
        store.write_rows(output_table(ids, failed, pa.table({"split": ["train"] * len(ids)})), IDENTITY)
    return root / "data"


WRITTEN = output_table([1, 2, 3, 4], {3})["detections"].to_pylist()


class TestReaders:
    def test_pyarrow(self, folder: Path) -> None:
        schema = output_schema(pa.int64(), pa.schema([("split", pa.string())]))
        for file in folder.iterdir():
            assert pq.ParquetFile(file).schema_arrow.remove_metadata().equals(schema)
        table = pq.read_table(folder).sort_by("image_id")
        assert table["image_id"].to_pylist() == [1, 2, 3, 4, 5, 6]
        assert table["detections"].to_pylist() == [*WRITTEN, None, []]
        failed = ds.dataset(folder).to_table(filter=ds.field("status") == "failed")
        assert sorted(failed["image_id"].to_pylist()) == [3, 5]

    def test_pandas(self, folder: Path) -> None:
        frame = pd.read_parquet(folder).set_index("image_id").sort_index()
        assert frame["detections"].str.len().fillna(-1).tolist() == [0, 1, -1, 3, -1, 0]
        assert frame["detections"].str.len().mean() == 1, "of the images that were annotated"
        assert frame.loc[4, "detections"][1]["segmentation"]["counts"] == WRITTEN[3][1]["segmentation"]["counts"]
        assert list(frame.loc[4, "detections"][2]["bbox"]) == WRITTEN[3][2]["bbox"]
        assert frame["error_code"].dropna().to_dict() == {3: "not_found", 5: "not_found"}

    def test_duckdb(self, folder: Path) -> None:
        query = f"""
            select image_id, d.score, d.category_name, d.bbox[1], d.segmentation.size, d.segmentation.counts
            from (select image_id, unnest(detections) as d from '{folder}/*.parquet') order by image_id, d.score desc
        """
        expected = [
            (
                image_id,
                d["score"],
                d["category_name"],
                d["bbox"][0],
                d["segmentation"]["size"],
                d["segmentation"]["counts"],
            )
            for image_id, found in zip([1, 2, 3, 4], WRITTEN, strict=True)
            for d in found or []
        ]
        rows = [(*row[:4], list(row[4]), row[5]) for row in duckdb.sql(query).fetchall()]
        assert rows == expected
        assert duckdb.sql(f"select avg(len(detections)) from '{folder}/*.parquet'").fetchall() == [(1,)]

    def test_polars(self, folder: Path) -> None:
        frame = pl.scan_parquet(f"{folder}/*.parquet").filter(pl.col("detections").list.len() > 0)
        flat = frame.explode("detections").unnest("detections").unnest("segmentation").sort("image_id").collect()
        assert flat["image_id"].to_list() == [2, 4, 4, 4]
        assert flat["bbox"].to_list() == [d["bbox"] for found in WRITTEN for d in found or []]
        assert flat["counts"].to_list() == [d["segmentation"]["counts"] for found in WRITTEN for d in found or []]
        assert flat["size"].to_list() == [[480, 640]] * 4

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.annotate import dry_run as module
from pipeline.annotate.config import AnnotateConfig, ManifestConfig
from pipeline.annotate.dry_run import SAMPLE_IMAGES, dry_run, sample_rows
from pipeline.annotate.manifest.open import Manifest, open_manifest
from pipeline.annotate.manifest.rules import Columns, ManifestError, ReadUnit
from pipeline.annotate.pending.antijoin import Pending, find_pending
from pipeline.annotate.pool import Pool
from pipeline.annotate.run import annotate
from pipeline.annotate.stages.ordering import BatchOrder, Sizes
from pipeline.annotate.summary import page
from pipeline.annotate.summary.sample import Sample
from pipeline.errors import UserError
from pipeline.messages.examples import Examples
from pipeline.storage.uris import Uri
from testing.rounds_without_ray import rounds_without_ray
from testing.small_model import save_tiny
from tests.annotate.manifest.manifest_cases import write, write_parquet
from tests.annotations.output_cases import CATEGORY_IDS, output_table


def sample_ids(manifest: Manifest, done: pa.Array | None = None) -> list[int]:
    pending = find_pending(manifest, [] if done is None else [done])
    table = sample_rows(manifest, pending)
    assert table.schema == manifest.schema
    ids: list[int] = table["image_id"].to_pylist()
    return ids


class TestSample:
    def manifest(self, folder: Path, num_rows: int, row_group_size: int) -> Manifest:
        columns = {"image_id": np.arange(num_rows), "image_uri": [f"/{index}.jpg" for index in range(num_rows)]}
        half = num_rows // 2
        for name, part in {"a": slice(0, half), "b": slice(half, None)}.items():
            some = {key: values[part] for key, values in columns.items()}
            write_parquet(folder / "m" / f"{name}.parquet", some, row_group_size=row_group_size)
        return open_manifest(ManifestConfig(uri=str(folder / "m")), Uri(str(folder / "scratch")))

    @pytest.mark.parametrize("row_group_size", [7, 1000])
    def test_one_of_each_part_of_the_whole_manifest(self, tmp_path: Path, row_group_size: int) -> None:
        manifest = self.manifest(tmp_path, 1600, row_group_size)
        ids = sample_ids(manifest)
        assert [index * SAMPLE_IMAGES // 1600 for index in ids] == list(range(SAMPLE_IMAGES))
        assert len(set(np.array(ids) % (1600 // SAMPLE_IMAGES))) > SAMPLE_IMAGES // 4  # in no step with the rows
        assert sample_ids(manifest) == ids

    def test_of_what_is_pending_alone(self, tmp_path: Path) -> None:
        manifest = self.manifest(tmp_path, 1600, 100)
        done = np.setdiff1d(np.arange(1600), np.arange(3, 1600, 160))
        assert sample_ids(manifest, pa.array(done)) == list(range(3, 1600, 160))
        assert sample_ids(manifest, pa.array(np.arange(1600))) == []

    @settings(max_examples=100, deadline=None)
    @given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12), seed=st.integers(0, 1000))
    def test_as_many_as_there_are_up_to_the_sample(self, sizes: list[int], seed: int) -> None:
        draw = np.random.default_rng(seed)
        masks = [draw.random(size) < 0.7 for size in sizes]
        num_pending = sum(int(mask.sum()) for mask in masks)
        units = [ReadUnit(Uri(f"/{index}"), 0, size) for index, size in enumerate(sizes)]
        packed = tuple((unit, np.packbits(mask)) for unit, mask in zip(units, masks, strict=True) if mask.any())
        nothing = Examples()
        pending = Pending(packed, sum(sizes), num_pending, sum(sizes) - num_pending, nothing, nothing)
        drawn = [(unit, int(row)) for unit, rows, places in module._drawn(pending) for row in rows[places]]
        assert len(set(drawn)) == len(drawn) == min(SAMPLE_IMAGES, num_pending)
        assert all(masks[units.index(unit)][row] for unit, row in drawn)

    def test_of_images_in_the_file_no_more_is_read_than_is_needed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_READ_BYTES", 1 << 20)
        images = [os.urandom(1 << 16) for _ in range(400)]
        sink = io.BytesIO()
        schema = pa.schema([("image_id", pa.int64()), ("image_bytes", pa.binary())])
        with pa.parquet.ParquetWriter(sink, schema, use_dictionary=False, write_batch_size=1) as writer:
            table = pa.table({"image_id": pa.array(range(400)), "image_bytes": images}, schema)
            writer.write_table(table, row_group_size=200)
        MemoryFileSystem().pipe("/sampled/m.parquet", sink.getvalue())
        unit_rows = (200, 200)
        file = Uri("memory://sampled/m.parquet")
        units = tuple(ReadUnit(file, index, num_rows) for index, num_rows in enumerate(unit_rows))
        manifest = Manifest(file, units, Columns("image_id", None, "image_bytes"), pa.int64(), pa.schema([]), None)
        pending = find_pending(manifest, [])
        num_read = 0
        plain_read = MemoryFile.read

        def counted(self: MemoryFile, *args: int) -> bytes:
            nonlocal num_read
            content: bytes = plain_read(self, *args)
            num_read += len(content)
            return content

        monkeypatch.setattr(MemoryFile, "read", counted)
        table = sample_rows(manifest, pending)
        assert len(set(table["image_id"].to_pylist())) == len(table) == SAMPLE_IMAGES
        assert table["image_bytes"].to_pylist() == [images[index] for index in table["image_id"].to_pylist()]
        assert min(table["image_id"].to_pylist()[SAMPLE_IMAGES // 2 :]) >= 200  # of both row groups
        assert num_read < 8 << 20  # of 26 MB


def test_the_line_about_the_sample(tmp_path: Path) -> None:
    for index, (width, height) in enumerate([(64, 48), (300, 200), (30, 20)]):
        Image.new("RGB", (width, height)).save(tmp_path / f"{index}.png")
    names = [*(f"/{index}.png" for index in range(3)), *(f"/gone-{index}.jpg" for index in range(7))]
    path = write(tmp_path / "m.txt", "".join(f"{tmp_path}{name}\n" for name in names))
    config = AnnotateConfig.model_validate(
        {"manifest": {"uri": path}, "model": {"checkpoint": "x"}, "output": {"uri": str(tmp_path / "out")}}
    )
    manifest = open_manifest(config.manifest, Uri(str(tmp_path / "scratch")))
    rows = sample_rows(manifest, find_pending(manifest, []))
    line = module._sample_line(module._decode_sample(config, BatchOrder(32, 64, 8, 32), rows), 10)
    assert line.startswith(
        "3 of 10 images fetched and decoded, drawn from all 10 to do; 30 x 20 to 300 x 200 pixels; "
        f"failed: {tmp_path}/gone-0.jpg: not_found, "
    )
    assert line.endswith("gone-4.jpg: not_found and 2 more")


class TestBatchFill:
    ORDER = BatchOrder(800, 1333, batch_size=16, images_per_block=64)
    KINDS = np.array([(480, 640), (640, 480), (427, 640), (500, 375), (333, 500), (640, 640)])

    def sizes(self, count: int) -> Sizes:
        """A few common sizes and as many odd ones."""
        draw = np.random.default_rng(0)
        odd = np.stack([draw.integers(330, 640, count), np.full(count, 640)], axis=1)
        return np.where(draw.random(count)[:, None] < 0.5, draw.choice(self.KINDS, count), odd)

    def fill(self, known: Sizes, actual: Sizes) -> float:
        return len(actual) / self.ORDER.expected_calls(known, actual) / 16

    def test_sizes_in_the_manifest(self) -> None:
        known = self.sizes(8192)
        fill, source = module._batch_fill(known, known[:0], self.ORDER, (4096, 768))
        assert (fill, source) == (self.fill(known, known), "the sizes in the manifest")
        some = np.where(np.arange(8192)[:, None] % 10 > 0, known, 0)
        assert module._batch_fill(some, known[:5], self.ORDER, (4096, 768))[0] == pytest.approx(fill, abs=0.1)

    @pytest.mark.parametrize("first", range(0, 320, 32))
    def test_a_sample_speaks_for_more_sizes_than_it_has(self, first: int) -> None:
        actual = self.sizes(8192)
        none = np.zeros_like(actual)
        fill, source = module._batch_fill(none, actual[first : first + 32], self.ORDER, (4096, 768))
        assert source == "the sample's sizes"
        assert fill == pytest.approx(self.fill(none, actual), rel=0.25)

    def test_small_tasks_have_emptier_batches(self) -> None:
        actual = self.sizes(8192)
        fill, _ = module._batch_fill(np.zeros_like(actual), actual[:32], self.ORDER, (64, 64))
        assert fill < 0.35

    def test_pictures_of_one_size(self) -> None:
        known = np.full((1024, 2), 480)
        assert module._batch_fill(known, known[:0], self.ORDER, (4096, 768))[0] == 1

    def test_nothing_to_go_by(self) -> None:
        none = np.zeros((10, 2), np.int64)
        assert module._batch_fill(none, none[:0], self.ORDER, (4096, 768)) == (1.0, "")
        assert module._batch_fill(none[:0], none[:0], self.ORDER, (4096, 768)) == (1.0, "")

    def test_what_the_manifest_says_of_pending_rows(self, tmp_path: Path) -> None:
        sides = {"height": np.arange(1000), "width": [7] * 1000}
        columns = {"image_id": np.arange(1000), "image_uri": ["/a"] * 1000, **sides}
        path = write_parquet(tmp_path / "m.parquet", columns, row_group_size=100)
        manifest = open_manifest(ManifestConfig(uri=path), Uri(str(tmp_path / "scratch")))
        pending = find_pending(manifest, [pa.array(np.arange(0, 1000, 2))])
        found = module._known_sizes(manifest, pending)
        assert found.tolist() == [[height, 7] for height in range(1, 1000, 2)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "tiny.safetensors", [(number, f"kind {number}") for number in (1, 2, 3)])


def test_a_compile_cache_that_replicas_would_refuse(tmp_path: Path, model: Path) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    (tmp_path / "cache").mkdir(mode=0o755)
    config = AnnotateConfig.model_validate(
        {
            "manifest": {"uri": write(tmp_path / "m.txt", f"{tmp_path}/a.png\n")},
            "model": {"checkpoint": str(model), "compile_cache": str(tmp_path / "cache")},
            "output": {"uri": str(tmp_path / "out")},
        }
    )
    with pytest.raises(UserError, match="cache: programs are run from there, and it is not this user's alone"):
        dry_run(config)


def test_where_nothing_is_left_to_do_no_cluster_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "draw_sample", lambda *_: Sample())
    ids = list(range(5))
    model = save_tiny(tmp_path / "tiny.safetensors", [(number, f"kind {number}") for number in CATEGORY_IDS])
    manifest = write_parquet(tmp_path / "m.parquet", {"image_id": ids, "image_uri": ["/gone.png"] * 5})
    config = AnnotateConfig.model_validate(
        {
            "manifest": {"uri": manifest},
            "model": {"checkpoint": str(model)},
            "output": {"uri": str(tmp_path / "out")},
        }
    )
    with rounds_without_ray(lambda wanted: output_table(wanted.to_pylist(), failed=[2])):
        annotate(config)
    monkeypatch.setitem(sys.modules, "ray", None)  # to import it is an error now
    assert dry_run(config).splitlines()[1:] == [
        f"output     {tmp_path}/out: writable",
        "images     5 in the manifest, 0 to do",
    ]


@pytest.mark.parametrize("there", ["", "out", "out/pics"])
def test_no_folder_is_left_where_there_was_none(tmp_path: Path, there: str, model: Path) -> None:
    (tmp_path / there).mkdir(parents=True, exist_ok=True)
    before = sorted(tmp_path.rglob("*"))
    config = AnnotateConfig.model_validate(
        {
            "manifest": {"uri": str(tmp_path / "none.csv")},
            "model": {"checkpoint": str(model)},
            "output": {"uri": str(tmp_path / "out" / "pics")},
        }
    )
    with pytest.raises(ManifestError, match="does not exist"):
        dry_run(config)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("gpus", "said"), [(0.0, "; the run waits up to 5 min 00 s for GPUs"), (1.0, "; the run waits")]
)
def test_gpus_that_a_run_would_wait_for(gpus: float, said: str) -> None:
    config = AnnotateConfig.model_validate(
        {
            "manifest": {"uri": "a.csv"},
            "model": {"checkpoint": "m"},
            "output": {"uri": "out"},
            "resources": {"actors": 2, "wait_for_gpus_s": 300},
        }
    )
    assert module._waits(config, Pool(2, 2, 1.0, 0.0, 0.99, 2), gpus).startswith(said)
    assert module._waits(config, Pool(2, 2, 1.0, 0.0, 0.99, 2), 2.0) == ""

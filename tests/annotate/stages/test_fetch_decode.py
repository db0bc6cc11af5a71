"""Fetching and decoding as Ray calls it: Arrow table in, Arrow table out, a row for each row."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import struct
import threading
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, cycle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.annotate.stages.fetch_decode import FetchDecode
from pipeline.annotate.stages.guard import MAX_DEATHS, InProcessGuard
from pipeline.annotate.stages.ordering import BatchOrder
from pipeline.annotate.stages.rows import DECODED
from pipeline.annotate.stages.stage import Report, StageCounts
from pipeline.annotations.failure import ImageFailure
from pipeline.annotations.pictures import PictureSource
from pipeline.annotations.schema import OBJECT_COLUMNS
from pipeline.images.decode import DecodedImage, decode_image
from pipeline.images.sizes import scaled_size
from pipeline.model.settings import TestSettings
from pipeline.storage.access import AccessPolicy
from pipeline.storage.fetch import fetcher as fetcher_module
from pipeline.storage.fetch.fetcher import Fetcher
from pipeline.storage.fetch.rules import Fetched, FetchSettings
from pipeline.storage.uris import Uri, UriText
from pipeline.storage.versions import ObjectVersion
from pipeline.tables.binary import binary_views
from testing.preprocessed import preprocessed
from testing.s3_server import S3Server

MAX_PIXELS = 1_000_000
MAX_BYTES = 2_000_000
SETTINGS = TestSettings(short_side=64, long_side=96)

Decoded = tuple[np.ndarray, dict[str, Any]]


def discard(counts: StageCounts) -> None:
    """Of the module, so that stages that report to it pickle."""


def stage(guard: InProcessGuard | None = None, report: Report = discard, **changes: Any) -> FetchDecode:
    fetch = FetchSettings(max_object_bytes=MAX_BYTES, max_attempts=1)
    pictures = PictureSource(**{"fetcher": Fetcher(fetch), "max_pixels": MAX_PIXELS, **changes})
    order = BatchOrder(SETTINGS.short_side, SETTINGS.long_side, batch_size=2, images_per_block=4)
    return FetchDecode(pictures, order, guard or InProcessGuard(), report)


def run(rows: pa.Table, guard: InProcessGuard | None = None, **changes: Any) -> pa.Table:
    return in_order(stage(guard, **changes)(rows), rows)


def in_order(tables: Iterable[pa.Table], rows: pa.Table) -> pa.Table:
    """The rows of some tables in the order of those they were made of: each of them, and no other."""
    decoded = pa.concat_tables(tables)
    ids = decoded["image_id"].to_pylist()
    assert sorted(ids) == sorted(rows["image_id"].to_pylist())
    return decoded.take(pa.array([ids.index(i) for i in rows["image_id"].to_pylist()], pa.int64())).combine_chunks()


def manifest_rows(uris: list[str | None], blobs: list[bytes | None] | None = None, **carried: list[Any]) -> pa.Table:
    columns = {
        "image_id": pa.array([f"id {i}" for i in range(len(uris))], pa.string()),
        "image_uri": pa.array(uris, pa.string()),
        "image_bytes": pa.array(blobs or [None] * len(uris), pa.binary()),
        **carried,
    }
    return pa.table(columns)


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3)).repeat(8, 0).repeat(8, 1)
    return (patches[:height, :width] * 0.8 + rng.integers(0, 50, (height, width, 3))).astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format, **options)
    return buffer.getvalue()


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


def png_header(height: int, width: int) -> bytes:
    """A PNG that claims a size and has next to no pixels: a decompression bomb."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def pictures(decoded: pa.Table) -> list[np.ndarray | None]:
    shapes = zip(decoded["pixels_height"].to_pylist(), decoded["pixels_width"].to_pylist(), strict=True)
    views = binary_views(decoded["pixels"])
    return [
        None if view is None else np.frombuffer(view, np.uint8).reshape(*shape, 3)
        for view, shape in zip(views, shapes, strict=True)
    ]


def sizes(decoded: pa.Table) -> list[tuple[int, int]]:
    return list(zip(decoded["height"].to_pylist(), decoded["width"].to_pylist(), strict=True))


RGB = Image.fromarray(photo(37, 54))
GREY = RGB.convert("L")
PALETTE = RGB.quantize(32)
GREY16 = photo(37, 54)[..., 0].astype(np.uint16) * 256 + 77
# What the pixels must be: of lossless files, known from before they were written.
LOSSLESS: dict[str, tuple[bytes, np.ndarray]] = {
    "png": (encoded(RGB), np.array(RGB)),
    "png grey": (encoded(GREY), np.array(GREY.convert("RGB"))),
    "png palette": (encoded(PALETTE), np.array(PALETTE.convert("RGB"))),
    "png alpha": (encoded(RGB.convert("RGBA")), np.array(RGB)),
    "png 16 bit grey": (
        cv2.imencode(".png", GREY16)[1].tobytes(),
        (GREY16 >> 8).astype(np.uint8)[..., None].repeat(3, 2),
    ),
    "webp": (encoded(RGB, "WEBP", lossless=True), np.array(RGB)),
    "bmp": (encoded(RGB, "BMP"), np.array(RGB)),
    "tiff": (encoded(RGB, "TIFF", compression="tiff_lzw"), np.array(RGB)),
    "gif, first frame": (
        encoded(PALETTE, "GIF", save_all=True, append_images=[PALETTE.rotate(90)]),
        np.array(PALETTE.convert("RGB")),
    ),
    "ppm": (encoded(RGB, "PPM"), np.array(RGB)),
}
# Of lossy files, what OpenCV reads.
LOSSY: dict[str, bytes] = {
    "jpeg": encoded(RGB, "JPEG", quality=80),
    "jpeg grey": encoded(GREY, "JPEG"),
    "jpeg progressive": encoded(RGB, "JPEG", progressive=True),
    "webp lossy": encoded(RGB, "WEBP", quality=70),
}


FAILURES: dict[str, tuple[bytes | None, str, str]] = {
    "missing.png": (None, "fetch", "not_found"),
    "folder": (None, "fetch", "not_a_file"),
    "large.bmp": (b"BM" + bytes(MAX_BYTES), "fetch", "too_large"),
    "empty.png": (b"", "decode", "empty_object"),
    "text.jpg": (b"<html>not here</html>", "decode", "not_an_image"),
    "truncated.png": (encoded(photo(60, 60))[:2000], "decode", "corrupt_image"),
    "truncated.jpg": (encoded(photo(60, 60), "JPEG")[:700], "decode", "corrupt_image"),
    "broken.png": (encoded(RGB)[:60] + b"\xff" * 40 + encoded(RGB)[100:], "decode", "corrupt_image"),
    "bomb.png": (png_header(30_000, 30_000), "decode", "too_many_pixels"),
    "just_above.png": (png_header(1, MAX_PIXELS + 1), "decode", "too_many_pixels"),
    "paper.png": (b"%PDF-1.7 ...", "decode", "unsupported_image"),
}

SHRUNK = {
    "photo": (300, 400),
    "portrait": (400, 300),
    "exactly half": (128, 192),
    "exactly twice the pixels": (64 * 2, 96),
    "odd": (333, 517),
    "a strip": (2, 3000),
    "a column": (1500, 1),
    "large": (900, 1100),
}
KEPT = {
    "model's own size": (64, 96),
    "smaller": (30, 40),
    "less than twice the pixels": (86, 129),
    "a line": (1, 96),
}
CARRIED = {
    "split": ["train", None, "val", "test"],
    "weight": [0.5, 1.5, None, -1.0],
    "tags": [["a", "b"], [], None, ["c"]],
    "where": [{"lat": 1.0, "lon": 2.0}, None, {"lat": None, "lon": 0.0}, {"lat": 5.0, "lon": 6.0}],
}


@pytest.fixture(scope="module")
def by_name(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Decoded]:
    """Every format in one table, as files named without a suffix."""
    folder = tmp_path_factory.mktemp("formats")
    files = {
        **{name: blob for name, (blob, _) in LOSSLESS.items()},
        **LOSSY,
        "cmyk": encoded(RGB.convert("CMYK"), "JPEG"),
    }
    for name, blob in files.items():
        (folder / name).write_bytes(blob)
    decoded = run(manifest_rows([str(folder / name) for name in files]))
    rows = decoded.drop_columns(["pixels"]).to_pylist()
    return dict(zip(files, zip(pictures(decoded), rows, strict=True), strict=True))


@pytest.fixture(scope="module")
def decoded(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """All kinds of bad files, each followed by a good one."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "folder").mkdir()
    uris: list[str | None] = []
    for name, (blob, *_) in FAILURES.items():
        if blob is not None:
            (folder / name).write_bytes(blob)
        (folder / f"good after {name}").write_bytes(LOSSLESS["png"][0])
        uris += [str(folder / name), str(folder / f"good after {name}")]
    return run(manifest_rows(uris))


class TestPictures:
    @pytest.mark.parametrize("name", LOSSLESS)
    def test_lossless(self, by_name: dict[str, Decoded], name: str) -> None:
        np.testing.assert_array_equal(by_name[name][0], LOSSLESS[name][1])

    @pytest.mark.parametrize("name", LOSSY)
    def test_lossy(self, by_name: dict[str, Decoded], name: str) -> None:
        bgr = cv2.imdecode(np.frombuffer(LOSSY[name], np.uint8), cv2.IMREAD_COLOR)
        np.testing.assert_array_equal(by_name[name][0], bgr[..., ::-1])

    def test_all_rows(self, by_name: dict[str, Decoded]) -> None:
        for name, (_, row) in by_name.items():
            assert (row["pixels_height"], row["pixels_width"], row["height"], row["width"]) == (37, 54, 37, 54), name
            assert (row["stage"], row["error_code"], row["error_message"]) == (None, None, None), name
            assert row["exif_orientation"] == 1, name

    def test_cmyk_keeps_its_colours_roughly(self, by_name: dict[str, Decoded]) -> None:
        found = by_name["cmyk"][0]
        assert np.abs(found.astype(int) - np.array(RGB).astype(int)).mean() < 20


class TestFailures:
    @pytest.mark.parametrize("name", FAILURES)
    def test_bad_file(self, decoded: pa.Table, name: str) -> None:
        row = decoded.slice(2 * list(FAILURES).index(name), 1).to_pylist()[0]
        assert (row["stage"], row["error_code"]) == FAILURES[name][1:]
        assert row["error_message"]
        empty = ("pixels", "pixels_height", "pixels_width", "height", "width", "exif_orientation")
        assert [row[column] for column in empty] == [None] * len(empty)
        assert row["image_uri"].endswith(name)

    def test_good_files_between_them(self, decoded: pa.Table) -> None:
        assert len(decoded) == 2 * len(FAILURES)
        assert decoded["error_code"].to_pylist()[1::2] == [None] * len(FAILURES)
        for picture in pictures(decoded)[1::2]:
            np.testing.assert_array_equal(picture, LOSSLESS["png"][1])

    @pytest.mark.parametrize(
        ("uri", "code"),
        [
            pytest.param("{folder}/../outside.png", "uri_not_allowed", id="outside the roots"),
            pytest.param("http://127.0.0.1/a.png", "uri_not_allowed", id="internal host"),
            pytest.param("nosuchscheme://a/b.png", "uri_not_allowed", id="other scheme"),
        ],
    )
    def test_policy(self, tmp_path: Path, uri: str, code: str) -> None:
        folder = tmp_path / "images"
        folder.mkdir()
        for path in (folder / "a.png", tmp_path / "outside.png"):
            path.write_bytes(LOSSLESS["png"][0])
        fetcher = Fetcher(FetchSettings(max_attempts=1), AccessPolicy((Uri(str(folder)),)))
        decoded = run(manifest_rows([str(folder / "a.png"), uri.format(folder=folder)]), fetcher=fetcher)
        assert decoded["error_code"].to_pylist() == [None, code]

    def test_an_image_that_killed_processes_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(LOSSLESS["png"][0])
        guard = InProcessGuard()
        guard.begin("decode", ["id 1"])
        for _ in range(MAX_DEATHS - 1):
            guard.retry("decode", "id 1")
        decoded = run(manifest_rows([str(tmp_path / "a.png")] * 3), guard)
        assert decoded["error_code"].to_pylist() == [None, "process_killed", None]
        assert decoded["stage"].to_pylist() == [None, "decode", None]
        assert guard.begin("decode", ["id 0", "id 2"]) == [0, 0]

    def test_rows_are_in_flight_before_the_first_byte(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "a.png").write_bytes(LOSSLESS["png"][0])
        guard, seen = InProcessGuard(), []
        read = fetcher_module._read_local

        def reading(*args: Any) -> bytes:
            seen.append(guard.begin("decode", ["id 0"]))
            return read(*args)

        monkeypatch.setattr(fetcher_module, "_read_local", reading)
        assert run(manifest_rows([str(tmp_path / "a.png")]), guard)["error_code"].to_pylist() == [None]
        assert seen == [[1]]

    def test_an_image_that_takes_too_long_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """From a thread; here that ends in the place of the process."""
        ended, guard, named = threading.Event(), InProcessGuard(), []

        def end(code: int) -> None:
            ended.set()
            raise SystemExit(code)

        def decode(self: PictureSource, data: bytes) -> ImageFailure:
            if data == b"slow":
                assert ended.wait(20)
            return ImageFailure("decode", "corrupt_image", "")

        monkeypatch.setattr(guard, "expire", lambda *rows: named.append(rows))
        monkeypatch.setattr("pipeline.annotate.stages.guard.os._exit", end)
        monkeypatch.setattr(PictureSource, "decode", decode)
        limited = replace(stage(guard), decode_timeout_s=0.2)
        assert len(pa.concat_tables(limited(manifest_rows([None] * 3, [b"a", b"slow", b"b"])))) == 3
        assert named == [("decode", ["id 1"], ["id 0", "id 2"])]

    def test_more_bytes_than_are_held_at_once(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(LOSSLESS["png"][0])
        small = Fetcher(FetchSettings(max_bytes_at_once=100, max_attempts=1))
        uris: list[str | None] = [str(tmp_path / "a.png"), "absent.png", None] * 4
        decoded = run(manifest_rows(uris), fetcher=small)
        assert decoded["error_code"].to_pylist() == [None, "not_found", "no_uri"] * 4
        for pixels in pictures(decoded)[::3]:
            np.testing.assert_array_equal(pixels, LOSSLESS["png"][1])


class TestBytes:
    def test_bytes_and_uris_mixed(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(LOSSLESS["png"][0])
        grey, (webp, _) = LOSSLESS["png grey"], LOSSLESS["webp"]
        decoded = run(
            manifest_rows(
                [str(tmp_path / "a.png"), None, "/gone.png", "/gone.png", None],
                [None, grey[0], webp, None, b"broken"],
            )
        )
        found = pictures(decoded)
        np.testing.assert_array_equal(found[0], np.array(RGB))
        np.testing.assert_array_equal(found[1], grey[1])
        np.testing.assert_array_equal(found[2], np.array(RGB))  # a row with both: the bytes are the image
        assert decoded["error_code"].to_pylist() == [None, None, None, "not_found", "not_an_image"]
        assert decoded["image_uri"].to_pylist() == [str(tmp_path / "a.png"), None, "/gone.png", "/gone.png", None]

    def test_empty_bytes_are_an_empty_object(self) -> None:
        assert run(manifest_rows([None], [b""]))["error_code"].to_pylist() == ["empty_object"]

    def test_nothing_is_fetched_for_bytes(self) -> None:
        fetcher = Fetcher(policy=AccessPolicy(()))  # allows nothing
        decoded = run(manifest_rows([None, "/etc/hostname"], [LOSSLESS["png"][0], None]), fetcher=fetcher)
        assert decoded["error_code"].to_pylist() == [None, "uri_not_allowed"]


class TestExif:
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_upright_by_default(self, orientation: int) -> None:
        stored = photo(37, 54)
        blob = encoded(stored, exif=exif(orientation))
        decoded = run(manifest_rows([None], [blob]))
        upright = np.rot90(stored, {3: 2, 4: 2, 5: 1, 6: -1, 7: -1, 8: 1}.get(orientation, 0))
        upright = upright[:, ::-1] if orientation in (2, 4) else upright[::-1] if orientation in (5, 7) else upright
        np.testing.assert_array_equal(pictures(decoded)[0], upright)
        assert sizes(decoded) == [upright.shape[:2]]
        assert decoded["exif_orientation"].to_pylist() == [orientation]

    @pytest.mark.parametrize("orientation", [3, 6])
    def test_as_stored_on_demand(self, orientation: int) -> None:
        stored = photo(37, 54)
        decoded = run(manifest_rows([None], [encoded(stored, exif=exif(orientation))]), apply_exif=False)
        np.testing.assert_array_equal(pictures(decoded)[0], stored)
        assert sizes(decoded) == [(37, 54)]
        assert decoded["exif_orientation"].to_pylist() == [orientation]

    def test_turned_before_it_is_shrunk(self) -> None:
        decoded = run(manifest_rows([None], [encoded(photo(200, 400), exif=exif(6))]))
        assert sizes(decoded) == [(400, 200)]
        assert pictures(decoded)[0].shape == (96, 48, 3)


class TestShrinking:
    @pytest.mark.parametrize("size", SHRUNK.values(), ids=SHRUNK)
    def test_no_pixel_differs_at_the_model(self, size: tuple[int, int]) -> None:
        original = photo(*size, seed=sum(size))
        decoded = run(manifest_rows([None], [encoded(original)]))
        shrunk = pictures(decoded)[0]
        assert shrunk is not None
        assert shrunk.shape[:2] == scaled_size(size, SETTINGS.short_side, SETTINGS.long_side) != size
        assert sizes(decoded) == [size]
        assert (decoded["pixels_height"].to_pylist(), decoded["pixels_width"].to_pylist()) == (
            [shrunk.shape[0]],
            [shrunk.shape[1]],
        )
        expected, expected_size = preprocessed(original, SETTINGS)
        found, found_size = preprocessed(shrunk, SETTINGS, size)
        assert found_size == expected_size
        assert int((found != expected).sum()) == 0
        np.testing.assert_array_equal(shrunk, cv2.resize(original, shrunk.shape[1::-1], interpolation=cv2.INTER_LINEAR))

    @pytest.mark.parametrize("size", KEPT.values(), ids=KEPT)
    def test_small_pictures_cross_as_they_are(self, size: tuple[int, int]) -> None:
        original = photo(*size)
        np.testing.assert_array_equal(pictures(run(manifest_rows([None], [encoded(original)])))[0], original)


class TestTable:
    def rows(self) -> pa.Table:
        blobs = [LOSSLESS["png"][0], b"", LOSSLESS["webp"][0], None]
        return manifest_rows([None, None, None, "/gone.png"], blobs, **CARRIED)

    def test_columns(self) -> None:
        rows = self.rows()
        decoded = run(rows)
        assert decoded.column_names == ["image_id", "image_uri", *CARRIED, *DECODED.names]
        for field in DECODED:
            assert decoded.schema.field(field.name).type == field.type
        for name in ("image_id", *CARRIED):
            assert decoded[name].equals(rows[name]), name

    def test_what_was_read(self, decoded: pa.Table) -> None:
        """Of pictures that were read, whatever became of them; nothing of those that were not."""
        for row in decoded.to_pylist():
            found = [row[name] for name in OBJECT_COLUMNS.names]
            if row["stage"] == "fetch":
                assert found == [None] * 4
                continue
            status = os.stat(row["image_uri"])
            time = pa.scalar(status.st_mtime_ns // 1000, pa.timestamp("us", "UTC")).as_py()
            assert found == [None, status.st_size, time, None], row["image_uri"]

    def test_what_came_with_the_row(self) -> None:
        rows = self.rows()
        for row, blob in zip(run(rows).to_pylist(), rows["image_bytes"].to_pylist(), strict=True):
            found = [row[name] for name in OBJECT_COLUMNS.names]
            digest = None if blob is None else f"sha256:{hashlib.sha256(blob).hexdigest()}"
            assert found == [digest, None if blob is None else len(blob), None, None]

    def test_what_s3_says(self, s3: S3Server) -> None:
        """In the request that reads the picture, and no other."""
        good = LOSSLESS["png"][0]
        blobs = {"good.png": good, "bad.png": good[:100], "a//b.png": good}
        uris = [s3.put("bucket", name, blob) for name, blob in blobs.items()]
        with s3.recorded() as requests:
            table = run(manifest_rows([*uris, "s3://bucket/gone.png"]))
        assert sorted(path for _, path in requests) == sorted(f"/bucket/{name}" for name in [*blobs, "gone.png"])
        assert table["error_code"].to_pylist() == [None, "corrupt_image", None, "not_found"]
        tags = [hashlib.md5(blob).hexdigest() for blob in blobs.values()]
        assert table["object_etag"].to_pylist() == [*tags, None]
        assert table["object_size"].to_pylist() == [*map(len, blobs.values()), None]
        assert table["object_mtime"].is_valid().to_pylist() == [True, True, True, False]

    @pytest.mark.parametrize(("start", "length"), [(0, 4), (1, 2), (3, 1), (2, 0)])
    def test_slices(self, start: int, length: int) -> None:
        expected = run(self.rows()).slice(start, length)
        assert run(self.rows().slice(start, length)).to_pylist() == expected.to_pylist()

    def test_chunks(self) -> None:
        rows = pa.concat_tables([self.rows().slice(0, 1), self.rows().slice(1)])
        assert rows["image_bytes"].num_chunks == 2
        assert run(rows).to_pylist() == run(self.rows()).to_pylist()

    def test_no_rows(self) -> None:
        decoded = run(self.rows().schema.empty_table())
        assert decoded.num_rows == 0
        assert decoded.schema == run(self.rows()).schema

    def test_integer_ids(self) -> None:
        rows = self.rows().set_column(0, "image_id", pa.array([7, 8, 2**40, -1]))
        assert run(rows)["image_id"].to_pylist() == [7, 8, 2**40, -1]

    def test_no_secret_survives(self) -> None:
        uris = [
            "https://user:SECRET@host.invalid/a.png",
            "http://127.0.0.1/a.png?X-Amz-Signature=SECRET#SECRET",
            "s3://KEY:SECRET@bucket/a.png",
            "nosuchscheme://u:SECRET@host/a.png?sig=SECRET",
        ]
        decoded = run(manifest_rows([*uris, "http://10.0.0.1/b.png?sig=SECRET"], [*[None] * 4, LOSSLESS["png"][0]]))
        assert "SECRET" not in str(decoded.to_pylist())
        assert decoded["image_uri"].to_pylist()[1] == "http://127.0.0.1/a.png"
        assert decoded["image_uri"].to_pylist()[4] == "http://10.0.0.1/b.png"
        assert None not in decoded["error_code"].to_pylist()[:4]
        assert decoded["error_code"].to_pylist()[4] is None

    def test_report(self) -> None:
        reports: list[StageCounts] = []
        list(stage(report=reports.append)(self.rows()))
        (counts,) = reports
        assert min(counts.fetch_s, counts.decode_s) > 0
        assert counts == StageCounts(fetch_s=counts.fetch_s, decode_s=counts.decode_s, decoded=4)

    def test_pickles(self) -> None:
        copy = pickle.loads(pickle.dumps(stage()))  # noqa: S301
        assert in_order(copy(self.rows()), self.rows()).to_pylist() == run(self.rows()).to_pylist()

    def test_same_pixels_as_the_decoder(self) -> None:
        blob = LOSSY["jpeg"]
        np.testing.assert_array_equal(pictures(run(manifest_rows([None], [blob])))[0], decode_image(blob).pixels)


class Killed(BaseException):
    """The process is gone; what the guard knows is not."""


@dataclass(frozen=True)
class Attempt:
    """What one process meets.

    Attributes:
        failing: images that cannot be fetched this time.
        turns: how many come together, again and again.
        dies_at: the call at which it is killed, fetching, reading headers and decoding counted alike.
    """

    failing: frozenset[int]
    turns: tuple[int, ...]
    dies_at: int | None


class ToldPictures(PictureSource):
    """Pictures that are nothing but their sizes: the URIs say which image it is."""

    SIZES = ((64, 96), (96, 64), (48, 96), (60, 60))

    def __init__(self, attempt: Attempt, culprits: Collection[int] = ()) -> None:
        super().__init__()
        object.__setattr__(self, "attempt", attempt)
        object.__setattr__(self, "culprits", culprits)
        object.__setattr__(self, "calls", 0)

    attempt: Attempt
    culprits: Collection[int]
    calls: int

    def live(self, image: int | None = None) -> None:
        object.__setattr__(self, "calls", self.calls + 1)
        if self.calls == self.attempt.dies_at or image in self.culprits:
            raise Killed

    def fetch_turns(self, uris: Sequence[UriText | None]) -> Iterator[dict[int, Fetched | ImageFailure]]:
        images = [int(uri.secret_text) for uri in uris if uri is not None]
        sizes, start = cycle(self.attempt.turns), 0
        while start < len(images):
            end = start + next(sizes)
            self.live()
            failure = ImageFailure("fetch", "timeout", "")
            yield {
                i: failure if images[i] in self.attempt.failing else Fetched(str(images[i]).encode(), ObjectVersion())
                for i in reversed(range(start, min(end, len(images))))
            }
            start = end

    def size(self, data: bytes | ImageFailure) -> tuple[int, int] | None:
        if isinstance(data, ImageFailure):
            return None
        self.live()
        return self.SIZES[int(data) % len(self.SIZES)]

    def decode(self, data: bytes | ImageFailure) -> DecodedImage | ImageFailure:
        if isinstance(data, ImageFailure):
            return data
        self.live(int(data))
        size = self.SIZES[int(data) % len(self.SIZES)]
        return DecodedImage(np.zeros((*size, 3), np.uint8), 1, size)


def attempts(num_images: int) -> st.SearchStrategy[Attempt]:
    return st.builds(
        Attempt,
        st.frozensets(st.integers(0, num_images - 1)),
        st.lists(st.integers(1, num_images), min_size=1, max_size=3).map(tuple),
        st.integers(1, 3 * num_images) | st.none(),
    )


class TestAgain:
    """Ray gives the rows of a process that died to another one, and keeps the blocks that it has by their numbers."""

    def tables(self, pictures: ToldPictures, guard: InProcessGuard, num_images: int) -> tuple[list[pa.Table], bool]:
        """What one process gives before it dies, and whether it does not."""
        task = FetchDecode(pictures, BatchOrder(64, 96, batch_size=3, images_per_block=6), guard, discard)
        found: list[pa.Table] = []
        try:
            for table in task(manifest_rows([str(i) for i in range(num_images)])):
                found.append(table)
        except Killed:
            return found, False
        return found, True

    @given(data=st.data(), num_images=st.integers(0, 40))
    @settings(deadline=None, max_examples=40)
    def test_the_same_rows_are_in_the_same_block_each_time(self, data: st.DataObject, num_images: int) -> None:
        guard = InProcessGuard()
        blocks: dict[int, list[str]] = {}
        lives = data.draw(st.lists(attempts(max(1, num_images)), max_size=6))
        for attempt in [*lives, Attempt(frozenset(), (7,), None)]:
            tables, lived = self.tables(ToldPictures(attempt), guard, num_images)
            for number, table in enumerate(tables):
                ids = table["image_id"].to_pylist()
                assert blocks.setdefault(number, ids) == ids
        assert lived
        assert sorted(chain.from_iterable(blocks.values())) == sorted(f"id {i}" for i in range(num_images))
        assert all(len(ids) == 6 for number, ids in blocks.items() if number < len(blocks) - 1)

    @given(culprits=st.frozensets(st.integers(0, 19), max_size=3))
    @settings(deadline=None, max_examples=40)
    def test_what_kills_is_refused_in_its_place_and_nothing_else_is(self, culprits: frozenset[int]) -> None:
        guard = InProcessGuard()
        blocks: dict[int, list[str]] = {}
        for life in range(2 * 20 + 1):
            pictures = ToldPictures(Attempt(frozenset(), (8 + life % 5,), None), culprits)
            tables, lived = self.tables(pictures, guard, 20)
            for number, table in enumerate(tables):
                assert blocks.setdefault(number, table["image_id"].to_pylist()) == table["image_id"].to_pylist()
            if lived:
                break
        rows = [row for table in tables for row in table.drop_columns(["pixels"]).to_pylist()]
        assert {row["image_id"] for row in rows if row["error_code"]} == {f"id {i}" for i in culprits}
        assert {row["error_code"] for row in rows} <= {None, "process_killed"}
        assert sorted(row["image_id"] for row in rows) == sorted(f"id {i}" for i in range(20))

    def test_shapes_come_together_and_what_failed_comes_last(self) -> None:
        attempt = Attempt(frozenset({0, 5}), (100,), None)
        tables, _ = self.tables(ToldPictures(attempt), InProcessGuard(), 20)
        found = sizes(pa.concat_tables(tables))
        assert found[-2:] == [(None, None)] * 2
        order = BatchOrder(64, 96, batch_size=3, images_per_block=6)
        # Of three shapes 9, 5 and 4 pictures, by threes.
        assert order.num_calls(np.array(found[:-2])) == 3 + 2 + 2

    def test_other_rows_under_the_name_of_the_first_are_other_work(self) -> None:
        guard, attempt = InProcessGuard(), Attempt(frozenset(), (100,), None)
        self.tables(ToldPictures(attempt), guard, 20)
        tables, _ = self.tables(ToldPictures(attempt), guard, 12)
        found = chain.from_iterable(table["image_id"].to_pylist() for table in tables)
        assert sorted(found) == sorted(f"id {i}" for i in range(12))

"""The fetch-and-decode stage against a plain loop over the same libraries: ``python -m benchmarks.bench_fetch_decode``.

CPU time of one process, user and system, of all its threads; the candidates take turns and the best round of
each counts. As in the job's workers, the process keeps the memory it frees; the plain loop runs with that as
well as without. S3 is a server in another process that sends the same files from memory, so that all CPU time
counted is the client's. It signs nothing, waits for nothing and knows no TLS.
"""

from __future__ import annotations

import argparse
import http.server
import io
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from benchmarks.support.machine import describe
from pipeline.annotate.stages.fetch_decode import FetchDecode
from pipeline.annotate.stages.guard import InProcessGuard
from pipeline.annotate.stages.ordering import ROWS_PER_FETCH, BatchOrder
from pipeline.annotations.pictures import PictureSource
from pipeline.model.host_memory import keep_freed_memory
from pipeline.storage.fetch.fetcher import Fetcher
from pipeline.storage.fetch.rules import FetchError
from pipeline.storage.uris import UriText

BUCKET = "images"
S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "anyone",
    "AWS_SECRET_ACCESS_KEY": "not-a-secret",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def textured_picture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """RGB uint8 ``(H, W, 3)`` with detail at every scale, like a photograph's spectrum: 1 / frequency."""
    y, x = np.fft.fftfreq(height)[:, None, None], np.fft.rfftfreq(width)[None, :, None]
    frequency = np.maximum(np.hypot(y, x), 1 / max(height, width))
    noise = rng.normal(size=(*frequency.shape[:2], 3)) + 1j * rng.normal(size=(*frequency.shape[:2], 3))
    noise[..., 1:] = 0.85 * noise[..., :1] + 0.15 * noise[..., 1:]  # colours go together
    picture = np.fft.irfft2(noise / frequency**1.2, s=(height, width), axes=(0, 1))
    picture = (picture - picture.mean()) / picture.std()
    return np.clip(128 + 55 * picture, 0, 255).astype(np.uint8)


def make_jpegs(folder: Path, count: int, size: tuple[int, int], seed: int) -> list[Path]:
    """``count`` files of quality 90."""
    rng = np.random.default_rng(seed)
    paths = [folder / f"{i:04d}.jpg" for i in range(count)]
    for path in paths:
        Image.fromarray(textured_picture(rng, *size)).save(path, quality=90)
    return paths


def manifest_rows(uris: Sequence[str]) -> pa.Table:
    """What the stage gets."""
    missing = pa.nulls(len(uris), pa.binary())
    return pa.table({"image_id": range(len(uris)), "image_uri": pa.array(uris), "image_bytes": missing})


def plain_loop(paths: Sequence[Path]) -> None:
    """Open, read, decode, convert, as an array."""
    for path in paths:
        with open(path, "rb") as file:
            data = file.read()
        np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def stage_loop(stage: FetchDecode, blocks: Sequence[pa.Table]) -> None:
    """The stage on each block, as a task calls it, less the monitor's messages."""
    for block in blocks:
        for rows in stage(block):
            if rows["error_code"].null_count != len(rows):
                raise RuntimeError(f"failed rows: {rows['error_message'].drop_null().to_pylist()[:3]}")


def fetch_loop(fetcher: Fetcher, batches: Sequence[Sequence[str]]) -> None:
    """The fetcher alone."""
    for uris in batches:
        for _, found in fetcher.fetch_in_turn([UriText(uri) for uri in uris]):
            if isinstance(found, FetchError):
                raise found


def best_ms(candidates: dict[str, Callable[[], None]], images: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Least CPU and wall milliseconds an image of each candidate; one round before that counts for nothing."""
    best = dict.fromkeys(candidates, (float("inf"), float("inf")))
    for number in range(rounds + 1):
        for name, run in candidates.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if number:
                best[name] = (min(best[name][0], cpu * 1e3 / images), min(best[name][1], wall * 1e3 / images))
    return best


def _serve(folder: Path, ready: Connection) -> None:
    bodies = {f"/{BUCKET}/{path.name}": path.read_bytes() for path in folder.glob("*.jpg")}

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # header and body in one write

        def do_GET(self) -> None:
            body = bodies[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"1"')
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    ready.send(server.server_port)
    server.serve_forever()


@contextmanager
def s3_of(folder: Path) -> Iterator[None]:
    """The folder's JPEG files as ``s3://images/...``, in the environment for the duration."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(folder, sender), daemon=True)
    process.start()
    try:
        if not receiver.poll(60):
            raise RuntimeError("the server did not start")
        endpoint = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{receiver.recv()}"}
        with mock.patch.dict(os.environ, {**S3_ENVIRONMENT, **endpoint}):
            for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_NO_SIGN_REQUEST", "AWS_ENDPOINT_URL_S3"):
                os.environ.pop(name, None)
            yield
    finally:
        process.terminate()
        process.join(10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="a folder of JPEGs (*.jpg); by default textured ones are made")
    parser.add_argument("--count", type=int, default=192)
    parser.add_argument("--size", type=int, nargs=2, default=[480, 640], metavar=("H", "W"))
    parser.add_argument("--rows", type=int, default=ROWS_PER_FETCH, help="images that the stage gets at once")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="bench-fetch-") as name:
        folder = args.images or Path(name)
        made = [] if args.images else make_jpegs(folder, args.count, tuple(args.size), args.seed)
        paths = made or sorted(folder.glob("*.jpg"))[: args.count]
        starts = range(0, len(paths), args.rows)
        local = [[str(path) for path in paths[i : i + args.rows]] for i in starts]
        remote = [[f"s3://{BUCKET}/{path.name}" for path in paths[i : i + args.rows]] for i in starts]
        fetcher = Fetcher()
        order = BatchOrder(800, 1333, batch_size=16, images_per_block=64)
        stage = FetchDecode(PictureSource(fetcher), order, InProcessGuard(), report=lambda counts: None)
        local_blocks, remote_blocks = [manifest_rows(b) for b in local], [manifest_rows(b) for b in remote]
        loops: dict[str, Callable[[], None]] = {
            "plain loop, local": lambda: plain_loop(paths),
            "stage, local": lambda: stage_loop(stage, local_blocks),
        }
        others: dict[str, Callable[[], None]] = {
            "stage, S3": lambda: stage_loop(stage, remote_blocks),
            "fetching alone, local": lambda: fetch_loop(fetcher, local),
            "fetching alone, S3": lambda: fetch_loop(fetcher, remote),
        }
        with s3_of(folder):
            fresh = best_ms(loops, len(paths), args.rounds)
            kept = keep_freed_memory()
            best = best_ms({**loops, **others}, len(paths), args.rounds)
        mean_kb = np.mean([path.stat().st_size for path in paths]) / 1e3
    print(f"{describe()}\n{len(paths)} JPEGs of {mean_kb:.0f} kB, {args.rows} at once, best of {args.rounds} rounds\n")
    print(
        "| candidate | freed memory | CPU ms an image | images/s and core | against the plain loop | wall ms an image |"
    )
    print("|--|--|--:|--:|--:|--:|")
    for memory, figures in (("kept", best), ("given back", fresh)) if kept else (("given back", best),):
        plain = figures["plain loop, local"][0]
        for label, (cpu, wall) in figures.items():
            row = f"{cpu:.3f} | {1e3 / cpu:.0f} | {plain / cpu:.2f}x | {wall:.3f}"
            print(f"| {label} | {memory} | {row} |")


if __name__ == "__main__":
    main()

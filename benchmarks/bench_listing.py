"""A bucket of many keys as a manifest: ``python -m benchmarks.bench_listing --keys 100000 10000000``.

The job's own listing, from the first page to the copy of it that the tasks read, with the ETag, size and time of each
key. The bucket is a server that makes pages up as they are asked for: what is measured is the listing's own work. Each
size in a process of its own: seconds, CPU seconds, resident memory before, with all imports, and the most there was.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from benchmarks.bench_resume import peak_bytes
from benchmarks.support.machine import describe
from pipeline.annotate.config import ManifestConfig
from pipeline.annotate.manifest.open import open_manifest
from pipeline.storage.uris import Uri
from testing.s3_server import CLIENT_ENVIRONMENT

_PREFIX = "nightly/"
_KEYS_OF_PAGE = 1000


def page(prefix: str, start: int, stop: int, num_keys: int) -> bytes:
    """Some of the keys as S3 lists them; the token for what follows is its number."""
    entries = "".join(
        f"<Contents><Key>{prefix}camera-{n // 100_000:04d}/{n:012d}.jpg</Key><Size>{100_000 + n % 1000}</Size>"
        f"<LastModified>2026-01-31T02:00:00.000Z</LastModified><ETag>&quot;{n:032x}&quot;</ETag>"
        "<StorageClass>STANDARD</StorageClass></Contents>"
        for n in range(start, stop)
    )
    more = f"<NextContinuationToken>{stop}</NextContinuationToken>" if stop < num_keys else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>bucket</Name><Prefix>{prefix}</Prefix><KeyCount>{stop - start}</KeyCount>"
        f"<IsTruncated>{str(bool(more)).lower()}</IsTruncated>{more}{entries}</ListBucketResult>"
    ).encode()


class Bucket(BaseHTTPRequestHandler):
    """Answers to listings of a prefix; nothing else is there."""

    protocol_version = "HTTP/1.1"
    num_keys = 0

    def do_HEAD(self) -> None:
        """No object is there."""
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        """A page."""
        asked = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        start = int(asked.get("continuation-token", 0))
        stop = min(self.num_keys, start + min(_KEYS_OF_PAGE, int(asked.get("max-keys", _KEYS_OF_PAGE))))
        body = page(_PREFIX, start, stop, self.num_keys)
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Nobody reads it."""


def serve(num_keys: int, address: Any) -> None:
    """The bucket's process; sends its port."""
    Bucket.num_keys = num_keys
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    address.send(server.server_port)
    server.serve_forever()


def measure(num_keys: int, port: int, result: Any) -> None:
    """A process of its own: open the manifest; sends seconds, CPU seconds, and bytes before and at the most."""
    os.environ |= {**CLIENT_ENVIRONMENT, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    before = peak_bytes()
    started, cpu = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory(prefix="bench-listing-") as scratch:
        config = ManifestConfig(uri=Uri(f"s3://bucket/{_PREFIX}"), format="folder", compare="etag")
        manifest = open_manifest(config, Uri(scratch))
        rows = sum(unit.num_rows for unit in manifest.units)
    if rows != num_keys:
        raise RuntimeError(f"{rows} rows of {num_keys} keys")
    result.send((time.monotonic() - started, time.process_time() - cpu, before, peak_bytes()))


def line(num_keys: int) -> str:
    """A row of the table."""
    context = multiprocessing.get_context("spawn")
    (port, address), (found, result) = context.Pipe(duplex=False), context.Pipe(duplex=False)
    server = context.Process(target=serve, args=(num_keys, address), daemon=True)
    server.start()
    try:
        job = context.Process(target=measure, args=(num_keys, port.recv(), result))
        job.start()
        job.join()
        if job.exitcode:
            raise SystemExit(job.exitcode)
        seconds, cpu_s, before, peak = found.recv()
    finally:
        server.terminate()
    return f"| {num_keys:,} | {seconds:.1f} | {cpu_s:.1f} | {before / 1e6:.0f} | {peak / 1e6:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    args = parser.parse_args()
    print(f"{describe()}\n\n| keys | s | CPU s | MB before | peak MB |\n|--:|--:|--:|--:|--:|", flush=True)
    for num_keys in args.keys:
        print(line(num_keys), flush=True)


if __name__ == "__main__":
    main()

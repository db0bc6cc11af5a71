"""Fetch a file over HTTPS into a cache, once per machine. In the cache, beside ``<file>``:

<file>.sha256       its checksum, as ``sha256sum`` writes and checks it
<file>.part         what has arrived of a download that is under way or was cut off
<file>.part.etag    which content that is of; without it the part is not continued
<file>.lock         held while a process downloads; the others on this machine wait for it
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pooch
import requests
from filelock import FileLock, Timeout
from requests.adapters import HTTPAdapter
from tqdm import tqdm

from pipeline.errors import UserError
from pipeline.messages.timing import NowAndThen

logger = logging.getLogger(__name__)
pooch.get_logger().setLevel(logging.WARNING)  # its lines go around the job's log

SCHEME = "https://"  # of redirects, too
TIMEOUT_S = 30.0  # without a byte
PAUSES_S = (1.0, 2.0, 4.0, 8.0)  # between attempts that bring nothing new
BLOCK_BYTES = 1 << 16  # what a broken connection loses at most
LOG_EVERY_S = 10.0


class DownloadError(UserError):
    """A file that could not be had; the message says why and what to do."""


def cache_directory() -> Path:
    """``$MASKFLEET_CACHE``, else ``$XDG_CACHE_HOME/maskfleet``, else ``~/.cache/maskfleet``."""
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("MASKFLEET_CACHE") or f"{shared}/maskfleet").expanduser()


def fetch_to_cache(url: str, file_name: str, sha256: str | None = None, cache_dir: str | Path | None = None) -> Path:
    """The path of the file in the cache, downloaded if it is not there or its checksum is wrong.

    A file without a recorded checksum (put there by hand) is recorded as it is. A download continues where an
    earlier one was cut off. Processes and threads of one machine may call this at once.

    Args:
        url: https. Messages show it.
        file_name: what to call it in the cache.
        sha256: of the whole file, hex; the recorded one by default.
        cache_dir: where to keep it, `cache_directory` by default.

    Raises:
        DownloadError: no connection, an error of the server, a wrong checksum, a cache that cannot be written.
    """
    path = Path(cache_dir or cache_directory()) / file_name
    record = Path(f"{path}.sha256")
    try:
        recorded = re.search(r"^[0-9a-f]{64}\b", record.read_text(), re.MULTILINE) if record.exists() else None
        known = sha256 or (recorded and recorded[0])
        if known and path.is_file():  # without the lock: a cache that is complete may be read-only
            if pooch.file_hash(path) == known.lower():
                return path
            logger.warning("%s does not have the checksum %s: fetching it anew", path, known)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            pooch.retrieve(url, known, file_name, path.parent, downloader=partial(_download, Path(f"{path}.part")))
            record.write_text(f"{pooch.file_hash(path)}  {file_name}\n")
    except requests.RequestException as error:
        raise DownloadError(
            f"{url} could not be fetched: {_reason(error)}. Where there is no connection, fetch it elsewhere and put "
            f"it at {path}" + (f" (and remove {record})" if record.exists() else "")
        ) from error
    except ValueError as error:
        origin = f" The known hash is the one in {record}." if known and not sha256 else ""
        raise DownloadError(f"{url}: {error}{origin}") from error
    except OSError as error:
        advice = "set MASKFLEET_CACHE to a directory with room for it"
        raise DownloadError(f"{path} cannot be written ({error}); {advice}") from error
    return path


def _download(part: Path, url: str, output_file: str, _: object) -> None:
    """A downloader for pooch: through any number of connections, as long as each brings ``part`` further."""
    most, pauses = 0, iter(PAUSES_S)
    while True:
        try:
            _transfer(part, url)
            break
        except requests.RequestException as error:
            size = part.stat().st_size if part.exists() else 0
            if size > most:
                most, pauses = size, iter(PAUSES_S)
            pause = next(pauses, None)
            status = 503 if error.response is None else error.response.status_code
            if pause is None or (status < 500 and status != 429) or isinstance(error, ValueError):
                raise
            logger.warning("%s: %s; again in %.0f s", url, _reason(error), pause)
            time.sleep(pause)
    Path(f"{part}.etag").unlink()
    part.replace(output_file)


def _transfer(part: Path, url: str) -> None:
    """One connection: continue the part if it is surely of the same content, else begin anew."""
    origin = Path(f"{part}.etag")
    etag = origin.read_text() if origin.exists() else ""
    have = part.stat().st_size if etag and part.exists() else 0
    headers = {"User-Agent": "maskfleet", "Accept-Encoding": "identity"}
    headers |= {"Range": f"bytes={have}-", "If-Range": etag} if have else {}
    options: dict[str, Any] = {"stream": True, "timeout": TIMEOUT_S, "verify": os.environ.get("SSL_CERT_FILE") or True}
    with _session() as session, session.get(url, headers=headers, **options) as response:
        found = response.headers
        continued = found.get("Content-Range", "").startswith(f"bytes {have}-") and found.get("ETag") == etag
        if response.status_code in (206, 416) and not continued:
            part.unlink(missing_ok=True)
            raise requests.RequestException("the file has changed at its source since the download began")
        response.raise_for_status()
        if found.get("Content-Type", "").startswith("text/html"):
            raise requests.RequestException("the server sent a web page instead of the file", response=response)
        with part.open("ab") as file:
            if not continued:
                have = file.truncate(0)
                etag = found.get("ETag", "")
                origin.write_text(etag if etag.startswith('"') else "")  # a weak one does not vouch for every byte
            for block in _with_progress(response, have, part.stem):
                file.write(block)


def _session() -> requests.Session:
    """Knows one scheme, so that no other is contacted, wherever a redirect may lead."""
    session = requests.Session()
    session.adapters.clear()
    session.mount(SCHEME, HTTPAdapter())
    return session


def _reason(error: requests.RequestException) -> str:
    """In words, without secrets: the query of a redirect's URL may be signed, a proxy's URL hold a password."""
    if isinstance(error, ValueError):
        return "refused a redirect that is not https, or a URL on the way, or that of the proxy, is not valid"
    words = re.sub(r"\?[^\s'\"]*", "", str(getattr(error.args[0], "reason", error)))  # without urllib3's preamble
    if isinstance(error, requests.exceptions.SSLError):
        return f"{words}; behind a proxy with a certificate of its own, name that in SSL_CERT_FILE"
    return f"no connection: {words}" if isinstance(error, (requests.ConnectionError, requests.Timeout)) else words


def _with_progress(response: requests.Response, done: int, name: str) -> Iterator[bytes]:
    """The blocks; on the way a bar for a person at a terminal, or a line now and then for a log."""
    length = response.headers.get("Content-Length")
    total, due = done + int(length) if length else None, NowAndThen(LOG_EVERY_S, at_once=False)
    with tqdm(total=total, initial=done, desc=name, unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
        for block in response.iter_content(BLOCK_BYTES):
            yield block
            done += len(block)
            bar.update(len(block))
            if bar.disable and due.is_due():
                logger.info("%s: %s of %s MB", name, done >> 20, "?" if total is None else total >> 20)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(f"{path}.lock")
    try:
        held = lock.acquire(blocking=False)
    except Timeout:
        logger.info("waiting for another process that is fetching %s", path)
        held = lock.acquire()
    with held:
        yield

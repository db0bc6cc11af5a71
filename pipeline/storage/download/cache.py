"""Fetch a file over HTTPS into a cache, once per machine, whatever happens on the way.

In the cache, beside ``<file>``:

    <file>.sha256      its checksum as ``sha256sum -c`` reads it, with its size and source as comments
    <file>.part        what has arrived of a download that is under way or was cut off
    <file>.part.json   where the part comes from; without a validator (ETag, Last-Modified) it is not continued
    <file>.lock        held while a process downloads; the others on this machine wait for it
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from pipeline.storage.download.ranged import FileChanged, Response, TransferError, check_url, open_url

LOG = logging.getLogger(__name__)

ATTEMPTS = 5  # in a row without a new byte
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
BLOCK_BYTES = 1 << 20
LOG_EVERY_S = 10.0


class DownloadError(RuntimeError):
    """A file that could not be had; the message says why and what to do."""


def cache_directory() -> Path:
    """``$MASKFLEET_CACHE``, else ``$XDG_CACHE_HOME/maskfleet``, else ``~/.cache/maskfleet``."""
    if own := os.environ.get("MASKFLEET_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "maskfleet"


def fetch_to_cache(url: str, file_name: str, sha256: str | None = None, cache_dir: str | Path | None = None) -> Path:
    """The path of the file in the cache, downloaded if it is not there yet.

    A file in the cache counts as good if its size and its recorded checksum are right; one without a record
    (put there by hand) is read once and recorded. A download continues where an earlier one was cut off,
    unless the file has changed at its source. Processes and threads of one machine may call this at once.

    Args:
        url: https (http only from this machine's loopback). Redirects are followed to https alone.
        file_name: what to call it in the cache.
        sha256: of the whole file, hex, if known.
        cache_dir: where to keep it, `cache_directory` by default.

    Raises:
        DownloadError: no connection, an error of the server, a wrong checksum, a cache that cannot be written.
        ValueError: a URL of another scheme, or a file name with a directory in it.
    """
    check_url(url)
    if file_name in ("", ".", "..") or Path(file_name).name != file_name:
        raise ValueError(f"{file_name!r} is not a plain file name")
    entry = _Entry(Path(cache_dir) if cache_dir else cache_directory(), file_name)
    try:
        if entry.is_good(sha256):  # without the lock: a cache that is complete may be read-only
            return entry.path
        entry.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(entry.beside(".lock")):
            if not entry.is_good(sha256) and not _adopt(entry, sha256):
                _download(url, entry)
                _finish(url, entry, sha256)
    except TransferError as error:
        raise DownloadError(
            f"{url} could not be fetched: {error}. Where there is no connection, fetch it elsewhere and put it at "
            f"{entry.path}" + (f" (and remove {entry.path}.sha256)" if entry.record() else "")
        ) from error
    except OSError as error:
        raise DownloadError(
            f"{entry.path} cannot be written ({error}); set MASKFLEET_CACHE to a directory with room for it"
        ) from error
    return entry.path


class _Record(NamedTuple):
    sha256: str
    size_bytes: int


class _Entry:
    """One file of the cache and what stands beside it."""

    def __init__(self, directory: Path, file_name: str) -> None:
        self.path = directory / file_name

    def beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def is_good(self, sha256: str | None) -> bool:
        """There, of the recorded size, and of the checksum asked for. Does not read the file itself."""
        record = self.record()
        if record is None or (sha256 and sha256.lower() != record.sha256):
            return False
        try:
            return self.path.stat().st_size == record.size_bytes
        except FileNotFoundError:
            return False

    def record(self) -> _Record | None:
        try:
            lines = self.beside(".sha256").read_text(encoding="utf-8").splitlines()
            size = next(int(line.split()[2]) for line in lines if line.startswith("# size_bytes "))
            return _Record(next(line.split()[0] for line in lines if not line.startswith("#")), size)
        except (FileNotFoundError, StopIteration, ValueError, IndexError):
            return None

    def write_record(self, sha256: str, source: str) -> None:
        text = f"# size_bytes {self.path.stat().st_size}\n# from {source}\n{sha256}  {self.path.name}\n"
        part = self.beside(".sha256.part")
        part.write_text(text, encoding="utf-8")
        part.replace(self.beside(".sha256"))


def _adopt(entry: _Entry, sha256: str | None) -> bool:
    """Take a file that has no record, or not the one asked for, if its content will do."""
    if not entry.path.is_file() or (entry.record() is not None and sha256 is None):
        return False  # the record says that this file is damaged
    digest = _file_sha256(entry.path)
    if sha256 and digest != sha256.lower():
        LOG.warning("%s has the checksum %s, not %s: fetching it anew", entry.path, digest, sha256)
        return False
    entry.write_record(digest, "a file found in the cache")
    return True


def _finish(url: str, entry: _Entry, sha256: str | None) -> None:
    """Check the part and give it its name."""
    part = entry.beside(".part")
    digest = _file_sha256(part)
    entry.beside(".part.json").unlink(missing_ok=True)
    if sha256 and digest != sha256.lower():
        part.unlink()
        raise DownloadError(
            f"{url}: the file that came has the checksum {digest}, expected {sha256}. It was not kept. "
            "Fetching it again may help; if not, the file at the source has changed."
        )
    # In this order a crash in between leaves a file without a record, which the next call reads and records.
    entry.beside(".sha256").unlink(missing_ok=True)
    part.replace(entry.path)
    entry.write_record(digest, url)


def _download(url: str, entry: _Entry) -> None:
    """Bring ``.part`` to its full length, through as many connections as it takes."""
    part = entry.beside(".part")
    failures, most = 0, 0
    while True:
        try:
            return _transfer(url, entry)
        except TransferError as error:
            if isinstance(error, FileChanged):
                part.unlink(missing_ok=True)
            size = part.stat().st_size if part.exists() else 0
            # A long file over a poor line may take any number of connections, as long as each brings it further.
            failures = 1 if size > most else failures + 1
            most = max(most, size)
            if failures >= ATTEMPTS or not error.transient:
                raise
            pause = FIRST_PAUSE_S * 2 ** (failures - 1) if error.retry_after_s is None else error.retry_after_s
            pause = min(pause, LONGEST_PAUSE_S)
            LOG.warning("%s: %s; again in %.0f s", url, error, pause)
            time.sleep(pause)


def _transfer(url: str, entry: _Entry) -> None:
    """One connection: continue the part if it is surely of the same file, else begin anew."""
    part, origin = entry.beside(".part"), entry.beside(".part.json")
    validator = _validator_of_part(url, origin)
    have = part.stat().st_size if validator and part.exists() else 0
    with open_url(url, have, validator) as response:
        if response.start == 0:
            # In this order a part never stands beside the origin of another one.
            part.unlink(missing_ok=True)
            origin.write_text(json.dumps({"url": url, "validator": response.validator}), encoding="utf-8")
        with part.open("ab") as file:
            for block in _with_progress(response, entry.path.name):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())


def _validator_of_part(url: str, origin: Path) -> str | None:
    try:
        content = json.loads(origin.read_text(encoding="utf-8"))
        return content["validator"] if content["url"] == url else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _with_progress(response: Response, name: str) -> Iterator[bytes]:
    """The blocks; on the way a bar for a person at a terminal, or a line now and then for a log."""
    done, logged = response.start, time.monotonic()
    on_terminal = sys.stderr.isatty()
    with tqdm(total=response.total, initial=done, desc=name, unit="B", unit_scale=True, disable=not on_terminal) as bar:
        for block in response.blocks(BLOCK_BYTES):
            yield block
            done += len(block)
            bar.update(len(block))
            if not on_terminal and time.monotonic() - logged >= LOG_EVERY_S:
                logged = time.monotonic()
                LOG.info("%s: %s of %s MB", name, done >> 20, "?" if response.total is None else response.total >> 20)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the file's lock; the kernel frees it however the process ends, so no stale lock can remain."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            LOG.info("waiting for another process that is fetching %s", path.with_suffix(""))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()

"""URI -> bytes and version, for many small objects: one request each, bounded in time and size, failures with a reason.

Which client reads what, and what it guarantees:

- ``s3://``: obstore, one GET an object. The time limit covers the body too, however slowly it drips. The
  size is known from the response's header, before the body is read. Keys that it cannot say (``a//b``, ``./a``) go
  through botocore, with the same limits.
- ``http(s)://``: a small client of its own, one connection an object. obstore would escape the ``?`` of
  presigned URLs and follow redirects wherever they lead. Here every hop passes the policy, and the address
  that is checked is the address that is connected to. Proxy variables are not honoured.
- local files: regular files only. A hanging network mount hangs the read; no client could end that.
- everything else: fsspec, two requests an object. The time limit holds for its asynchronous file systems (gs,
  abfs, ...); the others have only their own.

What is fetched side by side shares a budget of bytes (`fetch_in_turn`): an object claims its size before its body is
read, and waits for another turn where it finds no room.

Retries happen here and nowhere below (obstore's are switched off): throttling, server errors, broken
connections and timeouts, after a full-jitter backoff.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import fsspec.asyn
import obstore
from fsspec.exceptions import FSTimeoutError
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

from pipeline.storage.access import AccessPolicy
from pipeline.storage.backoff import Backoff
from pipeline.storage.fetch.http_get import HttpGet
from pipeline.storage.fetch.rules import (
    Allowance,
    ByteBudget,
    Fetched,
    FetchError,
    FetchSettings,
    NoRoom,
    check_shard,
    check_whole,
    code_of_status,
    no_ranges,
)
from pipeline.storage.filesystems import open_aws_client, open_fsspec, open_s3_store, s3_status
from pipeline.storage.uris import TarMember, Uri, UriError, UriText
from pipeline.storage.versions import ObjectVersion, version_of_info, version_of_status

_ERRNO_CODES = {
    errno.ENOENT: "not_found",
    errno.ENOTDIR: "not_found",
    errno.ELOOP: "not_found",
    errno.ENAMETOOLONG: "not_found",
    errno.EACCES: "access_denied",
    errno.EPERM: "access_denied",
    errno.ENXIO: "not_a_file",
}
_READ_SIZE_BYTES = 1 << 16
_PARTIAL, _NO_SUCH_RANGE = 206, 416
_S3_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_S3_CODES = {
    "RequestTimeout": "timeout",
    "SlowDown": "throttled",
    "ExpiredToken": "access_denied",
    "InvalidToken": "access_denied",
    "TokenRefreshRequired": "access_denied",
    "AuthorizationHeaderMalformed": "wrong_region",
    "PermanentRedirect": "wrong_region",
}


@dataclass(frozen=True)
class Fetcher:
    """Reads objects by URI. Only configuration, so it pickles; clients live once per process and bucket.

    Attributes:
        settings: limits. An attempt that could not use its full time before the deadline is not begun, so no fetch
            outlasts it.
        policy: what may be read.
        backoff: how long is waited between attempts.
    """

    settings: FetchSettings = field(default_factory=FetchSettings)
    policy: AccessPolicy = field(default_factory=AccessPolicy)
    backoff: Backoff = field(default_factory=Backoff)

    def fetch(self, uri: UriText, budget: ByteBudget | None = None) -> Fetched:
        """The object's bytes, ``b""`` for empty objects, and their version as the same answer tells it.

        Args:
            budget: shared with what is fetched beside it.

        Raises:
            FetchError: and nothing else; `NoRoom` only where there is a budget.
        """
        settings = self.settings
        allowance = Allowance(uri, settings, budget or ByteBudget(settings.max_object_bytes))
        last_start = time.monotonic() + settings.deadline_s - settings.attempt_timeout_s
        for attempt in range(1, settings.max_attempts + 1):
            try:
                return self._attempt(uri, allowance)
            except FetchError as error:
                allowance.give_back()
                wait_s = self.backoff.draw_s(attempt)
                out_of_time = time.monotonic() + wait_s > last_start
                if not error.retryable or attempt == settings.max_attempts or out_of_time:
                    raise
            time.sleep(wait_s)
        raise AssertionError("unreachable")

    def find_local(self, uri: UriText) -> str | None:
        """The path of a local file that could be fetched, absolute and without links; ``None`` for what is elsewhere.

        Raises:
            FetchError: and nothing else.
        """
        if TarMember.of(uri.secret_text) is not None:
            return None  # no file of its own
        try:
            parsed = Uri(uri.secret_text)
            self.policy.check(parsed)
        except UriError as error:
            raise FetchError(error.code, uri, str(error)) from None
        if parsed.scheme != "file":
            return None
        with _opened(parsed) as (_, status):
            Allowance(uri, self.settings, ByteBudget(self.settings.max_object_bytes)).claim(status.st_size)
        return os.path.realpath(parsed.path)

    def fetch_in_turn(self, uris: Sequence[UriText]) -> Iterator[tuple[int, Fetched | FetchError]]:
        """The objects of `fetch_turns` one by one, with their positions, in any order."""
        for turn in self.fetch_turns(uris):
            while turn:
                yield turn.popitem()

    def fetch_turns(self, uris: Sequence[UriText]) -> Iterator[dict[int, Fetched | FetchError]]:
        """Fetch concurrently, failures as values; the next turn comes in while the caller works on this one.

        Yields:
            Objects by the positions of their URIs: as many as go into half of `FetchSettings.max_bytes_at_once`, or a
            single one that is larger. Whoever wants the memory bounded keeps none of them when he asks for the next.
        """
        limit = self.settings.max_bytes_at_once
        whole = ByteBudget(limit)
        waiting: dict[int, int | None] = dict.fromkeys(range(len(uris)))  # with the sizes that are known
        seen = _Mean()
        ahead = self._begin_turn(uris, waiting, seen, ByteBudget(limit // 2, whole))
        try:
            while waiting:
                turn = ahead
                found = turn.take(waiting, seen)
                if waiting:
                    ahead = self._begin_turn(uris, waiting, seen, ByteBudget(limit // 2, whole))
                if found:
                    yield found
                    found = {}
                turn.budget.give_up()
        finally:
            ahead.cancel()

    def _begin_turn(
        self, uris: Sequence[UriText], waiting: dict[int, int | None], seen: _Mean, budget: ByteBudget
    ) -> _Turn:
        """Ask for as many as should find room, going by what is known of their sizes."""
        limit, planned = self.settings.max_bytes_at_once // 2, 0.0
        turn = _Turn(budget)
        threads = _threads(self.settings.fetch_concurrency, os.getpid())
        for i, size_bytes in waiting.items():
            planned += seen.mean if size_bytes is None else size_bytes
            if turn.asked and planned > limit:
                break
            turn.asked[i] = threads.submit(self._fetch_unless_full, uris[i], turn)
        return turn

    def _fetch_unless_full(self, uri: UriText, turn: _Turn) -> Fetched | FetchError | None:
        if turn.is_full:
            return None
        found = self._fetch_or_error(uri, turn.budget)
        turn.is_full |= isinstance(found, NoRoom)
        return found

    def _fetch_or_error(self, uri: UriText, budget: ByteBudget) -> Fetched | FetchError:
        try:
            return self.fetch(uri, budget)
        except FetchError as error:
            # Without traceback and context, which keep the frames and what they hold alive.
            error.__context__ = None
            return error.with_traceback(None)

    def _attempt(self, uri: UriText, allowance: Allowance) -> Fetched:
        try:
            member = TarMember.of(uri.secret_text)
            parsed = Uri(uri.secret_text if member is None else member.shard)
            self.policy.check(parsed)
            if member is not None:
                if not member.size_bytes:
                    return Fetched(b"", ObjectVersion())  # no range says so little
                allowance.claim(member.size_bytes)
            if parsed.scheme == "file":
                return _read_local(parsed, self.settings, allowance, member)
            if parsed.scheme == "s3":
                return _read_s3(parsed, self.settings, allowance, member)
            if parsed.is_http:
                return HttpGet(parsed, self.settings, self.policy).read(allowance, member)
            return _read_fsspec(parsed, self.settings, allowance, member)
        except FetchError:
            raise
        except UriError as error:
            raise FetchError(error.code, uri, str(error)) from None
        except ValueError:  # from urllib, obstore's path parser or an encoder
            raise FetchError("bad_uri", uri, "no such address can be formed in this scheme") from None
        except Exception as error:
            raise FetchError("failed", uri, type(error).__name__) from None


@dataclass
class _Mean:
    """Of the sizes that were seen, in bytes; 0 before the first."""

    count: int = 0
    total: int = 0

    def add(self, size_bytes: int) -> None:
        """One more."""
        self.count += 1
        self.total += size_bytes

    @property
    def mean(self) -> float:
        return self.total / max(1, self.count)


@dataclass
class _Turn:
    """Objects that are asked for side by side; from the first one on that finds no room, no other is begun."""

    budget: ByteBudget
    asked: dict[int, Future[Fetched | FetchError | None]] = field(default_factory=dict)
    is_full: bool = False

    def take(self, waiting: dict[int, int | None], seen: _Mean) -> dict[int, Fetched | FetchError]:
        """What was found, and does not wait any more; of the rest some sizes are known now."""
        found: dict[int, Fetched | FetchError] = {}
        for i in list(self.asked):
            answer = self.asked.pop(i).result()
            if isinstance(answer, NoRoom):
                waiting[i] = answer.size_bytes
                seen.add(answer.size_bytes)
            elif answer is not None:
                del waiting[i]
                found[i] = answer
                if isinstance(answer, Fetched):
                    seen.add(len(answer.data))
        return found

    def cancel(self) -> None:
        """Begin no more."""
        self.is_full = True


@lru_cache(maxsize=4)
def _threads(concurrency: int, process_id: int) -> ThreadPoolExecutor:
    """One pool for all calls: starting threads for each block cost more than reading its files.

    The process id is for forked children, in which the parent's threads do not run.
    """
    return ThreadPoolExecutor(concurrency, thread_name_prefix="fetch")


@contextmanager
def _opened(uri: Uri) -> Iterator[tuple[int, os.stat_result]]:
    """The descriptor of a local file and what it says of it.

    Raises:
        FetchError: it cannot be opened, is no regular file, or, in the block, cannot be read.
    """
    try:
        # Non-blocking: the open of a FIFO without a writer would wait forever.
        descriptor = os.open(uri.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise FetchError("not_a_file", uri, "not a regular file")
            yield descriptor, status
        finally:
            os.close(descriptor)
    except OSError as error:
        code = _ERRNO_CODES.get(error.errno or 0, "unavailable")
        raise FetchError(code, uri, os.strerror(error.errno or 0)) from None


def _read_local(uri: Uri, settings: FetchSettings, allowance: Allowance, member: TarMember | None) -> Fetched:
    with _opened(uri) as (descriptor, status):
        if member is not None:
            return _read_local_member(uri, descriptor, status, member)
        size_bytes = status.st_size
        allowance.claim(size_bytes)
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(size_bytes + 1)
            if len(data) > size_bytes:  # it grew, or its size was never told, as in /proc
                data += file.read(settings.max_object_bytes + 1 - len(data))
    allowance.claim(len(data))
    # The time before the first byte: what is written while it is read makes the file a later one.
    return Fetched(data, version_of_status(status, len(data)))


def _read_local_member(uri: Uri, descriptor: int, status: os.stat_result, member: TarMember) -> Fetched:
    version = version_of_status(status, member.size_bytes)
    check_shard(uri, member, version)
    with open(descriptor, "rb", closefd=False) as file:
        file.seek(member.offset)
        data = file.read(min(member.size_bytes, max(0, status.st_size - member.offset)))
    check_whole(uri, member, len(data))
    return Fetched(data, version)


def _read_s3(uri: Uri, settings: FetchSettings, allowance: Allowance, member: TarMember | None) -> Fetched:
    key = uri.path
    if not key or key.endswith("/"):
        # obstore strips the slash and would answer with another object, or with the bucket's listing.
        raise FetchError("not_a_file", uri, "an S3 key must not be empty or end in a slash")
    if not {"", ".", ".."}.isdisjoint(key.split("/")):
        return _read_s3_literally(uri, settings, allowance, member)
    try:
        options: Any = {} if member is None else {"range": (member.offset, member.offset + member.size_bytes)}
        result = obstore.get(open_s3_store(uri.host, settings.attempt_timeout_s), key, options=options)
        meta = result.meta
        told = (meta["e_tag"], meta["last_modified"], meta["version"])
        if member is None:
            allowance.claim(meta["size"])
        else:
            check_shard(uri, member, ObjectVersion.told(None, *told))
            check_whole(uri, member, meta["size"] - member.offset)
        data = bytes(result.bytes())
        return Fetched(data, ObjectVersion.told(len(data), *told))
    except FileNotFoundError:
        raise FetchError("not_found", uri, "no such bucket or object") from None
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise FetchError("access_denied", uri, _s3_reason(error)) from None
    except BaseError as error:
        if member is not None and s3_status(error) == _NO_SUCH_RANGE:
            check_whole(uri, member, 0)
        if "NotPartial" in str(error):  # object_store's word for an answer of 200
            raise no_ranges(uri) from None
        raise FetchError(_s3_code(error), uri, _s3_reason(error)) from None


def _read_s3_literally(uri: Uri, settings: FetchSettings, allowance: Allowance, member: TarMember | None) -> Fetched:
    """Of a key that obstore would mend or refuse."""
    from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]  # slow, rarely needed
    from urllib3.exceptions import HTTPError

    ends_at = time.monotonic() + settings.attempt_timeout_s
    try:
        client = open_aws_client(uri.host, settings.attempt_timeout_s, max_attempts=1)
        options = {} if member is None else {"Range": member.range_header}
        answer = client.get_object(Bucket=uri.host, Key=uri.path, **options)
        told = [answer.get(name) for name in ("ETag", "LastModified", "VersionId")]
        if member is None:
            allowance.claim(answer["ContentLength"])
        else:
            check_shard(uri, member, ObjectVersion.told(None, *told))
            if answer["ResponseMetadata"]["HTTPStatusCode"] != _PARTIAL:
                raise no_ranges(uri)
            check_whole(uri, member, answer["ContentLength"])
        content = bytearray()
        with answer["Body"] as response:  # urllib3's
            # What arrives at a time: a read of its own would wait for all of it, however slowly it drips.
            while chunk := response.read1(_READ_SIZE_BYTES):
                content += chunk
                if time.monotonic() > ends_at:
                    raise FetchError("timeout", uri, "no answer in time")
        if len(content) < answer["ContentLength"]:
            raise FetchError("unavailable", uri, "the connection ended early")
        return Fetched(bytes(content), ObjectVersion.told(len(content), *told))
    except ClientError as error:
        code, status = error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]
        if member is not None and status == _NO_SUCH_RANGE:
            check_whole(uri, member, 0)
        raise FetchError(_S3_CODES.get(code) or code_of_status(status), uri, f"HTTP {status} {code}") from None
    except (BotoCoreError, HTTPError) as error:
        code = "timeout" if "Timeout" in type(error).__name__ else "unavailable"
        raise FetchError(code, uri, type(error).__name__) from None


def _s3_code(error: BaseError) -> str:
    text = str(error)
    s3_code = _S3_CODE.search(text)
    if s3_code and s3_code[1] in _S3_CODES:
        return _S3_CODES[s3_code[1]]
    if status := s3_status(error):
        return code_of_status(status)
    if "redirect without LOCATION" in text:
        return "wrong_region"
    return "timeout" if "kind: Timeout" in text else "unavailable"


def _s3_reason(error: BaseError) -> str:
    """Built from known parts: the whole text can hold key ids and the string that was signed."""
    text = str(error)
    status, s3_code = s3_status(error), _S3_CODE.search(text)
    kind = re.search(r"kind: (Timeout|Connect|Interrupted|Decode|Request)\b", text)
    parts = [f"HTTP {status}" if status else "", s3_code[1] if s3_code else "", kind[1] if kind else ""]
    return " ".join(part for part in parts if part) or "no usable answer"


def _read_fsspec(uri: Uri, settings: FetchSettings, allowance: Allowance, member: TarMember | None) -> Fetched:
    try:
        filesystem, path = open_fsspec(uri)
        info = _call(filesystem, "info", path, settings.attempt_timeout_s)
        if info["type"] != "file":
            raise FetchError("not_a_file", uri, f"a {info['type']}")
        if member is None:
            allowance.claim(info["size"])
            data = _call(filesystem, "cat_file", path, settings.attempt_timeout_s)
        else:
            version = version_of_info(info)._replace(size_bytes=member.size_bytes)
            check_shard(uri, member, version)
            check_whole(uri, member, info["size"] - member.offset)
            stop = member.offset + member.size_bytes
            data = _call(filesystem, "cat_file", path, settings.attempt_timeout_s, start=member.offset, end=stop)
            if len(data) > member.size_bytes:
                raise no_ranges(uri)
            check_whole(uri, member, len(data))
            return Fetched(data, version)
    except (FetchError, UriError):
        raise
    except FileNotFoundError:
        raise FetchError("not_found", uri, "no such object") from None
    except PermissionError:
        raise FetchError("access_denied", uri, "permission denied") from None
    except (TimeoutError, FSTimeoutError):
        raise FetchError("timeout", uri, "no answer in time") from None
    except Exception as error:  # whatever the service's SDK raises; its text may quote the request
        raise FetchError("unavailable", uri, type(error).__name__) from None
    allowance.claim(len(data))
    version = version_of_info(info)
    if version.size_bytes != len(data):  # it was replaced between the two requests
        version = ObjectVersion(size_bytes=len(data))
    return Fetched(data, version)


def _call(filesystem: Any, method: str, path: str, timeout_s: float, **options: int) -> Any:
    if filesystem.async_impl:
        call = getattr(filesystem, f"_{method}")
        return fsspec.asyn.sync(filesystem.loop, call, path, timeout=timeout_s, **options)
    return getattr(filesystem, method)(path, **options)

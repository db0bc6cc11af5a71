"""URI -> bytes, for many small objects: one request each, bounded in time and size, failures with a reason.

Which client reads what, and what it guarantees:

- ``s3://``: obstore, one GET an object. The time limit covers the body too, however slowly it drips. The
  size is known from the response's header, before the body is read.
- ``http(s)://``: a small client of its own, one connection an object. obstore would escape the ``?`` of
  presigned URLs and follow redirects wherever they lead. Here every hop passes the policy, and the address
  that is checked is the address that is connected to. Proxy variables are not honoured.
- local files: regular files only. A hanging network mount hangs the read; no client could end that.
- everything else: fsspec, two requests an object. The time limit holds for its asynchronous file systems (gs,
  abfs, ...); the others have only their own.

Retries happen here and nowhere below (obstore's are switched off): throttling, server errors, broken
connections and timeouts, after a full-jitter backoff.
"""

from __future__ import annotations

import errno
import http.client
import io
import os
import random
import re
import socket
import ssl
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import fsspec
import fsspec.asyn
import obstore
from fsspec.exceptions import FSTimeoutError
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

from pipeline.data.storage import fsspec_class, open_s3_store, s3_environment
from pipeline.data.uris import AccessPolicy, Location, UriError, redact, split_uri

_RETRYABLE = frozenset({"timeout", "throttled", "unavailable"})
_MAX_REDIRECTS = 5
_READ_SIZE_BYTES = 1 << 16
_ERRNO_CODES = {
    errno.ENOENT: "not_found",
    errno.ENOTDIR: "not_found",
    errno.ELOOP: "not_found",
    errno.ENAMETOOLONG: "not_found",
    errno.EACCES: "access_denied",
    errno.EPERM: "access_denied",
    errno.ENXIO: "not_a_file",
}
_STATUS = re.compile(r"status code: (\d{3})")
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


class FetchError(Exception):
    """An object that could not be read. Neither message nor attributes hold credentials or query strings.

    Attributes:
        code: ``not_found``, ``access_denied``, ``too_large``, ``not_a_file`` (directory, FIFO, device, key
            ending in a slash), ``uri_not_allowed``, ``bad_uri``, ``unsupported_scheme``, ``wrong_region``,
            ``bad_certificate``, ``rejected`` (another 4xx), ``failed`` (unforeseen); and, worth another try,
            ``timeout``, ``throttled``, ``unavailable``.
        uri: redacted.
        detail: what happened, for people.
        retryable: whether the same request may succeed later.
    """

    def __init__(self, code: str, uri: str, detail: str) -> None:
        self.code = code
        self.uri = redact(str(uri))
        self.detail = detail
        super().__init__(f"{code}: {self.uri}: {detail}")

    @property
    def retryable(self) -> bool:
        return self.code in _RETRYABLE

    def __reduce__(self) -> tuple[type[FetchError], tuple[str, str, str]]:
        return type(self), (self.code, self.uri, self.detail)


@dataclass(frozen=True)
class FetchSettings:
    """Limits of one fetch.

    Attributes:
        attempt_timeout_s: for one attempt, from connecting to the last byte.
        deadline_s: for all attempts and the waits between them. An attempt that could not use its full time
            before the deadline is not begun, so no fetch outlasts it.
        max_attempts: 1 switches retries off.
        backoff_base_s: the wait after attempt n is uniform in ``[0, min(cap, base * 2 ** (n - 1))]``.
        backoff_cap_s: see there.
        max_object_bytes: larger objects are refused.
        concurrency: threads of :meth:`Fetcher.fetch_many`.
    """

    attempt_timeout_s: float = 20.0
    deadline_s: float = 90.0
    max_attempts: int = 5
    backoff_base_s: float = 0.2
    backoff_cap_s: float = 10.0
    max_object_bytes: int = 256 * 1024 * 1024
    concurrency: int = 64

    def __post_init__(self) -> None:
        if not 0 < self.attempt_timeout_s <= self.deadline_s:
            raise ValueError("attempt_timeout_s must be positive and at most deadline_s")
        if self.max_attempts < 1 or self.concurrency < 1 or self.max_object_bytes < 1:
            raise ValueError("max_attempts, concurrency and max_object_bytes must be at least 1")
        if not 0 <= self.backoff_base_s <= self.backoff_cap_s:
            raise ValueError("backoff_base_s must be at least 0 and at most backoff_cap_s")


@dataclass(frozen=True)
class Fetcher:
    """Reads objects by URI. Only configuration, so it pickles; clients live once per process and bucket."""

    settings: FetchSettings = field(default_factory=FetchSettings)
    policy: AccessPolicy = field(default_factory=AccessPolicy)

    def fetch(self, uri: str) -> bytes:
        """The object's bytes; empty objects are ``b""``.

        Raises:
            FetchError: and nothing else.
        """
        settings = self.settings
        last_start = time.monotonic() + settings.deadline_s - settings.attempt_timeout_s
        for attempt in range(1, settings.max_attempts + 1):
            try:
                return self._attempt(uri)
            except FetchError as error:
                wait_s = random.uniform(0, min(settings.backoff_cap_s, settings.backoff_base_s * 2 ** (attempt - 1)))
                out_of_time = time.monotonic() + wait_s > last_start
                if not error.retryable or attempt == settings.max_attempts or out_of_time:
                    raise
            time.sleep(wait_s)
        raise AssertionError("unreachable")

    def fetch_many(self, uris: Sequence[str]) -> list[bytes | FetchError]:
        """Fetch concurrently; one entry per URI, in order, failures as values."""
        if not uris:
            return []
        with ThreadPoolExecutor(min(self.settings.concurrency, len(uris))) as pool:
            return list(pool.map(self._fetch_or_error, uris))

    def _fetch_or_error(self, uri: str) -> bytes | FetchError:
        try:
            return self.fetch(uri)
        except FetchError as error:
            # Without traceback and context, which keep the frames and what they hold alive.
            error.__context__ = None
            return error.with_traceback(None)

    def _attempt(self, uri: str) -> bytes:
        try:
            location = split_uri(uri)
            self.policy.check(uri)
            if location.scheme == "file":
                return _read_local(location.path, uri, self.settings)
            if location.scheme == "s3":
                return _read_s3(location, uri, self.settings)
            if location.scheme in ("http", "https"):
                return _HttpGet(uri, self.settings, self.policy).read()
            return _read_fsspec(uri, self.settings)
        except FetchError:
            raise
        except UriError as error:
            raise FetchError(error.code, uri, str(error)) from None
        except ValueError:  # from urllib, obstore's path parser or an encoder
            raise FetchError("bad_uri", uri, "no such address can be formed in this scheme") from None
        except Exception as error:
            raise FetchError("failed", uri, type(error).__name__) from None


def _check_size(size_bytes: int | None, uri: str, settings: FetchSettings) -> None:
    if size_bytes is not None and size_bytes > settings.max_object_bytes:
        limit = settings.max_object_bytes
        raise FetchError("too_large", uri, f"{size_bytes} bytes or more, the limit is {limit}")


def _code_of_status(status: int) -> str:
    if status in (401, 403):
        return "access_denied"
    if status in (404, 410):
        return "not_found"
    if status in (408, 504):
        return "timeout"
    if status in (429, 503):
        return "throttled"
    return "unavailable" if status >= 500 else "rejected"


def _read_local(path: str, uri: str, settings: FetchSettings) -> bytes:
    try:
        # Non-blocking: the open of a FIFO without a writer would wait forever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise FetchError("not_a_file", uri, "not a regular file")
            _check_size(status.st_size, uri, settings)
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(status.st_size + 1)
                if len(data) > status.st_size:  # it grew, or its size was never told, as in /proc
                    data += file.read(settings.max_object_bytes + 1 - len(data))
        finally:
            os.close(descriptor)
    except OSError as error:
        code = _ERRNO_CODES.get(error.errno or 0, "unavailable")
        raise FetchError(code, uri, os.strerror(error.errno or 0)) from None
    _check_size(len(data), uri, settings)
    return data


def _read_s3(location: Location, uri: str, settings: FetchSettings) -> bytes:
    key = location.path
    if not key or key.endswith("/"):
        # obstore strips the slash and would answer with another object, or with the bucket's listing.
        raise FetchError("not_a_file", uri, "an S3 key must not be empty or end in a slash")
    if "" in key.split("/"):
        return _read_fsspec(uri, settings)  # obstore has no way to say "a//b"
    try:
        result = obstore.get(open_s3_store(location.host, settings.attempt_timeout_s), key)
        _check_size(result.meta["size"], uri, settings)
        return bytes(result.bytes())
    except FileNotFoundError:
        raise FetchError("not_found", uri, "no such bucket or object") from None
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise FetchError("access_denied", uri, _s3_reason(error)) from None
    except BaseError as error:
        raise FetchError(_s3_code(error), uri, _s3_reason(error)) from None


def _s3_code(error: BaseError) -> str:
    text = str(error)
    s3_code = _S3_CODE.search(text)
    if s3_code and s3_code[1] in _S3_CODES:
        return _S3_CODES[s3_code[1]]
    if status := _STATUS.search(text):
        return _code_of_status(int(status[1]))
    if "redirect without LOCATION" in text:
        return "wrong_region"
    return "timeout" if "kind: Timeout" in text else "unavailable"


def _s3_reason(error: BaseError) -> str:
    """Built from known parts: the whole text can hold key ids and the string that was signed."""
    text = str(error)
    status, s3_code = _STATUS.search(text), _S3_CODE.search(text)
    kind = re.search(r"kind: (Timeout|Connect|Interrupted|Decode|Request)\b", text)
    parts = [f"HTTP {status[1]}" if status else "", s3_code[1] if s3_code else "", kind[1] if kind else ""]
    return " ".join(part for part in parts if part) or "no usable answer"


def _read_fsspec(uri: str, settings: FetchSettings) -> bytes:
    location = split_uri(uri)
    fsspec_class(location.scheme)
    options: dict[str, Any] = {}
    if location.scheme == "s3":
        environment = s3_environment(location.host)
        options = {"anon": environment.anonymous, "endpoint_url": environment.endpoint}
    try:
        filesystem, path = fsspec.core.url_to_fs(uri, **options)
        info = _call(filesystem, "info", path, settings.attempt_timeout_s)
        if info["type"] != "file":
            raise FetchError("not_a_file", uri, f"a {info['type']}")
        _check_size(info["size"], uri, settings)
        data = _call(filesystem, "cat_file", path, settings.attempt_timeout_s)
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
    _check_size(len(data), uri, settings)
    return data


def _call(filesystem: Any, method: str, path: str, timeout_s: float) -> Any:
    if filesystem.async_impl:
        return fsspec.asyn.sync(filesystem.loop, getattr(filesystem, f"_{method}"), path, timeout=timeout_s)
    return getattr(filesystem, method)(path)


class _HttpGet:
    """One GET with a deadline over everything but name resolution, and a policy over every hop."""

    def __init__(self, uri: str, settings: FetchSettings, policy: AccessPolicy) -> None:
        self.uri = uri  # errors name the manifest's URI, not the last hop's
        self.settings = settings
        self.policy = policy
        self.deadline = time.monotonic() + settings.attempt_timeout_s

    def read(self) -> bytes:
        hop = self.uri
        try:
            for _ in range(_MAX_REDIRECTS + 1):
                with self._response(hop) as response:
                    target = response.getheader("Location")
                    if response.status not in (301, 302, 303, 307, 308) or not target:
                        return self._body(response)
                hop = self._next_hop(hop, target)
        except TimeoutError:
            raise FetchError("timeout", self.uri, "no answer in time") from None
        except ssl.SSLCertVerificationError as error:
            raise FetchError("bad_certificate", self.uri, error.verify_message) from None
        except (OSError, http.client.HTTPException) as error:
            raise FetchError("unavailable", self.uri, type(error).__name__) from None
        raise FetchError("rejected", self.uri, f"more than {_MAX_REDIRECTS} redirects")

    def _next_hop(self, hop: str, target: str) -> str:
        following = urljoin(hop, target)
        downgrade = hop.lower().startswith("https:") and not following.lower().startswith("https:")
        if downgrade or not following.lower().startswith(("http:", "https:")):
            raise FetchError("uri_not_allowed", self.uri, "redirected away from https, or from http altogether")
        try:
            self.policy.check(following)
        except UriError:
            raise FetchError("uri_not_allowed", self.uri, f"redirected to {redact(following)!r}") from None
        return following

    @contextmanager
    def _response(self, hop: str) -> Iterator[http.client.HTTPResponse]:
        scheme, authority, _ = split_uri(hop)
        authority = authority.encode("idna").decode()
        parts = urlsplit(hop)
        # Characters that a request line cannot carry are escaped; what is escaped already stays.
        target = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe="/?%:@!$&'()*+,;=~")
        with self._connect(hop, scheme, authority) as connection:
            connection.settimeout(self._remaining_s())
            connection.sendall(
                f"GET {target} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: maskfleet\r\n"
                "Accept-Encoding: identity\r\nConnection: close\r\n\r\n".encode("ascii")
            )
            wire = _Wire(connection, self._remaining_s)
            with http.client.HTTPResponse(wire, method="GET") as response:  # type: ignore[arg-type]
                response.begin()
                yield response

    def _connect(self, hop: str, scheme: str, authority: str) -> socket.socket:
        parts = urlsplit(f"//{authority}")
        host = parts.hostname or ""
        found = socket.getaddrinfo(host, parts.port or (443 if scheme == "https" else 80), type=socket.SOCK_STREAM)
        for *_, address in found:
            self.policy.check_address(hop, str(address[0]))
        connection = self._first_that_answers([address for *_, address in found])
        if scheme == "http":
            return connection
        try:
            connection.settimeout(self._remaining_s())
            return _tls_context().wrap_socket(connection, server_hostname=host)
        except BaseException:
            connection.close()
            raise

    def _first_that_answers(self, addresses: Sequence[Any]) -> socket.socket:
        for index, address in enumerate(addresses):
            try:
                return socket.create_connection(address[:2], timeout=self._remaining_s())
            except OSError:
                if index == len(addresses) - 1:
                    raise
        raise OSError("the name has no address")

    def _body(self, response: http.client.HTTPResponse) -> bytes:
        if response.status != 200:
            raise FetchError(_code_of_status(response.status), self.uri, f"HTTP {response.status}")
        expected_bytes = response.length
        _check_size(expected_bytes, self.uri, self.settings)
        body = bytearray()
        while chunk := response.read(_READ_SIZE_BYTES):
            body += chunk
            _check_size(len(body), self.uri, self.settings)
        if expected_bytes is not None and len(body) < expected_bytes:
            raise FetchError("unavailable", self.uri, "the connection ended early")
        return bytes(body)

    def _remaining_s(self) -> float:
        remaining_s = self.deadline - time.monotonic()
        if remaining_s <= 0:
            raise TimeoutError
        return remaining_s


class _Wire(io.RawIOBase):
    """The receiving half of a socket: every read gets what is left of the time, so drips do not renew it."""

    def __init__(self, connection: socket.socket, remaining_s: Callable[[], float]) -> None:
        self._connection = connection
        self._remaining_s = remaining_s

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self, _READ_SIZE_BYTES)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._connection.settimeout(self._remaining_s())
        return self._connection.recv_into(buffer)


@lru_cache(maxsize=1)
def _tls_context() -> ssl.SSLContext:
    return ssl.create_default_context()

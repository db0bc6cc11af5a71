"""HTTP GET with ranges for large files, on the standard library. https only, redirects included."""

from __future__ import annotations

import http.client
import ipaddress
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO
from urllib.parse import urlsplit

TIMEOUT_S = 30.0  # without a byte
TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class TransferError(Exception):
    """A request that failed, or broke off.

    Attributes:
        transient: whether the same request may succeed a little later.
        retry_after_s: how long the server asked to wait.
    """

    def __init__(self, message: str, transient: bool, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.transient = transient
        self.retry_after_s = retry_after_s


class Response:
    """A body under way.

    Attributes:
        start: offset of its first byte in the whole file; 0 where the server ignored the range.
        total: size of the whole file in bytes, if the server says.
        validator: what ``If-Range`` can compare: a strong ETag, else Last-Modified, else None.
    """

    def __init__(self, raw: http.client.HTTPResponse) -> None:
        self._raw = raw
        self.start, self.total = _extent(raw)
        etag = raw.headers.get("ETag")
        self.validator: str | None = etag if etag and etag.startswith('"') else raw.headers.get("Last-Modified")

    def blocks(self, size_bytes: int) -> Iterator[bytes]:
        """The body, block by block.

        Raises:
            TransferError: it ended before its announced end.
        """
        offset = self.start
        try:
            while block := self._raw.read(size_bytes):
                offset += len(block)
                yield block
        except (http.client.HTTPException, OSError) as error:
            raise TransferError(f"the connection broke off ({error!r})", transient=True) from error
        if self.total is not None and offset != self.total:
            raise TransferError(f"the connection ended after {offset} of {self.total} bytes", transient=True)


def check_url(url: str) -> None:
    """Let https pass, and http to this machine itself.

    Raises:
        ValueError: any other URL.
    """
    parts = urlsplit(url)
    if not (parts.scheme == "https" and parts.hostname) and not _is_http_loopback(url):
        raise ValueError(f"{url!r}: only https URLs are fetched")


@contextmanager
def open_url(url: str, start: int = 0, validator: str | None = None) -> Iterator[Response]:
    """GET a file, from ``start`` on if it still is the one that ``validator`` stands for.

    Raises:
        TransferError: anything but a body that begins at ``start`` or at 0.
        ValueError: see `check_url`.
    """
    check_url(url)
    headers = {"User-Agent": "maskfleet", "Accept-Encoding": "identity"}
    if start and validator:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    request = urllib.request.Request(url, headers=headers)
    with _connect(request) as raw:
        response = Response(raw)
        if response.start not in (0, start):
            raise TransferError(f"the server sent bytes from {response.start} on, not {start}", transient=True)
        if response.start and response.validator not in (None, validator):
            # Some servers serve the range whatever If-Range says.
            raise FileChanged("the file has changed at its source since the download began", transient=True)
        yield response


class FileChanged(TransferError):
    """What has been fetched before cannot be continued."""


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme != "https" and not (_is_http_loopback(req.full_url) and _is_http_loopback(newurl)):
            raise TransferError(f"refused a redirect to {newurl}: it is not https", transient=False)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _connect(request: urllib.request.Request) -> http.client.HTTPResponse:
    opener = urllib.request.build_opener(_SafeRedirects)
    try:
        raw = opener.open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        with error:
            raise _http_failure(error) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            hint = "behind a proxy with a certificate of its own, name that in SSL_CERT_FILE"
            raise TransferError(f"the server's certificate is not trusted ({error.reason}); {hint}", False) from error
        raise TransferError(f"no connection ({error.reason})", transient=True) from error
    except (http.client.HTTPException, OSError) as error:
        raise TransferError(f"no answer ({error!r})", transient=True) from error
    if raw.headers.get_content_type() == "text/html":
        raw.close()
        raise TransferError("the server sent a web page instead of the file", transient=False)
    return raw


def _http_failure(error: urllib.error.HTTPError) -> TransferError:
    message = f"the server answered {error.code} {error.reason}"
    if error.code == 416:
        return FileChanged(message, transient=True)
    wait = error.headers.get("Retry-After", "") if error.headers else ""
    return TransferError(message, error.code in TRANSIENT_STATUSES, float(wait) if wait.isdecimal() else None)


def _extent(raw: http.client.HTTPResponse) -> tuple[int, int | None]:
    """(first byte, size of the whole file)."""
    if raw.status != 206:
        length = raw.headers.get("Content-Length", "")
        return 0, int(length) if length.isdecimal() else None
    found = _CONTENT_RANGE.fullmatch(raw.headers.get("Content-Range", ""))
    if not found:
        raise TransferError("the server sent a part without saying which", transient=True)
    return int(found[1]), None if found[2] == "*" else int(found[2])


def _is_http_loopback(url: str) -> bool:
    parts = urlsplit(url)
    try:
        return parts.scheme == "http" and ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return parts.scheme == "http" and parts.hostname == "localhost"

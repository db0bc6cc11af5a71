"""HTTP GET of small objects named by a manifest, which nobody trusts: bounded in time, size and where it may lead.

One connection an object. Every redirect passes the policy, and the address that is checked is the address that is
connected to. Proxy variables are not honoured. (`pipeline.storage.download` fetches large files of known origin.)
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from pipeline.storage.access import AccessPolicy
from pipeline.storage.fetch.rules import (
    Allowance,
    Fetched,
    FetchError,
    FetchSettings,
    check_shard,
    check_whole,
    code_of_status,
    no_ranges,
)
from pipeline.storage.uris import TarMember, Uri, UriError, UriText
from pipeline.storage.versions import ObjectVersion

_MAX_REDIRECTS = 5
_READ_SIZE_BYTES = 1 << 16


class HttpGet:
    """One GET with a deadline over everything but name resolution, and a policy over every hop.

    Args:
        uri: what to get, ``http://`` or ``https://``.
        settings: of which the attempt's time counts here.
        policy: what every hop, and the address that it resolves to, must pass.
    """

    def __init__(self, uri: Uri, settings: FetchSettings, policy: AccessPolicy) -> None:
        self.uri = uri  # errors name the manifest's URI, not the last hop's
        self.settings = settings
        self.policy = policy
        self.deadline = time.monotonic() + settings.attempt_timeout_s

    def read(self, allowance: Allowance, member: TarMember | None = None) -> Fetched:
        """The body, and its version as the headers before it tell it.

        Args:
            allowance: how large it may be.
            member: the part of it that is wanted.

        Raises:
            FetchError: why there is none.
            ValueError: no request can be made of the URI, or the policy refuses it (AccessDenied).
        """
        hop = self.uri
        try:
            for _ in range(_MAX_REDIRECTS + 1):
                with self._response(hop, member) as response:
                    target = response.getheader("Location")
                    if response.status not in (301, 302, 303, 307, 308) or not target:
                        data = self._body(response, allowance, member)
                        return Fetched(data, _version(response, len(data)))
                hop = self._next_hop(hop, target)
        except TimeoutError:
            raise FetchError("timeout", self.uri, "no answer in time") from None
        except ssl.SSLCertVerificationError as error:
            raise FetchError("bad_certificate", self.uri, error.verify_message) from None
        except (OSError, http.client.HTTPException) as error:
            raise FetchError("unavailable", self.uri, type(error).__name__) from None
        raise FetchError("rejected", self.uri, f"more than {_MAX_REDIRECTS} redirects")

    def _next_hop(self, hop: Uri, target: str) -> Uri:
        following = urljoin(hop.secret_text, target)
        downgrade = hop.scheme == "https" and not following.lower().startswith("https:")
        if downgrade or not following.lower().startswith(("http:", "https:")):
            raise FetchError("uri_not_allowed", self.uri, "redirected away from https, or from http altogether")
        try:
            checked = Uri(following)
            self.policy.check(checked)
        except UriError:
            raise FetchError("uri_not_allowed", self.uri, f"redirected to {str(UriText(following))!r}") from None
        return checked

    @contextmanager
    def _response(self, hop: Uri, member: TarMember | None) -> Iterator[http.client.HTTPResponse]:
        authority = hop.host.encode("idna").decode()
        parts = urlsplit(hop.secret_text)
        # Characters that a request line cannot carry are escaped; what is escaped already stays.
        target = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe="/?%:@!$&'()*+,;=~")
        wanted = "" if member is None else f"Range: {member.range_header}\r\n"
        with self._connect(hop, authority) as connection:
            connection.settimeout(self._remaining_s())
            connection.sendall(
                f"GET {target} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: maskfleet\r\n"
                "Accept-Encoding: identity\r\nConnection: close\r\n"
                f"{wanted}\r\n".encode("ascii")
            )
            wire = _Wire(connection, self._remaining_s)
            with http.client.HTTPResponse(wire, method="GET") as response:  # type: ignore[arg-type]
                response.begin()
                yield response

    def _connect(self, hop: Uri, authority: str) -> socket.socket:
        parts = urlsplit(f"//{authority}")
        host = parts.hostname or ""
        found = socket.getaddrinfo(host, parts.port or (443 if hop.scheme == "https" else 80), type=socket.SOCK_STREAM)
        for *_, address in found:
            self.policy.check_address(hop, str(address[0]))
        connection = self._first_that_answers([address for *_, address in found])
        if hop.scheme == "http":
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

    def _body(self, response: http.client.HTTPResponse, allowance: Allowance, member: TarMember | None) -> bytes:
        if member is not None and response.status == 416:
            check_whole(self.uri, member, 0)
        if member is not None and response.status in (200, 206):
            check_shard(self.uri, member, _version(response, 0))
        if member is not None and response.status == 200:
            raise no_ranges(self.uri)
        if member is not None and response.status == 206:
            told = response.getheader("Content-Range") or ""
            if not told.startswith(f"bytes {member.offset}-"):
                raise FetchError("rejected", self.uri, "the server sent another range than it was asked for")
            data = self._read_up_to(response, member.size_bytes)
            check_whole(self.uri, member, len(data))
            return data
        if response.status != 200:
            raise FetchError(code_of_status(response.status), self.uri, f"HTTP {response.status}")
        expected_bytes = response.length
        allowance.claim(expected_bytes)
        body = bytearray()
        while chunk := response.read(_READ_SIZE_BYTES):
            body += chunk
            allowance.claim(len(body))
        if expected_bytes is not None and len(body) < expected_bytes:
            raise FetchError("unavailable", self.uri, "the connection ended early")
        return bytes(body)

    def _read_up_to(self, response: http.client.HTTPResponse, size_bytes: int) -> bytes:
        expected = min(size_bytes, size_bytes if response.length is None else response.length)
        body = bytearray()
        while len(body) < size_bytes and (chunk := response.read(min(_READ_SIZE_BYTES, size_bytes - len(body)))):
            body += chunk
        if len(body) < expected:
            raise FetchError("unavailable", self.uri, "the connection ended early")
        return bytes(body)

    def _remaining_s(self) -> float:
        remaining_s = self.deadline - time.monotonic()
        if remaining_s <= 0:
            raise TimeoutError
        return remaining_s


def _version(response: http.client.HTTPResponse, size_bytes: int) -> ObjectVersion:
    names = ("ETag", "Last-Modified", "x-amz-version-id")  # the last one of presigned URLs
    etag, modified, version_id = (response.getheader(name) for name in names)
    try:
        time = parsedate_to_datetime(modified) if modified else None
    except ValueError:
        time = None
    return ObjectVersion.told(size_bytes, etag, time, version_id)


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

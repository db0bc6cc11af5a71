"""URIs as manifests hold them: taken apart, joined to a root, made safe for logs, checked against a policy.

What a string means here:

- ``/data/a?b#c.jpg`` and ``a.jpg``: local paths, taken literally.
- ``file:///data/a%20b.jpg``: a local path, percent-decoded.
- ``s3://bucket/key`` (also ``s3a``, ``s3n``): everything behind the bucket is the key, taken literally, as
  the AWS tools do; ``?`` and ``#`` are legal in keys.
- ``http(s)://host/path?query``: kept as it is.
- ``scheme://...``: whatever fsspec makes of it. Chained URLs (``zip://a.jpg::s3://b/c.zip``) are refused:
  a check of the outer URL would say nothing about the inner one.

Credentials do not belong in URIs: S3 and HTTP with a user name, and any scheme with a password, are refused.
"""

from __future__ import annotations

import ipaddress
import os
import posixpath
import re
import socket
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote

from pipeline.errors import UserError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.]*\]|[^:\[\]@]*)(?::(\d*))?")
_ALIASES = {"s3a": "s3", "s3n": "s3", "local": "file"}
# Their part before "@" names a container, not a person.
_CONTAINER_SCHEMES = frozenset({"abfs", "abfss", "wasb", "wasbs"})
_DEFAULT_PORTS = {"http": "80", "https": "443"}
# Reachable from inside a cloud only, though the addresses look public: Azure's host agent.
_METADATA_ADDRESSES = frozenset({ipaddress.ip_address("168.63.129.16")})
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class UriError(UserError):
    """A URI that cannot be used. The message is redacted.

    Attributes:
        code: ``bad_uri``, ``unsupported_scheme`` or, for :class:`AccessDenied`, ``uri_not_allowed``.
    """

    def __init__(self, message: str, code: str = "bad_uri") -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[UriError], tuple[str, str]]:
        return type(self), (str(self), self.code)


class AccessDenied(UriError):
    """A URI outside what the policy allows."""

    def __init__(self, message: str, code: str = "uri_not_allowed") -> None:
        super().__init__(message, code)


class Location(NamedTuple):
    """A URI taken apart.

    Attributes:
        scheme: lower case, aliases resolved; ``file`` for local paths.
        host: bucket or authority; ``""`` for ``file``. Lower case, without a default port, for http(s).
        path: local path, S3 key, or the URI's path with its leading ``/`` (for http(s) without the query).
    """

    scheme: str
    host: str
    path: str


def split_uri(uri: str) -> Location:
    """Take a URI or local path apart.

    Raises:
        UriError: not a URI that can be read: empty, control characters, credentials, chained, no bucket.
    """
    if not uri or not isinstance(uri, str):
        raise UriError("empty URI")
    if _CONTROL.search(uri):
        raise UriError(f"control character in {redact(uri)!r}")
    scheme, rest = _scheme_and_rest(uri)
    if not scheme:
        return Location("file", "", uri)
    scheme = _ALIASES.get(scheme.lower(), scheme.lower())
    chained = "::" in rest and scheme not in ("file", "s3", *_DEFAULT_PORTS)
    if not _SCHEME.fullmatch(scheme) or chained:
        raise UriError(f"malformed or chained URI: {redact(uri)!r}")
    authority, slash, path = rest.partition("/")
    if scheme == "file":
        if authority not in ("", "localhost"):
            raise UriError(f"a file URI with a host is not a local path: {redact(uri)!r}")
        return Location("file", "", unquote(slash + path))
    if scheme in _DEFAULT_PORTS:
        authority, slash, path = _cut_query(rest)
    host = _checked_host(scheme, authority, uri)
    return Location(scheme, host, path if scheme == "s3" else slash + path)


def redact(uri: str) -> str:
    """The URI without user, password, query and fragment; local paths unchanged. Never raises.

    A URI whose authority makes no sense (a password with an unescaped slash, say) loses everything behind
    its scheme.
    """
    scheme, rest = _scheme_and_rest(uri)
    if not scheme:
        return uri
    authority, slash, path = _cut_query(rest)
    user, at, host = authority.rpartition("@")
    if not _HOST_AND_PORT.fullmatch(host) or not _SCHEME.fullmatch(scheme):
        return f"{scheme.rpartition('::')[2]}://..."
    if scheme.lower() in _CONTAINER_SCHEMES and ":" not in user:
        host = user + at + host
    return f"{scheme}://{host}{slash}{path}"


def absolute(uri: str) -> str:
    """A local path made absolute, so that it means the same in every process; any other URI as it is."""
    location = split_uri(uri)
    return os.path.abspath(location.path) if location.scheme == "file" else uri


def join(root: str, uri: str) -> str:
    """An absolute path or URI as it is; a relative one below ``root``.

    Args:
        root: a local directory or a URI; ``""`` if there is none.
        uri: as it stands in the manifest.

    Raises:
        AccessDenied: the relative path climbs out of the root.
        UriError: empty, or relative without a root, or a root with a query.
    """
    if not uri:
        raise UriError("empty URI")
    if _scheme_and_rest(uri)[0] or uri.startswith("/"):
        return uri
    if not root:
        raise UriError(f"the relative path {uri!r} needs an image root")
    below = posixpath.normpath(uri)
    if below == ".." or below.startswith("../"):
        raise AccessDenied(f"{uri!r} climbs out of the image root {redact(root)!r}")
    location = split_uri(root)
    if location.scheme == "file":
        return os.path.join(location.path, below)
    if location.scheme != "s3" and redact(root) != root:
        raise UriError(f"an image root must not have a query: {redact(root)!r}")
    return root.rstrip("/") + "/" + below


@dataclass(frozen=True)
class AccessPolicy:
    """What may be read on behalf of a manifest.

    Attributes:
        roots: prefixes, compared component by component: ``s3://bucket/prefix``, ``https://host/``,
            ``/data/images``, ``file:///data``. ``None`` allows everything but internal hosts; an empty tuple
            allows nothing.

    http(s) hosts with a loopback, link-local, private or metadata address are refused unless a root names
    that very host. A name is judged by the address it resolves to: :meth:`check_address`, which whoever
    opens the connection calls with the address it connects to.

    Local paths are resolved (symbolic links, ``..``) before the comparison. Who can change links inside a
    root between check and open is trusted.
    """

    roots: tuple[str, ...] | None = None

    def check(self, uri: str) -> None:
        """Raise unless the URI may be read.

        Raises:
            AccessDenied: it is outside the roots, contains ``.`` or ``..`` segments, or is an internal host.
            UriError: it is malformed.
        """
        location = split_uri(uri)
        if location.scheme != "file" and _has_dot_segments(location):
            raise AccessDenied(f"'.' and '..' have no place in {redact(uri)!r}")
        if self.roots is not None:
            candidate = _components(location)
            if not any(_is_below(candidate, _root_components(root)) for root in self.roots):
                raise AccessDenied(f"{redact(uri)!r} is outside the allowed roots")
        address = _literal_address(location.host) if location.scheme in _DEFAULT_PORTS else None
        if address is not None:
            self.check_address(uri, address)

    def check_address(self, uri: str, address: str) -> None:
        """Raise if the http(s) URI leads to an internal address and no root names its host.

        Args:
            uri: the URI whose host was resolved.
            address: IPv4 or IPv6, numeric.
        """
        host = split_uri(uri).host
        named = any(split_uri(root).host == host for root in self.roots or ())
        if _is_internal(address) and not named:
            raise AccessDenied(f"{redact(uri)!r} leads to an internal address")


def _scheme_and_rest(uri: str) -> tuple[str, str]:
    scheme, separator, rest = uri.partition("://")
    return (scheme, rest) if separator and "/" not in scheme else ("", uri)


def _cut_query(rest: str) -> tuple[str, str, str]:
    return re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")


def _checked_host(scheme: str, authority: str, uri: str) -> str:
    user, at, host = authority.rpartition("@")
    match = _HOST_AND_PORT.fullmatch(host)
    if not match or ":" in user or (at and scheme in ("s3", *_DEFAULT_PORTS)):
        raise UriError(f"malformed host, or credentials in the URI: {redact(uri)!r}")
    if scheme not in _DEFAULT_PORTS:
        if not host and scheme == "s3":
            raise UriError(f"no bucket in {redact(uri)!r}")
        return authority
    name, port = match[1].lower().rstrip("."), match[2]
    if not name or (port and int(port) > 65535):
        raise UriError(f"no usable host in {redact(uri)!r}")
    return name if not port or port == _DEFAULT_PORTS[scheme] else f"{name}:{port}"


def _has_dot_segments(location: Location) -> bool:
    # URL parsers on the way resolve encoded dots too; S3 keys and others are taken literally.
    path = unquote(location.path).replace("\\", "/") if location.scheme in _DEFAULT_PORTS else location.path
    return any(segment in (".", "..") for segment in path.split("/"))


def _components(location: Location) -> tuple[str, ...]:
    path = os.path.realpath(location.path) if location.scheme == "file" else location.path
    if location.scheme in _DEFAULT_PORTS:
        path = unquote(path)
    segments = path.strip("/").split("/") if path.strip("/") else []
    return (location.scheme, location.host, *segments)


@lru_cache(maxsize=256)
def _root_components(root: str) -> tuple[str, ...]:
    return _components(split_uri(root))


def _is_below(candidate: tuple[str, ...], root: tuple[str, ...]) -> bool:
    return candidate[: len(root)] == root


def _literal_address(host: str) -> str | None:
    """The address a host spells out, in any way a resolver understands (``127.1``, ``0x7f000001``)."""
    match = _HOST_AND_PORT.fullmatch(host)
    name = match[1].strip("[]") if match else host
    if name == "localhost" or name.endswith(".localhost"):
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(name))
    except OSError:
        return None


def _is_internal(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            ip = inner
    return not ip.is_global or ip.is_multicast or ip in _METADATA_ADDRESSES

"""What may be read on behalf of a manifest that nobody trusts."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote

from pipeline.storage.uris import AccessDenied, Uri

# Reachable from inside a cloud only, though the addresses look public: Azure's host agent.
_METADATA_ADDRESSES = frozenset({ipaddress.ip_address("168.63.129.16")})
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_NAME_AND_PORT = re.compile(r"(\[.*\]|[^:]*)(?::\d*)?")


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

    roots: tuple[Uri, ...] | None = None

    def check(self, uri: Uri) -> None:
        """Raise unless the URI may be read.

        Raises:
            AccessDenied: it is outside the roots, contains ``.`` or ``..`` segments, or is an internal host.
        """
        if uri.scheme != "file" and _has_dot_segments(uri):
            raise AccessDenied(f"'.' and '..' have no place in {str(uri)!r}")
        if self.roots is not None:
            place = uri.place
            if not any(place[: len(root)] == root for root in map(_place_of_root, self.roots)):
                raise AccessDenied(f"{str(uri)!r} is outside the allowed roots")
        address = _literal_address(uri.host) if uri.is_http else None
        if address is not None:
            self.check_address(uri, address)

    def check_address(self, uri: Uri, address: str) -> None:
        """Raise if the http(s) URI leads to an internal address and no root names its host.

        Args:
            uri: the URI whose host was resolved.
            address: IPv4 or IPv6, numeric.
        """
        named = any(root.host == uri.host for root in self.roots or ())
        if _is_internal(address) and not named:
            raise AccessDenied(f"{str(uri)!r} leads to an internal address")


@lru_cache(maxsize=256)
def _place_of_root(root: Uri) -> tuple[str, ...]:
    """Links are resolved once in a process, and not for every image."""
    return root.place


def _has_dot_segments(uri: Uri) -> bool:
    # URL parsers on the way resolve encoded dots too; S3 keys and others are taken literally.
    path = unquote(uri.path).replace("\\", "/") if uri.is_http else uri.path
    return any(segment in (".", "..") for segment in path.split("/"))


def _literal_address(host: str) -> str | None:
    """The address a host spells out, in any way a resolver understands (``127.1``, ``0x7f000001``)."""
    match = _NAME_AND_PORT.fullmatch(host)
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

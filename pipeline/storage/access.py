"""What may be read on behalf of a manifest that nobody trusts."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote

from pipeline.storage.uris import HTTP_PORTS, OBJECT_STORES, AccessDenied, Uri

# A URI of any other scheme names a host of its own choosing, which nobody judges: ftp, sftp, smb, hdfs, webhdfs (it
# follows redirects), github, ...
_SCHEMES_WITHOUT_ROOTS = frozenset({"file", *OBJECT_STORES, *HTTP_PORTS})
# IANA's registries of special-purpose addresses, and what reaches something inside a cloud only: Azure's host agent.
# (Oracle's metadata are in 192.0.0.0/24, Alibaba's in 100.64.0.0/10, those of AWS in fc00::/7 and 169.254.0.0/16.)
_V4_NETWORKS = """
0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24 192.31.196.0/24
192.52.193.0/24 192.88.99.0/24 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4
240.0.0.0/4 168.63.129.16/32
"""
_V6_NETWORKS = "2001::/23 2001:db8::/32 2620:4f:8000::/48 3fff::/20"
_NOT_PUBLIC_V4 = tuple(map(ipaddress.IPv4Network, _V4_NETWORKS.split()))
_NOT_PUBLIC_V6 = tuple(map(ipaddress.IPv6Network, _V6_NETWORKS.split()))
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")  # but for the above
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_MOST_DECODERS = 8  # proxies and servers on the way; the time that decoding takes goes with their number
_NAME_AND_PORT = re.compile(r"(\[.*\]|[^:]*)(?::\d*)?")


@dataclass(frozen=True)
class AccessPolicy:
    """What may be read on behalf of a manifest.

    Attributes:
        roots: prefixes, compared component by component: ``s3://bucket/prefix``, ``https://host/``,
            ``/data/images``, ``file:///data``. ``None`` allows local files, object stores, and http(s) but for
            internal hosts; an empty tuple allows nothing. Every other scheme needs a root that names it, and the
            host that the root names is trusted with what it redirects to.

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
            AccessDenied: it is outside the roots, contains ``.`` or ``..`` segments, or is an internal host. Keys of S3
                may contain them where there are no roots: some gateway before the store could resolve them.
        """
        takes_dots = uri.scheme == "file" or (uri.scheme == "s3" and self.roots is None)
        if not takes_dots and _has_dot_segments(uri):
            raise AccessDenied(f"'.' and '..' have no place in {str(uri)!r}")
        if self.roots is None:
            if uri.scheme not in _SCHEMES_WITHOUT_ROOTS:
                raise AccessDenied(
                    f"{str(uri)!r}: {uri.scheme}:// is read only below a root that names it; set images.allowed_roots"
                )
        else:
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
        named = any(root.is_http and root.host == uri.host for root in self.roots or ())
        if _is_internal(address) and not named:
            raise AccessDenied(f"{str(uri)!r} leads to an internal address")


@lru_cache(maxsize=256)
def _place_of_root(root: Uri) -> tuple[str, ...]:
    """Links are resolved once in a process, and not for every image."""
    return root.place


def _has_dot_segments(uri: Uri) -> bool:
    path = uri.path
    if uri.is_http:
        # URL parsers on the way resolve encoded dots too, one after the other perhaps, and servers cut off what
        # follows a semicolon. Keys and others are taken literally.
        for _ in range(_MOST_DECODERS):
            path, before = unquote(path), path
            if path == before:
                break
        else:
            return True  # nobody encodes a path so often but to hide what is in it
        path = re.sub(r";[^/\\]*", "", path).replace("\\", "/")
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
        if inner is None:
            return ip not in _PUBLIC_V6 or any(ip in network for network in _NOT_PUBLIC_V6)
        ip = inner
    return any(ip in network for network in _NOT_PUBLIC_V4)

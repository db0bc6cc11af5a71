"""URIs as values: parsed once, compared in one way, and without their secrets wherever they are shown.

What a string means here:

- ``/data/a?b#c.jpg`` and ``a.jpg``: local paths, taken literally.
- ``file:///data/a%20b.jpg``: a local path, percent-decoded.
- ``s3://bucket/key`` (also ``s3a``, ``s3n``): everything behind the bucket is the key, taken literally, as
  the AWS tools do: ``?``, ``#``, ``%``, ``//`` and ``..`` are characters like others. So are those of the other
  object stores (`OBJECT_STORES`), in which a URI names a bucket or container and no host.
- ``http(s)://host/path?query``: kept as it is.
- ``tar+s3://bucket/shard.tar#1024+5000@etag``: a member of a tar shard, `TarMember`; what stands between ``tar+`` and
  the last ``#`` is one of the above. No key or path begins so.
- ``scheme://...``: whatever fsspec makes of it. Chained URLs (``zip://a.jpg::s3://b/c.zip``) are refused:
  a check of the outer URL would say nothing about the inner one.

Credentials do not belong in URIs: S3 and HTTP with a user name, and any scheme with a password, are refused.

Text that may hold a secret is a `UriText`, and a `Uri` once it was parsed; ``str`` of either is fit to be printed,
written and sent. What must see all of it, to open it, says so: ``secret_text``. What is hidden: user, password, query
and fragment; in the key of an object store, which has neither of the last two, only what looks like a signature that
came along from a URL (``?X-Amz-Signature=``, ``#sig=``). What is no URI but would be one for a browser or with a typing
error mended (``https:/host``, ``//host``, a blank before it) hides the same.
"""

from __future__ import annotations

import os
import posixpath
import re
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import quote, unquote

from pipeline.errors import UserError

if TYPE_CHECKING:  # who only asks for a command's help waits for neither
    import pyarrow as pa
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

HTTP_PORTS = {"http": "80", "https": "443"}

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.]*\]|[^:\[\]@]*)(?::(\d*))?")
# Of S3, Google and Azure, old names too. What else a name held, some client would take for a host, port or path.
_BUCKET = re.compile(r"(?:[A-Za-z0-9._$\-]{1,255}@)?[A-Za-z0-9._$\-]{1,255}")
_ALIASES = {"s3a": "s3", "s3n": "s3", "local": "file"}
# Their part before "@" names a container, not a person.
_CONTAINER_SCHEMES = frozenset({"abfs", "abfss", "wasb", "wasbs"})
OBJECT_STORES = frozenset({"s3", "gs", "gcs", "az", "abfs", "abfss"})
# Parameters as AWS, Google, Azure and others call what signs or opens, wherever they stand.
_SECRET_PARAMETER = re.compile(
    r"[?#&;][^?#&;=/]*(?:sig|secret|token|passw|pwd|credential|delegation|access_?key|accessid)[^?#&;=/]*=",
    re.IGNORECASE,
)
_URL_BY_MISTAKE = re.compile(
    r"[\x00-\x20]*(?:https?(?::|%3A)|[A-Z][A-Z0-9+.\-]+(?::|%3A)(?=[/\\]|%2F|%5C)|(?=[/\\]{2}))(?:[/\\]|%2F|%5C)*",
    re.IGNORECASE,
)
# The length of a scheme is bounded, or a long word without one would take quadratic time. It ends at white space and
# double quotes alone: a secret may hold any other character, and what is hidden too much does no harm.
_URI_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]{0,40}://[^\s\"]+")

_TAR = "tar+"
_MEMBER = re.compile(r"tar\+((?!tar\+).+)#(\d{1,18})\+(\d{1,18})@([^#]*)", re.DOTALL)

Kind = TypeVar("Kind", bound="UriText")


class UriError(UserError):
    """A URI that cannot be used. The message holds no secrets.

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


class UriText:
    """Text that may be a URI, a path or a plain name, as a user or a table gave it; nobody has parsed it yet.

    ``str()`` and ``repr()`` leave out user, password, query and fragment; paths, keys and names they show as they are.
    Immutable, hashable, picklable; in a config it is validated from a string, and JSON gets what ``str()`` gives.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    @property
    def secret_text(self) -> str:
        """All of it, for what opens it: never for a message, a log or a file."""
        return self._text

    @property
    def holds_secrets(self) -> bool:
        """Whether something is left out where it is shown: credentials, a query, what may be either."""
        return str(self) != self._text

    def hide_in(self, text: str) -> str:
        """A text of others, such as an error of a library, that may quote this or other URIs: without their secrets."""
        return hide_secrets(text.replace(self._text, str(self)) if self._text else text)

    def __str__(self) -> str:
        return redact(self._text)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.secret_text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> tuple[type[UriText], tuple[str]]:
        return type(self), (self._text,)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_wrap_validator_function(
            lambda value, read: value if isinstance(value, cls) else cls(read(value)),
            core_schema.str_schema(min_length=1),
            serialization=core_schema.to_string_ser_schema(when_used="json"),
        )


class Uri(UriText):
    """A URI or local path that has been parsed.

    Args:
        text: a URI or path as people write it; the module says what it means.

    Raises:
        UriError: not a URI that can be read: empty, control characters, credentials, chained, no bucket.
    """

    __slots__ = ("_location",)

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._location = _parse(text, UriText(text))

    @property
    def scheme(self) -> str:
        """Lower case, aliases resolved; ``file`` for local paths."""
        return self._location.scheme

    @property
    def host(self) -> str:
        """Bucket or authority; ``""`` for ``file``. Lower case, without a default port, for http(s)."""
        return self._location.host

    @property
    def path(self) -> str:
        """Local path, S3 key, or the URI's path with its leading ``/`` (for http(s) without the query)."""
        return self._location.path

    @property
    def is_http(self) -> bool:
        """Whether it is http(s), which nothing can be written to."""
        return self.scheme in HTTP_PORTS

    @property
    def local_path(self) -> str | None:
        """The absolute path of a local one; ``None`` for others."""
        if self.scheme != "file":
            return None
        return "/" + os.path.abspath(self.path).lstrip("/")  # of "//", which POSIX keeps, a browser makes a host

    @property
    def place(self) -> tuple[str, ...]:
        """Scheme, host and components of the path: a place is below another one if it begins with it.

        Local paths are resolved (symbolic links, ``..``), those of http(s) are percent-decoded.
        """
        path = os.path.realpath(self.path) if self.scheme == "file" else self.path
        path = (unquote(path) if self.is_http else path).strip("/")
        return (self.scheme, self.host, *(path.split("/") if path else ()))

    def is_below(self, other: Uri) -> bool:
        """Whether this lies in the other place, or is it."""
        place = other.place
        return self.place[: len(place)] == place

    def is_at(self, other: Uri) -> bool:
        """Whether both are one place, however they are written."""
        return self.place == other.place

    def absolute(self) -> Uri:
        """A local path made absolute, so that it means the same in every process; any other URI as it is.

        So is ``//host/x?sig=...``: without its first slash nothing would tell that it holds a secret.
        """
        return self if self.local_path is None or self.holds_secrets else Uri(self.local_path)

    def __truediv__(self, name: str) -> Uri:
        """A file or folder in this one, under a name that needs no check."""
        return Uri(self.below(name))

    def below(self, name: str) -> str:
        """The text of a URI in this one, the name taken to the letter, whether or not it can be read."""
        root = self.path if self.scheme == "file" else self._text
        return f"{root.rstrip('/')}/{name}"

    def join(self, relative: str) -> UriText:
        """A path below this root that somebody else wrote.

        Keys of an object store are taken literally, but for a leading ``./``, which people write to say "here".

        Raises:
            AccessDenied: it climbs out of the root.
            UriError: the root has a query.
        """
        below = posixpath.normpath(relative)
        if below == ".." or below.startswith("../"):
            raise AccessDenied(f"{_without_query(relative)!r} climbs out of the image root {str(self)!r}")
        if self.holds_secrets:
            raise UriError(f"an image root must not have a query: {str(self)!r}")
        return UriText(self.below(relative.removeprefix("./") if self.scheme in OBJECT_STORES else below))


class TarMember(NamedTuple):
    """Where a picture lies in a tar shard, so that its URI alone fetches it: ``tar+SHARD#OFFSET+SIZE@VERSION``.

    Attributes:
        shard: the shard's URI, with its scheme.
        offset: of the first byte.
        size_bytes: of the content.
        version: `pipeline.storage.versions.ObjectVersion.token` of the shard that was indexed: of any other one the
            offset means nothing. ``""``: not known.
    """

    shard: str
    offset: int
    size_bytes: int
    version: str = ""

    @classmethod
    def of(cls, text: str) -> TarMember | None:
        """What a URI names, ``None`` if that is no member of a shard."""
        found = _MEMBER.fullmatch(text)
        return found and cls(found[1], int(found[2]), int(found[3]), unquote(found[4]))

    @property
    def range_header(self) -> str:
        """As HTTP asks for it."""
        return f"bytes={self.offset}-{self.offset + self.size_bytes - 1}"

    @property
    def text(self) -> str:
        """The URI."""
        return f"{_TAR}{self.shard}#{self.offset}+{self.size_bytes}@{quote(self.version, safe='')}"


class _Location(NamedTuple):
    scheme: str
    host: str
    path: str


def resolve(text: str, root: Uri | None) -> UriText:
    """An image's URI as a manifest has it: an absolute path or URI as it is, a relative one below the root.

    Raises:
        AccessDenied: the relative path climbs out of the root.
        UriError: empty, or relative without a root, or a root with a query; or a URL with a typing error, whose secrets
            a path below the root would show.
    """
    if not text:
        raise UriError("empty URI")
    if _scheme_and_rest(text)[0] or text.startswith("/"):
        return UriText(text)
    if root is None:
        raise UriError(f"the relative path {_without_query(text)!r} needs an image root")
    if (mistake := UriText(text)).holds_secrets:
        raise UriError(f"{str(mistake)!r} is neither a URI nor a path, and has a query or credentials")
    return root.join(text)


def hide_column(uris: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column of URIs as it may be written: each as ``str(UriText(...))``, null stays null."""
    import pyarrow as pa

    return pa.array([None if text is None else redact(text) for text in uris.to_pylist()], pa.string())


def shows_password(text: UriText) -> bool:
    """Whether ``user:password@host`` stands where no scheme tells that it is that, so that it is shown."""
    return re.match("[^/]*:.*@", str(text)) is not None


def hide_secrets(text: str) -> str:
    """A text of others with the secrets of every URI in it hidden."""

    def hide(found: re.Match[str]) -> str:
        uri = found[0].rstrip(":;,.)]}>'`")  # those behind it are the sentence's
        return redact(uri) + found[0][len(uri) :]

    return _URI_IN_TEXT.sub(hide, text)


def redact(text: str) -> str:
    """A URI without what the module calls secret; local paths, file URIs too, unchanged. Never raises.

    A URI whose authority makes no sense (a password with an unescaped slash, say) loses everything behind
    its scheme.
    """
    if (member := TarMember.of(text)) is not None:
        return member._replace(shard=redact(member.shard)).text
    scheme, rest = _scheme_and_rest(text)
    if not scheme:
        return _redact_mistake(text)
    if not _SCHEME.fullmatch(scheme):
        inner = scheme.rpartition("::")[2].strip()
        return f"{inner if _SCHEME.fullmatch(inner) else ''}://..."
    kind = _ALIASES.get(scheme.lower(), scheme.lower())
    if kind == "file" and rest.startswith("/"):
        return text
    if kind in OBJECT_STORES:
        authority, slash, path = rest.partition("/")
        if _SECRET_PARAMETER.search(path) or not _BUCKET.fullmatch(authority):  # hardly a key, then
            path = _without_query(path)
    else:
        authority, slash, path = _without_parameters(rest).partition("/")
    user, at, host = authority.rpartition("@")
    host = _without_query(host)
    if not _HOST_AND_PORT.fullmatch(host):
        return f"{scheme}://..."
    if kind in _CONTAINER_SCHEMES and ":" not in user:
        host = user + at + host
    return f"{scheme}://{host}{slash}{path}"


def _redact_mistake(text: str) -> str:
    match = _URL_BY_MISTAKE.match(text)
    if match is None:
        return text
    rest = _without_parameters(text[match.end() :])
    authority = re.split(r"[/\\]", rest, maxsplit=1)[0]
    return match[0] + authority.rpartition("@")[2] + rest[len(authority) :]


def _without_parameters(rest: str) -> str:
    """Up to query, fragment, or path parameter (``;sig=``)."""
    secret = _SECRET_PARAMETER.search(rest)
    return _without_query(rest[: secret.start()] if secret else rest)


def _parse(text: str, shown: UriText) -> _Location:
    """Take a URI or local path apart; ``shown`` stands for it in messages."""
    if not text:
        raise UriError("empty URI")
    if _CONTROL.search(text):
        raise UriError(f"control character in {str(shown)!r}")
    scheme, rest = _scheme_and_rest(text)
    if not scheme:
        return _Location("file", "", text)
    scheme = _ALIASES.get(scheme.lower(), scheme.lower())
    chained = "::" in rest and scheme not in ("file", *OBJECT_STORES, *HTTP_PORTS)
    if not _SCHEME.fullmatch(scheme) or chained:
        raise UriError(f"malformed or chained URI: {str(shown)!r}")
    authority, slash, path = rest.partition("/")
    if scheme == "file":
        if authority not in ("", "localhost"):
            raise UriError(f"a file URI with a host is not a local path: {str(shown)!r}")
        # As Python names files: what is not UTF-8 are lone surrogates.
        return _Location("file", "", unquote(slash + path, errors="surrogateescape"))
    if scheme in HTTP_PORTS:
        authority, slash, path = _without_query(rest).partition("/")
    host = _checked_host(scheme, authority, shown)
    return _Location(scheme, host, path if scheme == "s3" else slash + path)


def _scheme_and_rest(text: str) -> tuple[str, str]:
    scheme, separator, rest = text.partition("://")
    return (scheme, rest) if separator and "/" not in scheme else ("", text)


def _without_query(rest: str) -> str:
    return re.split(r"[?#]", rest, maxsplit=1)[0]


def _checked_host(scheme: str, authority: str, shown: UriText) -> str:
    user, at, host = authority.rpartition("@")
    match = _HOST_AND_PORT.fullmatch(host)
    if not match or ":" in user or (at and scheme in ("s3", *HTTP_PORTS)):
        raise UriError(f"malformed host, or credentials in the URI: {str(shown)!r}")
    if scheme not in HTTP_PORTS:
        if scheme in OBJECT_STORES and not _BUCKET.fullmatch(authority):
            raise UriError(f"no bucket, or no such name for one, in {str(shown)!r}")
        return authority
    name, port = match[1].lower().rstrip("."), match[2]
    if not name or (port and int(port) > 65535):
        raise UriError(f"no usable host in {str(shown)!r}")
    return name if not port or port == HTTP_PORTS[scheme] else f"{name}:{port}"

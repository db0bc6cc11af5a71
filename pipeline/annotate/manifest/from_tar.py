"""Tar shards, as WebDataset writes them, as a manifest: what is indexed is read as ranges of the shards."""

from __future__ import annotations

import io
import logging
import os
import posixpath
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote

import pyarrow as pa
import pyarrow.fs as pafs

from pipeline.annotate.config import ManifestConfig
from pipeline.annotate.manifest.parquet_copy import UnitWriter
from pipeline.annotate.manifest.rules import BYTES, ID, NUMBER, UNSHOWABLE, URI, Columns, ManifestError, ManifestParts
from pipeline.annotate.manifest.versions import COPIED, listed_versions, named_by_user
from pipeline.images.left_out import LeftOut
from pipeline.storage.access import AccessPolicy
from pipeline.storage.errors import StorageError, cannot_read, not_there
from pipeline.storage.fetch.fetcher import Fetcher
from pipeline.storage.fetch.rules import FetchError
from pipeline.storage.filesystems import open_filesystem
from pipeline.storage.listing import is_folder, is_hidden, list_files
from pipeline.storage.streams import open_stream
from pipeline.storage.uris import TarMember, Uri, UriText
from pipeline.storage.versions import ObjectVersion, version_of_bytes

SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")

_FIRST_BYTES = 1 << 16
_FAR_BYTES = 1 << 14  # a header, and the long name before it
_NEAR_BYTES = 1 << 23  # where members are small a request for each header takes longer than all of the bytes
_SMALL_MEMBER_BYTES = 1 << 20
_MEMBERS_AT_ONCE = 4096
_COPIED_BYTES_AT_ONCE = 1 << 26  # of pictures, in a row group of the copy of a compressed shard
_BRACES = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(\d+)\.\.(\d+)")
_MAX_SHARDS = 1_000_000

logger = logging.getLogger(__name__)


def read_shards(config: ManifestConfig, scratch_uri: Uri) -> ManifestParts:
    """The pictures in a tar shard, in all shards of a folder, or in ``shard-{000000..000099}.tar``.

    Ids are ``shard.tar/name of the member``, as if each shard were unpacked into a folder of its name; the shards of a
    folder are called by their paths in it. Pictures are told by their suffixes. Links, sparse files and devices are
    counted and left out. Pictures of compressed shards, of which no range can be read, are copied to the scratch
    folder.

    Of a shard that is cut off all that its headers tell of is in the manifest; what cannot be read is found then.
    """
    if config.carry or named_by_user(config):
        raise ManifestError(f"{config.uri} is made of tar shards: it has no columns")
    shards = _shards(config.uri, scratch_uri)
    left_out = LeftOut()
    has_bytes = any(_is_compressed(shard) for _, shard in shards)
    number = 0
    with UnitWriter(scratch_uri) as writer:
        for name, shard in shards:
            members = _read_compressed(shard) if _is_compressed(shard) else _index(shard)
            pictures = (each for each in members if not is_hidden(each.name) and not left_out.takes(each.name))
            for some in _in_groups(pictures):
                versions = listed_versions([member.version for member in some])
                columns = {
                    ID: pa.array([f"{name}/{_shown(member.name)}" for member in some], pa.string()),
                    URI: pa.array([member.uri for member in some], pa.string()),
                    NUMBER: pa.array(range(number + 1, number + len(some) + 1), pa.int64()),
                    **{column: versions[column] for column in versions.column_names},
                }
                if has_bytes:
                    columns[BYTES] = pa.array([member.content for member in some], pa.binary())
                writer.write(pa.table(columns))
                if some[-1].content is not None:
                    writer.flush()
                number += len(some)
    if not number:
        raise ManifestError(f"{config.uri} has no image{f'; {left_out}' if left_out.count else ''}")
    if left_out.count:
        logger.warning("%s: %s", config.uri, left_out)
    columns_of_copy = Columns(ID, URI, BYTES if has_bytes else None, NUMBER, COPIED)
    return ManifestParts(writer.units, columns_of_copy, pa.string(), pa.schema([]), None, "picture")


def expand_braces(text: str) -> list[str]:
    """The names that ``{000..099}`` and ``{a,b}`` stand for, as in a shell; the text alone if it has neither.

    Raises:
        ManifestError: they are too many.
    """
    texts = [text]
    while (found := _BRACES.search(texts[0])) is not None and (choices := _choices(found[1])):
        if len(texts) * len(choices) > _MAX_SHARDS:
            raise ManifestError(f"{found[0]} stands for too many shards")
        # The first braces are the same in all of them, but what was put before these differs.
        cut = [_BRACES.split(one, maxsplit=1) for one in texts]
        texts = [f"{before}{choice}{after}" for before, _, after in cut for choice in choices]
    return texts


def _choices(inner: str) -> list[str]:
    numbers = _NUMBERS.fullmatch(inner)
    if numbers is None:
        return inner.split(",") if "," in inner else []
    first, last = int(numbers[1]), int(numbers[2])
    if abs(last - first) >= _MAX_SHARDS:
        raise ManifestError(f"{{{inner}}} stands for too many shards")
    padded = any(len(text) > 1 and text[0] == "0" for text in numbers.groups())
    width = max(map(len, numbers.groups())) if padded else 0
    step = 1 if last >= first else -1
    return [str(value).zfill(width) for value in range(first, last + step, step)]


@dataclass(frozen=True)
class _Found:
    """A member, and where its bytes are: there, or here."""

    name: str
    uri: str | None
    version: ObjectVersion
    content: bytes | None = None


def _shards(uri: Uri, scratch_uri: Uri) -> list[tuple[str, Uri]]:
    texts = expand_braces(uri.secret_text)
    if len(texts) == 1 and not uri.is_http and is_folder(uri):
        root = uri.absolute()
        names = [file.path for file in list_files(uri, scratch_uri) if file.path.lower().endswith(SHARD_SUFFIXES)]
        if not names:
            raise ManifestError(f"{uri} holds no tar shard ({', '.join(SHARD_SUFFIXES)})")
        return [(_shown(name), Uri(root.below(name))) for name in names]
    uris = [Uri(text).absolute() for text in texts]
    names = [posixpath.basename(one.path) for one in uris]
    if len(set(names)) < len(names):  # data/{train,val}/0.tar
        shared = len(posixpath.commonpath([posixpath.dirname(one.path) for one in uris]))
        names = [one.path[shared:].lstrip("/") for one in uris]
    return [(_shown(name), one) for name, one in zip(names, uris, strict=True)]


def _is_compressed(shard: Uri) -> bool:
    return shard.path.lower().endswith((".gz", ".tgz"))


def _in_groups(members: Iterator[_Found]) -> Iterator[list[_Found]]:
    some: list[_Found] = []
    held = 0
    for member in members:
        some.append(member)
        held += len(member.content or b"")
        if len(some) == _MEMBERS_AT_ONCE or held >= _COPIED_BYTES_AT_ONCE:
            yield some
            some, held = [], 0
    if some:
        yield some


def _shown(name: str) -> str:
    return quote(os.fsencode(name)) if UNSHOWABLE.search(name) else name


def _place(shard: Uri) -> str:
    """The shard in the URIs of its members."""
    return shard.secret_text if shard.scheme != "file" else f"file://{quote(os.fsencode(shard.path))}"


def _index(shard: Uri) -> Iterator[_Found]:
    file = ShardFile(shard)
    for member in _members(file, shard):
        where = TarMember(_place(shard), member.offset_data, member.size, file.version.token)
        yield _Found(
            member.name.removeprefix("./"), where.text, file.version._replace(size_bytes=member.size, version_id=None)
        )


def _read_compressed(shard: Uri) -> Iterator[_Found]:
    with open_stream(shard) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]
                    if _is_plain(member) and (content := tar.extractfile(member)) is not None:
                        data = content.read()
                        yield _Found(member.name.removeprefix("./"), None, version_of_bytes(data), data)
        except tarfile.TarError as error:
            raise ManifestError(f"{shard} is cut off or damaged: {error}") from None


def _members(file: ShardFile, shard: Uri) -> Iterator[tarfile.TarInfo]:
    others, end = 0, -1
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            end = 0
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # or it would keep all of them
                if _is_plain(member):
                    yield member
                elif not member.isdir():
                    others += 1
            end = tar.offset
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
        if any(block) and len(block) == tarfile.BLOCKSIZE:
            raise ManifestError(f"{shard} is damaged at byte {end}: no header of a tar is there")
        if len(block) < tarfile.BLOCKSIZE:
            logger.warning("%s is cut off at byte %d: what followed is lost", shard, file.size_bytes)
    except tarfile.TarError as error:
        if end < 0 or tar.offset <= file.size_bytes:
            raise ManifestError(f"{shard} is no tar, or damaged: {error}") from None
        logger.warning("%s is cut off at byte %d: what followed is lost", shard, file.size_bytes)
    if others:
        logger.warning("%s: %d links, sparse or special files are left out", shard, others)


def _is_plain(member: tarfile.TarInfo) -> bool:
    return member.isreg() and not member.issparse()


class ShardFile(io.RawIOBase):
    """A shard whose reads are few ranges, for `tarfile`, which jumps from header to header.

    Attributes:
        size_bytes: of the shard.
        version: of the shard; known from the first read on. A shard that changes meanwhile is refused.
        num_requests: so far.
        num_bytes: that they brought.
    """

    def __init__(self, shard: Uri) -> None:
        filesystem, path = open_filesystem(shard)
        try:
            info = filesystem.get_file_info(path)
        except OSError as error:
            raise cannot_read(shard, error) from None
        if info.type == pafs.FileType.NotFound:
            raise not_there(shard, filesystem, path)
        self.version = ObjectVersion()
        self.num_requests = self.num_bytes = 0
        self._shard = shard
        self.size_bytes: int = info.size
        self._at = self._start = 0
        self._window = b""
        self._jumps = self._jumped = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size_bytes}[whence]
        if at > self._at:
            self._jumps, self._jumped = self._jumps + 1, self._jumped + at - self._at
        self._at = at
        return at

    def read(self, size: int = -1) -> bytes:
        stop = self.size_bytes if size < 0 else min(self.size_bytes, self._at + size)
        if stop <= self._at:
            return b""
        if not (self._start <= self._at and stop <= self._start + len(self._window)):
            self._load(self._at, max(stop, min(self.size_bytes, self._at + self._ahead())))
        data = self._window[self._at - self._start : stop - self._start]
        self._at = stop
        return data

    def _ahead(self) -> int:
        if not self._jumps:
            return _FIRST_BYTES
        return _NEAR_BYTES if self._jumped / self._jumps <= _SMALL_MEMBER_BYTES else _FAR_BYTES

    def _load(self, start: int, stop: int) -> None:
        wanted = TarMember(_place(self._shard), start, stop - start, self.version.token)
        try:
            # Who named the shard may read it, wherever it is.
            fetched = Fetcher(policy=AccessPolicy(roots=(Uri(_place(self._shard)),))).fetch(UriText(wanted.text))
        except FetchError as error:
            raise StorageError(f"{self._shard} cannot be indexed: {error.code}: {error.detail}") from None
        self.version = fetched.version
        self._start, self._window = start, fetched.data
        self.num_requests += 1
        self.num_bytes += len(fetched.data)

"""Tar shards, as WebDataset writes them, as a manifest: what is indexed is read as ranges of the shards."""

from __future__ import annotations

import io
import logging
import os
import posixpath
import tarfile
import threading
from bisect import bisect_right
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from operator import attrgetter
from typing import NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs

from pipeline.annotate.config import ManifestConfig
from pipeline.annotate.manifest.parquet_copy import UnitWriter
from pipeline.annotate.manifest.rules import BYTES, ID, NUMBER, URI, Columns, ManifestError, ManifestParts
from pipeline.annotate.manifest.shards import Shard, find_shards, shown
from pipeline.annotate.manifest.versions import COPIED, listed_versions, named_by_user
from pipeline.errors import RunError, UserError
from pipeline.images.left_out import LeftOut
from pipeline.messages.counts import counted
from pipeline.messages.examples import Examples
from pipeline.storage.errors import StorageError, cannot_read, not_there
from pipeline.storage.fetch.fetcher import Fetcher
from pipeline.storage.fetch.rules import FetchError
from pipeline.storage.filesystems import open_filesystem
from pipeline.storage.listing import is_hidden
from pipeline.storage.map_ahead import map_ahead
from pipeline.storage.streams import open_stream
from pipeline.storage.uris import TarMember, Uri, UriText
from pipeline.storage.versions import ObjectVersion, version_of_bytes

_SHARDS_AT_ONCE = 8
_TABLES_AHEAD = 8  # of a shard whose turn has not come
_MEMBERS_AT_ONCE = 4096
_COPIED_BYTES_AT_ONCE = 1 << 26  # of pictures, in a row group of the copy of a compressed shard
_FIRST_BYTES = 1 << 16
_FAR_BYTES = 1 << 14  # a header, and the long name before it
_NEAR_BYTES = 1 << 23  # where members are small a request for each header takes longer than all of the bytes
_SMALL_MEMBER_BYTES = 1 << 20
_MAX_HEADER_BYTES = 1 << 16  # of one member: its long name, its extended header, what else stands before it
_MAX_MEMBER_BYTES = 1 << 59  # which no store holds; a header can say more than a URI
_MAX_SKIP_BYTES = 1 << 20  # at a time, of a stream
_MAX_IDX_BYTES = 1 << 25  # half a million members
_DAMAGE = (tarfile.TarError, ValueError, LookupError, ArithmeticError, RecursionError, AttributeError, TypeError)

logger = logging.getLogger(__name__)


def read_shards(
    config: ManifestConfig, scratch_uri: Uri, fetcher: Fetcher, outside: Collection[Uri] = ()
) -> ManifestParts:
    """The pictures in a tar shard, in all shards of a folder, or in ``shard-{000000..000099}.tar``.

    Ids are ``shard.tar/name of the member``, as if each shard were unpacked into a folder of its name; the shards of a
    folder are called by their paths in it. Pictures are told by their suffixes. Links, sparse files and devices are
    counted and left out. Several shards are indexed at a time; rows are in the order of the shards.

    Pictures of compressed shards, of which no range can be read, are copied to the scratch folder; one that is too
    large for that has a URI for which `fetcher` says so.

    Of a shard that is cut off all that its headers tell of is in the manifest, or its ``.idx`` file, where that fits
    the rest; what cannot be read is found then.

    Args:
        config: names the shards.
        scratch_uri: a folder for the index and for copies.
        fetcher: as pictures are read; shards are indexed by its limits and where its policy allows.
        outside: folders whose files are no shards of this manifest.
    """
    if config.carry or named_by_user(config):
        raise ManifestError(f"{config.uri} is made of tar shards: it has no columns")
    shards = find_shards(config.uri, (scratch_uri, *outside))
    has_bytes = any(shard.is_compressed for shard in shards)
    left_out, unused, number = LeftOut(), Examples(), 0
    ended = threading.Event()
    read = partial(_Index, fetcher, has_bytes, ended)
    with UnitWriter(scratch_uri) as writer:
        for index in map_ahead(read, shards, _SHARDS_AT_ONCE, _SHARDS_AT_ONCE, stop=ended.set):
            for table in index.tables:
                numbers = pa.array(range(number + 1, number + table.num_rows + 1), pa.int64())
                writer.write(table.append_column(NUMBER, numbers))
                if index.is_copied:
                    writer.flush()
                number += table.num_rows
            left_out.add(index.left_out)
            if index.unused:
                unused += Examples.of([f"that of {index.shard.name} {index.unused}"])
    if unused.count:
        of_many = counted(unused.count, ".idx file is", ".idx files are")
        logger.warning("%s: %s not used, and the shards' own headers read: %s", config.uri, of_many, unused)
    if not number:
        raise ManifestError(f"{config.uri} has no image{f'; {left_out}' if left_out.count else ''}")
    if left_out.count:
        logger.warning("%s: %s", config.uri, left_out)
    columns_of_copy = Columns(ID, URI, BYTES if has_bytes else None, NUMBER, COPIED)
    return ManifestParts(writer.units, columns_of_copy, pa.string(), pa.schema([]), None, "picture")


@dataclass(frozen=True)
class _Found:
    """A picture, and where its bytes are: there, or here."""

    name: str
    uri: str | None
    version: ObjectVersion
    content: bytes | None = None


class _Index:
    """The pictures of a shard. The first of them are read when it is made, by whatever thread does that.

    Args:
        fetcher: reads ranges of the shard.
        has_bytes: whether the tables have a column for pictures that are copied.
        ended: set once nobody waits for it any more.
        shard: which one.

    Attributes:
        shard: as above.
        tables: of its pictures, to be taken once.
        is_copied: whether they hold the pictures themselves.
        left_out: other members; of all that were taken.
        unused: why the shard's ``.idx`` file is not used; ``""`` if it is, or there is none.
    """

    def __init__(self, fetcher: Fetcher, has_bytes: bool, ended: threading.Event, shard: Shard) -> None:
        self.left_out, self.unused = LeftOut(), ""
        self.shard, self._fetcher, self._has_bytes = shard, fetcher, has_bytes
        self._ended = ended
        self.is_copied = shard.is_compressed
        tables = self._tables(self._copied() if self.is_copied else self._indexed())
        self.tables = chain(list(islice(tables, 0 if self.is_copied else _TABLES_AHEAD)), tables)

    def _tables(self, pictures: Iterator[_Found]) -> Iterator[pa.Table]:
        for some in _in_groups(pictures):
            versions = listed_versions([picture.version for picture in some])
            columns = {
                ID: pa.array([f"{self.shard.name}/{shown(picture.name)}" for picture in some], pa.string()),
                URI: pa.array([picture.uri for picture in some], pa.string()),
                **{column: versions[column] for column in versions.column_names},
            }
            if self._has_bytes:
                columns[BYTES] = pa.array([picture.content for picture in some], pa.binary())
            yield pa.table(columns)

    def _indexed(self) -> Iterator[_Found]:
        file = ShardFile(self.shard, self._fetcher, self._ended)
        try:
            listed = self._listed(file)
        except _Unfit as error:
            listed, self.unused = None, str(error)
        if listed is None:
            file.rewind()
            places = ((name, member.offset_data, member.size) for name, member in self._pictures(file))
        else:
            places = ((each.name, each.offset, each.size) for each in listed if self._is_picture(each.name))
        for name, offset, size in places:
            yield self._in_place(name, offset, size, file.version)

    def _listed(self, file: ShardFile) -> list[_Listed] | None:
        """What the ``.idx`` file beside the shard says; ``None`` if there is none.

        Raises:
            _Unfit: it does not fit the shard.
        """
        if self.shard.idx is None:
            return None
        file.read(1)  # which version it is; and whether there are ranges
        limit = min(_MAX_IDX_BYTES, self._fetcher.settings.max_object_bytes)
        settings = self._fetcher.settings.model_copy(update={"max_object_bytes": limit})
        try:
            idx = replace(self._fetcher, settings=settings).fetch(self.shard.idx)
        except FetchError as error:
            if error.code in ("not_found", "access_denied"):  # the latter is what S3 says to who may not list
                return None
            raise _Unfit(f"cannot be read ({error.code})") from None
        listed = _read_idx(idx.data)
        written, packed = idx.version.modified_us, file.version.modified_us
        if written is None or packed is None or written < packed:
            raise _Unfit("is older than the shard")
        _check_idx(listed, file, self.shard.uri)
        return listed

    def _in_place(self, name: str, offset: int, size_bytes: int, shard: ObjectVersion) -> _Found:
        where = TarMember(self.shard.place, offset, size_bytes, shard.token)
        return _Found(name, where.text, shard._replace(size_bytes=size_bytes, version_id=None))

    def _copied(self) -> Iterator[_Found]:
        with open_stream(self.shard.uri) as stream:
            file = _StreamedShard(stream)
            for name, member in self._pictures(file):
                if member.size > self._fetcher.settings.max_object_bytes:
                    yield self._in_place(name, member.offset_data, member.size, ObjectVersion())
                elif len(data := file.read_content(member.size)) == member.size:
                    yield _Found(name, None, version_of_bytes(data), data)
                else:
                    raise ManifestError(f"{self.shard.uri} is cut off")

    def _pictures(self, file: _Headers) -> Iterator[tuple[str, tarfile.TarInfo]]:
        others = 0
        for member in _members(file, self.shard.uri):
            name = member.name.removeprefix("./")
            if not member.isreg() or member.issparse():
                others += not member.isdir()
            elif self._is_picture(name):
                yield name, member
        if others:
            left = counted(
                others, "link, sparse or special file is left out", "links, sparse or special files are left out"
            )
            logger.warning("%s: %s", self.shard.uri, left)

    def _is_picture(self, name: str) -> bool:
        return not is_hidden(name) and not self.left_out.takes(name)


def _in_groups(pictures: Iterator[_Found]) -> Iterator[list[_Found]]:
    some: list[_Found] = []
    held = 0
    for picture in pictures:
        some.append(picture)
        held += len(picture.content or b"")
        if len(some) == _MEMBERS_AT_ONCE or held >= _COPIED_BYTES_AT_ONCE:
            yield some
            some, held = [], 0
    if some:
        yield some


class _Unfit(Exception):
    """An ``.idx`` file that is not used; the message says why, without naming it."""


class _Listed(NamedTuple):
    """A member as an ``.idx`` file has it."""

    name: str
    offset: int
    size: int

    @property
    def end(self) -> int:
        """Where what follows it begins."""
        return self.offset + -(-self.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _read_idx(content: bytes) -> list[_Listed]:
    """The members by DALI's wds2idx: ``v1.2 SAMPLES``, then a line a sample, ``EXT OFFSET SIZE NAME EXT OFFSET ...``.

    Hidden files are not in it. Names stand there as they are, with their spaces, or as the system's tar shows them,
    with backslashes: an index with either is not used.

    Raises:
        _Unfit: it is none, or damaged, or could mean something else; v1.1 and before do not know names.
    """
    try:
        first, *lines = content.decode("ascii").split("\n")
        version, count = first.split(" ")
    except ValueError:
        raise _Unfit("is no index of names in ASCII") from None
    if version != "v1.2":
        raise _Unfit("knows no names, as those of v1.2 do" if version in ("v1.0", "v1.1") else "is of no known version")
    found: list[_Listed] = []
    end = 0
    for number, line in enumerate(lines[:-1], 2):
        fields = line.split(" ")
        if len(fields) % 4:
            raise _Unfit(f"is damaged, or has names with spaces, in line {number}")
        for extension, offset, size, name in zip(*(fields[i::4] for i in range(4)), strict=False):
            are_numbers = offset.isdigit() and size.isdigit() and len(offset + size) < 32
            if not are_numbers or _extension(name) != extension or "\\" in name:
                raise _Unfit(f"is damaged, or has names that need quotes, in line {number}")
            member = _Listed(name.removeprefix("./"), int(offset), int(size))
            if member.offset % tarfile.BLOCKSIZE or member.offset < end + tarfile.BLOCKSIZE:
                raise _Unfit(f"does not fit a tar in line {number}")
            found.append(member)
            end = member.end
    if not found or lines[-1] or not count == str(len(lines) - 1):
        raise _Unfit("is cut off")
    return found


def _extension(name: str) -> str | None:
    """As wds2idx has it: what follows the first dot, or all of the path; ``None`` if it leaves the file out."""
    stem, dot, extension = posixpath.basename(name).partition(".")
    if not dot:
        return name if len(stem) > 1 else None
    return extension if stem else None


def _check_idx(listed: list[_Listed], file: ShardFile, shard: Uri) -> None:
    """Compare an index with its shard: the headers of four members, the first and the last among them, and its end.

    The others lie where they may, between those: behind a member of another length all of them would lie elsewhere.
    Of a shard that is cut off the index may tell what was lost.

    Raises:
        _Unfit: they differ.
    """
    last = bisect_right(listed, file.size_bytes, key=attrgetter("offset")) - 1
    for i in sorted({0, last // 3, last * 2 // 3, last}):
        file.seek(listed[i - 1].end if i else 0)
        file.begin_member()
        try:
            plain = (member for member in _members(file, shard) if _is_listed(member))
            found = [
                _Listed(member.name.removeprefix("./"), member.offset_data, member.size)
                for member in islice(plain, 1 if i < last else 2)
            ]
        except ManifestError:
            found = []
        if found != listed[i : i + 1]:
            raise _Unfit(f"does not fit the shard at byte {listed[i].offset}")
    if last < len(listed) - 1 and not file.is_short:
        raise _Unfit("goes beyond the end of the shard")


def _is_listed(member: tarfile.TarInfo) -> bool:
    return member.isreg() and not member.issparse() and _extension(member.name) is not None


def _members(file: _Headers, shard: Uri) -> Iterator[tarfile.TarInfo]:
    """All members from where the file stands, whatever they are.

    Raises:
        ManifestError: it is no tar there, or damaged; or a stream that is cut off in a member: nobody reads it again.
    """
    is_tar, damage = False, ""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            is_tar, end = True, -1
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # or it would keep all of them
                if not 0 <= member.size < _MAX_MEMBER_BYTES or tar.offset <= end:
                    raise tarfile.ReadError("a member of an impossible size")
                end = tar.offset
                yield member
                file.begin_member()
        if any(file.last_read):
            damage = "no header of a tar is there"
    except (UserError, RunError):
        raise
    except _DAMAGE as error:
        damage = str(error) or type(error).__name__
    at_header = not damage and not file.last_read  # where tars end that were never closed, too
    if is_tar and file.is_short and (file.size_bytes is not None or at_header):
        logger.warning("%s is cut off at byte %d: what followed is lost", shard, file.size_bytes or file.tell())
    elif is_tar and file.is_short:
        raise ManifestError(f"{shard} is cut off")
    elif damage:
        what = "is damaged" if is_tar else "is no tar, or damaged,"
        raise ManifestError(f"{shard} {what} at byte {file.tell()}: {damage}")


class _Headers(io.RawIOBase):
    """A tar as `tarfile` reads it with ``r:``: forward, and nothing but headers.

    Attributes:
        size_bytes: of all of it; ``None`` where only its end tells.
        last_read: what the last read gave.
        is_short: whether that was less than it asked for: the end was there.
    """

    size_bytes: int | None = None

    def __init__(self) -> None:
        self.last_read, self.is_short = b"", False
        self._at = self._of_member = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence != os.SEEK_SET:
            raise io.UnsupportedOperation("seeks from the beginning only")
        self._at = offset
        return offset

    def begin_member(self) -> None:
        """What is read from here on is the next member's."""
        self._of_member = 0

    def read(self, size: int = -1) -> bytes:
        """Some bytes of a header.

        Raises:
            tarfile.ReadError: it is longer than headers are.
            StorageError: it cannot be read.
        """
        self._of_member += size
        if size < 0 or self._of_member > _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of more than {_MAX_HEADER_BYTES:,} bytes")
        self.last_read = self._read_on(size)
        self.is_short = len(self.last_read) < size
        self._at += len(self.last_read)
        return self.last_read

    def _read_on(self, size: int) -> bytes:
        raise NotImplementedError


class _StreamedShard(_Headers):
    """A shard that is read once, from its beginning to its end.

    Args:
        stream: its bytes, decompressed.
    """

    def __init__(self, stream: io.RawIOBase) -> None:
        super().__init__()
        self._stream = io.BufferedReader(stream, _MAX_SKIP_BYTES)
        self._stream_at = 0

    def read_content(self, size: int) -> bytes:
        """What follows, however long; less at the end of the stream."""
        data = self._read_on(size)
        self._at += len(data)
        return data

    def _read_on(self, size: int) -> bytes:
        while self._stream_at < self._at:
            skipped = len(self._stream.read(min(_MAX_SKIP_BYTES, self._at - self._stream_at)))
            if not skipped:
                return b""
            self._stream_at += skipped
        data = self._stream.read(size)
        self._stream_at += len(data)
        return data


class ShardFile(_Headers):
    """A shard whose reads are few ranges, as `tarfile` jumps from header to header.

    Args:
        shard: which one.
        fetcher: reads the ranges; none is larger than it allows, but for a header that is.
        ended: from when it is set on nothing more is read.

    Attributes:
        size_bytes: of the shard.
        version: of the shard. One that changes meanwhile is refused.
        num_requests: so far.
        num_bytes: that they brought.

    Raises:
        StorageError: it cannot be read, or its server knows no ranges.
    """

    def __init__(self, shard: Shard, fetcher: Fetcher, ended: threading.Event) -> None:
        super().__init__()
        filesystem, path = open_filesystem(shard.uri)
        try:
            info = filesystem.get_file_info(path)
        except OSError as error:
            raise cannot_read(shard.uri, error) from None
        if info.type == pafs.FileType.NotFound:
            raise not_there(shard.uri, filesystem, path)
        self.version = ObjectVersion()
        self.num_requests = self.num_bytes = 0
        self._shard, self._fetcher, self._ended = shard, fetcher, ended
        self.size_bytes: int = info.size
        self._start = 0
        self._window = b""
        self._jumps = self._jumped = 0

    def rewind(self) -> None:
        """As it was when it was opened, but for what is known of it."""
        self._at = self._of_member = self._jumps = self._jumped = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if offset > self._at:
            self._jumps, self._jumped = self._jumps + 1, self._jumped + offset - self._at
        return super().seek(offset, whence)

    def _read_on(self, size: int) -> bytes:
        stop = min(self.size_bytes, self._at + size)
        if stop <= self._at:
            return b""
        if not (self._start <= self._at and stop <= self._start + len(self._window)):
            self._load(self._at, max(stop, min(self.size_bytes, self._at + self._ahead())))
        return self._window[self._at - self._start : stop - self._start]

    def _ahead(self) -> int:
        far = self._jumps and self._jumped / self._jumps > _SMALL_MEMBER_BYTES
        wanted = _FIRST_BYTES if not self._jumps else _FAR_BYTES if far else _NEAR_BYTES
        return min(wanted, self._fetcher.settings.max_object_bytes)

    def _load(self, start: int, stop: int) -> None:
        if self._ended.is_set():
            raise StorageError(f"{self._shard.uri} is not read on")
        wanted = TarMember(self._shard.place, start, stop - start, self.version.token)
        try:
            fetched = self._fetcher.fetch(UriText(wanted.text))
        except FetchError as error:
            cure = "; see images.allowed_roots" if error.code == "uri_not_allowed" else ""
            raise StorageError(f"{self._shard.uri} cannot be indexed: {error.code}: {error.detail}{cure}") from None
        self.version = fetched.version
        self._start, self._window = start, fetched.data
        self.num_requests += 1
        self.num_bytes += len(fetched.data)

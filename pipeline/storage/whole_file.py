"""Local files that appear whole or not at all: written under a hidden name beside their place, and renamed."""

from __future__ import annotations

import errno
import os
import re
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_OF_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


def temporary_name(name: str) -> str:
    """A hidden name beside ``name``, a path or key with ``/``, that no other writer uses."""
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}.{base}.{uuid.uuid4().hex}.tmp"


def temporary_names(pattern: str) -> re.Pattern[str]:
    """What `temporary_name` calls files whose names match a regular expression: what a writer that was killed left."""
    return re.compile(rf"\.{pattern}\.[0-9a-f]{{32}}\.tmp")


@contextmanager
def write_whole(path: str | Path) -> Iterator[Path]:
    """A name to write to; the file is at ``path``, and on the disk, once the block ends without an error.

    Whoever writes it, it has the mode that the umask gives.

    Raises:
        OSError: the file cannot be written, or `check_replaceable` says no.
    """
    check_replaceable(path)
    with temporary_file(path) as temporary:
        yield temporary
        os.chmod(temporary, _usual_mode(temporary))
        sync(temporary)
        os.replace(temporary, path)
        sync(temporary.parent)


def check_replaceable(path: str | Path) -> None:
    """Return if nothing is at a path, or a file: root could make one of a device, and ``/dev/null`` is everybody's.

    Raises:
        FileExistsError: a folder, device, pipe or socket, or a link of the system's, as ``/dev/stdout`` is.
        OSError: it cannot be told.
    """
    with suppress(FileNotFoundError, NotADirectoryError):  # nothing is there; whoever makes the folders says why not
        is_file = stat.S_ISREG(os.stat(path).st_mode)
        if not is_file or (os.path.islink(path) and os.readlink(path).startswith("/proc/")):
            raise FileExistsError(errno.EEXIST, "Not a file that can be replaced", str(path))


def _usual_mode(beside: Path) -> int:
    """The mode that a new file gets here by umask; libraries that write through files of their own make it 0600."""
    probe = Path(temporary_name(str(beside)))
    descriptor = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)
        probe.unlink()


@contextmanager
def temporary_file(path: str | Path) -> Iterator[Path]:
    """A hidden name beside ``path``, whose folder is made; what still has it at the end of the block is removed."""
    temporary = Path(temporary_name(os.path.abspath(path)))
    temporary.parent.mkdir(parents=True, exist_ok=True)
    try:
        with named(path):
            yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def without_new_folders(path: str | None) -> Iterator[None]:
    """Folders that the block makes on the way to a local path, and the path itself, are gone at its end if empty.

    Args:
        path: of a folder; ``None``: not on this machine, where folders are only names.
    """
    new = Path(os.path.abspath(path)) if path is not None else None
    made = [] if new is None else [folder for folder in (new, *new.parents) if not os.path.lexists(folder)]
    try:
        yield
    finally:
        with suppress(OSError):  # one that is not empty, and so are those above it
            for folder in made:
                folder.rmdir()


@contextmanager
def named(path: str | Path) -> Iterator[None]:
    """Writing a file: errors of a disk that is full or fails, which the system raises without a name, get this one."""
    try:
        yield
    except OSError as error:
        if error.errno in _OF_DISK and error.filename is None:
            error.filename = str(path)
        raise


def sync(path: str | Path) -> None:
    """Have what was written to a file, or the names in a folder, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.storage.whole_file import write_whole


def test_nothing_is_seen_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with write_whole(path) as temporary:
        temporary.write_bytes(b"content")
        assert not path.exists()
        assert temporary.parent == path.parent
        assert temporary.name.startswith(".")
    assert [(found.name, found.read_bytes()) for found in path.parent.iterdir()] == [("file", b"content")]


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail() -> None:
        with write_whole(path) as temporary:
            temporary.write_bytes(b"half of the n")
            raise KeyError("in the middle")

    with pytest.raises(KeyError):
        fail()
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [("file", b"old")]


@pytest.mark.parametrize("kind", ["device", "pipe", "socket", "folder", "standard output"])
def test_what_is_no_file_is_not_replaced_by_one(kind: str, tmp_path: Path) -> None:
    """As root, who may do so: containers have no other user, and ``--out /dev/stdout`` is often typed."""
    path = tmp_path / "there"
    if kind == "device":
        path.symlink_to("/dev/null")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o600)
    elif kind == "folder":
        path.mkdir()
    else:  # led into a file, as a shell does
        path.symlink_to(f"/proc/self/fd/{os.open(tmp_path / 'led into', os.O_CREAT | os.O_WRONLY)}")
    before = path.lstat()
    with pytest.raises(FileExistsError, match="there"), write_whole(path) as temporary:
        temporary.touch()
    assert path.lstat() == before
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600), (0o000, 0o666)])
def test_the_umask_decides_who_may_read_it(umask: int, mode: int, tmp_path: Path) -> None:
    """Whatever the library does that writes it; POSIX: ``0666 & ~umask``."""

    def by_safetensors(path: Path) -> None:
        save_file({"a": torch.zeros(1)}, path)

    def by_tempfile(path: Path) -> None:
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(b"content")
        os.replace(file.name, path)

    before = os.umask(umask)
    try:
        for number, write in enumerate((by_safetensors, by_tempfile, Path.touch)):
            with write_whole(tmp_path / str(number)) as temporary:
                write(temporary)
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / str(number)).stat().st_mode) for number in range(3)] == [mode] * 3
    assert len(list(tmp_path.iterdir())) == 3

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.storage.objects.base import Changed
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri


class TestLocal:
    def test_a_failed_write_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        objects = open_objects(Uri(str(tmp_path)), 1.0)
        objects.put("a", b"old")
        monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "no space left")))
        with pytest.raises(OSError, match="no space"):
            objects.put("a", b"new")
        assert os.listdir(tmp_path) == ["a"]
        assert objects.read("a")[0] == b"old"

    def test_without_hard_links(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(source: str, target: str) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
        objects = open_objects(Uri(str(tmp_path)), 1.0)
        version = objects.create("lock", b"1")
        assert objects.read("lock") == (b"1", version)
        with pytest.raises(FileExistsError):
            objects.create("lock", b"2")
        assert os.listdir(tmp_path) == ["lock"]

    def test_a_folder_that_is_gone_stays_so(self, tmp_path: Path) -> None:
        with pytest.raises(Changed):
            open_objects(Uri(str(tmp_path / "gone")), 1.0).replace("lock", b"2", "1")
        assert os.listdir(tmp_path) == []

    def test_on_a_mount_whose_inode_numbers_change(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As FUSE may have it: then a lock is replaced all the same."""
        monkeypatch.setattr(os.path, "samestat", lambda one, other: False)
        objects = open_objects(Uri(str(tmp_path)), 1.0)
        version = objects.replace("lock", b"2", objects.create("lock", b"1"))
        assert objects.read("lock") == (b"2", version)
        assert os.listdir(tmp_path) == ["lock"]

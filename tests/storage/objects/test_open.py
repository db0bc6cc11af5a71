from __future__ import annotations

import os
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from fsspec import AbstractFileSystem

from pipeline.storage.objects.any_fsspec import FsspecObjects
from pipeline.storage.objects.base import Changed, ObjectFolder
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri


@pytest.fixture(params=["local", "s3", "memory", "moved"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectFolder:
    """``moved``: an fsspec file system without atomic puts."""
    if request.param == "local":
        return open_objects(Uri(str(tmp_path / "new folder" / "out")), 10.0)
    if request.param == "moved":
        import fsspec

        return FsspecObjects(fsspec.filesystem("memory"), f"/{uuid.uuid4().hex}", atomic_puts=False)
    if request.param == "memory":
        return open_objects(Uri(f"memory://{uuid.uuid4().hex}/out"), 10.0)
    request.getfixturevalue("s3")
    return open_objects(Uri(f"s3://bucket/{uuid.uuid4().hex}/a b=%20/out/"), 10.0)


class TestEveryStore:
    def test_write_read_list_delete(self, objects: ObjectFolder) -> None:
        assert objects.list("data") == ([], [])
        objects.put("data/b", b"bb")
        objects.put("data/a", b"x" * 1000)
        objects.put("data/deeper/c", b"c")
        objects.put("run.json", b"{}")
        files, folders = objects.list("data")
        assert [(f.name, f.size_bytes) for f in files] == [("a", 1000), ("b", 2)]
        assert folders == ["deeper"]
        files, folders = objects.list("")
        assert [f.name for f in files] == ["run.json"]
        assert folders == ["data"]
        assert objects.read("data/b")[0] == b"bb"
        objects.put("data/b", b"0123456789")
        assert objects.read_range("data/b", 2, 5) == b"234"
        with objects.open("data/b", 10) as file:
            assert file.size() == 10
            file.seek(7)
            assert file.read() == b"789"
        for _ in range(2):
            objects.delete("data/b")
        assert [f.name for f in objects.list("data").files] == ["a"]
        with pytest.raises(FileNotFoundError):
            objects.read("data/b")

    def test_when_a_file_was_written(self, objects: ObjectFolder) -> None:
        before = datetime.now(timezone.utc) - timedelta(seconds=1)  # S3 tells whole seconds
        objects.put("run.json", b"{}")
        modified_at = objects.modified_at("run.json")
        assert modified_at is not None
        assert before <= modified_at <= datetime.now(timezone.utc) + timedelta(seconds=1)
        with pytest.raises(FileNotFoundError):
            objects.modified_at("none.json")

    def test_a_listing_tells_versions_apart(self, objects: ObjectFolder) -> None:
        objects.put("data/a", b"1")
        before = objects.list("data").files
        objects.put("data/a", b"2")
        assert objects.list("data").files != before

    def test_create_and_replace(self, objects: ObjectFolder) -> None:
        first = objects.create("lock", b"1")
        with pytest.raises(FileExistsError):
            objects.create("lock", b"2")
        assert objects.read("lock") == (b"1", first)
        second = objects.replace("lock", b"2", first)
        with pytest.raises(Changed):
            objects.replace("lock", b"3", first)
        assert objects.read("lock") == (b"2", second)
        objects.delete("lock")
        with pytest.raises(Changed):
            objects.replace("lock", b"3", second)
        assert objects.create("lock", b"4") == objects.read("lock")[1]


@pytest.mark.parametrize("objects", ["local", "s3"], indirect=True)
class TestConcurrency:
    def test_one_of_many_creates(self, objects: ObjectFolder) -> None:
        def create(number: int) -> bool:
            try:
                objects.create("lock", b"%d" % number)
            except FileExistsError:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(create, range(8))) == 1

    def test_one_of_many_replaces(self, objects: ObjectFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        rename = os.replace

        def late_rename(source: str, target: str) -> None:
            time.sleep(0.01)  # the time between look and change, in which the others look
            rename(source, target)

        monkeypatch.setattr(os, "replace", late_rename)

        def replace(version: str, number: int) -> bool:
            try:
                objects.replace("lock", b"%d" % number, version)
            except Changed:
                return False
            return True

        for turn in range(5):
            objects.put("lock", b"old %d" % turn)
            version = objects.read("lock")[1]
            with ThreadPoolExecutor(8) as pool:
                assert sum(pool.map(lambda n, v=version: replace(v, n), range(8))) == 1


@pytest.mark.parametrize(
    ("info", "wanted"),
    [
        ({"mtime": datetime(2026, 1, 2, 3, 4, 5)}, datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)),
        (
            {"mtime": 1.5, "last_modified": datetime(2026, 1, 2, tzinfo=timezone.utc)},
            datetime(2026, 1, 2, tzinfo=timezone.utc),
        ),
        ({"size": 3}, None),
    ],
)
def test_a_file_system_that_has_no_word_for_when(info: dict[str, object], wanted: datetime | None) -> None:
    """As SFTP, whose listing tells all the same, and as one that does not tell."""

    class Wordless(AbstractFileSystem):
        def info(self, path: str, **_: object) -> dict[str, object]:
            return {"name": path, "type": "file", **info}

    assert FsspecObjects(Wordless(), "/out", atomic_puts=True).modified_at("run.json") == wanted

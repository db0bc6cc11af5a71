"""Whole or not at all: on a local disk, on S3 and on another fsspec file system."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from pipeline.export.errors import ExportError
from pipeline.export.target import MARKER, whole_file, whole_folder
from pipeline.storage.uris import Uri, UriError


class Store:
    """A place for results, and a look at what is there."""

    def __init__(self, root: str) -> None:
        self.root = root
        options = {"skip_instance_cache": True} if root.startswith("s3") else {}
        self.filesystem, self.path = fsspec.core.url_to_fs(root, **options)

    def files(self) -> dict[str, bytes]:
        self.filesystem.invalidate_cache()
        if not self.filesystem.exists(self.path):
            return {}
        names = self.filesystem.find(self.path)
        return {name[len(self.path) :].lstrip("/"): self.filesystem.cat_file(name) for name in names}


@pytest.fixture(params=["local", "s3", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return Store(str(tmp_path / "deep" / "root"))
    if request.param == "s3":
        request.getfixturevalue("s3")
        return Store(f"s3://bucket/{uuid.uuid4().hex}")
    return Store(f"memory://{uuid.uuid4().hex}/root")


def write_half(uri: str, overwrite: bool = False) -> None:
    with whole_file(Uri(uri), overwrite) as file:
        file.write(b"half")
        raise RuntimeError("stop")


def write_half_a_folder(uri: str) -> None:
    with whole_folder(Uri(uri), overwrite=False) as folder:
        folder.put("a", b"a")
        raise RuntimeError("stop")


@pytest.mark.parametrize("write", [write_half, write_half_a_folder])
class TestStoresThatFail:
    """s3fs and botocore say neither where nor, some of them, that it is about the storage."""

    def test_no_bucket(self, s3: object, write: Callable[[str], None]) -> None:
        with pytest.raises(OSError, match="s3://not-there/a/b"):
            write("s3://not-there/a/b")

    def test_away(self, monkeypatch: pytest.MonkeyPatch, s3: object, write: Callable[[str], None]) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        with pytest.raises(OSError, match="s3://bucket/a/b cannot be written: "):
            write("s3://bucket/a/b")


class TestFile:
    def test_written_bit_by_bit(self, store: Store) -> None:
        with whole_file(Uri(f"{store.root}/a.json"), overwrite=False) as file:
            file.write(b"one ")
            file.write(b"two")
            assert "a.json" not in store.files()
        assert store.files() == {"a.json": b"one two"}

    def test_a_link_that_leads_nowhere_is_somebodys(self, tmp_path: Path) -> None:
        """To a disk that is not mounted, say."""
        link = tmp_path / "a.json"
        link.symlink_to(tmp_path / "gone" / "a.json")
        with pytest.raises(ExportError, match="--overwrite"), whole_file(Uri(str(link)), overwrite=False):
            pytest.fail("opened")
        assert link.is_symlink()

    def test_a_file_that_comes_meanwhile_stays(self, tmp_path: Path) -> None:
        path = tmp_path / "a.json"
        with pytest.raises(ExportError, match="--overwrite"), whole_file(Uri(str(path)), overwrite=False):
            path.write_bytes(b"first")
        assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [("a.json", b"first")]

    def test_a_failure_leaves_nothing(self, store: Store) -> None:
        with pytest.raises(RuntimeError, match="stop"):
            write_half(f"{store.root}/a.json", overwrite=False)
        assert store.files() == {}

    def test_an_old_one_stays_until_the_new_one_is_whole(self, store: Store) -> None:
        uri = f"{store.root}/a.json"
        with whole_file(Uri(uri), overwrite=False) as file:
            file.write(b"old")
        with pytest.raises(ExportError, match="--overwrite"), whole_file(Uri(uri), overwrite=False):
            pytest.fail("opened")
        with pytest.raises(RuntimeError, match="stop"):
            write_half(uri, overwrite=True)
        assert store.files() == {"a.json": b"old"}
        with whole_file(Uri(uri), overwrite=True) as file:
            file.write(b"new")
        assert store.files() == {"a.json": b"new"}

    def test_more_than_a_part_of_an_upload(self, s3: object) -> None:
        store = Store(f"s3://bucket/{uuid.uuid4().hex}")
        block = bytes(range(256)) * 4096
        with whole_file(Uri(f"{store.root}/a"), overwrite=False) as file:
            for _ in range(52):  # s3fs sends 50 MiB at a time
                file.write(block)
        assert store.files()["a"] == block * 52

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_folder_is_in_the_way(self, tmp_path: Path, overwrite: bool) -> None:
        with pytest.raises(ExportError, match="is a folder"), whole_file(Uri(str(tmp_path)), overwrite):
            pytest.fail("opened")

    @pytest.mark.parametrize(
        ("uri", "message"),
        [("https://host/a", "nothing can be written"), ("nonsense://a/b", "not a known"), ("s3://", "no bucket")],
    )
    def test_places_that_cannot_be(self, uri: str, message: str) -> None:
        with pytest.raises(UriError, match=message), whole_file(Uri(uri), overwrite=False):
            pytest.fail("opened")


class TestFolder:
    def test_written_file_by_file(self, store: Store) -> None:
        with whole_folder(Uri(f"{store.root}/out/"), overwrite=False) as folder:
            folder.put("labels/deep/a.txt", b"a")
            with folder.open("table.csv") as file:
                file.write(b"1,")
                file.write(b"2")
            folder.finish({"images": 1})
        files = store.files()
        assert json.loads(files.pop(f"out/{MARKER}")) == {"state": "finished", "images": 1}
        assert files == {"out/labels/deep/a.txt": b"a", "out/table.csv": b"1,2"}

    def test_two_open_at_once(self, store: Store) -> None:
        with whole_folder(Uri(f"{store.root}/out"), overwrite=False) as folder:
            with folder.open("a") as one, folder.open("b") as other:
                one.write(b"1")
                other.write(b"2")
            with folder.open("c") as file:
                file.write(b"3")
        files = store.files()
        assert [files[f"out/{name}"] for name in "abc"] == [b"1", b"2", b"3"]

    def test_a_failure_shows(self, store: Store) -> None:
        with pytest.raises(RuntimeError, match="stop"):
            write_half_a_folder(f"{store.root}/out")
        files = store.files()
        assert not files or json.loads(files[f"out/{MARKER}"]) == {"state": "unfinished"}

    def test_only_exports_are_replaced(self, store: Store) -> None:
        uri = f"{store.root}/out"
        with whole_file(Uri(f"{uri}/thesis.tex"), overwrite=False) as file:
            file.write(b"years of work")
        for overwrite, message in ((False, "--overwrite"), (True, "no earlier export")):
            with pytest.raises(ExportError, match=message), whole_folder(Uri(uri), overwrite):
                pytest.fail("opened")
        assert store.files() == {"out/thesis.tex": b"years of work"}

    def test_an_export_is_replaced(self, store: Store) -> None:
        for name in ("old", "new"):
            with whole_folder(Uri(f"{store.root}/out"), overwrite=name == "new") as folder:
                folder.put(name, b"")
                folder.finish({})
        assert set(store.files()) == {"out/new", f"out/{MARKER}"}

    def test_an_empty_folder_is_taken(self, tmp_path: Path) -> None:
        with whole_folder(Uri(str(tmp_path)), overwrite=False) as folder:
            folder.put("a", b"a")
        assert os.listdir(tmp_path) == ["a"]


def test_nothing_hidden_is_left(tmp_path: Path) -> None:
    for ending in (".json", ""):
        with pytest.raises(RuntimeError):
            write_half(f"{tmp_path}/a.json", overwrite=False) if ending else write_half_a_folder(f"{tmp_path}/a")
    assert os.listdir(tmp_path) == []


class TestFolderInPlace:
    """What happens where a local folder is to be, while the export is made and when it is done."""

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_what_somebody_puts_there_meanwhile_stays(self, tmp_path: Path, overwrite: bool) -> None:
        place = tmp_path / "labels"

        def work() -> None:
            with whole_folder(Uri(str(place)), overwrite) as folder:
                folder.finish({})
                place.mkdir()
                (place / "notes.txt").write_text("the user's")

        with pytest.raises(ExportError):
            work()
        assert [path.name for path in tmp_path.iterdir()] == ["labels"]
        assert (place / "notes.txt").read_text() == "the user's"

    @pytest.mark.parametrize("error", [OSError("no"), KeyboardInterrupt()])
    def test_the_old_one_comes_back_if_the_new_one_cannot_take_its_place(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
    ) -> None:
        place = tmp_path / "labels"
        with whole_folder(Uri(str(place)), overwrite=False) as folder:
            folder.finish({"export": "old"})
        rename, calls = os.rename, 0

        def breaking(source: str, target: str) -> None:
            nonlocal calls
            calls += 1
            if calls == 3:  # the old one was moved away
                raise error
            rename(source, target)

        monkeypatch.setattr(os, "rename", breaking)
        with pytest.raises(type(error)), whole_folder(Uri(str(place)), overwrite=True) as folder:
            folder.finish({"export": "new"})
        assert json.loads((place / MARKER).read_text())["export"] == "old"
        assert [path.name for path in tmp_path.iterdir()] == ["labels"]

    def test_a_link_stays_one(self, tmp_path: Path) -> None:
        (tmp_path / "far").mkdir()
        (tmp_path / "labels").symlink_to(tmp_path / "far")
        for overwrite in (False, True):
            with whole_folder(Uri(str(tmp_path / "labels")), overwrite) as folder:
                folder.finish({})
        assert (tmp_path / "labels").is_symlink()
        assert (tmp_path / "far" / MARKER).exists()

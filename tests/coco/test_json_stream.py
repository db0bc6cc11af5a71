from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.coco import json_stream
from pipeline.coco.errors import InputError
from pipeline.coco.json_stream import Element, JsonLists
from pipeline.storage.errors import StorageError
from pipeline.storage.uris import Uri

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.text('{}"'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.lists(st.dictionaries(st.sampled_from("ab{}"), VALUES, max_size=2), max_size=9)


def elements(path: Path, content: str | bytes) -> list[Element]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(JsonLists(Uri(str(path))))


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.dictionaries(st.text(), VALUES | OBJECTS, max_size=4) | st.lists(VALUES, max_size=5) | OBJECTS,
    chunk_bytes=st.integers(1, 9) | st.just(4096),
    batch=st.integers(1, 90),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
)
def test_equal_to_the_whole_parsed_at_once(
    content: Any, chunk_bytes: int, batch: int, indent: int | None, ascii_only: bool, tmp_path: Path
) -> None:
    text = json.dumps(content, indent=indent, ensure_ascii=ascii_only)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "CHUNK_BYTES", chunk_bytes)
        patch.setattr(json_stream, "_BATCH", batch)
        found = elements(tmp_path / "a.json", text.encode(errors="surrogatepass"))
    lists = {None: content} if isinstance(content, list) else content
    wanted = [(k, i, v) for k, items in lists.items() if isinstance(items, list) for i, v in enumerate(items)]
    assert [element[:3] for element in found] == wanted
    assert json.dumps([element.value for element in found]) == json.dumps([value for *_, value in wanted])


@pytest.mark.parametrize("depth", [1, 7, 8, 9, 300])
def test_objects_in_objects(depth: int, tmp_path: Path) -> None:
    text = '{"a": ' * depth + "0.1" + "}" * depth
    found = elements(tmp_path / "a.json", f'[{text}, {{"a": 1, "a": "}}{{"}} , {text}]')
    assert [element.value for element in found] == [json.loads(text), {"a": "}{"}, json.loads(text)]


def test_nearly_all_objects_are_parsed_several_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_by_one = []
    value = json_stream._Text.value
    monkeypatch.setattr(json_stream._Text, "value", lambda text: one_by_one.append(0) or value(text))
    rows = [{"id": number, "mask": {"size": [4, 5], "counts": "x" * (number % 50)}} for number in range(5000)]
    rows[9]["text"], rows[2000]["text"], rows[3000]["text"] = "}", "{" * 9, "z" * 200_000
    content = {"images": rows[:3], "annotations": rows, "other": [], "categories": rows[-90:]}
    found = elements(tmp_path / "a.json", json.dumps(content))
    assert [element.value for element in found] == [*rows[:3], *rows, *rows[-90:]]
    assert len(one_by_one) < 60  # keys, what is beside the three rows, and what is left at the ends of lists


def test_the_place_of_damage_among_objects(tmp_path: Path) -> None:
    good = '{"id": 1, "counts": "ab"}'
    text = f"[{', '.join([good] * 300)}, {good[:-2]}, {good}]"
    (tmp_path / "a.json").write_text(text)
    read: list[int] = []
    with pytest.raises(InputError, match=f"character {len(good) * 300 + 2 * 300 + 1:,}: .*damaged"):
        read.extend(element.position for element in JsonLists(Uri(str(tmp_path / "a.json"))))
    assert read == list(range(300))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_compressed_and_with_a_byte_order_mark(suffix: str, tmp_path: Path) -> None:
    content = b'\xef\xbb\xbf{"a": [1, {"b": 2.5}], "c": []}'
    found = JsonLists(Uri(str(tmp_path / f"a.json{suffix}")))
    (tmp_path / f"a.json{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    assert [element.value for element in found] == [1, {"b": 2.5}]
    assert found.keys == ["a", "c"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected {, not the end of the file"),
        (b"17", "expected {, not 1"),
        (b'{"images": [{"id": 1}, {"id": 2', "at character 23: .*cut off"),
        (b'{"images": [{"id": 1}', "at character 21: expected , or ], not the end of the file"),
        (b'{"images": [1] "a": 2}', 'at character 15: expected , or }, not "'),
        (b'{"images": [1, nonsense, 2]}', "at character 15: .*Expecting value"),
        (b'{"images": [1], "images": [2]}', "the key 'images' is no string or comes twice"),
        (b"[1] [2]", "at character 4: there is something after its end"),
        (b'["\xff"]', "not UTF-8"),
        (b"[" * 100_000, "recursion|cut off"),
    ],
)
def test_what_is_not_json_is_an_error_with_its_place(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        elements(tmp_path / "a.json", content)


def test_a_compressed_file_that_is_cut_off(tmp_path: Path) -> None:
    content = gzip.compress(json.dumps(list(range(100_000))).encode())
    with pytest.raises(InputError, match=r"cut off|cannot be read to its end|end of the file"):
        elements(tmp_path / "a.json.gz", content[: len(content) // 2])


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        list(JsonLists(Uri(str(tmp_path / "none.json"))))


def test_only_one_element_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(json_stream, "LONGEST_ELEMENT", 5000)
    windows = []
    read_on = json_stream._Text._read_on

    def watch(text: Any) -> bool:
        more = read_on(text)
        windows.append(len(text._window))
        return more

    monkeypatch.setattr(json_stream._Text, "_read_on", watch)
    assert len(elements(tmp_path / "a.json", json.dumps(["x" * 3000] * 200))) == 200
    assert max(windows) < 5000
    damaged = '["' + "x" * 100_000
    with pytest.raises(InputError, match="too long"):
        elements(tmp_path / "b.json", damaged)
    assert max(windows) <= 7000

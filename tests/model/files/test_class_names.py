from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.model.categories import Category
from pipeline.model.files.class_names import read_categories


def written(folder: Path, text: str) -> Path:
    path = folder / "classes"
    path.write_text(text, encoding="utf-8")
    return path


def test_one_name_a_line(tmp_path: Path) -> None:
    path = written(tmp_path, "\ufeffcat\r\n\n  traffic light \nÄpfel")
    assert read_categories(path) == (Category(1, "cat"), Category(2, "traffic light"), Category(3, "Äpfel"))


def test_coco_file_in_the_order_of_ids(tmp_path: Path) -> None:
    entries = [{"id": 9, "name": "dog", "supercategory": "animal"}, {"id": 0, "name": "cat"}]
    path = written(tmp_path, json.dumps({"images": [], "categories": entries}))
    assert read_categories(path) == (Category(0, "cat"), Category(9, "dog"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no class names"),
        ('{"categories": []}', "no class names"),
        ('{"images": []}', "not a COCO file"),
        ('{"categories": [{"name": "cat"}]}', "not a COCO file"),
        ('{"categories": ', "cannot be read"),
        pytest.param('{"categories": ' + "[" * 100_000, "cannot be read", id="nested deeply"),
        pytest.param('{"categories": [{"id": 1e999, "name": "a"}]}', "cannot be read", id="infinite id"),
        pytest.param(
            '{"categories": [{"id": ' + "9" * 5000 + ', "name": "a"}]}', "classes: cannot be read", id="long id"
        ),
        ("cat\ndog\ncat", "name 'cat' stands for 2"),
        ('{"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}', "id 1 stands for 2"),
    ],
)
def test_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_categories(written(tmp_path, text))


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        read_categories(tmp_path / "gone.txt")

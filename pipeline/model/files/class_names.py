"""Reading what a model's labels stand for."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from pipeline.errors import UserError
from pipeline.model.categories import Category


def read_categories(path: str | Path) -> tuple[Category, ...]:
    """Categories in the order of a model's labels.

    Args:
        path: a COCO JSON file, whose categories count in the order of their ids; or a text file with one name
            a line, which get the ids 1, 2, ... .

    Raises:
        UserError: no such file, no categories, or two with the same name or id.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        categories = _from_coco(text) if text.lstrip().startswith("{") else _from_lines(text)
    except (OSError, ValueError, RecursionError, OverflowError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not a COCO file: no 'categories' with 'id' and 'name' ({error!r})") from error
    if not categories:
        raise UserError(f"{path}: no class names in it")
    for kind in ("name", "id"):
        ((value, count),) = Counter(getattr(category, kind) for category in categories).most_common(1)
        if count > 1:
            raise UserError(f"{path}: the {kind} {value!r} stands for {count} classes")
    return categories


def _from_coco(text: str) -> tuple[Category, ...]:
    found = [Category(int(entry["id"]), str(entry["name"])) for entry in json.loads(text)["categories"]]
    return tuple(sorted(found, key=lambda category: category.id))


def _from_lines(text: str) -> tuple[Category, ...]:
    names = [line.strip() for line in text.splitlines() if line.strip()]
    return tuple(Category(i + 1, name) for i, name in enumerate(names))

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.annotations.class_thresholds import Selection
from pipeline.config.base import ConfigError
from pipeline.export.errors import ExportError
from pipeline.export.run import read_selection
from pipeline.storage.uris import UriText
from tests.export.export_cases import CATEGORIES


def test_a_file_and_a_score_for_the_others(tmp_path: Path) -> None:
    file = tmp_path / "thresholds.yaml"
    file.write_text("cat: 0.7\n", encoding="utf-8")
    thresholds = read_selection(UriText(str(file)), 0.25).thresholds(CATEGORIES)
    assert thresholds.tolist() == [0.25, float(np.float32(0.7)), 0.25]


def test_unknown_names() -> None:
    assert Selection(0, {"cats": 0.5, "cat": 0.1}).unknown_names(CATEGORIES) == ["'cats'; did you mean 'cat'?"]


def test_many_unknown_names_are_counted() -> None:
    unknown = Selection(0, {f"k{i}": 0.5 for i in range(5000)}).unknown_names(CATEGORIES)
    assert (unknown[0], unknown[19:]) == ("'k0'", ["'k19'", "4,980 more"])


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan")])
def test_no_score(score: float) -> None:
    with pytest.raises(ExportError, match="from 0 to 1"):
        read_selection(None, score)


@pytest.mark.parametrize("text", ["cat: 2", "cat: high", "- cat", "", "cat: .nan"])
def test_bad_file(tmp_path: Path, text: str) -> None:
    file = tmp_path / "thresholds.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"thresholds\.yaml"):
        read_selection(UriText(str(file)), 0)

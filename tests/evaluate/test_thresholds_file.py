"""The file goes through the reader of the annotate job's config and keeps the very detections that were counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.annotate.config import AnnotateConfig
from pipeline.config.loading import load_config
from pipeline.evaluate.thresholds_file import thresholds_yaml
from pipeline.metrics.analysis.thresholds import ClassThreshold, ThresholdTracker, wilson_interval
from tests.metrics.record_cases import records_of

CONFIG = """
manifest: {uri: in.csv}
output: {uri: out}
model: {checkpoint: swin_t_coco, class_thresholds_file: FILE}
"""


def _at(threshold: float | None) -> ClassThreshold:
    if threshold is None:
        return ClassThreshold(None, None, None, 0, 12, None, None)
    return ClassThreshold(threshold, wilson_interval(9, 10), wilson_interval(9, 30), 10, 30, 0.5, threshold)


def _read_by_config(text: str, folder: Path) -> dict[str, float]:
    (folder / "thresholds.yaml").write_text(text, encoding="utf-8")
    (folder / "run.yaml").write_text(CONFIG.replace("FILE", str(folder / "thresholds.yaml")), encoding="utf-8")
    return load_config(AnnotateConfig, folder / "run.yaml").model.class_thresholds


def test_what_people_read() -> None:
    assert thresholds_yaml(["person", "dog"], [_at(0.25), _at(None)], 0.9) == (
        "# Lowest scores with a precision of 0.9 at an IoU of 0.5; in brackets: 95 % intervals\n"
        '"person": 0.25  # precision 0.900 [0.596, 0.982], recall 0.300 [0.167, 0.479], 10 labels, 30 objects\n'
        '"dog": 1.0  # never reaches the precision; 12 objects\n'
    )


def test_odd_names_go_through_the_config(tmp_path: Path) -> None:
    names = [
        "no",
        "1e6",
        "null",
        "~",
        "a: b",
        "# c",
        "it's",
        'say "hi"',
        "zebra\ncrossing",
        " pad ",
        "ключ",
        "日本",
        "x" * 500,
    ]
    names += ["- d", "?", "\\", "\t", "\u2028", "😀", "{e}", "!!f", "&g", "*h", "%i", "@j", "=", "<<", "true", "0o7"]
    scores = [0.5 + n / 1000 for n in range(len(names))]
    text = thresholds_yaml(names, [_at(score) for score in scores], 0.9)
    assert _read_by_config(text, tmp_path) == dict(zip(names, scores, strict=True))
    assert yaml.safe_load(text) == dict(zip(names, scores, strict=True))


def test_every_score_goes_through_the_config(tmp_path: Path) -> None:
    scores = [0.0, 1.0, 1e-5, 5e-324, float(np.float32(0.1)), 0.1 + 0.2, np.nextafter(1, 0).item(), 0.05]
    scores += np.random.default_rng(0).random(300, np.float32).tolist()
    names = [f"category {n}" for n in range(len(scores))]
    read = _read_by_config(thresholds_yaml(names, [_at(score) for score in scores], 0.9), tmp_path)
    assert list(read.values()) == scores


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20), st.integers(0, 2**32 - 1))
def test_the_same_detections_survive(scores: list[float], seed: int) -> None:
    """Scores are float32 in the model, float64 here, text in the file, float32 in the annotate job's comparison."""
    scores = sorted((score + 0.0 for score in scores), reverse=True)
    hits = np.random.default_rng(seed).random(len(scores)) < 0.7
    tracker = ThresholdTracker(0.6, len(scores))
    tracker.update(records_of([(score, "t" if hit else "f") for score, hit in zip(scores, hits, strict=True)]))
    found = tracker.result()
    read = yaml.safe_load(thresholds_yaml(["cat"], [found], 0.6))["cat"]
    if found.threshold is None:
        assert read == 1.0
    else:
        kept = np.array(scores, np.float32) >= np.array([read], np.float32)[np.zeros(len(scores), np.int64)]
        assert kept.sum() == found.labels == sum(score >= read for score in scores)
        assert hits[kept].mean() >= 0.6


@pytest.mark.parametrize(
    ("names", "threshold", "message"),
    [
        (["a", "b", "a"], 0.5, "several categories are called 'a'"),
        (["a", "", "b"], 0.5, "a category has none"),
        (["a", "b", "c"], 1.5, "1.5 of 'a' is no score from 0 to 1"),
        (["a", "b", "c"], -0.5, "-0.5 of 'a' is no score from 0 to 1"),
    ],
)
def test_what_no_config_would_take(names: list[str], threshold: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        thresholds_yaml(names, [_at(threshold)] * 3, 0.9)

"""The list of metrics: what each entry has to be like."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from pipeline.evaluate.analysis import AnalysisPlan, block_metrics, sorted_metrics
from pipeline.evaluate.config import AnalysisConfig
from pipeline.evaluate.report.page import render_report
from pipeline.metrics.streams import stream_dtype
from pipeline.storage.uris import Uri
from tests.metrics.block_cases import NUM_CATEGORIES, Image, compared

PLAN = AnalysisPlan(AnalysisConfig(), "segm", 2, Uri("matches"))
NAMES = [f"category {k}" for k in range(NUM_CATEGORIES)]
BLOCKS = [Image([0, 1], [(0, 0.9), (1, 0.8)], [(0.9, 0.0), (0.2, 0.7)]), Image([2], [(1, 0.6)], [(0.8,)]), Image()]


@pytest.mark.parametrize("name", block_metrics(PLAN, NUM_CATEGORIES))
def test_what_machines_have_is_merged_and_stays_as_it_was(name: str) -> None:
    whole, merged = (block_metrics(PLAN, NUM_CATEGORIES)[name] for _ in range(2))
    for image in BLOCKS:
        whole.update(compared(image))
        part = block_metrics(PLAN, NUM_CATEGORIES)[name]
        part.update(compared(image))
        before = pickle.dumps(part)
        merged.merge(part)
        assert pickle.dumps(part) == before
    assert merged.result().to_json(NAMES) == whole.result().to_json(NAMES)


@pytest.mark.parametrize("name", sorted_metrics(PLAN))
def test_categories_without_detections(name: str) -> None:
    metric = sorted_metrics(PLAN)[name]
    dtype = stream_dtype(metric.stream)
    results = []
    for _ in NAMES:
        category = metric.start(np.zeros(dtype["tp"].shape[0], np.int64))
        category.update(np.empty(0, dtype))
        results.append(category.result())
    json.dumps(metric.join(results).to_json(NAMES), allow_nan=False)


def test_sections_are_in_the_report_in_the_order_of_the_list() -> None:
    figures = {name: metric.result() for name, metric in block_metrics(PLAN, NUM_CATEGORIES).items()}
    for name, metric in sorted_metrics(PLAN).items():
        num_objects = np.zeros(stream_dtype(metric.stream)["tp"].shape[0], np.int64)
        figures[name] = metric.join([metric.start(num_objects).result() for _ in NAMES])
    page = render_report({name: each.to_json(NAMES) for name, each in figures.items()})
    places = [page.index(f'<section id="{name}">') for name in figures]
    assert places == sorted(places)

"""The report, from what metrics.json says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from jinja2 import Environment

from pipeline.evaluate.report import sections
from pipeline.evaluate.report.cards import GalleryImage, gallery_cards
from pipeline.metrics.protocol import COCO_MAX_DETS
from pipeline.model.categories import Category
from pipeline.page.shell import environment, rendered
from pipeline.provenance import begun_at
from pipeline.storage.uris import UriText

_TEMPLATE = "report.html.jinja"
_OPEN_CLASSES = 3  # of the gallery; the others unfold


def render_report(metrics: Mapping[str, Any], gallery: Iterable[GalleryImage] = (), title: str = "") -> str:
    """The page.

    Args:
        metrics: what the evaluation job writes as JSON. A section that is not there is not shown.
        gallery: examples, drawn one at a time; their labels are positions in ``metrics["categories"]``.
        title: of the page; by default the one in the metrics.

    Returns:
        HTML that UTF-8 can hold.

    Raises:
        ValueError: a section whose parts do not fit each other.
        KeyError: a section with parts missing.
    """
    categories = [Category(row["id"], row["name"]) for row in metrics.get("categories", ())]
    context = {
        "title": title or metrics.get("title") or "Evaluation",
        **_what_was_evaluated(metrics),
        **_numbers(metrics),
        "sections": _sections(metrics),
        "gallery": gallery_cards(gallery, categories),
        "open_classes": _OPEN_CLASSES,
    }
    return rendered(_templates(), _TEMPLATE, context)


def _what_was_evaluated(metrics: Mapping[str, Any]) -> dict[str, Any]:
    sources = metrics.get("sources", {})
    images = metrics.get("images")
    return {
        "sources": {name: str(UriText(sources[name])) for name in ("predictions", "ground_truth") if sources.get(name)},
        "model": {name.replace("_", " "): value for name, value in (sources.get("model") or {}).items()},
        "begun": begun_at((metrics.get("run") or {}).get("run_id", "")),
        "images": images,
        "books": sections.books(images or {}),
        "decisions": metrics.get("decisions", ()),
        "failures": metrics.get("failures") or {},
        "categories": metrics.get("categories", ()),
    }


def _numbers(metrics: Mapping[str, Any]) -> dict[str, Any]:
    summary, per_class = metrics.get("summary", {}), metrics.get("per_class", {})
    labels, max_dets = sections.IOU_LABELS, metrics.get("max_dets", COCO_MAX_DETS)
    return {
        "headlines": sections.headlines(summary, max_dets),
        "stats": sections.stat_rows(summary, max_dets),
        "mmdet": metrics.get("mmdet") or {},
        "per_class": {labels[kind]: sections.worst_first(per_class[kind]) for kind in labels if kind in per_class},
        "curves": [sections.curves(metrics, kind) for kind in labels if kind in metrics.get("curves", {})],
    }


def _sections(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Those of metrics.json that have a template of their name, in the order of metrics.json."""
    templates = set(_templates().list_templates())
    return {
        name: section for name, section in metrics.items() if section and f"sections/{name}.html.jinja" in templates
    }


@cache
def _templates() -> Environment:
    return environment("pipeline.evaluate.report", sections.VIEWS)

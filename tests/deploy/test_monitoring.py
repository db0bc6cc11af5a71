"""Metrics, dashboard and alert rules belong together: what a real run shows on its endpoint is what they ask for."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import ray
import yaml
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from pipeline.annotate.config import AnnotateConfig
from pipeline.annotate.metrics import METRICS
from pipeline.annotate.run import annotate
from pipeline.annotate.summary import page
from pipeline.annotate.summary.sample import Sample
from pipeline.model.categories import Category
from pipeline.model.files.checkpoints import save_checkpoint
from testing.small_model import TINY, TINY_SETTINGS, picture, random_checkpoint
from tests.deploy.promql import Labels, Series, evaluate, grouped_by, selectors

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "deploy/grafana_dashboard.json").read_text())
GROUPS = yaml.safe_load((ROOT / "deploy/prometheus_alerts.yaml").read_text())["groups"]
RULES: dict[str, dict[str, Any]] = {rule["alert"]: rule for group in GROUPS for rule in group["rules"]}
CATEGORIES = (Category(1, "ball"), Category(2, "tile"), Category(3, "kite"))
RAYS_PREFIX = "ray_"
# Ray's processes send their metrics every ten seconds.
EXPORTED_S = 30.0


def queries() -> Iterator[tuple[str, str]]:
    """Of the dashboard and the rules, with names; the dashboard's variable stands for any run."""
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$run", ".*")
    for name, rule in RULES.items():
        yield name, rule["expr"]


@dataclass(frozen=True)
class Known:
    """A metric as it is on the endpoint: its type, the names of its labels, and the last values by label."""

    type: str
    labels: set[str]
    values: dict[str, float]


@pytest.fixture(scope="module")
def endpoint(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Known]:
    """What Prometheus would read from the node, by name, after a run over six pictures of which one is damaged."""
    folder = tmp_path_factory.mktemp("monitoring")
    pictures = folder / "pictures"
    pictures.mkdir()
    save_checkpoint(random_checkpoint(TINY, CATEGORIES, TINY_SETTINGS), folder / "tiny.safetensors")
    for i in range(5):
        Image.fromarray(picture(48, 64, seed=i)).save(pictures / f"{i}.png")
    (pictures / "damaged.png").write_bytes(b"not a picture")
    config = {
        "manifest": {"uri": str(pictures), "format": "folder"},
        "model": {"checkpoint": str(folder / "tiny.safetensors"), "batch_size": 2},
        "output": {"uri": str(folder / "out"), "max_failed_fraction": 0.5},
    }
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(page, "draw_sample", lambda *_: Sample())
        run_id = annotate(AnnotateConfig.model_validate(config)).run_id
    wanted = {RAYS_PREFIX + metric.name for metric in METRICS}
    give_up_at = time.monotonic() + EXPORTED_S
    while not (found := _scraped(run_id)).keys() >= wanted and time.monotonic() < give_up_at:
        time.sleep(1.0)
    return found


def _scraped(run_id: str) -> dict[str, Known]:
    (node,) = ray.nodes()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        samples = [s for s in family.samples if s.labels.get("run") == run_id]
        if samples:
            own = next((m.label for m in METRICS if samples[0].name == RAYS_PREFIX + m.name), None) or "run"
            values = {sample.labels[own]: sample.value for sample in samples}
            found[samples[0].name] = Known(family.type, set(samples[0].labels), values)
    return found


@pytest.mark.ray
class TestEndpoint:
    def test_a_run_shows_every_metric(self, endpoint: dict[str, Known]) -> None:
        shown = {name: (known.type, "run" in known.labels) for name, known in endpoint.items()}
        expected = {RAYS_PREFIX + m.name: ("counter" if m.is_counter else "gauge", True) for m in METRICS}
        assert shown == expected
        for metric in METRICS:
            assert metric.label is None or metric.label in endpoint[RAYS_PREFIX + metric.name].labels

    def test_values_are_those_of_the_run_that_has_ended(self, endpoint: dict[str, Known]) -> None:
        def of(name: str) -> dict[str, float]:
            return endpoint[f"ray_maskfleet_{name}"].values

        assert list(of("images_written_total").values()) == [6]
        assert of("images_failed_total") == {"not_an_image": 1}
        assert of("stage_seconds_total").keys() == {"fetch", "decode", "segment", "encode", "write"}
        assert list(of("images_due").values()) == [6]
        for still in ("images_pending", "images_per_second", "eta_seconds", "replicas_ready"):
            assert list(of(still).values()) == [0]
        assert abs(next(iter(of("progress_timestamp_seconds").values())) - time.time()) < 120

    @pytest.mark.parametrize("query", [pytest.param(query, id=name) for name, query in queries()])
    def test_a_query_asks_for_what_there_is(self, endpoint: dict[str, Known], query: str) -> None:
        parsed = promql_parser.parse(query)
        asked = list(selectors(parsed))
        assert asked
        for selector, function in asked:
            known = endpoint[selector.name]
            matchers = selector.matchers.matchers
            assert {matcher.name for matcher in matchers} <= known.labels
            for matcher in matchers:
                assert matcher.name == "run" or matcher.value in known.values
            # A counter says something by how it grows, a gauge by what it is.
            assert (function in ("rate", "increase")) == (known.type == "counter")
        for kept, below in grouped_by(parsed):
            assert all(kept <= endpoint[name].labels for name in below)


def test_the_docs_name_them_all() -> None:
    row = re.compile(r"^\| `(maskfleet_\w+)` \| (counter|gauge) \| (?:`(\w+)`)? ?\|", re.MULTILINE)
    told = row.findall((ROOT / "docs/monitoring.md").read_text())
    assert told == [(m.name, "counter" if m.is_counter else "gauge", m.label or "") for m in METRICS]


def test_alerts_are_told_in_the_docs() -> None:
    told = re.findall(r"^\| `(Maskfleet\w+)` \|", (ROOT / "docs/monitoring.md").read_text(), re.MULTILINE)
    assert told == list(RULES)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_has_what_prometheus_wants(name: str) -> None:
    rule = RULES[name]
    assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}
    assert promql_parser.parse_duration(rule["for"]).total_seconds() > 0
    assert rule["labels"]["severity"] in ("warning", "critical")
    kept = set.intersection(*(labels for labels, _ in grouped_by(promql_parser.parse(rule["expr"]))))
    for text in rule["annotations"].values():
        assert set(re.findall(r"\$labels\.(\w+)", text)) <= kept


def test_the_dashboard_has_what_grafana_wants() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"])))
    assert used == variables
    run = next(v for v in DASHBOARD["templating"]["list"] if v["name"] == "run")
    asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", run["query"]["query"])
    assert asked
    assert asked[1].removeprefix(RAYS_PREFIX) in {metric.name for metric in METRICS}
    assert asked[2] == "run"
    for panel in DASHBOARD["panels"]:
        legends = {label for t in panel["targets"] for label in re.findall(r"{{(\w+)}}", t["legendFormat"])}
        for target in panel["targets"]:
            parsed = promql_parser.parse(target["expr"].replace("$run", ".*"))
            assert all(legends <= kept for kept, _ in grouped_by(parsed)) or panel["type"] == "timeseries"
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24


HOUR = 3600.0
# Ray shows the last gauges of a process for so long.
SHOWN_AFTER_S = 20.0
Value = Callable[[float], "float | None"]


def run_of(
    *,
    until: float = 10 * HOUR,
    stuck_at: float = 10 * HOUR,
    failing: float = 0.0,
    busy: float = 0.9,
    eta: float = HOUR,
    pending_at_end: float = 1000.0,
) -> Series:
    """The series of a run of ten images a second and four replicas, which begins at time 0."""

    def there(value: Callable[[float], float]) -> Value:
        return lambda t: value(t) if 0 <= t <= until else None

    def moved(t: float) -> float:
        return min(t, stuck_at)

    def series(name: str, value: Value, **labels: str) -> tuple[tuple[str, Labels], Value]:
        return (f"ray_maskfleet_{name}", frozenset({"run": "r", "WorkerId": "w", **labels}.items())), value

    left = there(lambda t: pending_at_end if t > until - SHOWN_AFTER_S else 1000.0)
    return dict(
        [
            series("images_written_total", lambda t: 10 * moved(t) if t >= 0 else None),
            series("images_failed_total", lambda t: failing * 10 * moved(t) if t >= 0 else None, code="timeout"),
            series("stage_seconds_total", lambda t: 4 * busy * moved(t) if t >= 0 else None, stage="segment"),
            series("stage_seconds_total", lambda t: 40 * moved(t) if t >= 0 else None, stage="fetch"),
            series("images_pending", left),
            series("replicas_ready", there(lambda t: 4.0)),
            series("eta_seconds", there(lambda t: eta)),
            series("progress_timestamp_seconds", there(moved)),
        ]
    )


def fired(series: Series, until: float = 2 * HOUR) -> dict[str, float]:
    """The alerts that fire within a time, and from when on, looked at once a minute."""
    found: dict[str, float] = {}
    for name, rule in RULES.items():
        parsed, pending_since = promql_parser.parse(rule["expr"]), None
        wanted_s = promql_parser.parse_duration(rule["for"]).total_seconds()
        for minute in range(int(until // 60)):
            now = minute * 60.0
            if not evaluate(parsed, series, now):
                pending_since = None
                continue
            pending_since = now if pending_since is None else pending_since
            if now - pending_since >= wanted_s:
                found[name] = now
                break
    return found


@pytest.mark.parametrize(
    ("series", "alerts"),
    [
        pytest.param(run_of(), {}, id="a run that does well"),
        *(
            pytest.param(run_of(until=HOUR + s, pending_at_end=0.0), {}, id=f"a run that ended well, {s:g} s later")
            for s in (0.0, 20.0, 40.0, 59.0)
        ),
        pytest.param(
            run_of(stuck_at=0.5 * HOUR),
            # The quarter of an hour, and the minute that is waited for; idle is what waited for storage as well.
            {"MaskfleetNoProgress": (0.76, 0.80), "MaskfleetGpusIdle": (0.75, 0.85)},
            id="a run that is stuck",
        ),
        pytest.param(run_of(until=0.5 * HOUR), {"MaskfleetRunGone": (0.5, 0.55)}, id="a driver that died"),
        pytest.param(run_of(failing=0.1), {"MaskfleetFailuresRising": (0.05, 0.2)}, id="one image in ten fails"),
        pytest.param(run_of(failing=0.01), {}, id="one image in a hundred fails"),
        pytest.param(run_of(busy=0.3), {"MaskfleetGpusIdle": (0.25, 0.3)}, id="GPUs that wait"),
        pytest.param(run_of(busy=0.6), {}, id="GPUs that wait a little"),
        pytest.param(run_of(eta=13 * HOUR), {"MaskfleetLate": (0.25, 0.3)}, id="a run that takes too long"),
    ],
)
def test_alerts_fire_when_they_should(series: Series, alerts: dict[str, tuple[float, float]]) -> None:
    found = fired(series)
    assert found.keys() == alerts.keys()
    for name, (low, high) in alerts.items():
        assert low * HOUR <= found[name] <= high * HOUR, (name, found[name] / HOUR)

"""Dashboards and alerts read series that some process has, and what the chart makes of them."""

from __future__ import annotations

import json
import re

import pytest
from dev.dashboards.__main__ import FILES, text
from dev.dashboards.boards import DASHBOARDS
from dev.docs.metrics_page import OF_VLLM, REGISTRIES, declared
from dev.monitoring.pod_monitors import KINDS
from tests.api.test_chart import SYSTEM, VALUES, ApiServerError, objects, render
from tests.monitoring.chart import rendered
from tests.monitoring.test_alerts import ALERTS

CHOSEN = {"namespace": "ml", "model": "arith"}
# Of the Prometheus client, and of Prometheus itself.
OF_OTHERS = {
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
}
SERIES = re.compile(r"(?<![\w:])(?:espalier_|vllm:|process_)[\w:]+")
# Words that a user chooses: a label with one of them would be a series for each.
USERS_OWN = {"user", "caller", "slug", "adapter", "checkpoint", "task", "path", "model", "run"}


def known() -> set[str]:
    names = set(OF_OTHERS)
    for module in REGISTRIES:
        for series in declared(module):
            (family,) = series.describe()
            names |= {family.name, f"{family.name}_total"}
            names |= {f"{family.name}{part}" for part in ("_bucket", "_sum", "_count")}
    return names | {f"{name}{part}" for name in OF_VLLM for part in ("", "_bucket")}


EXPRESSIONS = [
    *((f"{d.name}: {title}", e) for d in DASHBOARDS for title, e in d.expressions(CHOSEN, "5m")),
    *((name, rule["expr"]) for name, rule in ALERTS.items()),
]


def test_every_query_reads_series_that_some_process_has() -> None:
    there = known()
    for place, expression in EXPRESSIONS:
        read = set(SERIES.findall(re.sub(r'"[^"]*"', "", expression)))
        assert read <= there, place
        assert read or "up{" in expression, place
    used = {name for _, expression in EXPRESSIONS for name in SERIES.findall(expression)}
    assert {name for name in OF_VLLM if name not in used and f"{name}_bucket" not in used} == set()


def test_no_series_of_ours_has_a_label_of_a_users_choice_or_an_unusual_name() -> None:
    for module in REGISTRIES:
        for series in declared(module):
            assert re.fullmatch(r"espalier_[a-z_]+", series._name)
            assert not USERS_OWN & set(series._labelnames), series._name


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda one: one.name)
def test_a_dashboard_of_the_chart_is_what_the_code_says(dashboard: object) -> None:
    path = FILES / f"{dashboard.name}.json"  # type: ignore[attr-defined]
    assert path.read_text() == text(dashboard), "run: make docs-pages"  # type: ignore[arg-type]


def test_grafana_finds_dashboards_that_were_asked_for() -> None:
    assert not objects(render(*VALUES), "ConfigMap")
    maps = objects(render(*VALUES, "monitoring.dashboards.enabled=true"), "ConfigMap")
    assert set(maps) == {f"{SYSTEM}/espalier-dashboard-{one.name}" for one in DASHBOARDS}
    for one in maps.values():
        assert one["metadata"]["labels"]["grafana_dashboard"] == "1"
        ((_, body),) = one["data"].items()
        panels = json.loads(body)["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
        assert len(places) == len(panels)


def test_objects_of_the_prometheus_operator_are_made_where_it_is_or_refused_by_name() -> None:
    for kind, value in zip(KINDS, ("podMonitors", "rules"), strict=True):
        assert objects(rendered(), kind)
        assert not objects(render(*VALUES), kind)
        assert not objects(rendered(f"monitoring.{value}.create=Never"), kind)
        said = rf"monitoring\.{value}\.create is Always, and this cluster does not know .* {kind}"
        with pytest.raises(ApiServerError, match=said):
            render(*VALUES, f"monitoring.{value}.create=Always")
    labelled = rendered("monitoring.podMonitors.labels.release=stack")
    assert {
        one["metadata"]["labels"]["release"] for one in objects(labelled, "PodMonitor").values()
    } == {"stack"}

"""A Prometheus in the cluster has read the run from its start: every panel shows it."""

from __future__ import annotations

import time

import pytest
from dev.dashboards.boards import DASHBOARDS
from dev.dashboards.panels import Dashboard
from dev.monitoring.prometheus import Prometheus
from tests.e2e.conftest import NAMESPACE
from tests.e2e.kubectl import Kubectl

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

# No node of the tests has a GPU.
ABSENT = {"espalier_trainer_gpu_memory_bytes"}
SPAN = 3600.0


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda one: one.name)
def test_every_panel_shows_the_run(
    dashboard: Dashboard, trained: str, prometheus: Prometheus
) -> None:
    now = time.time()
    chosen = {"namespace": NAMESPACE, "model": "tiny"}
    shown: dict[str, list[bool]] = {}
    for panel, expression in dashboard.expressions(chosen, "30s"):
        if not any(name in expression for name in ABSENT):
            found = prometheus.range(expression, now - SPAN, now, 10)
            shown.setdefault(panel, []).append(bool(found))
    # A run in which nothing was refused has no refusals to show beside what its panel is about.
    assert [panel for panel, found in shown.items() if not any(found)] == []


def test_each_series_says_of_whom_it_is(
    kubectl: Kubectl, trained: str, prometheus: Prometheus
) -> None:
    steps = "max_over_time(espalier_runner_steps_total[1h])"
    by_run = prometheus.query(f"sum by (job, namespace, model, run) ({steps})")
    assert {tuple(sorted(one["metric"].items())) for one in by_run} >= {
        (
            ("job", "espalier-runner"),
            ("model", "tiny"),
            ("namespace", NAMESPACE),
            ("run", trained),
        )
    }
    jobs = {
        one["metric"]["job"] for one in prometheus.query("count by (job) (max_over_time(up[1h]))")
    }
    assert jobs >= {
        f"espalier-{one}" for one in ("operator", "gateway", "trainer", "rollout", "runner")
    }
    taken = prometheus.value('sum(max_over_time(espalier_trainer_steps_total{model="tiny"}[1h]))')
    recorded = [c for c in kubectl.list("checkpoints") if c["spec"]["modelRef"]["name"] == "tiny"]
    # What a trainer counted between its last scrape and its death is lost. Other tests train too.
    assert 1 <= taken <= len(recorded)


def test_no_scrape_is_refused_and_no_series_is_of_an_adapter(
    trained: str, prometheus: Prometheus
) -> None:
    assert [
        target for target in prometheus.targets() if "401" in target[2] or "403" in target[2]
    ] == []
    of_samplers = '{job="espalier-rollout", __name__=~"vllm:.+"%s}[1h]'
    assert prometheus.query(f"last_over_time({of_samplers % ''})")
    for label in ("running_lora_adapters", "waiting_lora_adapters"):
        by_adapter = of_samplers % f', {label}=~".+"'
        assert prometheus.query(f"last_over_time({by_adapter})") == []

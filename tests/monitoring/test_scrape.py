"""A real Prometheus reads processes of ours as the PodMonitors of the chart say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp.test_utils import TestServer
from dev.dashboards.boards import DASHBOARDS
from dev.monitoring import prometheus
from dev.monitoring.pod_monitors import scrape_configs
from dev.monitoring.prometheus import Prometheus
from prometheus_client import start_http_server
from tests.api.test_chart import SYSTEM, TEAM, objects
from tests.monitoring.chart import rendered
from tests.monitoring.test_alerts import ALERTS, RULES
from tests.monitoring.test_dashboards import EXPRESSIONS

from espalier import identity
from espalier.kube.probes import HealthServer
from espalier.trainer.http.service import Service

OPERATOR = identity.generate_private_key()
KEYS = identity.PublicKeys.of(OPERATOR, identity.generate_private_key())


def pod(port: int, name: str, namespace: str, port_name: str, **labels: str) -> dict[str, Any]:
    """A pod at a port of this machine, as the discovery in a cluster finds one."""
    found = {
        "namespace": namespace,
        "pod_name": name,
        "pod_phase": "Running",
        "pod_container_name": "main",
        "pod_container_port_name": port_name,
    } | {f"pod_label_{label}": value for label, value in labels.items()}
    labelled = {f"__meta_kubernetes_{key}": value for key, value in found.items()}
    return {"targets": [f"127.0.0.1:{port}"], "labels": labelled}


def installation(component: str) -> dict[str, str]:
    name = {"app_kubernetes_io_name": "espalier", "app_kubernetes_io_instance": "espalier"}
    return {**name, "app_kubernetes_io_component": component}


def child(role: str, **run: str) -> dict[str, str]:
    ours = {"app_kubernetes_io_managed_by": "espalier", "espalier_dev_role": role}
    return {**ours, "espalier_dev_model": "arith", **run}


@pytest.fixture
async def pods() -> AsyncIterator[list[dict[str, Any]]]:
    """An operator's and a runner's metrics, a trainer that loads its base, and what is not ours."""
    served, thread = start_http_server(0, addr="127.0.0.1")
    service = Service(KEYS, "team/arith/trainer/uid-1")
    async with (
        HealthServer(0, {}, {}, host="127.0.0.1") as operator,
        TestServer(service.app()) as trainer,
    ):
        of_trainer = child("trainer")
        yield [
            pod(operator.port, "espalier-operator-x", SYSTEM, "health", **installation("operator")),
            pod(trainer.port, "arith-trainer-0", TEAM, "http", **of_trainer),
            pod(trainer.port, "elsewhere", "another", "http", **of_trainer),
            pod(trainer.port, "of-somebody", TEAM, "http", espalier_dev_role="trainer"),
            pod(
                served.server_port,
                "sums-runner-x",
                TEAM,
                "metrics",
                **child("runner", espalier_dev_run="sums"),
            ),
        ]
        service.feed.close()
    await asyncio.to_thread(served.shutdown)
    thread.join()


def read(targets: list[dict[str, Any]], token: str) -> list[dict[str, Any]]:
    monitors = objects(rendered(), "PodMonitor").values()
    return list(scrape_configs(monitors, {"credentials": token}, {"static_configs": targets}))


async def test_prometheus_reads_our_pods_and_names_them_by_their_labels(
    pods: list[dict[str, Any]],
) -> None:
    def look(found: Prometheus) -> None:
        up = {one["metric"]["pod"]: one for one in found.until("up == 1", 3)}
        wanted: dict[str, dict[str, str]] = {
            "espalier-operator-x": {"job": "espalier-operator", "namespace": SYSTEM},
            "arith-trainer-0": {"job": "espalier-trainer", "namespace": TEAM, "model": "arith"},
            "sums-runner-x": {
                "job": "espalier-runner",
                "namespace": TEAM,
                "model": "arith",
                "run": "sums",
            },
        }
        assert set(up) == set(wanted)
        for name, labels in wanted.items():
            assert up[name]["metric"].items() >= labels.items()
        assert found.query('espalier_trainer_queue_length{model="arith", pod="arith-trainer-0"}')
        # Each is understood, whatever it finds here.
        for _, expression in EXPRESSIONS:
            found.query(expression)
        assert found.firing() <= set(ALERTS)

    with prometheus.running(read(pods, identity.issue_scrape(OPERATOR)), [RULES]) as found:
        await asyncio.to_thread(look, found)


async def test_without_the_operators_token_a_trainer_is_down_and_says_401(
    pods: list[dict[str, Any]],
) -> None:
    def look(found: Prometheus) -> list[tuple[str, str, str]]:
        found.until('up{job="espalier-trainer"} == 0', 1)
        found.until('up{job="espalier-runner"} == 1', 1)
        return found.targets()

    forged = identity.issue_scrape(identity.generate_private_key())
    with prometheus.running(read(pods, forged)) as found:
        targets = await asyncio.to_thread(look, found)
    assert len([error for _, health, error in targets if health == "down" and "401" in error]) == 1


def test_every_dashboard_asks_of_what_a_reader_chooses_and_nothing_else() -> None:
    for dashboard in DASHBOARDS:
        chosen = {variable.name: variable.name for variable in dashboard.variables}
        assert dashboard.expressions(chosen, "1m")

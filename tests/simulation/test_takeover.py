"""Two operators as processes on a real API server: death, a freeze and a server that restarts."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import pytest
from dev.apiserver import ApiServer
from dev.ports import free_port
from tests.simulation.world import head_spec

from espalier.kube.apiserver import KubernetesCluster
from espalier.kube.cluster import ClusterError
from espalier.kube.objects import Body, ObjectKey

WAIT_SECONDS = 120
LEASE = "espalier-operator"


@dataclass
class Replica:
    """A process of the operator and its metrics."""

    name: str
    process: asyncio.subprocess.Process
    port: int

    async def metrics(self) -> str:
        url = f"http://127.0.0.1:{self.port}/metrics"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return await answer.text()

    async def end(self) -> int:
        return await asyncio.wait_for(self.process.wait(), WAIT_SECONDS)


@asynccontextmanager
async def operator(
    apiserver: ApiServer, system: str, namespace: str, name: str
) -> AsyncIterator[Replica]:
    port = free_port()
    environment = {
        **os.environ,
        "KUBECONFIG": str(apiserver.kubeconfig),
        "POD_NAMESPACE": system,
        "ESPALIER_NAMESPACES": namespace,
        "POD_NAME": name,
        "ESPALIER_IMAGE_TRAINER": "trainer:1",
        "ESPALIER_IMAGE_ROLLOUT": "rollout:1",
        "ESPALIER_IMAGE_RUNNER": "runner:1",
        "ESPALIER_GATEWAY_URL": "http://gateway",
        "ESPALIER_HEALTH_PORT": str(port),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "espalier.controllers", env=environment
    )
    try:
        yield Replica(name, process, port)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


class Seen:
    """What the API server holds of a namespace, and the Lease in Espalier's own."""

    def __init__(self, cluster: KubernetesCluster, namespace: str, system: str) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._system = system

    async def get(self, kind: str, name: str) -> Body:
        namespace = self._system if kind == "Lease" else self._namespace
        try:
            return await self._cluster.get(ObjectKey(kind, namespace, name)) or {}
        except ClusterError:
            return {}

    async def holder(self) -> str:
        return str((await self.get("Lease", LEASE)).get("spec", {}).get("holderIdentity", ""))

    async def until(self, kind: str, name: str, reached: Callable[[Body], bool]) -> Body:
        body: Body = {}
        for _ in range(WAIT_SECONDS * 5):
            body = await self.get(kind, name)
            if body and reached(body):
                return body
            await asyncio.sleep(0.2)
        raise AssertionError(f"{kind} {name} stays {body}")

    async def edit(self, name: str, mode: str, checkpoint: str = "") -> None:
        metadata = {"name": name, "namespace": self._namespace}
        body = {"metadata": metadata, "spec": head_spec("absent", mode, checkpoint)}
        await self._cluster.apply("CheckpointHead", body, manager="kubectl")


def held_by(name: str) -> Callable[[Body], bool]:
    return lambda lease: lease["spec"].get("holderIdentity") == name


def observed(generation: int) -> Callable[[Body], bool]:
    return lambda body: body.get("status", {}).get("observedGeneration") == generation


@pytest.fixture
async def seen(
    apiserver: ApiServer, namespace: str, system: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Seen]:
    monkeypatch.setenv("KUBECONFIG", str(apiserver.kubeconfig))
    async with await KubernetesCluster.connect() as cluster:
        yield Seen(cluster, namespace, system)


async def test_a_frozen_leader_is_superseded_and_writes_nothing_when_it_wakes(
    apiserver: ApiServer, namespace: str, system: str, seen: Seen
) -> None:
    async with operator(apiserver, system, namespace, "first") as first:
        await seen.until("Lease", LEASE, held_by("first"))
        await seen.edit("canary", "Track")
        await seen.until("CheckpointHead", "canary", observed(1))
        async with operator(apiserver, system, namespace, "second") as second:
            first.process.send_signal(signal.SIGSTOP)
            await seen.edit("canary", "Pin", "absent-000001")
            await seen.until("Lease", LEASE, held_by("second"))
            await seen.until("CheckpointHead", "canary", observed(2))
            before = await seen.get("CheckpointHead", "canary")
            first.process.send_signal(signal.SIGCONT)
            assert await first.end() == 1
            assert await seen.holder() == "second"
            assert await seen.get("CheckpointHead", "canary") == before

            text = await second.metrics()
            assert "espalier_leader 1.0" in text
            assert 'espalier_reconcile_total{kind="CheckpointHead",result="success"}' in text
            for name in DOCUMENTED:
                assert f"# TYPE {name} " in text, name

            second.process.send_signal(signal.SIGTERM)
            assert await second.end() == 0
            assert await seen.holder() == ""


async def test_the_operator_goes_on_when_the_api_server_has_restarted(
    apiserver: ApiServer, namespace: str, system: str, seen: Seen
) -> None:
    async with operator(apiserver, system, namespace, "only") as only:
        await seen.edit("canary", "Track")
        await seen.until("CheckpointHead", "canary", observed(1))
        apiserver.restart()
        # A read may be sent again where an edit may not: it finds the old connections closed.
        await seen.holder()
        await seen.edit("canary", "Pin", "absent-000001")
        going_on = asyncio.create_task(seen.until("CheckpointHead", "canary", observed(2)))
        ended = asyncio.create_task(only.process.wait())
        await asyncio.wait({going_on, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            ended.cancel()
            return
        # The server was away for longer than the lease: the process gave up, and is started again.
        assert ended.result() == 1
        async with operator(apiserver, system, namespace, "only"):
            await going_on


DOCUMENTED = (
    "espalier_workqueue_depth",
    "espalier_workqueue_oldest_seconds",
    "espalier_workqueue_longest_running_processor_seconds",
    "espalier_workqueue_queue_duration_seconds",
    "espalier_reconcile_total",
    "espalier_reconcile_duration_seconds",
    "espalier_watch_event_age_seconds",
    "espalier_watch_events_total",
    "espalier_watch_lists_total",
    "espalier_watch_missed_deletes_total",
    "espalier_pods_ignored_total",
    "espalier_apiserver_requests_total",
    "espalier_event_loop_lag_seconds",
    "espalier_head_moves_total",
    "espalier_head_swap_seconds",
    "espalier_leader",
    "espalier_objects",
)

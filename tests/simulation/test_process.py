"""The operator's process on a real API server: its controllers run, its pods are played by us."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from dev.apiserver import ApiServer
from dev.ports import free_port
from tests.simulation.kubelet import RESOLVED
from tests.simulation.servers import ROLLOUT_IP, TRAINER_IP, Servers, serving
from tests.simulation.world import head_spec, model_spec, run_spec

from espalier import identity
from espalier.controllers.process import signing_key
from espalier.kube.apiserver import KubernetesCluster
from espalier.kube.objects import Body, ObjectKey

RESIDENT_MIB = 150
WAIT_SECONDS = 120


class Stage:
    """One namespace that an operator's process serves from another."""

    def __init__(
        self,
        cluster: KubernetesCluster,
        namespace: str,
        system: str,
        process: Any,
        health_port: int = 0,
    ) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.system = system
        self.process = process
        self.health_port = health_port

    async def get(self, kind: str, name: str) -> Body:
        return await self.cluster.get(ObjectKey(kind, self.namespace, name)) or {}

    async def keys(self) -> identity.PublicKeys:
        """The keys that pods verify tokens with, once the operator has made them."""
        names = (identity.OPERATOR_KEY_SECRET, identity.GATEWAY_KEY_SECRET)
        for _ in range(WAIT_SECONDS * 10):
            found = [
                await self.cluster.get(ObjectKey("Secret", self.system, name)) for name in names
            ]
            if all(found):
                made = [
                    (await signing_key.ensure(self.cluster, self.system, n)).current for n in names
                ]
                return identity.PublicKeys.of(*made)
            await asyncio.sleep(0.1)
        raise AssertionError(f"waited {WAIT_SECONDS} s for the signing keys")

    async def apply(self, kind: str, name: str, spec: Body) -> None:
        body = {"metadata": {"name": name, "namespace": self.namespace}, "spec": spec}
        await self.cluster.apply(kind, body, manager="kubectl")

    async def until(self, kind: str, name: str, reached: Callable[[Body], bool]) -> Body:
        body: Body = {}
        for _ in range(WAIT_SECONDS * 50):
            body = await self.get(kind, name)
            if body and reached(body):
                return body
            await asyncio.sleep(0.02)
        raise AssertionError(f"{kind} {name} stays {json.dumps(body.get('status'), indent=1)}")

    async def play(
        self, role: str, ip: str, ended: Body | None = None, *, by: Servers | None = None
    ) -> None:
        """Be the node of the pod of a role: it runs, or has ended with this message."""
        labels = {"espalier.dev/role": role}
        for _ in range(WAIT_SECONDS * 10):
            found = await self.cluster.list("Pod", self.namespace, labels)
            pods = [pod for pod in found if pod["metadata"].get("ownerReferences")]
            if pods:
                break
            await asyncio.sleep(0.1)
        pod = pods[0]
        if by is not None:
            by.uids[role] = pod["metadata"]["uid"]
        state: Body = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
        if ended is not None:
            state = {"terminated": {"exitCode": 0, "message": json.dumps(ended)}}
        container = {
            "name": pod["spec"]["containers"][0]["name"],
            "image": "x",
            "imageID": "x",
            "containerID": "containerd://1",
            "restartCount": 0,
            "ready": ended is None,
            "started": ended is None,
            "state": state,
        }
        status = {
            "phase": "Running" if ended is None else "Succeeded",
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True" if ended is None else "False"}],
            "containerStatuses": [container],
        }
        metadata = {"name": pod["metadata"]["name"], "namespace": self.namespace}
        await self.cluster.apply_status("Pod", {"metadata": metadata, "status": status})

    def resident_mib(self) -> float:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(row for row in text.splitlines() if row.startswith("VmRSS"))
        return int(line.split()[1]) / 1024


@pytest.fixture
async def stage(
    apiserver: ApiServer, namespace: str, system: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Stage]:
    monkeypatch.setenv("KUBECONFIG", str(apiserver.kubeconfig))
    port = free_port()
    environment = {
        **os.environ,
        "POD_NAMESPACE": system,
        "ESPALIER_NAMESPACES": namespace,
        "POD_NAME": "operator-0",
        "ESPALIER_IMAGE_TRAINER": "trainer:1",
        "ESPALIER_IMAGE_ROLLOUT": "rollout:1",
        "ESPALIER_IMAGE_RUNNER": "runner:1",
        "ESPALIER_GATEWAY_URL": "http://gateway",
        "ESPALIER_HEALTH_PORT": str(port),
    }
    async with await KubernetesCluster.connect() as cluster, started(environment) as process:
        yield Stage(cluster, namespace, system, process, port)


@asynccontextmanager
async def started(environment: dict[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "espalier.controllers", env=environment
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def is_current(name: str) -> Callable[[Body], bool]:
    return lambda head: head.get("status", {}).get("current", {}).get("name") == name


async def test_an_edit_of_the_head_goes_all_the_way_through_a_real_api_server(
    stage: Stage, namespace: str
) -> None:
    servers = Servers(namespace, "tiny", await stage.keys())
    async with serving(servers):
        await stage.apply("TrainableModel", "tiny", model_spec())
        await stage.apply("TrainingRun", "digits", run_spec("tiny", 3, driver="Client"))
        await stage.play("importer", "127.77.0.1", RESOLVED)
        await stage.play("rollout", ROLLOUT_IP, by=servers)
        await stage.until("CheckpointHead", "tiny", is_current(""))
        await stage.play("trainer", TRAINER_IP, by=servers)
        await stage.until("TrainingRun", "digits", has_reason("AwaitingClient"))
        for step in (1, 2, 3):
            await servers.trainer.step("tiny")
            await stage.until("CheckpointHead", "tiny", is_current(f"tiny-{step:06d}"))
        await stage.until("TrainingRun", "digits", has_reason("Succeeded"))
        await stage.until("StatefulSet", "tiny-trainer", lambda b: b["spec"]["replicas"] == 0)

        begun = time.monotonic()
        await stage.apply("CheckpointHead", "tiny", head_spec("tiny", "Pin", "tiny-000001"))
        head = await stage.until("CheckpointHead", "tiny", is_current("tiny-000001"))
        print(f"\nedited spec to status.current: {1000 * (time.monotonic() - begun):.0f} ms")
        assert head["status"]["term"] == 2
        assert stage.resident_mib() < RESIDENT_MIB
        print(f"operator resident: {stage.resident_mib():.0f} MiB")

        for kind, name in (
            ("TrainableModel", "tiny"),
            ("TrainingRun", "digits"),
        ):
            body = await stage.get(kind, name)
            owners = {
                entry["manager"]
                for entry in body["metadata"]["managedFields"]
                if {"f:spec", "f:metadata"} & entry["fieldsV1"].keys()
            }
            assert owners == {"kubectl"}

        stage.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(stage.process.wait(), 30) == 0
        lease = await stage.cluster.get(ObjectKey("Lease", stage.system, "espalier-operator"))
        assert lease is not None
        assert not lease["spec"].get("holderIdentity")


def has_reason(reason: str) -> Callable[[Body], bool]:
    def check(body: Body) -> bool:
        found = body.get("status", {}).get("conditions", [])
        return any(c["type"] == "Ready" and c["reason"] == reason for c in found)

    return check

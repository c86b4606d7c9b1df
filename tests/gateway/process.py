"""Runs the gateway as a process against an API server that holds one served model."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import IO, Any

import aiohttp
from dev.apiserver import ApiServer
from tests.gateway.world import condition, digest

from espalier.api.meta import API_VERSION
from espalier.core.names import audience

PATIENCE_SECONDS = 60


@asynccontextmanager
async def started(
    environment: Mapping[str, str], log: int | IO[bytes] = PIPE
) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "espalier.gateway"),
        env={**os.environ, **environment},
        stderr=log,
        limit=2**20,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def until(session: aiohttp.ClientSession, url: str, wanted: str) -> None:
    """Asks until the answer contains a text; the test's patience is the limit."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                async with session.get(url) as reply:
                    if wanted in await reply.text():
                        return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.1)


async def logged(process: Process, message: str) -> None:
    """Reads the log until this message."""
    assert process.stderr is not None
    async with asyncio.timeout(PATIENCE_SECONDS):
        while json.loads(await process.stderr.readline())["message"] != message:
            pass


def apply(server: ApiServer, namespace: str, *objects: dict[str, Any]) -> None:
    for body in objects:
        server.kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(body))
        if "status" in body:
            server.kubectl(
                *("patch", body["kind"], body["metadata"]["name"], "-n", namespace),
                *("--subresource=status", "--type=merge"),
                *("-p", json.dumps({"status": body["status"]})),
            )


def served(server: ApiServer, namespace: str, port: int, digest: str) -> None:
    """A model whose head serves a checkpoint on one ready pod, at a port of this machine."""
    spec = {
        "source": {"base": {"image": "registry.example/model:1"}},
        "storage": {"persistentVolumeClaim": {"claimName": "weights"}},
    }
    current = {"name": "arith-000001", "step": 1, "digest": digest, "term": 1}
    model = {"kind": "TrainableModel", "metadata": {"name": "arith"}, "spec": spec}
    head = {
        "kind": "CheckpointHead",
        "metadata": {"name": "arith"},
        "spec": {"modelRef": {"name": "arith"}, "mode": "Track"},
        "status": {"term": 1, "agreed": {"generation": 1, "mode": "Track"}, "current": current},
    }
    apply(server, namespace, *({"apiVersion": API_VERSION, **body} for body in (model, head)))
    _workload(server, namespace, "Deployment", "rollout", port)


def trained(server: ApiServer, namespace: str, port: int) -> None:
    """A client-driven run of the served model, and its trainer at a port of this machine."""
    spec = {
        "modelRef": {"name": "arith"},
        "driver": "Client",
        "steps": 1000,
    }
    run = {"apiVersion": API_VERSION, "kind": "TrainingRun", "metadata": {"name": "arith"}}
    apply(server, namespace, {**run, "spec": spec})
    _workload(server, namespace, "StatefulSet", "trainer", port)


def _workload(server: ApiServer, namespace: str, kind: str, role: str, port: int) -> None:
    """What the operator makes for a role; Kubernetes makes its pod, and we are the node."""
    labels = {
        "app.kubernetes.io/managed-by": "espalier",
        "espalier.dev/model": "arith",
        "espalier.dev/role": role,
    }
    found = server.kubectl("get", "trainablemodel", "arith", "-n", namespace, "-o", "json")
    owner = {"apiVersion": API_VERSION, "kind": "TrainableModel", "name": "arith"}
    owner |= {"uid": json.loads(found)["metadata"]["uid"], "controller": True}
    container = {"name": role, "image": "x", "ports": [{"containerPort": port}]}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    body = {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": f"arith-{role}", "labels": labels, "ownerReferences": [owner]},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": template},
    }
    apply(server, namespace, body)
    play(server, namespace, role)


def play(server: ApiServer, namespace: str, role: str) -> str:
    """Be the node of the one pod of a role: it is ready, on this machine; the name of the pod."""

    def pods() -> list[str]:
        selector = f"--selector=espalier.dev/role={role}"
        return server.kubectl("get", "pods", "-n", namespace, selector, "-o", "name").split()

    server.wait_for(f"the pod of the {role}", lambda: bool(pods()))
    name = pods()[0].partition("/")[2]
    status = {
        "podIP": "127.0.0.1",
        "podIPs": [{"ip": "127.0.0.1"}],
        "conditions": [condition("Ready", "True")],
    }
    server.kubectl(
        *("patch", "pod", name, "-n", namespace, "--subresource=status", "--type=merge"),
        *("-p", json.dumps({"status": status})),
    )
    return name


def signing_key(private_key: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "espalier-gateway-key"},
        "stringData": {"private.pem": private_key},
    }


def before_a_trainer(
    server: ApiServer, namespace: str, port: int, private_key: str
) -> tuple[str, dict[str, str]]:
    """The audience of a served model's trainer at a port, and a gateway's environment before it."""
    served(server, namespace, port, digest("a1"))
    trained(server, namespace, port)
    system = f"{namespace}-system"
    server.create_namespace(system)
    apply(server, system, signing_key(private_key))
    pod = server.kubectl(
        *("get", "pods", "-n", namespace, "--selector=espalier.dev/role=trainer", "-o", "json")
    )
    name = audience(namespace, "arith", "trainer", json.loads(pod)["items"][0]["metadata"]["uid"])
    environment = {
        "KUBECONFIG": str(server.kubeconfig),
        "POD_NAMESPACE": system,
        "ESPALIER_NAMESPACES": namespace,
    }
    return name, environment

"""The operator's process where something is missing: it stays up, says what, and goes on."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from dev.apiserver import CRDS, ApiServer, ApiServerError
from dev.ports import free_port
from tests.api.test_chart import CHART, IMAGES, documents, helm
from tests.simulation.world import model_spec

from espalier.kube.objects import Body

WAIT_SECONDS = 120
ACCOUNT = "espalier-operator"


class Cluster:
    """A real API server, seen by an administrator."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server

    async def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return await asyncio.to_thread(self.server.kubectl, *arguments, stdin=stdin)

    async def apply(self, *objects: Body) -> None:
        content = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        await self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=content)

    async def model(self, namespace: str) -> None:
        metadata = {"name": "tiny", "namespace": namespace}
        kind = {"apiVersion": "espalier.dev/v1alpha1", "kind": "TrainableModel"}
        await self.apply({**kind, "metadata": metadata, "spec": model_spec()})

    async def stalled(self, namespace: str) -> str:
        path = '{.status.conditions[?(@.type=="Stalled")].message}'
        return await self.kubectl(
            *("get", "trainablemodel", "tiny", "-n", namespace, "-o", f"jsonpath={path}")
        )


async def until(read: Callable[[], Any], reached: Callable[[Any], bool], what: str) -> Any:
    """Ask until an answer will do; the last one if none does."""
    seen = None
    for _ in range(WAIT_SECONDS * 4):
        seen = await read()
        if reached(seen):
            return seen
        await asyncio.sleep(0.25)
    raise AssertionError(f"never {what}, but {seen}")


class Operator:
    """The process, and what its probes say."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.port = port

    async def readiness(self) -> tuple[int, str]:
        assert self.process.returncode is None, "the process ended"
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"http://127.0.0.1:{self.port}/readyz") as answer,
            ):
                return answer.status, await answer.text()
        except aiohttp.ClientError as error:
            return 0, str(error)


@asynccontextmanager
async def operator(kubeconfig: Path, own: str, *namespaces: str) -> AsyncIterator[Operator]:
    port = free_port()
    environment = {
        **os.environ,
        "KUBECONFIG": str(kubeconfig),
        "POD_NAMESPACE": own,
        "POD_NAME": "operator-0",
        "ESPALIER_NAMESPACES": ",".join(namespaces),
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
        yield Operator(process, port)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def roles(own: str, *namespaces: str) -> list[Body]:
    """What the chart grants the operator."""
    listed = ",".join(namespaces)
    values = [a for image in IMAGES for a in ("--set", image)]
    values += ["--set", f"namespaces={{{listed}}}", "--kube-version", "1.35.0"]
    text = helm("template", "espalier", str(CHART), "--namespace", own, *values)
    kinds = ("Role", "RoleBinding", "ServiceAccount")
    found = [item for item in documents(text) if item["kind"] in kinds]
    return [item for item in found if item["metadata"]["name"].startswith(ACCOUNT)]


def without_jobs(granted: list[Body], namespace: str) -> list[Body]:
    """The same, but for the right to create Jobs in a namespace."""
    changed = json.loads(json.dumps(granted))
    for item in changed:
        if item["kind"] == "Role" and item["metadata"]["namespace"] == namespace:
            for rule in item["rules"]:
                if "jobs" in rule["resources"]:
                    rule["verbs"] = [verb for verb in rule["verbs"] if verb != "create"]
    return changed


def account(server: ApiServer, own: str, to: Path) -> Path:
    """A kubeconfig of the operator's service account, which is no administrator."""
    token = server.kubectl("create", "token", ACCOUNT, "-n", own).strip()
    config = yaml.safe_load(server.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": token}
    to.write_text(yaml.safe_dump(config))
    return to


async def test_a_permission_that_is_missing_is_named_and_hurts_only_what_needs_it(
    apiserver: ApiServer, namespace: str, tmp_path: Path
) -> None:
    cluster = Cluster(apiserver)
    good, poor, closed = (f"{namespace}-{name}" for name in ("good", "poor", "closed"))
    for name in (good, poor, closed):
        await asyncio.to_thread(apiserver.create_namespace, name)
    granted = roles(namespace, good, poor, closed)
    open_ = [item for item in granted if item["metadata"]["namespace"] != closed]
    await cluster.apply(*without_jobs(open_, poor))
    config = account(apiserver, namespace, tmp_path / "operator.kubeconfig")
    async with operator(config, namespace, good, poor, closed) as running:

        def named(seen: tuple[int, str]) -> bool:
            return f"in namespace {poor}: create jobs" in seen[1]

        status, text = await until(running.readiness, named, "not ready by name")
        assert status == 503
        assert f"in namespace {closed}: list/watch trainablemodels" in text
        await cluster.model(poor)
        await cluster.model(good)
        said = await until(lambda: cluster.stalled(poor), lambda m: "jobs" in m, "Stalled")
        assert "cannot create resource" in said
        jobs = await until(
            lambda: cluster.kubectl("get", "jobs", "-n", good, "-o", "name"), bool, "a Job"
        )
        assert jobs.strip() == "job.batch/tiny-import"
        events = await cluster.kubectl("get", "events", "-n", poor, "-o", "jsonpath={..reason}")
        assert "Forbidden" in events
        # All is granted: the process starts anew, in order, to serve the namespace it had left out.
        await cluster.apply(*granted)
        assert await asyncio.wait_for(running.process.wait(), WAIT_SECONDS) == 0


async def test_crds_of_the_version_before_are_named_and_waited_for(
    apiserver: ApiServer, namespace: str, system: str
) -> None:
    cluster = Cluster(apiserver)
    behind = yaml.safe_load((CRDS / "checkpointheads.yaml").read_text())
    schema = behind["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    del schema["properties"]["status"]["properties"]["endpoint"]
    try:
        await cluster.apply(behind)
        async with operator(apiserver.kubeconfig, system, namespace) as running:

            def named(seen: tuple[int, str]) -> bool:
                return "without CheckpointHead.status.endpoint" in seen[1]

            status, _ = await until(running.readiness, named, "not ready by name")
            assert status == 503
            await asyncio.to_thread(apiserver.apply_crds)
            await until(running.readiness, lambda seen: seen[0] == 200, "ready")
    finally:
        await asyncio.to_thread(apiserver.apply_crds)


def test_authorisation_is_on_in_these_tests(apiserver: ApiServer, namespace: str) -> None:
    """Else no test of permissions could fail."""
    who = f"--as=system:serviceaccount:{namespace}:default"
    with pytest.raises(ApiServerError):
        apiserver.kubectl("auth", "can-i", "patch", "checkpointheads/status", who, "-n", namespace)

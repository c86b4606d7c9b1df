"""Finalizers, owners and namespaces as the real API server and its garbage collector treat them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from dev.apiserver import ApiServer
from tests.core.objects import commit
from tests.simulation.scripted import ScriptedImporter, ScriptedRollouts, ScriptedTrainer
from tests.simulation.test_process import Stage
from tests.simulation.world import SETTINGS, model_spec

from espalier.controllers.process.operator import Operator
from espalier.controllers.process.triggers import WATCHED
from espalier.core.checkpoints import disposal
from espalier.core.checkpoints.commits import checkpoint_body
from espalier.core.lineage.lineage import BASE_POINT, Point
from espalier.kube import informer
from espalier.kube.apiserver import KubernetesCluster
from espalier.kube.cache import Cache
from espalier.kube.objects import Body, ObjectKey

LIMIT_SECONDS = 120
RESTRICTED = "pod-security.kubernetes.io/enforce=restricted"
COLLECTOR = {"espalier.dev/role": "collector"}
NAMES = ["m-000001", "m-000002"]
CLAIM = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}


@pytest.fixture
async def stage(
    apiserver: ApiServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Stage]:
    """An operator in this process, which gathers deletions for a second."""
    monkeypatch.setenv("KUBECONFIG", str(apiserver.kubeconfig))
    apiserver.kubectl("label", "namespace", namespace, RESTRICTED)
    monkeypatch.setattr(disposal, "GATHER", timedelta(seconds=1))
    stop, ready, cache = asyncio.Event(), asyncio.Event(), Cache()
    async with await KubernetesCluster.connect() as cluster:
        watching = informer.InformerSettings((namespace,), WATCHED)
        watch = asyncio.create_task(informer.run(watching, cache, stop, ready, cluster))
        await asyncio.wait_for(ready.wait(), LIMIT_SECONDS)
        operator = Operator(
            cluster,
            cache,
            ScriptedTrainer(),
            ScriptedRollouts(),
            SETTINGS,
            importer=ScriptedImporter(),
            now=now,
        )
        work = asyncio.create_task(operator.run(stop))
        yield Stage(cluster, namespace, "", None)
        stop.set()
        await asyncio.gather(work, watch)


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def grown(stage: Stage, policy: str) -> None:
    """A model of two checkpoints on a claim, marked as its policy asks."""
    await stage.apply("PersistentVolumeClaim", "weights", CLAIM)
    await stage.apply("TrainableModel", "m", model_spec(deletionPolicy=policy))
    first = checkpoint_body(commit(1), stage.namespace, BASE_POINT)
    second = checkpoint_body(
        commit(2, parent="m-000001"), stage.namespace, Point("m-000001", 1, "")
    )
    for body in (first, second):
        await stage.cluster.apply("Checkpoint", body)

    def is_marked(body: Body) -> bool:
        marks = (body["metadata"].get("finalizers"), body["metadata"].get("ownerReferences"))
        return all(marks) if policy == "Delete" else "status" in body and not any(marks)

    for name in ("m-000001", "m-000002"):
        await stage.until("Checkpoint", name, is_marked)


async def gone(stage: Stage, kind: str, names: list[str]) -> None:
    for _ in range(LIMIT_SECONDS * 10):
        if not any([await stage.get(kind, name) for name in names]):
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{kind} {names} are still there")


async def collected(stage: Stage) -> None:
    """Be the node of every collector, until no Checkpoint waits for one."""
    for _ in range(LIMIT_SECONDS * 10):
        if not any([await stage.get("Checkpoint", name) for name in NAMES]):
            return
        pods = await stage.cluster.list("Pod", stage.namespace, COLLECTOR)
        if pods and all(pod["status"]["phase"] == "Pending" for pod in pods):
            await stage.play("collector", "127.77.0.9", {"removed": 1, "kept": {}})
        await asyncio.sleep(0.1)


async def delete(stage: Stage, kind: str, name: str) -> None:
    await stage.cluster.delete(ObjectKey(kind, stage.namespace, name))


async def events(stage: Stage) -> set[str]:
    return {e["reason"] for e in await stage.cluster.list("Event", stage.namespace)}


async def test_with_the_model_the_collector_deletes_its_checkpoints_and_their_bytes(
    stage: Stage,
) -> None:
    await grown(stage, "Delete")
    await delete(stage, "TrainableModel", "m")
    job: Body = await stage.until("Job", "m-collect", bool)
    arguments: list[Any] = job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert arguments[:3] == ["--model", "m", "--orphaned"]
    assert {*arguments[3:]} <= {commit(1).digest, commit(2).digest}
    await collected(stage)
    await gone(stage, "Checkpoint", NAMES)
    await gone(stage, "Job", ["m-collect"])
    assert "BytesKept" not in await events(stage)


async def test_under_retain_the_records_outlive_the_model_and_go_at_once_when_deleted(
    stage: Stage,
) -> None:
    await grown(stage, "Retain")
    await delete(stage, "TrainableModel", "m")
    await gone(stage, "TrainableModel", ["m"])
    for name in NAMES:
        assert "deletionTimestamp" not in (await stage.get("Checkpoint", name))["metadata"]
        await delete(stage, "Checkpoint", name)
    await gone(stage, "Checkpoint", NAMES)
    assert not await stage.get("Job", "m-collect")


async def test_when_the_policy_turns_to_retain_the_marks_go(stage: Stage) -> None:
    await grown(stage, "Delete")
    await stage.apply("TrainableModel", "m", model_spec(deletionPolicy="Retain"))
    for name in NAMES:
        body = await stage.until(
            "Checkpoint", name, lambda b: not b["metadata"].get("ownerReferences")
        )
        assert not body["metadata"].get("finalizers")


async def test_a_claim_that_goes_first_does_not_hold_the_checkpoints(stage: Stage) -> None:
    await grown(stage, "Delete")
    await delete(stage, "PersistentVolumeClaim", "weights")
    await gone(stage, "PersistentVolumeClaim", ["weights"])
    await delete(stage, "TrainableModel", "m")
    await gone(stage, "Checkpoint", NAMES)
    assert "BytesKept" in await events(stage)


async def test_a_namespace_can_be_deleted_with_all_that_is_in_it(
    stage: Stage, apiserver: ApiServer
) -> None:
    await grown(stage, "Delete")
    waited = ("delete", "namespace", stage.namespace, "--timeout=150s")
    await asyncio.to_thread(apiserver.kubectl, *waited)
    assert await stage.cluster.list("Checkpoint", stage.namespace) == []

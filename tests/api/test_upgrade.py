"""An installation of the first version is upgraded by the chart: no object is lost, all go on.

``previous/`` holds the CRDs as they were first released, and objects that they took.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dev.apiserver import ApiServer, ApiServerError, binary
from dev.crds import wait_until_established
from tests.api.test_chart import CHART, IMAGES, SYSTEM
from tests.core.objects import NOW
from tests.simulation.scripted import ScriptedImporter, ScriptedRollouts, ScriptedTrainer
from tests.simulation.world import SETTINGS

from espalier.api.meta import API_VERSION
from espalier.controllers.process.operator import Operator
from espalier.controllers.process.triggers import WATCHED
from espalier.core import conditions
from espalier.kube import informer
from espalier.kube.apiserver import KubernetesCluster
from espalier.kube.cache import Cache
from espalier.kube.objects import ObjectKey

PREVIOUS = Path(__file__).parent / "previous"
TEAM = "team"
KINDS = {
    "TrainableModel": "arith",
    "TrainingRun": "arith-20",
    "CheckpointHead": "arith",
    "Checkpoint": "arith-000001",
}
PLURALS = ("trainablemodels", "trainingruns", "checkpointheads", "checkpoints")
LIMIT_SECONDS = 120


def helm(server: ApiServer, *arguments: str) -> None:
    environment = {**os.environ, "KUBECONFIG": str(server.kubeconfig)}
    done = subprocess.run(
        [str(binary("helm")), *arguments, "--namespace", SYSTEM],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )
    if done.returncode != 0:
        raise ApiServerError(done.stderr.strip())


def objects(server: ApiServer) -> dict[str, dict[str, Any]]:
    found = {}
    for plural in PLURALS:
        listed = json.loads(server.kubectl("get", plural, "-n", TEAM, "-o", "json"))
        found |= {item["kind"]: item for item in listed["items"]}
    return found


def contains(now: Any, before: Any) -> bool:
    """Whether nothing that was set is gone or changed; new fields have come with defaults."""
    if isinstance(before, dict):
        return all(name in now and contains(now[name], value) for name, value in before.items())
    return bool(now == before)


@pytest.fixture(scope="module")
def previous() -> Iterator[ApiServer]:
    """An API server with the first version's CRDs, as a Helm release owns them, and objects."""
    with ApiServer() as server:
        server.kubectl("apply", "--server-side", "-f", str(PREVIOUS / "crds"))
        names = [f"{plural}.espalier.dev" for plural in PLURALS]
        wait_until_established(server, "crd", *names)
        owner = ("meta.helm.sh/release-name=espalier", f"meta.helm.sh/release-namespace={SYSTEM}")
        server.kubectl("annotate", "crd", *names, *owner)
        server.kubectl("label", "crd", *names, "app.kubernetes.io/managed-by=Helm")
        for namespace in (SYSTEM, TEAM):
            server.create_namespace(namespace)
        server.kubectl("apply", "-n", TEAM, "-f", str(PREVIOUS / "objects.yaml"))
        server.kubectl("apply", "-n", SYSTEM, "-f", "-", stdin=json.dumps(SCRIPTED))
        yield server


# A client's loss and learning rate bind it until they are removed.
SCRIPTED = {
    "apiVersion": API_VERSION,
    "kind": "TrainingRun",
    "metadata": {"name": "scripted"},
    "spec": {
        "modelRef": {"name": "arith"},
        "driver": "Client",
        "loss": {"name": "importance_sampling"},
        "learningRate": "1e-5",
        "steps": 10,
    },
}


def test_the_chart_upgrades_the_crds_and_loses_no_object(previous: ApiServer) -> None:
    before = objects(previous)
    # The operator of the next test is this process, and no account of the chart's.
    chosen = (*IMAGES, f"namespaces={{{TEAM}}}", "admissionPolicy.enabled=false")
    values = [argument for value in chosen for argument in ("--set", value)]
    helm(previous, "upgrade", "--install", "espalier", str(CHART), *values)
    after = objects(previous)
    assert set(after) == set(KINDS)
    for kind, body in after.items():
        assert body["metadata"]["uid"] == before[kind]["metadata"]["uid"]
        assert body["metadata"]["generation"] == before[kind]["metadata"]["generation"]
        assert contains(body["spec"], before[kind]["spec"])
    # What Git holds can be applied as it is.
    previous.kubectl("apply", "-n", TEAM, "-f", str(PREVIOUS / "objects.yaml"))


def test_a_scripted_run_of_before_may_be_edited_and_can_be_freed_of_what_binds(
    previous: ApiServer,
) -> None:
    def spec() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(patched({"suspend": False}))
        return dict(found["spec"])

    def patched(changes: dict[str, Any]) -> str:
        change = json.dumps({"spec": changes})
        run = ("trainingrun", "scripted", "--type=merge", "-p", change, "-o", "json")
        return previous.kubectl("patch", "-n", SYSTEM, *run)

    # What only a runner needs is not filled in.
    assert not {"groupsPerStep", "sampling"} & set(spec())
    with pytest.raises(ApiServerError, match="stop, stopTokenIds, chatTemplateKwargs belong to"):
        patched({"sampling": {"stop": ["x"]}})
    bound = ("loss", "learningRate", "groupSize", "optimizer", "advantage", "sampling")
    patched(dict.fromkeys((*bound, "groupsPerStep", "groupFilter")))
    assert set(spec()) == {"modelRef", "driver", "steps", "suspend"}
    with pytest.raises(ApiServerError, match="groupsPerStep belongs to driver Runner"):
        patched({"groupsPerStep": 4})


async def test_objects_of_the_previous_version_still_reconcile(
    previous: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(previous.kubeconfig))
    stop, ready, cache = asyncio.Event(), asyncio.Event(), Cache()
    async with await KubernetesCluster.connect() as cluster:
        settings = informer.InformerSettings((TEAM,), WATCHED)
        watch = asyncio.create_task(informer.run(settings, cache, stop, ready, cluster))
        await asyncio.wait_for(ready.wait(), LIMIT_SECONDS)
        trainer, rollouts = ScriptedTrainer(), ScriptedRollouts()
        operator = Operator(
            cluster,
            cache,
            trainer,
            rollouts,
            SETTINGS,
            importer=ScriptedImporter(),
            now=lambda: NOW,
        )
        work = asyncio.create_task(operator.run(stop))
        for kind, name in KINDS.items():
            await seen(cluster, ObjectKey(kind, TEAM, name))
        stop.set()
        await asyncio.gather(work, watch)
    found = objects(previous)
    # Of the samples for its step, which are its parent's: its own is not known.
    rewards = [{"name": "rollout/reward/mean", "value": "0.25"}]
    assert found["Checkpoint"]["status"]["metrics"] == rewards
    assert found["TrainableModel"]["status"]["tree"]["branches"][0]["tip"] == "arith-000001"
    suspended = [
        c for c in found["TrainingRun"]["status"]["conditions"] if c["type"] == "Suspended"
    ]
    assert suspended[0]["status"] == "True"


async def seen(cluster: KubernetesCluster, key: ObjectKey) -> None:
    for _ in range(LIMIT_SECONDS * 10):
        body = await cluster.get(key)
        status = (body or {}).get("status", {})
        if status.get("observedGeneration", -1) > 0 and status.get("conditions"):
            assert any(c["type"] == conditions.READY for c in status["conditions"])
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{key} was not reconciled")


def test_crds_and_objects_outlive_the_release(previous: ApiServer) -> None:
    helm(previous, "uninstall", "espalier")
    assert set(objects(previous)) == set(KINDS)

"""Models and runs whose pods wait in queues of a real Kueue."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from dev.kueue import queue
from tests.gitops.repository import EXAMPLE
from tests.gitops.team import MODEL, RUN, Team, has

from espalier.core.manifests.labels import MANAGED
from espalier.kube.objects import Body

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(600)]

SHORT = "insufficient"


def template(queue_name: str, cpu: str, priority: str = "") -> Body:
    given: Body = {"queueName": queue_name, "resources": {"requests": {"cpu": cpu}}}
    return {"template": given | ({"priorityClassName": priority} if priority else {})}


async def declare(team: Team, *files: str, **spec: Any) -> None:
    """Applies files of the example, with these parts of their specs where they have them."""
    for file in files:
        body = yaml.safe_load((EXAMPLE / file).read_text())
        known = {"model.yaml": ("trainer", "rollout", "jobs"), "run.yaml": ("runner",)}
        body["spec"] |= {part: spec[part] for part in known.get(file, ()) if part in spec}
        await team.kubectl("apply", "-f", "-", stdin=json.dumps(body))


async def make_queue(team: Team, name: str, cpu: str) -> None:
    made = queue(team.namespace, name, cpu=cpu, memory="1Ti")
    await team.kubectl("apply", "-f", "-", stdin=made)


def says(type_: str, reason: str, *words: str) -> Callable[[Body], bool]:
    def check(body: Body) -> bool:
        found = [c for c in body.get("status", {}).get("conditions", []) if c["type"] == type_]
        return any(
            c["reason"] == reason and all(word in c.get("message", "") for word in words)
            for c in found
        )

    return check


async def everything(team: Team, lowly: str = "") -> None:
    """A model that is served and a run that trains, all in one queue of four cores.

    ``lowly``: what alone is less urgent than the Job that comes.
    """
    await team.kubectl("apply", "-f", "-", stdin=json.dumps(_priority("urgent", 1000)))
    await make_queue(team, "research", "4")
    cores = {"rollout": "1", "trainer": "2", "runner": "1"}
    parts = {
        part: template("research", cpu, "" if part == lowly else "urgent")
        for part, cpu in cores.items()
    }
    await declare(
        *(team, "storage.yaml", "model.yaml", "head.yaml", "run.yaml"),
        jobs=template("research", "100m"),
        **parts,
    )
    await team.until("TrainingRun", RUN, has("Ready", "Training"), "the run to train")


async def urgent(team: Team, cpu: str) -> None:
    """A Job of more importance in the same queue."""
    container = {"name": "main", "image": "x", "resources": {"requests": {"cpu": cpu}}}
    pod = {"restartPolicy": "Never", "priorityClassName": "urgent", "containers": [container]}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "urgent", "labels": {"kueue.x-k8s.io/queue-name": "research"}},
        "spec": {"suspend": True, "template": {"spec": pod}},
    }
    await team.kubectl("apply", "-f", "-", stdin=json.dumps(job))


def _priority(name: str, value: int) -> Body:
    return {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": name},
        "value": value,
    }


async def names(team: Team) -> list[str]:
    """The Checkpoints, in their order."""
    found = await team.cluster.list("Checkpoint", team.namespace)
    return sorted(body["metadata"]["name"] for body in found)


async def test_a_model_waits_for_its_queue_and_for_quota_and_says_so_in_kueues_words(
    team: Team,
) -> None:
    await declare(
        *(team, "storage.yaml", "model.yaml", "head.yaml", "run.yaml"),
        jobs=template("research", "100m"),
        rollout=template("research", "1"),
        trainer=template("research", "2"),
        runner=template("research", "1"),
    )
    missing = says("Ready", "QueueUnavailable", "LocalQueue research doesn't exist", "Create")
    await team.until("TrainableModel", MODEL, missing, "the queue to be missed")
    await make_queue(team, "research", "1")
    served = says("RolloutsReady", "PodsReady")
    await team.until("TrainableModel", MODEL, served, "the rollout to be admitted")
    waits = says("TrainerReady", "Queued", "in LocalQueue research", SHORT)
    await team.until("TrainableModel", MODEL, waits, "the trainer to wait")
    told = says("Ready", "Queued", "trainer", SHORT)
    run = await team.until("TrainingRun", RUN, told, "the run to say so")
    (ready,) = [c for c in run["status"]["conditions"] if c["type"] == "Ready"]
    assert ready["status"] == "Unknown"
    await make_queue(team, "research", "3")
    told = says("Ready", "Queued", "runner", SHORT)
    await team.until("TrainingRun", RUN, told, "the runner to wait")
    await make_queue(team, "research", "4")
    await team.advance(2)


async def test_a_preempted_trainer_goes_on_from_its_last_step(team: Team) -> None:
    # Where nothing could be admitted, if what names another queue were put there.
    await make_queue(team, "default", "0")
    await everything(team, lowly="trainer")
    await team.advance(2)
    await urgent(team, "2")
    waits = says("Ready", "Queued", "trainer", SHORT)
    await team.until("TrainingRun", RUN, waits, "the trainer to be preempted")
    for _ in range(100):
        if not await team.get("Job", f"{RUN}-runner"):
            break
        await asyncio.sleep(0.1)
    else:
        pytest.fail("the runner is not freed")
    await team.kubectl("delete", "job", "urgent")
    assert await team.advance(2) == f"{MODEL}-000004"
    assert await names(team) == [f"{MODEL}-00000{step}" for step in (1, 2, 3, 4)]


async def test_a_preempted_runner_keeps_its_job_and_no_failure_is_counted(team: Team) -> None:
    await everything(team, lowly="runner")
    job = await team.get("Job", f"{RUN}-runner")
    await urgent(team, "1")
    waits = says("Ready", "Queued", "runner", SHORT)
    await team.until("TrainingRun", RUN, waits, "the runner to be preempted")
    await team.kubectl("delete", "job", "urgent")
    assert await team.advance(1) == f"{MODEL}-000001"
    same = await team.get("Job", f"{RUN}-runner")
    assert same["metadata"]["uid"] == job["metadata"]["uid"]
    assert not same["status"].get("failed")


async def test_another_queue_or_none_replaces_what_kueue_lets_nobody_change(team: Team) -> None:
    await everything(team)
    await team.advance(1)
    await make_queue(team, "other", "4")
    await declare(
        *(team, "model.yaml"),
        jobs=template("research", "100m"),
        rollout=template("other", "1"),
        trainer=template("other", "2"),
    )

    async def moved(queue_name: str) -> bool:
        pods = await team.cluster.list("Pod", team.namespace, MANAGED)
        roles = {
            pod["metadata"]["labels"]["espalier.dev/role"]: pod["metadata"]["labels"].get(
                "kueue.x-k8s.io/queue-name", ""
            )
            for pod in pods
            if pod.get("status", {}).get("podIP") and not pod["metadata"].get("deletionTimestamp")
        }
        return roles.get("trainer") == roles.get("rollout") == queue_name

    await until(team, lambda: moved("other"), "the pods to be in the other queue")
    assert await team.advance(1) == f"{MODEL}-000002"
    await declare(team, "model.yaml", jobs=template("research", "100m"))
    await until(team, lambda: moved(""), "the pods to be in none")
    assert await team.advance(1) == f"{MODEL}-000003"


async def until(team: Team, reached: Callable[[], Any], what: str) -> None:
    for _ in range(1200):
        if await reached():
            return
        await asyncio.sleep(0.1)
    pytest.fail(f"waited for {what}: {await team.kubectl('get', 'pods,workloads,sts,deploy')}")

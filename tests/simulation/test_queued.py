"""What waits in a queue of Kueue: it is named, costs no time, and goes on exactly once.

Kueue is played here; the real one is in tests/queues.
"""

from __future__ import annotations

from typing import Any

import pytest
from tests.simulation.gates import admit, waiting
from tests.simulation.test_standstill import MODEL, RUN, named, warnings, why_of
from tests.simulation.virtual_time import run
from tests.simulation.world import World, model_spec, run_spec, world

from espalier.kube.cluster import ClusterError
from espalier.kube.objects import Body

IN_QUEUE = {"template": {"queueName": "research"}}
FIELDS = {"importer": "jobs", "trainer": "trainer", "rollout": "rollout", "runner": "runner"}
SHORT = "insufficient unused quota for nvidia.com/gpu in flavor h200, 2 more needed"
# Longer than any patience, and than the deadline of a run below.
HOURS = 1.5 * 3600.0


def specs(*roles: str, steps: int = 1, **changes: Any) -> tuple[Body, Body]:
    """A model and a run of which the pods of these roles wait in a queue."""
    fields = {FIELDS[role]: IN_QUEUE for role in roles}
    of_run = {"runner": fields.pop("runner")} if "runner" in fields else {}
    return model_spec(**fields), run_spec("tiny", steps, **of_run, **changes)


async def kueue_says(w: World, role: str, reason: str, message: str) -> None:
    """Kueue's Workload for what waits of a role, once that is there."""

    await w.until_at(lambda: bool(waiting(w.kubelet, role)), f"{role} waits")
    condition = {"type": "QuotaReserved", "status": "False", "reason": reason, "message": message}
    owner = {"uid": waiting(w.kubelet, role)[0]["metadata"]["uid"], "kind": "Pod"}
    metadata = {"name": f"of-{role}", "namespace": "default", "ownerReferences": [owner]}
    body = {"metadata": metadata, "spec": {}, "status": {"conditions": [condition]}}
    await w.cluster.create("Workload", body)


@pytest.mark.parametrize("role", ["importer", "trainer", "rollout", "runner"])
def test_pods_in_a_queue_are_named_in_kueues_words_for_as_long_as_they_wait(role: str) -> None:
    async def scenario() -> None:
        async with world() as w:
            model, of_run = specs(role)
            await w.apply(MODEL, "tiny", model)
            await w.apply(RUN, "digits", of_run)
            await kueue_says(w, role, "Pending", SHORT)
            kind, name = (MODEL, "tiny") if role == "importer" else (RUN, "digits")
            said = await named(w, kind, name, "LocalQueue research", SHORT)
            await w.rest(10, seconds=HOURS / 10)
            said = w.condition(kind, name, "Ready")
            assert (said["status"], said["reason"]) == ("Unknown", "Queued")
            assert w.condition(kind, name, "Stalled")["status"] == "False"
            assert "Queued" not in warnings(w, kind, name)
            if kind == RUN:
                assert SHORT in why_of(w, "digits")
            assert w.status(RUN, "digits").get("activeSeconds", 0) == 0
            admit(w.kubelet, role)
            await w.until(lambda: w.succeeded("digits", 1), "admitted")

    run(scenario())


def test_a_queue_that_is_not_there_is_named_with_the_remedy() -> None:
    async def scenario() -> None:
        async with world() as w:
            model, _ = specs("rollout")
            await w.apply(MODEL, "tiny", model)
            await kueue_says(w, "rollout", "Inadmissible", "LocalQueue research doesn't exist")
            said = await named(w, MODEL, "tiny", "doesn't exist", "Create or mend it")
            assert said["reason"] == "QueueUnavailable"
            assert "QueueUnavailable" in warnings(w, MODEL, "tiny")
            assert not w.kubelet.trainer.asked

    run(scenario())


def test_a_cluster_without_kueue_starts_nothing_and_says_so() -> None:
    async def scenario() -> None:
        async with world() as w:
            method = w.cluster.list

            async def unknown(kind: str, *args: Any, **kwargs: Any) -> list[Body]:
                if kind == "Workload":
                    raise ClusterError(404, "NotFound", "could not find the requested resource")
                return await method(kind, *args, **kwargs)

            w.cluster.list = unknown  # type: ignore[method-assign]
            model, of_run = specs("rollout", "runner")
            await w.apply(MODEL, "tiny", model)
            await named(w, MODEL, "tiny", "install Kueue", "QueueUnavailable")
            await w.apply(RUN, "digits", of_run)
            await named(w, RUN, "digits", "install Kueue", "QueueUnavailable")
            # Without the field it starts.
            plain, free = specs()
            await w.apply(MODEL, "tiny", plain)
            await w.apply(RUN, "digits", free)

            def pod() -> Body:
                spec: Body = w.get("Deployment", "tiny-rollout")["spec"]["template"]["spec"]
                return spec

            await w.until_at(lambda: "schedulingGates" not in pod(), "no gate is wanted")
            # As a Deployment does with pods of another template.
            await w.kubelet.evict("rollout")
            await w.until(lambda: w.succeeded("digits", 1), "it trains")

    run(scenario())


def test_a_preempted_trainer_frees_the_runner_and_the_run_goes_on_exactly_once() -> None:
    async def scenario() -> None:
        async with world() as w:
            model, of_run = specs("trainer", steps=4, activeDeadlineSeconds=3600)
            await w.apply(MODEL, "tiny", model)
            await w.apply(RUN, "digits", of_run)
            await w.until_at(lambda: bool(w.kubelet.pods("trainer")), "it waits")
            admit(w.kubelet, "trainer")
            await w.until_at(lambda: w.steps("tiny") >= 2, "it trains")
            await w.kubelet.evict("trainer")
            await kueue_says(w, "trainer", "Pending", SHORT)
            await named(w, RUN, "digits", "Queued", SHORT)
            await w.until_at(lambda: not w.get("Job", "digits-runner"), "the runner is freed")
            taken = w.steps("tiny")
            used = w.status(RUN, "digits").get("activeSeconds", 0)
            await w.rest(10, seconds=HOURS / 10)
            assert w.status(RUN, "digits").get("activeSeconds", 0) == used
            assert w.steps("tiny") == taken
            admit(w.kubelet, "trainer")
            await w.until(lambda: w.succeeded("digits", 4), "it goes on")
            assert w.steps("tiny") == 4

    run(scenario())


def test_a_preempted_runner_keeps_its_place_and_goes_on() -> None:
    async def scenario() -> None:
        async with world() as w:
            model, of_run = specs("runner", steps=3)
            await w.apply(MODEL, "tiny", model)
            await w.apply(RUN, "digits", of_run)
            await w.until_at(lambda: bool(w.get("Job", "digits-runner")), "it waits")
            job = w.get("Job", "digits-runner")["metadata"]["uid"]
            admit(w.kubelet, "runner")
            await w.until_at(lambda: w.steps("tiny") >= 1, "it trains")
            key = next(k for k in w.cluster.objects if k.kind == "Job" and "runner" in k.name)
            w.cluster.edit(key, lambda body: body["spec"].update(suspend=True))
            await kueue_says(w, "runner", "Pending", SHORT)
            await named(w, RUN, "digits", "Queued", SHORT)
            assert w.get("Job", "digits-runner")["metadata"]["uid"] == job
            admit(w.kubelet, "runner")
            await w.until(lambda: w.succeeded("digits", 3), "it goes on")

    run(scenario())

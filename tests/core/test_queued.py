"""What Kueue says of what waits in its queues; the Workloads are as Kueue 0.17 writes them."""

from __future__ import annotations

from typing import Any

import pytest

from espalier.core.pods import pods, queued
from espalier.core.pods.queued import Place, Queue

SHORT = (
    "couldn't assign flavors to pod set main: insufficient unused quota for cpu in flavor "
    "default, 1 more needed"
)
PREEMPTED = "Preempted to accommodate a workload (UID: 1, JobUID: 2) due to prioritization"
PLACE = Place("research", ("uid",))


def workload(*conditions: tuple[str, str, str, str], name: str = "w") -> dict[str, Any]:
    """With conditions of type, status, reason and message; its owner is ``uid``."""
    keys = ("type", "status", "reason", "message")
    return {
        "metadata": {"name": name, "ownerReferences": [{"kind": "Pod", "uid": "uid"}]},
        "status": {"conditions": [dict(zip(keys, c, strict=True)) for c in conditions]},
    }


@pytest.mark.parametrize(
    ("conditions", "reason", "words"),
    [
        ([("QuotaReserved", "False", "Pending", SHORT)], "Queued", SHORT),
        (
            [
                ("QuotaReserved", "False", "Pending", SHORT),
                ("Evicted", "True", "Preempted", PREEMPTED),
            ],
            "Queued",
            f"{SHORT}; {PREEMPTED}",
        ),
        (
            [("QuotaReserved", "True", "QuotaReserved", "Quota reserved in ClusterQueue c")],
            "Queued",
            "the quota is reserved; its admission checks are under way",
        ),
        (
            [("QuotaReserved", "False", "Inadmissible", "LocalQueue research doesn't exist")],
            "QueueUnavailable",
            "LocalQueue research doesn't exist. Create or mend it, or edit queueName",
        ),
        ([], "Queued", "Kueue has not looked at it yet"),
    ],
    ids=["no quota", "preempted", "checks", "no queue", "new"],
)
def test_what_waits_says_why_in_kueues_words(
    conditions: list[tuple[str, str, str, str]], reason: str, words: str
) -> None:
    said = Queue(queued.read([workload(*conditions)])).wait(PLACE)
    assert (said.reason, said.message) == (reason, f"in LocalQueue research: {words}")


def test_a_pod_of_a_group_is_found_by_the_groups_name() -> None:
    pending = workload(("QuotaReserved", "False", "Pending", SHORT), name="statefulset-arith-1")
    del pending["metadata"]["ownerReferences"]
    of_group = Place("research", ("another", "statefulset-arith-1"))
    assert SHORT in Queue(queued.read([pending])).wait(of_group).message


def test_what_is_admitted_or_over_does_not_wait() -> None:
    admitted = workload(
        ("QuotaReserved", "True", "QuotaReserved", ""), ("Admitted", "True", "Admitted", "")
    )
    over = workload(("Finished", "True", "Succeeded", ""))
    assert queued.read([admitted, over]) == {}


def test_what_kueue_does_not_manage_is_told_what_may_be_missing() -> None:
    assert "has made no Workload for it" in Queue().wait(PLACE).message
    unknown = Queue(known=False).wait(PLACE)
    assert unknown.reason == "QueueUnavailable"
    assert "install Kueue 0.17 or newer, or remove queueName" in unknown.message


def test_a_pod_waits_while_it_bears_kueues_gate_and_a_job_while_it_is_suspended() -> None:
    labels = {"kueue.x-k8s.io/queue-name": "research", "kueue.x-k8s.io/pod-group-name": "g"}
    metadata = {"name": "p", "uid": "u", "labels": labels}
    gate, other = {"name": "kueue.x-k8s.io/admission"}, {"name": "example.com/other"}
    waits = pods.read_pod({"metadata": metadata, "spec": {"schedulingGates": [other, gate]}})
    assert waits.place == Place("research", ("u", "g"))
    assert pods.read_pod({"metadata": metadata, "spec": {"schedulingGates": [other]}}).place is None
    assert pods.read_job({"metadata": metadata, "spec": {"suspend": True}}).place is not None
    assert pods.read_job({"metadata": metadata, "spec": {}}).place is None
    by_hand = {"metadata": {"name": "j"}, "spec": {"suspend": True}}
    assert pods.read_job(by_hand).place is None


def test_a_pod_that_was_let_go_is_not_said_to_be_held_by_a_gate() -> None:
    held = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": ""}
    body = {"metadata": {"name": "p"}, "status": {"conditions": [held]}}
    other = {"schedulingGates": [{"name": "example.com/other"}]}
    assert pods.read_pod({**body, "spec": other}).waiting_reason == "SchedulingGated"
    assert pods.read_pod({**body, "spec": {}}).waiting_reason == "Starting"


def test_of_pods_those_that_wait_say_where() -> None:
    metadata = {"name": "p", "uid": "uid", "labels": {"kueue.x-k8s.io/queue-name": "research"}}
    spec = {"schedulingGates": [{"name": "kueue.x-k8s.io/admission"}]}
    waits = pods.read_pod({"metadata": metadata, "spec": spec})
    runs = pods.read_pod({"metadata": {"name": "q"}, "spec": {}})
    pending = Queue(queued.read([workload(("QuotaReserved", "False", "Pending", SHORT))]))
    told, same = pods.in_queue([waits, runs], pending)
    assert (told.waiting_reason, same) == ("Queued", runs)
    assert told.waiting == f"Queued: in LocalQueue research: {SHORT}"

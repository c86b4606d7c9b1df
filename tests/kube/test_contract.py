"""What reconcilers rely on, of the real API server and of those in memory alike."""

from __future__ import annotations

from typing import Any

import pytest

from espalier.kube.cluster import Cluster, ClusterError
from espalier.kube.objects import ObjectKey
from espalier.local.memory_apiserver import MemoryCluster

Body = dict[str, Any]


@pytest.fixture(params=["real", "memory"])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    if request.param == "memory":
        return MemoryCluster(lambda: "2026-01-01T00:00:00Z")
    found: Cluster = request.getfixturevalue("kubernetes")
    return found


@pytest.fixture
def key(namespace: str) -> ObjectKey:
    return ObjectKey("CheckpointHead", namespace, "arith")


def config(namespace: str, data: dict[str, str], **labels: str) -> Body:
    metadata = {"name": "settings", "namespace": namespace, "labels": labels}
    return {"metadata": metadata, "data": data}


async def test_an_absent_object_is_none(cluster: Cluster, key: ObjectKey) -> None:
    assert await cluster.get(key) is None


async def test_applying_the_same_again_changes_nothing(cluster: Cluster, head: Body) -> None:
    await cluster.apply("CheckpointHead", head)
    # The real server stores the status that the schema defaults with the second write only.
    settled = await cluster.apply("CheckpointHead", head)
    again = await cluster.apply("CheckpointHead", head)

    assert again["metadata"]["generation"] == 1
    assert again["metadata"]["resourceVersion"] == settled["metadata"]["resourceVersion"]


async def test_a_spec_change_raises_the_generation_and_a_status_change_does_not(
    cluster: Cluster, head: Body
) -> None:
    await cluster.apply("CheckpointHead", head)
    with_status = await cluster.apply_status("CheckpointHead", {**head, "status": {"term": 1}})
    assert with_status["metadata"]["generation"] == 1
    assert with_status["status"]["term"] == 1

    changed = await cluster.apply(
        "CheckpointHead", {**head, "spec": {**head["spec"], "onPin": "Branch"}}
    )
    assert changed["metadata"]["generation"] == 2
    assert changed["status"]["term"] == 1


async def test_applying_a_status_leaves_the_spec_alone(cluster: Cluster, head: Body) -> None:
    await cluster.apply("CheckpointHead", head)
    edited = {**head, "spec": {**head["spec"], "onPin": "Continue"}, "status": {"term": 3}}

    after = await cluster.apply_status("CheckpointHead", edited)

    assert after["spec"].get("onPin") != "Continue"


async def test_applying_the_status_of_an_absent_object_is_not_found(
    cluster: Cluster, head: Body
) -> None:
    with pytest.raises(ClusterError) as caught:
        await cluster.apply_status("CheckpointHead", {**head, "status": {"term": 1}})
    assert (caught.value.status, caught.value.reason) == (404, "NotFound")


async def test_two_writers_of_a_status_keep_each_others_fields(
    cluster: Cluster, namespace: str
) -> None:
    spec = {
        "modelRef": {"name": "arith"},
        "driver": "Client",
        "loss": {"name": "importance_sampling"},
        "learningRate": "1e-4",
        "steps": 2,
    }
    run = {"metadata": {"name": "mine", "namespace": namespace}, "spec": spec}
    await cluster.apply("TrainingRun", run)
    first, second = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"
    await cluster.apply_status("TrainingRun", {**run, "status": {"step": 1, "idleSince": first}})
    woken = {**run, "status": {"wokenFor": first}}
    after = await cluster.apply_status("TrainingRun", woken, manager="espalier-gateway")
    assert (after["status"]["step"], after["status"]["wokenFor"]) == (1, first)

    # The operator writes back what it read, and leaves out what has ended.
    kept = {**run, "status": {"step": 2, "wokenFor": first}}
    after = await cluster.apply_status("TrainingRun", kept)
    assert (after["status"]["wokenFor"], "idleSince" in after["status"]) == (first, False)

    again = {**run, "status": {"wokenFor": second}}
    after = await cluster.apply_status("TrainingRun", again, manager="espalier-gateway")
    assert (after["status"]["step"], after["status"]["wokenFor"]) == (2, second)


async def test_a_status_field_left_out_is_removed(
    cluster: Cluster, head: Body, key: ObjectKey
) -> None:
    await cluster.apply("CheckpointHead", head)
    before = {"term": 1, "target": {"name": "arith-000001"}}
    await cluster.apply_status("CheckpointHead", {**head, "status": before})
    await cluster.apply_status("CheckpointHead", {**head, "status": {"term": 2}})

    live = await cluster.get(key)

    assert live is not None
    assert live["status"]["term"] == 2
    assert "target" not in live["status"]


async def test_a_field_left_out_stays_if_another_manager_applied_it(
    cluster: Cluster, namespace: str
) -> None:
    await cluster.apply("ConfigMap", config(namespace, {"a": "1", "b": "1"}))
    await cluster.apply("ConfigMap", config(namespace, {"b": "1"}), manager="another")

    after = await cluster.apply("ConfigMap", config(namespace, {"c": "1"}))

    assert after["data"] == {"b": "1", "c": "1"}


async def test_create_writes_once(cluster: Cluster, head: Body, key: ObjectKey) -> None:
    created = await cluster.create("CheckpointHead", head)
    pinned = {**head, "spec": {**head["spec"], "onPin": "Branch"}}

    assert created is not None
    assert await cluster.create("CheckpointHead", pinned) is None
    assert await cluster.get(key) == created


async def test_replace_refuses_an_outdated_version(cluster: Cluster, namespace: str) -> None:
    old = await cluster.apply("ConfigMap", config(namespace, {"a": "1"}))
    await cluster.apply("ConfigMap", config(namespace, {"a": "2"}))

    with pytest.raises(ClusterError) as caught:
        await cluster.replace("ConfigMap", {**old, "data": {"a": "3"}})
    assert caught.value.status == 409


async def test_replace_at_the_present_version_writes(cluster: Cluster, namespace: str) -> None:
    live = await cluster.apply("ConfigMap", config(namespace, {"a": "1"}))

    after = await cluster.replace("ConfigMap", {**live, "data": {"a": "2"}})

    assert after["data"] == {"a": "2"}
    assert after["metadata"]["uid"] == live["metadata"]["uid"]


async def test_list_selects_by_namespace_and_labels(cluster: Cluster, namespace: str) -> None:
    await cluster.apply("ConfigMap", config(namespace, {}, role="a", model="m"))
    other = config(namespace, {}, role="b")
    await cluster.apply("ConfigMap", {**other, "metadata": {**other["metadata"], "name": "other"}})

    found = await cluster.list("ConfigMap", namespace, {"role": "a"})

    assert [body["metadata"]["name"] for body in found] == ["settings"]
    assert (found[0]["apiVersion"], found[0]["kind"]) == ("v1", "ConfigMap")
    assert await cluster.list("ConfigMap", namespace, {"role": "a", "model": "other"}) == []


async def test_deleting_twice_is_fine(cluster: Cluster, head: Body, key: ObjectKey) -> None:
    await cluster.apply("CheckpointHead", head)
    await cluster.delete(key)
    await cluster.delete(key)
    assert await cluster.get(key) is None


async def test_deleting_an_earlier_object_of_the_name_spares_the_later(
    cluster: Cluster, head: Body, key: ObjectKey
) -> None:
    await cluster.apply("CheckpointHead", head)

    await cluster.delete(key, uid="00000000-0000-0000-0000-000000000000")

    assert await cluster.get(key) is not None

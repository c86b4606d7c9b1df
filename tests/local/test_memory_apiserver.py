"""What of the API server in memory no cluster has: its objects outlive the process."""

from __future__ import annotations

import json

from espalier.kube.objects import Body, ObjectKey
from espalier.local.memory_apiserver import MemoryCluster

HEAD = ObjectKey("CheckpointHead", "default", "arith")


def started(*kept: Body) -> MemoryCluster:
    cluster = MemoryCluster(lambda: "2026-01-01T00:00:00Z")
    cluster.restore(kept)
    return cluster


def head(**spec: str) -> Body:
    return {"metadata": {"name": "arith", "namespace": "default"}, "spec": {"mode": "Pin", **spec}}


async def test_what_its_manager_no_longer_says_goes_after_a_restart_too() -> None:
    first = started()
    await first.apply("CheckpointHead", head(onPin="Pause"), manager="user")
    await first.apply_status("CheckpointHead", head() | {"status": {"mark": "> arith", "term": 1}})
    # As the file of `espalier dev` keeps it.
    second = started(*json.loads(json.dumps(first.dump(["CheckpointHead"]))))
    assert second.objects == first.objects
    await second.apply("CheckpointHead", head(), manager="user")
    await second.apply_status("CheckpointHead", head() | {"status": {"term": 2}})
    assert second.objects[HEAD]["spec"] == {"mode": "Pin"}
    assert second.objects[HEAD]["status"] == {"term": 2}


async def test_a_dump_has_the_kinds_that_were_asked_for() -> None:
    cluster = started()
    await cluster.apply("CheckpointHead", head())
    assert cluster.dump(["Pod"]) == []
    assert [body["kind"] for body in cluster.dump(["CheckpointHead", "Pod"])] == ["CheckpointHead"]

"""A status is written only when it differs, in whatever order the API server returns it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.core.objects import NOW, checkpoint, head
from tests.fakes.cluster import FakeCluster

from espalier.controllers.observed.status_writer import StatusWriter
from espalier.core.checkpoints import checkpoint as checkpoints
from espalier.core.lineage.lineage import BASE_POINT
from espalier.core.lineage.lineage_index import grow
from espalier.kube.cache import Cache
from espalier.kube.events import EventRecorder
from espalier.kube.objects import Body, ObjectKey


def reversed_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: reversed_lists(inner) for name, inner in value.items()}
    return [reversed_lists(v) for v in reversed(value)] if isinstance(value, list) else value


def as_it_is(body: Body) -> Body:
    return body


def alphabetic(body: Body) -> Body:
    """As the API server returns it."""
    sorted_: Body = json.loads(json.dumps(body, sort_keys=True))
    return sorted_


@pytest.mark.parametrize("order", [as_it_is, alphabetic, reversed_lists])
async def test_what_did_not_change_is_not_written(order: Any) -> None:
    made = checkpoint(reward="0.5")
    lineage = grow([made], BASE_POINT)
    serving = head(status={"term": 1, "current": {"name": "m-000001", "step": 1}})
    status = checkpoints.decide(made, [serving], lineage, NOW)
    cluster, cache = FakeCluster(), Cache()
    writer = StatusWriter(cluster, cache, EventRecorder(cluster))
    metadata = {"name": "m-000001", "namespace": "default"}
    await cluster.apply("Checkpoint", {"metadata": metadata, "spec": made.spec.wire()})
    live = await cluster.get(ObjectKey("Checkpoint", "default", "m-000001"))
    assert live is not None
    assert await writer.write("Checkpoint", live, status)
    written = await cluster.get(ObjectKey("Checkpoint", "default", "m-000001"))
    assert written is not None
    assert not await writer.write("Checkpoint", order(written), status)
    changed = status.model_copy(update={"heads": []})
    assert await writer.write("Checkpoint", order(written), changed)

"""Names of saved weights, in the status of a Checkpoint on a real API server."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from dev.apiserver import ApiServer
from tests.api.manifests import CHECKPOINT
from tests.gateway.conftest import Gateway

from espalier.gateway.tinker.names import Session, TinkerModel, WeightsPath
from espalier.gateway.tinker.saves import Recorded, Saves, every, find
from espalier.gateway.world.world import NamespacedName
from espalier.kube.apiserver import KubernetesCluster
from espalier.kube.cluster import STATUS_MANAGER

SESSION = "0123456789abcdef"


class Saved:
    """A Checkpoint, names for it, and what the API server and the gateway have of them."""

    def __init__(self, server: ApiServer, gateway: Gateway, cluster: KubernetesCluster) -> None:
        self.server = server
        self.cluster = cluster
        self.gateway = gateway
        self.namespace = gateway.users.namespace
        self.name = f"m-{uuid.uuid4().int % 10**6:06d}"
        self.saves = Saves(gateway.context.watch, cluster)
        body = {**CHECKPOINT, "metadata": {"name": self.name, "namespace": self.namespace}}
        server.kubectl("create", "-f", "-", stdin=json.dumps(body))

    def path(self, name: str) -> WeightsPath:
        model = TinkerModel.new(Session(self.namespace, SESSION), 0)
        return WeightsPath(model, "weights", name)

    async def save(self, name: str, **more: Any) -> str:
        given = {"ttl_seconds": None, "metadata": None, "overwrite": False} | more
        return (await self.recorded(name, **given)).problem

    async def recorded(self, name: str, **given: Any) -> Recorded:
        return await self.saves.record(self.path(name), self.name, **given)

    def seen(self) -> dict[str, Any]:
        """The object, which the gateway now sees too."""
        text = self.server.kubectl("get", "ckpt", self.name, "-n", self.namespace, "-o", "json")
        body: dict[str, Any] = json.loads(text)
        self.gateway.world.cache.put("Checkpoint", body)
        return body


@pytest.fixture
def saved(apiserver: ApiServer, gateway: Gateway, cluster: KubernetesCluster) -> Saved:
    return Saved(apiserver, gateway, cluster)


async def test_names_are_added_found_and_ended_whoever_else_writes_the_status(
    saved: Saved,
) -> None:
    assert await saved.save("first", metadata={"loss": "0.5"}, ttl_seconds=3600) == ""
    body = saved.seen()
    # The operator keeps what it finds, and so owns it too.
    metadata = {n: body["metadata"][n] for n in ("name", "namespace", "uid")}
    kept = {"metadata": metadata, "status": {"saves": body["status"]["saves"], "headMark": "> m"}}
    await saved.cluster.apply_status("Checkpoint", kept, manager=STATUS_MANAGER)
    assert await saved.save("second") == ""
    world = saved.gateway.world.served
    assert saved.seen()["status"]["headMark"] == "> m"
    assert [one.path.name for one in every(world, saved.namespace)] == ["first", "second"]
    first = find(world, saved.path("first"))
    assert first is not None
    assert (first.checkpoint, first.save.metadata) == (saved.name, '{"loss": "0.5"}')
    await saved.saves.change(first, expires_at="2020-01-01T00:00:00Z")
    saved.seen()
    assert find(world, saved.path("first")) is None
    assert [one.path.name for one in every(world, saved.namespace)] == ["second"]


async def test_a_name_is_of_one_checkpoint_until_it_is_overwritten(
    saved: Saved, apiserver: ApiServer, cluster: KubernetesCluster
) -> None:
    other = Saved(apiserver, saved.gateway, cluster)
    assert await saved.save("best") == await saved.save("best") == ""
    saved.seen()
    other.seen()
    refused = await other.save("best")
    assert refused.startswith(f"path: {saved.path('best')} is {saved.name} already")
    assert await other.save("best", overwrite=True) == ""
    world = saved.gateway.world.served
    saved.seen()
    other.seen()
    found = find(world, saved.path("best"))
    assert found is not None
    assert found.checkpoint == other.name


async def test_a_checkpoint_that_is_saved_again_takes_the_end_that_is_given_now(
    saved: Saved,
) -> None:
    world = saved.gateway.world.served

    async def end(**given: Any) -> tuple[str, str | None]:
        assert await saved.save("best", **given) == ""
        saved.seen()
        found = find(world, saved.path("best"))
        assert found is not None
        return found.save.time, found.save.expires_at

    first = await end(ttl_seconds=3600)
    # The same request asked for its result again, as clients do.
    assert await end(ttl_seconds=3600) == first
    _, longer = await end(ttl_seconds=7200, metadata={"loss": "0.5"})
    assert longer is not None
    assert first[1] is not None
    assert longer > first[1]
    assert (await end())[1] is None


async def test_the_name_of_a_checkpoint_itself_takes_neither_an_end_nor_metadata(
    saved: Saved,
) -> None:
    saved.seen()
    listed = TinkerModel.listed(NamespacedName(saved.namespace, "arith"))
    path = WeightsPath(listed, "weights", saved.name)
    bare: dict[str, Any] = {"ttl_seconds": None, "metadata": None, "overwrite": True}
    assert await saved.saves.record(path, saved.name, **bare) == Recorded()
    for asked in ({"ttl_seconds": 60}, {"metadata": {"loss": "0.5"}}):
        refused = await saved.saves.record(path, saved.name, **bare | asked)
        assert "the name of the Checkpoint itself" in refused.problem

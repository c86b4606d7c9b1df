"""What the operator finds missing before it works: named, waited for, and no reason to end."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

from tests.simulation.virtual_time import run

from espalier.api.crds import KINDS, definition
from espalier.controllers.process.preflight import Preflight, lacking
from espalier.kube.cluster import ClusterError
from espalier.kube.objects import Body


def schemas() -> dict[str, Body]:
    """What an API server with this operator's CRDs serves."""
    return {
        kind.name: copy.deepcopy(definition(kind)["spec"]["versions"][0]["schema"])[
            "openAPIV3Schema"
        ]
        for kind in KINDS
    }


class Cluster:
    """An API server that refuses some actions."""

    def __init__(self, *refused: tuple[str, str, str]) -> None:
        self.refused = set(refused)
        self.schemas = schemas()
        self.down = False

    async def may(self, verb: str, kind: str, namespace: str, subresource: str = "") -> bool:
        what = f"{kind}/{subresource}" if subresource else kind
        return (verb, what, namespace) not in self.refused

    async def served_schemas(self, group: str, version: str) -> dict[str, Body]:
        if self.down:
            raise ClusterError(0, "ConnectionFailed", "refused")
        return self.schemas


def without(served: dict[str, Body], kind: str, *path: str) -> dict[str, Body]:
    node: Any = served[kind]["properties"]
    for name in path[:-1]:
        node = node[name]["properties"]
    del node[path[-1]]
    return served


def test_the_operators_own_crds_lack_nothing() -> None:
    assert lacking(schemas()) == []


def test_a_field_that_the_served_crds_do_not_have_is_named() -> None:
    behind = without(schemas(), "CheckpointHead", "status", "endpoint")
    assert lacking(behind) == ["CheckpointHead.status.endpoint"]
    assert lacking(without(behind, "TrainingRun", "spec", "loss", "name")) == [
        "TrainingRun.spec.loss.name",
        "CheckpointHead.status.endpoint",
    ]
    assert "Checkpoint" in lacking({})


def test_a_namespace_that_may_not_be_watched_is_left_out_until_it_may() -> None:
    async def scenario() -> None:
        cluster, stop = Cluster(("list", "Checkpoint", "closed")), asyncio.Event()
        preflight = Preflight(cluster, ("closed", "open"))
        assert await preflight.begin(stop) == ("open",)
        assert preflight.fault is not None
        assert "in namespace closed: list checkpoints." in preflight.fault
        recovery = asyncio.create_task(preflight.recover(stop))
        await asyncio.sleep(60)
        assert not stop.is_set()
        cluster.refused.clear()
        await recovery
        assert stop.is_set()
        assert preflight.fault is None

    run(scenario())


def test_what_may_not_be_written_is_named_and_stops_nothing() -> None:
    async def scenario() -> None:
        cluster, stop = Cluster(("patch", "CheckpointHead/status", "open")), asyncio.Event()
        preflight = Preflight(cluster, ("open",))
        assert await preflight.begin(stop) == ("open",)
        assert preflight.fault is not None
        assert "in namespace open: patch checkpointheads/status." in preflight.fault
        cluster.refused.clear()
        await preflight.recover(stop)
        assert not stop.is_set()

    run(scenario())


def test_crds_of_another_version_are_waited_for() -> None:
    async def scenario() -> None:
        cluster, stop = Cluster(), asyncio.Event()
        without(cluster.schemas, "CheckpointHead", "status", "endpoint")
        preflight = Preflight(cluster, ("open",))
        begun = asyncio.create_task(preflight.begin(stop))
        await asyncio.sleep(60)
        assert not begun.done()
        assert preflight.fault is not None
        assert "without CheckpointHead.status.endpoint" in preflight.fault
        cluster.schemas = schemas()
        assert await begun == ("open",)

    run(scenario())


def test_an_api_server_that_is_away_is_waited_for_and_a_stop_ends_the_wait() -> None:
    async def scenario() -> None:
        cluster, stop = Cluster(), asyncio.Event()
        cluster.down = True
        preflight = Preflight(cluster, ("open",))
        begun = asyncio.create_task(preflight.begin(stop))
        await asyncio.sleep(20)
        assert preflight.fault is not None
        stop.set()
        assert await begun == ()

    run(scenario())

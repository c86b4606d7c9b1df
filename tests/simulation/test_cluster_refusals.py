"""One object that the operator may not act on says so; the others do not notice."""

from __future__ import annotations

from typing import Any

import pytest
from tests.simulation.virtual_time import run
from tests.simulation.world import World, model_spec, world

from espalier.kube.cluster import ClusterError
from espalier.kube.objects import ObjectKey


class Refusal:
    """Refuses one verb on one kind of object whose name begins so, as RBAC would by default."""

    def __init__(
        self, w: World, verb: str, kind: str, begins: str, error: ClusterError | None = None
    ) -> None:
        self.on = True
        method = getattr(w.cluster, verb)

        async def guarded(target: Any, *args: Any, **kwargs: Any) -> Any:
            body = args[0] if args else target
            name = body["metadata"]["name"] if isinstance(body, dict) else target.name
            if self.on and target == kind and name.startswith(begins):
                message = f'{kind} "{name}" is forbidden: User "operator" cannot {verb} it'
                raise error or ClusterError(403, "Forbidden", message)
            return await method(target, *args, **kwargs)

        setattr(w.cluster, verb, guarded)


@pytest.mark.parametrize(
    ("verb", "kind", "shows"),
    [("create", "Job", True), ("apply", "Deployment", True), ("apply_status", "TrainableModel", 0)],
)
def test_what_is_forbidden_shows_on_the_object_and_hurts_no_other(
    verb: str, kind: str, shows: bool
) -> None:
    async def scenario() -> None:
        async with world() as w:
            refusal = Refusal(w, verb, kind, "poor")
            await w.apply("TrainableModel", "poor", model_spec())
            await w.apply("TrainableModel", "rich", model_spec())

            def serves(model: str) -> bool:
                return bool(w.condition("TrainableModel", model, "Ready")["status"] == "True")

            await w.until(lambda: serves("rich"), "the other model is served")
            events = [b for k, b in w.cluster.objects.items() if k.kind == "Event"]
            told = [e for e in events if e["reason"] == "Forbidden"]
            assert [e["involvedObject"]["name"] for e in told] == ["poor"]
            assert f"cannot {verb} it" in told[0]["message"]
            if shows:
                said = w.condition("TrainableModel", "poor", "Stalled")
                assert (said["status"], said["reason"]) == ("True", "Forbidden")
            refusal.on = False
            await w.until(lambda: serves("poor"), "granted")
            assert w.cluster.objects[ObjectKey("TrainableModel", "default", "poor")]

    run(scenario())


@pytest.mark.parametrize(("verb", "kind"), [("create", "Job"), ("apply", "Deployment")])
def test_a_child_that_the_api_server_does_not_take_stalls_its_object_in_the_servers_words(
    verb: str, kind: str
) -> None:
    said = "spec.containers[0].resources.requests: Invalid value: 2Gi: must be below the limit"

    async def scenario() -> None:
        async with world() as w:
            refusal = Refusal(w, verb, kind, "poor", ClusterError(422, "Invalid", said))
            await w.apply("TrainableModel", "poor", model_spec())

            def stalled() -> bool:
                return bool(w.condition("TrainableModel", "poor", "Stalled")["status"] == "True")

            await w.until(stalled, "it says so")
            stall = w.condition("TrainableModel", "poor", "Stalled")
            assert stall["reason"] == "Invalid"
            assert said in stall["message"]
            assert "Edit the spec" in stall["message"]
            assert w.replica is not None
            assert w.replica.operator is not None
            assert w.replica.operator.refusals.forbidden is None
            refusal.on = False
            await w.until(
                lambda: w.condition("TrainableModel", "poor", "Ready")["status"] == "True", "taken"
            )

    run(scenario())


@pytest.mark.parametrize("kind", ["Lease", "Secret"])
def test_a_replica_that_may_not_have_its_lease_or_its_key_says_so(kind: str) -> None:
    async def scenario() -> None:
        async with world() as w:
            refusal = Refusal(w, "create", kind, "espalier")
            await w.rest(50)
            assert w.replica is not None
            assert "cannot create it. Grant it: the chart's roles" in str(w.replica.fault)
            refusal.on = False
            await w.apply("TrainableModel", "rich", model_spec())
            await w.until(
                lambda: w.condition("TrainableModel", "rich", "Ready")["status"] == "True", "leads"
            )
            assert w.replica.fault is None

    run(scenario())

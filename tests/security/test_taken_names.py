"""Names of children that somebody else has taken."""

from __future__ import annotations

from typing import Any

import pytest
from tests.kube.children import model_of
from tests.simulation.virtual_time import run
from tests.simulation.world import model_spec, world

from espalier.core.manifests.intent import foreign
from espalier.core.manifests.trainer import trainer_service

INTENT = trainer_service(model_of())
OURS = INTENT["metadata"]


def controlled(kind: str, name: str, uid: str) -> dict[str, Any]:
    reference = {"apiVersion": "v1", "kind": kind, "name": name, "uid": uid, "controller": True}
    return {"ownerReferences": [reference]}


@pytest.mark.parametrize(
    ("metadata", "whose"),
    [
        ({}, "nobody's of Espalier"),
        ({"labels": {"app": "shop"}}, "nobody's of Espalier"),
        (controlled("Deployment", "shop", "1"), "Deployment shop's"),
        # The child of a model that was deleted, and that the garbage collector has yet to find.
        (OURS | controlled("TrainableModel", "arith", "uid-before"), "TrainableModel arith's"),
        (OURS, ""),
        # Its owner was deleted with --cascade=orphan.
        ({"labels": OURS["labels"]}, ""),
    ],
    ids=["plain", "labelled", "controlled", "its predecessor's", "ours", "an orphan of ours"],
)
def test_an_object_is_its_controllers(metadata: dict[str, Any], whose: str) -> None:
    assert foreign({"metadata": metadata}, INTENT) == whose


def test_what_somebody_else_made_under_a_childs_name_is_left_as_it_is() -> None:
    async def scenario() -> None:
        async with world() as w:
            spec = {"selector": {"app": "shop"}, "ports": [{"port": 80}]}
            await w.apply("Service", "arith-rollout", spec)
            service = next(k for k in w.cluster.objects if k.name == "arith-rollout")
            before = await w.cluster.get(service)
            await w.apply("TrainableModel", "arith", model_spec())

            def stands(condition: str) -> bool:
                found = w.condition("TrainableModel", "arith", condition)
                return bool(found["status"] == "True")

            await w.until(lambda: stands("Stalled"), "the model says what is in its way")
            said = w.condition("TrainableModel", "arith", "Stalled")
            assert said["reason"] == "NameTaken"
            assert said["message"].startswith("Service arith-rollout is there already")
            assert await w.cluster.get(service) == before
            # The remedy.
            await w.cluster.delete(service)
            await w.until(lambda: stands("Ready"), "the model is served")

    run(scenario())

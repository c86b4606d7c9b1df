"""Futures of Tinker's API that a caller wrote by hand.

What one asks for takes the rights to it, and what it makes the gateway hold is counted.
"""

from __future__ import annotations

import json

import pytest
from dev.apiserver import ApiServer
from tests.api.manifests import CHECKPOINT, DIGEST, edited, named
from tests.gateway.conftest import Gateway
from tests.gateway.process import apply
from tests.gateway.test_completions import Start
from tests.gateway.test_tinker import answers
from tests.gateway.test_training import training

from espalier.api.meta import API_VERSION
from espalier.gateway.tinker import results
from espalier.gateway.tinker.futures import Future
from espalier.gateway.tinker.names import Session, TinkerModel
from espalier.gateway.world.world import NamespacedName

FREED = "2026-01-01T00:00:00Z"
RETRIEVE = "/api/v1/retrieve_future"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOLD_SECONDS", "LOOK_AGAIN_SECONDS"):
        monkeypatch.setattr(results, name, 0.3)


def freed(apiserver: ApiServer, gateway: Gateway) -> NamespacedName:
    """A model whose trainer was freed for want of calls; its run is in the API server too."""
    model = gateway.world.model("idle")
    gateway.world.head(model)
    spec = {"modelRef": {"name": model.name}, "driver": "Client", "steps": 20}
    metadata = {"name": "idle", "namespace": model.namespace}
    run = {"apiVersion": API_VERSION, "kind": "TrainingRun", "metadata": metadata, "spec": spec}
    apply(apiserver, model.namespace, run | {"status": {"idleSince": FREED}})
    seen = apiserver.kubectl("get", "trun", "idle", "-n", model.namespace, "-o", "json")
    gateway.world.cache.put("TrainingRun", json.loads(seen))
    return model


async def test_a_trainer_that_was_freed_is_called_back_by_those_who_may_train_alone(
    gateway: Gateway, apiserver: ApiServer
) -> None:
    model = freed(apiserver, gateway)
    future = str(Future("create", f"{model.namespace}.{model.name}"))
    for token, woken in ((gateway.users.viewer, ""), (gateway.users.trainer, FREED)):
        reply = await gateway.post(RETRIEVE, {"request_id": future}, token)
        told = await reply.text()
        path = ("-o", "jsonpath={.status.wokenFor}")
        found = apiserver.kubectl("get", "trun", "idle", "-n", model.namespace, *path)
        assert (found, "may not update trainingruns" in told) == (woken, not woken)


async def test_a_trainer_names_no_checkpoint_of_another_model_as_what_it_saved(
    gateway: Gateway, upstream: Start, apiserver: ApiServer
) -> None:
    theirs = edited(named(CHECKPOINT, "other-000001"), "spec.modelRef.name", "other")
    apiserver.kubectl("create", "-n", gateway.users.namespace, "-f", "-", stdin=json.dumps(theirs))
    pod = await upstream(answers((200, {"checkpoint": "other-000001", "digest": DIGEST})))
    model = training(gateway, pod.port)
    get = ("get", "ckpt", "other-000001", "-n", model.namespace, "-o", "json")
    gateway.world.cache.put("Checkpoint", json.loads(apiserver.kubectl(*get)))
    trained = TinkerModel.new(Session(model.namespace, "0" * 16), 0, model.name)
    future = Future("save", str(trained), 1, {"type": "save_weights", "path": "best"})
    reply = await gateway.post(RETRIEVE, {"request_id": str(future)})
    told = await reply.json()
    assert "saves" not in json.loads(apiserver.kubectl(*get)).get("status", {})
    assert (reply.status, told["category"]) == (200, "server")
    assert "says that it saved Checkpoint other-000001, which is of model other" in told["error"]

"""To sample a model is a right of its own, and what a caller may not see is not there for it."""

from __future__ import annotations

import json

import pytest
from dev.apiserver import ApiServer
from tests.gateway.conftest import Gateway, Users, token
from tests.gateway.test_completions import ASK, Start, answer, serve

from espalier.core.names import GATEWAY_AUDIENCE

# Of one model by its name, and no right to get it.
ONE_MODEL = """
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: of-one-model}
rules:
- apiGroups: [espalier.dev]
  resources: [trainablemodels/sample]
  resourceNames: [arith]
  verbs: [create]
"""


@pytest.fixture(scope="session")
def of_one_model(apiserver: ApiServer, users: Users) -> str:
    """The token of one who may sample model arith."""
    home = users.namespace
    apiserver.kubectl("apply", "-n", home, "-f", "-", stdin=ONE_MODEL)
    apiserver.kubectl("create", "serviceaccount", "of-one-model", "-n", home)
    apiserver.kubectl(
        *("create", "rolebinding", "of-one-model", "-n", home, "--role=of-one-model"),
        f"--serviceaccount={home}:of-one-model",
    )
    return token(apiserver, home, "of-one-model", GATEWAY_AUDIENCE)


async def test_who_may_only_see_a_model_does_not_sample_it(
    gateway: Gateway, upstream: Start
) -> None:
    pod = await upstream(answer)
    model = serve(gateway, pod.port)
    viewer = gateway.users.viewer
    listed = await (await gateway.get("/v1/models", viewer)).json()
    assert [one["id"] for one in listed["data"]] == ["arith"]
    reply = await gateway.post("/v1/completions", ASK, viewer)
    error = (await reply.json())["error"]
    assert (reply.status, error["code"]) == (403, "Forbidden")
    assert "create on trainablemodels/sample of espalier.dev" in error["message"]
    assert "bind ClusterRole espalier-sampler" in error["message"]
    sampler = f"{model.namespace}.{'0' * 16}:sample:0:arith@base"
    asked = {"sampling_session_id": sampler, "seq_id": 0, "sampling_params": {"max_tokens": 1}}
    asked |= {"prompt": {"chunks": [{"type": "encoded_text", "tokens": [1]}]}}
    for name, status in (("viewer", 403), ("reader", 200)):
        reply = await gateway.post("/api/v1/asample", asked, getattr(gateway.users, name))
        assert reply.status == status, await reply.text()
    assert pod.requests == []
    assert (await gateway.post("/v1/completions", ASK, gateway.users.reader)).status == 200


async def test_the_right_can_be_of_one_model(
    gateway: Gateway, upstream: Start, of_one_model: str
) -> None:
    pod = await upstream(answer)
    serve(gateway, pod.port)
    other = gateway.world.model("other")
    gateway.world.head(other, "sha256:" + "a1" * 32, step=1)
    gateway.world.pod(other, "other-rollout-0", ip="127.0.0.1", port=pod.port)
    assert (await gateway.post("/v1/completions", ASK, of_one_model)).status == 200
    reply = await gateway.post("/v1/completions", ASK | {"model": "other"}, of_one_model)
    assert reply.status == 404


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/completions", {"prompt": "1", "model": "NAME"}),
        ("GET", "/v1/models/NAME", None),
        ("GET", "/v2/models/NAME", None),
        ("GET", "/v2/models/NAME/checkpoints", None),
        ("PUT", "/v2/models/NAME/head", {"checkpoint_id": "arith-000001"}),
        ("POST", "/v1/models/NAME/train/optim-step", {}),
        ("GET", "/v1/models/NAME/train/state", None),
    ],
)
async def test_a_model_that_a_caller_may_not_see_is_as_one_that_does_not_exist(
    gateway: Gateway, of_one_model: str, method: str, path: str, body: object
) -> None:
    gateway.world.model("arith")
    hidden = gateway.world.model("hidden")
    gateway.world.run(hidden, "hidden")
    told = []
    for name in ("hidden", "nowhere"):
        sent = json.loads(json.dumps(body).replace("NAME", name))
        reply = await gateway.request(method, path.replace("NAME", name), of_one_model, json=sent)
        told.append((reply.status, (await reply.text()).replace(name, "NAME")))
    assert told[0] == told[1]
    assert told[0][0] == 404


async def test_a_bare_name_means_the_model_that_its_caller_may_see(
    gateway: Gateway, upstream: Start
) -> None:
    pod = await upstream(answer)
    serve(gateway, pod.port)
    gateway.world.served.namespaces = (gateway.users.namespace, "elsewhere")
    gateway.world.model("arith", "elsewhere")
    gateway.world.model("only", "elsewhere")
    assert len([m for m in gateway.world.served.models if m.name == "arith"]) == 2
    reply = await gateway.post("/v1/completions", ASK)
    assert reply.status == 200, await reply.text()

"""Models that Tinker's clients have made: only for who may use them."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path
from typing import Any

import pytest
from dev.apiserver import ApiServer
from tests.gateway.conftest import Gateway, token

from espalier.core.names import GATEWAY_AUDIENCE
from espalier.gateway.tinker.names import Session

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "tinker.md"
# Routes that make a model, the name of their number, and the rights without which it is of no use.
MAKES = (
    ("create_model", "model_seq_id", {"get trainablemodels", "update trainingruns"}),
    (
        "create_sampling_session",
        "sampling_session_seq_id",
        {"get trainablemodels", "create trainablemodels/sample"},
    ),
)
KINDS = ("trainablemodels", "trainingruns", "checkpointheads")


def asked(gateway: Gateway, session: Session, number: str) -> dict[str, Any]:
    """A model of a base that no rollout serves."""
    gateway.world.model("arith", replicas=0)
    return {"session_id": str(session), number: 0, "base_model": "registry.example/model:1"}


def made(apiserver: ApiServer, session: Session) -> list[str]:
    listed = apiserver.kubectl("get", ",".join(KINDS), "-n", session.namespace, "-o", "name")
    return [name for name in listed.split() if session.token in name]


@pytest.mark.parametrize(
    ("route", "number", "lacking"), [(*make[:2], one) for make in MAKES for one in sorted(make[2])]
)
async def test_who_may_not_use_a_model_has_none_made(
    gateway: Gateway, apiserver: ApiServer, route: str, number: str, lacking: str
) -> None:
    home, name = gateway.users.namespace, f"maker-{uuid.uuid4().hex[:8]}"
    rights = {f"create {kind}" for kind in KINDS}.union(*(make[2] for make in MAKES)) - {lacking}
    rules = [
        {"apiGroups": ["espalier.dev"], "resources": [resource], "verbs": [verb]}
        for verb, resource in map(str.split, rights)
    ]
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": name, "namespace": home},
        "rules": rules,
    }
    apiserver.kubectl("create", "-f", "-", stdin=json.dumps(role))
    apiserver.kubectl("create", "serviceaccount", name, "-n", home)
    account = f"--serviceaccount={home}:{name}"
    apiserver.kubectl("create", "rolebinding", name, "-n", home, f"--role={name}", account)
    session = Session(home, uuid.uuid4().hex[:16])
    shown = token(apiserver, home, name, GATEWAY_AUDIENCE)
    reply = await gateway.post(f"/api/v1/{route}", asked(gateway, session, number), shown)
    assert (reply.status, (await reply.json())["reason"]) == (403, "Forbidden")
    assert f"may not {lacking}" in await reply.text()
    assert made(apiserver, session) == []


async def test_the_role_that_the_guide_shows_is_enough(
    gateway: Gateway, apiserver: ApiServer
) -> None:
    home = gateway.users.namespace
    blocks = re.findall(r"^```yaml\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    (rights,) = (block for block in blocks if "kind: RoleBinding" in block)
    here = rights.replace("namespace: ml}", f"namespace: {home}}}")
    apiserver.kubectl("apply", "-f", "-", stdin=here)
    ann, session = token(apiserver, home, "ann", GATEWAY_AUDIENCE), Session(home, "a" * 16)
    for route, number, _ in MAKES:
        reply = await gateway.post(f"/api/v1/{route}", asked(gateway, session, number), ann)
        assert reply.status == 200, await reply.text()
    # Of the model to train all three kinds, and the sampler.
    assert len(made(apiserver, session)) == 4

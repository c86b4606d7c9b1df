"""Who may do what, as a real API server says."""

from __future__ import annotations

import asyncio
import itertools
from urllib.parse import quote, unquote

import pytest
from dev.apiserver import ApiServer
from kubernetes.aio.client.configuration import Configuration
from tests.gateway.conftest import Gateway, Users, token
from tests.gateway.world import World

from espalier.gateway.access.auth import Authenticator
from espalier.gateway.access.remembered import Remembered
from espalier.gateway.problems import RefusalError
from espalier.gateway.world.world import NamespacedName
from espalier.kube.apiserver import KubernetesCluster


async def test_a_token_for_the_gateway_is_taken(
    apiserver: ApiServer, users: Users, cluster: KubernetesCluster
) -> None:
    text = token(apiserver, users.namespace, "trainer", "espalier-gateway")
    user = await Authenticator(cluster).user(f"Bearer {text}")
    assert user.name == f"system:serviceaccount:{users.namespace}:trainer"
    assert f"system:serviceaccounts:{users.namespace}" in user.groups


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (None, "NoToken"),
        ("Bearer ", "NoToken"),
        ("Basic eDp5", "NoToken"),
        ("Bearer nonsense", "TokenRefused"),
    ],
)
async def test_anything_else_is_refused_with_the_way_to_get_one(
    cluster: KubernetesCluster, header: str | None, reason: str
) -> None:
    with pytest.raises(RefusalError) as refused:
        await Authenticator(cluster).user(header)
    assert (refused.value.status, refused.value.reason) == (401, reason)
    assert "audience" in refused.value.remedy


async def test_a_token_for_another_audience_is_refused(
    apiserver: ApiServer, users: Users, cluster: KubernetesCluster
) -> None:
    text = token(apiserver, users.namespace, "trainer", "vault")
    with pytest.raises(RefusalError) as refused:
        await Authenticator(cluster).user(f"Bearer {text}")
    assert refused.value.reason == "TokenRefused"


async def test_a_missing_right_is_named(users: Users, cluster: KubernetesCluster) -> None:
    auth = Authenticator(cluster)
    target = NamespacedName(users.namespace, "arith")
    reader = await auth.user(f"Bearer {users.reader}")
    await auth.require(reader, "get", "trainablemodels", target)
    with pytest.raises(RefusalError) as refused:
        await auth.require(reader, "update", "trainingruns", target)
    assert refused.value.status == 403
    assert f"may not update trainingruns {target}" in refused.value.detail
    assert "verb update on trainingruns of espalier.dev" in refused.value.remedy


async def test_an_api_server_that_does_not_answer_is_a_503() -> None:
    async with KubernetesCluster(Configuration(host="http://127.0.0.1:1")) as nowhere:
        with pytest.raises(RefusalError) as refused:
            await Authenticator(nowhere).user("Bearer x")
    assert (refused.value.status, refused.value.reason) == (503, "ReviewFailed")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("answer", "seconds"), [("yes", 60.0), ("", 5.0)])
async def test_an_answer_is_remembered_a_refusal_shortly(answer: str, seconds: float) -> None:
    clock, asked = Clock(), itertools.count()
    remembered: Remembered[str] = Remembered(clock)

    async def ask() -> str:
        next(asked)
        return answer

    for now in (0.0, seconds - 0.1):
        clock.now = now
        assert await remembered.get("key", ask) == answer
    clock.now = seconds
    await remembered.get("key", ask)
    assert next(asked) == 2


async def test_callers_at_the_same_time_share_one_question() -> None:
    remembered: Remembered[int] = Remembered()
    release, asked = asyncio.Event(), itertools.count(1)

    async def ask() -> int:
        number = next(asked)
        await release.wait()
        return number

    first, *others = [asyncio.create_task(remembered.get("key", ask)) for _ in range(5)]
    await asyncio.sleep(0)
    first.cancel()
    release.set()
    assert await asyncio.gather(*others) == [1] * 4


async def test_a_failed_question_is_asked_again() -> None:
    remembered: Remembered[int] = Remembered()
    answers = iter([ValueError("down"), 7])

    async def ask() -> int:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with pytest.raises(ValueError, match="down"):
        await remembered.get("key", ask)
    assert await remembered.get("key", ask) == 7


async def test_models_are_listed_to_those_who_may_get_them(gateway: Gateway) -> None:
    world: World = gateway.world
    world.model("arith")
    world.model("spell")
    answer = await gateway.get("/v1/models", gateway.users.reader)
    listed = await answer.json()
    assert listed["object"] == "list"
    assert [m["id"] for m in listed["data"]] == ["arith", "spell"]
    assert listed["data"][0] == {
        "id": "arith",
        "object": "model",
        "created": 1767225600,
        "owned_by": gateway.users.namespace,
    }
    answer = await gateway.get("/v1/models", gateway.users.stranger)
    assert (await answer.json())["data"] == []
    answer = await gateway.get("/v1/models", "")
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"


async def test_one_model_is_told_as_openais_client_asks_for_it(gateway: Gateway) -> None:
    model = gateway.world.model("arith")
    gateway.world.head(model, "sha256:" + "a1" * 32, step=1)
    whole = f"{model.namespace}/arith"
    for asked in ("arith", "arith@base", whole, quote(whole, safe="")):
        answer = await gateway.get(f"/v1/models/{asked}", gateway.users.reader)
        assert answer.status == 200, await answer.text()
        told = await answer.json()
        assert (told["id"], told["object"]) == (unquote(asked), "model")
        assert told["owned_by"] == model.namespace
    for asked, status, said in (
        ("arth", 404, "Did you mean: arith"),
        ("arith@arith-000009", 404, "arith-000009"),
    ):
        answer = await gateway.get(f"/v1/models/{asked}", gateway.users.reader)
        assert answer.status == status
        error = (await answer.json())["error"]
        assert error["code"] == "ModelNotFound"
        assert said in error["message"]
    answer = await gateway.get("/v1/models/arith", gateway.users.stranger)
    assert answer.status == 404

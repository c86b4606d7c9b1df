"""API keys at the gateway, with Secrets, service accounts and RBAC of a real API server."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from dev.apiserver import ApiServer
from kubernetes.aio.client.configuration import Configuration
from tests.gateway.conftest import Gateway, Users
from tests.gateway.test_completions import ASK
from tests.issued_key import Issued, issued, secret

from espalier.core.api_keys import SECRET, Scope
from espalier.gateway.access.api_keys import ApiKeys
from espalier.gateway.access.auth import Authenticator
from espalier.gateway.access.key_source import ISSUED_SECONDS, REVOKED_SECONDS, ClusterKeys
from espalier.gateway.console.page import PAGE
from espalier.gateway.problems import RefusalError
from espalier.gateway.world.world import NamespacedName
from espalier.kube.apiserver import KubernetesCluster
from espalier.kube.objects import Body, ObjectKey


def uid_of(server: ApiServer, namespace: str, account: str) -> str:
    path = ("-o", "jsonpath={.metadata.uid}")
    return server.kubectl("get", "serviceaccount", account, "-n", namespace, *path)


def key_of(
    server: ApiServer, users: Users, account: str, *scopes: Scope, expires: datetime | None = None
) -> Issued:
    limits = {"scopes": scopes} if scopes else {}
    uid = uid_of(server, users.namespace, account)
    return issued(users.namespace, account, uid, expires=expires, **limits)


def store(server: ApiServer, namespace: str, keys: Sequence[Issued]) -> None:
    server.kubectl("delete", "secret", SECRET, "-n", namespace, "--ignore-not-found")
    server.kubectl("create", "-f", "-", stdin=json.dumps(secret(namespace, *keys)))


def opened(
    cluster: KubernetesCluster, *namespaces: str, clock: Callable[[], float] = time.monotonic
) -> Authenticator:
    return Authenticator(cluster, keys=ApiKeys(ClusterKeys(cluster, clock), namespaces))


async def refusal(auth: Authenticator, key: str) -> str:
    with pytest.raises(RefusalError) as refused:
        await auth.user(f"Bearer {key}")
    assert refused.value.status == 401
    assert "espalier keys create" in refused.value.remedy
    assert key not in str(refused.value)
    return refused.value.reason


async def test_a_key_is_its_service_account_in_either_header(
    apiserver: ApiServer, users: Users, cluster: KubernetesCluster
) -> None:
    key = key_of(apiserver, users, "reader")
    store(apiserver, users.namespace, [key])
    auth = opened(cluster, users.namespace)
    token = await auth.user(f"Bearer {users.reader}")
    user = await auth.user(f"Bearer {key.key}")
    assert user == await auth.user(None, key.key) == await auth.user(f"Bearer {key.key}", key.key)
    assert (user.name, set(user.groups), user.scopes) == (token.name, set(token.groups), None)
    target = NamespacedName(users.namespace, "arith")
    assert await auth.allowed(user, "get", "trainablemodels", target)
    assert not await auth.allowed(user, "update", "trainingruns", target)


async def test_a_key_that_is_revoked_is_refused_within_seconds(
    apiserver: ApiServer, users: Users, cluster: KubernetesCluster
) -> None:
    one, other = (key_of(apiserver, users, "trainer") for _ in range(2))
    store(apiserver, users.namespace, [one, other])
    now = [0.0]
    auth = opened(cluster, users.namespace, clock=lambda: now[0])
    await auth.user(f"Bearer {one.key}")
    store(apiserver, users.namespace, [other])
    now[0] = REVOKED_SECONDS
    assert await refusal(auth, one.key) == "ApiKeyUnknown"
    await auth.user(f"Bearer {other.key}")


async def test_a_new_key_is_let_in_beside_others_that_are_in_use(
    apiserver: ApiServer, users: Users, cluster: KubernetesCluster
) -> None:
    one, other = (key_of(apiserver, users, "trainer") for _ in range(2))
    store(apiserver, users.namespace, [one])
    now = [0.0]
    keys = ApiKeys(ClusterKeys(cluster, lambda: now[0]), (users.namespace,))
    await keys.admit(one.key)
    store(apiserver, users.namespace, [one, other])
    now[0] = ISSUED_SECONDS
    assert (await keys.admit(other.key)).account == "trainer"


async def test_what_is_no_valid_key_is_refused_by_name(
    apiserver: ApiServer, users: Users, cluster: KubernetesCluster
) -> None:
    home, past = users.namespace, datetime.now(UTC) - timedelta(seconds=1)
    over = key_of(apiserver, users, "reader", expires=past)
    gone = issued(home, "reader", "uid-of-an-account-that-was-deleted")
    never = issued(home, "nobody", "uid")
    good = key_of(apiserver, users, "reader")
    store(apiserver, home, [over, gone, never, good])
    auth = opened(cluster, home)
    assert await refusal(auth, over.key) == "ApiKeyExpired"
    assert await refusal(auth, gone.key) == await refusal(auth, never.key) == "ApiKeyAccountGone"
    assert await refusal(auth, good.key[:-1]) == "ApiKeyMalformed"
    assert await refusal(auth, good.key[:-64] + "0" * 64) == "ApiKeyUnknown"
    # The Secret of another namespace says nothing about this one, nor this one about it.
    assert await refusal(auth, good.key.replace(home, "default")) == "ApiKeyUnknown"
    assert await refusal(opened(cluster, "default"), good.key) == "ApiKeyUnknown"


class Counted:
    """The cluster, and how often it was asked for an object."""

    def __init__(self, cluster: KubernetesCluster) -> None:
        self.asked = itertools.count()
        self._cluster = cluster

    async def get(self, key: ObjectKey) -> Body | None:
        next(self.asked)
        return await self._cluster.get(key)


async def test_a_flood_of_keys_asks_the_api_server_twice(
    users: Users, cluster: KubernetesCluster
) -> None:
    counted = Counted(cluster)
    source = ClusterKeys(counted)  # type: ignore[arg-type]  # it asks for nothing else
    keys = ApiKeys(source, (users.namespace,))
    made = [issued(users.namespace, "reader", "uid").key for _ in range(200)]
    tried = await asyncio.gather(*(keys.admit(key) for key in made), return_exceptions=True)
    assert all(isinstance(answer, RefusalError) for answer in tried)
    assert next(counted.asked) == 2


async def test_an_api_server_that_fails_for_a_while_stops_no_caller(
    apiserver: ApiServer, users: Users, cluster: KubernetesCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = key_of(apiserver, users, "reader")
    store(apiserver, users.namespace, [key])
    now = [0.0]
    source = ClusterKeys(cluster, lambda: now[0])
    keys = ApiKeys(source, (users.namespace,))
    await keys.admit(key.key)
    async with KubernetesCluster(Configuration(host="http://127.0.0.1:1")) as nowhere:
        monkeypatch.setattr(source, "_cluster", nowhere)
        now[0] = 59.0
        assert (await keys.admit(key.key)).account == "reader"
        now[0] = 60.0
        with pytest.raises(RefusalError) as refused:
            await keys.admit(key.key)
    assert (refused.value.status, refused.value.reason) == (503, "ReviewFailed")


ROUTES = [
    ("GET", "/v1/models", {"read", "sample"}),
    ("POST", "/v1/completions", {"sample"}),
    ("GET", "/v1/runs/{home}/arith", {"read", "train"}),
    ("GET", "/v1/models/arith/train/state", {"read", "train"}),
    ("POST", "/v1/models/arith/train/optim-step", {"train"}),
    ("POST", "/v2/models/fork", {"train"}),
    ("GET", "/v2/models", {"read", "sample", "train", "promote"}),
    ("GET", "/v2/models/arith/checkpoints", {"read", "train", "promote"}),
    ("PUT", "/v2/models/arith/head", {"promote"}),
    ("POST", "/v1/checkpoints/{home}/arith-000001/evaluations", {"promote"}),
    ("GET", "/console/api/v1/models/{home}/arith", {"read"}),
    ("PUT", "/console/api/v1/heads/{home}/arith", {"promote"}),
]


async def test_a_limited_key_may_what_its_scope_says_and_no_more(
    apiserver: ApiServer, gateway: Gateway
) -> None:
    gateway.world.model("arith")
    scopes: tuple[Scope, ...] = ("read", "sample", "train", "promote")
    keys = {scope: key_of(apiserver, gateway.users, "trainer", scope) for scope in scopes}
    store(apiserver, gateway.users.namespace, list(keys.values()))
    for method, template, allowed in ROUTES:
        path = template.format(home=gateway.users.namespace)
        for scope, key in keys.items():
            answer = await gateway.request(method, path, key.key, json={})
            text = await answer.text()
            limited = answer.status == 403 and "ScopeMissing" in text
            assert limited == (scope not in allowed), (method, path, scope, text)


async def test_a_key_that_may_sample_makes_no_model_to_sample(
    apiserver: ApiServer, gateway: Gateway
) -> None:
    # Of a base that nothing serves, Tinker's route would make one.
    model = gateway.world.model("arith", replicas=0)
    scopes: tuple[tuple[Scope, ...], ...] = (("sample",), ("sample", "train"))
    keys = [key_of(apiserver, gateway.users, "trainer", *given) for given in scopes]
    store(apiserver, gateway.users.namespace, keys)
    asked = {"session_id": f"{model.namespace}.{'0' * 16}", "sampling_session_seq_id": 0}
    asked["base_model"] = "registry.example/model:1"
    told = []
    for key in keys:
        reply = await gateway.post("/api/v1/create_sampling_session", asked, key.key)
        told.append((reply.status, (await reply.json())["reason"]))
    assert told == [(403, "ScopeMissing"), (403, "Forbidden")]


async def test_every_route_but_the_probes_and_the_page_asks_who_calls(gateway: Gateway) -> None:
    names = defaultdict(lambda: "n", id=str(uuid.UUID(int=1)))
    tried = set()
    for route in gateway.app.router.routes():
        assert route.resource is not None
        path = route.resource.canonical
        command = "state" if route.method == "GET" else "optim-step"
        # A link to a file carries its own proof.
        proven = path.endswith(("/healthz", "/readyz", "/files/{ticket}/{file}"))
        if route.method != "HEAD" and not proven and path not in PAGE:
            filled = path.format_map(names | {"command": command})
            method = "PATCH" if route.method == "*" else route.method
            answer = await gateway.request(method, filled, "tml-cut")
            assert answer.status == 401, filled
            assert "ApiKeyMalformed" in await answer.text()
            tried.add(path)
    assert len(tried) > 15


async def test_x_api_key_takes_a_kubernetes_token_too_but_no_second_one(
    gateway: Gateway,
) -> None:
    gateway.world.model("arith")
    token = {"X-API-Key": gateway.users.reader}
    answer = await gateway.request("GET", "/v1/models", "", headers=token)
    assert answer.status == 200
    answer = await gateway.request("GET", "/v1/models", gateway.users.trainer, headers=token)
    assert answer.status == 401
    assert "TwoCredentials" in await answer.text()
    answer = await gateway.request("POST", "/v1/completions", "", json=ASK, headers={})
    assert "NoToken" in await answer.text()

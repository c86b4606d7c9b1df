"""The gateway's application on a hand-fed cache, with real reviews by the API server."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
import uvloop
from aiohttp import web
from aiohttp.test_utils import TestServer
from dev.apiserver import ApiServer
from tests.gateway.world import World

from espalier import identity
from espalier.core.names import GATEWAY_AUDIENCE
from espalier.gateway.access.api_keys import ApiKeys
from espalier.gateway.access.auth import Authenticator
from espalier.gateway.access.key_source import ClusterKeys
from espalier.gateway.access.pod_tokens import TokenIssuer
from espalier.gateway.app import SERVER, make_app
from espalier.gateway.context import GatewayContext
from espalier.gateway.hud.trace_outbox import TraceOutbox
from espalier.kube.apiserver import KubernetesCluster
from espalier.podclient import pod_session

PRIVATE_KEY = identity.generate_private_key()
KEYS = identity.PublicKeys.of(identity.generate_private_key(), PRIVATE_KEY)
RIGHTS = """
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: trainer}
rules:
- {apiGroups: [espalier.dev], resources: [trainablemodels], verbs: [get]}
- {apiGroups: [espalier.dev], resources: [trainablemodels/sample], verbs: [create]}
- {apiGroups: [espalier.dev], resources: [trainingruns], verbs: [get, update]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader}
rules:
- {apiGroups: [espalier.dev], resources: [trainablemodels], verbs: [get]}
- {apiGroups: [espalier.dev], resources: [trainablemodels/sample], verbs: [create]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: viewer}
rules:
- {apiGroups: [espalier.dev], resources: [trainablemodels], verbs: [get]}
"""
OF_THE_CONSOLE = """
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: looker}
rules:
- {apiGroups: [espalier.dev], resources: [trainablemodels, checkpoints, trainingruns], verbs: [get]}
- {apiGroups: [espalier.dev], resources: [trainablemodels/sample], verbs: [create]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: mover}
rules:
- {apiGroups: [espalier.dev], resources: [trainablemodels, checkpoints, trainingruns], verbs: [get]}
- {apiGroups: [espalier.dev], resources: [trainablemodels/sample], verbs: [create]}
- {apiGroups: [espalier.dev], resources: [checkpointheads], verbs: [get, update]}
"""


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that the gateway's process has."""
    return {"uvloop": uvloop.new_event_loop}


@dataclass(frozen=True)
class Users:
    """A namespace and tokens of those who may train, sample, only see models, or do nothing."""

    namespace: str
    trainer: str
    reader: str
    viewer: str
    stranger: str


@pytest.fixture(scope="session")
def users(apiserver: ApiServer) -> Users:
    return new_users(apiserver)


def new_users(apiserver: ApiServer) -> Users:
    """Users of a namespace of their own."""
    namespace = f"gateway-{uuid.uuid4().hex[:8]}"
    apiserver.create_namespace(namespace)
    apiserver.kubectl("apply", "-n", namespace, "-f", "-", stdin=RIGHTS)
    tokens = {}
    for name in ("trainer", "reader", "viewer", "stranger"):
        apiserver.kubectl("create", "serviceaccount", name, "-n", namespace)
        if name != "stranger":
            apiserver.kubectl(
                *("create", "rolebinding", name, "-n", namespace, f"--role={name}"),
                f"--serviceaccount={namespace}:{name}",
            )
        tokens[name] = token(apiserver, namespace, name, GATEWAY_AUDIENCE)
    return Users(namespace, **tokens)


@pytest.fixture(scope="session")
def lookers(apiserver: ApiServer, users: Users) -> dict[str, str]:
    """Tokens of one who may look at everything, and of one who may also move heads."""
    apiserver.kubectl("apply", "-n", users.namespace, "-f", "-", stdin=OF_THE_CONSOLE)
    tokens = {}
    for name in ("looker", "mover"):
        account = f"--serviceaccount={users.namespace}:{name}"
        apiserver.kubectl("create", "serviceaccount", name, "-n", users.namespace)
        binding = ("create", "rolebinding", name, "-n", users.namespace, f"--role={name}")
        apiserver.kubectl(*binding, account)
        tokens[name] = token(apiserver, users.namespace, name, GATEWAY_AUDIENCE)
    return tokens


def token(server: ApiServer, namespace: str, account: str, *audience: str) -> str:
    flags = [f"--audience={a}" for a in audience]
    return server.kubectl("create", "token", account, "-n", namespace, *flags).strip()


@pytest.fixture
async def cluster(
    apiserver: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[KubernetesCluster]:
    monkeypatch.setenv("KUBECONFIG", str(apiserver.kubeconfig))
    async with await KubernetesCluster.connect() as connected:
        yield connected


@dataclass
class Gateway:
    """A running gateway and the world that it sees."""

    world: World
    context: GatewayContext
    server: TestServer
    session: aiohttp.ClientSession
    users: Users
    outbox: TraceOutbox = field(default_factory=TraceOutbox)

    @property
    def app(self) -> web.Application:
        return self.server.app

    async def post(
        self, path: str, body: object, token: str | None = None, **headers: str
    ) -> aiohttp.ClientResponse:
        return await self.request("POST", path, token, json=body, headers=headers)

    async def get(self, path: str, token: str | None = None) -> aiohttp.ClientResponse:
        return await self.request("GET", path, token)

    async def request(
        self, method: str, path: str, token: str | None = None, **options: Any
    ) -> aiohttp.ClientResponse:
        """As the trainer unless a token is given; none with an empty one."""
        token = self.users.trainer if token is None else token
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        headers |= options.pop("headers", {})
        return await self.session.request(
            method, self.server.make_url(path), headers=headers, **options
        )


@pytest.fixture
async def gateway(users: Users, cluster: KubernetesCluster) -> AsyncIterator[Gateway]:
    world = World(users.namespace)
    tokens = TokenIssuer()
    tokens.use(PRIVATE_KEY)
    # By itself a session would let no more than 100 requests go out at a time.
    unbounded = aiohttp.TCPConnector(limit=0)
    async with (
        pod_session() as upstream,
        aiohttp.ClientSession(connector=unbounded) as session,
    ):
        keys = ApiKeys(ClusterKeys(cluster), world.namespaces)
        auth = Authenticator(cluster, keys=keys)
        context = GatewayContext(world.view, cluster, auth, tokens, upstream)
        outbox = TraceOutbox()
        server = TestServer(make_app(context, lambda: "", outbox))
        # TestServer sets the others alike.
        await server.start_server(auto_decompress=SERVER["auto_decompress"])
        yield Gateway(world, context, server, session, users, outbox)
        await server.close()


Behaviour = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Upstream:
    """A real server in a pod's place, for errors and lost connections; records what it gets."""

    behaviour: Behaviour
    requests: list[web.Request] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    disconnected: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        body = await request.read()
        self.bodies.append(json.loads(body) if body else None)
        try:
            return await self.behaviour(request)
        except asyncio.CancelledError:
            self.disconnected.set()
            raise


@pytest.fixture
async def upstream() -> AsyncIterator[Callable[[Behaviour], Awaitable[Upstream]]]:
    """Starts recording servers on the loopback address."""
    servers: list[TestServer] = []

    async def start(behaviour: Behaviour) -> Upstream:
        recorder = Upstream(behaviour)
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{path:.*}", recorder.handle)
        server = TestServer(app)
        await server.start_server()
        servers.append(server)
        assert server.port is not None
        recorder.port = server.port
        return recorder

    yield start
    for server in servers:
        await server.close()

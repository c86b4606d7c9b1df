"""Real processes of gateway, trainer and sampler, each with what it must not change."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sqlite3
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from bench.fuzzing.openapi import Routes
from bench.gateway.process import NAMESPACE, gateway
from dev.apiserver import ApiServer
from dev.ports import free_port
from tests.gateway.world import World, digest
from tests.sampler import server
from tests.sampler import tiny as tiny_sampler
from tests.security.fuzzing import GATEWAYS, SAMPLERS, TRAINERS, UPSTREAM, Answered
from tests.security.hostile_requests import Hostile, Tree, routes_of
from tests.trainer import tiny
from tests.trainer.test_service import AUDIENCE, KEYS, bearer, environment, spawn
from tests.trainer.tiny import Volume

from espalier import identity
from espalier.gateway.access.api_keys import ApiKeys
from espalier.gateway.access.auth import Authenticator
from espalier.gateway.access.key_source import ClusterKeys
from espalier.gateway.access.pod_tokens import TokenIssuer
from espalier.gateway.app import make_app
from espalier.gateway.context import GatewayContext
from espalier.gateway.hud.delivery import COMMANDS
from espalier.kube.apiserver import KubernetesCluster
from espalier.podclient import pod_session
from espalier.sampler.guard import CALLERS
from espalier.trainer.http.service import Service

KINDS = "trainablemodels,checkpointheads,checkpoints,trainingruns"


@dataclass(frozen=True)
class Part:
    """One process, or what descends from it.

    Args:
        routes: method and path of each route that is asked.
        bodies: good ones, to be spoilt.
        names: what stands for a placeholder of a path and leads somewhere.
        model: the name of the model that a completion asks.
        headers: of one who may call.
        state: what no refused request may change.
        writes: whether an accepted request may have changed the state.
        upstream: statuses from 500 on that tell of other pods.
    """

    name: str
    url: str
    pid: int
    routes: Routes
    bodies: Sequence[Tree]
    names: dict[str, list[str]]
    model: str
    headers: Callable[[Hostile], dict[str, str]]
    state: Callable[[], Awaitable[Any]]
    writes: Callable[[Answered], bool]
    upstream: frozenset[int] = frozenset()


def of_either(
    headers: Callable[[identity.Subject], dict[str, str]],
) -> Callable[[Hostile], dict[str, str]]:
    """Headers of the gateway, and for a fourth of all requests of the operator, always the same."""

    def of(request: Hostile) -> dict[str, str]:
        is_operators = zlib.crc32(request.path.encode() + request.body) % 4 == 0
        return headers("operator" if is_operators else "gateway")

    return of


Start = Callable[[Path], AbstractAsyncContextManager[Part]]


@asynccontextmanager
async def a_gateway(scratch: Path) -> AsyncIterator[Part]:
    """Before pods that answer whatever they are asked, by the token of an administrator."""

    async def pod(request: web.Request) -> web.Response:
        await request.read()
        if request.path.startswith("/v1/"):
            return web.json_response({"model": "arith@a1a1a1a1a1a1", "choices": [{"text": "2"}]})
        return web.json_response({"metrics": {}, "num_datums": 1})

    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", pod)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    key = identity.generate_private_key()
    with ApiServer() as apiserver:
        async with gateway(apiserver, digest("a1"), port, key) as serving:

            async def state() -> Any:
                text = apiserver.kubectl("get", KINDS, "-n", NAMESPACE, "-o", "json")
                return {_named(o): _lasting(o) for o in json.loads(text)["items"]}

            yield Part(
                "gateway",
                serving.url,
                serving.pid,
                await _routes_of_gateway(str(apiserver.kubeconfig)),
                GATEWAYS,
                {"slug": ["arith"], "namespace": [NAMESPACE], "name": ["arith"], "id": ["0" * 32]},
                "arith",
                lambda _: serving.headers,
                state,
                lambda a: a.request.method in ("POST", "PUT", "DELETE", "PATCH"),
                UPSTREAM,
            )
    await runner.cleanup()


async def _routes_of_gateway(kubeconfig: str) -> Routes:
    """Of an application of the same code, but those whose answer does not end."""
    world = World(NAMESPACE)
    os.environ["KUBECONFIG"] = kubeconfig
    async with await KubernetesCluster.connect() as cluster, pod_session() as session:
        auth = Authenticator(cluster, keys=ApiKeys(ClusterKeys(cluster), world.namespaces))
        context = GatewayContext(world.view, cluster, auth, TokenIssuer(), session)
        return list(_plain(routes_of(make_app(context, lambda: ""))))


def _plain(routes: Iterable[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    """The routes, each command of training by its name."""
    for method, path in routes:
        if path.endswith("/train/{command}"):
            for command in sorted(COMMANDS) if method == "POST" else ("losses", "state"):
                yield method, path.replace("{command}", command)
        elif not path.endswith("/changes"):
            yield method, path


def _named(body: Any) -> str:
    return f"{body['kind']}/{body['metadata']['name']}"


def _lasting(body: Any) -> Any:
    return {name: body.get(name) for name in ("spec", "status")}


@asynccontextmanager
async def a_trainer(scratch: Path) -> AsyncIterator[Part]:
    """With its first assignment, and a volume of its own. Called by both who may call it."""
    source = scratch / "source"
    source.mkdir()
    volume = Volume(scratch, tiny.write_base(scratch, source))
    process, url = await spawn(environment(volume, scratch))
    log = process.stderr
    assert log is not None

    def commands() -> int:
        (file,) = scratch.rglob("log.sqlite")
        with closing(sqlite3.connect(file)) as connection:
            (count,) = connection.execute("SELECT count(*) FROM commands").fetchone()
        return int(count)

    async def state() -> Any:
        async with session.get(f"{url}/train/state", headers=bearer("gateway")) as answer:
            standing = await answer.json()
        return standing, await asyncio.to_thread(commands)

    async with aiohttp.ClientSession() as session:
        drained = asyncio.create_task(_drain(log))
        given = tiny.assignment().model_dump_json()
        async with session.post(f"{url}/assign", data=given, headers=bearer("operator")) as answer:
            assert answer.status == 200
        service = Service(KEYS, AUDIENCE, max_body_bytes=2**20)
        routes = [route for route in routes_of(service.app()) if route[1] != "/commits"]
        try:
            yield Part(
                "trainer",
                url,
                process.pid,
                routes,
                TRAINERS,
                {"id": ["0" * 32], "kind": ["optim-step", "save-weights", "forward-backward"]},
                "",
                of_either(bearer),
                state,
                lambda a: a.request.method == "POST",
            )
        finally:
            process.terminate()
            await process.wait()
            drained.cancel()


async def _drain(log: Any) -> None:
    """Reads what the process logs, or it would wait for us."""
    while await log.readline():
        pass


@asynccontextmanager
async def a_sampler(scratch: Path) -> AsyncIterator[Part]:
    """With two adapters. Its volume and what it samples greedily stay as they are."""
    model = tiny_sampler.make_model(scratch / "model")
    volume = scratch / "volume"
    volume.mkdir()
    base = tiny_sampler.commit_base(volume, model)
    digests = [tiny_sampler.commit_adapter(volume, model, base, seed=seed) for seed in (1, 2)]
    names = [f"tiny@{found[7:19]}" for found in digests]
    rollout = server.start(volume, base)
    server.wait_healthy(rollout)
    assert rollout.serve(*names).status_code == 200

    async def state() -> Any:
        sampled = []
        for name in ("base", *names):
            answer = rollout.complete(name, "abc", max_tokens=8, temperature=0, logprobs=1)
            sampled.append(answer.json()["choices"][0]["token_ids"])
        return sampled, {
            str(file): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(volume.rglob("*"))
            if file.is_file()
        }

    controls: list[Tree] = [{"adapters": [names[0]]}, {"adapters": []}]
    try:
        yield Part(
            "sampler",
            rollout.url,
            rollout.process.pid,
            [*sorted(CALLERS), ("POST", "/v1/completions"), ("POST", "/v1/chat/completions")],
            [*SAMPLERS, *controls],
            {},
            "base",
            of_either(rollout.headers),
            state,
            lambda _: False,
        )
    finally:
        rollout.stop()


PARTS: dict[str, Start] = {"gateway": a_gateway, "trainer": a_trainer, "sampler": a_sampler}

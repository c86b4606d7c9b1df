"""The gateway as a process on a real API server: start, serve, drain."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable

import aiohttp
from aiohttp import web
from dev.apiserver import ApiServer
from tests.gateway.conftest import PRIVATE_KEY, Behaviour, Upstream, Users
from tests.gateway.process import (
    PATIENCE_SECONDS,
    apply,
    manifests,
    signing_key,
    started,
    until,
)
from tests.gateway.test_completions import ASK, answer, free_port
from tests.gateway.world import digest

Start = Callable[[Behaviour], Awaitable[Upstream]]


async def test_it_is_ready_once_it_can_serve_and_finishes_what_it_began(
    apiserver: ApiServer, users: Users, upstream: Start
) -> None:
    arrived, release = asyncio.Event(), asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        arrived.set()
        await release.wait()
        return await answer(request)

    pod = await upstream(slow)
    apply(apiserver, users.namespace, *manifests(pod.port, digest("a1")))
    port, metrics_port = free_port(), free_port()
    environment = {
        "KUBECONFIG": str(apiserver.kubeconfig),
        "POD_NAMESPACE": users.namespace,
        "ESPALIER_PORT": str(port),
        "ESPALIER_METRICS_PORT": str(metrics_port),
    }
    url = f"http://127.0.0.1:{port}"
    headers = {"Authorization": f"Bearer {users.trainer}"}
    async with started(environment) as process, aiohttp.ClientSession(headers=headers) as session:
        await until(session, f"{url}/readyz", "Secret espalier-signing-key is not there yet")
        await until(session, f"{url}/healthz", "ok")
        apply(apiserver, users.namespace, signing_key(PRIVATE_KEY))
        await until(session, f"{url}/readyz", '{"unready": ""}')

        assert (await session.get(f"{url}/v1/models")).status == 200
        metrics = f"http://127.0.0.1:{metrics_port}/metrics"
        await until(session, metrics, 'route="/v1/models",status="200"} 1.0')

        pending = asyncio.create_task(session.post(f"{url}/v1/completions", json=ASK))
        async with asyncio.timeout(PATIENCE_SECONDS):
            await arrived.wait()
        process.send_signal(signal.SIGTERM)
        await until(session, f"{url}/readyz", "shutting down")
        release.set()
        reply = await pending
        assert reply.status == 200
        assert (await reply.json())["model"] == "arith"
        async with asyncio.timeout(PATIENCE_SECONDS):
            _, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
        logged = [json.loads(line) for line in errors.decode().splitlines()]
        assert any(e["message"] == "request" and e["path"] == "/v1/completions" for e in logged)


async def test_a_missing_setting_is_named_and_ends_it_as_a_users_mistake() -> None:
    async with started({"POD_NAMESPACE": ""}) as process:
        _, errors = await process.communicate()
    assert process.returncode == 64
    assert "POD_NAMESPACE is not set" in json.loads(errors)["message"]

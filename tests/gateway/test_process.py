"""The gateway as a process on a real API server: start, serve, drain."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from dev.apiserver import ApiServer
from dev.ports import free_port
from tests.gateway.conftest import PRIVATE_KEY, Behaviour, Upstream, Users
from tests.gateway.process import (
    PATIENCE_SECONDS,
    apply,
    logged,
    served,
    signing_key,
    started,
    trained,
    until,
)
from tests.gateway.test_completions import ASK, answer
from tests.gateway.world import digest

from espalier.gateway.__main__ import DRAIN_SECONDS, UNREADY_SECONDS, Readiness
from espalier.gateway.access.pod_tokens import TokenIssuer

Start = Callable[[Behaviour], Awaitable[Upstream]]


async def test_it_is_ready_once_it_can_serve_and_finishes_what_it_holds(
    apiserver: ApiServer, users: Users, system: str, upstream: Start
) -> None:
    held, begun = asyncio.Event(), asyncio.Event()

    async def pod(request: web.Request) -> web.Response:
        """A rollout that answers, and a trainer that knows its run only when told so."""
        if request.path.startswith("/v1/"):
            return await answer(request)
        if begun.is_set():
            return web.json_response({"metrics": {}, "num_datums": 1})
        held.set()
        problem = {"detail": "no run yet", "reason": "AwaitingAssignment", "remedy": ""}
        return web.json_response(problem, status=503)

    port = (await upstream(pod)).port
    ours, metrics_port = free_port(), free_port()
    served(apiserver, users.namespace, port, digest("a1"))
    trained(apiserver, users.namespace, port)
    environment = {
        "KUBECONFIG": str(apiserver.kubeconfig),
        "POD_NAMESPACE": system,
        "ESPALIER_NAMESPACES": users.namespace,
        "ESPALIER_PORT": str(ours),
        "ESPALIER_METRICS_PORT": str(metrics_port),
    }
    url = f"http://127.0.0.1:{ours}"
    headers = {"Authorization": f"Bearer {users.trainer}"}
    async with started(environment) as process, aiohttp.ClientSession(headers=headers) as session:
        await until(session, f"{url}/readyz", "Secret espalier-gateway-key is not there yet")
        await until(session, f"{url}/healthz", "ok")
        apply(apiserver, system, signing_key(PRIVATE_KEY))
        await until(session, f"{url}/readyz", '{"unready": ""}')

        reply = await session.post(f"{url}/v1/completions", json=ASK)
        assert (await reply.json())["model"] == "arith"
        metrics = f"http://127.0.0.1:{metrics_port}/metrics"
        await until(session, metrics, 'route="/v1/completions",status="200"} 1.0')

        # HUD's client sends a call once and no key, so this one waits for its trainer.
        command = f"{url}/v1/models/arith/train/forward-backward"
        pending = asyncio.create_task(session.post(command, json={}))
        async with asyncio.timeout(PATIENCE_SECONDS):
            await held.wait()
        process.send_signal(signal.SIGTERM)
        await logged(process, "shutting down")
        begun.set()
        reply = await pending
        assert (reply.status, await reply.json()) == (200, {"metrics": {}, "num_datums": 1})
        await logged(process, "request")
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await process.wait() == 0


def test_it_is_unready_from_the_moment_it_is_told_to_end() -> None:
    tokens, synced = TokenIssuer(), asyncio.Event()
    readiness = Readiness(tokens, synced)
    tokens.use(PRIVATE_KEY)
    synced.set()
    assert readiness.unready() == ""
    readiness.draining = True
    assert readiness.unready() == "shutting down"


def test_the_chart_grants_the_time_that_it_may_take_to_end() -> None:
    chart = Path(__file__).parents[2] / "charts" / "espalier" / "templates" / "gateway.yaml"
    (granted,) = re.findall(r"terminationGracePeriodSeconds: (\d+)", chart.read_text())
    assert int(granted) > UNREADY_SECONDS + DRAIN_SECONDS


@pytest.mark.parametrize(
    ("own", "listed", "said"),
    [
        ("", "team", "POD_NAMESPACE is not set"),
        ("system", "", "ESPALIER_NAMESPACES is not set"),
        ("system", "team, system", "ESPALIER_NAMESPACES: names system, where Espalier itself runs"),
    ],
)
async def test_a_wrong_setting_is_named_and_ends_it_as_a_users_mistake(
    own: str, listed: str, said: str
) -> None:
    async with started({"POD_NAMESPACE": own, "ESPALIER_NAMESPACES": listed}) as process:
        _, errors = await process.communicate()
    assert process.returncode == 64
    assert said in json.loads(errors)["message"]

"""The console over given objects: a gateway without a cluster, and a pod with kept rollouts."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web
from dev.ports import free_port
from playwright.async_api import Page, async_playwright
from tests.gateway.world import World

from espalier import identity
from espalier.api.wire.rollout_control import KEPT_ROLLOUTS
from espalier.gateway.access.auth import Authenticator
from espalier.gateway.access.pod_tokens import TokenIssuer
from espalier.gateway.app import make_app
from espalier.gateway.context import GatewayContext
from espalier.gateway.world.world import NamespacedName
from espalier.local.memory_apiserver import MemoryCluster
from espalier.podclient import pod_session
from espalier.sampler.kept_rollouts import page_of

TOKEN = "a-token-of-the-bench"
NOW = "2026-01-01T00:00:00Z"


@asynccontextmanager
async def served(world: World, kept: Mapping[str, Path] | None = None) -> AsyncIterator[str]:
    """Serves the console; yields its address.

    Args:
        world: the objects.
        kept: files of rollouts, by the first 12 digits of their checkpoints' digests.
    """
    cluster = MemoryCluster(lambda: NOW, TOKEN)
    cluster.restore(
        [
            {"apiVersion": "espalier.dev/v1alpha1", "kind": "CheckpointHead", **body}
            for body in world.cache.list("CheckpointHead")
        ]
    )
    tokens = TokenIssuer()
    tokens.use(identity.generate_private_key())
    async with pod_session() as session:
        context = GatewayContext(world.view, cluster, Authenticator(cluster), tokens, session)
        port, pod = free_port(), free_port()
        runners = [await _serve(make_app(context, lambda: ""), port)]
        runners.append(await _serve(_pod(kept or {}), pod))
        for model in list(world.served.models):
            world.pod(model, f"{model.name}-rollout-0", ip="127.0.0.1", port=pod)
        try:
            yield f"http://127.0.0.1:{port}/console/"
        finally:
            for runner in runners:
                await runner.cleanup()


@asynccontextmanager
async def signed_in(
    url: str, model: NamespacedName, width: int, height: int
) -> AsyncIterator[Page]:
    """A page of Chromium, so many pixels large, that shows the list with the model."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = await browser.new_page(viewport={"width": width, "height": height})
        await page.goto(url)
        await page.get_by_label("Token").fill(TOKEN)
        await page.get_by_role("button", name="Sign in").click()
        await page.get_by_role("link", name=str(model)).wait_for()
        yield page
        await browser.close()


async def _serve(app: web.Application, port: int) -> web.AppRunner:
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    return runner


def _pod(kept: Mapping[str, Path]) -> web.Application:
    async def rollouts(request: web.Request) -> web.Response:
        file = kept[request.query["checkpoint"].rpartition("@")[2]]
        page = page_of(file, int(request.query["after"]))
        return web.Response(body=page, content_type="application/json")

    app = web.Application()
    app.router.add_get(KEPT_ROLLOUTS, rollouts)
    return app

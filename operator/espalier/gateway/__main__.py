"""``python -m espalier.gateway``: watch, serve, and on SIGTERM drain."""

from __future__ import annotations

from espalier.termination import end_on_sigterm

if __name__ == "__main__":
    end_on_sigterm()

import asyncio
import base64
import gc
import logging
import os
import signal
import sys

import uvloop
from aiohttp import web

from espalier import process
from espalier.api.exit_codes import USER_MISTAKE
from espalier.core.manifests.labels import MANAGED
from espalier.environment import SettingsError
from espalier.gateway.access.api_keys import ApiKeys
from espalier.gateway.access.auth import Authenticator
from espalier.gateway.access.key_source import ClusterKeys
from espalier.gateway.access.own_run import OwnRun
from espalier.gateway.access.pod_tokens import TokenIssuer
from espalier.gateway.app import SERVER, make_app
from espalier.gateway.certificate import Certificate, CertificateError
from espalier.gateway.context import GatewayContext
from espalier.gateway.listener import CountedSite
from espalier.gateway.settings import GatewaySettings
from espalier.gateway.world.watch import CHILDREN, WATCHED, WorldWatch
from espalier.identity import GATEWAY_KEY_SECRET, PRIVATE_KEY_FIELD
from espalier.kube import informer
from espalier.kube.apiserver import KubernetesCluster
from espalier.kube.cache import Cache
from espalier.kube.cluster import Cluster, ClusterError
from espalier.kube.objects import ObjectKey
from espalier.kube.probes import HealthServer
from espalier.podclient import pod_session
from espalier.telemetry import spans

KEY_RETRY_SECONDS = 2.0
# A replaced key is believed for ten minutes longer (core/key_ring.py).
KEY_LOOK_SECONDS = 60.0
# A Service keeps sending for a moment after a pod stops being ready.
UNREADY_SECONDS = 3.0
# HUD's client asks once and waits this long for the answer. After that nobody is waiting.
# The chart grants this and UNREADY_SECONDS (terminationGracePeriodSeconds).
DRAIN_SECONDS = 600.0
# Connections that wait to be accepted. One more than that is retried by its client after a second.
BACKLOG = 4096
# Before the first generation is collected.
YOUNG_OBJECTS = 20_000

_log = logging.getLogger("espalier.gateway")


class Readiness:
    """Why this replica takes no requests now."""

    def __init__(self, tokens: TokenIssuer, synced: asyncio.Event) -> None:
        self._tokens = tokens
        self._synced = synced
        self.draining = False

    def unready(self) -> str:
        """The reason; empty when it takes requests."""
        if self.draining:
            return "shutting down"
        if not self._synced.is_set():
            return "the first list of the watched objects is not complete"
        if not self._tokens.ready:
            return f"Secret {GATEWAY_KEY_SECRET} is not there yet: the operator creates it"
        return ""


async def follow_signing_key(
    cluster: Cluster, namespace: str, tokens: TokenIssuer, seconds: float = KEY_LOOK_SECONDS
) -> None:
    """Waits for the operator's Secret, which ``/readyz`` names meanwhile, and follows its key."""
    while True:
        try:
            secret = await cluster.get(ObjectKey("Secret", namespace, GATEWAY_KEY_SECRET))
            if secret is not None:
                tokens.use(base64.b64decode(secret["data"][PRIVATE_KEY_FIELD]).decode())
        except ClusterError as error:
            _log.warning("cannot read the signing key", extra={"error": str(error)})
        await asyncio.sleep(seconds if tokens.ready else KEY_RETRY_SECONDS)


async def run(settings: GatewaySettings, cluster: KubernetesCluster) -> None:
    """Serves until SIGTERM or SIGINT, or until the watch fails."""
    certificate = Certificate(settings.tls_directory) if settings.tls_directory else None
    cache = Cache()
    tokens = TokenIssuer()
    stop, synced = asyncio.Event(), asyncio.Event()
    readiness = Readiness(tokens, synced)
    kinds = {kind: MANAGED if kind in CHILDREN else {} for kind in WATCHED}
    watching = informer.InformerSettings(settings.namespaces, kinds)
    async with pod_session() as session:
        watch = WorldWatch(cache, settings.namespaces)
        context = GatewayContext(
            watch,
            cluster,
            Authenticator(
                cluster,
                keys=ApiKeys(ClusterKeys(cluster), settings.namespaces),
                own_run=OwnRun(watch),
                api_server_tokens=settings.api_server_tokens,
            ),
            tokens,
            session,
            settings.offers,
            limits=settings.limits,
        )
        runner = web.AppRunner(
            make_app(context, readiness.unready),
            shutdown_timeout=DRAIN_SECONDS,
            **SERVER,
        )
        await runner.setup()
        open_, backlog = context.connections, BACKLOG
        await CountedSite(runner, open_, settings.port, backlog=backlog).start()
        if certificate is not None:
            tls = certificate.context
            site = CountedSite(runner, open_, settings.tls_port, backlog=backlog, ssl_context=tls)
            await site.start()
        tasks = [
            asyncio.create_task(informer.run(watching, cache, stop, synced, cluster)),
            asyncio.create_task(follow_signing_key(cluster, settings.namespace, tokens)),
            *([asyncio.create_task(certificate.follow())] if certificate is not None else []),
        ]
        try:
            await _until_signal(tasks[0], synced)
            readiness.draining = True
            _log.info("shutting down", extra={"at_most_seconds": DRAIN_SECONDS})
            await asyncio.sleep(UNREADY_SECONDS)
            await runner.cleanup()
        finally:
            stop.set()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _until_signal(watch: asyncio.Task[None], synced: asyncio.Event) -> None:
    """Returns on a signal; raises what ended the watch."""
    signalled = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, signalled.set)
    waits = [asyncio.create_task(synced.wait()), asyncio.create_task(signalled.wait())]
    await asyncio.wait([watch, *waits], return_when=asyncio.FIRST_COMPLETED)
    if synced.is_set():
        # The objects that exist by now stay: scanning them again would halt requests for 60 ms.
        gc.collect()
        gc.freeze()
        # With the default of 700 every tenth request would halt to scan all requests in flight.
        gc.set_threshold(YOUNG_OBJECTS)
        await asyncio.wait([watch, *waits[1:]], return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    if watch.done():
        watch.result()


async def main() -> None:
    """Connects and runs."""
    settings = GatewaySettings.read(os.environ)
    spans.start(os.environ, "espalier-gateway")
    async with (
        await KubernetesCluster.connect() as cluster,
        HealthServer(settings.metrics_port, live={}, ready={}),
    ):
        await run(settings, cluster)


if __name__ == "__main__":
    process.configure_logs()
    try:
        uvloop.run(main())
    except (SettingsError, CertificateError) as error:
        _log.error(str(error))
        sys.exit(USER_MISTAKE)
    finally:
        spans.stop()

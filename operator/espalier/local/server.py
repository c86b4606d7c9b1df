"""``espalier dev``: operator, gateway, trainer and rollouts over a directory of manifests."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import web

from espalier import identity
from espalier.controllers.peers.importer_client import ImporterClient
from espalier.controllers.peers.sampler_client import RolloutClient
from espalier.controllers.peers.trainer_client import TrainerClient
from espalier.controllers.process.operator import Operator
from espalier.core.gitowner import APPLIED_FROM
from espalier.core.manifests.installation import ChildSettings, Images
from espalier.environment import SettingsError
from espalier.gateway.access.api_keys import ApiKeys
from espalier.gateway.access.auth import Authenticator
from espalier.gateway.access.pod_tokens import TokenIssuer
from espalier.gateway.app import SERVER, make_app
from espalier.gateway.console.page import BUILT
from espalier.gateway.context import GatewayContext
from espalier.gateway.world.watch import WorldWatch
from espalier.kube.cache import Cache
from espalier.kube.objects import Body, key_of
from espalier.local.key_file import KeyFile, LocalKeys
from espalier.local.kubelet import Kubelet
from espalier.local.layout import NAMESPACE, Layout, StartError
from espalier.local.manifests import ManifestError, Manifests, fingerprint, read
from espalier.local.memory_apiserver import MemoryCluster
from espalier.podclient import pod_session
from espalier.telemetry import spans

LOOK_SECONDS = 0.5
# The objects that outlive the process; the rest follows from them and from the volume.
KEPT = ("TrainableModel", "TrainingRun", "CheckpointHead", "Checkpoint")
# Objects that the command line reads as well; they come again from their manifests.
SHOWN = (*KEPT, "ConfigMap")
MANAGER = "kubectl"


@dataclass(frozen=True)
class DevOptions:
    """What to run.

    Attributes:
        directory: of manifests; edits of its files are applied as they come.
        layout: where everything is kept.
        port: of the gateway on the loopback interface.
        say: prints a line for the user.
    """

    directory: Path
    layout: Layout
    port: int
    say: Callable[[str], None]


async def run(options: DevOptions) -> None:
    """Runs until SIGINT, SIGTERM or SIGHUP, which a closed terminal sends.

    Raises:
        ManifestError: the directory cannot be applied as it is at the start.
        StartError: a port is taken, or another process uses the same state.
    """
    # Before the state's directory is made: a wrong directory is left as it is.
    read(options.directory, {})
    try:
        spans.start(os.environ, "espalier-dev")
    except SettingsError as error:
        raise StartError(str(error)) from error
    try:
        with options.layout.claimed():
            await _run(options)
    finally:
        spans.stop()


async def _run(options: DevOptions) -> None:
    # Before they are read, so that an edit from now on is seen.
    seen = fingerprint(options.directory)
    kept = _kept(options.layout.objects)
    manifests = read(options.directory, {key_of(body["kind"], body): body for body in kept})
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    cluster = MemoryCluster(_now, options.layout.token())
    cluster.restore(kept)
    private_key = options.layout.private_key("operator", identity.generate_private_key)
    async with _gateway(options, cluster) as gateway_key, pod_session() as session:
        cache = Cache()
        cluster.feed(cache)
        # Image names mean nothing on this machine: a pod's role decides what runs.
        images = Images(trainer="trainer", rollout="rollout", runner="runner")
        url = f"http://127.0.0.1:{options.port}"
        keys = identity.PublicKeys.of(private_key, gateway_key)
        signer = identity.Signer(private_key)
        children = ChildSettings(images, keys.text(), url)
        operator = Operator(
            cluster,
            cache,
            TrainerClient(session, signer),
            RolloutClient(session, signer),
            children,
            importer=ImporterClient(session, signer),
            now=_now,
        )
        kubelet = Kubelet(cluster, options.layout, session, _now)
        await apply(cluster, manifests, options.directory, options.say)
        _keep(cluster, options.layout.objects)
        access = {
            "ESPALIER_GATEWAY_URL": url,
            "ESPALIER_TOKEN": options.layout.token(),
            "ESPALIER_LOCAL": shlex.quote(str(options.layout.root)),
        }
        options.say(f"export {' '.join(f'{name}={value}' for name, value in access.items())}")
        options.say(_console(url))
        async with asyncio.TaskGroup() as group:
            group.create_task(operator.run(stop))
            group.create_task(kubelet.run(stop))
            group.create_task(_follow(options, cluster, stop, seen))
            group.create_task(_report(options, cluster, stop))
    options.say("stopped; start again to go on where it stood")


@asynccontextmanager
async def _gateway(options: DevOptions, cluster: MemoryCluster) -> AsyncIterator[str]:
    """Serves the gateway; returns its signing key."""
    private_key = options.layout.private_key("gateway", identity.generate_private_key)
    tokens = TokenIssuer()
    tokens.use(private_key)
    cache = Cache()
    cluster.feed(cache)
    async with pod_session() as session:
        view = WorldWatch(cache, (NAMESPACE,))
        keys = ApiKeys(LocalKeys(KeyFile(options.layout.api_keys)), (NAMESPACE,))
        auth = Authenticator(cluster, keys=keys)
        services = GatewayContext(view, cluster, auth, tokens, session)
        runner = web.AppRunner(
            make_app(services, lambda: ""),
            shutdown_timeout=1.0,
            **SERVER,
        )
        await runner.setup()
        try:
            await _listen(runner, options.port)
            yield private_key
        finally:
            await runner.cleanup()


async def _listen(runner: web.AppRunner, port: int) -> None:
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
    except OSError as error:
        raise StartError(
            f"--port {port} cannot be served: {os.strerror(error.errno or 0)}; give another --port"
        ) from error


def _marked(body: Body, directory: Path) -> Body:
    """A run with the mark that it would be made again, were it deleted."""
    if body["kind"] != "TrainingRun":
        return body
    metadata = body["metadata"]
    annotations = {**(metadata.get("annotations") or {}), APPLIED_FROM: str(directory)}
    return {**body, "metadata": {**metadata, "annotations": annotations}}


async def apply(
    cluster: MemoryCluster, manifests: Manifests, directory: Path, say: Callable[[str], None]
) -> None:
    """Applies a directory's manifests as a user would."""
    for body in manifests.objects:
        await cluster.apply(body["kind"], _marked(body, directory), manager=MANAGER)
    say(f"applied {len(manifests.objects)} objects")
    if manifests.ignored:
        say(f"not needed on one machine: {', '.join(manifests.ignored)}")


async def _follow(
    options: DevOptions,
    cluster: MemoryCluster,
    stop: asyncio.Event,
    seen: frozenset[tuple[Path, int, int, int]],
) -> None:
    """Applies the directory again whenever a manifest changes, and keeps the objects on disk."""
    changed = asyncio.Event()
    cluster.watch(lambda event, body: changed.set() if body["kind"] in SHOWN else None)
    while not stop.is_set():
        now = fingerprint(options.directory)
        if now != seen:
            seen = now
            try:
                manifests = read(options.directory, cluster.objects)
                await apply(cluster, manifests, options.directory, options.say)
            except ManifestError as error:
                # The applied objects stay as they are; the next save may be valid.
                options.say(f"not applied: {error}")
        if changed.is_set():
            changed.clear()
            _keep(cluster, options.layout.objects)
        await asyncio.sleep(LOOK_SECONDS)
    _keep(cluster, options.layout.objects)


async def _report(options: DevOptions, cluster: MemoryCluster, stop: asyncio.Event) -> None:
    """Prints the Ready condition of each object whenever it changes."""
    lines: dict[str, str] = {}
    while not stop.is_set():
        for key, body in sorted(cluster.objects.items()):
            if key.kind in KEPT and key.kind != "Checkpoint":
                line = f"{key.kind} {key.name}: {_standing(body)}"
                if lines.get(str(key)) != line:
                    lines[str(key)] = line
                    options.say(line)
        await asyncio.sleep(LOOK_SECONDS)


def _standing(body: Body) -> str:
    conditions = {c["type"]: c for c in body.get("status", {}).get("conditions", ())}
    ready = conditions.get("Ready")
    return f"{ready['reason']}: {ready['message']}" if ready else "not seen yet"


def _kept(path: Path) -> list[Body]:
    if not path.is_file():
        return []
    bodies: list[Body] = json.loads(path.read_text())
    return [body for body in bodies if body["kind"] in KEPT]


def _keep(cluster: MemoryCluster, path: Path) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(cluster.dump(SHOWN)))
    partial.rename(path)


def _console(url: str) -> str:
    """Where to look instead of reading."""
    if BUILT.is_dir():
        return f"console: {url}/console/ with the token above"
    return "console: not built; make console builds it"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

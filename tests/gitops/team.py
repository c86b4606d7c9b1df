"""A team's namespace: a real operator; nodes, trainer and rollouts are played by us."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import IO

from aiohttp import web
from dev.apiserver import ApiServer
from dev.ports import free_port, own_network
from tests.gitops.customizations import run_action
from tests.gitops.repository import Repository
from tests.simulation.kubelet import RESOLVED
from tests.simulation.servers import Servers

from espalier import identity
from espalier.controllers.peers.peer import PORT
from espalier.controllers.process import signing_key
from espalier.core.manifests.labels import MANAGED
from espalier.kube.apiserver import KubernetesCluster
from espalier.kube.cluster import ClusterError
from espalier.kube.objects import Body, ObjectKey

MODEL = "arith"
RUN = "arith-200"
OBJECTS = (("TrainableModel", MODEL), ("CheckpointHead", MODEL), ("TrainingRun", RUN))
WAIT_SECONDS = 120


class Team:
    """One namespace, its repository, and what its pods answer."""

    def __init__(
        self, apiserver: ApiServer, cluster: KubernetesCluster, namespace: str, home: Path
    ) -> None:
        self.apiserver = apiserver
        self.cluster = cluster
        self.namespace = namespace
        self.repository = Repository(home / namespace)
        prefix = own_network(PORT)
        self.addresses = {"trainer": f"{prefix}.2", "rollout": f"{prefix}.3"}
        self.servers: Servers

    async def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """kubectl in the team's namespace, without holding up the pods that we play."""
        call = self.apiserver.kubectl
        return await asyncio.to_thread(call, "-n", self.namespace, *arguments, stdin=stdin)

    async def get(self, kind: str, name: str) -> Body:
        return await self.cluster.get(ObjectKey(kind, self.namespace, name)) or {}

    async def head(self) -> Body:
        return await self.get("CheckpointHead", MODEL)

    async def until(self, kind: str, name: str, reached: Callable[[Body], bool], what: str) -> Body:
        """Waits until an object is as it should be; the error shows how it is."""
        body: Body = {}
        for _ in range(WAIT_SECONDS * 10):
            body = await self.get(kind, name)
            if body and reached(body):
                return body
            await asyncio.sleep(0.1)
        shown = json.dumps(body.get("status"), indent=1)
        raise AssertionError(f"waited {WAIT_SECONDS} s for {what}: {kind} {name} is {shown}")

    async def serves(self, checkpoint: str, reason: str = "") -> Body:
        """Waits until the head serves a checkpoint and is at rest; its status."""

        def reached(head: Body) -> bool:
            status = head.get("status", {})
            ready = [c for c in status.get("conditions", []) if c["type"] == "Ready"]
            return bool(
                status.get("observedGeneration") == head["metadata"]["generation"]
                and status.get("current", {}).get("name") == checkpoint
                and ready
                and ready[0]["status"] == "True"
                and reason in ("", ready[0]["reason"])
            )

        what = f"the head to serve {checkpoint}"
        status: Body = (await self.until("CheckpointHead", MODEL, reached, what))["status"]
        assert self.addresses["rollout"] in self.servers.rollouts.serving
        return status

    async def advance(self, steps: int) -> str:
        """Optimizer steps, each served before the next; the last checkpoint's name."""
        await self.until("TrainingRun", RUN, has("Ready", "Training"), "the run to train")
        name = ""
        for _ in range(steps):
            name = (await self.servers.trainer.step(MODEL)).name
            await self.serves(name)
        return name

    async def gone(self, kind: str, name: str) -> None:
        for _ in range(WAIT_SECONDS * 10):
            if not await self.get(kind, name):
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"waited {WAIT_SECONDS} s for {kind} {name} to be gone")

    async def act(self, action: str) -> None:
        """A resource action of Argo CD on the run, written as its API server writes it."""
        run = await self.get("TrainingRun", RUN)
        (impacted,) = (await asyncio.to_thread(run_action, action, run))["impacted"]
        assert impacted["operation"] == "patch"
        spec = {**dict.fromkeys(run["spec"]), **impacted["object"]["spec"]}
        patch = json.dumps({"spec": spec})
        await self.kubectl("patch", "trainingrun", RUN, "--type=merge", f"--patch={patch}")

    def served(self) -> list[str]:
        """The adapters that the rollout pod was last told to serve."""
        return self.servers.rollouts.serving[self.addresses["rollout"]]

    async def play(self) -> None:
        """Be the nodes of this namespace, and its storage: for ever."""
        await self.kubectl("apply", "-f", "-", stdin=json.dumps(_volume(self.namespace)))
        # The chart makes it in each namespace that the operator serves.
        await self.kubectl("create", "serviceaccount", "espalier-runner")
        while True:
            for pod in await self.cluster.list("Pod", self.namespace, MANAGED):
                if (status := self._next(pod)) is not None:
                    metadata = {n: pod["metadata"][n] for n in ("name", "namespace", "uid")}
                    body = {"metadata": metadata, "status": status}
                    # It may be gone by now.
                    with suppress(ClusterError):
                        await self.cluster.apply_status("Pod", body)
            await asyncio.sleep(0.2)

    def _next(self, pod: Body) -> Body | None:
        """The status that a kubelet would write now, if it would."""
        role, now = pod["metadata"]["labels"]["espalier.dev/role"], pod.get("status", {})
        if pod["metadata"].get("deletionTimestamp"):
            # It was told to end. What no Job keeps for this is gone by now.
            return self._status(pod, role, 143) if now.get("phase") == "Running" else None
        if now.get("podIP") or pod["spec"].get("schedulingGates"):
            return None
        self.servers.uids[role] = pod["metadata"]["uid"]
        return self._status(pod, role, 0 if role == "importer" else None)

    def _status(self, pod: Body, role: str, code: int | None) -> Body:
        """Of a pod that runs, or ended with an exit code."""
        ended = code is not None
        ip = self.addresses.get(role, "127.0.0.1")
        state: Body = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
        if ended:
            state = {"terminated": {"exitCode": code, "message": json.dumps(RESOLVED)}}
        container = {
            "name": pod["spec"]["containers"][0]["name"],
            "image": "x",
            "imageID": "x",
            "containerID": "containerd://1",
            "restartCount": 0,
            "ready": not ended,
            "started": not ended,
            "state": state,
        }
        phases = {None: "Running", 0: "Succeeded"}
        return {
            "phase": phases.get(code, "Failed"),
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": str(not ended)}],
            "containerStatuses": [container],
        }

    @asynccontextmanager
    async def pods(self, keys: identity.PublicKeys) -> AsyncIterator[None]:
        """Trainer and rollouts at their addresses, and nodes that run them."""
        self.servers = Servers(self.namespace, MODEL, keys, self.addresses["rollout"])
        self.servers.rollouts.up = {self.addresses["rollout"]}
        runner = web.AppRunner(self.servers.app(), handler_cancellation=True)
        await runner.setup()
        playing = asyncio.create_task(self.play())
        try:
            for ip in self.addresses.values():
                await web.TCPSite(runner, ip, PORT).start()
            yield
        finally:
            playing.cancel()
            with suppress(asyncio.CancelledError):
                await playing
            await runner.cleanup()


def has(kind: str, reason: str) -> Callable[[Body], bool]:
    def check(body: Body) -> bool:
        found = body.get("status", {}).get("conditions", [])
        return any(c["type"] == kind and c["reason"] == reason for c in found)

    return check


async def edit_head(team: Team, **spec: object) -> None:
    patch = json.dumps({"spec": spec})
    await team.kubectl("patch", "checkpointhead", MODEL, "--type=merge", f"--patch={patch}")


async def declared(team: Team) -> Body:
    """What Git declares: spec, labels, annotations and the edit that they are of."""
    found = {}
    for kind, name in OBJECTS:
        body = await team.get(kind, name)
        metadata = body["metadata"]
        kept = {k: metadata.get(k) for k in ("generation", "labels", "annotations")}
        found[kind] = {"spec": body["spec"], **kept}
    return found


async def writers(team: Team) -> set[str]:
    """Who wrote the spec, labels or annotations of what Git declares."""
    bodies = [await team.get(kind, name) for kind, name in OBJECTS]
    return {
        entry["manager"]
        for body in bodies
        for entry in body["metadata"]["managedFields"]
        if {"f:spec", "f:metadata"} & entry["fieldsV1"].keys()
    }


@asynccontextmanager
async def teams(
    apiserver: ApiServer, namespaces: Sequence[str], home: Path
) -> AsyncIterator[list[Team]]:
    """Teams that one operator serves."""
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(await KubernetesCluster.connect())
        made = [Team(apiserver, cluster, namespace, home) for namespace in namespaces]
        system = f"{namespaces[0]}-system"
        await asyncio.to_thread(apiserver.create_namespace, system)
        private_keys = [
            (await signing_key.ensure(cluster, system, name)).current
            for name in (identity.OPERATOR_KEY_SECRET, identity.GATEWAY_KEY_SECRET)
        ]
        for team in made:
            await stack.enter_async_context(team.pods(identity.PublicKeys.of(*private_keys)))
        await stack.enter_async_context(_operator(system, namespaces, home / "operator.log"))
        yield made


@asynccontextmanager
async def _operator(system: str, namespaces: Sequence[str], log: Path) -> AsyncIterator[None]:
    environment = {
        **os.environ,
        "POD_NAMESPACE": system,
        "POD_NAME": "operator-0",
        "ESPALIER_NAMESPACES": ",".join(namespaces),
        "ESPALIER_IMAGE_TRAINER": "trainer:1",
        "ESPALIER_IMAGE_ROLLOUT": "rollout:1",
        "ESPALIER_IMAGE_RUNNER": "runner:1",
        "ESPALIER_GATEWAY_URL": "http://gateway",
        "ESPALIER_HEALTH_PORT": str(free_port()),
    }
    with log.open("wb") as output:
        running = asyncio.create_task(_restarted(environment, output))
        try:
            yield
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running


async def _restarted(environment: dict[str, str], output: IO[bytes]) -> None:
    """The operator's process, started anew whenever it ends, as its Deployment does.

    It ends when it could not renew its Lease in time, which a busy machine brings about.
    """
    while True:
        process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "espalier.controllers"),
            env=environment,
            stdout=output,
            stderr=output,
        )
        try:
            await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


def _volume(namespace: str) -> Body:
    """A volume for the example's claim: there is no provisioner here."""
    claim = {"namespace": namespace, "name": "espalier-weights"}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"weights-{namespace}"},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "capacity": {"storage": "10Gi"},
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **claim},
            "hostPath": {"path": "/nowhere"},
        },
    }

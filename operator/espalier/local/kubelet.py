"""Runs the pods of the operator's children as processes, as Kubernetes would run them.

Pods get loopback addresses of their own (127.x.y.z), so that every server listens on port 8000 as
it does in a cluster.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import aiohttp

from espalier.api.exit_codes import USER_MISTAKE
from espalier.backoff import Backoff
from espalier.core.manifests.pod import PORT
from espalier.kube.objects import Body, ObjectKey, controlled_by, key_of
from espalier.local import free_memory
from espalier.local.layout import Layout, MappingError
from espalier.local.memory_apiserver import MemoryCluster
from espalier.local.pod import SERVERS, LocalPod
from espalier.local.pod_addresses import claimed_network
from espalier.local.pod_process import plan
from espalier.local.running import Running
from espalier.podclient import PodFaultError

LOOK_SECONDS = 0.2
PROBE_SECONDS = 2.0
RESTART = Backoff(first=1.0, cap=30.0, jitter=0.0)
OWNERS = ("StatefulSet", "Deployment", "Job")


class Kubelet:
    """Compares every StatefulSet, Deployment and Job with its processes, in a loop."""

    def __init__(
        self,
        cluster: MemoryCluster,
        layout: Layout,
        session: aiohttp.ClientSession,
        now: Callable[[], str],
        room: free_memory.Memory | None = None,
    ) -> None:
        self._cluster = cluster
        self._layout = layout
        self._session = session
        self._now = now
        self._room = room or free_memory.of_this_machine()
        self._pods: dict[ObjectKey, LocalPod] = {}
        network, self._claim = claimed_network()
        self._addresses = (f"127.{network}.{n // 250}.{n % 250 + 1}" for n in itertools.count())

    async def run(self, stop: asyncio.Event) -> None:
        """Runs until ``stop``; then ends every process."""
        with self._claim:
            await self._run(stop)

    async def _run(self, stop: asyncio.Event) -> None:
        try:
            while not stop.is_set():
                await self._look()
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            started = [pod.running for pod in self._pods.values() if pod.running is not None]
            await asyncio.gather(*(running.stop() for running in started))
            for key in self._pods:
                await asyncio.to_thread(self._layout.forget_temporary, key.name)

    async def _look(self) -> None:
        wanted: dict[ObjectKey, Body] = {}
        for owner in [b for key, b in self._cluster.objects.items() if key.kind in OWNERS]:
            for number in range(_replicas(owner)):
                name = f"{owner['metadata']['name']}-{number}"
                wanted[ObjectKey("Pod", owner["metadata"]["namespace"], name)] = owner
        for key in [key for key in self._pods if key not in wanted]:
            await self._remove(key)
        for key, owner in wanted.items():
            pod = self._pods.get(key)
            if pod is not None and pod.template != owner["spec"]["template"]:
                await self._remove(key)
                pod = None
            if pod is None:
                pod = await self._add(key, owner)
            await self._advance(key, pod, owner)

    async def _add(self, key: ObjectKey, owner: Body) -> LocalPod:
        template = owner["spec"]["template"]
        controller = await self._replica_set(owner) if owner["kind"] == "Deployment" else owner
        body = {
            "metadata": {
                **template["metadata"],
                "name": key.name,
                "namespace": key.namespace,
                "ownerReferences": [controlled_by(controller)],
            },
            "spec": {
                "containers": [{"name": template["spec"]["containers"][0]["name"]}],
                "restartPolicy": template["spec"].get("restartPolicy", "Always"),
            },
        }
        made = await self._cluster.create("Pod", body)
        assert made is not None, f"{key} is another's"
        pod = self._pods[key] = LocalPod(next(self._addresses), made["metadata"]["uid"])
        pod.template = template
        return pod

    async def _replica_set(self, deployment: Body) -> Body:
        """The ReplicaSet between a Deployment and its pods; one for all of its templates."""
        metadata = deployment["metadata"]
        key = ObjectKey("ReplicaSet", metadata["namespace"], metadata["name"])
        body = {
            "metadata": {
                "name": key.name,
                "namespace": key.namespace,
                "labels": deployment["spec"]["template"]["metadata"]["labels"],
                "ownerReferences": [controlled_by(deployment)],
            },
            "spec": {},
        }
        await self._cluster.create("ReplicaSet", body)
        return self._cluster.objects[key]

    async def _remove(self, key: ObjectKey) -> None:
        pod = self._pods.pop(key)
        if pod.running is not None:
            await pod.running.stop()
        await asyncio.to_thread(self._layout.forget_temporary, key.name)
        await self._cluster.delete(key)

    async def _advance(self, key: ObjectKey, pod: LocalPod, owner: Body) -> None:
        role = pod.role
        if pod.running is not None:
            pod.init_container = pod.running.init_container
        if pod.running is not None and pod.running.code is not None:
            pod.ended = (pod.running.code, pod.running.message, self._now())
            pod.running, pod.started, pod.ready = None, False, False
            if owner["kind"] == "Job" and self._ended_job(owner, pod):
                pod.over = True
                self._cluster.set_status(key, pod.status())
                return
            pod.resting_until = _clock() + RESTART.delay(pod.starts)
        if pod.running is None and _clock() >= pod.resting_until and not _finished(owner):
            await self._start(key, pod, role)
        if pod.running is not None:
            serves = role in SERVERS
            # As with a startup probe, the pod gets no requests before this.
            pod.started = pod.started or not serves or await self._answers(pod, "healthz")
            pod.ready = pod.started and (not serves or await self._serves(pod))
            if _overdue(pod):
                self._layout.note(key.name, "no answer within startupSeconds: it is started again")
                await pod.running.stop()
        self._cluster.set_status(key, pod.status())

    async def _start(self, key: ObjectKey, pod: LocalPod, role: str) -> None:
        pod.unschedulable = self._shortage(pod)
        if pod.unschedulable:
            pod.resting_until = _clock() + RESTART.first
            return
        config = {
            k.name: body.get("data") or {}
            for k, body in self._cluster.objects.items()
            if k.kind == "ConfigMap"
        }
        spec = pod.template["spec"]
        try:
            planned = plan(
                key.name,
                role,
                spec,
                uid=pod.uid,
                address=pod.address,
                layout=self._layout,
                config=config,
            )
        except MappingError as error:
            pod.waiting = str(error)
            pod.resting_until = _clock() + RESTART.first
            return
        pod.waiting = ""
        pod.starts += 1
        try:
            pod.running = await Running.start(planned, self._layout.log(key.name))
        except MappingError as error:
            pod.waiting = str(error)
            pod.resting_until = _clock() + RESTART.delay(pod.starts)
        # As a startup probe's time, which begins after the init containers.
        pod.began = _clock()

    def _shortage(self, pod: LocalPod) -> str:
        """Why a pod does not fit into memory; a pod keeps its request between two starts."""
        others = [p for p in self._pods.values() if p is not pod and p.starts and not p.over]
        taken = sum(free_memory.asked(other.template["spec"]) for other in others)
        return self._room.shortage(free_memory.asked(pod.template["spec"]), taken)

    def _ended_job(self, owner: Body, pod: LocalPod) -> bool:
        """Whether the Job ends with its pod; if so, writes how into its status."""
        code = pod.ended[0] if pod.ended else 0
        if code not in (0, USER_MISTAKE) and pod.starts <= owner["spec"]["backoffLimit"]:
            return False
        reasons = {0: "Completed", USER_MISTAKE: "PodFailurePolicy"}
        reason = reasons.get(code, "BackoffLimitExceeded")
        condition = {"type": "Failed" if code else "Complete", "status": "True", "reason": reason}
        condition["message"] = f"exit code {code}, see {self._layout.root}/logs"
        status: Body = {"conditions": [condition]}
        if not code:
            status["completionTime"] = self._now()
        self._cluster.set_status(key_of("Job", owner), status)
        return True

    async def _serves(self, pod: LocalPod) -> bool:
        """Asks the readiness probe; on a busy machine a single late answer means nothing."""
        if await self._answers(pod, "readyz"):
            pod.last_ready = _clock()
            return True
        probe = pod.template["spec"]["containers"][0].get("readinessProbe") or {}
        patience = probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3)
        return pod.ready and _clock() - pod.last_ready < float(patience)

    async def _answers(self, pod: LocalPod, route: str) -> bool:
        timeout = aiohttp.ClientTimeout(total=PROBE_SECONDS)
        try:
            url = f"http://{pod.address}:{PORT}/{route}"
            async with self._session.get(url, timeout=timeout) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError, PodFaultError):
            return False


def _overdue(pod: LocalPod) -> bool:
    """Whether it has not answered for as long as its startup probe allows."""
    probe = pod.template["spec"]["containers"][0].get("startupProbe")
    if pod.started or probe is None:
        return False
    return _clock() - pod.began >= float(probe["periodSeconds"] * probe["failureThreshold"])


def _replicas(owner: Body) -> int:
    return 1 if owner["kind"] == "Job" else int(owner["spec"]["replicas"])


def _finished(owner: Body) -> bool:
    return owner["kind"] == "Job" and bool(owner.get("status", {}).get("conditions"))


def _clock() -> float:
    return asyncio.get_running_loop().time()

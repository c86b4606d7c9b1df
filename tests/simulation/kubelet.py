"""What Kubernetes' own controllers and a node do with the operator's children."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.fakes.cluster import FakeCluster
from tests.simulation.gates import GATED, gated
from tests.simulation.scripted import ScriptedRollouts, ScriptedTrainer, digest

from espalier.core.manifests.labels import MODEL, ROLE, RUN
from espalier.kube.objects import Body, ObjectKey, controlled_by

BASE_DIGEST = digest("base")
RESOLVED = {"uri": "volume://bases/tiny", "revision": "1", "digest": BASE_DIGEST}


STARTS = "PodInitializing"
# Fields of a template's container that its pods have too.
KEPT = ("name", "resources", "volumeMounts")


def mounts(pod: Body) -> list[Body]:
    """What the main container of a pod, or of a template, mounts."""
    found: list[Body] = pod["containers"][0].get("volumeMounts", [])
    return found


class Kubelet:
    """Every ``tick`` moves each pod on by one state: absent, running, ready."""

    def __init__(
        self,
        cluster: FakeCluster,
        trainer: ScriptedTrainer,
        rollouts: ScriptedRollouts,
        now: Callable[[], str],
    ) -> None:
        self.cluster = cluster
        self.trainer = trainer
        self.rollouts = rollouts
        self.now = now
        self._starts = 0
        self.network = "10.0.0"
        # What the importer finds the base to be.
        self.resolved = RESOLVED
        # Roles whose pods stay in this waiting state.
        self.waiting: dict[str, Body] = {}
        # Roles, and names of pods, that end by themselves with this termination message.
        self.giving_up: dict[str, Body] = {}
        # Roles whose pods work on and on.
        self.slow: set[str] = set()
        # Imports that are slow have brought all of their bytes.
        self.placing = False
        # Roles no pod of which can be made, and the API server's words.
        self.refused: dict[str, str] = {}
        # Roles whose pods do not get beyond their volumes, and the node's words.
        self.unmounted: dict[str, str] = {}
        # What a scrubber reports, by its arguments: all is as it was written.
        self.scrub: Callable[[list[str]], Body] = _sound
        # Roles into whose pods a mesh puts a container that runs for ever.
        self.sidecars: set[str] = set()

    def bodies(self, kind: str) -> list[Body]:
        return [body for key, body in self.cluster.objects.items() if key.kind == kind]

    def pods(self, role: str) -> list[Body]:
        return [p for p in self.bodies("Pod") if p["metadata"]["labels"][ROLE] == role]

    async def tick(self) -> None:
        await self._collect_garbage()
        for body in self.bodies("StatefulSet"):
            await self._scale(body, body["spec"]["replicas"])
        for body in self.bodies("Deployment"):
            await self._scale(await self._replica_set(body), body["spec"]["replicas"])
        for body in self.bodies("Job"):
            if not body.get("status", {}).get("conditions"):
                await self._scale(body, 0 if body["spec"].get("suspend") else 1)
        for body in self.bodies("Pod"):
            # One that somebody else made does as it likes.
            if body["metadata"].get("ownerReferences") and not gated(body):
                self._advance(body)
        alive = {p["status"]["podIP"] for p in self.bodies("Pod") if _running(p)}
        self.trainer.up = self.rollouts.up = alive

    async def _collect_garbage(self) -> None:
        """What was made for an owner that had gone by then goes too."""
        living = {body["metadata"]["uid"] for body in self.cluster.objects.values()}
        for key, body in list(self.cluster.objects.items()):
            owners = {r["uid"] for r in body["metadata"].get("ownerReferences", ())}
            if owners and not owners & living and key in self.cluster.objects:
                await self.cluster.delete(key)

    async def restart(self, role: str) -> None:
        """The containers of a role start anew, in the same pods."""
        for pod in self.pods(role):
            self.restart_pod(pod)

    def restart_pod(self, pod: Body) -> None:
        """The container of a pod starts anew."""
        ip = pod["status"]["podIP"]
        self.rollouts.serving.pop(ip, None)
        status = self._status(ip, False)
        self.cluster.edit(key_of_pod(pod), partial(_put_status, status))

    async def evict(self, role: str) -> None:
        """The pods of a role go; their owners make others."""
        for pod in self.pods(role):
            await self.cluster.delete(key_of_pod(pod))

    async def _scale(self, owner: Body, wanted: int) -> None:
        uid = owner["metadata"]["uid"]
        have = [
            pod
            for pod in self.bodies("Pod")
            if any(r["uid"] == uid for r in pod["metadata"].get("ownerReferences", ()))
        ]
        old = [pod for pod in have[:wanted] if not self._is_of(pod, owner)]
        for pod in [*have[wanted:], *old]:
            await self.cluster.delete(key_of_pod(pod))
        have = [pod for pod in have if pod not in old]
        role = owner["spec"]["template"]["metadata"]["labels"][ROLE]
        if role in self.refused and len(have) < wanted:
            await self._refuse(owner, self.refused[role])
            return
        for number in range(len(have), wanted):
            await self._create(owner, number)
        if role in self.unmounted:
            for pod in have:
                await self._warn(pod, "FailedMount", self.unmounted[role])

    def _is_of(self, pod: Body, owner: Body) -> bool:
        """Whether a pod mounts what its owner says by now; others are replaced, but a Job's."""
        return owner["kind"] == "Job" or mounts(pod["spec"]) == mounts(
            owner["spec"]["template"]["spec"]
        )

    async def _refuse(self, owner: Body, why: str) -> None:
        """A Deployment says it in a condition, after its ReplicaSet; others in Events alone."""
        self._starts += 1
        name = f"{owner['metadata']['name']}-{self._starts}"
        message = f'Error creating: pods "{name}" is forbidden: {why}'
        if owner["kind"] != "ReplicaSet":
            await self._warn(owner, "FailedCreate", message)
            return
        failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate"}
        of = owner["metadata"]["ownerReferences"][0]["name"]
        self.cluster.set_status(
            ObjectKey("Deployment", owner["metadata"]["namespace"], of),
            {"conditions": [{**failure, "message": message}]},
        )

    async def _warn(self, about: Body, reason: str, message: str) -> None:
        metadata = about["metadata"]
        regarding = {name: metadata[name] for name in ("name", "namespace", "uid")}
        name = f"{metadata['name']}.{reason.lower()}"
        event = {
            "metadata": {"name": name, "namespace": metadata["namespace"]},
            "involvedObject": {**regarding, "kind": about["kind"]},
            "type": "Warning",
            "reason": reason,
            "message": message,
            "lastTimestamp": self.now(),
        }
        await self.cluster.apply("Event", event, manager="kubelet")

    async def _replica_set(self, deployment: Body) -> Body:
        """What stands between a Deployment and its pods, made for its template once."""
        metadata, template = deployment["metadata"], deployment["spec"]["template"]
        key = ObjectKey("ReplicaSet", metadata["namespace"], metadata["name"])
        if key not in self.cluster.objects:
            made = {
                "name": key.name,
                "namespace": key.namespace,
                "labels": template["metadata"]["labels"],
                "ownerReferences": [controlled_by(deployment)],
            }
            await self.cluster.create("ReplicaSet", {"metadata": made, "spec": {}})
        # Pods are made of what the Deployment says by now.
        return {**self.cluster.objects[key], "spec": deployment["spec"]}

    async def _create(self, owner: Body, number: int) -> None:
        self._starts += 1
        ip = f"{self.network}.{self._starts}"
        template = owner["spec"]["template"]
        name = f"{owner['metadata']['name']}-{number}"
        metadata = {
            "name": name,
            "namespace": owner["metadata"]["namespace"],
            "labels": template["metadata"]["labels"],
            "ownerReferences": [controlled_by(owner)],
        }
        container = template["spec"]["containers"][0]
        main, given = container["name"], {n: container[n] for n in KEPT if n in container}
        restarts = template["spec"].get("restartPolicy", "Always")
        body = {
            "metadata": metadata,
            "spec": {"containers": [given], "restartPolicy": restarts},
            "status": self._status(ip, False, main),
        }
        if gates := template["spec"].get("schedulingGates"):
            body["spec"]["schedulingGates"] = gates
            body["status"] = {**GATED, "containerStatuses": [{"name": main, "state": {}}]}
        await self.cluster.create("Pod", body)

    def started(self, role: str) -> Body:
        """The status of a pod of a role that runs by now."""
        self._starts += 1
        return self._status(f"{self.network}.{self._starts}", False, role)

    def _status(self, ip: str, ready: bool, name: str = "") -> Body:
        self._starts += 1
        container = {
            "name": name,
            "containerID": f"containerd://{self._starts}",
            "started": True,
            "state": {"running": {}},
        }
        return {
            "phase": "Running",
            "podIP": ip,
            "conditions": [{"type": "Ready", "status": str(ready)}],
            "containerStatuses": [container],
        }

    def _advance(self, pod: Body) -> None:
        role = pod["metadata"]["labels"][ROLE]
        status = pod["status"]
        over = len(status["containerStatuses"]) > 1
        if over or status["phase"] in ("Succeeded", "Failed"):
            return
        main = {**status["containerStatuses"][0], "name": pod["spec"]["containers"][0]["name"]}
        for name in (role, pod["metadata"]["name"]):
            if name in self.giving_up:
                self._end(pod, 64, self.giving_up[name])
                return
        if role == "importer" and role not in (*self.waiting, *self.unmounted):
            self._import(pod)
            return
        if role == "collector" and role not in self.waiting:
            self._end(pod, 0, self._collect(pod))
            return
        if role == "scrubber" and role not in self.waiting:
            self._end(pod, 0, self.scrub(self._arguments(pod)))
            return
        if role not in self.waiting and "running" not in main["state"]:
            main |= {"started": True, "state": {"running": {}}}
        if role in self.unmounted:
            main |= {"started": False, "state": {"waiting": {"reason": "ContainerCreating"}}}
            ready = False
        elif role in self.waiting:
            main |= {"started": False, "state": {"waiting": self.waiting[role]}}
            ready = False
        elif role == "rollout":
            ready = status["podIP"] in self.rollouts.serving
        else:
            ready = True
        if role == "runner" and self._done(pod):
            self._end(pod, 0, {})
            return
        self._set(pod, "Running", ready, main)

    def _import(self, pod: Body) -> None:
        """Slow or not: in the importer, and once all is there in the main container."""
        if "importer" not in self.slow:
            self._end(pod, 0, self.resolved)
            return
        main = pod["spec"]["containers"][0]["name"]
        runs: Body = {"running": {}}
        importer = {"name": "importer", "started": True, "state": runs}
        place = {"name": main, "started": False, "state": {"waiting": {"reason": STARTS}}}
        if self.placing:
            importer |= {"started": False, "state": {"terminated": {"exitCode": 0}}}
            place |= {"started": True, "state": runs}
        inits = {**pod["status"], "initContainerStatuses": [importer]}
        self._set({**pod, "status": inits}, "Pending", False, place)

    def _collect(self, pod: Body) -> Body:
        """What the collector does: the digests that its Job names are removed from the volume."""
        digests = {a for a in self._arguments(pod) if a.startswith("sha256:")}
        volume = self.trainer.volume(pod["metadata"]["labels"][MODEL])
        volume.removed |= digests
        return {"removed": len(digests), "kept": {}}

    def _arguments(self, pod: Body) -> list[str]:
        """Of the container that a pod's Job names."""
        owner = pod["metadata"]["ownerReferences"][0]
        job = self.cluster.objects[ObjectKey("Job", pod["metadata"]["namespace"], owner["name"])]
        arguments: list[str] = job["spec"]["template"]["spec"]["containers"][0]["args"]
        return arguments

    def _done(self, pod: Body) -> bool:
        labels = pod["metadata"]["labels"]
        run = self.cluster.objects.get(
            ObjectKey("TrainingRun", pod["metadata"]["namespace"], labels[RUN])
        )
        if run is None:
            return False
        steps = self.trainer.volume(labels[MODEL]).run_steps
        identity = f"{run['metadata']['name']}/{run['metadata']['uid']}"
        return bool(steps.get(identity, 0) >= run["spec"]["steps"])

    def _end(self, pod: Body, code: int, message: Any) -> None:
        """The main container ends: a Job with it, while a server's pod starts again."""
        through = {n: v for n, v in pod["status"].items() if n != "initContainerStatuses"}
        pod = {**pod, "status": through}
        main = {
            **pod["status"]["containerStatuses"][0],
            "name": pod["spec"]["containers"][0]["name"],
            "started": False,
            "state": {"terminated": {"exitCode": code, "message": json.dumps(message)}},
        }
        if pod["metadata"]["labels"][ROLE] in self.sidecars:
            self._set(pod, "Running", False, main, {"name": "proxy", "state": {"running": {}}})
            return
        owner = pod["metadata"]["ownerReferences"][0]
        key = ObjectKey(owner["kind"], pod["metadata"]["namespace"], owner["name"])
        if owner["kind"] != "Job":
            self._set(pod, "Running", False, main)
            return
        self._set(pod, "Failed" if code else "Succeeded", False, main)
        if key not in self.cluster.objects:
            return
        condition = {
            "type": "Failed" if code else "Complete",
            "status": "True",
            "reason": "PodFailurePolicy" if code else "Completed",
            "message": "",
        }
        status: Body = {"conditions": [condition]}
        if not code:
            status["completionTime"] = self.now()
        self.cluster.edit(key, lambda body: body.update(status=status))

    def _set(self, pod: Body, phase: str, ready: bool, main: Body, *others: Body) -> None:
        status = {
            **pod["status"],
            "phase": phase,
            "conditions": [{"type": "Ready", "status": str(ready)}],
            "containerStatuses": [main, *others],
        }
        if status != pod["status"]:
            self.cluster.edit(key_of_pod(pod), lambda body: body.update(status=status))


def _sound(arguments: list[str]) -> Body:
    after_rate = arguments[2:]
    base = "--base" in after_rate
    return {"checked": len(after_rate) - 2 * base, "read_bytes": 1}


def _put_status(status: Body, body: Body) -> None:
    body["status"] = status


def _running(pod: Body) -> bool:
    return "running" in pod["status"]["containerStatuses"][0]["state"]


def key_of_pod(pod: Body) -> ObjectKey:
    return ObjectKey("Pod", pod["metadata"]["namespace"], pod["metadata"]["name"])

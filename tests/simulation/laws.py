"""What must hold at every moment of every story, whatever goes wrong."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tests.fakes.cluster import FakeCluster
from tests.simulation.network import target_of

from espalier.core.manifests.labels import ROLE
from espalier.kube.objects import Body, ObjectKey

AUTHORED = ("TrainableModel", "TrainingRun", "CheckpointHead")
CHILDREN = ("Job", "StatefulSet", "Deployment")


class Laws:
    """Watches a cluster; ``violations`` says what was broken, ``births`` counts what was made."""

    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster
        self.violations: list[str] = []
        self.births: Counter[str] = Counter()
        self.writes: list[tuple[str, ObjectKey]] = []
        # Checkpoints that no user deleted: their model or a rule may have, in some stories.
        self.lost: list[str] = []
        self.deleted_by_user: set[ObjectKey] = set()
        self._terms: dict[str, int] = {}
        self._named: set[str] = set()
        self._branches: dict[tuple[str, str], str] = {}
        self._authored: dict[ObjectKey, tuple[Any, ...]] = {}
        cluster.watch(self._look)

    def by_user(self, key: ObjectKey) -> None:
        """A user has just written or deleted this object."""
        body = self._cluster.objects.get(key)
        if body is None:
            self._authored.pop(key, None)
        elif key.kind in AUTHORED:
            self._authored[key] = _authored(body)

    def by_operator(self, verb: str, args: Any) -> None:
        """The operator has just had this effect."""
        if verb in ("serve", "assign"):
            return
        key = target_of(args)
        if key is None:
            return
        if key.kind not in ("Lease", "Event"):
            self.writes.append((verb, key))
        body = self._cluster.objects.get(key)
        if key.kind not in AUTHORED or body is None:
            return
        before = self._authored.setdefault(key, _authored(body))
        if before[0] == body["metadata"]["uid"] and before != _authored(body):
            self.violations.append(f"{verb} changed what the user wrote in {key}")

    def serving(self, adapters: list[str]) -> None:
        """Rollouts are told to serve these: each was on record in a head's status before."""
        digests = [
            body["spec"]["digest"]
            for key, body in self._cluster.objects.items()
            if key.kind == "Checkpoint" and key.name in self._named
        ]
        for adapter in adapters:
            if not any(adapter.split("@")[1] in digest for digest in digests):
                self.violations.append(f"{adapter} was served before any head's status named it")

    def _look(self, event: str, body: Body) -> None:
        kind, name = body["kind"], body["metadata"]["name"]
        if kind == "CheckpointHead" and event != "DELETED":
            self._head(body)
        if kind in (*CHILDREN, "Checkpoint") and event == "ADDED":
            self.births[f"{kind} {name}"] += 1
        if kind in CHILDREN and event == "ADDED":
            self._only_child(body)
        key = ObjectKey(kind, body["metadata"]["namespace"], name)
        if kind == "Checkpoint" and event == "DELETED" and key not in self.deleted_by_user:
            self.lost.append(name)

    def _head(self, body: Body) -> None:
        """A term never falls, and a branch starts at one place, while the head lives."""
        uid, status = body["metadata"]["uid"], body.get("status", {})
        term = status.get("term", 0)
        self._named |= {status.get(field, {}).get("name", "") for field in ("target", "current")}
        if term < self._terms.get(uid, 0):
            self.violations.append(f"term fell to {term}")
        self._terms[uid] = term
        branch, base = status.get("branch", ""), status.get("branchBase", {}).get("name", "")
        if base and self._branches.setdefault((uid, branch), base) != base:
            self.violations.append(f"{branch} started twice, at {base} too")

    def _only_child(self, body: Body) -> None:
        """An owner has one child of a kind and role."""
        twins = [
            other["metadata"]["name"]
            for key, other in self._cluster.objects.items()
            if key.kind == body["kind"] and _place(other) == _place(body)
        ]
        if len(twins) > 1:
            self.violations.append(f"duplicate {body['kind']}: {', '.join(twins)}")


def _authored(body: Body) -> tuple[Any, ...]:
    metadata = body["metadata"]
    return (
        metadata["uid"],
        body.get("spec"),
        metadata.get("labels"),
        metadata.get("annotations"),
        metadata["generation"],
    )


def _place(body: Body) -> tuple[str, ...]:
    metadata = body["metadata"]
    owners = [reference["uid"] for reference in metadata.get("ownerReferences", ())]
    return (*owners, metadata.get("labels", {}).get(ROLE, ""))

"""A cluster, a node, trainers and rollouts in memory, and an operator that can be crashed."""

from __future__ import annotations

import asyncio
import copy
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from tests.fakes.cluster import FakeCluster
from tests.simulation.kubelet import Kubelet
from tests.simulation.scripted import ScriptedRollouts, ScriptedTrainer

from espalier.controllers.operator import Operator
from espalier.core.manifests.settings import ChildSettings, Images
from espalier.kube.cache import Cache
from espalier.kube.objects import Body, Key

NAMESPACE = "default"
CHECKPOINT = "Checkpoint"
SETTINGS = ChildSettings(
    Images(trainer="trainer:1", rollout="rollout:1", runner="runner:1"), "pem", "http://gateway"
)
TICK_SECONDS = 0.1
LIMIT_SECONDS = 600.0
WATCH_LAG_SECONDS = 0.01
VOLATILE = ("uid", "resourceVersion", "creationTimestamp", "time", "lastTransitionTime")
TIMES = ("startTime", "completionTime", "ownerReferences", "annotations", "pods", "progress")


def now() -> str:
    """The virtual time of day."""
    minutes, seconds = divmod(int(asyncio.get_running_loop().time()), 60)
    return f"2026-01-01T{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}Z"


class CrashError(BaseException):
    """The operator's process is gone."""


class Life:
    """One life of the operator: it ends at its n-th call, before or after the effect."""

    def __init__(self, calls: int | None = None, *, after_effect: bool = False) -> None:
        self.remaining = calls
        self.after_effect = after_effect
        self.dead = False
        self.calls = 0

    def bound(self, target: Any) -> Any:
        """The target as this life sees it: once dead, nothing reaches it any more."""
        life = self

        class Bound:
            def __getattr__(self, name: str) -> Any:
                method = getattr(target, name)
                if not inspect.iscoroutinefunction(method):
                    return method

                async def call(*args: Any, **kwargs: Any) -> Any:
                    life.count()
                    if life.dying and not life.after_effect:
                        life.die()
                    result = await method(*args, **kwargs)
                    if life.dying or life.dead:
                        life.die()
                    return result

                return call

        return Bound()

    def count(self) -> None:
        if self.dead:
            raise CrashError
        self.calls += 1
        if self.remaining is not None:
            self.remaining -= 1

    @property
    def dying(self) -> bool:
        return self.remaining is not None and self.remaining <= 0

    def die(self) -> None:
        self.dead = True
        raise CrashError


class World:
    """Advances in ticks of virtual time; a crashed operator is started again."""

    def __init__(self, life: Life | None = None, lag: float = WATCH_LAG_SECONDS) -> None:
        self.cluster = FakeCluster(now)
        self.trainer = ScriptedTrainer()
        self.rollouts = ScriptedRollouts()
        self.kubelet = Kubelet(self.cluster, self.trainer, self.rollouts, now)
        self.trains = True
        self.lag = lag
        self.violations: list[str] = []
        self.epochs: dict[str, int] = {}
        self.rollouts.on_serve = self._check_acknowledged
        self.life = life or Life()
        self.crashes = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.cluster.unwatch()
        self.cluster.watch(self._check_epoch)
        self._task = self.operate(self.life, self.lag)

    def operate(self, life: Life, lag: float) -> asyncio.Task[None]:
        """An operator with a cache of its own; several of them is what must not matter."""
        cache = Cache()
        for key, body in self.cluster.objects.items():
            cache.put(key.kind, copy.deepcopy(body))
        loop = asyncio.get_running_loop()

        def deliver(event: str, body: Body) -> None:
            (cache.forget if event == "DELETED" else cache.put)(body["kind"], body)

        self.cluster.watch(lambda event, body: loop.call_later(lag, deliver, event, body))
        operator = Operator(
            life.bound(self.cluster),
            cache,
            life.bound(self.trainer),
            life.bound(self.rollouts),
            SETTINGS,
            now=now,
        )
        return asyncio.create_task(operator.run(asyncio.Event()))

    def _check_acknowledged(self, adapters: list[str]) -> None:
        """Whatever the rollouts are told to serve is on record as a head's target or current."""
        heads = [b for k, b in self.cluster.objects.items() if k.kind == "CheckpointHead"]
        known = {
            b["metadata"]["name"]: b
            for k, b in self.cluster.objects.items()
            if k.kind == CHECKPOINT
        }
        statuses = [head.get("status", {}) for head in heads]
        names = {s.get(at, {}).get("name", "") for s in statuses for at in ("target", "current")}
        digests = [known[name]["spec"]["digest"] for name in names if name in known]
        for adapter in adapters:
            if not any(adapter.split("@")[1] in digest for digest in digests):
                self.violations.append(f"{adapter} was served before any head's status named it")

    def _check_epoch(self, event: str, body: Body) -> None:
        """An epoch never falls while its head lives."""
        if body["kind"] != "CheckpointHead":
            return
        uid, epoch = body["metadata"]["uid"], body.get("status", {}).get("epoch", 0)
        if epoch < self.epochs.get(uid, 0):
            self.violations.append(f"epoch fell to {epoch}")
        self.epochs[uid] = epoch

    async def kill(self) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def apply(self, kind: str, name: str, spec: Body) -> None:
        """As ``kubectl apply`` would."""
        metadata = {"name": name, "namespace": NAMESPACE}
        await self.cluster.apply(kind, {"metadata": metadata, "spec": spec}, manager="kubectl")

    async def delete(self, kind: str, name: str) -> None:
        await self.cluster.delete(Key(kind, NAMESPACE, name))

    def get(self, kind: str, name: str) -> Body:
        found = self.cluster.objects.get(Key(kind, NAMESPACE, name), {})
        return copy.deepcopy(found)

    def status(self, kind: str, name: str) -> Body:
        status: Body = self.get(kind, name).get("status", {})
        return status

    def events(self, kind: str, name: str) -> list[Body]:
        """The Events on an object."""
        found = [body for key, body in self.cluster.objects.items() if key.kind == "Event"]
        return [e for e in found if _regards(e) == (kind, name)]

    def condition(self, kind: str, name: str, type_: str) -> Body:
        found = self.status(kind, name).get("conditions", [])
        return next((c for c in found if c["type"] == type_), {"status": "", "reason": ""})

    def current(self, head: str) -> str | None:
        name: str | None = self.status("CheckpointHead", head).get("current", {}).get("name")
        return name

    def checkpoints(self, model: str) -> list[str]:
        return sorted(
            key.name
            for key, body in self.cluster.objects.items()
            if key.kind == "Checkpoint" and body["spec"]["modelRef"]["name"] == model
        )

    async def tick(self) -> None:
        if self.life.dead:
            self.crashes += 1
            await self.kill()
            self.life = Life()
            self.start()
        await self.kubelet.tick()
        if self.trains:
            await self._drive()
        await asyncio.sleep(TICK_SECONDS)

    async def until(self, reached: Callable[[], bool], what: str) -> None:
        """Ticks until it is reached and nothing changes any more."""
        loop = asyncio.get_running_loop()
        end = loop.time() + LIMIT_SECONDS
        quiet = 0
        while loop.time() < end:
            version = self.cluster.version
            await self.tick()
            same = self.cluster.version == version and not self.life.dead
            quiet = quiet + 1 if same and reached() else 0
            # What the caches have not seen yet may still change something.
            if quiet * TICK_SECONDS > self.lag:
                return
        raise AssertionError(f"never: {what}\n{self.explain()}")

    async def until_at(self, reached: Callable[[], bool], what: str) -> None:
        """Ticks until the moment that it is reached, whatever still changes."""
        loop = asyncio.get_running_loop()
        end = loop.time() + LIMIT_SECONDS
        while not reached():
            if loop.time() > end:
                raise AssertionError(f"never: {what}\n{self.explain()}")
            await self.tick()

    async def rest(self, ticks: int = 30) -> None:
        """Time in which nothing should happen."""
        for _ in range(ticks):
            await self.tick()

    def explain(self) -> str:
        lines = []
        for key, body in self.cluster.objects.items():
            for condition in body.get("status", {}).get("conditions", []):
                if condition["type"] in ("Ready", "Stalled") and "reason" in condition:
                    said = f"{condition['status']} {condition['reason']} {condition.get('message')}"
                    lines.append(f"{key}: {condition['type']} {said}")
        return "\n".join(lines)

    async def _drive(self) -> None:
        """Every runner takes one step when the head serves the last one, or is pinned."""
        for pod in self.kubelet.pods("runner"):
            labels = pod["metadata"]["labels"]
            model, run = labels["espalier.dev/model"], labels["espalier.dev/run"]
            spec = self.get("TrainingRun", run).get("spec")
            held = self.trainer.volume(model).assignment
            trainers = [p for p in self.kubelet.pods("trainer") if _ready(p)]
            if spec is None or held is None or not trainers or not _ready(pod):
                continue
            if held.run.partition("/")[0] != run or not self._promoted(model):
                continue
            if held.epoch != self.status("CheckpointHead", model).get("epoch"):
                continue
            if self.trainer.volume(model).run_steps.get(held.run, 0) < spec["steps"]:
                await self.trainer.step(model)

    def _promoted(self, model: str) -> bool:
        head = self.get("CheckpointHead", model)
        at = self.trainer.volume(model).position
        if at is None:
            return head.get("status", {}).get("current") is not None
        if head["spec"]["mode"] == "Pin":
            return at.name in self.checkpoints(model)
        return bool(self.current(model) == at.name)

    def outcome(self) -> dict[str, Any]:
        """What there is in the end, without times and identities."""
        kept = {}
        for key, body in self.cluster.objects.items():
            if key.kind in ("Event", "Pod"):
                continue
            labels = body["metadata"].get("labels", {})
            kept[str(key)] = _stable(
                {"labels": labels, "spec": body.get("spec"), "status": body.get("status")}
            )
        return kept


def _regards(event: Body) -> tuple[str, str]:
    regarding = event["involvedObject"]
    return regarding["kind"], regarding["name"]


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        dropped = (*VOLATILE, *TIMES)
        return {name: _stable(inner) for name, inner in value.items() if name not in dropped}
    if isinstance(value, list):
        return [_stable(inner) for inner in value]
    return value


def _ready(pod: Body) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"]["conditions"])


@asynccontextmanager
async def world(life: Life | None = None, lag: float = WATCH_LAG_SECONDS) -> AsyncIterator[World]:
    made = World(life, lag)
    made.start()
    try:
        yield made
        assert made.violations == []
    finally:
        await made.kill()


def model_spec(**changes: Any) -> Body:
    return {
        "source": {"base": {"image": "registry.example/tiny:1"}},
        "adapter": {"type": "LoRA", "rank": 16, "alpha": 32, "targetModules": ["all-linear"]},
        "storage": {"persistentVolumeClaim": {"claimName": "weights"}},
        **changes,
    }


def run_spec(model: str, steps: int, **changes: Any) -> Body:
    return {
        "modelRef": {"name": model},
        "driver": "Runner",
        "loss": {"name": "importance_sampling"},
        "learningRate": "1e-4",
        "steps": steps,
        "taskset": {"seed": 1, "configMap": {"name": "tasks"}},
        **changes,
    }


def head_spec(model: str, mode: str, name: str = "", **changes: Any) -> Body:
    spec = {"modelRef": {"name": model}, "mode": mode, **changes}
    return {**spec, "checkpointRef": {"name": name}} if name else spec

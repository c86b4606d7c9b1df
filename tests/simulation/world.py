"""A cluster, a node, trainers and rollouts in memory, and an operator that can be crashed."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.fakes.cluster import FakeCluster
from tests.simulation.informing import Informing
from tests.simulation.kubelet import Kubelet
from tests.simulation.laws import Laws
from tests.simulation.life import CrashError, Life
from tests.simulation.network import Network
from tests.simulation.scripted import ScriptedImporter, ScriptedRollouts, ScriptedTrainer
from tests.simulation.weather import WATCH_LAG_SECONDS, Weather

from espalier.controllers.process.replica import Ports, Replica, lease_key
from espalier.controllers.process.settings import OperatorSettings
from espalier.core.manifests.installation import ChildSettings, Images
from espalier.kube.informer import InformerError
from espalier.kube.lease import Election, LeadershipLostError
from espalier.kube.objects import Body, ObjectKey

NAMESPACE = "default"
SYSTEM = "espalier-system"
CHECKPOINT = "Checkpoint"
IMAGES = Images(trainer="trainer:1", rollout="rollout:1", runner="runner:1")
SETTINGS = ChildSettings(IMAGES, "pem", "http://gateway")
# The ConfigMap that run_spec's tasks lie in.
TASKS = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "tasks", "namespace": NAMESPACE, "uid": "tasks", "resourceVersion": "1"},
    "data": {"tasks.jsonl": ""},
}
TICK_SECONDS = 0.1
LIMIT_SECONDS = 600.0
# A storm lets up when users have waited so long for one thing, until they get it.
STORM_SECONDS = 300.0
START = datetime(2026, 1, 1, tzinfo=UTC)
# After a fault a key waits this long at most, and so long it must be quiet after a storm.
BACKOFF_SECONDS = 75.0
VOLATILE = ("uid", "resourceVersion", "creationTimestamp", "time", "lastTransitionTime")
# What only a trainer can tell that may be gone by the time that anybody could have heard it.
HEARD = ("FastPath",)
TIMES = (
    *("startTime", "completionTime", "activeSeconds", "activeSince"),
    *("ownerReferences", "annotations"),
)
# What moves without anybody's doing.
RESTLESS = ("Lease", "Event")
# What ends a process so that it is started again.
RESTARTED = (LeadershipLostError, InformerError, CrashError)


def clock(skew: float = 0.0) -> datetime:
    """The virtual time of day."""
    return START + timedelta(seconds=asyncio.get_running_loop().time() + skew)


def now() -> str:
    """The virtual time of day as RFC 3339."""
    return clock().strftime("%Y-%m-%dT%H:%M:%SZ")


class World:
    """Advances in ticks of virtual time; an operator whose process ended is started again."""

    def __init__(self, life: Life | None = None, weather: Weather | None = None) -> None:
        self.cluster = FakeCluster(now)
        self.cluster.restore([TASKS])
        self.laws = Laws(self.cluster)
        self.trainer = ScriptedTrainer()
        self.rollouts = ScriptedRollouts()
        self.importer = ScriptedImporter()
        self.kubelet = Kubelet(self.cluster, self.trainer, self.rollouts, now)
        self.weather = weather or Weather()
        self.trains = True
        self.images = IMAGES
        # Of the samples for the next steps.
        self.rewards: list[float] = []
        # What happens right after the n-th commit, before anybody can have read it.
        self.after_step: dict[int, Callable[[], Awaitable[None]]] = {}
        self.rollouts.on_serve = self.laws.serving
        self.life = life or Life()
        self.landed = 0
        self.ticks = 0
        self.changes = 0
        self.crashes = 0
        self.replica: Replica | None = None
        # Another replica has taken its place: it is not started again.
        self.replaced = False
        self._task: asyncio.Task[None] | None = None
        self.cluster.watch(self._count)

    @property
    def violations(self) -> list[str]:
        return self.laws.violations

    def start(self) -> None:
        self.replica, self._task = self.operate(self.life, self.weather)

    def operate(
        self, life: Life, weather: Weather, skew: float = 0.0
    ) -> tuple[Replica, asyncio.Task[None]]:
        """A replica of the operator; several of them is what must not matter."""
        network = Network(life, weather, self._effect)
        reached = network.to("cluster", self.cluster)
        settings = self._settings(life.name)
        ports = Ports(
            lambda check: network.to("cluster", self.cluster, check),
            Informing(self.cluster, reached, life, weather),
            trainer=lambda _, check: network.to("trainer", self.trainer, check),
            rollouts=lambda _, check: network.to("rollouts", self.rollouts, check),
            importer=lambda _: network.to("importer", self.importer),
            now=now,
        )
        lease = lease_key(settings)
        election = Election(reached, lease, life.name, now=lambda: clock(skew))
        replica = Replica(settings, ports, election, asyncio.Event())
        return replica, life.begin(replica.run())

    def _settings(self, identity: str) -> OperatorSettings:
        return OperatorSettings.read(
            {
                "POD_NAMESPACE": SYSTEM,
                "POD_NAME": identity,
                "ESPALIER_NAMESPACES": NAMESPACE,
                "ESPALIER_IMAGE_TRAINER": self.images.trainer,
                "ESPALIER_IMAGE_ROLLOUT": self.images.rollout,
                "ESPALIER_IMAGE_RUNNER": self.images.runner,
                "ESPALIER_GATEWAY_URL": "http://gateway",
            }
        )

    @property
    def task(self) -> asyncio.Task[None]:
        """The process of this world's own replica."""
        assert self._task is not None
        return self._task

    def _effect(self, verb: str, args: Any) -> None:
        self.landed += 1
        self.laws.by_operator(verb, args)

    def _count(self, _: str, body: Body) -> None:
        self.changes += body["kind"] not in RESTLESS

    def moment(self) -> tuple[int, int, int]:
        """Two steps of the operator at the same moment see and leave the same world."""
        return (self.life.sent, self.landed, self.ticks)

    async def kill(self) -> None:
        """End the process here and now, as SIGKILL does."""
        assert self._task is not None
        self.life.die()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def apply(self, kind: str, name: str, spec: Body) -> None:
        """As ``kubectl apply`` would."""
        metadata = {"name": name, "namespace": NAMESPACE}
        await self.cluster.apply(kind, {"metadata": metadata, "spec": spec}, manager="kubectl")
        self.laws.by_user(ObjectKey(kind, NAMESPACE, name))

    async def delete(self, kind: str, name: str) -> None:
        key = ObjectKey(kind, NAMESPACE, name)
        self.laws.deleted_by_user.add(key)
        await self.cluster.delete(key)
        self.laws.by_user(key)

    def get(self, kind: str, name: str) -> Body:
        found = self.cluster.objects.get(ObjectKey(kind, NAMESPACE, name), {})
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

    def succeeded(self, run: str, steps: int) -> bool:
        done = self.condition("TrainingRun", run, "Succeeded")["status"] == "True"
        return done and bool(self.status("TrainingRun", run)["step"] == steps)

    def serves(self, head: str, name: str) -> bool:
        ready = self.condition("CheckpointHead", head, "Ready")["status"] == "True"
        return self.current(head) == name and ready

    def steps(self, model: str) -> int:
        """Optimizer steps that the model's trainers have ever committed."""
        return len(self.trainer.volume(model).commits)

    def assigned(self, model: str) -> int:
        """The term that the model's trainer was told last; 0 before."""
        held = self.trainer.volume(model).assignment
        return held.term if held is not None else 0

    async def tick(self, seconds: float = TICK_SECONDS) -> None:
        await self._revive()
        await self.kubelet.tick()
        if self.trains:
            await self._drive()
        await asyncio.sleep(seconds)
        self.ticks += 1

    async def _revive(self) -> None:
        assert self._task is not None
        if self.replaced or (not self.life.dead and not self._task.done()):
            return
        if self._task.done() and not self.life.dead:
            self._judge(self._task)
        self.crashes += 1
        await self.kill()
        self.life = Life(self.weather.kill_at(), self.life.name)
        self.start()

    def _judge(self, task: asyncio.Task[None]) -> None:
        """A process that ended by itself had one of the known reasons."""
        error = task.exception()
        if isinstance(error, BaseExceptionGroup):
            error = error.split(RESTARTED)[1]
        if error is not None and not isinstance(error, RESTARTED):
            self.violations.append(f"the process ended: {error!r}")

    async def until(self, reached: Callable[[], bool], what: str) -> None:
        """Ticks until it is reached and nothing changes any more."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        quiet = 0
        while loop.time() < began + LIMIT_SECONDS:
            self.weather.lull = loop.time() > began + STORM_SECONDS
            changes = self.changes
            await self.tick()
            same = self.changes == changes and (self.replaced or not self.life.dead)
            quiet = quiet + 1 if same and reached() else 0
            # What the caches have not seen yet may still change something.
            if quiet * TICK_SECONDS > self.weather.lag:
                self.weather.lull = False
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

    async def settle(self, seconds: float) -> None:
        """Ticks until nothing has changed for so long."""
        loop = asyncio.get_running_loop()
        end, since, changes = loop.time() + LIMIT_SECONDS, loop.time(), self.changes
        while loop.time() - since < seconds:
            await self.tick(seconds / 10)
            if self.changes != changes or (self.life.dead and not self.replaced):
                changes, since = self.changes, loop.time()
            assert loop.time() < end, f"it never comes to rest\n{self.explain()}"

    async def rest(self, ticks: int = 30, seconds: float = TICK_SECONDS) -> None:
        """Time in which nothing should happen."""
        for _ in range(ticks):
            await self.tick(seconds)

    def explain(self) -> str:
        lines = []
        for key, body in self.cluster.objects.items():
            for condition in body.get("status", {}).get("conditions", []):
                if condition["type"] in ("Ready", "Stalled") and "reason" in condition:
                    said = f"{condition['status']} {condition['reason']} {condition.get('message')}"
                    lines.append(f"{key}: {condition['type']} {said}")
        return "\n".join(lines)

    async def _drive(self) -> None:
        """Every runner takes one step when the head serves the last one, or will not."""
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
            if held.term != self.status("CheckpointHead", model).get("term"):
                continue
            if self.trainer.volume(model).run_steps.get(held.run, 0) < spec["steps"]:
                await self.trainer.step(model, self.rewards.pop(0) if self.rewards else 0.5)
                if then := self.after_step.pop(self.steps(model), None):
                    await then()

    def _promoted(self, model: str) -> bool:
        head = self.get("CheckpointHead", model)
        at, held = self.trainer.volume(model).position, self.trainer.volume(model).assignment
        if not head or held is None:
            return False
        if head["spec"]["mode"] == "Pin":
            return at is None or at.name in self.checkpoints(model)
        if "gate" in head["spec"]:
            return at is None or at.name in self.checkpoints(model)
        return self.current(model) == (at.name if at is not None else held.base_name)

    def outcome(self) -> dict[str, Any]:
        """What there is in the end and how often it was made, without times and identities."""
        kept: dict[str, Any] = {}
        for key, body in self.cluster.objects.items():
            if key.kind in ("Event", "Pod", "ReplicaSet", "Lease", "Secret"):
                continue
            labels = body["metadata"].get("labels", {})
            kept[str(key)] = _stable(
                {"labels": labels, "spec": body.get("spec"), "status": body.get("status")}
            )
        removed = {
            model: sorted(c.name for c in volume.commits if c.digest in volume.removed)
            for model, volume in self.trainer.volumes.items()
        }
        return {**kept, "births": dict(sorted(self.laws.births.items())), "removed": removed}


def _regards(event: Body) -> tuple[str, str]:
    regarding = event["involvedObject"]
    return regarding["kind"], regarding["name"]


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        dropped = (*VOLATILE, *TIMES)
        return {name: _stable(inner) for name, inner in value.items() if name not in dropped}
    if isinstance(value, list):
        return [_stable(inner) for inner in value if not _heard(inner)]
    # The installation's own key, which differs from one to the next.
    return "pem" if isinstance(value, str) and "-----BEGIN" in value else value


def _heard(value: Any) -> bool:
    return isinstance(value, dict) and value.get("type") in HEARD


def _ready(pod: Body) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"]["conditions"])


@asynccontextmanager
async def world(
    life: Life | None = None, weather: Weather | None = None, lag: float = WATCH_LAG_SECONDS
) -> AsyncIterator[World]:
    made = World(life, weather or Weather(lag))
    made.start()
    try:
        yield made
        if made.violations:
            raise AssertionError("\n".join(made.violations))
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

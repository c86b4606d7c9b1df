"""A site to lose parts of: API server and node in memory, real operator, gateway and trainer.

The trainer computes and writes real bytes. Sampling is played, but what a rollout is told to serve
is read and verified by the sampler's own code, and what it has loaded stays in its memory.
"""

from __future__ import annotations

import asyncio
import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.compat.stage import ADAPTER, NAMESPACE, TRAINER, Stage
from tests.simulation.scripted import ScriptedRollouts

from espalier import Patience, TrainingClient, TrajectoryPayload, TrajectorySample
from espalier.api.wire.rollout_control import Served, ServeRequest
from espalier.controllers.peers.peer import Peer
from espalier.controllers.peers.sampler_client import RolloutError
from espalier.core.checkpoints.scrub import SCRUB
from espalier.core.volume import checkpoints_of, directory_name
from espalier.kube.objects import Body, ObjectKey
from espalier.sampler.verified_files import StoreError
from espalier.sampler.verified_store import AdapterStore

MODEL = "arith"
TRANSCRIPTS = Path("out/recovery")
OWN_KINDS = ("TrainableModel", "TrainingRun", "CheckpointHead", "Checkpoint")
QUICK = Patience(deadline=60.0, attempt=60.0, first_delay=0.05, longest_delay=0.2)


class VerifyingRollouts(ScriptedRollouts):
    """Rollouts that load what the sampler's store finds to be what its name says."""

    def __init__(self, volume: Path, base: str) -> None:
        super().__init__()
        self._store = AdapterStore(volume, base, ADAPTER["rank"])

    async def serve(self, peer: Peer, request: ServeRequest) -> Served:
        for name in set(request.adapters) - {*self.serving.get(peer.ip, ()), "base"}:
            try:
                await asyncio.to_thread(self._store.resolve, name)
            except StoreError as error:
                raise RolloutError(422, error.problem) from error
        return await super().serve(peer, request)


class Site:
    """What a drill does to a stage, and what it looks at; keeps a transcript of both."""

    def __init__(self, stage: Stage, drill: str) -> None:
        self.stage = stage
        self._drill = drill
        self._lines: list[str] = []
        self._sent = 0

    async def train(self, steps: int) -> list[str]:
        """Steps of a client, each of its own batch; the names that the trainer acknowledged."""
        taken = []
        await self.reach(self._assigned, "the trainer is where the head is")
        async with TrainingClient(
            f"{NAMESPACE}/{MODEL}", base_url=self.stage.url, token=TRAINER, patience=QUICK
        ) as client:
            for _ in range(steps):
                self._sent += 1
                done = await client.step(batch(self._sent), learning_rate=1e-2, group_size=2)
                taken.append(done.checkpoint_id)
        await self.reach(lambda: set(taken) <= set(self.names()), f"Checkpoints {taken}")
        return taken

    def _assigned(self) -> bool:
        term = self.stage.body("CheckpointHead", MODEL).get("status", {}).get("term")
        engines = [trainer.engine for trainer in self.stage.trainers.values()]
        return any(e and e.state.assigned and e.state.report().term == term for e in engines)

    async def restart_trainer(self) -> None:
        """Its container ends, and starts again in the same pod."""
        await self.stage.kubelet.restart("trainer")
        await self.stage.restart_trainer(MODEL)

    def pods(self) -> set[str]:
        """The uids of trainers and rollouts."""
        kubelet = self.stage.kubelet
        found = [*kubelet.pods("trainer"), *kubelet.pods("rollout")]
        return {pod["metadata"]["uid"] for pod in found}

    def names(self, kind: str = "Checkpoint") -> list[str]:
        return sorted(key.name for key in self.stage.cluster.objects if key.kind == kind)

    def spec(self, name: str) -> Body:
        spec: Body = self.stage.body("Checkpoint", name)["spec"]
        return spec

    def condition(self, kind: str, name: str, type_: str = "Ready") -> Body:
        found = self.stage.body(kind, name).get("status", {}).get("conditions", ())
        return next((c for c in found if c["type"] == type_), {})

    async def reach(self, reached: Callable[[], Any], what: str) -> None:
        await self.stage.until(reached, what)

    async def says(self, kind: str, name: str, reason: str, type_: str = "Ready") -> str:
        """Waits for a condition's reason; its message."""
        await self.reach(
            lambda: self.condition(kind, name, type_).get("reason") == reason,
            f"{kind} {name} says {reason}, not {self.condition(kind, name, type_)}",
        )
        message: str = self.condition(kind, name, type_)["message"]
        return message

    async def serves(self, name: str) -> None:
        def served() -> bool:
            current = self.stage.body("CheckpointHead", MODEL).get("status", {}).get("current", {})
            ready = self.condition("CheckpointHead", MODEL)
            return bool(current.get("name") == name and ready.get("status") == "True")

        await self.reach(served, f"the head serves {name}")

    async def pin(self, name: str, on_pin: str) -> None:
        """The owner moves the head."""
        spec = {"modelRef": {"name": MODEL}, "mode": "Pin", "onPin": on_pin}
        await self.stage.apply("CheckpointHead", MODEL, {**spec, "checkpointRef": {"name": name}})

    async def track(self) -> None:
        """The owner has the head follow training."""
        spec = {"modelRef": {"name": MODEL}, "mode": "Track"}
        await self.stage.apply("CheckpointHead", MODEL, spec)

    def optimizer_steps(self, name: str) -> int:
        """Adam's count in a checkpoint's bytes: how often its weights were stepped on the way."""
        state = json.loads((self.directory(name) / "state.json").read_text())
        count: int = state["optimizer_steps"]
        return count

    def directory(self, name: str) -> Path:
        spec = self.spec(name)
        folder = checkpoints_of(self.stage.volume, spec["modelRef"]["name"])
        return folder / directory_name(spec["digest"])

    def digests(self) -> dict[str, str]:
        return {name: self.spec(name)["digest"] for name in self.names()}

    # --- what is lost ----------------------------------------------------------------------------

    def etcd_backup(self) -> tuple[dict[ObjectKey, Body], Any]:
        cluster = self.stage.cluster
        return copy.deepcopy(cluster.objects), copy.deepcopy(cluster._applied)

    async def restore_etcd(self, backup: tuple[dict[ObjectKey, Body], Any]) -> None:
        """As an administrator does: what keeps state of the API server is started again after."""
        stage = self.stage
        await stage.stop_operator()
        await stage.stop_gateway()
        async with stage.still:
            stage.cluster.objects.clear()
            stage.cluster.objects.update(copy.deepcopy(backup[0]))
            stage.cluster._applied.clear()
            stage.cluster._applied.update(copy.deepcopy(backup[1]))
            # A kubelet ends the pods that the API server does not know.
            known = {pod["status"]["podIP"] for pod in stage.kubelet.pods("trainer")}
            for ip in {*stage.trainers} - known:
                await stage.trainers.pop(ip).stop()
        await stage.start_gateway()
        await stage.start_operator()

    def volume_copy(self, to: Path) -> Path:
        shutil.copytree(self.stage.volume, to)
        return to

    async def restore_volume(self, backup: Path) -> None:
        """The pods go, the bytes are those of the copy, and new pods come."""
        stage = self.stage
        async with stage.still:
            await lose_pods(stage)
            shutil.rmtree(stage.volume)
            shutil.copytree(backup, stage.volume)

    # --- the transcript --------------------------------------------------------------------------

    def say(self, text: str) -> None:
        self._lines.append(text)

    def show(self, kind: str, *names: str) -> None:
        """Ready, reason and message, as ``kubectl get -o wide`` prints them."""
        plural = {
            "TrainableModel": "tmodel",
            "TrainingRun": "trun",
            "CheckpointHead": "ckhead",
            "Checkpoint": "ckpt",
        }[kind]
        self._lines.append(f"$ kubectl get {plural} -o wide")
        for name in names or self.names(kind):
            found = self.condition(kind, name)
            text = f"{name}  {found.get('status')}  {found.get('reason')}  {found.get('message')}"
            self._lines.append(text)

    def close(self) -> None:
        TRANSCRIPTS.mkdir(parents=True, exist_ok=True)
        (TRANSCRIPTS / f"{self._drill}.txt").write_text("\n".join(self._lines) + "\n")


async def lose_pods(stage: Stage) -> None:
    """Trainers and rollouts die where they are; their owners make others. Hold ``stage.still``."""
    for trainer in [*stage.trainers.values()]:
        await trainer.stop()
    stage.trainers.clear()
    for role in ("trainer", "rollout"):
        await stage.kubelet.evict(role)


def batch(seed: int) -> list[TrajectoryPayload]:
    """Two rollouts of one task, of which one is right."""
    return [
        TrajectoryPayload(
            samples=[
                TrajectorySample(
                    prompt_token_ids=[1, 2, seed % 200],
                    output_token_ids=[5 + seed % 50, 6 + index],
                    output_logprobs=[-5.0, -5.0],
                )
            ],
            reward=float(index),
        )
        for index in range(2)
    ]


def ask(site: Site, value: str) -> None:
    """Asks for a scrub now."""

    def annotate(body: Body) -> None:
        body["metadata"].setdefault("annotations", {})[SCRUB] = value

    site.stage.cluster.edit(ObjectKey("TrainableModel", NAMESPACE, MODEL), annotate)
    site.say(f"$ kubectl annotate --overwrite tmodel {MODEL} {SCRUB}={value}")

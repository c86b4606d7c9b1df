"""Finds the trainer that takes a model's commands, and waits for one that is starting.

HUD's client sends a training call once. The first after a fork comes before its trainer has a pod,
has loaded the base and knows its run, so the gateway waits with such a call; clients that repeat
their calls get the reason at once. A trainer that was freed because nobody called it is started
again: the gateway writes the call into the status of its run, where the operator finds it.
"""

from __future__ import annotations

import asyncio

import aiohttp

from espalier.api.trainingrun import TrainingRun
from espalier.api.wire.problem import Problem
from espalier.core.run import idle
from espalier.gateway.access.pod_tokens import TokenIssuer
from espalier.gateway.context import STATUS_MANAGER
from espalier.gateway.problems import not_ready
from espalier.gateway.world.pod_addresses import NotReadyReason, PodAddress, why_none_ready
from espalier.gateway.world.turn import active_run
from espalier.gateway.world.watch import WorldWatch
from espalier.gateway.world.world import TRAINER, NamespacedName, ServedWorld
from espalier.kube.cluster import Cluster, ClusterError
from espalier.podclient import PodFaultError, read_answer
from espalier.untrusted import UnreadableError, read_model

ASK_SECONDS = 0.5
# A pod is ready for a moment before its process listens, and after it ended.
SILENT_SECONDS = 2.0
MAX_PROBLEM_BYTES = 64 * 1024
MAX_DETAIL_CHARS = 4000
_ASK_TIMEOUT = aiohttp.ClientTimeout(total=5.0)
_NO_POD = NotReadyReason("Pending", "it has no pod yet")
_SILENT = NotReadyReason("TrainerUnreachable", "its pod is ready and does not answer")
_FREED = NotReadyReason("TrainerIdle", "it was freed for want of calls, and is being taken back")
# A trainer's own reasons to refuse all commands for a moment (wire.Problem).
_STARTING = frozenset({"Loading", "AwaitingAssignment"})


class TrainerLookup:
    """Finds trainers. Remembers the last one of each model that took commands."""

    def __init__(
        self,
        watch: WorldWatch,
        cluster: Cluster,
        tokens: TokenIssuer,
        session: aiohttp.ClientSession,
    ) -> None:
        self._watch = watch
        self._cluster = cluster
        self._tokens = tokens
        self._session = session
        self._taking: dict[NamespacedName, PodAddress] = {}

    async def ready(self, model: NamespacedName, seconds: float = 0.0) -> PodAddress:
        """A trainer that takes commands.

        Args:
            model: whose.
            seconds: to wait for one that is starting. Without any, a ready pod may still refuse.

        Raises:
            RefusalError: 503 with the reason of Kubernetes or of the trainer.
        """
        now = asyncio.get_running_loop().time
        began = now()
        deadline = began + seconds
        await self.wake(model)
        while True:
            # Anew each time: another pod may have taken the place of one that was lost.
            pod = await self._pod(model, max(0.0, deadline - now()))
            if not seconds or self._taking.get(model) == pod:
                return pod
            waiting = await self._starting(model, pod)
            if waiting is None:
                self._taking[model] = pod
                return pod
            if waiting is _SILENT and now() - began >= SILENT_SECONDS:
                return pod
            if now() >= deadline:
                why = f"the trainer of {model}: {waiting.message}"
                raise not_ready(waiting.reason, why, from_pod=True)
            await asyncio.sleep(ASK_SECONDS)

    async def wake(self, model: NamespacedName) -> None:
        """Tells the operator that a call waits for a trainer that was freed, if this one was."""
        run = active_run(self._watch.world, model)
        since = idle.resting(run) if run is not None else None
        if run is None or since is None:
            return
        metadata = {
            "name": run.metadata.name,
            "namespace": run.metadata.namespace,
            "uid": run.metadata.uid,
        }
        body = {"metadata": metadata, "status": {"wokenFor": since}}
        try:
            await self._cluster.apply_status("TrainingRun", body, manager=STATUS_MANAGER)
        except ClusterError as error:
            raise not_ready(
                "TrainerNotWoken", f"the trainer of {model} was not called back: {error.message}"
            ) from error

    async def _pod(self, model: NamespacedName, seconds: float) -> PodAddress:
        def settled(world: ServedWorld) -> PodAddress | NotReadyReason | None:
            if _idle(active_run(world, model)):
                # A pod that still exists is shutting down.
                return None
            waiting = why_none_ready(world.pods_of(model, TRAINER))
            fault = waiting if waiting is not None and waiting.fault else None
            return world.ready_trainer(model) or fault

        answer: PodAddress | NotReadyReason | None = await self._watch.wait_for(settled, seconds)
        if isinstance(answer, PodAddress):
            return answer
        world = self._watch.world
        passing = _FREED if _idle(active_run(world, model)) else None
        waiting = answer or passing or why_none_ready(world.pods_of(model, TRAINER)) or _NO_POD
        why = f"the trainer of {model} is not ready: {waiting.message}"
        raise not_ready(waiting.reason, why, from_pod=True)

    async def _starting(self, model: NamespacedName, pod: PodAddress) -> NotReadyReason | None:
        """Why the trainer takes no commands while it starts.

        None for any problem that the command itself will meet.
        """
        url = f"http://{pod.address}/train/state"
        headers = self._tokens.header(model, pod)
        try:
            async with self._session.get(url, headers=headers, timeout=_ASK_TIMEOUT) as answer:
                if answer.status != 503:
                    return None
                problem = read_model(Problem, await read_answer(answer, MAX_PROBLEM_BYTES))
        except (aiohttp.ClientConnectionError, TimeoutError):
            return _SILENT
        except (aiohttp.ClientError, PodFaultError, UnreadableError):
            return None
        if problem.reason not in _STARTING:
            return None
        return NotReadyReason(problem.reason, problem.detail[:MAX_DETAIL_CHARS])


def _idle(run: TrainingRun | None) -> bool:
    """Whether the run's trainer is being freed, or may be."""
    return run is not None and run.status.idle_since is not None

"""Assigns trainers, and remembers what they acknowledged until the process ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from espalier.api.wire.problem import Problem
from espalier.api.wire.trainer import Assignment, TrainerState
from espalier.controllers.peers.peer import Peer
from espalier.controllers.peers.trainer_client import Trainer, TrainerError
from espalier.core.model.reported import VOLUME_BEHIND
from espalier.core.pods.pods import Pod

logger = logging.getLogger(__name__)

STALE_TERM = "StaleTerm"
# A trainer's reasons about the base of its assignment.
UNREADABLE = ("CheckpointUnreadable", VOLUME_BEHIND)
# HTTP statuses that repeating the same request does not change.
REFUSED, FAILED = 400, 500
# The pod has not been shown our signing key yet: that passes.
KEY_UNKNOWN = 401
# Seconds between two questions whether an idle or silent trainer has been called after all.
ASK_SECONDS = 1.0
ModelId = tuple[str, str]


@dataclass(frozen=True)
class _Acknowledged:
    """An acknowledged assignment, and the start of the trainer that it holds for."""

    instance: str
    term: int
    branch: str
    run: str

    @classmethod
    def of(cls, pod: Pod, wanted: Assignment) -> _Acknowledged:
        """Ignores the assignment's base: under one term the trainer keeps its own position."""
        return cls(pod.instance, wanted.term, wanted.branch, wanted.run)


class Assignments:
    """Tells trainers what to train, once per start of their container and per assignment."""

    def __init__(self, client: Trainer, overtaken: Callable[[str, str], None]) -> None:
        self._client = client
        self._overtaken = overtaken
        self._acknowledged: dict[ModelId, _Acknowledged] = {}
        self._terms: dict[ModelId, int] = {}
        # Why an assignment was refused, and the digest that it was to start from.
        self._refusals: dict[ModelId, tuple[str, Problem]] = {}
        # The start of a trainer, and when it was last known to be called (the loop's clock).
        self._called: dict[ModelId, tuple[str, float]] = {}

    def term(self, namespace: str, model: str) -> int:
        """The trainer's term if it refused ours as stale; 0 otherwise."""
        return self._terms.get((namespace, model), 0)

    def refusal(self, namespace: str, model: str) -> Problem | None:
        """Why the trainer does not take its assignment, if only a person can change that."""
        _, problem = self._refusals.get((namespace, model), ("", None))
        return problem

    def unreadable(self, namespace: str, model: str, digest: str) -> Problem | None:
        """Why the trainer cannot go on from a checkpoint: it tried, and the bytes are to blame."""
        base, problem = self._refusals.get((namespace, model), ("", None))
        damaged = problem is not None and problem.reason in UNREADABLE and base == digest
        return problem if damaged else None

    def acknowledged(self, namespace: str, model: str, pod: Pod, wanted: Assignment) -> bool:
        """Whether this start of the trainer has acknowledged the assignment."""
        return self._acknowledged.get((namespace, model)) == _Acknowledged.of(pod, wanted)

    async def assign(
        self, namespace: str, model: str, pod: Pod, wanted: Assignment, *, caught_up: bool
    ) -> bool:
        """Send the assignment; True once the trainer has acknowledged it, False to try again.

        ``caught_up``: its commits are in the tree. Before, a trainer that is ahead of its head may
        be ahead on a line that the tree does not show yet, and is not overtaken.
        """
        try:
            await self._client.assign(Peer.of(namespace, model, pod), wanted)
        except TrainerError as error:
            logger.warning("assigning %s/%s: %s", namespace, model, error)
            if error.problem.reason == STALE_TERM:
                if caught_up:
                    await self._overtake(namespace, model, pod)
            elif REFUSED <= error.status < FAILED and error.status != KEY_UNKNOWN:
                self._refusals[namespace, model] = (wanted.base, error.problem)
            return False
        self._refusals.pop((namespace, model), None)
        self._acknowledged[namespace, model] = _Acknowledged.of(pod, wanted)
        return True

    def forget(self, namespace: str, model: str) -> None:
        """The model is gone."""
        self._acknowledged.pop((namespace, model), None)
        self._terms.pop((namespace, model), None)
        self._refusals.pop((namespace, model), None)
        self._called.pop((namespace, model), None)

    async def quiet(
        self, namespace: str, model: str, pod: Pod, limit: float
    ) -> tuple[float | None, float]:
        """Seconds since the trainer's last call, and when to ask again.

        None while it cannot have been quiet for ``limit`` seconds yet, or where it does not say.
        """
        now = asyncio.get_running_loop().time()
        instance, called = self._called.get((namespace, model), ("", 0.0))
        if instance == pod.instance and now < called + limit:
            return None, called + limit - now
        try:
            usage = await self._client.usage(Peer.of(namespace, model, pod))
        except TrainerError as error:
            logger.warning("usage of %s/%s: %s", namespace, model, error)
            return None, limit
        self._called[namespace, model] = (pod.instance, now - usage.quiet_seconds)
        return usage.quiet_seconds, max(ASK_SECONDS, limit - usage.quiet_seconds)

    async def state(self, namespace: str, model: str, pod: Pod) -> TrainerState | None:
        """Where the trainer stands; None if it does not answer."""
        try:
            return await self._client.state(Peer.of(namespace, model, pod))
        except TrainerError as error:
            logger.warning("state of %s/%s: %s", namespace, model, error)
            return None

    async def _overtake(self, namespace: str, model: str, pod: Pod) -> None:
        """Raise the head's term: it was deleted and made again, and the trainer is ahead of it."""
        state = await self.state(namespace, model, pod)
        if state is not None:
            self._terms[namespace, model] = state.term
            self._overtaken(namespace, model)
